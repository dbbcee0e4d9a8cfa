"""Packing: from the tensors of a checkpoint to the matrices and vectors the native decoder runs on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.calibration import Calibration, column_scales, gptq
from llmcore.checkpoint.quantized import PackedTensor
from llmcore.errors import ArgumentError, NumericError, QuantError, UnsupportedModelError, escape
from llmcore.models.binding import Binding, BlockTensor, BoundSlot, DenseTensor, Part
from llmcore.quantization import MatrixFormat, QuantConfig

_CHUNK_BYTES = 32 << 20
"""Rows are read and packed this many float32 bytes at a time, so memory peaks at the packed size and a little."""
_STORED = {"F32": "f32", "BF16": "bf16", "F16": "f16"}

Weight = _core.Matrix | tuple[_core.Matrix, ...] | npt.NDArray[np.float32]
"""Of a slot: a matrix, several that are stacked by rows, or a vector."""

SMOOTHED = ("qkv", "gate_up", "up", "down")
"""Slots whose columns can be scaled: a norm or a linear map feeds them."""


def num_weights(slot: BoundSlot) -> int:
    """How many weights a slot holds."""
    return sum(math.prod(part.shape) for part in slot.parts)


class Packer:
    """Turns the tensors of a slot into a packed matrix or a float32 vector."""

    def __init__(
        self,
        binding: Binding,
        recipe: QuantConfig | None,
        floats: str | None,
        check_finite: bool,
        calibration: Calibration | None = None,
    ) -> None:
        self.binding = binding
        self.recipe = recipe
        self.floats = floats
        self.check_finite = check_finite
        self.calibration = calibration
        self._scales: dict[str, npt.NDArray[np.float32]] = {}

    def is_matrix(self, slot: BoundSlot) -> bool:
        return self.binding.spec.is_matrix(slot.slot.name)

    def formats(self, slot: BoundSlot) -> list[MatrixFormat]:
        """How the matrices of a slot are stored; none for a vector."""
        return [section.form for section in self._sections(slot)] if self.is_matrix(slot) else []

    def _sections(self, slot: BoundSlot) -> list[_Section]:
        """The matrices of a slot, stacked by rows: parts that can share one do."""
        homes = [(self._format(slot, part), _order_of(part), part) for part in slot.parts]
        made = []
        for (form, order), found in groupby(homes, key=lambda home: (home[0], home[1])):
            parts = tuple(part for _, _, part in found)
            made.append(_Section(form=form, order=order, parts=parts, transposed=slot.slot.transpose))
        return made

    def _format(self, slot: BoundSlot, part: Part) -> MatrixFormat:
        name = slot.slot.name
        if not isinstance(part, DenseTensor):
            if self.recipe is not None:
                raise ArgumentError(
                    "this checkpoint is quantised already and keeps its exact values: load it without "
                    "quantize (llmcore quantize: --format none)"
                )
            if isinstance(part, BlockTensor):
                return _home_of_blocks(part.dtype)
            group = 0 if part.group_size == part.shape[1] else part.group_size
            name = "int8" if part.bits > 6 else f"int{max(part.bits, 2)}"
            scales = _STORED[part.scale_dtype]
            return MatrixFormat(format=name, group_size=group, zero_points=part.has_zero_points, scales=scales)
        stored = MatrixFormat(format=self.floats or _STORED[part.dtype])
        if self.recipe is None or name == "position_embedding":
            return stored
        modules = slot.slot.modules or (name,)
        return self.recipe.of(modules, is_head=name in ("embedding", "lm_head")) or stored

    def nbytes(self, slot: BoundSlot) -> int:
        """Bytes once packed."""
        if not self.is_matrix(slot):
            return 4 * num_weights(slot)
        return sum(section.nbytes for section in self._sections(slot))

    def pack(self, slot: BoundSlot) -> Weight:
        """The slot's weights. Raises QuantError, NumericError, StorageError."""
        if not self.is_matrix(slot):
            parts = [self._read(part, 0, part.shape[0]) for part in slot.parts]
            vector = np.concatenate([_to_float32(values) for values in parts]) + np.float32(slot.slot.offset)
            return self._divide(slot.slot.name, vector)
        sections = self._sections(slot)
        form = sections[0].form
        if self.calibration and (form.calibrated or slot.slot.name.rpartition(".")[2] in SMOOTHED):
            if len(sections) > 1:
                raise UnsupportedModelError(f"{escape(slot.slot.name)}: parts of different types can't be calibrated")
            matrix = form.make(*sections[0].shape)
            self._pack_calibrated(matrix, form, slot, self.calibration)
            return matrix
        matrices = tuple(self._pack_section(section) for section in sections)
        return matrices[0] if len(matrices) == 1 else matrices

    def _pack_section(self, section: _Section) -> _core.Matrix:
        matrix = section.form.make(*section.shape)
        if section.order is not None:
            matrix.set_order(np.frombuffer(section.order, np.int32))
        at = 0
        for part in section.parts:
            at += self._pack_part(matrix, at, part, section.transposed, section.form.search)
        return matrix

    def _pack_calibrated(
        self, matrix: _core.Matrix, wanted: MatrixFormat, slot: BoundSlot, calibration: Calibration
    ) -> None:
        name = slot.slot.name
        weights = self._divide(name, self._weights(slot))
        by = self._column_scales(name)
        if by is not None:
            weights = weights * by
        if not wanted.calibrated:
            matrix.set_rows(0, np.ascontiguousarray(weights), search=wanted.search)
            return
        moments = calibration.inputs(name).moments
        codes, scales, zeros = gptq(weights, moments if by is None else moments / np.outer(by, by), wanted)
        if zeros is None:
            matrix.set_codes(0, codes, scales)
        else:
            matrix.set_codes(0, codes, scales, zeros)

    def _weights(self, slot: BoundSlot) -> npt.NDArray[np.float32]:
        parts = [_to_float32(self._read(part, 0, part.shape[0])) for part in slot.parts]
        whole: npt.NDArray[np.float32] = np.concatenate([part.T if slot.slot.transpose else part for part in parts])
        return whole

    def _column_scales(self, name: str) -> npt.NDArray[np.float32] | None:
        """What the columns of a matrix slot are multiplied with; None: nothing."""
        slot = self.binding.slots.get(name)
        if self.calibration is None or slot is None or name.rpartition(".")[2] not in SMOOTHED:
            return None
        if name.endswith(".down") and not self.binding.spec.gated_mlp:
            return None  # what feeds it isn't linear in anything
        wanted = self._format(slot, slot.parts[0])
        if wanted.smoothing == "none":
            return None
        if name not in self._scales:
            self._scales[name] = column_scales(self._weights(slot), self.calibration.inputs(name), wanted)
        return self._scales[name]

    def _divide(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What feeds a matrix with scaled columns, divided by the scales: a norm, or the rows of `up`."""
        prefix, _, last = name.rpartition(".")
        fed = {"attention_norm": "qkv", "mlp_norm": "gate_up" if self.binding.spec.gated_mlp else "up"}
        matrix = fed.get(last.removesuffix("_bias"))
        if matrix:
            by = self._column_scales(f"{prefix}.{matrix}")
            return values if by is None else values / by
        if last.removesuffix("_bias") == "gate_up":
            by = self._column_scales(f"{prefix}.down")
            if by is not None:  # rows of gate, then those of up
                factors = np.concatenate([np.ones_like(by), by])
                divided: npt.NDArray[np.float32] = values / (factors[:, None] if values.ndim == 2 else factors)
                return divided
        return values

    def _pack_part(self, matrix: _core.Matrix, at: int, part: Part, transposed: bool, search: bool) -> int:
        """Packs one tensor from row `at` on; returns how many rows that were."""
        if transposed:
            matrix.set_rows(at, self._read(part, 0, part.shape[0]), True, search)
            return part.shape[1]
        step = max(1, _CHUNK_BYTES // (4 * part.shape[1]))
        for row in range(0, part.shape[0], step):
            stop = min(part.shape[0], row + step)
            if isinstance(part, DenseTensor):
                matrix.set_rows(at + row, self._read(part, row, stop), search=search)
            else:
                self._keep_rows(matrix, at + row, part, row, stop)
        return part.shape[0]

    def _keep_rows(
        self, matrix: _core.Matrix, at: int, part: BlockTensor | PackedTensor, start: int, stop: int
    ) -> None:
        """Packs some rows that are quantised already, from row `at` on."""
        if isinstance(part, BlockTensor):
            blocks = part.read(start, stop)
            self._check_blocks(part, blocks)
            with self._naming(part.name):
                matrix.set_blocks(at, blocks, part.dtype)
            return
        scales, zeros, codes = part.scales(start, stop), part.zero_points(start, stop), part.codes(start, stop)
        self._check(scales, part.module)
        with self._naming(part.module):
            if part.has_zero_points:
                matrix.set_codes(at, codes, scales, zeros)
            else:
                matrix.set_codes(at, codes, scales)

    @contextmanager
    def _naming(self, tensor: str) -> Iterator[None]:
        """Adds file and tensor to what the native core says of its values."""
        try:
            yield
        except QuantError as error:
            raise QuantError(str(error), file=self.binding.file, field=tensor) from None

    def _read(self, part: Part, start: int, stop: int) -> npt.NDArray[Any]:
        assert isinstance(part, DenseTensor)  # packed tensors are matrices, never transposed: binding sees to it
        values = part.read(start, stop)
        self._check(values, part.name)
        return values

    def _check_blocks(self, part: BlockTensor, blocks: npt.NDArray[np.uint8]) -> None:
        if self.check_finite:
            matrix = _home_of_blocks(part.dtype).make(len(blocks), part.shape[1])
            matrix.set_blocks(0, blocks, part.dtype)
            self._check(matrix.dequantize(), part.name)

    def _check(self, values: npt.NDArray[Any], name: str) -> None:
        if not self.check_finite:
            return
        finite = (values & 0x7F80) != 0x7F80 if values.dtype == np.uint16 else np.isfinite(values)
        if not finite.all():
            raise NumericError(f"the tensor {escape(name)} holds NaN or infinity")


@dataclass(frozen=True, kw_only=True)
class _Section:
    """Parts of a slot that make one matrix."""

    form: MatrixFormat
    order: bytes | None
    """The order of its columns, int32."""
    parts: Sequence[Part]
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        shapes = [tuple(reversed(part.shape)) if self.transposed else part.shape for part in self.parts]
        return sum(shape[0] for shape in shapes), shapes[0][1]

    @property
    def nbytes(self) -> int:
        return self.form.nbytes(*self.shape) + len(self.order or b"")


def _home_of_blocks(dtype: str) -> MatrixFormat:
    """The format that holds blocks of a ggml type exactly."""
    return MatrixFormat(**_core.block_types()[dtype][2])


def _order_of(part: Part) -> bytes | None:
    order = None if isinstance(part, DenseTensor | BlockTensor) else part.order()
    return None if order is None else order.tobytes()


def matrices_of(weight: Weight) -> tuple[_core.Matrix, ...]:
    """The matrices of a weight; none of a vector."""
    if isinstance(weight, _core.Matrix):
        return (weight,)
    return weight if isinstance(weight, tuple) else ()


def _to_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if values.dtype == np.uint16:  # the bits of bfloat16
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)
