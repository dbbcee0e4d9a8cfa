"""A token from 128,256 logits: the whole call of ops.sample, with the log-probability of what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmcore import ops

VOCAB = 128_256
SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.95},
    "min_p": {"min_p": 0.05},
    "top_n_sigma": {"top_n_sigma": 1.0},
}


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sample(benchmark: Any, name: str, spread: float) -> None:
    """Normal logits of this standard deviation: 1 is flatter than a model's, so that top-p keeps most of the ids."""
    logits = (np.random.default_rng(0).standard_normal(VOCAB) * spread).astype(np.float32)
    benchmark.group = f"sample, logits of deviation {spread:g}"
    benchmark(ops.sample, logits, **SAMPLERS[name], seed=1)
