"""A model in a .gguf file, or in several parts of one, as the checkpoint it was made from. Implements `Checkpoint`.

Weights keep their values and their types: quantised rows come as the bytes of their blocks.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.config import Config, check_generation_config
from llmcore.checkpoint.files import PlainFile, open_inside, shown
from llmcore.checkpoint.gguf import HAS_VOCABULARY, Header, read_header
from llmcore.checkpoint.gguf_models import FACTORS, sampling_defaults, understand
from llmcore.checkpoint.quantized import widened
from llmcore.checkpoint.safetensors_header import TensorInfo
from llmcore.errors import ArgumentError, ClosedError, ConfigError, GGUFError, OutOfMemoryError, escape

_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_FLOATS = ("F32", "F16", "BF16")
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MAX_PARTS = 1 << 12
_FINGERPRINT_BYTES = 64
_MAX_HEAD_DIM = 1 << 16


class GGUFCheckpoint:
    """The model at `path`, a file or the first of its parts, open for reading; a context manager.

    Tensors have the names and shapes of the Hugging Face checkpoint, and for ggml's block types the type's name as
    dtype. Raises GGUFError for what breaks the format, ConfigError for what no model can be, TokenizerError,
    UnsupportedModelError, LimitError and StorageError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: list[tuple[PlainFile, Header]] = []
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def matches(path: Path) -> bool:
        """Whether `path` is a file that begins as .gguf files do."""
        if not path.is_file():
            return False
        with PlainFile(path) as file:
            return bytes(file.read(min(file.size, 4), 0)) in (b"GGUF", b"FUGG")

    def _open(self) -> None:
        with ExitStack() as opened:
            file = opened.enter_context(PlainFile(self.path))
            self._files = [(file, read_header(file))]
            for part in self._other_parts(self._files[0][1]):
                self._files.append((opened.enter_context(part), read_header(part)))
            self._check_parts()
            opened.pop_all()
        self._home = {name: file for file, header in self._files for name in header.tensors}
        stored = {name: info for _, header in self._files for name, info in header.tensors.items()}
        metadata = self._files[0][1].metadata
        self._stored = stored
        meaning = understand(metadata, stored, self._factors(), self.path)
        self.config = meaning.config
        self.generation_config: Mapping[str, object] = sampling_defaults(metadata)
        check_generation_config(Config(self.generation_config, file=self.path, where="general.sampling."))
        self._meaning = meaning
        tensors = {name: stored[theirs]._replace(name=name) for name, theirs in meaning.names.items()}
        for name in meaning.less_one & tensors.keys():
            info = tensors[name]
            if info.dtype in _FLOATS:  # where 1 is taken away again, in float32
                tensors[name] = info._replace(dtype="F32", nbytes=4 * math.prod(info.shape))
        self.tensors: Mapping[str, TensorInfo] = tensors
        self.tokenizer_path = self.path if HAS_VOCABULARY in metadata else None

    def _other_parts(self, header: Header) -> list[PlainFile]:
        count = self._number(header, "split.count", 1, _MAX_PARTS, 1)
        number = self._number(header, "split.no", 0, count - 1, 0)
        if count == 1:
            return []
        found = _PART.fullmatch(self.path.name)
        if found is None or int(found[3]) != count or int(found[2]) != number + 1:
            raise GGUFError(
                f"part {number + 1} of {count}, which must be named so",
                file=self.path,
                allowed=f"NAME-{number + 1:05}-of-{count:05}.gguf",
            )
        if number:
            raise GGUFError(f"part {number + 1} of {count}: load the first", file=self.path)
        names = [f"{found[1]}-{i:05}-of-{count:05}.gguf" for i in range(2, count + 1)]
        with ExitStack() as opened:
            parts = [opened.enter_context(open_inside(self.path.parent, name)) for name in names]
            opened.pop_all()
        return parts

    def _number(self, header: Header, key: str, lowest: int, highest: int, default: int) -> int:
        found = header.metadata.get(key)
        if found is None:
            return default
        if found.kind not in ("u16", "u32", "i32", "u64") or not lowest <= found.value <= highest:
            raise GGUFError(
                "is out of range",
                file=self.path,
                field=key,
                value=f"{found.kind} {str(found.value)[:40]}",
                allowed=f"{lowest} to {highest}",
            )
        return int(found.value)

    def _check_parts(self) -> None:
        """The parts must say that they belong together."""
        first = self._files[0][1]
        seen: set[str] = set()
        for i, (file, header) in enumerate(self._files):
            twice = seen & header.tensors.keys()
            seen |= header.tensors.keys()
            if twice:
                raise GGUFError("the same tensor in two parts", file=file.path, field=min(twice))
            for key, expected in (("split.count", len(self._files)), ("split.no", i)):
                if len(self._files) > 1 and not self._says(header, key, expected):
                    raise GGUFError("isn't the part that its name says", file=file.path, field=key)
        total = "split.tensors.count"
        if len(self._files) > 1 and total in first.metadata and not self._says(first, total, len(seen)):
            raise GGUFError(
                "the parts don't hold so many tensors", file=self.path, field=total, value=first.metadata[total].value
            )

    def _says(self, header: Header, key: str, expected: int) -> bool:
        found = header.metadata.get(key)
        return found is not None and found.is_scalar and bool(found.value == expected)

    def _factors(self) -> list[float] | None:
        if FACTORS not in self._stored:
            return None
        info = self._stored[FACTORS]
        if info.dtype != "F32" or len(info.shape) != 1 or info.shape[0] > _MAX_HEAD_DIM:
            raise ConfigError("must be a vector of F32", file=self.path, field=FACTORS, value=list(info.shape))
        return [float(value) for value in self._rows(FACTORS, 0, info.shape[0]).view(np.float32).flat]

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """The tensor `name` in new memory; of block types uint8 [rows, bytes of a row]."""
        return self.read_rows(name, 0, self._info(name).shape[0])

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Puts the bytes of `name` into a buffer of their size."""
        values = self.read(name)
        if buffer.nbytes != values.nbytes:
            raise ArgumentError(f"tensor {escape(name)} has {values.nbytes} bytes, the buffer {buffer.nbytes}")
        buffer.cast("B")[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1).data

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.generic]:
        """Rows `start` to `stop` (exclusive) of `name` in new memory, as `read`."""
        info = self._info(name)
        rows = info.shape[0]
        if not 0 <= start <= stop <= rows:
            raise ArgumentError(f"rows {start} to {stop} of tensor {escape(name)} are outside 0 to {rows}")
        theirs = self._meaning.names[name]
        data = self._reordered(name, theirs, start, stop)
        if data is None:
            data = self._rows(theirs, start, stop)
        if info.dtype not in _NUMPY:
            return data
        dtype = self._stored[theirs].dtype
        values = data.view(_NUMPY[dtype]).reshape(stop - start, *info.shape[1:])
        return widened(values, dtype) - np.float32(1) if name in self._meaning.less_one and dtype in _FLOATS else values

    def _reordered(self, name: str, theirs: str, start: int, stop: int) -> npt.NDArray[np.uint8] | None:
        """Rows of q or k as they were: row h + r * half of a head is row 2 r + h of the file's, h 0 or 1."""
        heads = self._meaning.heads.get(name)
        rows = self._info(name).shape[0]
        if heads is None or rows % heads or rows // heads % 2 or start == stop:
            return None
        width = rows // heads
        first, last = start // width, -(-stop // width)
        data = self._rows(theirs, first * width, last * width)
        pairs = data.reshape(last - first, width // 2, 2, -1).swapaxes(1, 2).reshape(len(data), -1)
        return np.ascontiguousarray(pairs[start - first * width : stop - first * width])

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of some rows of the file's tensor `name`: [rows, bytes of a row]."""
        info, file = self._stored[name], self._home[name]
        if file.closed:
            raise ClosedError(f"{shown(self.path)} was closed")
        row_bytes = info.nbytes // info.shape[0]
        try:
            data = np.empty((stop - start, row_bytes), np.uint8)
        except MemoryError:
            needed = (stop - start) * row_bytes
            raise OutOfMemoryError(f"reading tensor {escape(name)} needs {needed} bytes", needed=needed) from None
        if data.size:
            file.read_into(data.reshape(-1).data, info.offset + start * row_bytes)
        file.check_unchanged()
        return data

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise ArgumentError(f"{shown(self.path)}: no tensor {escape(name)}") from None

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the headers and of each tensor's first and last 64 bytes; no checksum of all weights."""
        digest = hashlib.sha256(b"llmcore gguf 1\0")
        for file, header in self._files:
            digest.update(file.read(header.data_start, 0))
            for info in header.tensors.values():
                count = min(info.nbytes, _FINGERPRINT_BYTES)
                digest.update(file.read(count, info.offset))
                digest.update(file.read(count, info.offset + info.nbytes - count))
        return digest.hexdigest()

    def close(self) -> None:
        """Closes all files; arrays that were read stay valid."""
        for file, _ in self._files:
            file.close()

    def __enter__(self) -> GGUFCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
