"""Small valid files from which the malformed ones are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENTRIES: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    "c": {"dtype": "BF16", "shape": [3], "data_offsets": [32, 38]},
    "d": {"dtype": "U8", "shape": [0], "data_offsets": [38, 38]},
}
DATA = bytes(range(38))


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header, its length word as it should be or as told."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def valid() -> bytes:
    return framed(json.dumps(ENTRIES).encode(), DATA)


def entry(data: bytes = b"\0\0\0\0", **fields: object) -> bytes:
    """A file of one tensor, [1] F32 unless `fields` say otherwise; a field of None is left out."""
    made = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | fields
    return framed(json.dumps({"w": {k: v for k, v in made.items() if v is not None}}).encode(), data)


def text(header: str, data: bytes = b"\0\0\0\0") -> bytes:
    return framed(header.encode(), data)


def write(folder: Path, data: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
