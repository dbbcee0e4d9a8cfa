"""llmcore: a language-model runtime that installs like numpy and gives the same bits on every machine.

    import llmcore

    llm = llmcore.LLM("tiny")                       # the built-in model, or the folder of a checkpoint
    print(llm.generate("The prince", llmcore.SamplingParams(max_tokens=32))[0].text)

Importing the package loads nothing but this file: each public name is fetched from its module at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llmcore import ops as ops
    from llmcore.async_llm import AsyncLLM
    from llmcore.beam import BeamSearchParams
    from llmcore.errors import (
        AdapterError,
        ArgumentError,
        BusyError,
        CheckpointError,
        ClosedError,
        ConfigError,
        ContextLengthError,
        GGUFError,
        LimitError,
        LlmcoreError,
        NumericError,
        OutOfMemoryError,
        QuantError,
        SafetensorsError,
        StorageError,
        TemplateError,
        TokenizerError,
        UnsupportedModelError,
    )
    from llmcore.llm import LLM, CompletionOutput, RequestOutput, StreamChunk
    from llmcore.model import Model, load
    from llmcore.planning import plan
    from llmcore.quantization import QuantConfig
    from llmcore.runtime import features, get_num_threads, isa, set_num_threads
    from llmcore.sampling import SamplingParams
    from llmcore.speculative import SpeculativeConfig
    from llmcore.structured import StructuredOutputsParams
    from llmcore.tokenizer import Tokenizer

# Public name -> the module that holds it. A name that is a module itself maps to that module and appears as such.
_MODULE_OF = {
    "AdapterError": "llmcore.errors",
    "ArgumentError": "llmcore.errors",
    "AsyncLLM": "llmcore.async_llm",
    "BeamSearchParams": "llmcore.beam",
    "BusyError": "llmcore.errors",
    "CheckpointError": "llmcore.errors",
    "ClosedError": "llmcore.errors",
    "CompletionOutput": "llmcore.llm",
    "ConfigError": "llmcore.errors",
    "ContextLengthError": "llmcore.errors",
    "GGUFError": "llmcore.errors",
    "LLM": "llmcore.llm",
    "LimitError": "llmcore.errors",
    "LlmcoreError": "llmcore.errors",
    "Model": "llmcore.model",
    "NumericError": "llmcore.errors",
    "OutOfMemoryError": "llmcore.errors",
    "QuantConfig": "llmcore.quantization",
    "QuantError": "llmcore.errors",
    "RequestOutput": "llmcore.llm",
    "SafetensorsError": "llmcore.errors",
    "SamplingParams": "llmcore.sampling",
    "SpeculativeConfig": "llmcore.speculative",
    "StorageError": "llmcore.errors",
    "StreamChunk": "llmcore.llm",
    "StructuredOutputsParams": "llmcore.structured",
    "TemplateError": "llmcore.errors",
    "Tokenizer": "llmcore.tokenizer",
    "TokenizerError": "llmcore.errors",
    "UnsupportedModelError": "llmcore.errors",
    "features": "llmcore.runtime",
    "get_num_threads": "llmcore.runtime",
    "isa": "llmcore.runtime",
    "load": "llmcore.model",
    "ops": "llmcore.ops",
    "plan": "llmcore.planning",
    "set_num_threads": "llmcore.runtime",
}

__all__ = [
    "LLM",
    "AdapterError",
    "ArgumentError",
    "AsyncLLM",
    "BeamSearchParams",
    "BusyError",
    "CheckpointError",
    "ClosedError",
    "CompletionOutput",
    "ConfigError",
    "ContextLengthError",
    "GGUFError",
    "LimitError",
    "LlmcoreError",
    "Model",
    "NumericError",
    "OutOfMemoryError",
    "QuantConfig",
    "QuantError",
    "RequestOutput",
    "SafetensorsError",
    "SamplingParams",
    "SpeculativeConfig",
    "StorageError",
    "StreamChunk",
    "StructuredOutputsParams",
    "TemplateError",
    "Tokenizer",
    "TokenizerError",
    "UnsupportedModelError",
    "__version__",
    "features",
    "get_num_threads",
    "isa",
    "load",
    "ops",
    "plan",
    "set_num_threads",
]


if not TYPE_CHECKING:  # hidden from type checkers, which would otherwise accept any misspelt name

    def __getattr__(name: str) -> object:
        """Import the module that holds public name `name`, once (PEP 562)."""
        module_name = _MODULE_OF.get(name)
        if module_name is None:
            raise AttributeError(f"module 'llmcore' has no attribute {name!r}")
        from importlib import import_module

        module = import_module(module_name)
        value: object = module if module_name == f"llmcore.{name}" else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
