"""What the methods of quantised checkpoints (methods.py) have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.safetensors_header import TensorInfo
from llmcore.errors import ArgumentError, QuantError, escape

SCALE_DTYPES = ("F32", "F16", "BF16")


class Source(Protocol):
    """What is read here of a checkpoint."""

    path: Path

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> npt.NDArray[np.generic]: ...

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.generic]: ...


class PackedTensor(Protocol):
    """A quantised matrix [N, K]: value = scale * (code - zero point), scale and zero point of group k // group_size.

    With an order, column k of the codes is column order[k] of the matrix.
    """

    @property
    def module(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def bits(self) -> int:
        """2, 3, 4 or 8."""

    @property
    def group_size(self) -> int:
        """Elements that share a scale; K for one scale per row."""

    @property
    def has_zero_points(self) -> bool: ...
    @property
    def scale_dtype(self) -> str: ...
    @property
    def dtype(self) -> str:
        """A name for messages, as "int4 in groups of 64"."""

    def order(self) -> npt.NDArray[np.int32] | None: ...
    def codes(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int8]: ...
    def scales(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]: ...
    def zero_points(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]: ...


class Scheme(Protocol):
    """How the linear layers of a checkpoint are quantised."""

    @property
    def dynamic_activations(self) -> bool:
        """Meant to run with int8 activations, scaled per token as they come."""

    def tensor_names(self, module: str, source: Source) -> tuple[str, ...]: ...
    def tensor(self, module: str, shape: tuple[int, int], source: Source) -> PackedTensor: ...


def expect(source: Source, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Raises QuantError unless the file holds this tensor so."""
    info = source.tensors.get(name)
    if info is None:
        raise QuantError("a tensor of a quantised layer is missing", file=source.path, field=name)
    if info.shape != shape:
        raise QuantError(
            "has the wrong shape", file=source.path, field=name, value=list(info.shape), allowed=str(list(shape))
        )
    if info.dtype not in dtypes:
        raise QuantError(
            "has the wrong dtype", file=source.path, field=name, value=info.dtype, allowed=", ".join(dtypes)
        )


def order_of(source: Source, name: str, group_size: int) -> npt.NDArray[np.int32] | None:
    """The order that puts the columns of a group side by side, from the group of each column; None: they are.

    Raises QuantError when a group has more columns or fewer than the others.
    """
    of_column = source.read(name).astype(np.int64)
    columns = len(of_column)
    if not ((of_column >= 0) & (of_column < columns // group_size)).all():
        raise QuantError(
            "names groups that are not there", file=source.path, field=name, allowed=f"0 to {columns // group_size - 1}"
        )
    if (np.bincount(of_column, minlength=columns // group_size) != group_size).any():
        raise QuantError("groups of different sizes", file=source.path, field=name, allowed=f"{group_size} columns")
    order = np.argsort(of_column, kind="stable").astype(np.int32)
    return None if np.array_equal(order, np.arange(columns)) else order


def rows_within(tensor: PackedTensor, start: int, stop: int | None) -> tuple[int, int]:
    """`start` and `stop` of some rows. Raises ArgumentError outside of the matrix."""
    stop = tensor.shape[0] if stop is None else stop
    if not 0 <= start <= stop <= tensor.shape[0]:
        raise ArgumentError(f"rows {start} to {stop} of {escape(tensor.module)} are outside 0 to {tensor.shape[0]}")
    return start, stop


def widened(stored: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float32]:
    """Scales in float32, the same values."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def fields(words: npt.NDArray[np.generic], bits: int) -> npt.NDArray[np.uint8]:
    """Words [rows, n] to codes [rows, n * 32 / bits], one stream of bits from the lowest up."""
    data = words.astype("<i4", copy=False).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return data
    if bits != 4:
        each = np.unpackbits(data, axis=1, bitorder="little").reshape(len(words), -1, bits)
        return np.packbits(each, axis=2, bitorder="little")[:, :, 0]
    codes = np.empty((*data.shape, 2), np.uint8)
    codes[:, :, 0] = data & 15
    codes[:, :, 1] = data >> 4
    return codes.reshape(len(words), -1)
