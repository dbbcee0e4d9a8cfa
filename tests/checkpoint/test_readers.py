"""What a path may mean: a folder, a cached model, the built-in one; and what is refused by name."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_model

import llmcore
from llmcore.checkpoint.files import PlainFile
from llmcore.checkpoint.readers import Checkpoint, built_in, open_checkpoint, resolve_path
from llmcore.errors import (
    ArgumentError,
    CheckpointError,
    ClosedError,
    ConfigError,
    GGUFError,
    StorageError,
    UnsupportedModelError,
)
from llmcore.models.binding import bind


def cached(root: Path, *, blobs: str = "../../blobs/") -> Path:
    """A cache that holds the tiny model as "org/name", as huggingface_hub lays it out."""
    model = root / "models--org--name"
    snapshot = model / "snapshots" / "abc123"
    for folder in (model / "refs", model / "blobs", snapshot):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text("abc123")
    source = tiny_model.save(root / "source")
    for number, name in enumerate(("config.json", "model.safetensors")):
        (source / name).rename(model / "blobs" / f"blob{number}")
        (snapshot / name).symlink_to(f"{blobs}blob{number}")
    return snapshot


def test_folder_opens_as_str_and_path(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "model")
    for path in (str(folder), folder):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config.get("model_type") == "llama"


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_name_in_the_local_cache(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    below = {
        "HF_HUB_CACHE": "",
        "HF_HOME": "hub",
        "XDG_CACHE_HOME": "huggingface/hub",
        "HOME": ".cache/huggingface/hub",
    }
    root = tmp_path / below[variable]
    root.mkdir(parents=True, exist_ok=True)
    snapshot = cached(root)
    monkeypatch.setenv(variable, str(tmp_path))
    assert resolve_path("org/name") == snapshot
    assert len(bind(open_checkpoint("org/name")).slots) == 15


def test_snapshot_may_not_link_beyond_its_own_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached(tmp_path)
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "secret.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="link out of the folder"):
        open_checkpoint("org/name")


@pytest.mark.parametrize("commit", ["../../../..", "", "/etc", "a/b", "x" * 200])
def test_reference_that_is_no_commit(commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path)
    (tmp_path / "models--org--name" / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint("org/name")


@pytest.mark.parametrize("name", ["org/unknown", "../x", "a/b/c", "", "no\0name", "https://example.org/x"])
def test_nothing_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(name)


def test_tiny_is_the_built_in_model() -> None:
    folder = resolve_path("tiny")
    assert folder == built_in("tiny")
    assert folder.parts[-3:] == ("llmcore", "assets", "tiny")


def test_c01_missing_config(tmp_path: Path) -> None:
    tiny_model.save(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        open_checkpoint(tmp_path)


def test_adapter_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="PEFT adapter"):
        open_checkpoint(tmp_path)


def test_config_may_not_be_a_link_out(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "model")
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to("../config.json")
    with pytest.raises(CheckpointError, match="link out"):
        open_checkpoint(folder)


def test_config_may_not_be_a_pipe(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "model")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(StorageError, match="named pipe"):
        open_checkpoint(folder)


def test_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    folder = tiny_model.save(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "kept")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin' is a pickle"):
        open_checkpoint(folder)
    with pytest.raises(UnsupportedModelError, match="pickle"):
        open_checkpoint(folder / "pytorch_model.bin")
    assert not (tmp_path / "exploded").exists()


def test_no_weights_at_all(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "weights.gguf")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor .*; found 'weights\.gguf'"):
        open_checkpoint(folder)


def test_files_are_named_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    with pytest.raises(GGUFError, match="architecture"):
        open_checkpoint(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(16))
    with pytest.raises(UnsupportedModelError, match="an HDF5 file"):
        open_checkpoint(tmp_path / "b.safetensors")
    folder = tiny_model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="give the folder"):
        open_checkpoint(folder / "model.safetensors")


@pytest.mark.parametrize("data", [b"", bytes(4096), b"GGU"])
def test_a_gguf_that_is_none_is_called_so(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(GGUFError, match=r"model\.gguf: not a GGUF file"):
            open_checkpoint(path)


@pytest.mark.parametrize("hidden", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_folder_that_cannot_be_searched(hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_path("tiny"), folder)

    def refuse(call: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def wrapped(path: object, *arguments: object, **options: object) -> os.stat_result:
            if isinstance(path, str | os.PathLike) and os.fspath(path) == str(folder / hidden):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return call(path, *arguments, **options)

        return wrapped

    for name in ("stat", "lstat"):  # what the tests' user may not be refused
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    with pytest.raises(StorageError, match="Permission denied"):
        llmcore.load(folder, progress=False)


def test_an_open_of_nothing_leaves_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    noise: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    with pytest.raises(TypeError):
        PlainFile(None)  # type: ignore[arg-type]
    gc.collect()
    assert not noise


def fingerprint(checkpoint: Checkpoint) -> str:
    with checkpoint:
        return checkpoint.fingerprint


def test_fingerprint_tells_fine_tunes_apart(tmp_path: Path) -> None:
    base = fingerprint(open_checkpoint(tiny_model.save(tmp_path / "a")))
    assert fingerprint(open_checkpoint(tiny_model.save(tmp_path / "b"))) == base
    tuned = tiny_model.save(tmp_path / "c", weights=tiny_model.tensors(seed=1))
    assert fingerprint(open_checkpoint(tuned)) != base
    other = tiny_model.save(tmp_path / "d", config={"rope_theta": 20000.0})
    assert fingerprint(open_checkpoint(other)) != base


def test_fingerprint_does_not_depend_on_shards(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "a")
    single = fingerprint(open_checkpoint(folder))
    tiny_model.shard(folder)
    assert fingerprint(open_checkpoint(folder)) == single


def test_closed_checkpoint_is_typed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model.save(tmp_path / "a"))
    with pytest.raises(ArgumentError, match="no tensor 'x'"):
        checkpoint.read("x")
    checkpoint.close()
    with pytest.raises(ClosedError):
        checkpoint.read("lm_head.weight")
