"""The metadata of a .gguf file: header and key-value pairs, every length checked against the file before it is used.

Written from the format's public description (ggml, docs/gguf.md). Tensors aren't read here.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from llmcore.checkpoint.files import PlainFile, shown
from llmcore.errors import GGUFError, LimitError, UnsupportedModelError

MAX_KEYS = 1 << 16
MAX_KEY_BYTES = 65535
MAX_STRING_BYTES = 1 << 24
MAX_METADATA_BYTES = 1 << 28
_WINDOW = 1 << 20
_VERSIONS = (2, 3)
_KEY = re.compile(rb"[\x21-\x7e]+")
_STRING, _ARRAY, _BOOL = 8, 9, 7
# Type -> struct letter, bytes and name.
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


@dataclass(frozen=True, slots=True)
class GGUFValue:
    """A value with its type: u8 to f64, bool, str, or `[type]` for a list."""

    kind: str
    value: Any


def read_metadata(path: str | os.PathLike[str]) -> dict[str, GGUFValue]:
    """The key-value pairs of the file at `path`.

    Raises GGUFError for what breaks the format, LimitError, UnsupportedModelError for another version, StorageError.
    """
    with PlainFile(path) as file:
        return _Reader(file).metadata()


class _Reader:
    """One walk over the header. Positions are bytes from the start of the file."""

    def __init__(self, file: PlainFile) -> None:
        self.file = file
        self.at = 0
        self._window = b""
        self._start = 0

    def fail(self, message: str, **where: Any) -> NoReturn:
        raise GGUFError(message, file=self.file.path, offset=where.pop("offset", self.at), **where)

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, which must be in the file."""
        if count > self.file.size - self.at:
            self.fail(
                f"{what} goes beyond the end of the file", value=count, allowed=f"{self.file.size - self.at} bytes"
            )
        if self.at + count > MAX_METADATA_BYTES:
            raise LimitError(f"{shown(self.file.path)}: more than {MAX_METADATA_BYTES} bytes of metadata")
        begin = self.at - self._start
        if begin < 0 or begin + count > len(self._window):
            size = min(max(count, _WINDOW), self.file.size - self.at)
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
        tensors = self.number("Q", 8, "the number of tensors")
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
            found[key] = self.value(key)
        return found

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
            return GGUFValue(_SCALARS[kind][2], self.scalars(kind, 1, key)[0])
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
            return GGUFValue("[str]", [self.string(key) for _ in range(count)])
        return GGUFValue(f"[{_SCALARS[element][2]}]", self.scalars(element, count, key))

    def scalars(self, kind: int, count: int, key: str) -> list[Any]:
        letter, size, _ = _SCALARS[kind]
        at = self.at
        values = list(struct.unpack(f"<{count}{letter}", self.take(count * size, "a value")))
        if kind != _BOOL:
            return values
        if any(value > 1 for value in values):
            self.fail("a bool is neither 0 nor 1", field=key, offset=at)
        return [bool(value) for value in values]

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
