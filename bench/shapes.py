"""Shapes that the benches share: matrices [N, K] and attention of real models, and an odd one for the tails."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """Heads of one layer."""

    heads: int
    kv_heads: int
    head_dim: int


MATRICES = {
    "llama-3.2-1b gate_up": (16384, 2048),
    "llama-3.2-1b down": (2048, 8192),
    "qwen2.5-0.5b gate_up": (9728, 896),
    "odd": (1003, 777),
}
ATTENTIONS = {
    "llama-3.2-1b": Attention(32, 8, 64),
    "qwen2.5-0.5b": Attention(14, 2, 64),
    "odd": Attention(9, 3, 80),
}
HIDDEN = {"llama-3.2-1b": 2048, "qwen2.5-0.5b": 896, "odd": 777}
VOCABULARY = 128256
"""Of Llama 3."""
