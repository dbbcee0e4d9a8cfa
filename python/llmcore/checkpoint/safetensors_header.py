"""The header of a .safetensors file: 8 bytes of length, then JSON, of which every claim is checked.

Stricter than the reference reader where the two differ: a name may stand only once, nothing may come before the `{`,
and every number is an exact integer in range. The header is walked entry by entry over text of one byte per character,
so memory stays within a few times the header and each fault has its offset.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple, NoReturn

from llmcore.checkpoint.containers import HEAD_BYTES, identify
from llmcore.checkpoint.files import PlainFile, shown
from llmcore.errors import LimitError, SafetensorsError, UnsupportedModelError, escape

MAX_HEADER_BYTES = 100_000_000  # the reference reader's limit
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 1024
MAX_METADATA_BYTES = 8 << 20
_MAX_INT = (1 << 63) - 1

DTYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "?"),
    "U8": (8, "u1"),
    "I8": (8, "i1"),
    "U16": (16, "<u2"),
    "I16": (16, "<i2"),
    "U32": (32, "<u4"),
    "I32": (32, "<i4"),
    "U64": (64, "<u8"),
    "I64": (64, "<i8"),
    "F16": (16, "<f2"),
    "BF16": (16, "<u2"),
    "F32": (32, "<f4"),
    "F64": (64, "<f8"),
    "C64": (64, "<c8"),
    "F8_E4M3": (8, "u1"),
    "F8_E5M2": (8, "u1"),
    "F8_E8M0": (8, "u1"),
    "F8_E4M3FNUZ": (8, "u1"),
    "F8_E5M2FNUZ": (8, "u1"),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
}
"""Bits per element, and the numpy dtype that `read` gives (raw bits where numpy has no such number)."""

_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_SPACE = re.compile(r"[ \t\r\n]*")
_NEXT = re.compile(r"[ \t\r\n]*([,}])")
_ENTRY = re.compile(r"\{[^{}]{0,4096}\}")
_BRACE = re.compile(r"[{}]")
_PADDING = re.compile(r" *")
# An entry as all known writers spell it. What differs, is empty or has a fault is read piece by piece.
_INT = r"(?:0|[1-9][0-9]{0,17})"
_PLAIN = re.compile(
    rf'[ \n]*"((?!__metadata__")[ !#-\[\]-~]{{1,{MAX_NAME_BYTES}}})" ?: ?\{{"dtype" ?: ?"([A-Z0-9_]{{1,16}})",'
    rf' ?"shape" ?: ?\[((?:{_INT}(?:, ?{_INT}){{0,7}})?)\], ?"data_offsets" ?: ?\[({_INT}), ?({_INT})\]\}}[ \n]*([,}}])'
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_STRING = json.JSONDecoder()
_PAIRS = json.JSONDecoder(object_pairs_hook=list)
_FIELDS = ("dtype", "shape", "data_offsets")


class TensorInfo(NamedTuple):
    """Where a tensor lies. `offset` and `nbytes` are bytes from the start of its file; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: PlainFile) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors, in the order of their bytes, and the metadata of an open file.

    Raises SafetensorsError for what breaks the format, LimitError, UnsupportedModelError for an unknown element type.
    """
    text, start = _read_text(file)
    header = _Header(text, file, start)
    return header.parse(), header.metadata


def _read_text(file: PlainFile) -> tuple[str, int]:
    """The header as text with one character per byte, and the offset of the tensors' bytes."""
    size = file.size
    if size < 8:
        raise _not_safetensors(file, "too short for the 8-byte header length", value=f"{size} bytes")
    word = bytes(file.read(8, 0))
    length = int.from_bytes(word, "little")
    if length > size - 8:
        hint = ""
        if 2 <= int.from_bytes(word, "big") <= size - 8 and file.read(1, 8) == b"{":
            hint = "; wrong byte order?"
        raise _not_safetensors(
            file, f"the header length goes beyond the file{hint}", value=length, allowed=f"2 to {size - 8}"
        )
    if length < 2:
        raise _not_safetensors(file, "the header is empty", value=length, allowed="2 and more")
    if length > MAX_HEADER_BYTES:
        raise LimitError(f"{shown(file.path)}: a header of {length} bytes, at most {MAX_HEADER_BYTES} are read")
    if file.read(1, 8) != b"{":
        first = bytes(file.read(1, 8))
        raise _not_safetensors(file, "the header does not begin with '{'", offset=8, value=f"byte 0x{first[0]:02x}")
    data = file.read(length, 8)
    _check_utf8(data, file)
    return data.decode("latin-1"), 8 + length


