"""compressed-tensors checkpoints (llm-compressor, vLLM): symmetric integer weights of 4 or 8 bits, read as they are.

    int-quantized     X.weight I8 [N, K],                       X.weight_scale [N, 1]
    pack-quantized    X.weight_packed I32 [N, ceil(K * b / 32)], X.weight_scale [N, G], X.weight_shape I64 [2] = [N, K]

A value is scale * code. Packed codes are stored as code + 2^(b-1), a row being one stream of bits, lowest first.
Source: the compressed-tensors project's description of its formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.config import Config
from llmcore.checkpoint.quantized import SCALE_DTYPES, Source, expect, rows_within, widened
from llmcore.errors import QuantError, UnsupportedModelError, escape

Format = Literal["int-quantized", "pack-quantized"]
FORMATS: Mapping[str, Format] = {
    "int-quantized": "int-quantized",
    "naive-quantized": "int-quantized",
    "pack-quantized": "pack-quantized",
}
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

    def tensor_names(self, module: str, source: Source) -> tuple[str, ...]:
        """The tensors that a quantised module has."""
        if self.format == "int-quantized":
            return module + ".weight", module + ".weight_scale"
        return tuple(module + suffix for suffix in SUFFIXES)

    def tensor(self, module: str, shape: tuple[int, int], source: Source) -> PackedTensor:
        """The quantised matrix of `module`, which must be `shape` = (N, K). Raises QuantError when that doesn't fit."""
        return packed_tensor(module, shape, self, source)


_PRESETS: Mapping[str, tuple[int, int | None, bool]] = {
    "W8A8": (8, None, True),
    "INT8": (8, None, True),
    "W4A16": (4, 128, False),
    "W8A16": (8, None, False),
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
        bits, group_size, dynamic = _PRESETS[name]
        default: Format = "int-quantized" if dynamic else "pack-quantized"
        form = config.choice("format", FORMATS, default=default, error=UnsupportedModelError)
        return Scheme(format=form, bits=bits, group_size=group_size, dynamic_activations=dynamic, ignore=ignore)
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
    if form == "int-quantized" and bits != 8:
        raise weights.error("num_bits", "does not fit the format int-quantized", allowed="8")
    return Scheme(
        format=form,
        bits=bits,
        group_size=group_size,
        dynamic_activations=_activations(group.section("input_activations")),
        ignore=ignore,
    )


def _weights(weights: Config) -> tuple[int, int | None]:
    bits = weights.integer("num_bits", minimum=1, maximum=8)
    weights.choice("type", {"int": "int"}, default="int", error=UnsupportedModelError)
    if bits not in (4, 8):
        raise UnsupportedModelError(str(weights.error("num_bits", "is not supported", allowed="4, 8")))
    if not weights.boolean("symmetric", default=True):
        raise UnsupportedModelError(str(weights.error("symmetric", "zero points are not supported", allowed="true")))
    if weights.has("dynamic") and weights.boolean("dynamic"):
        raise weights.error("dynamic", "weights can't have scales made at run time", allowed="false")
    weights.require_neutral({"actorder": (None, False, "weight", "static")})
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

    @property
    def num_groups(self) -> int:
        """Scales per row."""
        return self.shape[1] // self.group_size

    @property
    def has_zero_points(self) -> bool:
        """These formats have none."""
        return False

    @property
    def dtype(self) -> str:
        """A name for messages, as "int4 in groups of 64"."""
        return f"int{self.bits} in groups of {self.group_size}"

    def codes(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int8]:
        """int8 [rows, K] of the rows `start` to `stop`, from -2^(bits-1) to 2^(bits-1) - 1."""
        start, stop = rows_within(self, start, stop)
        if self.format == "int-quantized":
            return self.source.read_rows(self.module + ".weight", start, stop).view(np.int8)
        words = self.source.read_rows(self.module + ".weight_packed", start, stop)
        data = words.reshape(stop - start, -1).view(np.uint8)
        if self.bits == 8:
            return (data[:, : self.shape[1]] ^ np.uint8(0x80)).view(np.int8)
        codes = np.empty((data.shape[0], data.shape[1], 2), np.uint8)
        codes[:, :, 0] = data & 15
        codes[:, :, 1] = data >> 4
        return codes.reshape(data.shape[0], -1)[:, : self.shape[1]].view(np.int8) - np.int8(8)

    def scales(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """float32 [rows, G] of the rows `start` to `stop`; widening the stored type changes no value."""
        start, stop = rows_within(self, start, stop)
        stored = self.source.read_rows(self.module + ".weight_scale", start, stop)
        return widened(stored, self.scale_dtype)

    def zero_points(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """float32 [rows, G] of zeros."""
        start, stop = rows_within(self, start, stop)
        return np.zeros((stop - start, self.num_groups), np.float32)


def packed_tensor(module: str, shape: tuple[int, int], scheme: Scheme, source: Source) -> PackedTensor:
    """The quantised matrix of `module`, which must be `shape` = (N, K). Raises QuantError when that doesn't fit."""
    if module in scheme.ignore:
        raise QuantError(f"{escape(module)} is quantised, but quantization_config.ignore names it")
    rows, columns = shape
    group_size = columns if scheme.group_size is None else scheme.group_size
    if columns % group_size:
        raise QuantError(
            "does not divide the inputs of the layer", field=module, value=group_size, allowed=f"{columns}"
        )
    name = module + (".weight" if scheme.format == "int-quantized" else ".weight_packed")
    stored = (rows, columns) if scheme.format == "int-quantized" else (rows, -(-columns * scheme.bits // 32))
    expect(source, name, stored, ("I8",) if scheme.format == "int-quantized" else ("I32",))
    expect(source, module + ".weight_scale", (rows, columns // group_size), SCALE_DTYPES)
    if scheme.format == "pack-quantized":
        expect(source, module + ".weight_shape", (2,), ("I64", "I32"))
        found = tuple(int(size) for size in source.read(module + ".weight_shape"))
        if found != shape:
            raise QuantError("does not fit the config", field=module + ".weight_shape", value=found, allowed=str(shape))
    return PackedTensor(
        module=module,
        shape=shape,
        bits=scheme.bits,
        group_size=group_size,
        scale_dtype=source.tensors[module + ".weight_scale"].dtype,
        dynamic_activations=scheme.dynamic_activations,
        source=source,
        format=scheme.format,
    )
