"""Checks of what callers give: whatever it is, the error is typed and its message short."""

from __future__ import annotations

import fractions
from typing import Any

import numpy as np
import pytest

from llmcore.arguments import integer, number, one_of
from llmcore.errors import ArgumentError, ArgumentTypeError, escape, shown


class _Mute:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


ODD: dict[str, Any] = {
    "huge": 10**5000,
    "huge negative": -(10**5000),
    "huge fraction": fractions.Fraction(10**5000, 3),
    "array": np.array([1, 2]),
    "array of one": np.array(["f16"]),
    "mute": _Mute(),
    "text": "\x1b" * 10**6,
    "nan": float("nan"),
    "list": [[]],
    "type": int,
}


@pytest.mark.parametrize("name", ODD)
def test_anything_can_be_shown(name: str) -> None:
    for text in (shown(ODD[name]), escape(ODD[name])):
        assert 0 < len(text) <= 80
        assert text.isascii()
        assert text.isprintable()


@pytest.mark.parametrize("name", ODD)
def test_what_is_out_of_range_is_refused(name: str) -> None:
    for check in (
        lambda value: integer("x", value, 0, 2**63),
        lambda value: number("x", value, -1, 1),
        lambda value: one_of("x", value, ("f16", "f32")),
    ):
        with pytest.raises(ArgumentError, match=r"^x must be .* got "):
            check(ODD[name])


def test_wrong_types_are_type_errors() -> None:
    for value in (True, "1", None, 1.0):
        with pytest.raises(ArgumentTypeError):
            integer("x", value, 0, 1)
    for value in (True, "1", None):
        with pytest.raises(ArgumentTypeError):
            number("x", value, 0, 1)
    with pytest.raises(ArgumentTypeError):
        one_of("x", 1, ("1", "2"))


def test_what_is_taken_is_plain() -> None:
    assert type(integer("x", np.int64(1), 0, 1)) is int
    assert type(number("x", np.float32(0.5), 0, 1)) is float
    assert number("x", 10**400, 0, float("inf")) == float("inf")
    assert str(number("x", -0.0, 0, 1)) == "0.0"
    assert one_of("x", "b", ("a", "b")) == "b"
