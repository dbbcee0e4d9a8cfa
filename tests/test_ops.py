"""llmcore.ops against float64 references, with bounds that follow from the sizes of what is summed.

E below is the relative rounding of one float32 operation, 2^-24. A sum of n terms in any order is off by at most
(n - 1) E sum|terms|; the kernels' blocked sums are far better, and the bounds count the longest chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import llmcore
import quantized_reference as reference
from llmcore import ArgumentError, QuantConfig, QuantError, _core, ops
from llmcore.quantization import INTEGER_FORMATS, ZERO_POINT_FORMATS

E = 2.0**-24
FLOATS = ("f32", "bf16", "f16")
INTEGERS = [("int8", 0), ("int8", 32), ("int8", 64), ("int8", 128), ("int4", 0), ("int4", 32), ("int4", 64)]
INTEGERS += [("int4", 128), ("ternary", 0), ("ternary", 32), ("ternary", 64), ("ternary", 128)]
FORMATS = [(name, 0) for name in FLOATS] + INTEGERS
SHAPES = [(1, 1, 1), (1, 33, 15), (2, 17, 128), (3, 16, 129), (5, 40, 300), (17, 48, 257)]  # M, N, K


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def heavy(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Student's t with three degrees of freedom: outliers as trained weights have."""
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


