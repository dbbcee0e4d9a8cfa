"""llmcore inspect: the built-in checkpoint, one it can't run, and how tensors are listed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llmcore.cli.inspect import group_rows

Run = Callable[..., Any]


def tensor(dtype: str, *shape: int, nbytes: int) -> Any:
    return SimpleNamespace(dtype=dtype, shape=shape, nbytes=nbytes)


def test_layers_share_a_row() -> None:
    tensors = {f"layers.{i}.q.weight": tensor("BF16", 4, 4, nbytes=1000) for i in range(12)}
    tensors["norm.weight"] = tensor("F32", 4, nbytes=16)
    assert group_rows(tensors) == [
        ["layers.*.q.weight (12)", "BF16", "[4, 4]", "12.0 kB"],
        ["norm.weight", "F32", "[4]", "16 B"],
    ]


def test_a_layer_of_another_shape_has_its_own_row() -> None:
    tensors = {f"h.{i}.w": tensor("F32", 4 + (i == 1), nbytes=1) for i in range(3)}
    assert [row[:3] for row in group_rows(tensors)] == [["h.*.w (2)", "F32", "[4]"], ["h.*.w (1)", "F32", "[5]"]]


def test_order_is_that_of_numbers() -> None:
    tensors = {f"b{i}.w": tensor("F32", 1, nbytes=1) for i in (10, 2)}
    assert [row[0] for row in group_rows(tensors)] == ["b2.w", "b10.w"]


def test_no_tensors() -> None:
    assert group_rows({}) == []
