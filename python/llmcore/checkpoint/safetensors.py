"""Strict reading of .safetensors files into owned memory, whole or by rows.

Written from the format's public description; `safetensors_header` checks the header.
"""

from __future__ import annotations

import math
import os
from types import TracebackType

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.files import PlainFile, shown
from llmcore.checkpoint.safetensors_header import DTYPES, TensorInfo, read_header
from llmcore.errors import (
    ArgumentError,
    ClosedError,
    OutOfMemoryError,
    SafetensorsError,
    UnsupportedModelError,
    escape,
)

__all__ = ["SafetensorsFile", "TensorInfo"]


class SafetensorsFile:
    """An open .safetensors file whose header has been checked; a context manager.

    `tensors` maps names to TensorInfo in the order of the bytes, `metadata` is the `__metadata__` of strings. Opening
    raises SafetensorsError for what breaks the format, LimitError, UnsupportedModelError (an element type that isn't
    known) and StorageError. Reads take owned memory; the file is never mapped.
    """

    def __init__(self, file: PlainFile) -> None:
        self._file = file
        self.path = file.path
        self.tensors, self.metadata = read_header(file)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Opens the file at `path`."""
        return cls.of(PlainFile(path))

    @classmethod
    def of(cls, file: PlainFile) -> SafetensorsFile:
        """Takes over an open file, which is closed when its header is refused."""
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self._file.size

    @property
    def file(self) -> PlainFile:
        """The open file behind this."""
        return self._file

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """The tensor `name` in its shape, in new memory. BF16 and 8-bit floats come as their raw bits.

        Raises ArgumentError for an unknown name, UnsupportedModelError for elements under a byte, StorageError when the
        file can't be read or has changed, OutOfMemoryError, ClosedError.
        """
        info = self._info(name)
        return self._read(info, info.shape, info.offset)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Puts the bytes of `name` into a buffer of their size. Raises as `read`."""
        info = self._info(name)
        if buffer.nbytes != info.nbytes:
            raise ArgumentError(f"tensor {escape(name)} has {info.nbytes} bytes, the buffer {buffer.nbytes}")
        if self._file.closed:
            raise ClosedError(f"{shown(self.path)} was closed")
        if info.nbytes:
            self._file.read_into(buffer, info.offset)
        self._file.check_unchanged()

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.generic]:
        """Rows `start` to `stop` (exclusive) along the first axis of `name`; otherwise as `read`."""
        info = self._info(name)
        if not info.shape:
            raise ArgumentError(f"tensor {escape(name)} is a scalar and has no rows")
        rows = info.shape[0]
        if not 0 <= start <= stop <= rows:
            raise ArgumentError(f"rows {start} to {stop} of tensor {escape(name)} are outside 0 to {rows}")
        row_bytes = info.nbytes // rows if rows else 0
        return self._read(info, (stop - start, *info.shape[1:]), info.offset + start * row_bytes)

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise ArgumentError(f"{shown(self.path)}: no tensor {escape(name)}") from None

    def _read(self, info: TensorInfo, shape: tuple[int, ...], offset: int) -> npt.NDArray[np.generic]:
        if self._file.closed:
            raise ClosedError(f"{shown(self.path)} was closed")
        bits, kind = DTYPES[info.dtype]
        if kind is None:
            raise UnsupportedModelError(f"{shown(self.path)}: tensor {escape(info.name)} has elements of {bits} bits")
        nbytes = math.prod(shape) * bits // 8
        try:
            data = np.empty(nbytes, np.uint8)
        except MemoryError:
            raise OutOfMemoryError(f"reading tensor {escape(info.name)} needs {nbytes} bytes", needed=nbytes) from None
        if nbytes:
            self._file.read_into(data.data, offset)
        self._file.check_unchanged()
        if info.dtype == "BOOL" and nbytes and data.max() > 1:
            at = int(np.argmax(data > 1))
            raise SafetensorsError(
                "a BOOL is neither 0 nor 1",
                file=self.path,
                field=info.name,
                offset=offset + at,
                value=int(data[at]),
                allowed="0 or 1",
            )
        return data.view(kind).reshape(shape)

    def close(self) -> None:
        """Closes the file; arrays that were read stay valid."""
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
