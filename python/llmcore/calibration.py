"""Calibration: what the inputs of a model's matrices look like on some text, and what is chosen with that.

Codes by GPTQ, and scales of columns by AWQ or SmoothQuant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmcore.errors import ArgumentError, NumericError
from llmcore.quantization import MatrixFormat

if TYPE_CHECKING:
    from llmcore.model import Model
    from llmcore.ops import QuantizedTensor
    from llmcore.tokenizer import Tokenizer

FloatArray = npt.NDArray[np.float32]

PIECE_TOKENS = 512
"""Calibration texts are cut into sequences of at most this many tokens."""
_BUDGET_BYTES = 1 << 30
"""Second moments held at once; the text passes through the model as often as that takes."""
_DAMPING = 0.01
"""Of the mean diagonal, added to the diagonal: section 3.3 of GPTQ."""
_BLOCK = 128
"""Columns whose error is spread over the columns after them in one product; a multiple of all groups."""
_MAX_ERROR = np.float32(1e30)
"""Of a weight beyond the reach of its scale no more than this is made up for, so that the others stay finite."""
_QUIET = np.errstate(all="ignore")
"""Huge weights overflow, and scales may be zero: what isn't finite shows in the scales, or raises NumericError."""
_INPUTS = {
    "qkv": "attention_norm",
    "attention_output": "attention",
    "gate_up": "mlp_norm",
    "up": "mlp_norm",
    "down": "activation",
}


@dataclass
class Inputs:
    """Of all inputs x of a matrix: `count`, and sums over them."""

    count: int
    moments: FloatArray
    """Sum of x x^T: [K, K]."""
    magnitudes: FloatArray
    """Sum of |x|: [K]."""
    largest: FloatArray
    """Largest |x|: [K]."""


