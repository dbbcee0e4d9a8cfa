"""Tokenizers side by side."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

import llmcore
from llmcore import ArgumentError, Tokenizer
from llmcore.cli import main
from llmcore.vocab.compare import compare, to_html

TEXT = "Héllo <b>wörld</b> & 'so' on,\n\tnaïve 日本 👩‍👩‍👧 \u202ereversed\u202c \x00"
TINY = Path(llmcore.__file__).parent / "assets" / "tiny"


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    trained = Tokenizer.train([TEXT * 3, "Hello world, so on and on"], vocab_size=300, pattern="gpt2")
    return {"tiny": Tokenizer.load(TINY), "<b>trained</b>": trained}


class Reader(html.parser.HTMLParser):
    """The text and the titles of a page's coloured tokens, column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[list[str]] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "pre":
            self._inside = True
            self.columns.append([])
            self.texts.append("")
        elif tag == "span":
            self.columns[-1].append(str(dict(attrs)["title"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


def test_figures_and_segments(tokenizers: dict[str, Tokenizer]) -> None:
    for one in compare(tokenizers, TEXT):
        tokenizer = tokenizers[one.name]
        assert one.ids == tokenizer.encode(TEXT, add_special_tokens=False)
        assert one.characters_per_token == len(TEXT) / len(one.ids)
        assert one.bytes_per_token == len(TEXT.encode()) / len(one.ids)
        assert [id for segment in one.segments for id in segment.ids] == one.ids
        assert "".join(TEXT[segment.start : segment.end] for segment in one.segments) == TEXT
        for segment in one.segments:
            assert tokenizer.decode(segment.ids) == TEXT[segment.start : segment.end]


def test_the_page_holds_the_text_and_nothing_of_it_as_markup(tokenizers: dict[str, Tokenizer]) -> None:
    results = compare(tokenizers, TEXT)
    page = to_html(results, TEXT)
    reader = Reader()
    reader.feed(page)
    assert "b" not in reader.tags
    assert "script" not in reader.tags
    assert "\u202e" not in page
    assert "\x00" not in page
    assert len(reader.columns) == 2
    for column, shown, one in zip(reader.columns, reader.texts, results, strict=True):
        assert [id for title in column for id in title.split(", ")] == [str(id) for id in one.ids]
        plain = shown.replace("↵", "").replace("→", "").replace("U+202E", "\u202e").replace("U+202C", "\u202c")
        assert plain.replace("U+0000", "\x00").replace("U+200D", "\u200d") == TEXT


def test_no_text_is_an_error(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(ArgumentError):
        compare(tokenizers, "")


def test_command(tokenizers: dict[str, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "tokenizer.json"
    tokenizers["<b>trained</b>"].save(other)
    page = tmp_path / "out.html"
    assert main(["tokenize", "Hello world", "--compare", "tiny", str(other), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["tokenizer", "tokens", "characters", "a", "token", "bytes", "a", "token"]
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.texts == ["Hello world"] * 2
    assert main(["tokenize", "Hello", "--compare", "tiny", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["ids"] == Tokenizer.load(TINY).encode("Hello", add_special_tokens=False)
    wrong: list[list[str]] = [
        ["x", "--html", "y"],
        ["x", "--compare", "tiny", "--count"],
        ["a", "b", "--compare", "tiny"],
    ]
    for words in wrong:
        assert main(["tokenize", *words]) == 2
    assert main(["tokenize", "x", "--compare", "nowhere"]) == 1


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options: Any = ["tokenize", "-m", "tiny", "x", "--compare", "tiny"]
    assert main(options) == 2
