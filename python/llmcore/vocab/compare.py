"""Tokenizers side by side on one text: how many tokens each needs, where each cuts, as figures and as a page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcore.errors import ArgumentError
from llmcore.vocab.surrogates import clean

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

_COLOURS = 6
_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; margin-bottom: 1.5em; }
th, td { padding: .2em .9em .2em 0; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
main { display: flex; gap: 1.5em; align-items: flex-start; }
section { flex: 1 1 0; min-width: 0; }
h2 { font-size: 1em; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.9 ui-monospace, monospace; margin: 0; }
pre span { border-radius: 3px; padding: 2px 0; }
pre span:hover { outline: 2px solid #444; }
i { font-style: normal; color: #888; }
.c0 { background: #cfe3ff; } .c1 { background: #ffe0b8; } .c2 { background: #cdf2d3; }
.c3 { background: #f9d3e0; } .c4 { background: #e3d8fb; } .c5 { background: #f3eda6; }
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the text that one token covers, or several that share a character."""

    start: int
    end: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tokenization:
    """A text as one tokenizer cuts it, without the tokens that are put around a text."""

    name: str
    ids: list[int]
    segments: list[Segment]
    characters_per_token: float
    bytes_per_token: float


def compare(tokenizers: Mapping[str, Tokenizer], text: str) -> list[Tokenization]:
    """Cuts `text` with each tokenizer. Raises ArgumentError for an empty text."""
    if not text:
        raise ArgumentError("there is no text to compare the tokenizers on")
    text = clean(text)
    size = len(text.encode("utf-8"))
    results = []
    for name, tokenizer in tokenizers.items():
        ids, spans = tokenizer._core.encode_spans(text, False, False)  # with the spaces that offsets may lack
        count = max(len(ids), 1)
        results.append(Tokenization(name, ids, _segments(ids, spans), len(text) / count, size / count))
    return results


def _segments(ids: list[int], spans: list[tuple[int, int]]) -> list[Segment]:
    """One for each token; tokens that are parts of one character together."""
    segments: list[Segment] = []
    for id, (start, end) in zip(ids, spans, strict=True):
        if segments and start < segments[-1].end:
            last = segments[-1]
            segments[-1] = Segment(last.start, max(last.end, end), (*last.ids, id))
        else:
            segments.append(Segment(start, end, (id,)))
    return segments


def to_html(results: list[Tokenization], text: str) -> str:
    """A page, complete in itself, with the figures and the text in coloured tokens; ids show under the pointer."""
    text = clean(text)
    rows = "".join(
        f"<tr><td>{html.escape(one.name)}</td><td>{len(one.ids):,}</td><td>{one.characters_per_token:.2f}</td>"
        f"<td>{one.bytes_per_token:.2f}</td></tr>\n"
        for one in results
    )
    columns = "".join(
        f"<section><h2>{html.escape(one.name)}</h2><pre>{_coloured(one, text)}</pre></section>\n" for one in results
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Tokenizers side by side</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n<table>\n<tr><th>tokenizer</th><th>tokens</th>"
        f"<th>characters a token</th><th>bytes a token</th></tr>\n{rows}</table>\n<main>\n{columns}</main>\n"
        "</body>\n</html>\n"
    )


def _coloured(one: Tokenization, text: str) -> str:
    parts: list[str] = []
    at = 0
    for i, segment in enumerate(one.segments):
        parts.append(_visible(text[at : segment.start]))  # what no token covers
        title = ", ".join(map(str, segment.ids))
        shown = _visible(text[segment.start : segment.end]) or "<i>∅</i>"
        parts.append(f'<span class="c{i % _COLOURS}" title="{title}">{shown}</span>')
        at = max(at, segment.end)
    parts.append(_visible(text[at:]))
    return "".join(parts)


def _visible(text: str) -> str:
    """Text for the page: white space that would be lost is shown, control and direction marks are named."""
    shown = []
    for char in text:
        if char == "\n":
            shown.append("<i>↵</i>\n")
        elif char == "\t":
            shown.append("<i>→</i>\t")
        elif not char.isprintable() and char != " ":
            shown.append(f"<i>U+{ord(char):04X}</i>")
        else:
            shown.append(html.escape(char))
    return "".join(shown)
