"""What callers give, checked: numbers within a range, and one of some names."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

from llmcore.errors import ArgumentError, ArgumentTypeError, shown


def integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an integer from `low` to `high`. Raises ArgumentTypeError, ArgumentError."""
    rule = f"{name} must be an integer from {low} to {high}, got "
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ArgumentTypeError(rule + shown(value))
    number = int(value)
    if not low <= number <= high:
        raise ArgumentError(rule + shown(value))
    return number


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float from `low` to `high`. Raises ArgumentTypeError, ArgumentError."""
    rule = f"{name} must be a number from {low:g} to {high:g}, got "
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(rule + shown(value))
    try:
        found = float(value)
    except OverflowError:
        found = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if not low <= found <= high:  # also refuses NaN
        raise ArgumentError(rule + shown(value))
    return found + 0.0  # -0.0 becomes 0.0


def one_of(name: str, value: object, names: Iterable[str]) -> str:
    """`value`, which is one of `names`. Raises ArgumentTypeError, ArgumentError."""
    *most, last = names
    rule = f"{name} must be {', '.join(most)} or {last}, got {shown(value)}"
    if not isinstance(value, str):
        raise ArgumentTypeError(rule)
    if value not in (*most, last):
        raise ArgumentError(rule)
    return value
