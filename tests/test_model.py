"""llmcore.load, Model and plan: shapes, arguments, recipes, captures, memory."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bits_hash
import llmcore
import quantized_reference as reference
from bits_hash import prompt
from llmcore import ops
from llmcore.checkpoint.write import save_json
from llmcore.model import random_model
from llmcore.quantization import MatrixFormat


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    bits_hash.write_model(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[llmcore.Model]:
    with llmcore.load(folder, threads=1, progress=False) as loaded:
        yield loaded


def load(folder: Path, *args: Any, **options: Any) -> llmcore.Model:
    return llmcore.load(folder, *args, threads=1, progress=False, **options)


# --- forward ----------------------------------------------------------------------------------------------------------


def test_shapes_follow_the_ids(model: llmcore.Model) -> None:
    vocab = bits_hash.VOCAB
    one = model.forward([1, 2, 3])
    assert isinstance(one, np.ndarray)
    assert (one.shape, one.dtype) == ((3, vocab), np.float32)
    assert np.shape(model.forward([[1, 2, 3]])) == (1, 3, vocab)
    assert np.shape(model.forward(np.array([[1, 2, 3], [4, 5, 6]]))) == (2, 3, vocab)
    ragged = model.forward([[1, 2, 3], [4]])
    assert isinstance(ragged, list)
    assert [each.shape for each in ragged] == [(3, vocab), (1, vocab)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32])
def test_ids_may_be_any_integers(model: llmcore.Model, dtype: type) -> None:
    assert np.array_equal(model.forward(np.array([1, 2, 3], dtype)), model.forward([1, 2, 3]))
    strided = np.array([1, 0, 2, 0, 3, 0], dtype)[::2]
    assert np.array_equal(model.forward(strided), model.forward([1, 2, 3]))


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([], llmcore.ArgumentError),
        ([[1], []], llmcore.ArgumentError),
        ([bits_hash.VOCAB], llmcore.ArgumentError),
        ([1, -1], llmcore.ArgumentError),
        ([2**31], llmcore.ArgumentError),
        (np.zeros((1, 1, 1), int), llmcore.ArgumentError),
        ([1.5], TypeError),
        (np.array([1.0]), TypeError),
        ([1] * (bits_hash.CONTEXT + 1), llmcore.ContextLengthError),
    ],
)
def test_wrong_ids(model: llmcore.Model, ids: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        model.forward(ids)


def test_wrong_options_of_forward(model: llmcore.Model) -> None:
    for options in ({"chunk_size": 0}, {"chunk_size": -3}, {"kv_dtype": "f64"}):
        with pytest.raises(llmcore.ArgumentError):
            model.forward([1], **options)  # type: ignore[arg-type]


def test_the_whole_context_can_be_used(model: llmcore.Model) -> None:
    assert np.isfinite(model.forward(prompt(bits_hash.CONTEXT))).all()


# --- capture ----------------------------------------------------------------------------------------------------------


def test_captured_activations_have_a_row_for_each_position(model: llmcore.Model) -> None:
    with model.capture("layers.*.output", "logits") as seen:
        logits = model.forward(prompt(300))
    assert set(seen) == {"layers.0.output", "layers.1.output", "logits"}
    assert seen["layers.1.output"].shape == (300, bits_hash.HIDDEN)
    assert np.array_equal(seen["logits"], logits)


def test_captures_of_several_sequences_are_lists(model: llmcore.Model) -> None:
    with model.capture("embeddings") as seen:
        model.forward([prompt(5), prompt(7)])
        model.forward(prompt(3))
    assert [len(each) for each in seen["embeddings"]] == [5, 7, 3]


def test_a_capture_sees_only_what_is_inside_and_changes_nothing(model: llmcore.Model) -> None:
    plain = model.forward(prompt(40))
    with model.capture("*") as seen:
        assert np.array_equal(model.forward(prompt(40)), plain)
        with pytest.raises(llmcore.ArgumentError), model.capture("*"):
            pass
    count = {name: len(each) for name, each in seen.items()}
    model.forward(prompt(8))
    assert {name: len(each) for name, each in seen.items()} == count


# --- load -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": "int7"},
        {"device": "cuda"},
        {"dtype": "float8"},
        {"threads": 0},
        {"threads": 1025},
        {"threads": True},
    ],
)
def test_wrong_options_of_load(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(llmcore.ArgumentError):
        llmcore.load(folder, progress=False, **options)


def test_nothing_at_a_path_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(llmcore.CheckpointError):
        load(tmp_path / "absent")


def test_dtype_rounds_the_weights(folder: Path, model: llmcore.Model) -> None:
    with load(folder, dtype="bfloat16") as rounded:
        assert rounded.memory_usage()["weights"] < 0.55 * model.memory_usage()["weights"]
        ours = np.asarray(rounded.forward(prompt(20), kv_dtype="f32"))
    exact = np.asarray(model.forward(prompt(20)))
    assert 1e-4 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.05


def test_recipes_choose_formats_by_module(folder: Path, model: llmcore.Model) -> None:
    """What is skipped is computed as without a recipe: the first product sees the same input in both."""
    everything = [f"model.layers.{i}.*" for i in range(bits_hash.LAYERS)] + ["lm_head", "model.embed_tokens"]
    with load(folder, llmcore.QuantConfig(format="int4", skip=everything)) as skipped:
        assert np.array_equal(skipped.forward(prompt(9)), model.forward(prompt(9)))
    weights = load_file(folder / "model.safetensors")
    recipe = llmcore.QuantConfig(
        format="int4",
        group_size=32,
        skip=["model.embed_tokens", "*.self_attn.*"],
        overrides={"*.down_proj": llmcore.QuantConfig(format="int8", group_size=64)},
    )
    with load(folder, recipe) as mixed, mixed.capture("*") as seen:
        mixed.forward(prompt(9), kv_dtype="f32")
        for name, source, module, packing in (
            ("gate_up", "mlp_norm", "mlp.gate_proj", ("int4", 32)),
            ("output", "activation", "mlp.down_proj", ("int8", 64)),
            ("attention_residual", "attention", "self_attn.o_proj", ("f32", None)),
        ):
            packed = llmcore.ops.quantize(weights[f"model.layers.0.{module}.weight"], packing[0], group_size=packing[1])
            expected, bound = reference.matmul(seen[f"layers.0.{source}"], packed)
            got = seen[f"layers.0.{name}"].astype(np.float64)
            if name == "gate_up":
                got = got[:, : bits_hash.MLP]
            else:
                residual = seen["layers.0.attention_residual"] if name == "output" else seen["embeddings"]
                expected = expected + residual
            bias = weights.get(f"model.layers.0.{module}.bias", 0.0)
            bound = bound + 4 * reference.ROUNDING * (np.abs(expected) + np.abs(bias) + np.abs(got))
            assert (np.abs(got - expected - bias) <= bound).all(), name


@pytest.mark.parametrize("format", ["int8", "int4", "int5", "ternary_dense"])
def test_float_activations_meet_the_exact_values_of_the_weights(folder: Path, tmp_path: Path, format: str) -> None:
    """The same bits as the dequantised weights in float32."""
    recipe = llmcore.QuantConfig(format=format, head=format)
    tensors = load_file(folder / "model.safetensors")
    exact = {
        name: ops.quantize(value, format).dequantize() if value.ndim == 2 else value for name, value in tensors.items()
    }
    shutil.copytree(folder, tmp_path / "exact")
    save_file(exact, tmp_path / "exact" / "model.safetensors")
    ids = prompt(40)
    with load(tmp_path / "exact") as dequantised, load(folder, recipe, activations="float32") as floats:
        assert np.array_equal(floats.forward(ids, kv_dtype="f32"), dequantised.forward(ids, kv_dtype="f32"))
        with load(folder, recipe) as rounded:
            assert not np.array_equal(rounded.forward(ids, kv_dtype="f32"), dequantised.forward(ids, kv_dtype="f32"))
            assert rounded.fingerprint != floats.fingerprint
    with pytest.raises(llmcore.ArgumentError, match="float16"):
        load(folder, activations="float16")


def test_overrides_are_checked_at_once_and_keep_the_way_of_choosing_scales() -> None:
    recipe = llmcore.QuantConfig(
        format="int8", scale="mse", overrides={"a": "int4", "b": llmcore.QuantConfig(format="int4")}
    )
    by_name, by_config = recipe.of(["a"], is_head=False), recipe.of(["b"], is_head=False)
    assert by_name == MatrixFormat(format="int4", group_size=128, search=True)
    assert by_config == MatrixFormat(format="int4", group_size=128)
    with pytest.raises(llmcore.ArgumentError, match="int7"):
        llmcore.QuantConfig(format="int8", overrides={"nothing.matches": "int7"})
    with pytest.raises(llmcore.ArgumentError, match="overrides"):
        llmcore.QuantConfig(format="int8", overrides=["int4"])  # type: ignore[arg-type]


def test_matrices_stored_in_out_are_quantised_by_output(data_dir: Path) -> None:
    """GPT-2's Conv1D: turned while it is packed, so that a group lies along the inputs of one output."""
    source = data_dir / "models" / "capp-gpt2-hf"
    weight = load_file(source / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    bias = load_file(source / "model.safetensors")["transformer.h.0.attn.c_attn.bias"]
    with load(source, llmcore.QuantConfig(format="int4", group_size=32)) as model:
        with model.capture("layers.0.*") as seen:
            model.forward([49, 2, 8, 15], kv_dtype="f32")
    packed = llmcore.ops.quantize(np.ascontiguousarray(weight.T), "int4", group_size=32)
    expected, bound = reference.matmul(seen["layers.0.attention_norm"], packed)
    slack = 2 * reference.ROUNDING * (np.abs(expected) + np.abs(bias))
    assert (np.abs(seen["layers.0.qkv"] - expected - bias) <= bound + slack).all()


def test_check_finite_names_the_broken_tensor(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 5] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(llmcore.NumericError, match=r"layers\.1\.mlp\.up_proj"):
        load(tmp_path, check_finite=True)
    with load(tmp_path) as broken:
        assert not np.isfinite(broken.forward([1, 2])).all()


def test_fingerprint_names_weights_and_recipe_alone(folder: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, **options: Any) -> str:
        with llmcore.load(path, progress=False, **options) as loaded:
            return loaded.fingerprint

    plain = fingerprint(folder)
    assert plain == fingerprint(folder, threads=2)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    others = [fingerprint(tmp_path), fingerprint(folder, quantize="int8"), fingerprint(folder, dtype="float16")]
    assert len({plain, *others}) == 4


@pytest.mark.parametrize("name", bits_hash.FORMATS)
def test_plan_tells_the_bytes_that_loading_takes(folder: Path, name: str) -> None:
    settings = bits_hash.FORMATS[name]
    planned = llmcore.plan(folder, max_model_len=200, max_batch_size=3, **settings)  # type: ignore[arg-type]
    with (
        llmcore.load(folder, progress=False, **settings) as model,
        llmcore.LLM(model, max_model_len=200, max_batch_size=3),
    ):
        usage = model.memory_usage()
    assert planned.weights == usage["weights"]
    assert planned.kv_cache == usage["kv_cache"]
    assert planned.activations == usage["activations"]
    assert planned.total == planned.weights + planned.kv_cache + planned.activations
    assert usage["total"] == usage["weights"] + usage["kv_cache"] + usage["activations"]


@pytest.mark.parametrize("threads", [1, 4])
def test_plan_knows_float_activations(folder: Path, threads: int) -> None:
    planned = llmcore.plan(folder, "int4", max_batch_size=2, threads=threads, activations="float32")
    with (
        llmcore.load(folder, "int4", threads=threads, activations="float32", progress=False) as model,
        llmcore.LLM(model, max_batch_size=2),
    ):
        assert planned.total == model.memory_usage()["total"]


def test_plan_knows_steps_of_more_sequences_than_a_prompt_has_tokens(folder: Path) -> None:
    planned = llmcore.plan(folder, max_model_len=16, max_batch_size=2000)
    with llmcore.load(folder, progress=False) as model, llmcore.LLM(model, max_model_len=16, max_batch_size=2000):
        assert planned.activations == model.memory_usage()["activations"]


@pytest.mark.parametrize("threads", [1, 2, 7, 64])
def test_plan_knows_threads(folder: Path, threads: int) -> None:
    planned = llmcore.plan(folder, max_batch_size=2, threads=threads)
    with llmcore.LLM(folder, max_batch_size=2, threads=threads, progress=False) as llm:
        assert planned.total == llm.model.memory_usage()["total"]


@pytest.mark.parametrize("kind", ["ngram", "15", "self", "draft", "model"])
@pytest.mark.parametrize("batch", [1, 32, 300])
def test_plan_knows_speculation(folder: Path, kind: str, batch: int) -> None:
    with llmcore.load(folder, "int8", threads=3, progress=False) as draft:
        speculative = {
            "ngram": "ngram",
            "15": 15,
            "self": llmcore.SpeculativeConfig("self", quantize="int4"),
            "draft": llmcore.SpeculativeConfig("draft", model=folder, quantize="ternary"),
            "model": draft,
        }[kind]
        options: dict[str, Any] = {"max_model_len": 80, "max_batch_size": batch, "speculative": speculative}
        planned = llmcore.plan(folder, threads=1, kv_dtype="int8", **options)
        options["max_memory"] = planned.total
        with llmcore.LLM(folder, threads=1, kv_dtype="int8", progress=False, **options) as llm:
            assert llm.stats()["kv_pages_total"] == batch * 80 // 16
            used = llm.model.memory_usage()["total"]
            if llm._draft is not None:
                used += llm._draft.core.weight_bytes + llm._draft.core.activation_bytes
        assert planned.total == used


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_model_len", value) for value in (float("nan"), 2.5, True, "x", 0, -1, 10**30, bits_hash.CONTEXT + 1)),
        *(("max_batch_size", value) for value in (2.5, None, False, 0, 1 + (1 << 16))),
        *(("kv_dtype", value) for value in (None, "int3", 4, np.array(["f16", "f32"]))),
        *(("threads", value) for value in (0, 1025, True, "x")),
        ("speculative", "x"),
    ],
)
def test_wrong_options_of_plan(folder: Path, name: str, value: object) -> None:
    with pytest.raises(llmcore.ArgumentError, match=name):
        llmcore.plan(folder, **{name: value})  # type: ignore[arg-type]


def test_a_config_that_promises_other_shapes_is_refused(folder: Path, tmp_path: Path) -> None:
    import json

    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text("utf-8"))
    save_json(tmp_path / "config.json", config | {"intermediate_size": bits_hash.MLP - 1})
    with pytest.raises(llmcore.CheckpointError, match="proj"):
        load(tmp_path)


def test_models_are_neither_pickled_nor_copied(model: llmcore.Model) -> None:
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            call(model)


def test_random_models_are_the_same_each_time(model: llmcore.Model) -> None:
    first, second = (random_model(model.spec, "int8", seed=3) for _ in range(2))
    assert np.array_equal(first.forward(prompt(5)), second.forward(prompt(5)))
    assert not np.array_equal(first.forward(prompt(5)), random_model(model.spec, "int8", seed=4).forward(prompt(5)))
