"""Attention over paged keys and values: prefill; decoding by the kernel alone, and in a model that is all attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import llmcore
from llmcore import ops
from llmcore.checkpoint.config import Config
from llmcore.cli._shapes import SHAPES
from llmcore.model import kv_bytes_per_page, random_model
from llmcore.models.registry import resolve
from shapes import ATTENTIONS

DECODE_LAYERS = 8


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int12", "int8"])
@pytest.mark.parametrize("tokens", [128, 512, 2048])
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


@pytest.mark.parametrize("kv_dtype", ["f16", "int12", "int8", "int4"])
@pytest.mark.parametrize("depth", [16384])
def test_decode_kernel(benchmark: Any, rates: Any, depth: int, kv_dtype: str) -> None:
    """A token after `depth` others in one layer after another, more of them than caches hold."""
    a = ATTENTIONS["llama-3.2-1b"]
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, depth, a.kv_heads, a.head_dim), np.float32)
    q = rng.standard_normal((1, a.heads, a.head_dim), np.float32)
    table = range(depth // 16)
    layers = [ops.KvPages(len(table), a.kv_heads, a.head_dim, kv_dtype) for _ in range(4)]
    for pages in layers:
        pages.write(k, v, table)

    def step() -> None:
        for pages in layers:
            ops.paged_attention(q, pages, [table], [depth])

    benchmark.group = f"attention decode kernel {depth}"
    benchmark.pedantic(step, rounds=15, warmup_rounds=1)
    rates(nbytes=sum(pages.nbytes for pages in layers), depth=depth, kv_dtype=kv_dtype)


@pytest.mark.parametrize(("depth", "kv_dtype"), [(32, "f16"), (2048, "f16"), (2048, "int12"), (2048, "int8")])
def test_decode(benchmark: Any, rates: Any, depth: int, kv_dtype: str) -> None:
    """A token after `depth` others, in layers with Llama-3.2-1B's heads and next to nothing else."""
    config = Config(SHAPES["llama-3.2-1b"], file="llama-3.2-1b")
    spec = resolve(config).spec(config)
    spec = dataclasses.replace(spec, num_layers=DECODE_LAYERS, intermediate_size=64, vocab_size=256)
    benchmark.group = "attention decode"
    steps = 24
    params = llmcore.SamplingParams(temperature=0, max_tokens=steps + 2, ignore_eos=True)
    model = random_model(spec, quantize="int8")
    with model, llmcore.LLM(model, max_model_len=depth + steps + 2, max_batch_size=1, kv_dtype=kv_dtype) as llm:
        stream = llm.stream([7] * depth, params)
        next(stream)  # the prefill
        benchmark.pedantic(next, args=(stream,), rounds=steps)
        cache_bytes = kv_bytes_per_page(spec, kv_dtype) * depth // 16
        rates(nbytes=cache_bytes + model.bytes_per_token(), depth=depth, kv_dtype=kv_dtype, cache_bytes=cache_bytes)
        stream.close()
