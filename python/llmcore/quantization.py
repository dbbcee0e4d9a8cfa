"""How weights are stored once they are loaded: QuantConfig, and what each format name means."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmcore.arguments import one_of
from llmcore.errors import ArgumentError, ArgumentTypeError, shown

if TYPE_CHECKING:
    from llmcore import _core

ZERO_POINT_FORMATS = ("int8", "int6", "int5", "int4", "int3", "int2")
INTEGER_FORMATS = (*ZERO_POINT_FORMATS, "nf4", "iq4", "fp4", "ternary", "ternary_dense")
"""What weights may be rounded to."""
KEPT_FORMATS = (*INTEGER_FORMATS, "iq2", "iq3", "iq3_s")
"""And what values of .gguf files are kept as."""
FLOAT_FORMATS = ("f32", "bf16", "f16")
KV_DTYPES = (*FLOAT_FORMATS, "int12", "int8", "int4")
"""What keys and values may be stored as; the integers with a scale for each token and head."""
SMOOTHINGS = ("none", "awq", "smoothquant")
GROUP_SIZES = (0, 16, 32, 64, 128)
"""0: one scale per row."""
ROWS_PER_PANEL = 16
"""Rows are padded to a multiple of it (csrc/quant/lines.h)."""
_DEFAULT_GROUP = {
    "int8": 0,
    "int6": 128,
    "int5": 64,
    "int4": 128,
    "int3": 32,
    "int2": 32,
    "nf4": 64,
    "iq4": 32,
    "fp4": 32,
}
_DEFAULT_GROUP |= {"ternary": 0, "ternary_dense": 0}
_DTYPES = {"float32": "f32", "f32": "f32", "bfloat16": "bf16", "bf16": "bf16", "float16": "f16", "f16": "f16"}


@dataclass(frozen=True, kw_only=True)
class MatrixFormat:
    """How one weight matrix is stored. `group_size` 0: one scale per row (float32), else float16 scales per group.

    `search`: scales are searched for the smallest squared error when the weights are packed. `zero_points`: each scale
    has one, a float16, or a minimum with `minima` and where scales are int8. `scales`: what those of groups are stored
    as; "int8" are multiples of a float16 for eight groups, and so are minima then.
    """

    format: str
    group_size: int = 0
    search: bool = False
    zero_points: bool = False
    scales: str = "f16"
    minima: bool = False
    calibrated: bool = False
    """Codes are chosen by GPTQ."""
    smoothing: str = "none"

    def make(self, rows: int, columns: int) -> _core.Matrix:
        """A native matrix stored so, its weights to be set."""
        from llmcore import _core

        return _core.Matrix(self.format, rows, columns, self.group_size, self.scales, self.zero_points, self.minima)

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of such a matrix."""
        from llmcore import _core

        return _core.matrix_bytes(self.format, rows, columns, self.group_size, self.zero_points, self.scales)

    def parts(self, rows: int, columns: int) -> dict[str, int]:
        """Bytes of the codes, scales and shifts (zero points or minima) of such a matrix."""
        plain = replace(self, zero_points=False, minima=False)
        codes = replace(plain, group_size=0, scales="f16").nbytes(rows, columns)
        if self.format not in FLOAT_FORMATS:
            codes -= 4 * -(-rows // ROWS_PER_PANEL) * ROWS_PER_PANEL  # a float32 scale a row
        scales = plain.nbytes(rows, columns) - codes
        return {"codes": codes, "scales": scales, "shifts": self.nbytes(rows, columns) - codes - scales}


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """Quantises weight matrices at load; activations are then quantised to int8 as they come, per token and group.

    format: "int8" (one scale per row unless `group_size` is given), "int6" and "int4" (groups of 128), "int5" (64),
        "int3" and "int2" (32), "nf4" (groups of 64; the 16 levels of QLoRA's NormalFloat), "iq4" and "fp4" (32; the
        levels of ggml's IQ4_NL, and E2M1), "ternary" (per row; two bits a weight) or "ternary_dense" (the same weights,
        three in five bits: less to read for each token, more to do for it).
    group_size: 0 for one scale per row, or 16, 32, 64, 128 (ternary_dense: 128); None for the format's default.
    head: format of the embedding and the output head, which are the most sensitive; None: int8 with int8, else int6.
    skip: names of modules that stay as stored, as the checkpoint calls them; `*` matches any text
        ("model.layers.0.*", "*.down_proj").
    scale: "max" takes each scale from the weights' magnitudes; "mse" tries some around it and takes the one with the
        smallest squared error, at some 10 times the work.
    symmetric: False gives each scale a zero point, so that the codes span what the weights do (int2 to int8).
    double_quant: scales of groups are quantised, too, to int8 multiples of a float16 for eight groups (QLoRA's double
        quantisation). With int4, groups of 32 and symmetric=False, groups have a scale and a minimum, as in ggml's
        Q4_K: 4.63 bits a weight, and a smaller error than zero points with their 5.
    rounding: "nearest" takes for each weight the nearest code; "gptq" rounds column by column and makes up for the
        errors in the columns that follow, on the inputs that a calibration text gives (`load(calibration=)`). The
        head is rounded to the nearest.
    smoothing: scales the columns of qkv, gate and up, and down, and what feeds them the other way round, so that the
        product stays and rounding costs less: "awq" for columns whose inputs are large (weights), "smoothquant" for
        inputs that a few columns dominate (activations); from the calibration text. "none".
    overrides: module pattern -> format name (with this `scale`, `rounding` and `smoothing`) or QuantConfig for those
        modules; the first that matches counts.

    Raises ArgumentError.
    """

    format: str
    group_size: int | None = None
    head: str | None = None
    scale: str = "max"
    symmetric: bool = True
    double_quant: bool = False
    rounding: str = "nearest"
    smoothing: str = "none"
    skip: Sequence[str] = ()
    overrides: Mapping[str, str | QuantConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("format", self.format), ("head", self.format if self.head is None else self.head)):
            one_of(name, value, INTEGER_FORMATS)
        if self.group_size is not None and (type(self.group_size) is not int or self.group_size not in GROUP_SIZES):
            raise ArgumentError(
                f"group_size must be 16, 32, 64, 128 or 0 (one scale per row), got {shown(self.group_size)}"
            )
        if self.format == "ternary_dense" and self.group_size not in (None, 0, 128):
            raise ArgumentError(f"group_size must be 128 or 0 for ternary_dense, got {self.group_size}")
        one_of("scale", self.scale, ("max", "mse"))
        one_of("rounding", self.rounding, ("nearest", "gptq"))
        one_of("smoothing", self.smoothing, SMOOTHINGS)
        for name, flag in (("symmetric", self.symmetric), ("double_quant", self.double_quant)):
            if not isinstance(flag, bool):
                raise ArgumentTypeError(f"{name} must be True or False, got {shown(flag)}")
        if self.double_quant and not self._group():
            raise ArgumentError("double_quant is for formats with groups: give a group_size")
        if self.double_quant and not self.symmetric and self.format == "int8":
            raise ArgumentError("double_quant with symmetric=False is for int2 to int6")
        if self.double_quant and self.rounding == "gptq":
            raise ArgumentError("double_quant chooses its scales together, GPTQ one after another: take one of them")
        if not self.symmetric and self.format not in ZERO_POINT_FORMATS:
            raise ArgumentError(f"symmetric=False is for {', '.join(ZERO_POINT_FORMATS)}, not {self.format}")
        if isinstance(self.skip, str):
            raise ArgumentError("skip must be a list of module patterns, not one text")
        if not isinstance(self.overrides, Mapping):
            raise ArgumentError("overrides must map module patterns to formats")
        for override in self.overrides.values():
            resolve(override)

    def of(self, modules: Sequence[str], *, is_head: bool) -> MatrixFormat | None:
        """The format of the matrix made of `modules` (its parts share it); None: as stored."""
        for pattern in self.skip:
            if any(fnmatch.fnmatchcase(module, pattern) for module in modules):
                return None
        for pattern, override in self.overrides.items():
            if any(fnmatch.fnmatchcase(module, pattern) for module in modules):
                config = resolve(override)
                if config is None:
                    return None
                if isinstance(override, str):
                    config = replace(config, scale=self.scale, rounding=self.rounding, smoothing=self.smoothing)
                return config.own()
        if is_head:
            head = self.head or ("int8" if self.format == "int8" else "int6")
            return QuantConfig(format=head, scale=self.scale).own()
        return self.own()

    def _group(self) -> int:
        return _DEFAULT_GROUP[self.format] if self.group_size is None else self.group_size

    def own(self) -> MatrixFormat:
        """The format without exceptions."""
        return MatrixFormat(
            format=self.format,
            group_size=self._group(),
            search=self.scale == "mse",
            zero_points=not self.symmetric,
            scales="int8" if self.double_quant else "f16",
            calibrated=self.rounding == "gptq",
            smoothing=self.smoothing,
        )

    def needs_calibration(self) -> bool:
        """Whether any matrix may be packed with a calibration text."""
        configs = [self, *(config for override in self.overrides.values() if (config := resolve(override)))]
        return any(config.rounding == "gptq" or config.smoothing != "none" for config in configs)


def resolve(quantize: str | QuantConfig | None) -> QuantConfig | None:
    """What `quantize=` means. Raises ArgumentError for an unknown name, TypeError for another type."""
    if quantize is None or isinstance(quantize, QuantConfig):
        return quantize
    if not isinstance(quantize, str):
        raise ArgumentTypeError(f"quantize must be a format name, a QuantConfig or None, got {type(quantize).__name__}")
    return QuantConfig(format=one_of("quantize", quantize, INTEGER_FORMATS))


def float_format(dtype: str) -> str | None:
    """The storage format of a `dtype=` argument; None for "auto" (as stored). Raises ArgumentError."""
    return _DTYPES.get(one_of("dtype", dtype, ("auto", *_DTYPES)))
