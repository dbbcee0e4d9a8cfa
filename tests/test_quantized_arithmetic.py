"""Quantised models against a float64 emulation of the same arithmetic, and their distance from the unquantised one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import bits_hash
import llmcore
import quantized_reference as reference
from bits_hash import prompt

RECIPES = {
    "f32": None,
    "int8": llmcore.QuantConfig(format="int8"),
    "int8-32": llmcore.QuantConfig(format="int8", group_size=32),
    "int4-row": llmcore.QuantConfig(format="int4", group_size=0),
    "int4-128": llmcore.QuantConfig(format="int4", group_size=128),
    "int4-64": llmcore.QuantConfig(format="int4", group_size=64),
    "int4-32": llmcore.QuantConfig(format="int4", group_size=32),
    "int8-zero": llmcore.QuantConfig(format="int8", symmetric=False),
    "int4-zero": llmcore.QuantConfig(format="int4", group_size=64, symmetric=False),
    "int4-double": llmcore.QuantConfig(format="int4", group_size=32, double_quant=True),
    "int4-minima": llmcore.QuantConfig(format="int4", group_size=32, symmetric=False, double_quant=True),
    "nf4-double": llmcore.QuantConfig(format="nf4", double_quant=True),
    "int6": llmcore.QuantConfig(format="int6"),
    "int5-minima": llmcore.QuantConfig(format="int5", group_size=32, symmetric=False, double_quant=True),
    "int3-zero": llmcore.QuantConfig(format="int3", group_size=16, symmetric=False),
    "int2": llmcore.QuantConfig(format="int2", group_size=16),
    "iq4": llmcore.QuantConfig(format="iq4"),
    "fp4": llmcore.QuantConfig(format="fp4"),
    "ternary": llmcore.QuantConfig(format="ternary"),
    "nf4": llmcore.QuantConfig(format="nf4"),
    "ternary_dense": llmcore.QuantConfig(format="ternary_dense"),
    "ternary-64": llmcore.QuantConfig(format="ternary", group_size=64),
}
# ||logits - unquantised|| / ||unquantised|| of this model of random weights; measured 0.02, 0.18, 0.73.
ERROR_AT_MOST = {
    "f32": 0.0,
    "int8": 0.05,
    "int6": 0.1,
    "int5": 0.15,
    "int4": 0.3,
    "nf4": 0.3,
    "iq4": 0.3,
    "fp4": 0.3,
    "int3": 0.6,
    "int2": 1.0,
    "ternary": 1.0,
    "ternary_dense": 1.0,
}
IDS = prompt(48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized")
    bits_hash.write_model(path)
    return path


@dataclass
class Case:
    recipe: llmcore.QuantConfig | None
    model: llmcore.Model
    tensors: dict[str, llmcore.ops.QuantizedTensor | np.ndarray]

    def stacked(self, layer: int, *modules: str) -> list[llmcore.ops.QuantizedTensor]:
        return [self.tensors[f"model.layers.{layer}.{module}.weight"] for module in modules]

    def emulation(self, seen: Mapping[str, np.ndarray] | None = None) -> reference.Decoder:
        spec = self.model.spec
        return reference.Decoder(
            tensors=self.tensors,
            layers=spec.num_layers,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            inv_freq=spec.rope_inv_freq,
            eps=spec.norm_eps,
            seen=seen,
        )


@pytest.fixture(scope="module", params=RECIPES)
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    recipe = RECIPES[request.param]
    model = llmcore.load(folder, recipe, threads=1, progress=False)
    tensors: dict[str, llmcore.ops.QuantizedTensor | np.ndarray] = dict(load_file(folder / "model.safetensors"))
    for name, value in tensors.items():
        if value.ndim == 1:
            continue
        head = name in ("model.embed_tokens.weight", "lm_head.weight")
        if recipe is None:
            tensors[name] = llmcore.ops.quantize(value, "f32")
        elif head:
            tensors[name] = llmcore.ops.quantize(value, "int8" if recipe.format == "int8" else "int6")
        else:
            tensors[name] = llmcore.ops.quantize(
                value,
                recipe.format,
                group_size=recipe.group_size,
                symmetric=recipe.symmetric,
                double_quant=recipe.double_quant,
            )
    return Case(recipe, model, tensors)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b))


def test_every_product_equals_its_emulation(case: Case) -> None:
    """From the model's own inputs, so that no rounding before a product can flip a code: within the derived bound."""
    with case.model.capture("*") as seen:
        case.model.forward(IDS, kv_dtype="f32")
    for layer in range(bits_hash.LAYERS):
        at = f"layers.{layer}."
        before = seen["embeddings"] if layer == 0 else seen[f"layers.{layer - 1}.output"]
        qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        biases = np.concatenate([case.tensors[f"model.layers.{layer}.{module}.bias"] for module in qkv])
        out_bias = case.tensors[f"model.layers.{layer}.self_attn.o_proj.bias"]
        for got, x, weights, bias, residual in (
            ("qkv", "attention_norm", case.stacked(layer, *qkv), biases, None),
            ("attention_residual", "attention", case.stacked(layer, "self_attn.o_proj"), out_bias, before),
            ("gate_up", "mlp_norm", case.stacked(layer, "mlp.gate_proj", "mlp.up_proj"), 0.0, None),
            ("output", "activation", case.stacked(layer, "mlp.down_proj"), 0.0, seen[at + "attention_residual"]),
        ):
            products, bounds = zip(*(reference.matmul(seen[at + x], w) for w in weights), strict=True)
            expected = np.concatenate(products, 1) + bias + (0.0 if residual is None else residual)
            bound = np.concatenate(bounds, 1) + 4 * reference.ROUNDING * (np.abs(expected) + np.abs(bias))
            if residual is not None:
                bound += 2 * reference.ROUNDING * np.abs(residual)
            assert (np.abs(seen[at + got] - expected) <= bound).all(), (layer, got)
    expected, bound = reference.matmul(seen["final_norm"], case.tensors["lm_head.weight"])
    assert (np.abs(seen["logits"] - expected) <= bound).all()


