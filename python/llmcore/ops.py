"""The kernels by themselves, for tests, benches and research. Arrays are float32 unless said otherwise.

A result depends on neither the instruction set nor the number of threads, and a row of it on no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.errors import ArgumentError, escape, shown
from llmcore.quantization import FLOAT_FORMATS, INTEGER_FORMATS, MatrixFormat, QuantConfig
from llmcore.request_params import SAMPLER_NUMBERS

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
        """Signed codes int8 [N, K] and scales float32 [N, groups]; weight = scale * (code - zero point) - minimum."""
        return self._matrix.codes()[:2]

    def zero_points(self) -> FloatArray:
        """float32 integers [N, groups]; 0 in symmetric formats."""
        return self._matrix.codes()[2]

    def minima(self) -> FloatArray:
        """float32 [N, groups]; 0 but for double quantisation that isn't symmetric."""
        return self._matrix.codes()[3]

    def __repr__(self) -> str:
        return f"<QuantizedTensor {self.format} {list(self.shape)}, {self.bits_per_weight:.2f} bits per weight>"

    def __reduce__(self) -> Any:
        raise TypeError("a QuantizedTensor holds native memory and can't be pickled; keep codes() and scales instead")


def quantize(
    weight: npt.ArrayLike,
    format: str,
    *,
    group_size: int | None = None,
    scale: str = "max",
    symmetric: bool = True,
    double_quant: bool = False,
) -> QuantizedTensor:
    """Packs a weight matrix.

    weight: float [N, K]. format: "int8" (per row), "int4" (groups of 128), "nf4" (groups of 64), "ternary" and
    "ternary_dense" (per row), "f32", "bf16", "f16". group_size: 0 for one scale per row, 16, 32, 64 or 128, None for
    the format's own. scale: "max" or "mse"; symmetric: False for zero points; double_quant: scales are int8; all as in
    QuantConfig. Raises ArgumentError.
    """
    values = np.ascontiguousarray(weight, np.float32)
    if values.ndim != 2:
        raise ArgumentError(f"weight must be [N, K], got {values.ndim} dimensions")
    if format in FLOAT_FORMATS:
        own = MatrixFormat(format=format, group_size=group_size or 0)
    elif format in INTEGER_FORMATS:
        own = QuantConfig(
            format=format, group_size=group_size, scale=scale, symmetric=symmetric, double_quant=double_quant
        ).own()
    else:
        known = ", ".join(INTEGER_FORMATS + FLOAT_FORMATS)
        raise ArgumentError(f"format must be one of {known}, got {escape(format)}")
    rows, columns = values.shape
    matrix = own.make(rows, columns)
    matrix.set_rows(0, values, search=own.search)
    return QuantizedTensor(matrix)


def matmul(
    x: npt.ArrayLike, w: QuantizedTensor, bias: npt.ArrayLike | None = None, *, out: FloatArray | None = None
) -> FloatArray:
    """x @ w.T (+ bias). x: [M, K] -> [M, N], in new memory or in `out` (which must not overlap x).

    For integer formats each row of x is quantised to int8 with one scale per group of k (the weight's group, or 256);
    products are summed exactly in int32 within a group, groups by float32 fma in ascending k. Raises ArgumentError.
    """
    return _core.matmul(_float(x), w._matrix, None if bias is None else _float(bias), out=out)


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


def rope(
    x: npt.ArrayLike, positions: Sequence[int], inv_freq: Sequence[float], *, interleaved: bool = False
) -> FloatArray:
    """Rotary position embedding (Su et al. 2021) of the half-split kind, as in GPT-NeoX, or interleaved, as in GPT-J.

    x: [T, heads, head_dim]; positions: [T]; inv_freq: [n], n <= head_dim / 2: elements i and i + n turn together,
    interleaved 2 i and 2 i + 1.
    """
    return _core.rope(_float(x), np.asarray(positions, np.int32), [float(f) for f in inv_freq], interleaved)


