"""The index of a sharded checkpoint, model.safetensors.index.json, and the shards it names as one set of tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmcore.checkpoint.config import kind_of
from llmcore.checkpoint.files import PlainFile, open_inside, shown
from llmcore.checkpoint.safetensors import SafetensorsFile
from llmcore.checkpoint.safetensors_header import MAX_TENSORS
from llmcore.checkpoint.strict_json import load_json
from llmcore.errors import CheckpointError, LimitError, escape

INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 1024  # one open file each

_log = logging.getLogger("llmcore")


@dataclass(frozen=True, kw_only=True)
class Index:
    """`weight_map`: tensor name -> shard, a plain file name in the index's folder. `total_size`: bytes, unverified."""

    path: Path
    weight_map: dict[str, str]
    total_size: float | None


def read_index(file: PlainFile) -> Index:
    """The checked content of an open index. Raises CheckpointError and LimitError."""
    value = load_json(
        file, limit_bytes=MAX_INDEX_BYTES, max_keys=MAX_TENSORS + 64, max_items=1 << 19, error=CheckpointError
    )
    path = file.path
    if not isinstance(value, dict):
        raise CheckpointError("is not a JSON object", file=path, value=kind_of(value))
    weight_map = value.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            "has the wrong type", file=path, field="weight_map", value=kind_of(weight_map), allowed="an object"
        )
    if not weight_map:
        raise CheckpointError("names no tensor", file=path, field="weight_map")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_shard_name(shard):
            raise CheckpointError(
                f"the shard of {escape(tensor)} is not the name of a .safetensors file beside the index",
                file=path,
                field="weight_map",
                value=shard,
            )
    shards = len(set(weight_map.values()))
    if shards > MAX_SHARDS:
        raise LimitError(f"{shown(path)}: names {shards} shards, at most {MAX_SHARDS} are read")
    return Index(path=path, weight_map=weight_map, total_size=_total_size(value.get("metadata"), path))


def _is_shard_name(name: str) -> bool:
    plain = not any(mark in name for mark in "/\\:\0") and name.isprintable()
    return plain and name.endswith(".safetensors") and not name.startswith(".")


def _total_size(metadata: object, path: Path) -> float | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise CheckpointError("has the wrong type", file=path, field="metadata", value=kind_of(metadata))
    size = metadata.get("total_size")
    if size is None:
        return None
    # Some writers put a float there; only what can't be a size is refused.
    if isinstance(size, bool) or not isinstance(size, int | float) or not size >= 0:
        raise CheckpointError("is not a size in bytes", file=path, field="metadata.total_size", value=size)
    return size


def open_shards(folder: Path, index: Index) -> list[SafetensorsFile]:
    """Opens every shard and checks that map and shards say the same. One file stays open per shard.

    Raises CheckpointError with the list of what is missing, doubled or not in the map; the errors of SafetensorsFile.
    """
    weight_map = index.weight_map
    missing = [name for name in sorted(set(weight_map.values())) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"names {len(missing)} missing files: {_listed(missing)}", file=index.path)
    shards: list[SafetensorsFile] = []
    try:
        for name in sorted(set(weight_map.values())):
            shards.append(SafetensorsFile.of(open_inside(folder, name)))
        _compare(weight_map, shards, index.path)
        total = sum(info.nbytes for shard in shards for info in shard.tensors.values())
        if index.total_size not in (None, total):
            _log.warning("%s: total_size is wrong: the shards hold %d bytes of tensors", shown(index.path), total)
    except BaseException:
        for shard in shards:
            shard.close()
        raise
    return shards


def _compare(weight_map: dict[str, str], shards: list[SafetensorsFile], index: Path) -> None:
    home: dict[str, str] = {}
    doubled = []
    for shard in shards:
        for name in shard.tensors:
            if name in home:
                doubled.append(name)
            home[name] = shard.path.name
    if doubled:
        raise CheckpointError(f"{len(doubled)} tensors stand in two shards: {_listed(doubled)}", file=index)
    absent = [name for name, shard in weight_map.items() if home.get(name) != shard]
    if absent:
        raise CheckpointError(f"{len(absent)} tensors are not in their shard: {_listed(absent)}", file=index)
    extra = [name for name in home if name not in weight_map]
    if extra:
        raise CheckpointError(f"{len(extra)} tensors of the shards are not in weight_map: {_listed(extra)}", file=index)


def _listed(names: Iterable[str]) -> str:
    """At most eight names, escaped."""
    names = list(names)
    return ", ".join(escape(name) for name in names[:8]) + (" ..." if len(names) > 8 else "")
