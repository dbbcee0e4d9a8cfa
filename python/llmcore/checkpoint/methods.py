"""The methods by which checkpoints are quantised, by their names in config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmcore.checkpoint import compressed_tensors, gptq_awq
from llmcore.checkpoint.config import Config
from llmcore.checkpoint.quantized import Scheme, Source
from llmcore.errors import ConfigError, QuantError, UnsupportedModelError

METHODS: Mapping[str, Callable[[Config], Scheme]] = {
    "compressed-tensors": compressed_tensors.read,
    "gptq": gptq_awq.gptq_scheme,
    "awq": gptq_awq.awq_scheme,
}
_SUFFIXES = (*compressed_tensors.SUFFIXES, *gptq_awq.SUFFIXES)


def read_scheme(config: Config) -> Scheme | None:
    """The quantisation that config.json declares, or None.

    Raises QuantError for a broken declaration and UnsupportedModelError for a method or a scheme that isn't read.
    """
    try:
        section = config.section("quantization_config")
        if section is None:
            return None
        method = section.string("quant_method")
        if method not in METHODS:
            raise UnsupportedModelError(
                str(section.error("quant_method", "this quantisation can't be read", allowed=", ".join(METHODS)))
            )
        return METHODS[method](section)
    except ConfigError as error:
        raise QuantError(str(error)) from None


def is_quantized(module: str, source: Source) -> bool:
    """Whether the file holds `module` in a quantised form."""
    return any(module + suffix in source.tensors for suffix in _SUFFIXES)
