"""Blocks as .gguf files hold them: every value as the gguf package has it, whatever the bytes are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmcore import QuantError, _core

TYPES = _core.block_types()


def matrix_of(name: str, blocks: np.ndarray[Any, Any]) -> _core.Matrix:
    weights, size, home = TYPES[name]
    matrix = _core.Matrix(N=len(blocks), K=blocks.shape[1] // size * weights, **home)
    matrix.set_blocks(0, blocks, name)
    return matrix


@pytest.mark.parametrize("name", TYPES)
def test_values_are_the_gguf_packages(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.__members__.get(name)
    weights, size, _ = TYPES[name]
    assert kind is None or gguf.GGML_QUANT_SIZES[kind] == (weights, size)
    blocks = np.random.default_rng(0).integers(0, 256, (37, 3 * size), dtype=np.uint8)
    if name == "TQ2_0":  # which has no 3
        with pytest.raises(QuantError, match=r"row [0-9]+ is out of range"):
            matrix_of(name, blocks)
        blocks &= ~((blocks >> 1) & 0x55)
    got = matrix_of(name, blocks).dequantize()
    with np.errstate(all="ignore"):
        try:
            expected = gguf.dequantize(blocks, kind)
        except (NotImplementedError, ValueError, AttributeError):
            pytest.skip(f"the gguf package can't read {name}")
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    assert (got[finite] == expected[finite]).all()
    assert not np.isfinite(got[~finite]).any()


def test_one_and_two_bits() -> None:
    one = np.frombuffer(np.float16(0.5).tobytes() + bytes([0b10110001]) + bytes(15), np.uint8).reshape(1, -1)
    expected = [0.5, -0.5, -0.5, -0.5, 0.5, 0.5, -0.5, 0.5]
    assert matrix_of("Q1_0", one).dequantize()[0, :9].tolist() == [*expected, -0.5]
    two = np.frombuffer(np.float16(0.5).tobytes() + bytes([0b11100100]) + bytes(15), np.uint8).reshape(1, -1)
    assert matrix_of("Q2_0", two).dequantize()[0, :5].tolist() == [-0.5, 0.0, 0.5, 1.0, -0.5]


def test_blocks_of_another_kind_are_refused() -> None:
    matrix = _core.Matrix("int4", 2, 256, 32)
    matrix.set_blocks(0, np.zeros((2, 144), np.uint8), "Q4_0")
    for name, shape in (("Q4_1", (2, 160)), ("Q4_0", (2, 143)), ("Q4_0", (3, 144)), ("Q4_2", (2, 144))):
        with pytest.raises(ValueError, match=r"matrix|blocks|block type"):
            matrix.set_blocks(0, np.zeros(shape, np.uint8), name)
