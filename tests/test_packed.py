"""Packed models: what is saved and loaded again has the same bits; what isn't what it says is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcore
from llmcore import ArgumentError, LlmcoreError, QuantConfig, SamplingParams
from llmcore.checkpoint.write import save_safetensors

import bits_hash  # isort: skip

IDS = [3, 200, 17, 5, 5, 90]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    bits_hash.write_model(folder)
    return folder


RECIPES: dict[str, Any] = {
    "stored": None,
    "int8": "int8",
    "int8 groups": QuantConfig(format="int8", group_size=64),
    "nf4": QuantConfig(format="nf4", scale="mse"),
    "ternary_dense": QuantConfig(format="ternary_dense"),
    "zero points": QuantConfig(format="int4", symmetric=False),
    "double": QuantConfig(format="nf4", double_quant=True),
    "minima": QuantConfig(format="int4", group_size=32, symmetric=False, double_quant=True),
    "int4": "int4",
    "int6": QuantConfig(format="int6", group_size=16, double_quant=True),
    "int5 minima": QuantConfig(format="int5", group_size=32, symmetric=False, double_quant=True),
    "int3": "int3",
    "int2": "int2",
    "iq4": "iq4",
    "fp4": "fp4",
    "ternary": "ternary",
    "mixed": QuantConfig(format="int4", group_size=32, head="int8", skip=["*.down_proj"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_bits_are_those_of_the_checkpoint(checkpoint: Path, tmp_path: Path, name: str) -> None:
    with llmcore.load(checkpoint, RECIPES[name], progress=False) as model:
        model.save(tmp_path / "packed")
        expected = np.asarray(model.forward(IDS))
        usage, spec, kv_dtype = model.memory_usage()["weights"], model.spec, model.kv_dtype
    assert llmcore.plan(tmp_path / "packed", max_model_len=16).weights == usage
    with llmcore.load(tmp_path / "packed", progress=False) as again:
        assert (np.asarray(again.forward(IDS)) == expected).all()
        assert (again.spec, again.kv_dtype, again.memory_usage()["weights"]) == (spec, kv_dtype, usage)
        again.save(tmp_path / "twice")
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("packed", "twice"))
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)


def test_the_built_in_model_keeps_its_text_and_tokenizer(tmp_path: Path) -> None:
    params = SamplingParams(seed=4, max_tokens=30)
    with llmcore.LLM("tiny", progress=False) as llm:
        llm.model.save(tmp_path / "packed")
        expected = llm.generate("The prince", params)[0]
    with llmcore.LLM(str(tmp_path / "packed"), progress=False) as llm:
        found = llm.generate("The prince", params)[0]
        assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
        assert llm.model.generation_config == llmcore.load("tiny", progress=False).generation_config
    assert sorted(os.listdir(tmp_path)) == ["packed"]


def test_save_refuses_what_it_would_overwrite_or_cannot_say(checkpoint: Path, tmp_path: Path) -> None:
    from llmcore.cli.bench import named_spec
    from llmcore.model import random_model

    with llmcore.load(checkpoint, progress=False) as model:
        (tmp_path / "there").mkdir()
        model.save(tmp_path / "there")  # empty: nothing is lost
        before = (tmp_path / "there" / "model.safetensors").read_bytes()
        with pytest.raises(ArgumentError, match="is there already"):
            model.save(tmp_path / "there")
        (tmp_path / "file").write_text("x")
        with pytest.raises(LlmcoreError):
            model.save(tmp_path / "file")
        assert (tmp_path / "there" / "model.safetensors").read_bytes() == before
    with pytest.raises(llmcore.ClosedError):
        model.save(tmp_path / "closed")
    assert not (tmp_path / "closed").exists()
    with pytest.raises(ArgumentError, match="not loaded from a checkpoint"):
        random_model(named_spec("gpt2"), "ternary").save(tmp_path / "random")


def test_a_failed_save_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with llmcore.load(checkpoint, progress=False) as model:
        monkeypatch.setattr("llmcore.packed.save_safetensors", full)
        with pytest.raises(llmcore.StorageError, match="No space left"):
            model.save(tmp_path / "packed")
    assert os.listdir(tmp_path) == []


def test_packed_weights_are_not_quantised_again(checkpoint: Path, tmp_path: Path) -> None:
    with llmcore.load(checkpoint, "int8", progress=False) as model:
        model.save(tmp_path / "packed")
    for options in ({"quantize": "int4"}, {"dtype": "float16"}):
        with pytest.raises(ArgumentError, match="packed already"):
            llmcore.load(tmp_path / "packed", progress=False, **options)  # type: ignore[arg-type]


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


def entry(key: str, value: object) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        config["quantization_config"]["matrices"]["layers.0.down"][key] = value

    return change


def method(key: str, value: object) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        config["quantization_config"][key] = value

    return change


def drop(name: str) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        del tensors[name]

    return change


def impossible_codes(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.0.down.codes"] = np.full_like(tensors["layers.0.down.codes"], 255)


def renamed(name: str, to: str) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        matrices = config["quantization_config"]["matrices"]
        matrices[to] = matrices.pop(name)
        for part in (".codes", ".scales"):
            tensors[to + part] = tensors.pop(name + part)

    return change


BROKEN: dict[str, Change] = {
    "version": method("version", 99),
    "version text": method("version", "1"),
    "matrices": method("matrices", [1]),
    "no matrices": method("matrices", {}),
    "format": entry("format", "int9"),
    "format type": entry("format", 3),
    "shape": entry("shape", [4, 5]),
    "negative": entry("shape", [-16, 64]),
    "vast": entry("shape", [2**31, 2**24]),
    "beyond": entry("shape", [2**40, 2**40]),
    "one size": entry("shape", [16]),
    "group": entry("group_size", 48),
    "float group": entry("group_size", 32.0),
    "scales": entry("scales", "f64"),
    "description": lambda config, tensors: config["quantization_config"]["matrices"].update({"layers.0.down": 7}),
    "unknown matrix": lambda config, tensors: config["quantization_config"]["matrices"].update(
        {"other": config["quantization_config"]["matrices"]["layers.0.down"]}
    ),
    "a lone part": renamed("layers.0.down", "layers.0.down.1"),
    "part and whole": lambda config, tensors: config["quantization_config"]["matrices"].update(
        {"layers.0.down.0": config["quantization_config"]["matrices"]["layers.0.down"]}
    ),
    "minima": entry("minima", True),
    "codes": drop("layers.0.down.codes"),
    "no scales": drop("layers.0.down.scales"),
    "vector": drop("final_norm"),
    "impossible codes": impossible_codes,
    "layers": lambda config, tensors: config.update(num_hidden_layers=1),
    "hidden": lambda config, tensors: config.update(hidden_size=config["hidden_size"] + 16),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_what_it_says_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    with llmcore.load(checkpoint, "ternary", progress=False) as model:
        model.save(tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    BROKEN[name](config, tensors)
    shutil.rmtree(tmp_path / "packed")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    save_safetensors(tmp_path / "packed" / "model.safetensors", tensors)
    with pytest.raises(LlmcoreError) as caught:
        llmcore.load(tmp_path / "packed", progress=False)
    assert len(str(caught.value)) < 1024
