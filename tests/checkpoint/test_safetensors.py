"""The strict safetensors reader on good files: every type, streaming by rows, faults while reading."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_files

from llmcore.checkpoint import files
from llmcore.checkpoint.safetensors import SafetensorsFile
from llmcore.errors import ArgumentError, ClosedError, StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_files.write(tmp_path, tiny_files.valid())


def test_infos_say_where_each_tensor_lies(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        start = path.stat().st_size - len(tiny_files.DATA)
        assert {k: (v.dtype, v.shape, v.offset - start, v.nbytes) for k, v in file.tensors.items()} == {
            "a": ("F32", (2, 3), 0, 24),
            "b": ("I64", (), 24, 8),
            "c": ("BF16", (3,), 32, 6),
            "d": ("U8", (0,), 38, 0),
        }


def test_values_equal_the_bytes(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        assert file.read("a").tobytes() == tiny_files.DATA[:24]
        assert file.read("a").dtype == np.float32
        assert file.read("b").shape == ()
        assert file.read("c").dtype == np.uint16
        assert file.read("d").shape == (0,)


@pytest.mark.parametrize(
    "kind", ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8"]
)
def test_every_type_equals_the_reference_writer(kind: str, tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    values = (np.arange(30).reshape(5, 6) % 2).astype(kind)
    reference.save_file({"pad": np.zeros(3, np.uint8), "x": values}, tmp_path / "x.safetensors", {"k": "é\n"})
    with SafetensorsFile.open(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"k": "é\n"}
        read = file.read("x")
        assert read.dtype == values.dtype
        assert np.array_equal(read, values)
        assert np.array_equal(file.read_rows("x", 1, 4), values[1:4])


def test_rows_of_parts_join_to_the_whole(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        whole = file.read("a")
        assert np.array_equal(np.concatenate([file.read_rows("a", i, i + 1) for i in range(2)]), whole)
        assert file.read_rows("a", 1, 1).shape == (0, 3)
        assert file.read_rows("d", 0, 0).shape == (0,)


@pytest.mark.parametrize(("name", "start", "stop"), [("a", -1, 1), ("a", 0, 3), ("a", 2, 1), ("b", 0, 0), ("zz", 0, 1)])
def test_rows_outside_are_refused(path: Path, name: str, start: int, stop: int) -> None:
    with SafetensorsFile.open(path) as file, pytest.raises(ArgumentError):
        file.read_rows(name, start, stop)


def test_memory_is_owned(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        values = file.read("a")
    path.write_bytes(b"")
    assert values.tobytes() == tiny_files.DATA[:24]
    assert values.flags.writeable


def test_closed_file_is_typed(path: Path) -> None:
    file = SafetensorsFile.open(path)
    file.close()
    file.close()
    with pytest.raises(ClosedError):
        file.read("a")


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = (
        '{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"y":{"dtype":"F64","shape":[1],"data_offsets":[1,9]}}'
    )
    value = np.array([1.25])
    with SafetensorsFile.open(tiny_files.write(tmp_path, tiny_files.text(header, b"\x07" + value.tobytes()))) as file:
        assert file.read("y")[0] == 1.25


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="the system has no preadv")
def test_short_and_interrupted_reads_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    calls = 0

    def slow(fd: int, buffers: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise InterruptedError
        if calls % 3 == 1:
            raise BlockingIOError
        return real(fd, [buffers[0][:1]], offset)

    monkeypatch.setattr(files.os, "preadv", slow)
    with SafetensorsFile.open(path) as file:
        assert file.read("a").tobytes() == tiny_files.DATA[:24]


def test_input_error_names_the_offset(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with SafetensorsFile.open(path) as file:
        monkeypatch.setattr(files.os, "preadv", broken)
        with pytest.raises(StorageError, match=f"at byte {file.tensors['c'].offset}: Input/output error") as caught:
            file.read("c")
        assert caught.value.errno == 5


def test_file_cut_while_open(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(StorageError, match="cut while"):
            file.read("c")


@pytest.mark.parametrize("how", ["write", "replace"])
def test_file_changed_while_open(path: Path, how: str) -> None:
    with SafetensorsFile.open(path) as file:
        if how == "write":
            with path.open("r+b") as writer:
                writer.write(b"\0")
            os.utime(path, ns=(0, 0))
        else:
            tiny_files.write(path.parent, tiny_files.valid(), "new")
            (path.parent / "new").rename(path)
        with pytest.raises(StorageError, match="changed"):
            file.read("a")


def test_threads_read_at_once(path: Path) -> None:
    results: list[bytes] = []
    with SafetensorsFile.open(path) as file:
        threads = [threading.Thread(target=lambda: results.append(file.read("a").tobytes())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [tiny_files.DATA[:24]] * 8


def test_real_checkpoint_equals_the_reference_reader(data_dir: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    path = data_dir / "models" / "capp-gpt2-hf" / "model.safetensors"
    expected = reference.load_file(path)
    with SafetensorsFile.open(path) as file:
        assert set(file.tensors) == set(expected)
        assert all(np.array_equal(file.read(name), expected[name]) for name in expected)
