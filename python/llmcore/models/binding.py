"""Which tensors of a checkpoint fill which slots of the decoder: each there, of the right shape, and none left over."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.checkpoint.config import Config
from llmcore.checkpoint.files import shown
from llmcore.checkpoint.methods import is_quantized, read_scheme
from llmcore.checkpoint.quantized import PackedTensor, Scheme
from llmcore.checkpoint.readers import Checkpoint
from llmcore.errors import ArgumentError, ConfigError, QuantError, UnsupportedModelError, escape
from llmcore.models.registry import Architecture, describe
from llmcore.models.spec import DecoderSpec, Slot
from llmcore.quantization import GROUP_SIZES

DENSE_DTYPES = ("F32", "F16", "BF16")
BLOCK_TYPES = frozenset(_core.block_types())
_COMPARE_BYTES = 16 << 20

_log = logging.getLogger("llmcore")


@dataclass(frozen=True, kw_only=True)
class DenseTensor:
    """A float tensor of a checkpoint. `shape` may have fewer rows than the file, where the vocabulary is padded."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """F32, F16 or BF16."""
    source: Checkpoint

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.generic]:
        """Rows `start` to `stop` in new memory: float32, float16, or the bits of BF16 in uint16."""
        stop = self.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= self.shape[0]:
            raise ArgumentError(f"rows {start} to {stop} of {escape(self.name)} are outside 0 to {self.shape[0]}")
        return self.source.read_rows(self.name, start, stop)


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """A matrix of ggml's blocks. `shape` is that of the weights and may have fewer rows than the file."""

    name: str
    shape: tuple[int, int]
    dtype: str
    """The name of the type, as Q4_K."""
    source: Checkpoint

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows `start` to `stop` in new memory: uint8 [rows, bytes of a row]."""
        return self.source.read_rows(self.name, start, stop).view(np.uint8)


Part = DenseTensor | BlockTensor | PackedTensor


@dataclass(frozen=True, kw_only=True)
class BoundSlot:
    """A slot with its tensors, to be stacked along the first axis. Only blocks stand beside parts of another type."""

    slot: Slot
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What it takes to load a model: its numbers, and each slot's tensors in the order of the decoder."""

    file: Path
    """The checkpoint, for messages."""
    spec: DecoderSpec
    slots: Mapping[str, BoundSlot]
    scheme: Scheme | None
    """The checkpoint's own quantisation."""


def bind(checkpoint: Checkpoint) -> Binding:
    """Reads the architecture of an open checkpoint and finds all its tensors, without reading weights.

    Rules: every tensor must be used or be known to carry no weights. An embedding with more rows than the vocabulary is
    cut to it. With tied embeddings, an lm_head in the file is dropped if it equals the embedding; if it differs it is
    used and the model counts as untied, with a warning. Raises ConfigError, QuantError and UnsupportedModelError.
    """
    generation = Config(checkpoint.generation_config, file=checkpoint.path / "generation_config.json")
    module, spec = describe(checkpoint.config, generation)
    return _Binder(checkpoint, module).bind(spec, read_scheme(checkpoint.config))