def _not_safetensors(
    file: PlainFile, message: str, *, offset: int = 0, value: object = None, allowed: str | None = None
) -> SafetensorsError:
    looks = identify(bytes(file.read(min(HEAD_BYTES, file.size), 0)))
    if looks is not None:
        return SafetensorsError(f"not a safetensors file: looks like {looks}", file=file.path, offset=0)
    return SafetensorsError(message, file=file.path, offset=offset, value=value, allowed=allowed)


def _check_utf8(data: bytearray, file: PlainFile) -> None:
    if data.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    for at in range(0, len(data), 1 << 16):
        chunk = view[at : at + (1 << 16)]
        try:
            decoder.decode(chunk, final=at + len(chunk) == len(data))
        except UnicodeDecodeError as error:
            offset = 8 + at + len(chunk) - len(error.object) + error.start
            byte = error.object[error.start]
            raise SafetensorsError(
                "the header is not UTF-8", file=file.path, offset=offset, value=f"byte 0x{byte:02x}"
            ) from None


class _Header:
    """One walk over a header's text. Positions in the text are bytes from the start of the header, at byte 8."""

    def __init__(self, text: str, file: PlainFile, start: int) -> None:
        self.text = text
        self.path = file.path
        self.start = start
        self.data_bytes = file.size - start
        self.metadata: dict[str, str] = {}

    def fail(
        self, message: str, at: int, *, field: str | None = None, value: object = None, allowed: str | None = None
    ) -> NoReturn:
        raise SafetensorsError(message, file=self.path, field=field, offset=8 + at, value=value, allowed=allowed)

    def parse(self) -> dict[str, TensorInfo]:
        # A million entries are refused by counting them rather than by reading the first 131072.
        if self.text.count('"data_offsets"') > MAX_TENSORS:
            raise LimitError(f"{shown(self.path)}: more than {MAX_TENSORS} tensors")
        tensors: dict[str, TensorInfo] = {}
        seen_metadata = False
        for name, at, entry, entry_at in self.entries(tensors):
            if name == "__metadata__":
                if seen_metadata:
                    self.fail("__metadata__ stands twice", at)
                seen_metadata = True
            elif name in tensors:
                first = next(before for other, before, _, _ in self.entries(None) if other == name)
                self.fail(f"the same tensor name twice, first at byte {8 + first}", at, field=name)
            elif len(tensors) == MAX_TENSORS:
                raise LimitError(f"{shown(self.path)}: more than {MAX_TENSORS} tensors")
            else:
                tensors[name] = self.tensor(name, entry, entry_at)
        ordered = sorted(tensors.values(), key=itemgetter(3, 4))  # offset, nbytes
        self.check_coverage(ordered)
        return {info.name: info for info in ordered}

    def entries(self, tensors: dict[str, TensorInfo] | None) -> Iterator[tuple[str, int, str, int]]:
        """Each name with its position and the text and position of its entry ("" for `__metadata__`, which is read).

        With `tensors`, what `take_plain` can read goes there instead.
        """
        text = self.text
        at = self.skip(1)
        more = text[at : at + 1] != "}"
        at += 0 if more else 1
        while more:
            if tensors is not None:
                at, more = self.take_plain(at, tensors)
                if not more:
                    break
            at = self.skip(at)
            name_at = at
            name, at = self.string(at, "a tensor name")
            at = self.colon(at)
            if name == "__metadata__":
                entry, entry_at = "", at
                at = self.read_metadata(at)
            else:
                self.check_name(name, name_at)
                found = _ENTRY.match(text, at)
                if found is None:
                    self.fail_entry(name, at)
                entry, entry_at = found.group(), at
                at = found.end()
            yield name, name_at, entry, entry_at
            more, at = self.next(at)
        padded = _PADDING.match(text, at)
        if padded is not None and padded.end() != len(text):
            at = padded.end()
            self.fail("only spaces may follow the header's '}'", at, value=f"byte 0x{ord(text[at]):02x}")

    def take_plain(self, at: int, tensors: dict[str, TensorInfo]) -> tuple[int, bool]:
        """Reads entries as long as they are `_PLAIN` and without fault; where it stopped, and whether more follows."""
        text, start, data_bytes = self.text, self.start, self.data_bytes
        while (found := _PLAIN.match(text, at)) is not None:
            name, dtype, sizes, first, last, mark = found.groups()
            bits, _ = DTYPES.get(dtype, (0, None))
            shape = tuple(map(int, sizes.split(","))) if sizes else ()
            begin, end = int(first), int(last)
            if (
                not bits
                or not begin < end <= data_bytes
                or math.prod(shape) * bits != 8 * (end - begin)
                or name in tensors
                or len(tensors) == MAX_TENSORS
            ):
                break
            tensors[name] = TensorInfo(name, dtype, shape, start + begin, end - begin)
            at = found.end()
            if mark == "}":
                return at, False
        return at, True

    def skip(self, at: int) -> int:
        found = _SPACE.match(self.text, at)
        return at if found is None else found.end()

    def string(self, at: int, wanted: str, limit: int = 6 * MAX_NAME_BYTES + 2) -> tuple[str, int]:
        if self.text[at : at + 1] != '"':
            self.fail(f"expected {wanted} in quotes", at, value=self.text[at : at + 1] or "the end of the header")
        try:
            value, end = _STRING.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            self.fail(f"{wanted} is not a JSON string: {error.msg}", error.pos)
        if end - at > limit:
            self.fail(f"{wanted} is longer than {limit} bytes", at)
        if not value.isascii() or "\\" in self.text[at:end]:
            # The text holds UTF-8 as one character per byte; decode it now that its end is known.
            value = json.loads(self.text[at:end].encode("latin-1"))
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                self.fail(f"{wanted} holds half of a surrogate pair", at)
        return value, end

    def colon(self, at: int) -> int:
        found = _COLON.match(self.text, at)
        if found is None:
            self.fail("expected ':'", at)
        return found.end()

    def next(self, at: int) -> tuple[bool, int]:
        """Whether another entry follows, and the position behind the ',' or '}'."""
        found = _NEXT.match(self.text, at)
        if found is None:
            self.fail("expected ',' or '}'", at, value=self.text[at : at + 1] or "the end of the header")
        return found.group(1) == ",", found.end()

    def check_name(self, name: str, at: int) -> None:
        if not name:
            self.fail("a tensor has an empty name", at)
        if len(name) > MAX_NAME_BYTES or len(name.encode("utf-8")) > MAX_NAME_BYTES:
            self.fail(f"a tensor name is longer than {MAX_NAME_BYTES} bytes", at, field=name)
        if _CONTROL.search(name):
            self.fail("a tensor name holds a control character", at, field=name)

    def fail_entry(self, name: str, at: int) -> NoReturn:
        if self.text[at : at + 1] != "{":
            self.fail("a tensor's entry is not an object", at, field=name, value=self.text[at : at + 20])
        brace = _BRACE.search(self.text, at + 1)
        if brace is None:
            self.fail("a tensor's entry has no end", at, field=name)
        if brace.group() == "{":
            self.fail("a tensor's entry is nested", brace.start(), field=name)
        raise LimitError(f"{shown(self.path)}: the entry of tensor {escape(name)} is longer than 4096 bytes")

    def read_metadata(self, at: int) -> int:
        if self.text[at : at + 1] != "{":
            self.fail("__metadata__ is not an object", at)
        begin = at
        at = self.skip(at + 1)
        metadata: dict[str, str] = {}
        more = self.text[at : at + 1] != "}"
        at += 0 if more else 1
        while more:
            at = self.skip(at)
            key_at = at
            key, at = self.string(at, "a __metadata__ key")
            value, at = self.string(self.colon(at), "a __metadata__ value", len(self.text))
            if key in metadata:
                self.fail("the same __metadata__ key twice", key_at, field=key)
            if at - begin > MAX_METADATA_BYTES or len(metadata) >= 1 << 16:
                raise LimitError(
                    f"{shown(self.path)}: __metadata__ is larger than {MAX_METADATA_BYTES} bytes or {1 << 16} keys"
                )
            metadata[key] = value
            more, at = self.next(at)
        self.metadata = metadata
        return at

    def tensor(self, name: str, entry: str, entry_at: int) -> TensorInfo:
        fields = self.fields(name, entry, entry_at)
        dtype = fields["dtype"]
        if not isinstance(dtype, str):
            self.fail("dtype is not a string", entry_at, field=name, value=dtype)
        if dtype not in DTYPES:
            hint = f" (did you mean {dtype.upper()}?)" if dtype.upper() in DTYPES else ""
            raise UnsupportedModelError(
                f"{shown(self.path)}: tensor {escape(name)} has the unknown dtype {escape(dtype)}{hint}; "
                f"at byte {8 + entry_at}"
            )
        shape = self.shape(name, fields["shape"], entry_at)
        begin, end = self.offsets(name, fields["data_offsets"], entry_at)
        bits = DTYPES[dtype][0]
        total = math.prod(shape) * bits
        if total % 8:
            self.fail(f"elements of {bits} bits do not fill whole bytes", entry_at, field=name, value=list(shape))
        if total // 8 != end - begin:
            self.fail(
                f"dtype {dtype} and shape {list(shape)} make {total // 8} bytes, data_offsets span {end - begin}",
                entry_at,
                field=name,
            )
        return TensorInfo(name, dtype, shape, self.start + begin, end - begin)

    def fields(self, name: str, entry: str, at: int) -> dict[str, object]:
        try:
            pairs, _ = _PAIRS.raw_decode(entry)
        except json.JSONDecodeError as error:
            self.fail(f"a tensor's entry is not JSON: {error.msg}", at + error.pos, field=name)
        fields: dict[str, object] = {}
        for key, value in pairs:
            if key not in _FIELDS:
                self.fail(
                    f"a tensor's entry has the unknown key {escape(key)}", at, field=name, allowed=", ".join(_FIELDS)
                )
            if key in fields:
                self.fail(f"a tensor's entry has {key} twice", at, field=name)
            fields[key] = value
        for key in _FIELDS:
            if key not in fields:
                self.fail(f"a tensor's entry has no {key}", at, field=name)
        return fields

    def shape(self, name: str, shape: object, at: int) -> tuple[int, ...]:
        if not isinstance(shape, list):
            self.fail("shape is not a list", at, field=name, value=shape)
        if len(shape) > MAX_DIMENSIONS:
            raise LimitError(
                f"{shown(self.path)}: tensor {escape(name)} has {len(shape)} dimensions, at most {MAX_DIMENSIONS}"
            )
        for size in shape:
            if type(size) is not int or not 0 <= size <= _MAX_INT:
                self.fail(
                    "a dimension is not an integer in range",
                    at,
                    field=name,
                    value=_cut(size),
                    allowed=f"0 to {_MAX_INT}",
                )
        # A zero must not hide what the other dimensions multiply to.
        if math.prod(size for size in shape if size) > _MAX_INT:
            self.fail("the dimensions multiply beyond 2^63", at, field=name, value=shape)
        return tuple(shape)

    def offsets(self, name: str, offsets: object, at: int) -> tuple[int, int]:
        if not isinstance(offsets, list) or len(offsets) != 2:
            self.fail("data_offsets is not a list of two", at, field=name, value=_cut(offsets))
        for offset in offsets:
            if type(offset) is not int or not 0 <= offset <= self.data_bytes:
                self.fail(
                    "a data offset is not an integer inside the file",
                    at,
                    field=name,
                    value=_cut(offset),
                    allowed=f"0 to {self.data_bytes}",
                )
        begin, end = offsets
        if begin > end:
            self.fail("data_offsets end before they begin", at, field=name, value=offsets)
        return begin, end

    def check_coverage(self, ordered: list[TensorInfo]) -> None:
        """The tensors must follow one another from the first byte to the last: no overlap, no hole, no rest."""
        expected = self.start
        previous: TensorInfo | None = None
        for info in ordered:
            if info.offset != expected:
                what = "overlaps" if info.offset < expected else "leaves a hole after"
                before = "the header" if previous is None else f"tensor {escape(previous.name)}"
                self.fail(
                    f"the tensor {what} {before}",
                    info.offset - 8,
                    field=info.name,
                    value=info.offset - self.start,
                    allowed=f"begin at {expected - self.start}",
                )
            expected = info.offset + info.nbytes
            previous = info
        rest = self.start + self.data_bytes - expected
        if rest:
            self.fail(f"{rest} bytes after the last tensor", expected - 8)


def _cut(value: object) -> str:
    """`value` for a message; an integer of thousands of digits is not spelled out."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:80]