def test_every_step_equals_its_emulation(case: Case) -> None:
    with case.model.capture("*") as seen:
        case.model.forward(IDS, kv_dtype="f32")
    emulation = case.emulation(seen)
    emulation.logits(IDS)
    assert set(emulation.errors) == set(seen) - {"token_embeddings"}
    assert max(emulation.errors.values()) <= 1e-6


def test_logits_equal_a_float64_emulation(case: Case) -> None:
    """From the ids to the logits. Where an activation lies on the edge between two codes, the last bit of a float32
    decides which it becomes, and what follows differs by a step: so short prompts, and not quite all of them."""
    emulation = case.emulation()
    errors = []
    for seed in range(12):
        ids = np.random.default_rng(seed).integers(0, bits_hash.VOCAB, 4).tolist()
        errors.append(relative_error(case.model.forward(ids, kv_dtype="f32"), emulation.logits(ids)))
    assert sum(error <= 1e-6 for error in errors) >= 9
    assert max(errors) <= (1e-6 if case.recipe is None else 0.03)


def test_error_against_the_unquantised_model_is_bounded(case: Case, folder: Path) -> None:
    with llmcore.load(folder, threads=1, progress=False) as plain:
        error = relative_error(case.model.forward(IDS), np.asarray(plain.forward(IDS), np.float64))
    kind = "f32" if case.recipe is None else case.recipe.format
    assert error <= ERROR_AT_MOST[kind]
    assert (error == 0) == (kind == "f32")


def test_smaller_groups_are_better(folder: Path) -> None:
    with llmcore.load(folder, threads=1, progress=False) as plain:
        truth = np.asarray(plain.forward(IDS), np.float64)
    errors = []
    for group in (128, 32):
        recipe = llmcore.QuantConfig(format="int4", group_size=group)
        with llmcore.load(folder, recipe, threads=1, progress=False) as model:
            errors.append(relative_error(model.forward(IDS), truth))
    assert errors[1] < errors[0]
