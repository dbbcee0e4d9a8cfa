"""Half surrogate pairs in Python strings: what has no UTF-8 can't be encoded."""

from __future__ import annotations


def clean(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
