"""Sharded checkpoints: the same tensors as one file, and every way an index can be wrong."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from llmcore.checkpoint.readers import open_checkpoint
from llmcore.checkpoint.write import save_safetensors
from llmcore.errors import CheckpointError, ConfigError, LimitError, SafetensorsError, StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model.save(tmp_path / "model")
    tiny_model.shard(tmp_path / "model")
    return tmp_path / "model"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def refused(folder: Path, match: str, error: type[Exception] = CheckpointError) -> None:
    fds = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with pytest.raises(error, match=match) as caught:
        open_checkpoint(folder)
    assert len(str(caught.value).encode()) <= 1024
    if fds:
        assert len(os.listdir("/proc/self/fd")) <= fds


def test_shards_equal_the_single_file(folder: Path) -> None:
    expected = tiny_model.tensors()
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        assert all(np.array_equal(checkpoint.read(name), expected[name]) for name in expected)
        assert np.array_equal(checkpoint.read_rows("lm_head.weight", 3, 7), expected["lm_head.weight"][3:7])


def test_i01_missing_file(folder: Path) -> None:
    shards(folder)[1].unlink()
    refused(folder, "missing files: 'model-00002-of-00003.safetensors'")


def test_i02_tensor_missing_from_its_file(folder: Path) -> None:
    mapped = weight_map(folder)
    tiny_model.write_index(folder, mapped | {"model.extra.weight": shards(folder)[0].name})
    refused(folder, "not in their shard: 'model.extra.weight'")


def test_i02_tensor_in_another_file(folder: Path) -> None:
    mapped = weight_map(folder)
    name = next(name for name, file in mapped.items() if file == shards(folder)[0].name)
    tiny_model.write_index(folder, mapped | {name: shards(folder)[1].name})
    refused(folder, "not in their shard")


def test_i03_tensor_in_two_shards(folder: Path) -> None:
    mapped = weight_map(folder)
    first = [name for name, file in mapped.items() if file == shards(folder)[0].name]
    second = [name for name, file in mapped.items() if file == shards(folder)[1].name]
    weights = tiny_model.tensors()
    save_safetensors(shards(folder)[1], {name: weights[name] for name in [*second, first[0]]})
    refused(folder, f"in two shards: '{first[0]}'")


def test_i04_tensor_not_in_the_map(folder: Path) -> None:
    mapped = weight_map(folder)
    del mapped["lm_head.weight"]
    tiny_model.write_index(folder, mapped)
    refused(folder, "not in weight_map: 'lm_head.weight'")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("/etc/passwd.safetensors", id="absolute"),
        pytest.param("../model.safetensors", id="parent"),
        pytest.param("sub/model.safetensors", id="folder"),
        pytest.param("sub\\model.safetensors", id="backslash"),
        pytest.param("a\0.safetensors", id="nul"),
        pytest.param("C:model.safetensors", id="drive"),
        pytest.param("model.bin", id="pickle"),
        pytest.param(".safetensors", id="hidden"),
        pytest.param(3, id="number"),
    ],
)
def test_i05_shard_names(folder: Path, name: object) -> None:
    tiny_model.write_index(folder, weight_map(folder) | {"lm_head.weight": name})
    refused(folder, "not the name of a .safetensors file")


def move_out(folder: Path) -> tuple[Path, Path]:
    inside = shards(folder)[0]
    outside = folder.parent / "outside.safetensors"
    inside.rename(outside)
    return inside, outside


def test_i05_symbolic_link_out(folder: Path) -> None:
    inside, outside = move_out(folder)
    inside.symlink_to(outside)
    refused(folder, "link out of the folder")


def test_i05_hard_link_out(folder: Path) -> None:
    inside, outside = move_out(folder)
    os.link(outside, inside)
    refused(folder, "hard link outside the folder")


def test_i05_links_inside_are_allowed(folder: Path) -> None:
    inside = shards(folder)[0]
    inside.rename(folder / "blob")
    inside.symlink_to("blob")
    os.link(shards(folder)[1], folder / "copy")
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.tensors) == len(tiny_model.tensors())


def test_i06_wrong_total_size_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model.write_index(folder, weight_map(folder), total_size=1 << 60)
    with caplog.at_level(logging.WARNING, "llmcore"), open_checkpoint(folder):
        assert "total_size is wrong" in caplog.text


@pytest.mark.parametrize("size", [-1, "100", True, [1]])
def test_i06_total_size_of_no_sense(folder: Path, size: object) -> None:
    tiny_model.write_index(folder, weight_map(folder), total_size=size)
    refused(folder, "not a size in bytes")


def test_i07_too_many_shards(folder: Path) -> None:
    tiny_model.write_index(folder, {f"t{i}": f"s{i}.safetensors" for i in range(2000)})
    refused(folder, "2000 shards", LimitError)


def test_i07_more_entries_than_tensors(folder: Path) -> None:
    tiny_model.write_index(folder, {f"t{i}": f"s{i}.safetensors" for i in range(140_000)})
    refused(folder, "more than", LimitError)


@pytest.mark.parametrize("value", [[], None, "x", 1, {}])
def test_i08_weight_map_of_another_kind(folder: Path, value: object) -> None:
    tiny_model.write_index(folder, value)
    refused(folder, "weight_map")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100])
def test_index_is_strict_json(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "index.json", LimitError if len(text) == 100 else CheckpointError)


def test_i09_index_that_names_itself(folder: Path) -> None:
    tiny_model.write_index(folder, {"a": "model.safetensors.index.json"})
    refused(folder, "not the name of a .safetensors file")


def test_i10_types_that_differ_in_one_layer(folder: Path) -> None:
    weights: dict[str, np.ndarray] = tiny_model.tensors()
    weights["model.layers.1.self_attn.k_proj.weight"] = weights["model.layers.1.self_attn.k_proj.weight"].astype(
        np.float16
    )
    tiny_model.shard(folder, weights=weights)
    with pytest.raises(ConfigError, match=r"layers\.1\.qkv differ in type"):
        tiny_model.bound(folder)


def test_i11_single_file_that_disagrees(folder: Path) -> None:
    weights = tiny_model.tensors()
    del weights["lm_head.weight"]
    save_safetensors(folder / "model.safetensors", weights)
    refused(folder, "delete model.safetensors to use the shards")


def test_i11_single_file_that_agrees(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_safetensors(folder / "model.safetensors", tiny_model.tensors())
    with caplog.at_level(logging.WARNING, "llmcore"), open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.tensors) == len(tiny_model.tensors())
        assert "the single file is used" in caplog.text


def test_i12_shard_replaced_between_header_and_data(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        victim = folder / weight_map(folder)["lm_head.weight"]
        (folder / "new").write_bytes(victim.read_bytes())
        (folder / "new").rename(victim)
        with pytest.raises(StorageError, match="changed"):
            checkpoint.read("lm_head.weight")


def test_broken_shard_is_named(folder: Path) -> None:
    os.truncate(shards(folder)[2], 100)
    refused(folder, "model-00003-of-00003.safetensors", SafetensorsError)
