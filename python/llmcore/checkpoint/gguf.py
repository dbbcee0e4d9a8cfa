"""The header of a .gguf file: key-value pairs and tensors, every length checked against the file before it is used.

Written from the format's public description (ggml, docs/gguf.md).
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.files import PlainFile, shown
from llmcore.checkpoint.safetensors_header import MAX_TENSORS, TensorInfo
from llmcore.errors import GGUFError, LimitError, OutOfMemoryError, UnsupportedModelError, escape

MAX_KEYS = 1 << 16
MAX_KEY_BYTES = 65535
MAX_STRING_BYTES = 1 << 24
MAX_METADATA_BYTES = 1 << 28
_WINDOW = 1 << 20
_VERSIONS = (2, 3)
_KEY = re.compile(rb"[\x21-\x7e]+")
_STRING, _ARRAY, _BOOL = 8, 9, 7
# Type -> letter of struct and numpy, bytes and name.
_SCALARS = {
    0: ("B", 1, "u8"),
    1: ("b", 1, "i8"),
    2: ("H", 2, "u16"),
    3: ("h", 2, "i16"),
    4: ("I", 4, "u32"),
    5: ("i", 4, "i32"),
    6: ("f", 4, "f32"),
    _BOOL: ("B", 1, "bool"),
    10: ("Q", 8, "u64"),
    11: ("q", 8, "i64"),
    12: ("d", 8, "f64"),
}


HAS_VOCABULARY = "tokenizer.ggml.model"
"""The key that a file with a vocabulary has."""
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
_MAX_INT = (1 << 63) - 1

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""ggml's types by number: the name, elements and bytes of a block."""


@dataclass(frozen=True, slots=True)
class GGUFValue:
    """A value with its type: u8 to f64, bool, str, or `[type]`: an array of numpy, a list of str."""

    kind: str
    value: Any

    @property
    def is_scalar(self) -> bool:
        return not self.kind.startswith("[")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, GGUFValue]:
    """The key-value pairs of the file at `path`.

    Raises GGUFError for what breaks the format, LimitError, UnsupportedModelError for another version, StorageError.
    """
    with PlainFile(path) as file:
        return _Reader(file).metadata()


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the data. A tensor's shape is in the order of numpy, rows first."""

    metadata: dict[str, GGUFValue]
    tensors: dict[str, TensorInfo]
    metadata_end: int
    data_start: int


def read_header(file: PlainFile) -> Header:
    """The header of an open file. Raises as `read_metadata`."""
    reader = _Reader(file)
    metadata = reader.metadata()
    end = reader.at
    return Header(metadata, reader.tensors(metadata), end, reader.at)


def read_vocabulary(path: str | os.PathLike[str]) -> bytes | None:
    """The metadata of the file at `path` as a file of its own, without tensors; None where there is no vocabulary.

    Raises as `read_metadata`.
    """
    with PlainFile(path) as file:
        reader = _Reader(file)
        if HAS_VOCABULARY not in reader.metadata():
            return None
        data = bytes(file.read(reader.at, 0))
    return data[:8] + bytes(8) + data[16:]


