"""Strict JSON: equal to Python's parser on good text, a typed error with the place on everything else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from llmcore.checkpoint.strict_json import load_json, parse_json
from llmcore.errors import ConfigError, LimitError, SafetensorsError, StorageError, TokenizerError

resource = pytest.importorskip("resource")  # absent on Windows

GOOD = [
    b"{}",
    b' [1, 2.5, -3e-2, true, null, "x"] \n',
    b'{"a": {"b": [{"c": "\\u00e9\\ud83d\\ude00"}]}}',
    '{"é😀": "\\\\"}'.encode(),
    b'"\\"[[[[{{{{"',
    b'{"a\\\\": 1, "b\\"": "\\\\\\""}',
]

BAD = {
    "empty": b"",
    "cut": b'{"a": 1',
    "comment": b'{"a": 1} // no',
    "trailing comma": b'{"a": 1,}',
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": "{}".encode("utf-16"),
    "overlong": b'{"\xc0\x80": 1}',
    "encoded surrogate": b'{"\xed\xa0\x80": 1}',
    "escaped surrogate": b'{"a": "\\ud800"}',
    "surrogate key": b'{"\\uDFFF": 1}',
    "two keys": b'{"a": 1, "b": 2, "a": 3}',
    "two keys inside": b'[{"x": {"a": 1, "\\u0061": 1}}]',
    "control character": b'["\n"]',
    "single quotes": b"{'a': 1}",
    "two values": b"{} {}",
    "digits": b"[" + b"9" * 5000 + b"]",
    "backslash outside": b"\\[[[",
    "lone backslash": b'"\\',
}


@pytest.mark.parametrize("data", GOOD)
def test_good_text_equals_json_loads(data: bytes) -> None:
    assert parse_json(data) == json.loads(data)


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_typed(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json(BAD[name], file="model/config.json")
    assert str(caught.value).startswith("model/config.json: ")
    assert caught.value.file == "model/config.json"


def test_error_class_is_the_callers() -> None:
    with pytest.raises(SafetensorsError):
        parse_json(b"{", error=SafetensorsError)
    with pytest.raises(TokenizerError, match=r"t\.json: .*at byte 1"):
        parse_json(b"{", file="t.json", error=TokenizerError)


def test_offsets_count_bytes() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json('{"é": x}'.encode())
    assert caught.value.offset == 7


def test_equal_keys_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json(b'{"b": 1, "a": 2, "a": 3}')
    assert caught.value.field == "a"


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_bounded_before_parsing(opening: bytes) -> None:
    with pytest.raises(LimitError, match="deeper than 32"):
        parse_json(opening * 100_000)


def test_depth_limit_is_exact() -> None:
    assert parse_json(b"[" * 32 + b"]" * 32)
    with pytest.raises(LimitError):
        parse_json(b"[" * 33 + b"]" * 33)


def test_structure_inside_strings_does_not_count() -> None:
    text = "[[" * 50 + '{"a":1,"b":2}' + '\\"'
    assert parse_json(json.dumps([text, "\\", text]).encode(), max_keys=0, max_items=3) == [text, "\\", text]


@pytest.mark.parametrize("shift", range(4))
def test_strings_across_scan_chunks(shift: int) -> None:
    value = ["x" * ((1 << 18) - 8 + shift), '\\"' * 8, "[" * 40]
    assert parse_json(json.dumps(value).encode()) == value
    value = ["x" * ((1 << 18) - 8 + shift) + "\\" * 9 + '"' + "[" * 40]
    assert parse_json(json.dumps(value).encode()) == value


def test_keys_and_values_are_bounded() -> None:
    assert parse_json(b'{"a":1,"b":2}', max_keys=2)
    with pytest.raises(LimitError, match="keys"):
        parse_json(b'{"a":1,"b":2}', max_keys=1)
    with pytest.raises(LimitError, match="values"):
        parse_json(b"[" + b"0," * 1000 + b"0]", max_items=1000)


def test_time_and_memory_stay_small() -> None:
    data = b"[" * 40 + b'{"a":1},' * 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(LimitError):
        parse_json(data)
    assert time.process_time() - start < 1.0  # the contract says 0.26 s; this leaves room for a busy machine
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 4 * len(data) + (16 << 20)


def test_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_json(tmp_path / "config.json", limit_bytes=100)
    with pytest.raises(TokenizerError):
        load_json(tmp_path / "tokenizer.json", limit_bytes=100, error=TokenizerError)


def test_size_is_bounded_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(LimitError, match="at most 4194304"):
        load_json(path, limit_bytes=4 << 20)


def test_not_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(StorageError):
            load_json(path, limit_bytes=100)


def test_file_is_read_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": [1]}')
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    assert load_json(path, limit_bytes=100) == {"a": [1]}
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before
