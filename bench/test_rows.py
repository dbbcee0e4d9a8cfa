"""Operations on rows, on one thread: norms, activations, rotation, softmax, quantising of activations, sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmcore import _core, ops
from shapes import ATTENTIONS, HIDDEN, VOCABULARY

ROWS = 64


@pytest.fixture(params=HIDDEN)
def x(request: pytest.FixtureRequest) -> Any:
    """[64, hidden] float32."""
    return np.random.default_rng(0).standard_normal((ROWS, HIDDEN[request.param]), np.float32)


def test_rms_norm(benchmark: Any, rates: Any, x: Any) -> None:
    benchmark.group = "rows"
    benchmark(ops.rms_norm, x, np.ones(x.shape[1], np.float32))
    rates(nbytes=2 * x.nbytes)


def test_layer_norm(benchmark: Any, rates: Any, x: Any) -> None:
    benchmark.group = "rows"
    one = np.ones(x.shape[1], np.float32)
    benchmark(ops.layer_norm, x, one, one)
    rates(nbytes=2 * x.nbytes)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_activation(benchmark: Any, rates: Any, x: Any, name: str) -> None:
    benchmark.group = "rows"
    benchmark(ops.activation, x, name)
    rates(nbytes=2 * x.nbytes)


def test_softmax(benchmark: Any, rates: Any, x: Any) -> None:
    benchmark.group = "rows"
    benchmark(ops.softmax, x)
    rates(nbytes=2 * x.nbytes)


def test_quantize_activations(benchmark: Any, rates: Any, x: Any) -> None:
    benchmark.group = "rows"
    benchmark(_core.quantize_activations, x, 128)
    rates(nbytes=x.nbytes + x.size)


@pytest.mark.parametrize("shape", ATTENTIONS)
def test_rope(benchmark: Any, rates: Any, shape: str) -> None:
    """With the tables of sines and cosines, which a step makes once for all layers."""
    a = ATTENTIONS[shape]
    x = np.random.default_rng(0).standard_normal((ROWS, a.heads, a.head_dim), np.float32)
    frequencies = [10000.0 ** (-i / a.head_dim) for i in range(0, a.head_dim, 2)]
    benchmark.group = "rows"
    benchmark(ops.rope, x, range(ROWS), frequencies)
    rates(nbytes=2 * x.nbytes)


SAMPLING = {
    "greedy": {"temperature": 0.0},
    "all": {},
    "top_k": {"top_k": 40, "top_p": 0.95},
    "top_p": {"top_p": 0.95},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sample(benchmark: Any, rates: Any, name: str) -> None:
    """One token of Llama 3's vocabulary, log-probability included."""
    logits = np.random.default_rng(0).standard_normal(VOCABULARY, np.float32) * np.float32(4)
    benchmark.group = "sample"
    benchmark(ops.sample, logits, **SAMPLING[name])
    rates(nbytes=logits.nbytes)
