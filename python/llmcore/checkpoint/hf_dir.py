"""A Hugging Face checkpoint directory: config.json, generation_config.json, safetensors in one file or in shards."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.config import MAX_CONFIG_BYTES, Config, check_generation_config
from llmcore.checkpoint.files import PlainFile, exists, is_file, open_inside, shown
from llmcore.checkpoint.index import INDEX_NAME, open_shards, read_index
from llmcore.checkpoint.safetensors import SafetensorsFile
from llmcore.checkpoint.safetensors_header import MAX_TENSORS, TensorInfo
from llmcore.checkpoint.strict_json import load_json
from llmcore.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    LimitError,
    LlmcoreError,
    UnsupportedModelError,
    escape,
)

SINGLE_NAME = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tekken.json", "tokenizer.model", "vocab.json", "tokenizer.gguf")
"""The first of them that is there is the tokenizer, else a *.tiktoken."""
_FINGERPRINT_BYTES = 64
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")

_log = logging.getLogger("llmcore")


class HuggingFaceDirectory:
    """A checkpoint directory, open for reading; a context manager. Implements `readers.Checkpoint`.

    Raises ConfigError for the two config files, CheckpointError (SafetensorsError) for the weights, LimitError,
    UnsupportedModelError and StorageError. Files outside the folder are never opened and nothing in it is executed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        self.config = _read_config(self.path, "config.json", required=True)
        generation = _read_config(self.path, "generation_config.json", required=False)
        check_generation_config(generation)
        self.generation_config: Mapping[str, object] = generation.values
        self._files = _open_weights(self.path)
        self._home = {name: file for file in self._files for name in file.tensors}
        if len(self._home) > MAX_TENSORS:
            self.close()
            raise LimitError(f"{shown(self.path)}: more than {MAX_TENSORS} tensors")
        self.tensors: Mapping[str, TensorInfo] = {name: file.tensors[name] for name, file in self._home.items()}

    @property
    def tokenizer_path(self) -> Path | None:
        """The folder, where it holds a tokenizer."""
        return self.path if holds_tokenizer(self.path) else None

    @staticmethod
    def matches(path: Path) -> bool:
        """Whether `path` is a directory, which is all that tells this kind from files."""
        return path.is_dir()

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """The tensor `name` in new memory, as `SafetensorsFile.read`."""
        return self._file(name).read(name)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Puts the bytes of `name` into a buffer of their size."""
        self._file(name).read_into(name, buffer)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.generic]:
        """Rows `start` to `stop` (exclusive) of `name` in new memory."""
        return self._file(name).read_rows(name, start, stop)

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._home[name]
        except KeyError:
            raise ArgumentError(f"{shown(self.path)}: no tensor {escape(name)}") from None

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of both configs, of every tensor's name, type and shape, and of its first and last 64 bytes.

        Tells checkpoints apart, fine-tunes of one model included; it is no checksum of all weights.
        """
        digest = hashlib.sha256(b"llmcore checkpoint 1\0")
        for values in (self.config.values, self.generation_config):
            digest.update(repr(_canonical(values)).encode() + b"\0")
        for name in sorted(self.tensors):
            info = self.tensors[name]
            digest.update(repr((name, info.dtype, info.shape)).encode() + b"\0")
            file = self._home[name].file
            count = min(info.nbytes, _FINGERPRINT_BYTES)
            digest.update(file.read(count, info.offset))
            digest.update(file.read(count, info.offset + info.nbytes - count))
        return digest.hexdigest()

    def close(self) -> None:
        """Closes all files; arrays that were read stay valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> HuggingFaceDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a file that a tokenizer is read from. Raises StorageError where that can't be seen."""
    return any(is_file(folder / name) for name in TOKENIZER_FILES) or any(folder.glob("*.tiktoken"))


def _canonical(value: object) -> object:
    if isinstance(value, Mapping):
        return sorted((key, _canonical(item)) for key, item in value.items())
    return [_canonical(item) for item in value] if isinstance(value, list) else value


def _read_config(folder: Path, name: str, *, required: bool) -> Config:
    path = folder / name
    if not exists(path):
        if not required:
            return Config({}, file=path)
        hint = ""
        if exists(folder / "adapter_config.json"):
            hint = "; the folder holds a PEFT adapter, load its base model and then the adapter"
        raise ConfigError(f"no such file{hint}", file=path)
    with open_inside(folder, name) as file:
        return Config.of(load_json(file, limit_bytes=MAX_CONFIG_BYTES, error=ConfigError), file=path)


def _open_weights(folder: Path) -> list[SafetensorsFile]:
    single = os.path.lexists(folder / SINGLE_NAME)
    sharded = os.path.lexists(folder / INDEX_NAME)
    if not single and not sharded:
        raise _no_weights(folder)
    if not sharded:
        return [SafetensorsFile.of(open_inside(folder, SINGLE_NAME))]
    with open_inside(folder, INDEX_NAME) as file:
        index = read_index(file)
    if not single or SINGLE_NAME in index.weight_map.values():
        return open_shards(folder, index)
    # Both are there. The single file serves when it is the same set of tensors.
    whole = SafetensorsFile.of(open_inside(folder, SINGLE_NAME))
    try:
        _compare_both(whole, folder, index.weight_map.keys())
    except BaseException:
        whole.close()
        raise
    return [whole]


def _compare_both(whole: SafetensorsFile, folder: Path, indexed: object) -> None:
    if whole.tensors.keys() != indexed:
        raise CheckpointError(
            f"{SINGLE_NAME} and {INDEX_NAME} are both there and hold different tensors; "
            f"delete {SINGLE_NAME} to use the shards, or the index to use the single file",
            file=folder,
        )
    _log.warning("%s: both %s and %s are there; the single file is used", shown(folder), SINGLE_NAME, INDEX_NAME)


def _no_weights(folder: Path) -> LlmcoreError:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")) or ".bin.index" in name]
    if pickles:
        return UnsupportedModelError(
            f"{shown(folder)}: has no safetensors; {escape(pickles[0])} is a pickle, which could run code and is never "
            "opened; convert it to safetensors"
        )
    other = [name for name in names if name.endswith((".gguf", ".safetensors", ".onnx", ".h5", ".msgpack"))]
    hint = f"; found {escape(other[0])}" if other else ""
    if other and other[0].endswith(".gguf"):
        hint += ", which loads by its own path"
    return CheckpointError(f"has neither {SINGLE_NAME} nor {INDEX_NAME}{hint}", file=folder)


def cached_snapshot(name: str) -> Path | None:
    """The folder of the model `name` ("org/model") in the local Hugging Face cache, or None. Nothing is downloaded.

    Source: huggingface_hub's documented cache layout and environment variables.
    """
    if not _MODEL_NAME.fullmatch(name) or ".." in name:
        return None
    folder = _cache_root() / ("models--" + name.replace("/", "--"))
    try:
        with PlainFile(folder / "refs" / "main") as file:
            commit = bytes(file.read(min(file.size, 128), 0)).decode("ascii", "replace").strip()
    except LlmcoreError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"[0-9A-Za-z._-]+", commit) and snapshot.is_dir() else None


def _cache_root() -> Path:
    environment = os.environ
    if environment.get("HF_HUB_CACHE"):
        return Path(environment["HF_HUB_CACHE"]).expanduser()
    if environment.get("HF_HOME"):
        return Path(environment["HF_HOME"]).expanduser() / "hub"
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"
