"""Attention over paged keys and values: a prefill, and decoding at a depth through a model that is all attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import llmcore
from llmcore import ops
from llmcore.checkpoint.config import Config
from llmcore.cli._shapes import SHAPES
from llmcore.model import random_model
from llmcore.models.registry import resolve
from shapes import ATTENTIONS

DECODE_LAYERS = 8


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("tokens", [128, 512])
@pytest.mark.parametrize("shape", ATTENTIONS)
def test_prefill(benchmark: Any, rates: Any, shape: str, tokens: int, kv_dtype: str) -> None:
    """Causal attention of a prompt to itself, with the storing of its keys and values."""
    a = ATTENTIONS[shape]
    rng = np.random.default_rng(0)
    q = rng.standard_normal((tokens, a.heads, a.head_dim), np.float32)
    k, v = rng.standard_normal((2, tokens, a.kv_heads, a.head_dim), np.float32)
    benchmark.group = f"attention prefill {tokens}"
    benchmark(ops.attention, q, k, v, kv_dtype=kv_dtype)
    # Two products of head_dim for each visible pair.
    rates(float32=4 * a.heads * a.head_dim * tokens * (tokens + 1) / 2, tokens=tokens, kv_dtype=kv_dtype)


@pytest.mark.parametrize("depth", [32, 2048])
def test_decode(benchmark: Any, rates: Any, depth: int) -> None:
    """A token after `depth` others, in layers with Llama-3.2-1B's heads and next to nothing else."""
    config = Config(SHAPES["llama-3.2-1b"], file="llama-3.2-1b")
    spec = resolve(config).spec(config)
    spec = dataclasses.replace(spec, num_layers=DECODE_LAYERS, intermediate_size=64, vocab_size=256)
    benchmark.group = "attention decode"
    steps = 24
    params = llmcore.SamplingParams(temperature=0, max_tokens=steps + 2, ignore_eos=True)
    model = random_model(spec, quantize="int8")
    with model, llmcore.LLM(model, max_model_len=depth + steps + 2, max_batch_size=1) as llm:
        stream = llm.stream([7] * depth, params)
        next(stream)  # the prefill
        benchmark.pedantic(next, args=(stream,), rounds=steps)
        cache_bytes = DECODE_LAYERS * depth * 2 * spec.num_kv_heads * spec.head_dim * 2
        rates(nbytes=cache_bytes + model.bytes_per_token(), depth=depth, cache_bytes=cache_bytes)
        stream.close()
