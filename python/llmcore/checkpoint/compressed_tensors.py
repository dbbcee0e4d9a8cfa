"""compressed-tensors checkpoints (llm-compressor, vLLM): integer weights of 4 or 8 bits, read as they are.

    int-quantized     X.weight I8 [N, K],                       X.weight_scale [N, 1]
    pack-quantized    X.weight_packed I32 [N, ceil(K * b / 32)], X.weight_scale [N, G], X.weight_shape I64 [2] = [N, K]

A value is scale * code, or scale * (code - zero) with X.weight_zero_point: I8 [N, G], or packed along N into I32
[ceil(N * b / 32), G]. X.weight_g_idx I32 [K], if at all, names the group of each column; if all are -1, groups lie
side by side. Packed codes and zeros are stored as code + 2^(b-1), in one stream of bits, lowest first.
Source: the compressed-tensors project's description of its formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.config import Config
from llmcore.checkpoint.quantized import SCALE_DTYPES, Source, expect, fields, order_of, rows_within, widened
from llmcore.errors import QuantError, UnsupportedModelError, escape

Format = Literal["int-quantized", "pack-quantized"]
FORMATS: Mapping[str, Format] = {
    "int-quantized": "int-quantized",
    "naive-quantized": "int-quantized",
    "pack-quantized": "pack-quantized",
}
ZERO_POINT = ".weight_zero_point"
ORDER = ".weight_g_idx"
SUFFIXES = (".weight_packed", ".weight_scale", ".weight_shape")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the linear layers of a checkpoint are quantised."""

    format: Format
    bits: int
    """4 or 8."""
    group_size: int | None
    """Elements of a row that share a scale; None: the whole row."""
    dynamic_activations: bool
    """Meant to run with int8 activations, scaled per token as they come."""
    ignore: tuple[str, ...]
    """Module names that must not be quantised; entries beginning with "re:" are not evaluated."""
    symmetric: bool = True
    ordered: bool = False
    """Groups are of columns that needn't lie side by side, so a g_idx must say which (actorder "group")."""

    def tensor_names(self, module: str, source: Source) -> tuple[str, ...]:
        """The tensors that a quantised module has."""
        suffixes = (".weight", ".weight_scale") if self.format == "int-quantized" else SUFFIXES
        found = (*(() if self.symmetric else (ZERO_POINT,)), *((ORDER,) if module + ORDER in source.tensors else ()))
        return tuple(module + suffix for suffix in (*suffixes, *found))

    def tensor(self, module: str, shape: tuple[int, int], source: Source) -> PackedTensor:
        """The quantised matrix of `module`, which must be `shape` = (N, K). Raises QuantError when that doesn't fit."""
        return packed_tensor(module, shape, self, source)


_PRESETS: Mapping[str, tuple[int, int | None, bool, bool]] = {
    "W8A8": (8, None, True, True),
    "INT8": (8, None, True, True),
    "W4A16": (4, 128, False, True),
    "W4A16_ASYM": (4, 128, False, False),
    "W8A16": (8, None, False, True),
}


def read(config: Config) -> Scheme:
    """Of a quantization_config with this quant_method. Raises ConfigError, UnsupportedModelError."""
    config.require_neutral({"transform_config": (None, {}), "kv_cache_scheme": (None,)})
    sparsity = config.section("sparsity_config")
    if sparsity is not None and sparsity.values:
        sparsity.require_neutral({"format": ("dense", None)})
    config.choice("quantization_status", {"compressed": True}, default=True, error=UnsupportedModelError)
    groups = config.section("config_groups")
    if groups is None or not groups.values:
        raise config.error("config_groups", "is missing or empty")
    ignore = tuple(config.strings("ignore"))
    schemes = {_group(groups, name, config, ignore) for name in groups.values}
    if len(schemes) > 1:
        raise UnsupportedModelError(str(config.error("config_groups", "groups that differ are not supported")))
    return schemes.pop()