# --- quantize and dequantize ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize(("name", "group"), INTEGERS)
def test_dequantized_weights_are_scale_times_code(name: str, group: int, draw: Callable[..., np.ndarray]) -> None:
    packed = ops.quantize(draw(19, 200), name, group_size=group)
    codes, scales = packed.codes()
    width = group or 200
    assert codes.shape == (19, 200)
    assert scales.shape == (19, -(-200 // width))
    assert np.array_equal(packed.dequantize(), codes * np.repeat(scales, width, axis=1)[:, :200])


HUGE = [
    *((name, group, {}) for name in INTEGER_FORMATS for group in (0, 32) if (name, group) != ("ternary_dense", 32)),
    *((name, 32, {"symmetric": False}) for name in ZERO_POINT_FORMATS),
    *(("int8", 0, {"symmetric": False}), ("ternary_dense", 128, {}), ("nf4", 32, {"double_quant": True})),
    *((name, 32, {"symmetric": False, "double_quant": True}) for name in ("int2", "int4", "int5")),
    *((name, 32, {"scale": "mse"}) for name in ("int4", "fp4")),
]


@pytest.mark.parametrize("value", [1e6, -1e6, 1e38, -1e38, 3.4e38])
@pytest.mark.parametrize(("name", "group", "options"), HUGE)
def test_huge_weights_saturate(name: str, group: int, options: dict[str, Any], value: float) -> None:
    """The largest float16 is the largest scale; a weight beyond its reach is as large as it can be, and so finite."""
    w = normal(3, 512)
    plain = ops.quantize(w, name, group_size=group, **options).dequantize()
    w[1, 5] = value
    packed = ops.quantize(w, name, group_size=group, **options).dequantize()
    assert np.isfinite(packed).all()
    assert abs(packed[1, 5]) >= min(abs(value) / 2, 65504)
    assert np.sign(packed[1, 5]) == np.sign(value)
    assert np.array_equal(packed[[0, 2]], plain[[0, 2]])
    for broken in (np.nan, np.inf, -np.inf):
        w[1, 6] = broken
        assert np.isnan(ops.quantize(w, name, group_size=group, **options).dequantize()[1, : group or None]).all()


@pytest.mark.parametrize(("name", "group"), [("int8", 128), ("int4", 32), ("nf4", 64), ("ternary", 64)])
def test_double_quantised_scales_are_multiples(name: str, group: int) -> None:
    """Eight groups share a unit; the products are those of the scales as stored."""
    w = normal(19, 1100) * np.repeat(np.exp(normal(1, 35)), 32, axis=1)[:, :1100].astype(np.float32)
    packed, plain = (ops.quantize(w, name, group_size=group, double_quant=double) for double in (True, False))
    codes, scales = packed.codes()
    assert np.array_equal(packed.dequantize(), codes * np.repeat(scales, group, axis=1)[:, :1100])
    for begin in range(0, scales.shape[1], 8):
        part = scales[:, begin : begin + 8].astype(np.float64)
        unit = np.abs(part).max(1, keepdims=True) / 127
        assert (np.abs(part / unit - np.rint(part / unit)) < 1e-2).all()
    assert packed.nbytes < plain.nbytes
    errors = [np.linalg.norm(each.dequantize() - w) for each in (packed, plain)]
    assert errors[0] <= 1.05 * errors[1]
    x = normal(3, 1100, seed=5)
    expected, bound = reference.matmul(x, packed)
    assert (np.abs(ops.matmul(x, packed) - expected) <= bound).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_double_quantised_scales_of_tiny_weights_are_as_good(symmetric: bool) -> None:
    """Their units are float16 numbers below 2^-14, which are coarse: rounded up, they still reach the largest scale."""
    w = normal(32, 1024)
    errors = []
    for factor in (1.0, 2.0**-17):
        options: dict[str, Any] = {"group_size": 32, "symmetric": symmetric, "double_quant": True}
        packed = ops.quantize(w * np.float32(factor), "int4", **options)
        errors.append(np.linalg.norm(packed.dequantize() / factor - w))
    assert errors[1] <= 1.1 * errors[0]


def test_minima_are_better_than_zero_points_with_fewer_bits() -> None:
    w = normal(64, 1024)
    minima, zeros = (ops.quantize(w, "int4", group_size=32, symmetric=False, double_quant=d) for d in (True, False))
    assert minima.bits_per_weight == 4.625
    assert zeros.bits_per_weight == 5.0
    assert np.linalg.norm(minima.dequantize() - w) < np.linalg.norm(zeros.dequantize() - w)
    codes, scales = minima.codes()
    assert (minima.zero_points() == -8).all()
    assert (minima.minima() > 0).all()
    exact = np.repeat(scales, 32, 1) * (codes + np.float32(8)) - np.repeat(minima.minima(), 32, 1)
    assert np.array_equal(minima.dequantize(), exact)
    for rows in (1, 3, 40):
        x = normal(rows, 1024, seed=rows)
        expected, bound = reference.matmul(x, minima)
        assert (np.abs(ops.matmul(x, minima) - expected) <= bound).all()
    for bad in (
        {"format": "int8"},
        {"format": "int4", "group_size": 0},
        {"format": "int8", "group_size": 32, "symmetric": False},
    ):
        with pytest.raises(ArgumentError, match="double_quant"):
            QuantConfig(double_quant=True, **bad)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="GPTQ"):
        QuantConfig(format="int4", double_quant=True, rounding="gptq")


def test_columns_may_lie_in_an_order_of_their_own() -> None:
    """Packed so, a matrix stands for the same weights and gives the bits of a product with reordered inputs."""
    w, order = normal(19, 200), np.random.default_rng(3).permutation(200).astype(np.int32)
    plain, ordered = (_core.Matrix("int4", 19, 200, 32, "f16", True) for _ in range(2))
    plain.set_rows(0, np.ascontiguousarray(w[:, order]))
    ordered.set_order(order)
    ordered.set_rows(0, w)
    assert plain.order is None
    assert np.array_equal(ordered.order, order)
    assert np.array_equal(ordered.dequantize()[:, order], plain.dequantize())
    assert all(np.array_equal(a, b) for a, b in zip(ordered.codes(), plain.codes(), strict=True))
    assert ordered.nbytes == plain.nbytes + 4 * 200
    for rows in (1, 3, 40):
        x = normal(rows, 200, seed=rows)
        got = ops.matmul(x, ops.QuantizedTensor(ordered))
        assert np.array_equal(got, ops.matmul(np.ascontiguousarray(x[:, order]), ops.QuantizedTensor(plain)))
    for bad in (np.zeros(200, np.int32), np.arange(200) - 1, np.arange(1, 201)):
        with pytest.raises(QuantError, match="permutation"):
            plain.set_order(bad.astype(np.int32))
    with pytest.raises(ArgumentError, match=r"\[K\]"):
        plain.set_order(order[1:])


@pytest.mark.parametrize("shift", [0.0, 0.7, -3.0])
@pytest.mark.parametrize(("name", "group"), [("int8", 0), ("int8", 32), ("int4", 0), ("int4", 64), ("int4", 128)])
def test_zero_points(name: str, group: int, shift: float) -> None:
    """Codes span what the weights do; products are those of scale * (code - zero point)."""
    w = normal(19, 200) + np.float32(shift)
    packed = ops.quantize(w, name, group_size=group, symmetric=False)
    (codes, scales), zero_points = packed.codes(), packed.zero_points()
    width = group or 200
    highest = {"int8": 255, "int4": 15}[name]
    lowest = -(highest + 1) // 2
    assert (zero_points == np.rint(zero_points)).all()
    assert ((zero_points >= lowest) & (zero_points <= highest + lowest)).all()
    repeated = [np.repeat(part, width, axis=1)[:, :200].astype(np.float64) for part in (scales, zero_points)]
    exact = repeated[0] * (codes - repeated[1])
    assert np.array_equal(packed.dequantize(), exact.astype(np.float32))
    # A zero point is rounded, and so is a scale: the ends may lie a step outside.
    assert (np.abs(packed.dequantize() - w) <= repeated[0] * (0.51 + highest * rounding_of_scales(group))).mean() > 0.95
    assert (np.abs(packed.dequantize() - w) <= repeated[0] * (1.1 + highest * rounding_of_scales(group))).all()
    if shift:
        plain = ops.quantize(w, name, group_size=group)
        assert np.square(packed.dequantize() - w).sum() < 0.85 * np.square(plain.dequantize() - w).sum()
    for rows in (1, 3, 40):
        x = normal(rows, 200, seed=rows)
        expected, bound = reference.matmul(x, packed)
        assert (np.abs(ops.matmul(x, packed) - expected) <= bound).all()


NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
"""The levels of bitsandbytes and of QLoRA's appendix."""


@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize("group", [0, 16, 32, 64, 128])
def test_nf4_is_as_good_as_with_levels_in_float(group: int, draw: Callable[..., np.ndarray]) -> None:
    w = draw(32, 512)
    packed = ops.quantize(w, "nf4", group_size=group)
    codes, scales = packed.codes()
    levels = np.rint(np.array(NF4) * 127)
    assert set(np.unique(codes)) <= set(levels.astype(int))
    width = group or 512
    assert np.array_equal(packed.dequantize(), codes * np.repeat(scales, width, axis=1)[:, :512])
    parts = w.reshape(-1, width).astype(np.float64)
    top = np.abs(parts).max(1, keepdims=True)
    nearest = np.abs(parts[:, :, None] / top[:, :, None] - np.array(NF4)).argmin(2)
    error = np.square(np.array(NF4)[nearest] * top - parts).sum()
    assert np.square(packed.dequantize().astype(np.float64) - w).sum() < 1.02 * error
    searched = ops.quantize(w, "nf4", group_size=group, scale="mse")
    assert np.square(searched.dequantize() - w).sum() < np.square(packed.dequantize() - w).sum()
    for rows in (1, 3, 40):
        x = normal(rows, 512, seed=rows)
        expected, bound = reference.matmul(x, packed)
        assert (np.abs(ops.matmul(x, packed) - expected) <= bound).all()


def test_nf4_takes_its_own_levels_and_no_others() -> None:
    matrix = _core.Matrix("nf4", 1, 64, 64)
    codes = np.rint(np.array(NF4) * 127).astype(np.int8)
    matrix.set_codes(0, np.tile(codes, 4)[None], np.ones((1, 1), np.float32))
    assert np.array_equal(matrix.dequantize()[0, :16], codes)
    with pytest.raises(QuantError, match="nf4"):
        matrix.set_codes(0, np.full((1, 64), 5, np.int8), np.ones((1, 1), np.float32))


def test_zero_points_belong_to_some_formats() -> None:
    with pytest.raises(ArgumentError, match="symmetric"):
        ops.quantize(normal(4, 8), "ternary", symmetric=False)
    with pytest.raises(ArgumentError, match="symmetric"):
        QuantConfig(format="int4", symmetric=0)  # type: ignore[arg-type]
    for name, value in (("format", None), ("format", ""), ("head", ""), ("group_size", 64.0), ("group_size", False)):
        with pytest.raises(ArgumentError, match=name):
            QuantConfig(**({"format": "int4"} | {name: value}))  # type: ignore[arg-type]
    matrix = _core.Matrix("int4", 1, 32, 32, zero_points=True)
    codes, scales = np.zeros((1, 32), np.int8), np.ones((1, 1), np.float32)
    for zero_points in (
        None,
        np.full((1, 1), 9, np.float32),
        np.full((1, 1), 0.5, np.float32),
        np.full((1, 1), np.nan, np.float32),
    ):
        with pytest.raises((ArgumentError, QuantError)):
            matrix.set_codes(0, codes, scales, zero_points)
    matrix.set_codes(0, codes, scales, np.full((1, 1), -3, np.float32))
    assert (matrix.dequantize() == 3).all()
    with pytest.raises(ArgumentError, match="zero points"):
        _core.Matrix("int4", 1, 32, 32).set_codes(0, codes, scales, np.zeros((1, 1), np.float32))


def rounding_of_scales(group: int) -> float:
    """Of scales kept as float16 in groups, as float32 for a row."""
    return 2.0**-11 if group else E


@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize(("name", "group"), INTEGERS)
def test_round_trip_error_is_bounded_by_the_scale(name: str, group: int, draw: Callable[..., np.ndarray]) -> None:
    w = draw(19, 200).astype(np.float64)
    packed = ops.quantize(w, name, group_size=group)
    scales = np.abs(np.repeat(packed.codes()[1], group or 200, axis=1)[:, :200]).astype(np.float64)
    error = np.abs(packed.dequantize() - w)
    highest = {"int8": 127, "int4": 7, "ternary": 1}[name]
    inside = np.abs(w) <= scales * highest
    slack = 1 + 4 * E
    assert (error[inside] <= scales[inside] / 2 * slack).all()
    # Beyond the last code what is missing is the distance to it: for int8 the rounding of its scale alone, for int4
    # half a step more on the side that has but seven levels, for ternary any magnitude above the mean.
    beyond = np.abs(w) - scales * highest
    assert (error[~inside] <= beyond[~inside] * slack + 4 * E * np.abs(w[~inside])).all()
    if name != "ternary":
        most = {"int8": 0.0, "int4": 1.0}[name]
        assert (beyond <= scales * (most + 8.1 * 16 * rounding_of_scales(group)) + 4 * E * np.abs(w)).all()


@pytest.mark.parametrize(("name", "digits"), [("f32", 24), ("bf16", 8), ("f16", 11)])
def test_float_formats_round_to_nearest(name: str, digits: int) -> None:
    w = np.concatenate([normal(3, 50), heavy(3, 50) * 1e-2], axis=1)
    back = ops.quantize(w, name).dequantize()
    assert (np.abs(back - w) <= np.abs(w) * (0 if digits == 24 else 2.0**-digits)).all()
    if name == "f16":
        assert np.array_equal(back, w.astype(np.float16).astype(np.float32))
    if name == "bf16":
        torch = pytest.importorskip("torch")
        assert np.array_equal(back, torch.from_numpy(w).bfloat16().float().numpy())


@pytest.mark.parametrize(("name", "group"), INTEGERS)
def test_zero_weights_stay_zero(name: str, group: int) -> None:
    w = normal(4, 130)
    w[1] = 0
    packed = ops.quantize(w, name, group_size=group)
    assert not packed.dequantize()[1].any()
    assert np.isfinite(ops.matmul(normal(2, 130), packed)).all()


@pytest.mark.parametrize("group", [0, 64])
def test_ternary_weights_are_kept_exactly(group: int) -> None:
    w = np.random.default_rng(0).integers(-1, 2, (8, 192)).astype(np.float32) * np.float32(0.375)
    assert np.array_equal(ops.quantize(w, "ternary", group_size=group).dequantize(), w)


def test_matmul_into_an_array() -> None:
    w, x = ops.quantize(normal(33, 70), "int8"), normal(5, 70)
    out = np.full((5, 33), np.nan, np.float32)
    assert ops.matmul(x, w, out=out) is out
    assert np.array_equal(out, ops.matmul(x, w))
    frozen = np.zeros((5, 33), np.float32)
    frozen.flags.writeable = False
    for wrong in (np.zeros((5, 32), np.float32), np.zeros((5, 33)), np.zeros((33, 5), np.float32).T, frozen, [1.0]):
        with pytest.raises(ArgumentError, match="out"):
            ops.matmul(x, w, out=wrong)  # type: ignore[arg-type]


def test_bits_per_weight_count_scales_and_padding() -> None:
    w = normal(32, 256)
    assert ops.quantize(w, "f32").bits_per_weight == 32
    assert ops.quantize(w, "int8").bits_per_weight == 8 + 32 / 256
    assert ops.quantize(w, "int4", group_size=32).bits_per_weight == 4.5
    assert ops.quantize(w, "ternary").bits_per_weight == 2 + 32 / 256


@pytest.mark.parametrize(("K", "group"), [(300, 0), (384, 0), (512, 0), (640, 0), (896, 128), (2048, 0), (2048, 128)])
def test_dense_ternary_is_the_same_matrix_in_fewer_bits(K: int, group: int) -> None:
    w, x = normal(40, K), normal(5, K)
    plain, dense = (ops.quantize(w, name, group_size=group) for name in ("ternary", "ternary_dense"))
    assert all(np.array_equal(a, b) for a, b in zip(plain.codes(), dense.codes(), strict=True))
    assert np.array_equal(plain.dequantize(), dense.dequantize())
    for rows in (x, x[:1]):
        assert np.array_equal(ops.matmul(rows, plain), ops.matmul(rows, dense))
    if K == 2048:
        assert ops.quantize(normal(16, K), "ternary_dense").bits_per_weight == 1.6875 + 32 / K


@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize(
    ("name", "group", "theirs"),
    [("int4", 32, "Q4_0"), ("int8", 32, "Q8_0"), ("ternary", 0, "TQ2_0"), ("ternary", 128, "TQ2_0")],
)
def test_no_worse_than_ggml_at_equal_bits(name: str, group: int, theirs: str, draw: Callable[..., np.ndarray]) -> None:
    gguf = pytest.importorskip("gguf")
    w = draw(64, 1024) * np.float32(0.02)
    kind = gguf.GGMLQuantizationType[theirs]
    packed, reference_bytes = ops.quantize(w, name, group_size=group), gguf.quants.quantize(w, kind)
    assert packed.nbytes <= reference_bytes.nbytes * (1.04 if name == "ternary" and group else 1)
    ours = np.linalg.norm(packed.dequantize() - w)
    assert ours <= np.linalg.norm(gguf.quants.dequantize(reference_bytes, kind) - w) * (1 + 1e-4)


# --- matmul -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize(("name", "group"), FORMATS)
def test_matmul_within_its_bound(name: str, group: int, M: int, N: int, K: int) -> None:
    x, packed = normal(M, K, seed=1), ops.quantize(heavy(N, K, seed=2), name, group_size=group)
    expected, bound = reference.matmul(x, packed)
    got = ops.matmul(x, packed)
    assert got.shape == (M, N)
    assert got.dtype == np.float32
    assert (np.abs(got - expected) <= bound).all()
    bias = normal(N, seed=3)
    with_bias = ops.matmul(x, packed, bias)
    assert np.array_equal(with_bias, got + bias)


@pytest.mark.parametrize(("name", "group"), [("f32", 0), ("int8", 0), ("int4", 32), ("ternary", 0)])
def test_a_row_with_nan_spoils_no_other(name: str, group: int) -> None:
    x, packed = normal(4, 200), ops.quantize(normal(20, 200), name, group_size=group)
    clean = ops.matmul(x, packed)
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[2, 150] = bad
        got = ops.matmul(broken, packed)
        assert np.array_equal(got[[0, 1, 3]], clean[[0, 1, 3]])
        assert not np.isfinite(got[2]).any()


@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("K", [1, 15, 16, 128, 129, 300])
def test_activations_are_quantised_by_the_documented_rule(K: int, group: int) -> None:
    x = np.concatenate([normal(3, K), heavy(3, K) * 1e-3, np.zeros((1, K), np.float32)])
    codes, scales, sums = _core.quantize_activations(x, group)
    expected, expected_scales = reference.quantize_activations(x, group)
    assert np.array_equal(codes[:, :K], expected)
    assert not codes[:, K:].any()
    assert np.array_equal(scales, expected_scales)
    edges = range(0, K, group)
    assert np.array_equal(sums, np.stack([expected[:, at : at + group].sum(1) for at in edges], axis=1))


# --- norms, softmax, activations --------------------------------------------------------------------------------------

WIDTHS = [1, 15, 16, 17, 80, 1000]


@pytest.mark.parametrize("n", WIDTHS)
def test_rms_norm(n: int) -> None:
    x, weight = heavy(7, n), normal(n, seed=1)
    expected = reference.rms_norm(x, weight, 1e-5)
    # The mean of squares has no cancellation: n / 16 sums a lane, 4 to join them, then a root, a quotient, 2 products.
    assert (np.abs(ops.rms_norm(x, weight) - expected) <= (n / 32 + 8) * E * np.abs(expected)).all()


@pytest.mark.parametrize("n", WIDTHS)
def test_layer_norm(n: int) -> None:
    x, weight, bias = heavy(7, n) + 3, normal(n, seed=1), normal(n, seed=2)
    v = x.astype(np.float64)
    mean, deviation = v.mean(-1, keepdims=True), np.sqrt(v.var(-1, keepdims=True) + 1e-5)
    expected = (v - mean) / deviation * weight + bias
    # The mean is off by (n / 16 + 5) E of the mean magnitude, and x - mean carries that over.
    shift = (n / 16 + 5) * E * np.abs(v).mean(-1, keepdims=True) / deviation
    bound = 2 * shift * np.abs(weight) + (n / 32 + 10) * E * (np.abs(expected) + np.abs(bias))
    assert (np.abs(ops.layer_norm(x, weight, bias) - expected) <= bound).all()


@pytest.mark.parametrize("n", WIDTHS)
def test_softmax(n: int) -> None:
    x = heavy(5, n) * 5
    v = x.astype(np.float64)
    weights = np.exp(v - v.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True)
    got = ops.softmax(x)
    # x - max is rounded once, which e^ turns into a relative error of |x - max| E.
    bound = (np.abs(v - v.max(-1, keepdims=True)) + n / 16 + 12) * E * expected + 1e-37
    assert (np.abs(got - expected) <= bound).all()
    assert np.abs(got.astype(np.float64).sum(-1) - 1).max() <= (n / 16 + 12) * E


def test_softmax_of_masked_and_broken_rows() -> None:
    got = ops.softmax(np.array([[0, -np.inf, 0], [1, np.nan, 2]], np.float32))
    assert got[0].tolist() == [0.5, 0.0, 0.5]
    assert np.isnan(got[1]).all()


def test_exp_is_within_one_and_a_half_ulp() -> None:
    x = np.linspace(-87.3, 88.7, 400_001).astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    ulp = np.spacing(expected.astype(np.float32)).astype(np.float64)
    assert (np.abs(_core.exp(x) - expected) / ulp).max() < 1.5


def test_exp_at_the_edges() -> None:
    x = np.array([-np.inf, -104.5, 0, 89, np.inf, np.nan], np.float32)
    got = _core.exp(x)
    assert got[:2].tolist() == [0.0, 0.0]
    assert got[2] == 1
    assert got[3] == got[4] == np.inf
    assert np.isnan(got[5])


def tanh_gelu(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, tuple[Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], float]] = {
    "silu": (lambda x: x / (1 + np.exp(-x)), 3 * E),
    # The argument of e^ is rounded a few times and reaches 14 where |x| is 4, so the relative error reaches 40 E.
    "gelu_tanh": (tanh_gelu, 40 * E),
    "gelu": (np.vectorize(lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))), 40 * E),
    "relu": (lambda x: np.maximum(x, 0), 0.0),
    "relu2": (lambda x: np.maximum(x, 0) ** 2, E),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    function, error = ACTIVATIONS[name]
    x = np.concatenate([np.linspace(-4, 8, 20_001), [0.0, 20.0, 60.0, 1e-20]]).astype(np.float32)
    expected = function(x.astype(np.float64))
    smallest = 2.0**-149  # a result below the normal range is rounded to a multiple of this
    assert (np.abs(ops.activation(x, name) - expected) <= error * np.abs(expected) + smallest).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out(name: str) -> None:
    got = ops.activation(np.array([-1e4, -60, np.nan], np.float32), name)
    assert np.abs(got[:2]).max() < 1e-20
    assert np.isnan(got[2])


