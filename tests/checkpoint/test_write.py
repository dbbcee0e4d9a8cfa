"""Saving: the reference reader agrees, and after any fault the old file or the new one is there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcore.checkpoint import write
from llmcore.checkpoint.safetensors import SafetensorsFile
from llmcore.checkpoint.write import save_json, save_safetensors, write_atomically
from llmcore.errors import ArgumentError, LlmcoreError, StorageError

TENSORS: dict[str, Any] = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bits": ("BF16", (3,), b"\1\2\3\4\5\6"),
    "c": np.array(7, np.int64),
    "d": np.zeros((0, 4), np.int8),
    "e": np.array([True, False]),
    "f": np.arange(12, dtype=">f8").reshape(3, 4)[:, ::2],
}


def test_reference_reader_reads_the_same(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    tensors = {name: value for name, value in TENSORS.items() if name != "a.bits"}
    save_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    read = reference.load_file(tmp_path / "x.safetensors")
    assert set(read) == set(tensors)
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)


def test_own_reader_reads_the_same(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "x.safetensors", TENSORS, {"k": "é"})
    with SafetensorsFile.open(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"k": "é"}
        assert file.tensors["a.bits"].dtype == "BF16"
        assert file.read("a.bits").tobytes() == b"\1\2\3\4\5\6"
        for name in ("b.weight", "c", "d", "e", "f"):
            assert np.array_equal(file.read(name), TENSORS[name])
            assert file.read(name).shape == TENSORS[name].shape


def test_tensors_are_aligned_and_bytes_do_not_depend_on_order(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "x", TENSORS)
    save_safetensors(tmp_path / "y", dict(reversed(TENSORS.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    with SafetensorsFile.open(tmp_path / "x") as file:
        assert all(info.offset % file.read(name).itemsize == 0 for name, info in file.tensors.items())


@pytest.mark.parametrize(
    "tensors",
    [
        {"": np.zeros(1)},
        {"__metadata__": np.zeros(1)},
        {"a\nb": np.zeros(1)},
        {"n" * 1025: np.zeros(1)},
        {"x": np.zeros(1, np.complex128)},
        {"x": np.array(["text"])},
        {"x": np.array([None])},
        {"x": ("F32", (2,), b"\0" * 7)},
        {"x": ("Q9", (1,), b"\0")},
        {"x": np.zeros((1,) * 9)},
    ],
)
def test_what_the_format_cannot_hold(tensors: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        save_safetensors(tmp_path / "x", tensors)
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "é😀"}
    save_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800", object()])
def test_what_json_cannot_hold(value: object, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        save_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


def _fails(name: str, at: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the call number `at` of os.`name` fail with `code`."""
    real: Callable[..., Any] = getattr(os, name)
    calls = 0

    def fail(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(write.os, name, fail)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("call", "at"), [("open", 1), ("write", 1), ("write", 2), ("fsync", 1), ("fchmod", 1), ("replace", 1)]
)
def test_f04_f06_a_fault_leaves_the_old_file(
    call: str, at: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    _fails(call, at, code, monkeypatch)
    with pytest.raises(StorageError, match="can't write") as caught:
        write_atomically(target, [b"new", b"er"])
    monkeypatch.undo()
    assert caught.value.errno == code
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_f10_short_and_interrupted_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    calls = 0

    def slow(fd: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise InterruptedError
        return real(fd, data[:3])

    monkeypatch.setattr(write.os, "write", slow)
    write_atomically(tmp_path / "x", [b"0123456789", b"abc"])
    assert (tmp_path / "x").read_bytes() == b"0123456789abc"


def test_exception_while_the_chunks_are_made(tmp_path: Path) -> None:
    def chunks() -> Any:
        yield b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x", chunks())
    assert list(tmp_path.iterdir()) == []


def test_f07_target_that_is_a_folder_or_in_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "x"):
        with pytest.raises(StorageError):
            write_atomically(path, [b"x"])
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_f07_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / "x").symlink_to("precious")
    write_atomically(tmp_path / "x", [b"new"])
    assert (tmp_path / "precious").read_bytes() == b"old"
    assert (tmp_path / "x").read_bytes() == b"new"


def test_f03_saving_over_the_file_being_read(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "x", {"a": np.arange(4)})
    with SafetensorsFile.open(tmp_path / "x") as file:
        save_safetensors(tmp_path / "x", {"a": file.read("a") + 1})
    with SafetensorsFile.open(tmp_path / "x") as file:
        assert file.read("a").tolist() == [1, 2, 3, 4]


@pytest.mark.skipif(os.name != "posix", reason="a POSIX matter")
def test_f12_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", [b"x"])
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
        (tmp_path / "x").chmod(0o604)
        write_atomically(tmp_path / "x", [b"y"])
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(before)


def test_f05_killed_writers_leave_a_whole_file(tmp_path: Path) -> None:
    """A child writes files of one repeated byte as fast as it can; whenever it dies, the file is whole."""
    program = (
        "import sys, itertools\n"
        "from llmcore.checkpoint.write import write_atomically\n"
        "for i in itertools.count():\n"
        "    write_atomically(sys.argv[1], [bytes([i % 256]) * 200_000])\n"
        "    print(i, flush=True)\n"
    )
    target = tmp_path / "x"
    for kill_after in (1, 2, 5):
        with subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(kill_after):
                child.stdout.readline()
            child.kill()
        data = target.read_bytes()
        assert data == data[:1] * 200_000


def test_f08_two_writers(tmp_path: Path) -> None:
    import threading

    faults: list[LlmcoreError] = []

    def run(byte: bytes) -> None:
        try:
            for _ in range(10):
                write_atomically(tmp_path / "x", [byte * 1000])
        except LlmcoreError as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(byte,)) for byte in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert (tmp_path / "x").read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
