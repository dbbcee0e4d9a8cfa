"""Marked text: equal to a plain str whatever is done with it, and trusted only where a template wrote it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from markupsafe import Markup

from llmcore.chat_spans import (
    GENERATED,
    TRUSTED,
    Safe,
    generated,
    is_trusted,
    joined,
    plain,
    safe,
    spans_in,
    spans_of,
    trusted,
)

OPERATIONS: list[tuple[Callable[[Any, Any], Any], str]] = [
    (lambda a, b: a + b, "<a> "),
    (lambda a, b: b + a, "<a> "),
    (lambda a, b: a + b + a, "<a> <a> "),
    (lambda a, b: (b + a + b).strip(), "<a> "),
    (lambda a, b: (a + b).rstrip("< "), "<a> "),
    (lambda a, b: a.strip(), "<a>"),
    (lambda a, b: a.lstrip("<"), "a> "),
    (lambda a, b: a[1:3], "a>"),
    (lambda a, b: a[-2:], "> "),
    (lambda a, b: (b + a + b)[6:-2], "a> "),
    (lambda a, b: a.join([b, b, a]), "<a> <a> <a> "),
    (lambda a, b: a.join([]), ""),
    (lambda a, b: str(a), "<a> "),
    (lambda a, b: b.join([a, a]), ""),
    (lambda a, b: a[::-1], ""),
    (lambda a, b: a[0], ""),
    (lambda a, b: a * 2, ""),
    (lambda a, b: a.upper(), ""),
    (lambda a, b: a.replace("a", b), ""),
    (lambda a, b: a.split("a")[0], ""),
    (lambda a, b: f"{a}{b}", ""),
    (lambda a, b: "%s" % a, "<a> "),  # noqa: UP031
    (lambda a, b: "{}".format(a), "<a> "),  # noqa: UP032
    (lambda a, b: a + Markup(b), ""),
]


@pytest.mark.parametrize("at", range(len(OPERATIONS)))
def test_texts_are_those_of_str_and_trust_goes_along_or_is_lost(at: int) -> None:
    operation, kept = OPERATIONS[at]
    made = operation(trusted("<a> "), " u<a>")
    assert made == operation("<a> ", " u<a>")
    assert "".join(made[begin:end] for begin, end in spans_of(made, TRUSTED)) == kept


def test_stretches_that_touch_are_one() -> None:
    text = joined([trusted("ab"), trusted("c"), "d", trusted("e")])
    assert spans_in(text) == ((0, 3, TRUSTED), (4, 5, TRUSTED))
    assert spans_of(generated("x" + generated(text)), GENERATED) == [(0, 6)]
    assert is_trusted(trusted("a") + trusted("b"))
    assert is_trusted("")
    assert not is_trusted(trusted("a") + "b")
    assert type(plain(text)) is str


def test_safe_text_escapes_what_is_added_as_markup_does() -> None:
    for other in (trusted("[A]"), trusted("<A>"), "u", Markup("<m>")):
        for made, expected in (
            (other + safe("{&}"), other + Markup("{&}")),
            (safe("{&}") + other, Markup("{&}") + other),
        ):
            assert made == expected
            assert isinstance(made, Safe)
            escaped = "<A>" in str(other)
            assert bool(spans_in(made)) == (is_trusted(other) and not escaped)
    assert spans_of(str(trusted("[A]") + safe("x")), TRUSTED) == [(0, 3)]
