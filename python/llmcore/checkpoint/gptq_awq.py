"""GPTQ and AWQ checkpoints (AutoGPTQ, GPTQModel, AutoAWQ): integer weights of 2 to 8 bits, read as they are.

    GPTQ   X.qweight I32 [K * b / 32, N]   X.qzeros I32 [G, N * b / 32]   X.scales [G, N]   X.g_idx I32 [K], if at all
    AWQ    X.qweight I32 [K, N / 8]        X.qzeros I32 [G, N / 8]        X.scales [G, N]

A value is scale * (code - zero); g_idx names the group of each column (desc_act). Words hold codes from the lowest bits
up, one of 3 bits sometimes in two of them; AWQ's hold eight columns in the order 0, 2, 4, 6, 1, 3, 5, 7. GPTQ's first
version stores zero - 1, its second and AWQ zero. Source: the projects' packing code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.config import Config
from llmcore.checkpoint.quantized import SCALE_DTYPES, Source, expect, fields, order_of, rows_within, widened
from llmcore.errors import QuantError, UnsupportedModelError

SUFFIXES = (".qweight", ".qzeros", ".scales")
GROUP_SIZES = (32, 64, 128)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the linear layers of a checkpoint are quantised."""

    awq: bool
    bits: int
    group_size: int | None
    """None: the whole row."""
    symmetric: bool
    """All zeros are 2^(bits-1)."""
    zero_offset: int = 0
    """What is added to a stored zero."""
    ordered: bool = False
    """Groups are of columns that needn't lie side by side, so a g_idx must say which (desc_act)."""

    @property
    def dynamic_activations(self) -> bool:
        """Not meant to run with int8 activations."""
        return False

    def tensor_names(self, module: str, source: Source) -> tuple[str, ...]:
        """The tensors that a quantised module has in this file. A bias of zeros, as AutoGPTQ writes, is among them."""
        names = [module + suffix for suffix in SUFFIXES]
        for suffix in (".g_idx", ".bias"):
            name = module + suffix
            if name in source.tensors and (suffix == ".g_idx" or not source.read(name).view(np.uint8).any()):
                names.append(name)
        return tuple(names)

    def tensor(self, module: str, shape: tuple[int, int], source: Source) -> ColumnTensor:
        """The quantised matrix of `module`, which must be `shape` = (N, K). Raises QuantError when that doesn't fit."""
        rows, columns = shape
        group = columns if self.group_size is None else self.group_size
        if columns % group or columns * self.bits % 32 or rows * self.bits % 32:
            raise QuantError(
                f"a matrix of {rows} rows and {columns} columns can't be packed so",
                file=source.path,
                field=module,
                value=f"{self.bits} bits in groups of {group}",
            )
        row_words = rows * self.bits // 32
        packed = (columns, row_words) if self.awq else (columns * self.bits // 32, rows)
        expect(source, module + ".qweight", packed, ("I32",))
        expect(source, module + ".qzeros", (columns // group, row_words), ("I32",))
        expect(source, module + ".scales", (columns // group, rows), SCALE_DTYPES)
        if module + ".g_idx" in source.tensors:
            expect(source, module + ".g_idx", (columns,), ("I32", "I64"))
        elif self.ordered and group < columns:
            raise QuantError("is missing, though desc_act is true", file=source.path, field=module + ".g_idx")
        return ColumnTensor(
            module=module,
            shape=shape,
            group_size=group,
            scale_dtype=source.tensors[module + ".scales"].dtype,
            scheme=self,
            source=source,
        )


def gptq_scheme(config: Config) -> Scheme:
    """Of a quantization_config with quant_method "gptq". Raises ConfigError, UnsupportedModelError."""
    form = config.string("checkpoint_format" if config.has("checkpoint_format") else "format", default="gptq")
    if form not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(str(config.error("format", "is not supported", allowed="gptq, gptq_v2")))
    config.require_neutral({"pack_dtype": (None, "int32")})
    group_size = _group_size(config) if config.has("group_size") else 128
    dynamic = config.section("dynamic")
    if dynamic is not None and any(not pattern.startswith("-:") for pattern in dynamic.values):
        raise UnsupportedModelError(
            str(config.error("dynamic", "modules with settings of their own are not supported"))
        )
    return Scheme(
        awq=False,
        bits=_bits(config, (2, 3, 4, 8)),
        group_size=group_size,
        symmetric=config.boolean("sym", default=True),
        zero_offset=1 if form == "gptq" else 0,
        ordered=config.boolean("desc_act", default=False),
    )


def awq_scheme(config: Config) -> Scheme:
    """Of a quantization_config with quant_method "awq". Raises ConfigError, UnsupportedModelError."""
    form = config.string("version" if config.has("version") else "format", default="gemm").lower()
    if form != "gemm":
        raise UnsupportedModelError(str(config.error("version", "is not supported", allowed="gemm")))
    symmetric = not config.boolean("zero_point", default=True)
    return Scheme(awq=True, bits=_bits(config, (4,)), group_size=_group_size(config), symmetric=symmetric)


def _bits(config: Config, known: tuple[int, ...]) -> int:
    bits = config.integer("bits", minimum=1, maximum=8)
    if bits not in known:
        raise UnsupportedModelError(str(config.error("bits", "is not supported", allowed=", ".join(map(str, known)))))
    return bits


def _group_size(config: Config) -> int | None:
    size = config.integer("group_size", minimum=-1, maximum=1 << 20)
    if size == -1:
        return None
    if size == 0:
        raise config.error("group_size", "is out of range", allowed="32, 64, 128, -1")
    if size not in GROUP_SIZES:
        raise UnsupportedModelError(str(config.error("group_size", "is not supported", allowed="32, 64, 128, -1")))
    return size


@dataclass(frozen=True, kw_only=True)
class ColumnTensor:
    """A quantised matrix [N, K]; see quantized.PackedTensor."""

    module: str
    shape: tuple[int, int]
    group_size: int
    scale_dtype: str
    scheme: Scheme
    source: Source

    @property
    def bits(self) -> int:
        """2, 3, 4 or 8."""
        return self.scheme.bits

    @property
    def has_zero_points(self) -> bool:
        """False when all are 0."""
        return not self.scheme.symmetric

    @property
    def dtype(self) -> str:
        """A name for messages, as "int4 in groups of 64"."""
        return f"int{self.bits} in groups of {self.group_size}"

    def order(self) -> npt.NDArray[np.int32] | None:
        """int32 [K]: the columns, those of a group side by side; None: as they are. Raises QuantError."""
        name = self.module + ".g_idx"
        return order_of(self.source, name, self.group_size) if name in self.source.tensors else None

    def codes(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int8]:
        """int8 [rows, K] of the rows `start` to `stop`, in `order`, from -2^(bits-1) to 2^(bits-1) - 1."""
        start, stop = rows_within(self, start, stop)
        order = self.order()
        words = self.source.read(self.module + ".qweight")
        if self.scheme.awq:
            columns = _columns(words[:, start // 8 : -(-stop // 8)], self.scheme)
            unsigned = columns[:, start % 8 : start % 8 + stop - start].T
        else:
            # A row's words one after another are its codes from the lowest bits up.
            unsigned = fields(np.ascontiguousarray(words[:, start:stop].T), self.bits)
        if order is not None:
            unsigned = unsigned[:, order]
        return (np.ascontiguousarray(unsigned) - np.uint8(self._middle)).view(np.int8)

    def scales(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """float32 [rows, G] of the rows `start` to `stop`; widening the stored type changes no value."""
        start, stop = rows_within(self, start, stop)
        stored = np.ascontiguousarray(self.source.read(self.module + ".scales")[:, start:stop].T)
        return widened(stored, self.scale_dtype)

    def zero_points(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """float32 integers [rows, G]; in symmetric schemes 0. Raises QuantError when the file says otherwise there."""
        start, stop = rows_within(self, start, stop)
        stored = _columns(self.source.read(self.module + ".qzeros"), self.scheme)[:, start:stop]
        highest = (1 << self.bits) - 1
        zeros = ((stored.astype(np.int32) + self.scheme.zero_offset) & highest) - self._middle
        if self.scheme.symmetric and zeros.any():
            raise QuantError(
                "zero points differ from the middle, though the config says symmetric",
                file=self.source.path,
                field=self.module,
            )
        return np.ascontiguousarray(zeros.T).astype(np.float32)

    @property
    def _middle(self) -> int:
        return 1 << (self.bits - 1)


def _columns(words: npt.NDArray[np.generic], scheme: Scheme) -> npt.NDArray[np.uint8]:
    """Words [rows, n] whose fields are columns, to codes [rows, columns]."""
    unordered = fields(np.ascontiguousarray(words), scheme.bits)
    if not scheme.awq:
        return unordered
    ordered = np.empty((len(unordered), words.shape[1], 8), np.uint8)
    ordered[:, :, _AWQ_ORDER] = unordered.reshape(len(unordered), -1, 8)
    return ordered.reshape(len(unordered), -1)
