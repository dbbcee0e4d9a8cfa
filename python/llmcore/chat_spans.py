"""Text that knows which of it a chat template wrote itself.

Rendering gives such text: a template's literals are trusted, and whatever puts texts together, cuts a piece out of one
or takes characters off its ends keeps track. Every other operation of str gives a plain str, which is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsIndex

from markupsafe import Markup

Span = tuple[int, int, str]

TRUSTED = "trusted"
GENERATED = "generated"
"""Between `{% generation %}` and `{% endgeneration %}`."""


class Marked(str):
    """A str, equal to a plain one, with (begin, end, kind) of its marked stretches in `_spans`.

    The sandbox keeps templates from reading underscored names.
    """

    _spans: tuple[Span, ...] = ()

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return NotImplemented if _is_foreign(other) else joined((self, other))

    def __radd__(self, other: str) -> str:
        return NotImplemented if _is_foreign(other) else joined((other, self))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = str.__getitem__(self, key)
        begin, end, step = key.indices(len(self)) if isinstance(key, slice) else (0, 0, 1)
        if step != 1:
            return text
        cut = [(max(b, begin) - begin, min(e, end) - begin, kind) for b, e, kind in self._spans]
        return _with_spans(text, [(b, e, kind) for b, e, kind in cut if b < e])

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> str:
        return self[: len(str.rstrip(self, chars))]

    def join(self, parts: Iterable[str], /) -> str:
        texts = [text for part in parts for text in (self, part)]
        return joined(texts[1:])


class Safe(Markup):
    """What the filter `safe` gives: markupsafe escapes what is added to it."""

    _spans: tuple[Span, ...] = ()

    def __str__(self) -> str:
        return _with_spans(plain(self), self._spans)

    def __add__(self, other: Any) -> Any:
        return self._sum(super().__add__(other), (self, other))

    def __radd__(self, other: Any) -> Any:
        return self._sum(super().__radd__(other), (other, self))

    def _sum(self, made: Any, parts: tuple[str, str]) -> Any:
        if made is not NotImplemented and len(made) == len(parts[0]) + len(parts[1]):  # nothing was escaped
            made._spans = spans_in(joined(parts))
        return made


def safe(text: Any) -> Safe:
    """The filter `safe`."""
    made = Safe(text)
    made._spans = spans_in(text)
    return made


def spans_in(text: object) -> tuple[Span, ...]:
    """What is marked in `text`, if anything."""
    return text._spans if isinstance(text, Marked | Safe) else ()


def _is_foreign(other: Any) -> bool:
    return not isinstance(other, str) or hasattr(other, "__html__")  # Markup escapes what it is added to


def _with_spans(text: str, spans: Iterable[Span]) -> str:
    if not spans:
        return text
    marked = Marked(text)
    marked._spans = tuple(spans)
    return marked


def trusted(text: str) -> str:
    """`text` as if a template had written it."""
    return _with_spans(text, [(0, len(text), TRUSTED)] if text else [])


def is_trusted(value: object) -> bool:
    """Whether a template wrote all of this text."""
    return isinstance(value, str) and spans_of(value, TRUSTED) == ([(0, len(value))] if value else [])


def generated(text: str) -> str:
    """`text` as what a model has to say, besides what is known of it."""
    return _with_spans(text, [*spans_in(text), (0, len(text), GENERATED)] if text else [])


def joined(texts: Iterable[str]) -> str:
    """The texts behind one another."""
    texts = list(texts)
    spans: list[Span] = []
    at = 0
    for text in texts:
        for begin, end, kind in spans_in(text):
            if spans and spans[-1][1:] == (at + begin, kind):
                begin = spans.pop()[0] - at
            spans.append((at + begin, at + end, kind))
        at += len(text)
    return _with_spans("".join(texts), spans)


def plain(text: str) -> str:
    """`text` as an exact str."""
    return str.__str__(text)


def spans_of(text: str, kind: str) -> list[tuple[int, int]]:
    """The stretches of this kind in order, as (begin, end) in characters; those that touch are one."""
    found: list[tuple[int, int]] = []
    for begin, end, of in sorted(spans_in(text)):
        if of != kind:
            continue
        if found and begin <= found[-1][1]:
            before = found.pop()
            begin, end = before[0], max(end, before[1])
        found.append((begin, end))
    return found
