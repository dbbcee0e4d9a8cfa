"""Whole models with random weights: prefill and decoding; loading the built-in model; and the import."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import llmcore
from llmcore.checkpoint.config import Config
from llmcore.cli._shapes import SHAPES
from llmcore.model import random_model
from llmcore.models.registry import resolve

PROMPT = 256
ANSWER = 8
CASES = [
    ("qwen2.5-0.5b", "int8"),
    ("qwen2.5-0.5b", "int4"),
    ("qwen2.5-0.5b", "ternary"),
    ("llama-3.2-1b", "int4"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def llm(request: pytest.FixtureRequest) -> Iterator[llmcore.LLM]:
    shape, quantize = request.param
    config = Config(SHAPES[shape], file=shape)
    model = random_model(resolve(config).spec(config), quantize=quantize)
    with model, llmcore.LLM(model, max_model_len=PROMPT + ANSWER + 2, max_batch_size=8) as engine:
        yield engine


def prompts(llm: llmcore.LLM, count: int, length: int) -> list[list[int]]:
    """New ones each call, so that nothing can be answered from a cache."""
    return [random.choices(range(llm.model.spec.vocab_size), k=length) for _ in range(count)]


def generate(llm: llmcore.LLM, count: int, length: int, answer: int) -> None:
    params = llmcore.SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
    llm.generate(prompts(llm, count, length), params, progress=False)


def test_prefill(benchmark: Any, rates: Any, llm: llmcore.LLM) -> None:
    benchmark.group = f"prefill {PROMPT}"
    benchmark(generate, llm, 1, PROMPT, 1)
    if not benchmark.disabled:
        spec, seconds = llm.model.spec, benchmark.stats.stats.median
        width = spec.num_heads * spec.head_dim
        layer = 2 * width + 2 * spec.num_kv_heads * spec.head_dim + 3 * spec.intermediate_size
        operations = 2 * spec.hidden_size * (PROMPT * spec.num_layers * layer + spec.vocab_size)
        rates(int8=operations, tokens_per_s=PROMPT / seconds)


@pytest.mark.parametrize("batch", [1, 8])
def test_decode(benchmark: Any, rates: Any, llm: llmcore.LLM, batch: int) -> None:
    benchmark.group = f"decode, batch {batch}"
    benchmark(generate, llm, batch, 1, ANSWER)
    if not benchmark.disabled:
        tokens_per_s = batch * ANSWER / benchmark.stats.stats.median
        rates(nbytes=ANSWER * llm.model.bytes_per_token(), tokens_per_s=tokens_per_s)


def test_load(benchmark: Any) -> None:
    """The built-in model, from its files to the first logits."""

    def load() -> None:
        with llmcore.load("tiny", progress=False) as model:
            model.forward([1, 2, 3])

    benchmark.group = "load"
    benchmark(load)


@pytest.mark.parametrize("code", ["import numpy", "import llmcore"])
def test_import(benchmark: Any, code: str) -> None:
    """In a fresh interpreter, whose own start is in both."""
    benchmark.group = "import"
    benchmark(subprocess.run, [sys.executable, "-c", code], check=True)
