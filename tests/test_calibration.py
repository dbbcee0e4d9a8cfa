"""GPTQ: codes chosen with the second moments of a matrix's inputs, against the algorithm as its paper has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bits_hash
import llmcore
from llmcore import ops
from llmcore.calibration import LEVELS, Inputs, column_scales, gptq
from llmcore.errors import ArgumentError
from llmcore.quantization import MatrixFormat, QuantConfig

FORMS = {
    "int8": MatrixFormat(format="int8"),
    "int4": MatrixFormat(format="int4", group_size=32),
    "int4-row": MatrixFormat(format="int4"),
    "int4-zero": MatrixFormat(format="int4", group_size=64, zero_points=True),
    "int8-zero": MatrixFormat(format="int8", zero_points=True),
    "nf4": MatrixFormat(format="nf4", group_size=64, search=True),
    "ternary": MatrixFormat(format="ternary", group_size=128),
    "ternary_dense": MatrixFormat(format="ternary_dense"),
}


def inputs(rows: int, columns: int) -> np.ndarray:
    """Rows whose columns depend on each other, some much larger than others."""
    rng = np.random.default_rng(5)
    mixed = rng.standard_normal((rows, columns // 4)) @ rng.standard_normal((columns // 4, columns))
    x = mixed + 0.1 * rng.standard_normal((rows, columns))
    return (x * np.exp(rng.standard_normal(columns))).astype(np.float32)


def packed(w: np.ndarray, form: MatrixFormat) -> ops.QuantizedTensor:
    return ops.quantize(
        w,
        form.format,
        group_size=form.group_size,
        scale="mse" if form.search else "max",
        symmetric=not form.zero_points,
    )


def one_by_one(w: np.ndarray, moments: np.ndarray, form: MatrixFormat) -> np.ndarray:
    """Optimal brain quantisation in float64: after each column the inverse of what is left is taken anew."""
    left, columns = w.astype(np.float64), w.shape[1]
    h = moments.astype(np.float64)
    h += np.eye(columns) * 0.01 * np.mean(np.diag(h))
    group, result = form.group_size or columns, np.empty(w.shape)
    for k in range(columns):
        if k % group == 0:
            own = packed(left[:, k : k + group].astype(np.float32), form)
            scale, zero = own.codes()[1][:, 0].astype(np.float64), own.zero_points()[:, 0]
        levels = np.arange(-128, 128) if form.zero_points else np.arange(-127, 128)
        levels = {"int4": np.arange(-8, 8), "ternary": np.arange(-1, 2)}.get(form.format, levels)
        values = scale[:, None] * (levels - zero[:, None])
        result[:, k] = np.take_along_axis(values, np.abs(values - left[:, k : k + 1]).argmin(1)[:, None], 1)[:, 0]
        inverse = np.linalg.inv(h[k:, k:])
        left[:, k:] -= np.outer((left[:, k] - result[:, k]) / inverse[0, 0], inverse[0])
    return result


def weights(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, group: int) -> np.ndarray:
    group = group or codes.shape[1]
    wide = [
        np.repeat(part, group, 1)[:, : codes.shape[1]] for part in (scales, zeros if zeros is not None else 0 * scales)
    ]
    return wide[0] * (codes - wide[1])


@pytest.mark.parametrize("name", FORMS)
def test_outputs_are_nearer_than_with_the_nearest_codes(name: str) -> None:
    form, x = FORMS[name], inputs(600, 300)
    w = np.random.default_rng(1).standard_normal((24, 300)).astype(np.float32) * np.float32(0.02)
    codes, scales, zeros = gptq(w, x.T @ x, form)
    plain, own = packed(w, form), weights(codes, scales, zeros, form.group_size)
    assert scales.shape == plain.codes()[1].shape
    wanted = x @ w.T
    errors = [np.linalg.norm(x @ each.T - wanted) for each in (own, plain.dequantize())]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("name", ["int8", "int4", "int4-row", "int4-zero", "ternary"])
def test_codes_are_those_of_the_algorithm_without_blocks(name: str) -> None:
    form, x = FORMS[name], inputs(500, 200)
    w = np.random.default_rng(2).standard_normal((8, 200)).astype(np.float32) * np.float32(0.02)
    codes, scales, zeros = gptq(w, x.T @ x, form)
    own, slow = weights(codes, scales, zeros, form.group_size), one_by_one(w, x.T @ x, form)
    # One weight in the middle of two levels may fall either way, and all after it in its row differ then.
    same = np.isclose(own, slow, rtol=1e-4, atol=1e-7).all(1)
    assert same.mean() >= 0.75


def test_nf4_levels_are_those_of_the_core() -> None:
    w = np.array([LEVELS["nf4"]], np.float32)
    codes, scales = ops.quantize(w, "nf4", group_size=32).codes()
    assert codes.tolist() == [list(LEVELS["nf4"])]
    assert scales == 1


def test_uncorrelated_inputs_give_the_nearest_codes() -> None:
    w = np.random.default_rng(3).standard_normal((8, 96)).astype(np.float32)
    codes, scales, _ = gptq(w, np.eye(96, dtype=np.float32), FORMS["int4"])
    plain = packed(w, FORMS["int4"])
    assert np.array_equal(codes, plain.codes()[0])
    assert np.array_equal(scales, plain.codes()[1])


def test_inputs_that_never_come_do_no_harm() -> None:
    w = np.random.default_rng(3).standard_normal((8, 96)).astype(np.float32)
    for moments in (np.zeros((96, 96), np.float32), np.diag([1.0, *[0.0] * 95]).astype(np.float32)):
        codes, _, _ = gptq(w, moments, FORMS["int4"])
        assert np.array_equal(codes, packed(w, FORMS["int4"]).codes()[0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e6, 1e38, -3e38])
@pytest.mark.parametrize("name", FORMS)
def test_huge_weights_stay_finite(name: str, value: float) -> None:
    w = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    w[2, 7] = value
    x = inputs(300, 256)
    _, scales, _ = gptq(w, x.T @ x, FORMS[name])
    assert np.isfinite(scales).all()
    column_scales(w, Inputs(300, x.T @ x, np.abs(x).sum(0), np.abs(x).max(0)), FORMS[name])


def error_of(folder: Path, recipe: QuantConfig, ids: list[list[int]], calibration: list[list[int]] | None) -> float:
    with (
        llmcore.load(folder, progress=False) as plain,
        llmcore.load(folder, recipe, progress=False, calibration=calibration) as model,
    ):
        wanted, got = (np.stack([np.asarray(m.forward(each, kv_dtype="f32")) for each in ids]) for m in (plain, model))
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def test_a_calibrated_model_is_nearer_and_saves_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    bits_hash.write_model(folder)
    rng = np.random.default_rng(0)
    # Few of the tokens, so that the inputs have something in common.
    calibration = rng.integers(0, 12, (6, 200)).tolist()
    ids = rng.integers(0, 12, (2, 100)).tolist()
    plain = QuantConfig(format="int4", group_size=32)
    recipe = QuantConfig(format="int4", group_size=32, rounding="gptq")
    errors = [error_of(folder, plain, ids, None), error_of(folder, recipe, ids, calibration)]
    assert errors[1] < 0.8 * errors[0]
    with llmcore.load(folder, recipe, progress=False, calibration=calibration) as model:
        expected = np.asarray(model.forward(ids[0]))
        model.save(tmp_path / "packed")
    with llmcore.load(tmp_path / "packed", progress=False) as again:
        assert np.array_equal(np.asarray(again.forward(ids[0])), expected)


def seen(x: np.ndarray) -> Inputs:
    return Inputs(len(x), x.T @ x, np.abs(x).sum(0), np.abs(x).max(0))


def test_awq_lessens_the_error_by_weights() -> None:
    x = np.random.default_rng(5).standard_normal((400, 128)).astype(np.float32)
    x[:, ::16] *= 10  # what AWQ is for: few columns with large inputs
    w = np.random.default_rng(4).standard_normal((32, 128)).astype(np.float32)
    form = MatrixFormat(format="int4", group_size=32, smoothing="awq")
    by = column_scales(w, seen(x), form)
    assert by.max() * by.min() == pytest.approx(1, rel=1e-4)
    own, plain = packed(w * by, form).dequantize() / by, packed(w, form).dequantize()
    errors = [np.linalg.norm(x @ (each - w).T) for each in (own, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_smoothquant_lessens_the_error_by_activations() -> None:
    x = np.random.default_rng(5).standard_normal((400, 128)).astype(np.float32)
    x[:, 7] *= 300  # one column takes nearly all of the int8 range
    w = np.random.default_rng(4).standard_normal((32, 128)).astype(np.float32)
    form = MatrixFormat(format="int8", smoothing="smoothquant")
    by = column_scales(w, seen(x), form)
    wanted = x @ w.T
    errors = [np.linalg.norm(ops.matmul(a, packed(b, form)) - wanted) for a, b in ((x / by, w * by), (x, w))]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("smoothing", ["awq", "smoothquant"])
@pytest.mark.parametrize("skip", [[], ["*.gate_proj", "*.up_proj"], ["*.down_proj", "*.q_proj"]])
def test_scaled_columns_keep_the_function(tmp_path: Path, smoothing: str, skip: list[str]) -> None:
    bits_hash.write_model(tmp_path)
    ids = list(range(60))
    recipe = QuantConfig(format="int8", group_size=32, smoothing=smoothing, skip=skip)
    assert error_of(tmp_path, recipe, [ids], [ids]) < 0.03


def test_smoothing_and_rounding_work_together(tmp_path: Path) -> None:
    bits_hash.write_model(tmp_path)
    rng = np.random.default_rng(0)
    calibration, ids = rng.integers(0, 12, (6, 200)).tolist(), rng.integers(0, 12, (2, 100)).tolist()
    errors = [
        error_of(tmp_path, QuantConfig(format="int4", smoothing=smoothing, rounding=rounding), ids, calibration)
        for smoothing, rounding in (("awq", "nearest"), ("awq", "gptq"))
    ]
    assert errors[1] < errors[0]


def test_what_calibration_needs(tmp_path: Path) -> None:
    bits_hash.write_model(tmp_path)
    recipe = QuantConfig(format="int4", rounding="gptq")
    for wrong, match in (
        (None, "need calibration"),
        ("one text", "list of texts"),
        ([], "no tokens"),
        ([[]], "no tokens"),
        ([[2**40]], "token ids"),
        (["a text"], "no tokenizer"),
        ([[10**6]], "vocabulary|id"),
    ):
        with pytest.raises(ArgumentError, match=match):
            llmcore.load(tmp_path, recipe, progress=False, calibration=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="token ids"):
        llmcore.load(tmp_path, recipe, progress=False, calibration=[[0.5]])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="gptq"):
        llmcore.load(tmp_path, "int4", progress=False, calibration=[[1, 2]])
    with pytest.raises(ArgumentError, match="calibration"):
        llmcore.load(tmp_path, QuantConfig(format="int4", smoothing="awq"), progress=False)
    with pytest.raises(ArgumentError, match="smoothing"):
        QuantConfig(format="int4", smoothing="much")
    with pytest.raises(ArgumentError, match="rounding"):
        QuantConfig(format="int4", rounding="up")
