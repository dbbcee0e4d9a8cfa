"""Shapes of well-known models, as their config.json gives them: for benches on random weights, without a checkpoint."""

from __future__ import annotations

from typing import Any

_LLAMA3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **more,
    }


def _llama3(hidden: int, layers: int, heads: int, mlp: int, *, factor: float, **more: Any) -> dict[str, Any]:
    rope = {**_LLAMA3_ROPE, "factor": factor, "original_max_position_embeddings": 8192}
    return _llama(
        hidden,
        layers,
        heads,
        8,
        mlp,
        128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling=rope,
        **more,
    )


def _qwen(kind: str, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, **more: Any) -> dict[str, Any]:
    shape = _llama(hidden, layers, heads, kv_heads, mlp, 151936, rms_norm_eps=1e-6, rope_theta=1000000.0)
    names = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    return {
        **shape,
        "model_type": kind,
        "architectures": [names[kind]],
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        **more,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": _llama(2048, 22, 32, 4, 5632, 32000),
    "llama-2-7b": _llama(4096, 32, 32, 32, 11008, 32000, max_position_embeddings=4096),
    "llama-3.2-1b": _llama3(2048, 16, 32, 8192, factor=32.0, head_dim=64, tie_word_embeddings=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 8192, factor=32.0, head_dim=128, tie_word_embeddings=True),
    "llama-3.1-8b": _llama3(4096, 32, 32, 14336, factor=8.0),
    "mistral-7b": {
        **_llama(4096, 32, 32, 8, 14336, 32768, max_position_embeddings=32768, rope_theta=1000000.0),
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": None,
    },
    "qwen2.5-0.5b": _qwen("qwen2", 896, 24, 14, 2, 4864),
    "qwen2.5-1.5b": _qwen("qwen2", 1536, 28, 12, 2, 8960),
    "qwen3-0.6b": _qwen("qwen3", 1024, 28, 16, 8, 3072, head_dim=128, max_position_embeddings=40960),
    "qwen3-4b": _qwen("qwen3", 2560, 36, 32, 8, 9728, head_dim=128, max_position_embeddings=40960),
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "n_ctx": 1024,
        "vocab_size": 50257,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    },
}
"""Name -> the object of config.json. The weights of Llama-3.2-1B, for example, are 1,235,814,400 parameters."""
