"""Logits and greedy tokens against transformers (float32, eager attention) on random small models of all architectures.

Every parameter is drawn, biases and norms included, with a spread that keeps activations of order one: with the tiny
deviations of a fresh model attention is flat, and a wrong rotation or mask would hardly show.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import llmcore

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of ||ours - theirs|| / ||theirs||, both in float32
LENGTHS = (1, 17, 300)
NEW_TOKENS = 64
SIZES = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
}
ODD = {**SIZES, "hidden_size": 60, "intermediate_size": 75, "num_hidden_layers": 2}  # no multiples of 16
GPT2 = {"vocab_size": 257, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 400}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SIZES, "num_key_value_heads": 3}),
    "llama-odd-tied": ("Llama", {**ODD, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {**SIZES, "num_key_value_heads": 1, "rope_parameters": LINEAR}),
    "llama-3.1": ("Llama", {**SIZES, "head_dim": 80, "num_key_value_heads": 3, "rope_parameters": LLAMA3}),
    "llama-biases": ("Llama", {**ODD, "num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}),
    "mistral-window": ("Mistral", {**SIZES, "num_key_value_heads": 2, "sliding_window": 17}),
    "mistral-long-window": ("Mistral", {**SIZES, "head_dim": 80, "num_key_value_heads": 3, "sliding_window": 270}),
    "qwen2": ("Qwen2", {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SIZES, "num_key_value_heads": 3, "head_dim": 80}),
    "qwen3-bias-one-kv-head": (
        "Qwen3",
        {**ODD, "num_key_value_heads": 1, "head_dim": 18, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen2-mixed-windows": (
        "Qwen2",
        {**SIZES, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 19, "max_window_layers": 2},
    ),
    "gemma2": (
        "Gemma2",
        {**SIZES, "num_key_value_heads": 3, "head_dim": 18, "sliding_window": 17, "query_pre_attn_scalar": 24}
        | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    ),
    "gemma2-odd": (
        "Gemma2",
        {**ODD, "num_key_value_heads": 1, "head_dim": 80, "sliding_window": 270, "attention_bias": True}
        | {"layer_types": ["full_attention", "sliding_attention"], "tie_word_embeddings": False}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "phi3": ("Phi3", {**SIZES, "num_key_value_heads": 2}),
    "phi3-partial": (
        "Phi3",
        {**ODD, "num_attention_heads": 3, "num_key_value_heads": 3, "sliding_window": 30, "tie_word_embeddings": True}
        | {"partial_rotary_factor": 0.6},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2-odd-untied": ("GPT2", {**GPT2, "n_embd": 60, "n_head": 4, "n_inner": 50, "tie_word_embeddings": False}),
    "gpt2-exact-gelu": ("GPT2", {**GPT2, "activation_function": "gelu", "scale_attn_weights": False}),
}


class Pair(NamedTuple):
    folder: Path
    theirs: Any
    ours: llmcore.Model


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 257, length).tolist()


def draw_parameters(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, kind = name.rsplit(".", 2)[-2:]
            if "norm" in module or module.startswith("ln_"):
                parameter.copy_((kind == "weight") + 0.2 * torch.randn_like(parameter))
            elif kind == "bias":
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                inputs = parameter.shape[0] if module.startswith("c_") else parameter.shape[1]
                parameter.copy_(torch.randn_like(parameter) * inputs**-0.5)


def make(case: str) -> Any:
    family, settings = CASES[case]
    config = getattr(transformers, family + "Config")(
        **settings, bos_token_id=None, eos_token_id=None, pad_token_id=None, attn_implementation="eager"
    )
    model = getattr(transformers, family + ("LMHeadModel" if family == "GPT2" else "ForCausalLM"))(config).eval()
    draw_parameters(model)
    return model


def their_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs.astype(np.float64)))


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """The models are far too small to share out, and two thread pools would fight over the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model = make(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    with llmcore.load(folder, threads=1, progress=False) as ours:
        yield Pair(folder, model, ours)


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_equal_within_float32_rounding(pair: Pair, length: int) -> None:
    ids = prompt(length)
    ours = pair.ours.forward(ids)
    assert isinstance(ours, np.ndarray)
    assert ours.shape == (length, 257)
    assert relative_error(ours, their_logits(pair.theirs, ids)) <= TOLERANCE


def test_greedy_tokens_are_the_same(pair: Pair) -> None:
    ids = prompt(17)
    tensor = torch.tensor([ids])
    theirs = pair.theirs.generate(
        tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=NEW_TOKENS, do_sample=False
    )[0, len(ids) :].tolist()
    params = llmcore.SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    with llmcore.LLM(pair.ours, max_batch_size=2) as llm:
        (answer,) = llm.generate(ids, params)
    assert answer.token_ids == theirs
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["llama-3.1", "qwen3", "gpt2"])
def test_half_precision_checkpoints_keep_their_exact_weights(case: str, dtype: str, tmp_path: Path) -> None:
    # The weights are used as they are stored and everything else is float32, so the error is that of float32.
    make(case).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = prompt(40)
    with llmcore.load(tmp_path, threads=1, progress=False) as model:
        assert model.kv_dtype == "f16"
        ours = model.forward(ids, kv_dtype="f32")
        cached = model.forward(ids)
    assert isinstance(ours, np.ndarray)
    assert isinstance(cached, np.ndarray)
    theirs = their_logits(reference, ids)
    assert relative_error(ours, theirs) <= TOLERANCE
    assert TOLERANCE < relative_error(cached, theirs) <= 2e-3  # keys and values rounded to f16: 2^-11 each
