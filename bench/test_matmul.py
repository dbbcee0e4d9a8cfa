"""y = x W^T over packed weights: a row (decode, bound by reading W), a small batch, a prefill (bound by arithmetic)."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest

from llmcore import ops
from shapes import MATRICES

FORMATS: dict[str, tuple[str, int | None]] = {
    "int8": ("int8", None),
    "int4": ("int4", None),
    "int4-g32": ("int4", 32),
    "ternary": ("ternary", None),
    "ternary_dense": ("ternary_dense", None),
    "f16": ("f16", None),
}
COLD_BYTES = 96 << 20
"""More than the caches hold, so that a row finds its weights in main memory as a decoder does."""


@cache
def weight(N: int, K: int) -> Any:
    return np.random.default_rng(0).standard_normal((N, K), np.float32) * np.float32(0.02)


def pack(name: str, N: int, K: int, *, cold: bool) -> list[ops.QuantizedTensor]:
    """The matrix, as often as it takes to be out of the caches."""
    format, group_size = FORMATS[name]
    first = ops.quantize(weight(N, K), format, group_size=group_size)
    copies = min(8, COLD_BYTES // first.nbytes) if cold else 0
    return [first, *(ops.quantize(weight(N, K), format, group_size=group_size) for _ in range(copies))]


@pytest.mark.parametrize("M", [1, 16, 512])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", MATRICES)
def test_matmul(benchmark: Any, rates: Any, shape: str, name: str, M: int) -> None:
    N, K = MATRICES[shape]
    benchmark.group = f"matmul {shape}, M = {M}"
    matrices = pack(name, N, K, cold=M < 512)
    x = np.random.default_rng(1).standard_normal((M, K), np.float32)
    turn = itertools.cycle(matrices)
    benchmark(lambda: ops.matmul(x, next(turn)))
    operations = 2 * M * N * K
    arithmetic = {"float32": operations} if name == "f16" else {"int8": operations}
    nbytes = matrices[0].nbytes + 4 * M * (N + K)
    rates(nbytes=nbytes, **arithmetic, M=M, N=N, K=K, bits_per_weight=matrices[0].bits_per_weight)


@pytest.mark.parametrize("name", FORMATS)
def test_quantize(benchmark: Any, rates: Any, name: str) -> None:
    """Packing float32 weights, as at load."""
    N, K = MATRICES["llama-3.2-1b down"]
    format, group_size = FORMATS[name]
    benchmark.group = "quantize"
    benchmark(ops.quantize, weight(N, K), format, group_size=group_size)
    rates(nbytes=4 * N * K, N=N, K=K)
