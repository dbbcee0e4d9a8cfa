"""Packed models: the weights as they lie in memory, so that loading is reading.

A folder like any checkpoint's: config.json, the tokenizer's files, and model.safetensors, which holds for each matrix
of the decoder `NAME.codes` and `NAME.scales` (and `NAME.shifts`, `NAME.order`) as bytes (layouts: csrc/quant) and each
vector as float32. A weight of several matrices has them as `NAME.0`, `NAME.1`, ... What the bytes
are stands in config.json under `quantization_config`, whose `quant_method` is "llmcore", so that no other program takes
them for weights.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.chat import TOOL_USE_FILE
from llmcore.checkpoint.config import Config
from llmcore.checkpoint.files import check_path, open_below, shown, storage_error
from llmcore.checkpoint.gguf import read_vocabulary
from llmcore.checkpoint.hf_dir import SINGLE_NAME, holds_tokenizer
from llmcore.checkpoint.readers import Checkpoint
from llmcore.checkpoint.write import RawTensor, save_json, save_safetensors, write_atomically
from llmcore.errors import ArgumentError, NumericError, QuantError, StorageError, UnsupportedModelError, escape
from llmcore.models.registry import describe
from llmcore.models.spec import DecoderSpec, Slot
from llmcore.packing import Weight, matrices_of
from llmcore.progress import Progress
from llmcore.quantization import (
    FLOAT_FORMATS,
    GROUP_SIZES,
    KEPT_FORMATS,
    ROWS_PER_PANEL,
    ZERO_POINT_FORMATS,
    MatrixFormat,
)

METHOD = "llmcore"
VERSION = 2
_MAX_TOKENIZER_BYTES = 256 << 20
_SCALES = ("f32", "f16", "bf16", "int8")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("tokenizer.gguf", "vocab.json", "merges.txt", "tekken.json", "chat_template.jinja", "chat_template.json"),
    TOOL_USE_FILE,
)


@dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """How a packed matrix is stored."""

    rows: int
    columns: int
    format: MatrixFormat
    ordered: bool
    """The columns of the codes are in an order of their own."""

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.rows, self.columns) + (4 * self.columns if self.ordered else 0)

    def parts(self) -> dict[str, int]:
        """Bytes of each tensor that it is stored in, by the end of its name; 0: there is none."""
        parts = self.format.parts(self.rows, self.columns)
        return {**{f".{name}": size for name, size in parts.items()}, ".order": 4 * self.columns * self.ordered}


class PackedCheckpoint:
    """A packed model in an open checkpoint, checked against its own description before anything is allocated.

    Raises ConfigError, QuantError, UnsupportedModelError.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        section = checkpoint.config.section("quantization_config")
        assert section is not None
        version = section.integer("version", minimum=1, maximum=1 << 31)
        if version != VERSION:
            problem = section.error("version", "was packed by another llmcore: pack it again", allowed=str(VERSION))
            raise UnsupportedModelError(str(problem))
        generation = Config(checkpoint.generation_config, file=checkpoint.path / "generation_config.json")
        described = section.get("matrices")
        if not isinstance(described, Mapping):
            raise section.error("matrices", "is not an object")
        self.matrices = {str(name): _matrix(section, str(name), value) for name, value in described.items()}
        self._check_stacks()
        module, spec = describe(checkpoint.config, generation)
        tied = spec.tie_word_embeddings and "lm_head" not in self.matrices
        self.spec: DecoderSpec = replace(spec, tie_word_embeddings=tied)
        self.vectors = self._check_tensors()
        if spec.num_layers > len(checkpoint.tensors):  # bounds the loop over the layers
            raise self._error("the file holds fewer layers than config.json says")
        self._check_slots(module.slots(self.spec))

    def _error(self, message: str, **where: Any) -> QuantError:
        return QuantError(message, file=self._checkpoint.path, **where)

    def _check_stacks(self) -> None:
        count: dict[str, int] = {}
        for name in self.matrices:
            slot = _slot(name)
            expected = f"{slot}.{count.get(slot, 0)}" if slot != name else slot
            if name != expected or slot in self.matrices.keys() - {name}:
                raise self._error("matrices that are stacked aren't numbered from 0", field=name)
            count[slot] = count.get(slot, 0) + 1

    def _check_slots(self, slots: Sequence[Slot]) -> None:
        """Every slot of the model must be filled, with what has its shape, and nothing may be left over."""
        stacks: dict[str, list[PackedMatrix]] = {}
        for name, matrix in self.matrices.items():
            stacks.setdefault(_slot(name), []).append(matrix)
        vectors = dict(self.vectors)
        for slot in slots:
            found = stacks.pop(slot.name, []) if self.spec.is_matrix(slot.name) else vectors.pop(slot.name, None)
            if not found and not slot.optional:
                raise self._error("is missing from the model that config.json describes", field=slot.name)
            if isinstance(found, int):
                self._check_shape(slot, found == sum(shape[0] for shape in slot.shapes), [found])
            elif found:
                self._check_shape(slot, _fits(found, slot), [[matrix.rows, matrix.columns] for matrix in found])
        extra = sorted(stacks.keys() | vectors.keys())
        if extra:
            raise self._error("has no place in a model of this config.json", field=extra[0])

    def _check_shape(self, slot: Slot, fits: bool, found: object) -> None:
        if not fits:
            allowed = " over ".join(str(list(shape)) for shape in slot.shapes)
            raise self._error("has not the shape that config.json says", field=slot.name, value=found, allowed=allowed)

    def _check_tensors(self) -> dict[str, int]:
        """The tensors must be those of the matrices, of their sizes, and vectors. Returns the vectors' lengths."""
        tensors = dict(self._checkpoint.tensors)
        for name, matrix in self.matrices.items():
            for end, nbytes in matrix.parts().items():
                part = tensors.pop(name + end, None)
                found = 0 if part is None else part.nbytes
                if found != nbytes:
                    raise self._error(
                        "the packed bytes are not those of its shape",
                        field=name + end,
                        value=found,
                        allowed=str(nbytes),
                    )
        for name, info in tensors.items():
            if info.dtype != "F32" or len(info.shape) != 1 or not info.shape[0]:
                raise self._error("neither a matrix of this packed model nor a vector", field=name)
        return {name: info.shape[0] for name, info in tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""
        return sum(matrix.nbytes for matrix in self.matrices.values()) + 4 * sum(self.vectors.values())

    @property
    def num_weights(self) -> int:
        """How many weights there are."""
        return sum(matrix.rows * matrix.columns for matrix in self.matrices.values()) + sum(self.vectors.values())

    def load(self, progress: bool, check_finite: bool = False) -> dict[str, Weight]:
        """The weights by slot, in native memory. With `check_finite`, NaN or infinity in a vector, a scale, a minimum
        or a float matrix raises NumericError; QuantError."""
        weights: dict[str, Weight] = {}
        with Progress(self.nbytes, "loading", "bytes", enabled=progress) as bar:
            for name, length in self.vectors.items():
                vector = np.empty(length, np.float32)
                self._checkpoint.read_into(name, vector.view(np.uint8).data)
                if check_finite and not np.isfinite(vector).all():
                    raise NumericError(f"the tensor {escape(name)} holds NaN or infinity")
                weights[name] = vector
                bar.advance(vector.nbytes)
            for name, matrix in self.matrices.items():
                try:
                    native = self._load_matrix(name, matrix)
                except QuantError as error:
                    raise self._error(str(error), field=name) from None
                if check_finite and not _is_finite(native):
                    raise NumericError(f"the tensor {escape(name)} holds NaN or infinity")
                stacked = matrices_of(weights[_slot(name)]) if _slot(name) in weights else ()
                weights[_slot(name)] = (*stacked, native) if _slot(name) != name else native
                bar.advance(native.nbytes)
        return weights

    def _load_matrix(self, name: str, matrix: PackedMatrix) -> _core.Matrix:
        native = matrix.format.make(matrix.rows, matrix.columns)
        if matrix.ordered:
            order = np.empty(matrix.columns, "<i4")
            self._checkpoint.read_into(name + ".order", order.view(np.uint8).data)
            native.set_order(order)
        self._checkpoint.read_into(name + ".codes", native.raw_codes.data)
        if native.raw_scales.size:
            self._checkpoint.read_into(name + ".scales", native.raw_scales.data)
        if matrix.format.zero_points:
            self._checkpoint.read_into(name + ".shifts", native.raw_shifts.data)
        native.check()
        return native


def _is_finite(matrix: _core.Matrix) -> bool:
    """Whether all float numbers that a matrix is stored as are finite. Zero points are integers, `check` sees to it."""
    if matrix.format in FLOAT_FORMATS:
        return _all_finite(matrix.raw_codes, matrix.format)
    kind, begin = matrix.scale_type, 0
    if kind == "int8":  # multiples, and behind them their units
        padded = -(-matrix.shape[0] // ROWS_PER_PANEL) * ROWS_PER_PANEL
        kind, begin = "f16", padded * -(-matrix.shape[1] // matrix.group_size)
    minima = matrix.raw_shifts[begin:] if matrix.has_minima else matrix.raw_shifts[:0]
    return _all_finite(matrix.raw_scales[begin:], kind) and _all_finite(minima, "f16")


def _all_finite(stored: npt.NDArray[np.uint8], kind: str) -> bool:
    if kind == "bf16":
        return bool(((stored.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(stored.view(np.float32 if kind == "f32" else np.float16)).all())


def _slot(name: str) -> str:
    """The slot of a matrix: matrices that are stacked have a number behind its name."""
    slot, _, number = name.rpartition(".")
    return slot if number.isdecimal() else name


def _fits(found: Sequence[PackedMatrix], slot: Slot) -> bool:
    """Whether stacked matrices are those of a slot. One of them may hold several of its tensors, but no part of one."""
    shapes = [tuple(reversed(shape)) if slot.transpose else shape for shape in slot.shapes]
    ends = list(accumulate(shape[0] for shape in shapes))
    found_ends = list(accumulate(matrix.rows for matrix in found))
    same_columns = {matrix.columns for matrix in found} == {shape[1] for shape in shapes}
    return same_columns and found_ends[-1] == ends[-1] and set(found_ends) <= set(ends)


def is_packed(config: Config) -> bool:
    """Whether a config.json is a packed model's."""
    section = config.values.get("quantization_config")
    return isinstance(section, Mapping) and section.get("quant_method") == METHOD


def _matrix(section: Config, name: str, value: object) -> PackedMatrix:
    entry = value if isinstance(value, Mapping) else {}
    format, shape, group, scales = (entry.get(key) for key in ("format", "shape", "group_size", "scales"))
    zero_points, ordered = entry.get("zero_points", False), entry.get("ordered", False)
    minima = entry.get("minima", False)
    sizes: list[Any] = shape if isinstance(shape, list) and len(shape) == 2 else []
    integers = [*sizes, group]
    known = (
        len(sizes) == 2
        and all(type(size) is int and 0 <= size <= 1 << 31 for size in integers)
        and min(sizes) >= 1
        and sizes[1] <= 1 << 24
        and isinstance(format, str)
        and (format in KEPT_FORMATS or (format in FLOAT_FORMATS and group == 0))
        and group in GROUP_SIZES
        and scales in _SCALES
        and isinstance(zero_points, bool)
        and isinstance(ordered, bool)
        and (not ordered or format in KEPT_FORMATS)
        and (not zero_points or format in ZERO_POINT_FORMATS)
        and (scales != "int8" or (group != 0 and format in KEPT_FORMATS))
        and isinstance(minima, bool)
        and (not minima or (zero_points and group != 0))
    )
    if not known:
        raise QuantError("is no description of a packed matrix", file=section.file, field=name, value=repr(value)[:120])
    form = MatrixFormat(
        format=str(format), group_size=int(str(group)), zero_points=zero_points, scales=str(scales), minima=minima
    )
    return PackedMatrix(rows=sizes[0], columns=sizes[1], format=form, ordered=ordered)


def check_free(path: str | os.PathLike[str]) -> Path:
    """The absolute path of the folder to be made at `path`.

    Raises ArgumentError unless it can be the name of one and there is nothing, or an empty folder; StorageError.
    """
    check_path(path)
    try:
        target = Path(os.path.abspath(path))
        taken = os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target))
    except OSError as error:
        raise storage_error("look into", path, error) from None
    if taken:
        raise ArgumentError(f"{shown(target)} is there already: give a new folder, or remove it first")
    return target


def save_packed(
    path: str | os.PathLike[str],
    weights: Mapping[str, Weight],
    config: Mapping[str, Any],
    generation_config: Mapping[str, object],
    source: Path,
    *,
    has_tokenizer: bool,
) -> None:
    """Writes a packed model as the new folder `path`, which appears whole or not at all.

    weights: by slot; config: config.json of the checkpoint in the folder or .gguf file `source`, whose tokenizer is
    copied. Raises ArgumentError when `path` is there already, StorageError, also when the tokenizer's files are gone.
    """
    target = check_free(path)
    tensors: dict[str, npt.NDArray[np.generic] | RawTensor] = {}
    matrices: dict[str, object] = {}
    for slot, weight in weights.items():
        if isinstance(weight, np.ndarray):
            tensors[slot] = weight
        for i, matrix in enumerate(matrices_of(weight)):
            name = f"{slot}.{i}" if isinstance(weight, tuple) else slot
            tensors[name + ".codes"] = matrix.raw_codes
            if matrix.raw_scales.size:
                tensors[name + ".scales"] = matrix.raw_scales
            if matrix.has_zero_points:
                tensors[name + ".shifts"] = matrix.raw_shifts
            order = matrix.order
            if order is not None:
                tensors[name + ".order"] = order
            entry = {"format": matrix.format, "shape": list(matrix.shape), "group_size": matrix.group_size}
            entry |= {"scales": matrix.scale_type, "zero_points": matrix.has_zero_points, "ordered": order is not None}
            matrices[name] = entry | {"minima": matrix.has_minima}
    method = {"quant_method": METHOD, "version": VERSION, "matrices": matrices}
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir(parents=True)
        if source.is_file():
            vocabulary = read_vocabulary(source)
            if vocabulary is not None:
                write_atomically(temporary / "tokenizer.gguf", [vocabulary])
        else:
            for name in [*_TOKENIZER_FILES, *sorted(file.name for file in source.glob("*.tiktoken"))]:
                _copy(source, name, temporary)
        if has_tokenizer and not holds_tokenizer(temporary):
            raise StorageError(f"{shown(source)}: the files of the tokenizer, to be saved with the model, are gone")
        if generation_config:
            save_json(temporary / "generation_config.json", dict(generation_config))
        save_safetensors(temporary / SINGLE_NAME, tensors, {"format": METHOD})
        save_json(temporary / "config.json", {**config, "quantization_config": method})
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and type(error).__module__ == "builtins":
            raise storage_error("write", target, error) from None
        raise


def _copy(source: Path, name: str, target: Path) -> None:
    if not os.path.lexists(source / name):
        return
    with open_below(source, name) as file:
        if file.size > _MAX_TOKENIZER_BYTES:
            raise ArgumentError(f"{escape(name)} has {file.size} bytes, which is no tokenizer's file")
        (target / name).parent.mkdir(exist_ok=True)
        write_atomically(target / name, [file.read(file.size, 0)])
