"""Which reader opens which checkpoint. A new container is one module with `matches`, and one line in READERS."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.config import Config
from llmcore.checkpoint.containers import HEAD_BYTES, identify
from llmcore.checkpoint.files import PlainFile, exists, shown
from llmcore.checkpoint.gguf_file import GGUFCheckpoint
from llmcore.checkpoint.hf_dir import HuggingFaceDirectory, cached_snapshot
from llmcore.checkpoint.safetensors_header import TensorInfo
from llmcore.errors import CheckpointError, GGUFError, UnsupportedModelError, escape


class Checkpoint(Protocol):
    """An open checkpoint: named tensors and what config.json says about them."""

    path: Path
    config: Config
    generation_config: Mapping[str, object]
    tensors: Mapping[str, TensorInfo]

    @property
    def tokenizer_path(self) -> Path | None:
        """What `Tokenizer.load` takes, or None where there is no tokenizer."""

    @property
    def fingerprint(self) -> str:
        """Hex digest that tells checkpoints apart."""

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """The tensor `name` in new memory; BF16 as its bits in uint16, ggml's blocks as bytes."""

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Puts the bytes of `name` into a buffer of their size."""

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.generic]:
        """Rows `start` to `stop` (exclusive) of `name` in new memory."""

    def close(self) -> None:
        """Closes all files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


READERS: tuple[type[HuggingFaceDirectory] | type[GGUFCheckpoint], ...] = (HuggingFaceDirectory, GGUFCheckpoint)


def built_in(name: str) -> Path | None:
    """The folder of the built-in model `name`, or None. A folder of the same name is reached as `./tiny`."""
    return Path(__file__).resolve().parents[1] / "assets" / "tiny" if name == "tiny" else None


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """The file or folder that `path` means: "tiny", an existing path, or a name in the local Hugging Face cache.

    Raises CheckpointError when there is no such thing. Nothing is downloaded.
    """
    text = os.fspath(path)
    asset = built_in(text) if isinstance(path, str) else None
    if asset is not None:
        return asset
    if "\0" not in text and os.path.lexists(text):
        return Path(text)
    snapshot = cached_snapshot(text) if isinstance(path, str) else None
    if snapshot is None:
        raise CheckpointError("no such file or folder, and no model of this name in the Hugging Face cache", file=text)
    return snapshot


def _only_gguf(path: Path) -> Path:
    """The one model in a folder of .gguf files without a config.json, such as the cache keeps; else `path`."""
    if not path.is_dir() or exists(path / "config.json"):
        return path
    names = sorted(file.name for file in path.glob("*.gguf"))
    firsts = [name for name in names if not re.fullmatch(r".+-(?!00001)[0-9]{5}-of-[0-9]{5}\.gguf", name)]
    if len(firsts) > 1:
        listed = ", ".join(escape(name) for name in firsts[:8]) + (", ..." if len(firsts) > 8 else "")
        raise CheckpointError(f"holds {len(firsts)} models: give the path of one of {listed}", file=path)
    return path / firsts[0] if firsts else path


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens the checkpoint at `path`: a folder, a .gguf file, the name of a cached Hugging Face model, or "tiny".

    Raises CheckpointError (with ConfigError, SafetensorsError, GGUFError), UnsupportedModelError for a container that
    is known and not read, LimitError and StorageError.
    """
    found = _only_gguf(resolve_path(path))
    for reader in READERS:
        if reader.matches(found):
            return reader(found)
    with PlainFile(found) as file:
        head = bytes(file.read(min(file.size, HEAD_BYTES), 0))
    looks = identify(head)
    if looks is not None:
        raise UnsupportedModelError(
            f"{shown(found)}: {looks} can't be loaded; give the folder of a safetensors checkpoint or a .gguf file"
        )
    if found.suffix.lower() == ".gguf":
        raise GGUFError("not a GGUF file", file=found, offset=0, value=head[:4], allowed="GGUF")
    raise CheckpointError(
        "is a file; give the folder that holds config.json and the weights, or a .gguf file", file=found
    )
