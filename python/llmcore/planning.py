"""How much memory a model and its LLM take, before anything is loaded."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from llmcore import _core, quantization
from llmcore.arguments import one_of
from llmcore.errors import ArgumentError, shown
from llmcore.model import (
    ACTIVATIONS,
    EXTRA_LOGIT_ROWS,
    STEP_TOKENS,
    Model,
    check_count,
    check_packed,
    kv_bytes_per_page,
    kv_dtype_of,
    native_spec,
    num_threads,
)
from llmcore.models.spec import DecoderSpec
from llmcore.prompts import MAX_PROMPTS
from llmcore.quantization import KV_DTYPES, QuantConfig
from llmcore.speculative import SpeculativeConfig
from llmcore.speculative import resolve as resolve_speculative

PAGE_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes that a model needs, known before anything is loaded."""

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.activations


def step_sizes(max_batch_size: int, drafts: int) -> tuple[int, int]:
    """Tokens and rows of logits of an LLM's largest step, with `drafts` guessed tokens of each sequence."""
    return max(STEP_TOKENS, max_batch_size), max_batch_size + max(
        EXTRA_LOGIT_ROWS, min(drafts * max_batch_size, STEP_TOKENS)
    )


def draft_sizes(max_batch_size: int) -> tuple[int, int]:
    """The same of a model that guesses."""
    return max(STEP_TOKENS, 2 * max_batch_size), max_batch_size


def plan(
    path: str | os.PathLike[str],
    quantize: str | QuantConfig | None = None,
    *,
    max_model_len: int | None = None,
    max_batch_size: int = 1,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    threads: int | None = None,
    activations: str = "int8",
    speculative: str | int | Model | SpeculativeConfig | None = None,
) -> Plan:
    """Bytes that loading and running a checkpoint will take, from its headers alone.

    max_model_len: tokens of a sequence (default: the model's own maximum); max_batch_size: sequences at once (an LLM's
    default is 32); threads, activations: as for `load`; kv_dtype, speculative: as for LLM, a guessing model counts.

    To the byte what an LLM with these arguments plans on this machine when its KV cache holds all sequences at full
    length, and so the `max_memory` for that. The tokenizer, Python itself, and the part of the weights that loading
    reads at a time aren't counted. Raises as `load`, and ArgumentError.
    """
    check_count("max_model_len", 1 if max_model_len is None else max_model_len)
    check_count("max_batch_size", max_batch_size)
    if max_batch_size > MAX_PROMPTS:
        raise ArgumentError(f"max_batch_size must be at most {MAX_PROMPTS}, got {shown(max_batch_size)}")
    one_of("kv_dtype", kv_dtype, ("auto", *KV_DTYPES))
    one_of("activations", activations, ACTIVATIONS)
    threads = num_threads(threads)
    guessing = resolve_speculative(speculative)
    target = _Loaded.plan(path, quantize, dtype, threads)
    kv = target.kv_dtype if kv_dtype == "auto" else kv_dtype
    longest = target.spec.max_position_embeddings
    length = longest if max_model_len is None else max_model_len
    if length > longest:
        raise ArgumentError(f"max_model_len must be at most the model's {longest} positions, got {shown(length)}")
    models = [(target, *step_sizes(max_batch_size, guessing.num_tokens if guessing else 0))]
    if guessing is not None and guessing.method != "ngram":
        models.append((_draft(guessing, path, threads), *draft_sizes(max_batch_size)))
    pages = math.ceil(length / PAGE_TOKENS) * max_batch_size
    return Plan(
        weights=sum(model.weights for model, _, _ in models),
        kv_cache=sum(kv_bytes_per_page(model.spec, kv) for model, _, _ in models) * pages,
        activations=sum(
            _core.planned_bytes(
                native_spec(model.spec),
                model.threads,
                model is target and activations == "float32",
                tokens,
                rows,
                length,
            )
            for model, tokens, rows in models
        ),
    )


@dataclass(frozen=True)
class _Loaded:
    """What a model will be once it is loaded."""

    spec: DecoderSpec
    weights: int  # bytes
    kv_dtype: str
    threads: int

    @classmethod
    def plan(
        cls, path: str | os.PathLike[str], quantize: str | QuantConfig | None, dtype: str, threads: int
    ) -> _Loaded:
        from llmcore.checkpoint.readers import open_checkpoint
        from llmcore.models.binding import bind
        from llmcore.packed import PackedCheckpoint, is_packed
        from llmcore.packing import Packer

        recipe, floats = quantization.resolve(quantize), quantization.float_format(dtype)
        with open_checkpoint(path) as checkpoint:
            if is_packed(checkpoint.config):
                check_packed(recipe, floats)
                packed = PackedCheckpoint(checkpoint)
                formats = {matrix.format.format for matrix in packed.matrices.values()}
                return cls(packed.spec, packed.nbytes, kv_dtype_of(formats), threads)
            binding = bind(checkpoint)
            packer = Packer(binding, recipe, floats, False)
            weights = sum(packer.nbytes(slot) for slot in binding.slots.values())
            formats = {form.format for slot in binding.slots.values() for form in packer.formats(slot)}
            return cls(binding.spec, weights, kv_dtype_of(formats), threads)


def _draft(config: SpeculativeConfig, path: str | os.PathLike[str], threads: int) -> _Loaded:
    """The model that `load_draft` will load, or was given."""
    if isinstance(config.model, Model):
        model = config.model
        return _Loaded(model.spec, model.core.weight_bytes, model.kv_dtype, model.threads)
    return _Loaded.plan(path if config.model is None else config.model, config.quantize, "auto", threads)
