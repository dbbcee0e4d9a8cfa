"""Malformed safetensors files, made from valid ones: each gets its typed error, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_files
from tiny_files import entry, framed, text

from llmcore.checkpoint.safetensors import SafetensorsFile
from llmcore.errors import (
    CheckpointError,
    LimitError,
    LlmcoreError,
    SafetensorsError,
    StorageError,
    UnsupportedModelError,
)

VALID = tiny_files.valid()
LENGTH = int.from_bytes(VALID[:8], "little")
W = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def pair(first: tuple[int, int], second: tuple[int, int], size: int) -> bytes:
    """Two U8 tensors at these offsets of `size` bytes of data."""
    made = {
        name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (begin, end) in (("x", first), ("y", second))
    }
    return framed(json.dumps(made).encode(), bytes(size))


def numbers(field: str, value: str) -> bytes:
    """`value` as it stands in place of the one dimension or the begin of the data."""
    shape, begin = (value, "0") if field == "dim" else ("1", value)
    return text(f'{{"w":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{begin},4]}}}}')


Case = tuple[bytes, type[LlmcoreError], str]
CASES: dict[str, Case] = {}


def case(name: str, data: bytes, wanted: str, error: type[LlmcoreError] = SafetensorsError) -> None:
    CASES[name] = (data, error, wanted)


case("S01", b"", "too short for the 8-byte header length")
for n in range(1, 8):
    case(f"S02-{n}", VALID[:n], "too short for the 8-byte header length")
case("S03", framed(b"", b"", 0), "empty")
case("S03-one", framed(b"{", b"", 1), "empty")
case("S04", framed(VALID[8:], length=1 << 20), "beyond the file")
case("S05", framed(VALID[8:], length=len(VALID) - 7), "beyond the file")
case("S06", framed(VALID[8:], length=1 << 63), "beyond the file")
case("S07", framed(VALID[8:], length=(1 << 64) - 1), "beyond the file")
case("S08", framed(VALID[8:], length=(1 << 64) - 8), "beyond the file")
for name, lead in (("space", b" "), ("bom", b"\xef\xbb\xbf"), ("newline", b"\n")):
    case(f"S10-{name}", framed(lead + VALID[8 : 8 + LENGTH], tiny_files.DATA), "does not begin with")
case("S12", framed(b"{" + W.encode() + b"}\0\0", b"\0" * 4), "only spaces may follow")
case("S13", framed(b"{" + W.encode() + b"}garbage", b"\0" * 4), "only spaces may follow")
case("S13-newline", framed(b"{" + W.encode() + b"}\n", b"\0" * 4), "only spaces may follow")
for name, top in (("list", b"[]"), ("string", b'"x"'), ("number", b"11"), ("null", b"null")):
    case(f"S14-{name}", framed(top), "does not begin with")
for name, raw in (("ff", b"\xff"), ("overlong", b"\xc0\x80"), ("lone", b"\xce"), ("surrogate", b"\xed\xa0\x80")):
    case(f"S15-{name}", framed(b"{" + W.encode().replace(b"w", b"w" + raw, 1) + b"}", b"\0" * 4), "not UTF-8")
case("S16", text("{" + W.replace("w", "\\ud800", 1) + "}"), "surrogate")
case("S17-lists", framed(b"[" * 100_000), "does not begin with")
case("S17-objects", framed(b'{"a":' * 100_000), "nested")
case("S17-inner-lists", framed(b'{"a":{"shape":' + b"[" * 100_000), "no end")
case("S17-metadata", framed(b'{"__metadata__":' * 10 + b'{"a":' * 100_000), "in quotes|not an object")
case("S18", text("{" + W + "," + W + "}"), r"same tensor name twice, first at byte 9;.*at byte 62")
case("S18-escaped", text("{" + W + "," + W.replace("w", "\\u0077", 1) + "}"), "same tensor name twice")
for name, doubled in (("dtype", '"dtype":"F32"'), ("shape", '"shape":[1]'), ("offsets", '"data_offsets":[0,4]')):
    case(f"S19-{name}", text("{" + W.replace(doubled, doubled + "," + doubled) + "}"), "twice")
case("S20", entry(device="cpu"), "unknown key 'device'")
for name in ("dtype", "shape", "data_offsets"):
    case(f"S21-{name}", entry(**{name: None}), f"has no {name}")
case("S22-unknown", entry(dtype="Q99"), "unknown dtype 'Q99'", UnsupportedModelError)
case("S22-case", entry(dtype="f32"), "did you mean F32", UnsupportedModelError)
case("S22-number", entry(dtype=32), "dtype is not a string")
case("S23", pair((0, 4), (2, 6), 6), "overlaps")
case("S24", pair((0, 4), (0, 4), 4), "overlaps")
case("S25", pair((0, 8), (2, 4), 8), "overlaps")
case("S26", pair((0, 2), (4, 6), 6), "hole after tensor 'x'")
case("S27", pair((2, 4), (4, 6), 6), "hole after the header")
case("S28", VALID + b"\0", "1 bytes after the last tensor")
case("S30", entry(data_offsets=[4, 0]), "end before they begin")
case("S31-few", entry(shape=[2]), "make 8 bytes, data_offsets span 4")
case("S31-many", entry(b"\0" * 5, data_offsets=[0, 5]), "make 4 bytes, data_offsets span 5")
case("S32-offset", numbers("offset", "-1"), "not an integer inside the file")
case("S32-dim", numbers("dim", "-1"), "not an integer in range")
for name, value in (("S33-point", "1.0"), ("S33-exponent", "1e3"), ("S34", '"1"'), ("S35", "true"), ("null", "null")):
    case(f"{name}-dim", numbers("dim", value), "not an integer in range")
    case(f"{name}-offset", numbers("offset", value), "not an integer inside the file")
for name, exponent in (("S36-64", 1 << 64), ("S36-63", 1 << 63)):
    case(name, numbers("dim", str(exponent)), "not an integer in range")
case("S36-53", entry(shape=[(1 << 53) + 1]), f"make {4 * ((1 << 53) + 1)} bytes")
case("S36-digits", numbers("dim", "9" * 4000), "not an integer in range")
case("S37", entry(b"", shape=[1 << 32, 1 << 32], data_offsets=[0, 0]), "multiply beyond")
case("S38", entry(b"", shape=[0, 1 << 63, 1 << 63], data_offsets=[0, 0]), "not an integer in range")
case("S38-under", entry(b"", shape=[0, 1 << 62, 1 << 62], data_offsets=[0, 0]), "multiply beyond")
case("S40-65", entry(shape=[1] * 65), "65 dimensions", LimitError)
case("S40-9", entry(shape=[1] * 9), "9 dimensions", LimitError)
case("S40-many", entry(shape=[1] * 100_000), "longer than 4096", LimitError)
case("S42-list", text('{"__metadata__":["a"],' + W + "}"), "__metadata__ is not an object")
case("S42-number", text('{"__metadata__":{"a":1},' + W + "}"), "__metadata__ value in quotes")
case("S42-large", text('{"__metadata__":{"a":"' + "x" * 10_000_000 + '"},' + W + "}"), "larger than", LimitError)
case("S42-twice", text('{"__metadata__":{},"__metadata__":{},' + W + "}"), "stands twice")
case("S42-key-twice", text('{"__metadata__":{"a":"1","a":"2"},' + W + "}"), "key twice")
case("S43-empty", text("{" + W.replace("w", "", 1) + "}"), "empty name")
case("S43-nul", text("{" + W.replace("w", "a\\u0000b", 1) + "}"), "control character")
case("S43-large", text("{" + W.replace("w", "n" * 1_000_000, 1) + "}"), "longer than")
case("S43-1025", text("{" + W.replace("w", "é" * 513, 1) + "}"), "longer than 1024 bytes")
case("S43-ansi", text("{" + W.replace("w", "\\u001b[31m", 1) + "}"), "control character")
case("S46-f4", entry(b"\0", dtype="F4", shape=[3], data_offsets=[0, 1]), "do not fill whole bytes")
case("S46-f6", entry(b"\0", dtype="F6_E2M3", shape=[1], data_offsets=[0, 1]), "do not fill whole bytes")
case("S47", LENGTH.to_bytes(8, "big") + VALID[8:], "wrong byte order")
for name, raw, looks in (
    ("html", b"<!DOCTYPE html><html><body>not found</body></html>", "HTML"),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
    ("gzip", gzip.compress(VALID), "gzip"),
    ("zip", b"PK\x03\x04" + bytes(range(1, 60)), "ZIP"),
    ("pickle", pickle.dumps({"a": 1}), "pickle"),
    ("gguf", b"GGUF\x03\0\0\0" + bytes(60), "GGUF"),
):
    case(f"S49-{name}", raw, looks)


def refused(path: Path, error: type[LlmcoreError]) -> LlmcoreError:
    """The error that opening `path` gives, whose class is exactly `error`, and whose message keeps the contract."""
    fds = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with pytest.raises(LlmcoreError) as caught:
        SafetensorsFile.open(path)
    assert type(caught.value) is error
    message = str(caught.value)
    assert len(message.encode()) <= 1024
    assert message.isprintable()
    assert str(path)[-20:] in message
    if fds:
        assert len(os.listdir("/proc/self/fd")) <= fds
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, tmp_path: Path) -> None:
    data, error, wanted = CASES[name]
    caught = refused(tiny_files.write(tmp_path, data), error)
    assert re.search(wanted, str(caught))


def test_valid_file_still_opens(tmp_path: Path) -> None:
    with SafetensorsFile.open(tiny_files.write(tmp_path, VALID)) as file:
        assert len(file.tensors) == 4


def test_s09_header_over_the_cap(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(8 + 100_000_001)
    refused(path, LimitError)


@pytest.mark.parametrize("padding", [1, 7, 4096])
def test_s11_trailing_spaces_are_allowed(padding: int, tmp_path: Path) -> None:
    data = framed(VALID[8 : 8 + LENGTH] + b" " * padding, tiny_files.DATA)
    with SafetensorsFile.open(tiny_files.write(tmp_path, data)) as file:
        assert file.read("a").tobytes() == tiny_files.DATA[:24]


def test_s29_every_truncation(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    for size in range(len(VALID)):
        path.write_bytes(VALID[:size])
        refused(path, SafetensorsError)


def test_every_header_bit_flip_is_typed_or_sound(tmp_path: Path) -> None:
    path = tmp_path / "flipped.safetensors"
    small = {"a": tiny_files.ENTRIES["a"], "b": tiny_files.ENTRIES["b"]}
    good = framed(json.dumps(small, separators=(",", ":")).encode(), bytes(32))
    opened = 0
    for at in range(len(good) - 32):
        for bit in range(8):
            data = bytearray(good)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            try:
                with SafetensorsFile.open(path) as file:
                    for name, info in file.tensors.items():
                        assert file.read(name).nbytes == info.nbytes
                    assert sum(info.nbytes for info in file.tensors.values()) == 32
                    opened += 1
            except (SafetensorsError, LimitError, UnsupportedModelError):
                pass
    # What opens differs in a name or in a type of the same size.
    assert 0 < opened < 50


def test_s39_scalar_and_empty_are_tensors(tmp_path: Path) -> None:
    with SafetensorsFile.open(tiny_files.write(tmp_path, VALID)) as file:
        assert (file.tensors["b"].shape, file.tensors["d"].shape) == ((), (0,))


def test_s41_count_is_bounded(tmp_path: Path) -> None:
    one = '"t%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    header = "{" + ",".join(one % (i, i, i + 1) for i in range(1_000_000)) + "}"
    path = tiny_files.write(tmp_path, text(header, bytes(1_000_000)))
    refused(path, LimitError)


def test_s41_count_with_escaped_keys(tmp_path: Path) -> None:
    one = '"%d":{"dtype":"U8","shape":[0],"data\\u005foffsets":[0,0]}'
    header = "{" + ",".join(one % i for i in range((1 << 17) + 1)) + "}"
    refused(tiny_files.write(tmp_path, text(header, b"")), LimitError)


def test_s43_path_like_name_is_only_a_name(tmp_path: Path) -> None:
    with SafetensorsFile.open(tiny_files.write(tmp_path, text("{" + W.replace("w", "../../etc/x", 1) + "}"))) as file:
        assert list(file.tensors) == ["../../etc/x"]


def test_names_beyond_ascii(tmp_path: Path) -> None:
    header = "{" + W.replace("w", "é😀\\u00e9\\ud83d\\ude00", 1) + "}"
    with SafetensorsFile.open(tiny_files.write(tmp_path, text(header))) as file:
        assert list(file.tensors) == ["é😀é😀"]


def test_s44_bool_bytes(tmp_path: Path) -> None:
    path = tiny_files.write(tmp_path, entry(b"\0\1\2", dtype="BOOL", shape=[3], data_offsets=[0, 3]))
    with SafetensorsFile.open(path) as file:
        with pytest.raises(SafetensorsError, match="neither 0 nor 1") as caught:
            file.read("w")
        assert caught.value.offset == file.tensors["w"].offset + 2
        assert file.read_rows("w", 0, 2).tolist() == [False, True]


def test_s46_elements_under_a_byte(tmp_path: Path) -> None:
    path = tiny_files.write(tmp_path, entry(b"\0", dtype="F4", shape=[2], data_offsets=[0, 1]))
    with SafetensorsFile.open(path) as file, pytest.raises(UnsupportedModelError, match="4 bits"):
        file.read("w")


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    cwd = Path.cwd()
    os.chdir(path.parent)  # a socket's path is at most 107 bytes
    try:
        server.bind(path.name)
    finally:
        os.chdir(cwd)
        server.close()


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _secret(path: Path) -> None:
    path.write_bytes(VALID)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a POSIX matter")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_directory, id="directory"),
        pytest.param(_fifo, id="fifo"),
        pytest.param(_socket, id="socket"),
        pytest.param(_link("/dev/zero"), id="zero"),
        pytest.param(_link("/proc/self/mem"), id="mem"),
        pytest.param(_link("model.safetensors"), id="loop"),
        pytest.param(_link("nowhere"), id="dangling"),
        pytest.param(_secret, id="permission"),
    ],
)
def test_s48_not_a_regular_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    caught = refused(path, StorageError)
    assert isinstance(caught, OSError)


def test_s49_is_a_checkpoint_error() -> None:
    assert issubclass(SafetensorsError, CheckpointError)


def test_s50_sparse_zeros(tmp_path: Path) -> None:
    path = tmp_path / "zeros.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    refused(path, SafetensorsError)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("{" + '"' + "x" * 4_000_000, id="name"),
        pytest.param('{"a":{"shape":[' + "[]," * 1_000_000, id="lists"),
        pytest.param('{"__metadata__":{' + '"a":"' + "\\n" * 1_000_000, id="metadata"),
        pytest.param('{"😀' + "a" * 3_000_000, id="wide"),
    ],
)
def test_memory_stays_within_the_header(header: str, tmp_path: Path) -> None:
    path = tiny_files.write(tmp_path, text(header))
    tracemalloc.start()
    try:
        with pytest.raises(LlmcoreError):
            SafetensorsFile.open(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(header) + (16 << 20)
    finally:
        tracemalloc.stop()