class _Binder:
    def __init__(self, checkpoint: Checkpoint, module: Architecture) -> None:
        self.checkpoint = checkpoint
        self.tensors = checkpoint.tensors
        self.file: Path = checkpoint.path
        self.module = module
        # Files saved from the bare model, without its head, leave the prefix out.
        self.bare = not any(name.startswith(module.BASE) for name in self.tensors)
        self.used: set[str] = set()
        self.missing: list[str] = []

    def bind(self, spec: DecoderSpec, scheme: Scheme | None) -> Binding:
        self.check_layers(spec)
        slots = self.module.slots(replace(spec, tie_word_embeddings=False))
        slots, tied = self.tie(slots, spec.tie_word_embeddings)
        bound: dict[str, BoundSlot] = {}
        for slot in slots:
            parts = self.parts(slot, spec, scheme)
            if parts:
                bound[slot.name] = BoundSlot(slot=slot, parts=parts)
        if self.missing:
            raise ConfigError(f"{len(self.missing)} tensors are missing: {_listed(self.missing)}", file=self.file)
        self.check_unused()
        self.check_declared_dtype(bound)
        spec = replace(spec, tie_word_embeddings=tied)
        return Binding(file=self.file, spec=spec, slots=bound, scheme=scheme)

    def actual(self, name: str) -> str:
        return name.removeprefix(self.module.BASE) if self.bare else name

    def check_layers(self, spec: DecoderSpec) -> None:
        """The file bounds the layer loop: a config of a million layers is refused before anything loops over them."""
        prefix = self.actual(self.module.LAYERS)
        numbers = {name[len(prefix) :].partition(".")[0] for name in self.tensors if name.startswith(prefix)}
        bad = [number for number in numbers if not re.fullmatch(r"0|[1-9][0-9]{0,5}", number)]
        if bad:
            raise ConfigError("a tensor name holds no layer number", file=self.file, field=prefix + bad[0])
        highest = max((int(number) for number in numbers), default=-1)
        if len(numbers) != spec.num_layers or highest != spec.num_layers - 1:
            key = "num_hidden_layers" if "num_hidden_layers" in self.checkpoint.config else "n_layer"
            raise self.checkpoint.config.error(
                key, f"does not fit the file, which holds {len(numbers)} layers up to number {highest}"
            )

    def tie(self, slots: Sequence[Slot], tied: bool) -> tuple[list[Slot], bool]:
        """The slots with or without an lm_head, and whether the model is tied."""
        by_name = {slot.name: slot for slot in slots}
        embedding, head = by_name["embedding"], by_name["lm_head"]
        if not tied:
            return list(slots), False
        embedding_name, head_name = self.actual(embedding.tensors[0]), self.actual(head.tensors[0])
        without = [slot for slot in slots if slot.name != "lm_head"]
        if head_name not in self.tensors:
            return without, True
        if embedding_name not in self.tensors:
            return [replace(slot, tensors=head.tensors) if slot.name == "embedding" else slot for slot in without], True
        if self.equal(embedding_name, head_name):
            self.used.add(head_name)
            return without, True
        _log.warning(
            "%s: tie_word_embeddings is true, but %s and %s differ; the model is used untied",
            shown(self.file),
            escape(embedding_name),
            escape(head_name),
        )
        return list(slots), False

    def equal(self, first: str, second: str) -> bool:
        one, other = self.tensors[first], self.tensors[second]
        if (one.dtype, one.shape) != (other.dtype, other.shape) or len(one.shape) != 2:
            return False
        rows = one.shape[0]
        step = max(1, _COMPARE_BYTES * rows // max(1, one.nbytes))
        return all(
            self.checkpoint.read_rows(first, at, min(rows, at + step)).tobytes()
            == self.checkpoint.read_rows(second, at, min(rows, at + step)).tobytes()
            for at in range(0, rows, step)
        )

    def parts(self, slot: Slot, spec: DecoderSpec, scheme: Scheme | None) -> tuple[Part, ...]:
        modules = [self.actual(module) for module in slot.modules]
        if spec.is_matrix(slot.name) and any(is_quantized(module, self.checkpoint) for module in modules):
            return self.packed_parts(slot, modules, scheme)
        names = [self.actual(name) for name in slot.tensors]
        present = [name for name in names if name in self.tensors]
        if slot.optional and not present:
            return ()
        self.missing += [name for name in names if name not in self.tensors]
        if len(present) < len(names):
            return ()
        padded = slot.name in ("embedding", "lm_head")
        parts = tuple(self.stored(name, shape, padded) for name, shape in zip(names, slot.shapes, strict=True))
        blocks = [part.name for part in parts if isinstance(part, BlockTensor)]
        if not blocks:
            self.check_alike(slot, [part.dtype for part in parts])
        elif not spec.is_matrix(slot.name) or slot.transpose:
            raise UnsupportedModelError(f"{shown(self.file)}: {escape(blocks[0])} can't be quantised")
        return parts

    def stored(self, name: str, shape: tuple[int, ...], padded: bool) -> DenseTensor | BlockTensor:
        info = self.tensors[name]
        self.used.add(name)
        more_rows = padded and info.shape[1:] == shape[1:] and len(info.shape) == 2 and info.shape[0] > shape[0]
        if more_rows:
            _log.warning(
                "%s: %s has %d rows for a vocabulary of %d; the rest is left out",
                shown(self.file),
                escape(name),
                info.shape[0],
                shape[0],
            )
        elif info.shape != shape:
            raise ConfigError(
                "the tensor's shape does not fit the config",
                file=self.file,
                field=name,
                value=list(info.shape),
                allowed=str(list(shape)),
            )
        if info.dtype in BLOCK_TYPES and len(shape) == 2:
            return BlockTensor(name=name, shape=(shape[0], shape[1]), dtype=info.dtype, source=self.checkpoint)
        if info.dtype not in DENSE_DTYPES:
            raise UnsupportedModelError(
                f"{shown(self.file)}: weights of dtype {info.dtype} in {escape(name)} are not supported; "
                f"supported: {', '.join(DENSE_DTYPES)}"
            )
        return DenseTensor(name=name, shape=shape, dtype=info.dtype, source=self.checkpoint)

    def packed_parts(self, slot: Slot, modules: Sequence[str], scheme: Scheme | None) -> tuple[PackedTensor, ...]:
        if scheme is None:
            raise QuantError(
                "the file holds quantised tensors, but config.json has no quantization_config",
                file=self.file,
                field=modules[0],
            )
        if slot.transpose:
            raise UnsupportedModelError(f"{escape(modules[0])}: a quantised matrix stored [in, out] is not supported")
        parts = []
        for module, shape in zip(modules, slot.shapes, strict=True):
            if not is_quantized(module, self.checkpoint):
                raise ConfigError(
                    f"{escape(module)} is not quantised, other parts of {slot.name} are", file=self.file, field=module
                )
            if len(shape) != 2:
                raise QuantError("only matrices can be quantised", file=self.file, field=module)
            part = scheme.tensor(module, (shape[0], shape[1]), self.checkpoint)
            if part.group_size not in (shape[1], *GROUP_SIZES):
                raise UnsupportedModelError(
                    f"{shown(self.file)}: groups of {part.group_size} in {escape(module)} are not supported; "
                    f"supported: {', '.join(str(size) for size in GROUP_SIZES if size)}, or the whole row"
                )
            parts.append(part)
            self.used.update(scheme.tensor_names(module, self.checkpoint))
        self.check_alike(slot, [f"{part.dtype} with {part.scale_dtype}" for part in parts])
        return tuple(parts)

    def check_alike(self, slot: Slot, kinds: Sequence[str]) -> None:
        if len(set(kinds)) > 1:
            raise ConfigError(
                f"the tensors of {slot.name} differ in type", file=self.file, field=slot.tensors[0], value=list(kinds)
            )

    def check_unused(self) -> None:
        ignored = [re.compile(pattern) for pattern in self.module.IGNORED]
        unused = [
            name
            for name in self.tensors
            if name not in self.used and not any(pattern.fullmatch(name) for pattern in ignored)
        ]
        if unused:
            raise ConfigError(
                f"{len(unused)} tensors have no place in this {self.module.ARCHITECTURE}: {_listed(unused)}",
                file=self.file,
            )

    def check_declared_dtype(self, bound: Mapping[str, BoundSlot]) -> None:
        """The tensors win over the config's dtype; the contradiction is logged."""
        config = self.checkpoint.config
        key = "dtype" if config.has("dtype") else "torch_dtype"
        declared = {"float32": "F32", "float": "F32", "float16": "F16", "half": "F16", "bfloat16": "BF16"}.get(
            str(config.get(key)).removeprefix("torch.")
        )
        found = {part.dtype for slot in bound.values() for part in slot.parts if isinstance(part, DenseTensor)}
        if declared is not None and found and declared not in found:
            _log.warning("%s: %s says %s, the tensors are %s", shown(config.file), key, declared, sorted(found))


def num_parameters(binding: Binding) -> int:
    """How many weights the model has, a tied matrix counted once."""
    return sum(math.prod(part.shape) for slot in binding.slots.values() for part in slot.parts)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(escape(name) for name in names[:8]) + (" ..." if len(names) > 8 else "")
