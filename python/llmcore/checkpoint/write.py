"""Saving files so that a crash leaves the old one or the new one, never a mixture.

The bytes go to a file of random name in the same folder, are flushed to the disk and then get the target's name.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.files import shown, storage_error
from llmcore.checkpoint.safetensors_header import DTYPES, MAX_DIMENSIONS, MAX_NAME_BYTES
from llmcore.errors import ArgumentError, StorageError, escape

RawTensor = tuple[str, tuple[int, ...], bytes | bytearray | memoryview]
"""safetensors dtype, shape and the little-endian bytes: how BF16 and other types that numpy lacks are given."""

_NAMES = {
    np.dtype(kind).str.lstrip("|<="): name
    for name, (_, kind) in DTYPES.items()
    if kind is not None and name != "BF16" and not name.startswith("F8")
}
_WRITE_BYTES = 64 << 20


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[np.generic] | RawTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a .safetensors file atomically; the same tensors give the same bytes.

    `tensors`: numpy arrays, or (dtype, shape, bytes). Wider elements come first, so that each tensor begins at a
    multiple of its element size. Raises ArgumentError for what the format can't hold and StorageError.
    """
    raw = {name: _raw(name, value) for name, value in tensors.items()}
    order = sorted(raw, key=lambda name: (-DTYPES[raw[name][0]][0], name))
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    for name in order:
        dtype, shape, data = raw[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    write_atomically(path, [len(text).to_bytes(8, "little"), text, *(raw[name][2] for name in order)])


def save_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes `value` as indented JSON, atomically. Raises ArgumentError for what JSON can't hold, StorageError."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
        data = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{shown(path)}: can't be written as JSON: {error}") from None
    write_atomically(path, [data, b"\n"])


def write_atomically(path: str | os.PathLike[str], chunks: Iterable[bytes | bytearray | memoryview]) -> None:
    """Puts the chunks into the file `path`, replacing an older one in one step; a link is replaced, not followed.

    A new file gets 0644 less the umask, a replaced one keeps its permissions. On any error the old file stays and the
    temporary one goes. Raises StorageError.
    """
    target = Path(path)
    if target.is_dir():
        raise StorageError(f"{shown(target)}: can't write: is a directory")
    if target.exists() and not target.is_file():
        raise StorageError(f"{shown(target)}: can't write: is no regular file")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        mode = _mode(target)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(temporary, flags, 0o644)
        try:
            try:
                for piece in _pieces(chunks):
                    _write_all(fd, piece)
                if mode is not None and hasattr(os, "fchmod"):
                    os.fchmod(fd, mode)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error("write", target, error) from None


def _raw(name: str, value: npt.NDArray[np.generic] | RawTensor) -> RawTensor:
    if not name or name == "__metadata__" or len(name.encode("utf-8")) > MAX_NAME_BYTES or not name.isprintable():
        raise ArgumentError(f"{escape(name)} can't be the name of a tensor")
    if isinstance(value, tuple):
        dtype, shape, data = value
        if dtype not in DTYPES:
            raise ArgumentError(f"tensor {escape(name)}: unknown dtype {escape(dtype)}; one of {', '.join(DTYPES)}")
        view = memoryview(data).cast("B")
    else:
        array = np.asarray(value)
        kind = array.dtype.newbyteorder("<")
        known = _NAMES.get(kind.str.lstrip("|<="))
        if known is None:
            raise ArgumentError(f"tensor {escape(name)}: numpy dtype {array.dtype} has no place in safetensors")
        dtype, shape = known, array.shape
        view = np.ascontiguousarray(array, dtype=kind).reshape(-1).view(np.uint8).data
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) * DTYPES[dtype][0] != 8 * view.nbytes:
        raise ArgumentError(f"tensor {escape(name)}: {view.nbytes} bytes do not make a {dtype} of shape {shape}")
    return dtype, tuple(shape), view


def _mode(target: Path) -> int | None:
    try:
        return os.lstat(target).st_mode & 0o777 if not target.is_symlink() else None
    except FileNotFoundError:
        return None


def _pieces(chunks: Iterable[bytes | bytearray | memoryview]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        for at in range(0, len(view), _WRITE_BYTES):
            yield view[at : at + _WRITE_BYTES]


def _write_all(fd: int, data: memoryview) -> None:
    while len(data):
        try:
            data = data[os.write(fd, data) :]
        except (InterruptedError, BlockingIOError):
            continue


def _sync_folder(folder: Path) -> None:
    """Makes the new name last; where folders can't be opened (Windows) the system has no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