def _group(groups: Config, name: str, config: Config, ignore: tuple[str, ...]) -> Scheme:
    if name in _PRESETS:
        groups.strings(name)
        bits, group_size, dynamic, symmetric = _PRESETS[name]
        default: Format = "int-quantized" if dynamic else "pack-quantized"
        form = config.choice("format", FORMATS, default=default, error=UnsupportedModelError)
        return Scheme(
            format=form,
            bits=bits,
            group_size=group_size,
            dynamic_activations=dynamic,
            ignore=ignore,
            symmetric=symmetric,
        )
    group = groups.section(name)
    if group is None:
        raise groups.error(name, "has the wrong type", allowed="an object")
    group.strings("targets")
    weights = group.section("weights")
    if weights is None:
        raise group.error("weights", "is missing")
    group.require_neutral({"output_activations": (None,)})
    form = (group if group.has("format") else config).choice("format", FORMATS, error=UnsupportedModelError)
    bits, group_size = _weights(weights)
    weights.require_neutral({"actorder": (None, False, "weight", "static", "group", True)})
    if form == "int-quantized" and bits != 8:
        raise weights.error("num_bits", "does not fit the format int-quantized", allowed="8")
    return Scheme(
        format=form,
        bits=bits,
        group_size=group_size,
        dynamic_activations=_activations(group.section("input_activations")),
        ignore=ignore,
        symmetric=weights.boolean("symmetric", default=True),
        ordered=weights.get("actorder") in ("group", True),
    )


def _weights(weights: Config) -> tuple[int, int | None]:
    bits = weights.integer("num_bits", minimum=1, maximum=8)
    weights.choice("type", {"int": "int"}, default="int", error=UnsupportedModelError)
    if bits not in (4, 8):
        raise UnsupportedModelError(str(weights.error("num_bits", "is not supported", allowed="4, 8")))
    if weights.has("dynamic") and weights.boolean("dynamic"):
        raise weights.error("dynamic", "weights can't have scales made at run time", allowed="false")
    strategies = {"channel": False, "group": True}
    if weights.choice("strategy", strategies, error=UnsupportedModelError):
        return bits, weights.integer("group_size", minimum=1, maximum=1 << 20)
    if weights.has("group_size") and weights.get("group_size") != -1:
        raise weights.error("group_size", "does not fit the strategy channel", allowed="null or -1")
    return bits, None


def _activations(activations: Config | None) -> bool:
    if activations is None:
        return False
    activations.require_neutral(
        {"num_bits": (8,), "type": ("int",), "symmetric": (True,), "strategy": ("token",), "dynamic": (True,)}
    )
    return True