class Calibration:
    """The inputs of each matrix of an unquantised model over some sequences."""

    def __init__(self, model: Model, texts: Sequence[str | Sequence[int]]) -> None:
        """texts: strings, or token ids; cut into pieces. Raises ArgumentError when there is no token in them, and for
        ids that are out of range; TypeError for ids that aren't integers.
        """
        self._model = model
        self._sequences = list(_pieces(texts, model.tokenizer, model.spec.max_position_embeddings))
        if not self._sequences:
            raise ArgumentError("calibration holds no tokens")
        self._inputs: dict[str, Inputs] = {}

    def inputs(self, slot: str) -> Inputs:
        """Of a matrix slot ("layers.3.down"). Some layers' are held at a time: ask in the order of the layers."""
        name = self._input_of(slot)
        if name not in self._inputs:
            self._inputs = {}  # first, for the memory
            self._inputs = self._measure(self._names_from(name))
        return self._inputs[name]

    def digest(self) -> str:
        """A hash of the token ids."""
        return hashlib.sha256(b"|".join(ids.tobytes() for ids in self._sequences)).hexdigest()

    def _input_of(self, slot: str) -> str:
        prefix, _, last = slot.rpartition(".")
        return f"{prefix}.{_INPUTS[last]}" if prefix else "final_norm"

    def _names_from(self, name: str) -> list[str]:
        if name == "final_norm":
            return [name]
        spec = self._model.spec
        widths = (spec.hidden_size, spec.num_heads * spec.head_dim, spec.hidden_size, spec.intermediate_size)
        layers = max(1, _BUDGET_BYTES // sum(4 * width**2 for width in widths))
        first = int(name.split(".")[1])
        kinds = dict.fromkeys(_INPUTS.values())
        return [f"layers.{i}.{kind}" for i in range(first, min(first + layers, spec.num_layers)) for kind in kinds]

    @_QUIET
    def _measure(self, names: list[str]) -> dict[str, Inputs]:
        wanted: dict[str, Inputs] = {}

        def see(name: str, rows: FloatArray) -> None:
            if name not in names:
                return
            size = np.abs(rows)
            if name not in wanted:
                zeros = np.zeros(rows.shape[1], np.float32)
                wanted[name] = Inputs(0, np.zeros((rows.shape[1],) * 2, np.float32), zeros, zeros)
            seen = wanted[name]
            seen.count += len(rows)
            seen.moments += rows.T @ rows
            seen.magnitudes = seen.magnitudes + size.sum(0)
            seen.largest = np.maximum(seen.largest, size.max(0))

        model = self._model
        model.plan(max_tokens=PIECE_TOKENS, max_logit_rows=PIECE_TOKENS, max_model_len=PIECE_TOKENS)
        for sequence in self._sequences:
            model.core.forward([sequence], model.kv_dtype, 0, see)
        return wanted


def _pieces(
    texts: Sequence[str | Sequence[int]], tokenizer: Tokenizer | None, context: int
) -> Iterator[npt.NDArray[np.int32]]:
    from llmcore.model import id_array

    if isinstance(texts, str):
        raise ArgumentError("calibration must be a list of texts or of token ids, not one text")
    for text in texts:
        if isinstance(text, str):
            if tokenizer is None:
                raise ArgumentError("this checkpoint has no tokenizer: give token ids for calibration")
            text = tokenizer.encode(text)
        size = min(PIECE_TOKENS, context)
        for start in range(0, len(text), size):
            yield id_array(text[start : start + size])


@_QUIET
def gptq(
    weights: FloatArray, moments: FloatArray, form: MatrixFormat
) -> tuple[npt.NDArray[np.int8], FloatArray, FloatArray | None]:
    """Codes int8 [N, K], scales [N, groups] and zero points (or None), chosen to keep weights @ inputs.

    Columns are rounded one after another, and each one's error is made up for in those after it, as the inputs' second
    moments [K, K] say best (E. Frantar and others, "GPTQ", 2023, algorithm 1). A group's scales are taken when its turn
    comes. weights: float32 [N, K].
    """
    rows, columns = weights.shape
    factor = _inverse_factor(moments)
    left = weights.astype(np.float32)
    group = form.group_size or columns
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, -(-columns // group)), np.float32)
    zeros = np.zeros_like(scales)
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        errors = np.empty((rows, end - begin), np.float32)
        for k in range(begin, end):
            if k % group == 0:
                part = _pack(left[:, k : k + group], form)
                scale, zero = part.codes()[1][:, 0], part.zero_points()[:, 0]
                scales[:, k // group], zeros[:, k // group] = scale, zero
                inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
            codes[:, k] = _nearest(left[:, k] * inverse + zero, form)
            error = (left[:, k] - scale * (codes[:, k] - zero)) / factor[k, k]
            error = np.clip(error, -_MAX_ERROR, _MAX_ERROR)
            left[:, k + 1 : end] -= np.outer(error, factor[k, k + 1 : end])
            errors[:, k - begin] = error
        left[:, end:] -= errors @ factor[begin:end, end:]
    return codes, scales, zeros if form.zero_points else None


@_QUIET
def column_scales(weights: FloatArray, inputs: Inputs, form: MatrixFormat) -> FloatArray:
    """What the columns of a matrix [N, K] are multiplied with, and its inputs divided by: float32 [K], around 1.

    "smoothquant": the square root of largest input / largest weight (G. Xiao and others, 2023, equation 4, alpha 0.5).
    "awq": the mean magnitude of the inputs to the power that gives the least error of the outputs, out of 20 within
    [0, 1) (J. Lin and others, 2023, equation 4), with the nearest codes, on at most 512 of the rows.
    """
    if form.smoothing == "smoothquant":
        return _around_one(np.sqrt(_positive(inputs.largest) / _positive(np.abs(weights).max(0))))
    rows = weights[:: -(-len(weights) // 512)]
    mean = _positive(inputs.magnitudes / np.float32(max(inputs.count, 1)))
    best, least = np.ones(weights.shape[1], np.float32), np.inf
    for step in range(20):
        scales = _around_one(mean ** np.float32(step / 20))
        difference = _pack(rows * scales, form).dequantize() / scales - rows
        error = float(np.einsum("nk,nk->", difference @ inputs.moments, difference))
        if error < least:
            best, least = scales, error
    return best


def _positive(values: FloatArray) -> FloatArray:
    """Without zeros: a ten-thousandth of the largest at least."""
    return np.maximum(values, np.float32(1e-4) * values.max() or np.float32(1))


def _around_one(scales: FloatArray) -> FloatArray:
    """Divided by the geometric mean of the largest and the smallest."""
    result: FloatArray = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)
    return result


def _pack(weights: FloatArray, form: MatrixFormat) -> QuantizedTensor:
    from llmcore.ops import QuantizedTensor

    matrix = form.make(*weights.shape)
    matrix.set_rows(0, np.ascontiguousarray(weights), search=form.search)
    return QuantizedTensor(matrix)


def _inverse_factor(moments: FloatArray) -> FloatArray:
    """The upper triangular U with U^T U = (moments + damping)^-1."""
    damped = moments.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)
    diagonal += _DAMPING * diagonal.mean() or 1.0
    try:
        factor: FloatArray = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    except np.linalg.LinAlgError:
        raise NumericError("the inputs of a matrix are not finite on the calibration text") from None
    return factor


def _nearest(values: FloatArray, form: MatrixFormat) -> npt.NDArray[np.int8]:
    """The codes nearest to weights that are divided by their scales."""
    if form.format in LEVELS:
        levels = np.array(LEVELS[form.format], np.float32)
        return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)].astype(np.int8)
    lowest, highest = _RANGES[form.format]
    if form.format == "int8" and form.zero_points:
        lowest = -128
    return np.clip(np.rint(values), lowest, highest).astype(np.int8)


LEVELS = {
    "nf4": (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127),
    "iq4": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    "fp4": (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12),
}
"""csrc/quant/nf4.h and float4.h"""
_RANGES = {"int8": (-127, 127), "ternary": (-1, 1), "ternary_dense": (-1, 1)}
_RANGES |= {f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (2, 3, 4, 5, 6)}
