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
from llmcore import ArgumentError, LlmcoreError, QuantConfig, QuantError, SamplingParams, StorageError
from llmcore.checkpoint.readers import resolve_path
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


def packed(checkpoint: Path, folder: Path, quantize: Any, change: Change) -> Path:
    """A packed model whose config and tensors were changed."""
    with llmcore.load(checkpoint, quantize, progress=False) as model:
        model.save(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_what_it_says_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = packed(checkpoint, tmp_path / "packed", "ternary", BROKEN[name])
    with pytest.raises(LlmcoreError) as caught:
        llmcore.load(folder, progress=False)
    assert len(str(caught.value)) < 1024


def without(slot: str) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        config["quantization_config"]["matrices"].pop(slot, None)
        for name in [name for name in tensors if name == slot or name.startswith(slot + ".")]:
            del tensors[name]

    return change


def split(slot: str, rows: int) -> Change:
    """Makes a stack of two of a matrix with a scale for each row; `rows` is a multiple of 16."""

    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        matrices = config["quantization_config"]["matrices"]
        whole = matrices.pop(slot)
        for i, count in enumerate((rows, whole["shape"][0] - rows)):
            matrices[f"{slot}.{i}"] = whole | {"shape": [count, whole["shape"][1]]}
        for part in (".codes", ".scales", ".shifts"):
            if slot + part in tensors:
                panels = tensors.pop(slot + part).reshape(-(-whole["shape"][0] // 16), -1)
                tensors[f"{slot}.0{part}"] = panels[: rows // 16].copy()
                tensors[f"{slot}.1{part}"] = panels[rows // 16 :].copy()

    return change


def moved(slot: str, taken: str, given: str) -> Change:
    """Takes the tensor `taken` away and lengthens `given` by its bytes, as the description asks: the sum is right."""

    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        if taken == ".order":
            config["quantization_config"]["matrices"][slot]["ordered"] = True
            lost = 4 * config["quantization_config"]["matrices"][slot]["shape"][1]
        else:
            lost = tensors.pop(slot + taken).nbytes
        longer = tensors[slot + given].view(np.uint8).reshape(-1)
        tensors[slot + given] = np.concatenate([longer, np.zeros(lost, np.uint8)])

    return change


def vector_for_head(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    without("lm_head")(config, tensors)
    tensors["lm_head"] = np.ones(4, np.float32)


DAMAGED: dict[str, tuple[Change, str]] = {
    "no bias": (without("layers.0.qkv_bias"), "layers.0.qkv_bias"),
    "no head": (without("lm_head"), "lm_head"),
    "no matrix": (without("layers.1.down"), "layers.1.down"),
    "vocabulary": (lambda config, tensors: config.update(vocab_size=256), "embedding"),
    "width": (lambda config, tensors: config.update(hidden_size=160), "embedding"),
    "heads": (lambda config, tensors: config.update(num_attention_heads=4), "layers.0.qkv"),
    "short vector": (
        lambda config, tensors: tensors.update(final_norm=tensors["final_norm"][1:].copy()),
        "final_norm",
    ),
    "a vector for a matrix": (vector_for_head, "lm_head"),
    "embedding in two": (split("embedding", 128), "embedding"),
    "gate and up in uneven parts": (split("layers.0.gate_up", 16), "layers.0.gate_up"),
    "no order": (moved("layers.0.down", ".order", ".codes"), "layers.0.down.codes"),
    "no scales": (moved("layers.0.down", ".scales", ".shifts"), "layers.0.down.scales"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_missing_or_has_another_shape_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    change, field = DAMAGED[name]
    folder = packed(checkpoint, tmp_path / "packed", QuantConfig(format="int8", symmetric=False), change)
    for use in (lambda: llmcore.load(folder, progress=False), lambda: llmcore.plan(folder)):
        with pytest.raises(QuantError) as caught:
            use()
        assert (caught.value.file, caught.value.field) == (str(folder), field)


def test_parts_of_a_slot_may_be_stacked(checkpoint: Path, tmp_path: Path) -> None:
    with llmcore.load(checkpoint, "int8", progress=False) as model:
        expected = np.asarray(model.forward(IDS))
    folder = packed(checkpoint, tmp_path / "packed", "int8", split("layers.0.gate_up", bits_hash.MLP))
    with llmcore.load(folder, progress=False) as model:
        assert (np.asarray(model.forward(IDS)) == expected).all()


def test_a_head_that_differs_from_a_tied_embedding_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with llmcore.load(source, "int8", progress=False) as model:
        expected = np.asarray(model.forward(IDS))
    folder = packed(source, tmp_path / "packed", "int8", lambda config, tensors: None)
    with llmcore.load(folder, progress=False) as model:
        assert (np.asarray(model.forward(IDS)) == expected).all()
    with pytest.raises(QuantError, match="lm_head"):
        llmcore.load(packed(source, tmp_path / "damaged", "int8", without("lm_head")), progress=False)


def test_codes_that_cannot_be_are_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = packed(checkpoint, tmp_path / "packed", "ternary", impossible_codes)
    with pytest.raises(QuantError, match="out of range") as caught:
        llmcore.load(folder, progress=False)
    assert (caught.value.file, caught.value.field) == (str(folder), "layers.0.down")


def spoilt(name: str, kind: Any, at: int) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].view(kind)[at] = np.inf if kind is not np.uint16 else 0x7F80

    return change


SPOILT: dict[str, tuple[dict[str, Any], str, Any, int]] = {
    "vector": ({"quantize": "int8"}, "final_norm", np.float32, 3),
    "scale of a row": ({"quantize": "int8"}, "layers.0.down.scales", np.float32, 3),
    "scale of a group": ({"quantize": "int4"}, "layers.0.down.scales", np.float16, 3),
    "unit of scales": ({"quantize": RECIPES["minima"]}, "layers.0.down.scales", np.float16, -3),
    "unit of minima": ({"quantize": RECIPES["minima"]}, "layers.0.down.shifts", np.float16, -3),
    "float32": ({"dtype": "float32"}, "layers.0.down.codes", np.float32, 3),
    "float16": ({"dtype": "float16"}, "layers.0.down.codes", np.float16, 3),
    "bfloat16": ({"dtype": "bfloat16"}, "layers.0.down.codes", np.uint16, 3),
}


@pytest.mark.parametrize("name", SPOILT)
def test_check_finite_looks_at_packed_weights(checkpoint: Path, tmp_path: Path, name: str) -> None:
    options, tensor, kind, at = SPOILT[name]
    with llmcore.load(checkpoint, progress=False, **options) as model:
        model.save(tmp_path / "packed")
    llmcore.load(tmp_path / "packed", progress=False, check_finite=True).close()
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    spoilt(tensor, kind, at)({}, tensors)
    save_safetensors(tmp_path / "packed" / "model.safetensors", tensors)
    llmcore.load(tmp_path / "packed", progress=False).close()
    with pytest.raises(llmcore.NumericError, match=tensor.rpartition(".")[0] or tensor):
        llmcore.load(tmp_path / "packed", progress=False, check_finite=True)


def test_packed_weights_are_not_calibrated(checkpoint: Path, tmp_path: Path) -> None:
    with llmcore.load(checkpoint, "int8", progress=False) as model:
        model.save(tmp_path / "packed")
    with pytest.raises(ArgumentError, match="packed already"):
        llmcore.load(tmp_path / "packed", progress=False, calibration=[IDS])


def copied(to: Path) -> Path:
    shutil.copytree(resolve_path("tiny"), to)
    return to


def test_the_tokenizer_is_saved_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder that a relative path meant when the model was loaded, and not without a word when it is gone."""
    copied(tmp_path / "here" / "model")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with llmcore.load("./model", progress=False) as model:
        monkeypatch.chdir(tmp_path / "there")
        model.save("packed")
        assert llmcore.Tokenizer.load(tmp_path / "there" / "packed").vocab_size > 0
        for file in (tmp_path / "here" / "model").iterdir():
            if file.name.startswith("tokenizer"):
                file.unlink()
        with pytest.raises(StorageError, match="tokenizer"):
            model.save("lost")
        shutil.rmtree(tmp_path / "here")
        with pytest.raises(StorageError, match="tokenizer"):
            model.save("lost")
    assert os.listdir(tmp_path / "there") == ["packed"]


def test_templates_are_saved(tmp_path: Path) -> None:
    """Those in files of their own, too, and where the files are links to a cache."""
    source = copied(tmp_path / "models--a--b" / "snapshots" / "1")
    blobs = tmp_path / "models--a--b" / "blobs"
    (source / "additional_chat_templates").mkdir()
    blobs.mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        (blobs / Path(name).name).write_text(name)
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(blobs / Path(name).name)
    with llmcore.load(source, progress=False) as model:
        model.save(tmp_path / "packed")
    for path in (source, tmp_path / "packed"):
        tokenizer = llmcore.Tokenizer.load(path)
        for tools in (None, [{}]):
            name = "chat_template.jinja" if tools is None else "additional_chat_templates/tool_use.jinja"
            assert tokenizer.apply_chat_template([], tools, tokenize=False) == name


def test_names_of_folders(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.chdir(tmp_path / "full")
    with llmcore.load(checkpoint, progress=False) as model:
        for path in (".", "", "..", "x\0y", "x\ud800y"):
            with pytest.raises(ArgumentError):
                model.save(path)
        monkeypatch.setattr(os, "listdir", lambda path: os.stat(Path(path) / "absent"))
        with pytest.raises(StorageError):
            model.save(tmp_path / "full")
