"""GPTQ and AWQ checkpoints: values come as the files say, packed here bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import bits_hash
import llmcore
from llmcore.checkpoint.readers import open_checkpoint
from llmcore.checkpoint.write import save_json, save_safetensors
from llmcore.errors import QuantError, UnsupportedModelError
from llmcore.models.binding import bind

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CASES = [
    pytest.param("gptq", {"bits": 4, "group_size": 32, "sym": False}, id="gptq4-zeros"),
    pytest.param("gptq", {"bits": 4, "group_size": 64, "sym": True}, id="gptq4"),
    pytest.param("gptq", {"bits": 4, "group_size": -1, "sym": True, "desc_act": True}, id="gptq4-rows"),
    pytest.param("gptq", {"bits": 8, "group_size": 128, "sym": False}, id="gptq8-zeros"),
    pytest.param("gptq", {"bits": 8, "group_size": 32, "sym": True}, id="gptq8"),
    pytest.param("gptq", {"bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"}, id="gptq-v2"),
    pytest.param("gptq", {"bits": 4, "group_size": 32, "sym": False, "desc_act": True}, id="gptq-order"),
    pytest.param("gptq", {"bits": 8, "group_size": 64, "sym": True, "desc_act": True}, id="gptq8-order"),
    pytest.param("gptq", {"bits": 3, "group_size": 32, "sym": False}, id="gptq3-zeros"),
    pytest.param("gptq", {"bits": 3, "group_size": 128, "sym": True, "desc_act": True}, id="gptq3-order"),
    pytest.param("gptq", {"bits": 2, "group_size": 64, "sym": False}, id="gptq2-zeros"),
    pytest.param("awq", {"bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}, id="awq"),
    pytest.param("awq", {"bits": 4, "group_size": 128, "zero_point": True}, id="awq-128"),
]


def words(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [rows, n] of codes [rows, n * 32 / bits], from the lowest bits up; field i is code order[i]."""
    packed = []
    for values in codes.tolist():
        stream = 0
        for i, _ in enumerate(values):
            at = i - i % len(order) + order[i % len(order)] if order else i
            stream |= values[at] << (bits * i)
        packed.append(np.frombuffer(stream.to_bytes(len(values) * bits // 8, "little"), "<i4"))
    return np.array(packed, np.int32)


def write(folder: Path, method: str, section: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A quantised model; codes, scales and zeros by module, and the same model's tensors in float."""
    bits_hash.write_model(folder, layers=1, vocab=64)
    dense = load_file(folder / "model.safetensors")
    tensors: dict[str, Any] = dict(dense)
    truth, random = {}, np.random.default_rng(4)
    bits, symmetric = section["bits"], section.get("sym", not section.get("zero_point", True))
    for name, weight in dense.items():
        module = name.removesuffix(".weight")
        if not module.endswith("_proj"):
            continue
        del tensors[name]
        rows, columns = weight.shape
        group = columns if section["group_size"] == -1 else section["group_size"]
        codes = random.integers(0, 1 << bits, (rows, columns))
        scales = (random.uniform(0.5, 1.5, (rows, columns // group)) * 0.3 / (1 << bits)).astype(np.float16)
        zeros = np.full(scales.shape, 1 << (bits - 1))
        if not symmetric:
            zeros = random.integers(0, 1 << bits, scales.shape)
        stored = zeros.T if method == "awq" or section.get("checkpoint_format") else (zeros.T - 1) % (1 << bits)
        awq = method == "awq"
        tensors[module + ".qweight"] = words(codes.T, 4, ORDER) if awq else words(codes, bits).T.copy()
        tensors[module + ".qzeros"] = words(stored, bits, ORDER if awq else None)
        tensors[module + ".scales"] = scales.T.copy()
        index = (np.arange(columns) // group).astype(np.int32)
        if section.get("desc_act"):  # layers with the same inputs mostly have the same order
            index = np.random.default_rng(len(truth) if bits == 3 else columns).permutation(index)
        if not awq:
            tensors[module + ".g_idx"] = index
        truth[module] = codes[:, np.argsort(index, kind="stable")], scales, zeros
        wide = [part.astype(np.float32)[:, index] for part in (scales, zeros)]
        dense[name] = wide[0] * (codes.astype(np.float32) - wide[1])
    config = json.loads((folder / "config.json").read_text())
    save_safetensors(folder / "model.safetensors", tensors)
    save_json(folder / "config.json", config | {"quantization_config": {"quant_method": method} | section})
    return truth, dense


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HIDDEN", 128), ("HEADS", 4), ("HEAD_DIM", 32), ("MLP", 256)):
        monkeypatch.setattr(bits_hash, name, value)


@pytest.mark.parametrize(("method", "section"), CASES)
def test_values_are_those_of_the_file(tmp_path: Path, method: str, section: dict[str, Any]) -> None:
    truth, dense = write(tmp_path, method, section)
    middle = 1 << (section["bits"] - 1)
    with open_checkpoint(tmp_path) as checkpoint:
        parts = {
            part.module: part
            for slot in bind(checkpoint).slots.values()
            for part in slot.parts
            if hasattr(part, "bits")
        }
        assert parts.keys() == truth.keys()
        for module, (codes, scales, zeros) in truth.items():
            part = parts[module]
            assert np.array_equal(part.codes(), codes - middle)
            assert np.array_equal(part.codes(5, 21), codes[5:21] - middle)
            assert np.array_equal(part.scales(3, 9), scales[3:9])
            assert np.array_equal(part.zero_points(3, 9), zeros[3:9] - middle)
            assert part.has_zero_points == bool((zeros != middle).any())
    ids = list(range(40))
    with llmcore.load(tmp_path, progress=False) as model:
        got = np.asarray(model.forward(ids, kv_dtype="f32"))
        model.save(tmp_path / "packed")
    with llmcore.load(tmp_path / "packed", progress=False) as again:
        assert np.array_equal(np.asarray(again.forward(ids, kv_dtype="f32")), got)
    folder = tmp_path / "dense"
    folder.mkdir()
    bits_hash.write_model(folder, layers=1, vocab=64)
    save_safetensors(folder / "model.safetensors", dense)
    with llmcore.load(folder, progress=False) as model:
        wanted = np.asarray(model.forward(ids, kv_dtype="f32"))
    assert np.linalg.norm(got - wanted) < 0.03 * np.linalg.norm(wanted)  # activations are int8


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    good = {"bits": 4, "group_size": 32, "sym": False}
    write(tmp_path, "gptq", good)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    module = "model.layers.0.mlp.down_proj"

    def load() -> None:
        llmcore.load(tmp_path, progress=False).close()

    index = tensors[module + ".g_idx"]
    for name, value, error in (
        ("qweight", tensors[module + ".qweight"][1:].copy(), QuantError),
        ("qzeros", tensors[module + ".qzeros"][:, 1:].copy(), QuantError),
        ("scales", tensors[module + ".scales"][1:].copy(), QuantError),
        ("scales", tensors[module + ".scales"].astype(np.int32), QuantError),
        ("g_idx", index[1:].copy(), QuantError),
        ("g_idx", index - 1, QuantError),
        ("g_idx", index + 1, QuantError),
        ("g_idx", index // 2, QuantError),
        ("qzeros", None, QuantError),
    ):
        changed = {key: each for key, each in tensors.items() if key != f"{module}.{name}"}
        save_safetensors(
            tmp_path / "model.safetensors", changed | ({f"{module}.{name}": value} if value is not None else {})
        )
        with pytest.raises(error, match="down_proj") as caught:
            load()
        assert caught.value.file == str(tmp_path)
    save_safetensors(tmp_path / "model.safetensors", tensors)
    load()
    for change, error in (
        ({"bits": 3}, QuantError),
        ({"bits": 5}, UnsupportedModelError),
        ({"bits": 0}, QuantError),
        ({"bits": 64}, QuantError),
        ({"bits": 8}, QuantError),
        ({"group_size": 0}, QuantError),
        ({"group_size": -2}, QuantError),
        ({"group_size": 7}, UnsupportedModelError),
        ({"group_size": 64}, QuantError),
        ({"sym": "false"}, QuantError),
        ({"sym": True}, QuantError),
        ({"format": "marlin"}, UnsupportedModelError),
        ({"dynamic": {"+:.*": {"bits": 8}}}, UnsupportedModelError),
        ({"desc_act": 1}, QuantError),
        ({"quant_method": "awq", "zero_point": True}, QuantError),
        ({"quant_method": "awq", "version": "gemv"}, UnsupportedModelError),
        ({"quant_method": "aqlm"}, UnsupportedModelError),
    ):
        section = config["quantization_config"] | change
        save_json(tmp_path / "config.json", config | {"quantization_config": section})
        with pytest.raises(error):
            load()


def test_an_order_that_is_declared_must_be_there(tmp_path: Path) -> None:
    for desc_act, group_size in ((True, 32), (True, -1), (False, 32)):
        write(tmp_path, "gptq", {"bits": 4, "group_size": group_size, "sym": False, "desc_act": desc_act})
        tensors = load_file(tmp_path / "model.safetensors")
        save_safetensors(
            tmp_path / "model.safetensors", {name: t for name, t in tensors.items() if not name.endswith(".g_idx")}
        )
        if not desc_act or group_size == -1:
            llmcore.load(tmp_path, progress=False).close()
            continue
        with pytest.raises(QuantError, match=r"missing.*g_idx"):
            llmcore.load(tmp_path, progress=False)


def test_a_bias_of_zeros_is_no_weight(tmp_path: Path) -> None:
    write(tmp_path, "gptq", {"bits": 4, "group_size": 32, "sym": False})
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.bias"
    save_safetensors(tmp_path / "model.safetensors", tensors | {name: np.zeros(128, np.float16)})
    llmcore.load(tmp_path, progress=False).close()
    save_safetensors(tmp_path / "model.safetensors", tensors | {name: np.ones(128, np.float16)})
    with pytest.raises(llmcore.errors.ConfigError, match=r"down_proj\.bias"):
        llmcore.load(tmp_path, progress=False)