class KvPages:
    """Keys and values of one layer in pages of 16 tokens, as the engine keeps them. Unwritten pages hold zeros.

    dtype: "f32", "f16", "bf16", or "int12", "int8" and "int4" with a float32 scale for each token and head. A block
    table is a sequence's pages in order: token t is in page block_table[t // 16].

    Raises ArgumentError, OutOfMemoryError.
    """

    def __init__(self, pages: int, kv_heads: int, head_dim: int, dtype: str = "f16") -> None:
        self._core = _core.KvPages(pages, kv_heads, head_dim, dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(pages, kv_heads, head_dim)"""
        return self._core.shape

    @property
    def dtype(self) -> str:
        """The type's name."""
        return self._core.kv_dtype

    @property
    def nbytes(self) -> int:
        """Bytes held, scales and padding included."""
        return self._core.nbytes

    def write(self, k: npt.ArrayLike, v: npt.ArrayLike, block_table: Sequence[int], position: int = 0) -> None:
        """Stores k and v, [S, kv_heads, head_dim], of the tokens from `position` on. In an integer type's head NaN,
        infinity, or a key's element above 1e34 makes the whole head of this token NaN."""
        self._core.write(_float(k), _float(v), np.asarray(block_table, np.int32), position)

    def read(self, block_table: Sequence[int], length: int) -> tuple[FloatArray, FloatArray]:
        """Keys and values of the first `length` tokens as the kernels read them: float32 [length, kv_heads, head_dim]
        each, exact but for the rounding of scale * code, and of what undoes the transform of integer keys."""
        return self._core.read(np.asarray(block_table, np.int32), length)


def paged_attention(
    q: npt.ArrayLike,
    pages: KvPages,
    block_tables: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    query_lengths: Sequence[int] | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    sinks: npt.ArrayLike | None = None,
    keep_first: int = 0,
) -> FloatArray:
    """Attention of a batch of sequences of any lengths over their pages.

    q: [T, heads, head_dim], the sequences' queries one after another, query_lengths[i] of sequence i (default: 1 each,
    decoding), which are its last positions; lengths[i]: its tokens in the pages, the queries' own included. heads must
    be a multiple of the pages' kv_heads. The other arguments are those of `attention`. Returns [T, heads, head_dim].
    Raises ArgumentError.

    The result of a query depends on its own sequence alone, bit for bit: splits of 256 tokens are combined in order.
    """
    queries = _float(q)
    return pages._core.attend(
        queries,
        [np.asarray(table, np.int32) for table in block_tables],
        list(lengths),
        [1] * len(lengths) if query_lengths is None else list(query_lengths),
        queries.shape[-1] ** -0.5 if scale is None else scale,
        causal,
        _at_least_one("window", window) or 0,
        keep_first,
        _above_zero("softcap", softcap) or 0.0,
        None if alibi_slopes is None else _float(alibi_slopes),
        None if sinks is None else _float(sinks),
    )


def attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    *,
    scale: float | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    sinks: npt.ArrayLike | None = None,
    keep_first: int = 0,
    kv_dtype: str = "f32",
) -> FloatArray:
    """softmax(scale q k^T) v through the paged kernels.

    q: [T, heads, head_dim]; k, v: [S, kv_heads, head_dim], S >= T: the queries are the last T positions. heads must be
    a multiple of kv_heads. Returns [T, heads, head_dim].

    causal: a query sees no later key. window: it sees that many newest keys, its own included, and without `causal`
    as many later ones (at least 1). keep_first: the first tokens, which no window hides (StreamingLLM). softcap:
    scores become softcap * tanh(score / softcap) (Gemma 2). alibi_slopes: [heads], scores lose slope * distance
    (Press et al. 2022). sinks: [heads], a score without a value that takes its share of the softmax (GPT-OSS).
    scale: default 1 / sqrt(head_dim). kv_dtype: what keys and values are rounded to, as in the KV cache; integer keys
    and the queries for them are first mixed by a Walsh-Hadamard transform. Over int8 and int4 pages the scaled queries
    are rounded to int8, one scale for each token and head, and the weights of the values to 14 bits; over int12 pages
    to 12 bits or more, with heads of at most 256 elements. Raises ArgumentError.
    """
    keys, values = _float(k), _float(v)
    if keys.ndim != 3 or keys.shape != values.shape:
        raise ArgumentError(f"k and v must be [S, kv_heads, head_dim], got {keys.shape} and {values.shape}")
    length = len(keys)
    count = max(1, -(-length // 16))
    pages = KvPages(count, keys.shape[1], keys.shape[2], kv_dtype)
    pages.write(keys, values, range(count))
    return paged_attention(
        q,
        pages,
        [range(count)],
        [length],
        query_lengths=[len(_float(q))],
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        keep_first=keep_first,
    )


def _at_least_one(name: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or value < 1):
        raise ArgumentError(f"{name} must be at least 1 or None, got {shown(value)}")
    return value


def _above_zero(name: str, value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise ArgumentError(f"{name} must be above 0 and finite, or None, got {shown(value)}")
    return value


def sample(
    logits: npt.ArrayLike,
    *,
    seed: int = 0,
    position: int = 0,
    sequence: int = 0,
    tokens: Sequence[int] = (),
    prompt: int = 0,
    **params: Any,
) -> tuple[int, float]:
    """Draws a token. logits: [vocab]. Returns (id, log-probability under softmax(logits)).

    params: the numbers of `SamplingParams`, by name and with its neutral values; `dry_breakers` (ascending ids) and
    `banned` (lists of ids) are what its texts become. tokens: prompt and output so far, of which the first `prompt` are
    the prompt's; without them `position` says how many there are. The random number is Philox4x32-10 keyed by `seed`
    with counter (position, sequence). Raises NumericError, ArgumentError for an unknown parameter.
    """
    known = {*SAMPLER_NUMBERS, "dry_breakers", "banned", "logit_bias", "allowed"}
    unknown = sorted(params.keys() - known)
    if unknown:
        raise ArgumentError(f"sample has no parameter {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    ids = list(tokens)
    where = len(ids) if ids else position
    return _core.sample(_float(logits), {**params, "seed": seed}, ids, prompt, where, sequence)


def _float(x: npt.ArrayLike) -> FloatArray:
    return np.ascontiguousarray(x, np.float32)
