"""The architectures against transformers: the numbers of its configs, exactly the tensors of its models, its RoPE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcore.checkpoint.readers import open_checkpoint
from llmcore.models import blocks
from llmcore.models.binding import bind

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
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
    "llama-tied": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {**SIZES, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("Llama", {**SIZES, "head_dim": 80, "num_key_value_heads": 1, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**SIZES, "num_key_value_heads": 2, "sliding_window": 17}),
    "mistral-full": ("Mistral", {**SIZES, "num_key_value_heads": 2, "sliding_window": None, "hidden_act": "gelu"}),
    "qwen2": ("Qwen2", {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {**SIZES, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
    ),
    "qwen3": ("Qwen3", {**SIZES, "num_key_value_heads": 3, "head_dim": 32}),
    "qwen3-bias": ("Qwen3", {**SIZES, "num_key_value_heads": 3, "head_dim": 16, "attention_bias": True}),
    "qwen2-mixed-windows": (
        "Qwen2",
        {**SIZES, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "gemma2": ("Gemma2", {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 9}),
    "phi3": ("Phi3", {**SIZES, "num_key_value_heads": 3, "sliding_window": 9}),
    "gpt2": ("GPT2", {"vocab_size": 257, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 40}),
    "gpt2-untied": (
        "GPT2",
        {
            "vocab_size": 257,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 6,
            "n_inner": 50,
            "tie_word_embeddings": False,
            "activation_function": "relu",
        },
    ),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder that transformers saves of a random small model, and the model."""
    family, settings = CASES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, family + "Config")(**settings, **SPECIAL)
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    model = getattr(transformers, family + head)(config)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, model


def test_spec_equals_the_config(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    config = model.config
    with open_checkpoint(folder) as checkpoint:
        spec = bind(checkpoint).spec
    gpt2 = config.model_type == "gpt2"
    assert spec.model_type == config.model_type
    assert spec.hidden_size == config.hidden_size
    assert spec.num_layers == config.num_hidden_layers
    assert spec.num_heads == config.num_attention_heads
    assert spec.num_kv_heads == getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert spec.head_dim == getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    assert spec.intermediate_size == ((config.n_inner or 4 * config.n_embd) if gpt2 else config.intermediate_size)
    assert spec.vocab_size == config.vocab_size
    assert spec.max_position_embeddings == config.max_position_embeddings
    assert spec.norm_eps == (config.layer_norm_epsilon if gpt2 else config.rms_norm_eps)
    assert spec.tie_word_embeddings == config.tie_word_embeddings
    window = getattr(config, "sliding_window", None)
    if spec.layer_windows is None:
        assert spec.sliding_window == window
    else:
        sliding = [each == "sliding_attention" for each in config.layer_types]
        assert spec.sliding_window is None
        assert spec.layer_windows == tuple(window if slides else None for slides in sliding)
    assert (spec.bos_id, spec.eos_ids, spec.pad_id) == (1, (2, 3), 0)


def test_slots_hold_exactly_the_weights(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    with open_checkpoint(folder) as checkpoint:
        binding = bind(checkpoint)
        state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
        if binding.spec.tie_word_embeddings:
            del state["lm_head.weight"]
        names = [part.name for slot in binding.slots.values() for part in slot.parts]
        assert sorted(names) == sorted(state)
        for slot in binding.slots.values():
            for part in slot.parts:
                assert np.array_equal(part.read(), state[part.name])


def test_stacked_parts_come_in_order(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    with open_checkpoint(folder) as checkpoint:
        binding = bind(checkpoint)
    for slot in binding.slots.values():
        if len(slot.parts) == 1:
            continue
        if slot.slot.name.endswith(".qkv") and not slot.slot.transpose:
            assert [part.name.split(".")[-2] for part in slot.parts] == ["q_proj", "k_proj", "v_proj"]
        if slot.slot.name.endswith(".gate_up"):
            assert [part.name.split(".")[-2] for part in slot.parts] == ["gate_proj", "up_proj"]


def test_rope_equals_transformers(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    with open_checkpoint(folder) as checkpoint:
        spec = bind(checkpoint).spec
    if spec.rope_inv_freq is None:
        assert spec.model_type == "gpt2"
        return
    expected = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_array_max_ulp(np.array(spec.rope_inv_freq, np.float32), expected, maxulp=1)
    assert all(np.float32(value) == value for value in spec.rope_inv_freq)


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6, 5e6, 12345.678])
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
def test_default_frequencies_within_one_ulp(theta: float, dim: int) -> None:
    expected = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    ours = np.array(blocks.inverse_frequencies(theta, dim), np.float32)
    np.testing.assert_array_max_ulp(ours, expected.numpy(), maxulp=1)


@pytest.mark.parametrize(("kind", "factor"), [("linear", 4.0), ("llama3", 8.0), ("llama3", 32.0)])
def test_scaled_frequencies_within_one_ulp(kind: str, factor: float) -> None:
    from llmcore.checkpoint.config import Config

    rope: dict[str, object] = {"rope_type": kind, "rope_theta": 500000.0, "factor": factor}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(hidden_size=2048, num_attention_heads=32, rope_parameters=dict(rope))
    expected, attention_factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    ours = np.array(blocks.rope(Config({"rope_parameters": rope}), head_dim=64), np.float32)
    np.testing.assert_array_max_ulp(ours, expected.numpy(), maxulp=1)
    assert attention_factor == 1.0