@dataclass(frozen=True, kw_only=True)
class PackedTensor:
    """A quantised matrix [N, K] in a checkpoint: value[n, k] = scales[n, k // group_size] * codes[n, k], exactly."""

    module: str
    shape: tuple[int, int]
    bits: int
    group_size: int
    """Elements that share a scale; K for one scale per row."""
    scale_dtype: str
    dynamic_activations: bool
    source: Source
    format: Format
    symmetric: bool = True

    @property
    def num_groups(self) -> int:
        """Scales per row."""
        return self.shape[1] // self.group_size

    @property
    def has_zero_points(self) -> bool:
        """False when all are 0."""
        return not self.symmetric

    @property
    def dtype(self) -> str:
        """A name for messages, as "int4 in groups of 64"."""
        return f"int{self.bits} in groups of {self.group_size}"

    def order(self) -> npt.NDArray[np.int32] | None:
        """int32 [K]: the columns, those of a group side by side; None: as they are. Raises QuantError."""
        name = self.module + ORDER
        if name not in self.source.tensors or (self.source.read(name) == -1).all():
            return None
        return order_of(self.source, name, self.group_size)

    def codes(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int8]:
        """int8 [rows, K] of the rows `start` to `stop`, in `order`, from -2^(bits-1) to 2^(bits-1) - 1."""
        order = self.order()
        codes = self._codes(*rows_within(self, start, stop))
        return codes if order is None else np.ascontiguousarray(codes[:, order])

    def _codes(self, start: int, stop: int) -> npt.NDArray[np.int8]:
        if self.format == "int-quantized":
            return self.source.read_rows(self.module + ".weight", start, stop).view(np.int8)
        words = self.source.read_rows(self.module + ".weight_packed", start, stop)
        return _unpacked(words.reshape(stop - start, -1), self.bits)[:, : self.shape[1]]

    def scales(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """float32 [rows, G] of the rows `start` to `stop`; widening the stored type changes no value."""
        start, stop = rows_within(self, start, stop)
        stored = self.source.read_rows(self.module + ".weight_scale", start, stop)
        return widened(stored, self.scale_dtype)

    def zero_points(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """float32 integers [rows, G] of the rows `start` to `stop`."""
        start, stop = rows_within(self, start, stop)
        if self.symmetric:
            return np.zeros((stop - start, self.num_groups), np.float32)
        name = self.module + ZERO_POINT
        if self.format == "int-quantized":
            return self.source.read_rows(name, start, stop).astype(np.float32)
        packed = np.ascontiguousarray(self.source.read(name).T)  # now a row holds the zeros of a group
        return _unpacked(packed, self.bits)[:, start:stop].T.astype(np.float32)


def _unpacked(words: npt.NDArray[np.generic], bits: int) -> npt.NDArray[np.int8]:
    """Signed codes [rows, n * 32 / bits] of words [rows, n]."""
    return (fields(words, bits) - np.uint8(1 << (bits - 1))).view(np.int8)


def packed_tensor(module: str, shape: tuple[int, int], scheme: Scheme, source: Source) -> PackedTensor:
    """The quantised matrix of `module`, which must be `shape` = (N, K). Raises QuantError when that doesn't fit."""
    if module in scheme.ignore:
        raise QuantError(f"{escape(module)} is quantised, but quantization_config.ignore names it", file=source.path)
    rows, columns = shape
    group_size = columns if scheme.group_size is None else scheme.group_size
    if columns % group_size:
        raise QuantError(
            "does not divide the inputs of the layer",
            file=source.path,
            field=module,
            value=group_size,
            allowed=f"a divisor of {columns}",
        )
    name = module + (".weight" if scheme.format == "int-quantized" else ".weight_packed")
    stored = (rows, columns) if scheme.format == "int-quantized" else (rows, -(-columns * scheme.bits // 32))
    expect(source, name, stored, ("I8",) if scheme.format == "int-quantized" else ("I32",))
    expect(source, module + ".weight_scale", (rows, columns // group_size), SCALE_DTYPES)
    if scheme.format == "pack-quantized":
        expect(source, module + ".weight_shape", (2,), ("I64", "I32"))
        found = tuple(int(size) for size in source.read(module + ".weight_shape"))
        if found != shape:
            raise QuantError(
                "does not fit the config",
                file=source.path,
                field=module + ".weight_shape",
                value=found,
                allowed=str(shape),
            )
    if not scheme.symmetric and scheme.format == "int-quantized":
        expect(source, module + ZERO_POINT, (rows, columns // group_size), ("I8",))
    elif not scheme.symmetric:
        expect(source, module + ZERO_POINT, (-(-rows * scheme.bits // 32), columns // group_size), ("I32",))
    if module + ORDER in source.tensors:
        expect(source, module + ORDER, (columns,), ("I32", "I64"))
    elif scheme.ordered and group_size < columns:
        raise QuantError("is missing, though actorder says group", file=source.path, field=module + ORDER)
    return PackedTensor(
        module=module,
        shape=shape,
        bits=scheme.bits,
        group_size=group_size,
        scale_dtype=source.tensors[module + ".weight_scale"].dtype,
        dynamic_activations=scheme.dynamic_activations,
        source=source,
        format=scheme.format,
        symmetric=scheme.symmetric,
    )
