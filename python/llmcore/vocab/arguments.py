"""What callers give a tokenizer, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore import _core
from llmcore.errors import ArgumentError, ArgumentTypeError, shown

if TYPE_CHECKING:
    import numpy.typing as npt


def integer(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(value.__index__())
    except (AttributeError, TypeError):
        raise ArgumentError(f"{name}: must be an integer, found {type(value).__name__}") from None


def check_flags(add_special_tokens: Any, allow_special: Any) -> None:
    for name, value in (("add_special_tokens", add_special_tokens), ("allow_special", allow_special)):
        if not isinstance(value, int | np.bool_):
            raise ArgumentTypeError(f"{name}: must be True or False, found {type(value).__name__}")


def id_array(ids: Iterable[int]) -> npt.NDArray[np.uint32]:
    if type(ids) is list and (read := _core.list_to_array(ids)) is not None:
        return read
    array = np.asarray(ids if isinstance(ids, np.ndarray | list | tuple) else list(ids))
    if array.size == 0:
        return np.empty(0, np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ArgumentError(f"ids: must be a flat sequence of integers, found {array.dtype} {list(array.shape)}")
    if int(array.min()) < 0 or int(array.max()) > 0xFFFFFFFF:
        raise ArgumentError(f"ids: must be from 0 to 2^32 - 1, found {int(array.min())} to {int(array.max())}")
    return np.ascontiguousarray(array, np.uint32)


def text_list(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        found = "a single string" if isinstance(texts, str | bytes) else type(texts).__name__
        raise ArgumentError(f"texts: must be a sequence of str, found {found}")
    return list(texts)


def thread_count(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = integer(threads, "threads")
    if not 1 <= count <= 1024:
        raise ArgumentError(f"threads: {shown(count)} is not from 1 to 1024")
    return count