class _Reader:
    """One walk over the header. Positions are bytes from the start of the file."""

    def __init__(self, file: PlainFile) -> None:
        self.file = file
        self.at = 0
        self.num_tensors = 0
        self._window = b""
        self._start = 0

    def fail(self, message: str, **where: Any) -> NoReturn:
        raise GGUFError(message, file=self.file.path, offset=where.pop("offset", self.at), **where)

    def take(self, count: int, what: str) -> bytes | bytearray:
        """The next `count` bytes, which must be in the file."""
        if count > self.file.size - self.at:
            self.fail(
                f"{what} goes beyond the end of the file", value=count, allowed=f"{self.file.size - self.at} bytes"
            )
        if self.at + count > MAX_METADATA_BYTES:
            raise LimitError(f"{shown(self.file.path)}: more than {MAX_METADATA_BYTES} bytes of metadata")
        if count > _WINDOW:
            self.at += count
            return self.file.read(count, self.at - count)
        begin = self.at - self._start
        if begin < 0 or begin + count > len(self._window):
            size = min(_WINDOW, self.file.size - self.at)
            self._window, self._start, begin = bytes(self.file.read(size, self.at)), self.at, 0
        self.at += count
        return self._window[begin : begin + count]

    def number(self, letter: str, size: int, what: str) -> Any:
        return struct.unpack("<" + letter, self.take(size, what))[0]

    def metadata(self) -> dict[str, GGUFValue]:
        magic = self.take(4, "the magic") if self.file.size >= 4 else b""
        if magic != b"GGUF":
            hint = "; wrong byte order?" if magic == b"FUGG" else ""
            self.fail(f"not a GGUF file{hint}", offset=0, value=magic)
        version = self.number("I", 4, "the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            hint = "; a big-endian file?" if swapped else ""
            raise UnsupportedModelError(
                f"{shown(self.file.path)}: GGUF version {version} can't be read{hint}; 2 and 3 can"
            )
        tensors = self.num_tensors = self.number("Q", 8, "the number of tensors")
        keys = self.number("Q", 8, "the number of keys")
        left = self.file.size - self.at
        if tensors * 24 + keys * 13 > left:  # the shortest records there are
            self.fail("more tensors and keys than the file has room for", value=f"{tensors} and {keys}")
        if keys > MAX_KEYS:
            raise LimitError(f"{shown(self.file.path)}: more than {MAX_KEYS} keys")
        found: dict[str, GGUFValue] = {}
        for _ in range(keys):
            at = self.at
            key = self.key()
            if key in found:
                self.fail("the same key twice", field=key, offset=at)
            try:
                found[key] = self.value(key)
            except MemoryError:
                raise OutOfMemoryError(
                    f"{shown(self.file.path)}: memory is too short for the value of {escape(key)}"
                ) from None
        return found

    def tensors(self, metadata: dict[str, GGUFValue]) -> dict[str, TensorInfo]:
        """The tensors, after the metadata; leaves the position at the data."""
        if self.num_tensors > MAX_TENSORS:
            raise LimitError(f"{shown(self.file.path)}: more than {MAX_TENSORS} tensors")
        alignment = self.alignment(metadata)
        found: dict[str, TensorInfo] = {}
        size = 0  # of the data so far
        for _ in range(self.num_tensors):
            info = self.tensor()
            if info.name in found:
                self.fail("the same tensor twice", field=info.name)
            if info.offset != size:
                self.fail(
                    "the data of a tensor doesn't follow the one before",
                    field=info.name,
                    value=info.offset,
                    allowed=f"{size}",
                )
            found[info.name] = info
            size = -(-(size + info.nbytes) // alignment) * alignment
        self.at = -(-self.at // alignment) * alignment
        for info in found.values():
            if self.at + info.offset + info.nbytes > self.file.size:
                self.fail("the data of a tensor goes beyond the end of the file", field=info.name, value=info.offset)
        return {name: info._replace(offset=self.at + info.offset) for name, info in found.items()}

    def alignment(self, metadata: dict[str, GGUFValue]) -> int:
        found = metadata.get("general.alignment", GGUFValue("u32", 32))
        size = found.value
        if found.kind != "u32" or not 1 <= size <= MAX_ALIGNMENT or size & (size - 1):
            self.fail(
                "tensors can't be aligned so",
                field="general.alignment",
                value=f"{found.kind} {size if found.kind == 'u32' else ''}".strip(),
                allowed=f"u32, a power of two up to {MAX_ALIGNMENT}",
            )
        return int(size)

    def tensor(self) -> TensorInfo:
        """One record; the offset is still from the start of the data."""
        at = self.at
        length = self.number("Q", 8, "the length of a tensor's name")
        if not 1 <= length <= MAX_NAME_BYTES:
            self.fail("a tensor's name has an impossible length", offset=at, value=length, allowed="1 to 63")
        data = self.take(length, "a tensor's name")
        if _KEY.fullmatch(data) is None:
            self.fail("a tensor's name is not printable ASCII", offset=at + 8, value=data[:60])
        name = data.decode("ascii")
        dimensions = self.number("I", 4, "the number of dimensions")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.fail("an impossible number of dimensions", field=name, value=dimensions, allowed="1 to 4")
        sizes = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions, "the dimensions"))
        kind = self.number("i", 4, "the type of a tensor")
        offset = self.number("Q", 8, "the offset of a tensor")
        if kind not in TENSOR_TYPES:
            raise UnsupportedModelError(
                f"{shown(self.file.path)}: the tensor {escape(name)} is of the unknown type {kind}"
            )
        dtype, elements, nbytes = TENSOR_TYPES[kind]
        count = 1
        for size in sizes:
            count *= size
            if not 1 <= size <= _MAX_INT or count > _MAX_INT:
                self.fail("a tensor is empty or beyond 2^63 elements", field=name, value=list(sizes))
        if sizes[0] % elements:
            self.fail(f"rows of {dtype} are whole blocks of {elements}", field=name, value=sizes[0])
        return TensorInfo(name, dtype, tuple(reversed(sizes)), offset, count // elements * nbytes)

    def key(self) -> str:
        at = self.at
        length = self.number("Q", 8, "the length of a key")
        if not 1 <= length <= MAX_KEY_BYTES:
            self.fail("a key has an impossible length", offset=at, value=length, allowed=f"1 to {MAX_KEY_BYTES}")
        data = self.take(length, "a key")
        if _KEY.fullmatch(data) is None:
            self.fail("a key is not printable ASCII", offset=at + 8, value=data[:60])
        return data.decode("ascii")

    def value(self, key: str) -> GGUFValue:
        kind = self.number("I", 4, "a type")
        if kind in _SCALARS:
            return GGUFValue(_SCALARS[kind][2], self.scalars(kind, 1, key)[0].item())
        if kind == _STRING:
            return GGUFValue("str", self.string(key))
        if kind != _ARRAY:
            self.fail("unknown type of a value", field=key, value=kind, offset=self.at - 4)
        element = self.number("I", 4, "a type")
        count = self.number("Q", 8, "the length of an array")
        if element == _ARRAY:
            self.fail("an array of arrays", field=key)
        if element not in _SCALARS and element != _STRING:
            self.fail("unknown type of an array's elements", field=key, value=element)
        size = 8 if element == _STRING else _SCALARS[element][1]
        if count > (self.file.size - self.at) // size:
            self.fail("an array goes beyond the end of the file", field=key, value=count)
        if element == _STRING:
            return GGUFValue("[str]", self.strings(count, key))
        return GGUFValue(f"[{_SCALARS[element][2]}]", self.scalars(element, count, key))

    def strings(self, count: int, key: str) -> list[str]:
        """As `string`, for the hundred thousands of a vocabulary: those that lie in the window in one go."""
        found: list[str] = []
        number = struct.Struct("<Q").unpack_from
        while len(found) < count:
            found.append(self.string(key))  # fills the window, and finds the faults
            window, at, end = self._window, self.at - self._start, len(self._window)
            try:
                for _ in range(count - len(found)):
                    if at + 8 > end:
                        break
                    (length,) = number(window, at)
                    if at + 8 + length > end:
                        break
                    text = window[at + 8 : at + 8 + length].decode("utf-8")
                    found.append(text)
                    at += 8 + length
            except UnicodeDecodeError:
                pass  # `string` says where
            self.at = self._start + at
        return found

    def scalars(self, kind: int, count: int, key: str) -> npt.NDArray[Any]:
        """An array, not a list, which would take up to 40 times the bytes of the file."""
        letter, size, _ = _SCALARS[kind]
        at = self.at
        values = np.frombuffer(self.take(count * size, "a value"), np.dtype(letter).newbyteorder("<"))
        if kind != _BOOL:
            return values
        if values.size and values.max() > 1:
            self.fail("a bool is neither 0 nor 1", field=key, offset=at)
        return values.view(np.bool_)

    def string(self, key: str) -> str:
        at = self.at
        length = self.number("Q", 8, "the length of a text")
        if length > self.file.size - self.at:
            self.fail("a text goes beyond the end of the file", field=key, offset=at, value=length)
        if length > MAX_STRING_BYTES:
            raise LimitError(f"{shown(self.file.path)}: a text of {length} bytes; at most {MAX_STRING_BYTES} are read")
        data = self.take(length, "a text")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail("a text is not UTF-8", field=key, offset=at + 8 + error.start)
