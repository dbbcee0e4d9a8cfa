"""The kernels by themselves, for tests, benches and research. Arrays are float32 unless said otherwise.

A result depends on neither the instruction set nor the number of threads, and a row of it on no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.errors import ArgumentError, escape
from llmcore.quantization import FLOAT_FORMATS, INTEGER_FORMATS, QuantConfig

FloatArray = npt.NDArray[np.float32]


class QuantizedTensor:
    """A packed weight matrix [N, K]. Made by `quantize`."""

    def __init__(self, matrix: _core.Matrix) -> None:
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        return self._matrix.shape

    @property
    def format(self) -> str:
        """The format's name."""
        return self._matrix.format

    @property
    def group_size(self) -> int:
        """Elements of a row that share a scale; 0: the whole row."""
        return self._matrix.group_size

    @property
    def nbytes(self) -> int:
        """Bytes held, padding included."""
        return self._matrix.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits held for each of the N * K weights, scales and padding included."""
        rows, columns = self.shape
        return 8 * self.nbytes / (rows * columns)

    def dequantize(self) -> FloatArray:
        """The exact weights that the codes and scales stand for: float32 [N, K]."""
        return self._matrix.dequantize()

    def codes(self) -> tuple[npt.NDArray[np.int8], FloatArray]:
        """Signed codes int8 [N, K] and scales float32 [N, groups]; weight = scale * code."""
        return self._matrix.codes()

    def __repr__(self) -> str:
        return f"<QuantizedTensor {self.format} {list(self.shape)}, {self.bits_per_weight:.2f} bits per weight>"

    def __reduce__(self) -> Any:
        raise TypeError("a QuantizedTensor holds native memory and can't be pickled; keep codes() and scales instead")


def quantize(weight: npt.ArrayLike, format: str, *, group_size: int | None = None) -> QuantizedTensor:
    """Packs a weight matrix.

    weight: float [N, K]. format: "int8" (per row), "int4" (groups of 128), "ternary" (per row), "f32", "bf16", "f16";
    group_size: 0 for one scale per row, 32, 64 or 128, None for the format's default. Raises ArgumentError.
    """
    values = np.ascontiguousarray(weight, np.float32)
    if values.ndim != 2:
        raise ArgumentError(f"weight must be [N, K], got {values.ndim} dimensions")
    if format in FLOAT_FORMATS:
        group = group_size or 0
    elif format in INTEGER_FORMATS:
        group = QuantConfig(format=format, group_size=group_size).own().group_size
    else:
        known = ", ".join(INTEGER_FORMATS + FLOAT_FORMATS)
        raise ArgumentError(f"format must be one of {known}, got {escape(format)}")
    matrix = _core.Matrix(format, values.shape[0], values.shape[1], group)
    matrix.set_rows(0, values)
    return QuantizedTensor(matrix)


def matmul(x: npt.ArrayLike, w: QuantizedTensor, bias: npt.ArrayLike | None = None) -> FloatArray:
    """x @ w.T (+ bias). x: [M, K] -> [M, N].

    For integer formats each row of x is quantised to int8 with one scale per group of k (the weight's group, or 128);
    products are summed exactly in int32 within a group, groups by float32 fma in ascending k. Raises ArgumentError.
    """
    return _core.matmul(_float(x), w._matrix, None if bias is None else _float(bias))


def rms_norm(x: npt.ArrayLike, weight: npt.ArrayLike, eps: float = 1e-5) -> FloatArray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. x: [..., n], weight: [n]."""
    return _core.rms_norm(_float(x), _float(weight), eps)


def layer_norm(x: npt.ArrayLike, weight: npt.ArrayLike, bias: npt.ArrayLike, eps: float = 1e-5) -> FloatArray:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis. x: [..., n]."""
    return _core.layer_norm(_float(x), _float(weight), _float(bias), eps)


def softmax(x: npt.ArrayLike) -> FloatArray:
    """e^(x - max) / sum over the last axis."""
    return _core.softmax(_float(x))


def activation(x: npt.ArrayLike, name: str) -> FloatArray:
    """silu, gelu, gelu_tanh, relu or relu2 of every element."""
    return _core.activation(_float(x), name)


def rope(x: npt.ArrayLike, positions: Sequence[int], inv_freq: Sequence[float]) -> FloatArray:
    """Rotary position embedding of the half-split kind (Su et al. 2021; pairing as in GPT-NeoX).

    x: [T, heads, head_dim]; positions: [T]; inv_freq: [n], n <= head_dim / 2: elements i and i + n turn together.
    """
    return _core.rope(_float(x), np.asarray(positions, np.int32), [float(f) for f in inv_freq])


def attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    *,
    scale: float | None = None,
    kv_dtype: str = "f32",
) -> FloatArray:
    """Causal attention through the paged kernels.

    q: [T, heads, head_dim]; k, v: [S, kv_heads, head_dim], S >= T: the queries are the last T positions. heads must be
    a multiple of kv_heads. window: a query sees that many newest keys, its own included. scale: default
    1 / sqrt(head_dim). Returns [T, heads, head_dim]. Raises ArgumentError, also for causal=False and softcap, which the
    kernels don't have.
    """
    if not causal or softcap is not None:
        raise ArgumentError("attention: only causal=True without softcap is available")
    if kv_dtype not in FLOAT_FORMATS:
        raise ArgumentError(f"kv_dtype must be one of {', '.join(FLOAT_FORMATS)}, got {escape(kv_dtype)}")
    queries = _float(q)
    if scale is None:
        scale = queries.shape[-1] ** -0.5
    return _core.attention(queries, _float(k), _float(v), scale, window or 0, kv_dtype)


def sample(
    logits: npt.ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    position: int = 0,
    sequence: int = 0,
) -> tuple[int, float]:
    """Draws a token. logits: [vocab]. Returns (id, log-probability under softmax(logits)).

    The random number is Philox4x32-10 keyed by `seed` with counter (position, sequence). Raises NumericError.
    """
    return _core.sample(_float(logits), temperature, top_k, top_p, min_p, seed, position, sequence)


def _float(x: npt.ArrayLike) -> FloatArray:
    return np.ascontiguousarray(x, np.float32)
