"""The quantised arithmetic once more, in plain numpy: int8 activations as documented, exact integer sums, float64 else.

Sources: csrc/kernels/generic/elementwise.h (quantize_row), matmul.h (integer_tile), quant/*.h for what codes mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmcore.ops import QuantizedTensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ROUNDING = 2.0**-24  # of one float32 operation, relative
DEFAULT_ACTIVATION_GROUP = 256


def quantize_activations(x: npt.ArrayLike, group: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """int8 codes [M, K] and float32 scales [M, groups] of float32 rows, rounded half to even, no code below -127."""
    rows = np.asarray(x, np.float32)
    codes, scales = [], []
    for begin in range(0, rows.shape[1], group):
        part = rows[:, begin : begin + group]
        top = np.abs(part).max(1, keepdims=True)
        tiny = ~(top > np.float32(1e-30))
        inverse = np.where(tiny, 0, np.float32(127) / np.where(tiny, 1, top)).astype(np.float32)
        codes.append(np.clip(np.rint(part * inverse), -127, 127).astype(np.int64))
        scales.append(np.where(tiny, 0, top / np.float32(127)).astype(np.float32))
    return np.concatenate(codes, 1), np.concatenate(scales, 1)


def quantize_words(x: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Queries [M, K] as int12 keys take them, and scales [M, 1]: magnitudes add up to at most 2^20 with K padded."""
    most = np.float32(min(32767, 2**20 // (-(-x.shape[1] // 16) * 16)))
    top = np.abs(x).max(1, keepdims=True)
    tiny = ~(top > np.float32(1e-30))
    inverse = np.where(tiny, 0, most / np.where(tiny, 1, top)).astype(np.float32)
    codes = np.clip(np.rint(x * inverse), -most, most).astype(np.int64)
    return codes, np.where(tiny, 0, top / most).astype(np.float32)


def matmul(x: npt.ArrayLike, w: QuantizedTensor) -> tuple[Doubles, Doubles]:
    """x @ w.T and a bound of the float32 kernel's error, both [M, N]."""
    if w.format in ("f32", "bf16", "f16"):
        a, b = np.asarray(x, np.float64), w.dequantize().astype(np.float64)
        return a @ b.T, (a.shape[1] + 2) * ROUNDING * (np.abs(a) @ np.abs(b).T)
    group = w.group_size or DEFAULT_ACTIVATION_GROUP
    codes, scales = w.codes()
    zero_points, minima = w.zero_points(), w.minima().astype(np.float64)
    activations, x_scales = quantize_activations(x, group)
    total = np.zeros((len(activations), len(codes)))
    size = np.zeros_like(total)
    for g in range(x_scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        zero = zero_points[:, g if w.group_size else 0, None].astype(np.int64)
        integers = activations[:, part] @ (codes[:, part].astype(np.int64) - zero).T
        scale = scales[:, g if w.group_size else 0].astype(np.float64) * x_scales[:, g, None].astype(np.float64)
        total += integers * scale
        size += np.abs(integers * scale)
        lost = activations[:, part].sum(1)[:, None] * minima[:, g if w.group_size else 0] * x_scales[:, g, None]
        total -= lost
        size += np.abs(lost)
    return total, (x_scales.shape[1] + 3) * ROUNDING * size


def rms_norm(x: npt.ArrayLike, weight: npt.ArrayLike, eps: float) -> Doubles:
    """Over the last axis."""
    v = np.asarray(x, np.float64)
    return v / np.sqrt((v * v).mean(-1, keepdims=True) + eps) * weight


def rope(x: Doubles, inv_freq: npt.ArrayLike) -> Doubles:
    """x: [T, heads, head_dim] at positions 0 to T - 1; the angle is rounded to float32, as the kernel's."""
    angles = (np.arange(len(x), dtype=np.float32)[:, None] * np.asarray(inv_freq, np.float32)).astype(np.float64)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    scale: float,
    window: int | None = None,
    *,
    causal: bool = True,
    softcap: float | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    sinks: npt.ArrayLike | None = None,
    keep_first: int = 0,
) -> Doubles:
    """q: [T, heads, head_dim]; k, v: [S, kv_heads, head_dim]; the queries are the last T positions."""
    q, k, v = (np.asarray(part, np.float64) for part in (q, k, v))
    (T, heads, _), S = q.shape, len(k)
    k, v = (np.repeat(part, heads // part.shape[1], axis=1) for part in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    age = np.arange(S - T, S)[:, None] - np.arange(S)
    if alibi_slopes is not None:
        scores -= np.asarray(alibi_slopes, np.float64)[:, None, None] * np.abs(age)
    outside = np.abs(age) >= (window or S + 1)
    scores[:, (outside & (np.arange(S) >= keep_first)) | (causal & (age < 0))] = -np.inf
    if sinks is not None:
        sink = np.broadcast_to(np.asarray(sinks, np.float64)[:, None, None], (heads, T, 1))
        scores = np.concatenate([scores, sink], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", (weights / weights.sum(-1, keepdims=True))[..., :S], v)


def silu(x: Doubles) -> Doubles:
    """x / (1 + e^-x)"""
    return x / (1 + np.exp(-x))


@dataclass
class Decoder:
    """A Qwen3 in float64 around quantised products. `tensors`: packed matrices and float vectors by checkpoint name.

    With `seen` (Model.capture's activations of the same ids) each product takes the model's own float32 input, once it
    has been found equal to the one computed here; `errors` then holds the relative difference of each step.
    """

    tensors: Mapping[str, QuantizedTensor | Floats]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inv_freq: tuple[float, ...]
    eps: float
    seen: Mapping[str, Floats] | None = None
    errors: dict[str, float] = field(default_factory=dict)

    def logits(self, ids: list[int]) -> Doubles:
        """[T, vocab]"""
        x = self._seen("embeddings", self._matrix("model.embed_tokens").dequantize()[ids].astype(np.float64))
        for layer in range(self.layers):
            name, at = f"layers.{layer}.", f"model.layers.{layer}."
            normed = self._seen(name + "attention_norm", self._norm(at + "input_layernorm", x))
            mixed = self._seen(name + "attention", self._attend(name, at + "self_attn.", normed))
            x = self._seen(name + "attention_residual", x + self._linear(at + "self_attn.o_proj", mixed))
            normed = self._seen(name + "mlp_norm", self._norm(at + "post_attention_layernorm", x))
            gate_up = np.concatenate([self._linear(at + each, normed) for each in ("mlp.gate_proj", "mlp.up_proj")], 1)
            gate, up = np.split(self._seen(name + "gate_up", gate_up), 2, axis=1)
            product = self._seen(name + "activation", silu(gate) * up)
            x = self._seen(name + "output", x + self._linear(at + "mlp.down_proj", product))
        normed = self._seen("final_norm", self._norm("model.norm", x))
        return self._seen("logits", self._linear("lm_head", normed))

    def _attend(self, name: str, at: str, x: Doubles) -> Doubles:
        qkv = np.concatenate([self._linear(at + each, x) for each in ("q_proj", "k_proj", "v_proj")], 1)
        heads = self._seen(name + "qkv", qkv).reshape(len(x), -1, self.head_dim)
        q, k, v = np.split(heads, [self.heads, self.heads + self.kv_heads], axis=1)
        q, k = (rope(self._norm(at + each, part), self.inv_freq) for each, part in (("q_norm", q), ("k_norm", k)))
        scale = self.head_dim**-0.5
        rotated = np.concatenate([q * scale, k, v], 1).reshape(len(x), -1)
        heads = self._seen(name + "rotated_qkv", rotated).reshape(len(x), -1, self.head_dim)
        q, k, v = np.split(heads, [self.heads, self.heads + self.kv_heads], axis=1)
        return attention(q, k, v, 1.0).reshape(len(x), -1)

    def _seen(self, name: str, computed: Doubles) -> Doubles:
        if self.seen is None:
            return computed
        theirs = self.seen[name].astype(np.float64)
        self.errors[name] = float(np.linalg.norm(theirs - computed) / np.linalg.norm(computed))
        return theirs

    def _matrix(self, module: str) -> QuantizedTensor:
        found = self.tensors[module + ".weight"]
        assert isinstance(found, QuantizedTensor)
        return found

    def _norm(self, module: str, x: Doubles) -> Doubles:
        weight = self.tensors[module + ".weight"]
        assert isinstance(weight, np.ndarray)
        return rms_norm(x, weight, self.eps)

    def _linear(self, module: str, x: Doubles) -> Doubles:
        bias = self.tensors.get(module + ".bias", 0.0)
        assert not isinstance(bias, QuantizedTensor)
        return matmul(x, self._matrix(module))[0] + bias