# --- RoPE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [2, 18, 64, 80, 128])
def test_rope_equals_transformers(head_dim: int) -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    positions = [0, 1, 7, 300, 8191]
    inv_freq = (1.0 / 10000 ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    x = normal(len(positions), 3, head_dim)
    angles = torch.tensor(positions, dtype=torch.float32)[:, None] * torch.from_numpy(inv_freq)
    angles = torch.cat([angles, angles], -1)[None]
    q = torch.from_numpy(x).transpose(0, 1)[None]
    expected, _ = llama.apply_rotary_pos_emb(q, q, angles.cos(), angles.sin())
    got = ops.rope(x, positions, inv_freq.tolist())
    np.testing.assert_allclose(got, expected[0].transpose(0, 1).numpy(), rtol=0, atol=8 * E * np.abs(x).max())


def test_interleaved_rope_is_the_other_one_of_sorted_elements() -> None:
    x, inv_freq = normal(4, 2, 40), [1.0, 0.5, 0.3, 0.1]
    order = [0, 2, 4, 6, 1, 3, 5, 7, *range(8, 40)]
    got = ops.rope(x, [5, 6, 7, 8], inv_freq, interleaved=True)
    assert np.array_equal(got[..., order], ops.rope(x[..., order], [5, 6, 7, 8], inv_freq))
    assert not np.array_equal(got, ops.rope(x, [5, 6, 7, 8], inv_freq))


def test_rope_turns_the_first_elements_and_keeps_lengths() -> None:
    x = normal(4, 2, 64)
    got = ops.rope(x, [5, 6, 7, 8], [1.0, 0.1])
    assert np.array_equal(got[..., 4:], x[..., 4:])
    assert not np.array_equal(got[..., :4], x[..., :4])
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


# --- errors -----------------------------------------------------------------------------------------------------------

X, W, K3 = normal(2, 8), ops.quantize(normal(4, 8), "f32"), normal(2, 2, 8)
WRONG: dict[str, Callable[[], object]] = {
    "unknown format": lambda: ops.quantize(X, "int7"),
    "group size of 48": lambda: ops.quantize(X, "int4", group_size=48),
    "group of a float format": lambda: ops.quantize(X, "f32", group_size=32),
    "weight of one dimension": lambda: ops.quantize(X[0], "int8"),
    "weight without columns": lambda: ops.quantize(X[:, :0], "int8"),
    "x of one dimension": lambda: ops.matmul(X[0], W),
    "x of another width": lambda: ops.matmul(X[:, :7], W),
    "bias of another length": lambda: ops.matmul(X, W, np.zeros(3)),
    "norm weight of another length": lambda: ops.rms_norm(X, np.ones(7)),
    "layer norm bias of another length": lambda: ops.layer_norm(X, np.ones(8), np.zeros(7)),
    "softmax of nothing": lambda: ops.softmax(X[:, :0]),
    "unknown activation": lambda: ops.activation(X, "swish2"),
    "positions of another length": lambda: ops.rope(K3, [1], [1.0]),
    "more frequencies than pairs": lambda: ops.rope(K3, [1, 2], [1.0] * 5),
    "logits of two dimensions": lambda: ops.sample(X),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_argument_errors(call: Callable[[], object]) -> None:
    with pytest.raises(llmcore.ArgumentError):
        call()


def test_a_packed_tensor_is_not_pickled() -> None:
    import pickle

    with pytest.raises(TypeError, match="codes"):
        pickle.dumps(W)


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize(("format", "group"), [("int8", 0), ("int4", 32), ("int4", 128), ("ternary", 0), ("int8", 64)])
def test_searched_scales_never_have_the_larger_error(format: str, group: int, tails: str) -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((33, 300)) if tails == "normal" else rng.standard_t(3, (33, 300))
    values = weights.astype(np.float32)

    def errors(scale: str) -> np.ndarray:
        decoded = ops.quantize(values, format, group_size=group, scale=scale).dequantize().astype(np.float64)
        squares = (decoded - values) ** 2
        width = group or 300
        return np.add.reduceat(squares, np.arange(0, 300, width), axis=1)

    plain, searched = errors("max"), errors("mse")
    assert (searched <= plain).all()
    assert searched.sum() < (0.97 if format == "int4" else 1.0) * plain.sum()
    with pytest.raises(llmcore.ArgumentError):
        ops.quantize(values, "int4", scale="min")


def test_a_model_takes_searched_scales(tmp_path: Path) -> None:
    import bits_hash

    bits_hash.write_model(tmp_path)
    plain, searched = (
        llmcore.load(tmp_path, llmcore.QuantConfig(format="int4", group_size=32, scale=scale), progress=False)
        for scale in ("max", "mse")
    )
    stored = llmcore.load(tmp_path, progress=False)
    logits = [np.asarray(model.forward([3, 5, 200])) for model in (stored, plain, searched)]
    assert not (logits[1] == logits[2]).all()
    assert np.linalg.norm(logits[2] - logits[0]) < 1.1 * np.linalg.norm(logits[1] - logits[0])
    assert plain.fingerprint != searched.fingerprint
