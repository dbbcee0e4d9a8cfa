"""Text to ids and back, with the built-in model's tokenizer, and training one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import llmcore

TEXT_TOKENS = 200_000


@pytest.fixture(scope="module")
def tokenizer() -> llmcore.Tokenizer:
    with llmcore.load("tiny") as model:
        return model.require_tokenizer()


@pytest.fixture(scope="module")
def text(tokenizer: llmcore.Tokenizer) -> str:
    """Pieces of the vocabulary in Zipf's proportions: no file is needed, and words repeat as in a real text."""
    ranks = np.random.default_rng(0).zipf(1.3, TEXT_TOKENS) % (tokenizer.vocab_size - 300) + 280
    return tokenizer.decode(ranks.tolist(), skip_special_tokens=True)


def test_encode(benchmark: Any, rates: Any, tokenizer: llmcore.Tokenizer, text: str) -> None:
    benchmark.group = "tokenizer"
    ids = benchmark(tokenizer.encode_to_numpy, text)
    if not benchmark.disabled:
        rates(nbytes=len(text.encode()), tokens_per_s=len(ids) / benchmark.stats.stats.median)


def test_encode_batch(benchmark: Any, rates: Any, tokenizer: llmcore.Tokenizer, text: str) -> None:
    parts = [text[at : at + 4096] for at in range(0, len(text), 4096)]
    benchmark.group = "tokenizer"
    lists = benchmark(tokenizer.encode_batch, parts)
    if not benchmark.disabled:
        rates(nbytes=len(text.encode()), tokens_per_s=sum(map(len, lists)) / benchmark.stats.stats.median)


def test_decode(benchmark: Any, rates: Any, tokenizer: llmcore.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    benchmark.group = "tokenizer"
    benchmark(tokenizer.decode, ids)
    if not benchmark.disabled:
        rates(nbytes=len(text.encode()), tokens_per_s=len(ids) / benchmark.stats.stats.median)


def test_train(benchmark: Any, rates: Any, text: str) -> None:
    benchmark.group = "tokenizer training"
    options = {"vocab_size": 2048}
    benchmark.pedantic(llmcore.Tokenizer.train, args=([text],), kwargs=options, rounds=3, warmup_rounds=1)
    rates(nbytes=len(text.encode()))
