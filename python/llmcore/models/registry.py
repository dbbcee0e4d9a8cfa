"""From config.json to the architecture that can run it. A file beside this one is an architecture; its name the key.

What a config says is only ever looked up in the list of those files: nothing in a model can cause another import.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
import re
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from llmcore.checkpoint.config import Config
from llmcore.checkpoint.files import shown
from llmcore.errors import UnsupportedModelError, escape
from llmcore.models import blocks
from llmcore.models.spec import DecoderSpec, Slot

_NOT_ARCHITECTURES = frozenset({"binding", "blocks", "registry", "spec"})
_NAME = re.compile(r"[a-z0-9_]+")

NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False, None),
    "alibi": (False, None),
    "attention_chunk_size": (None,),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "attn_output_gate": (False, None),
    "clip_qkv": (None,),
    "embedding_multiplier": (1, 1.0, None),
    "final_logit_softcapping": (None,),
    "is_causal": (True, None),
    "is_encoder_decoder": (False, None),
    "logit_scale": (1, 1.0, None),
    "logits_scaling": (1, 1.0, None),
    "no_rope_layers": (None, []),
    "parallel_attn": (False, None),
    "qk_layernorm": (False, None),
    "residual_multiplier": (1, 1.0, None),
    "rope_interleaved": (False, None),
    "scale_emb": (1, 1.0, None),
    "scale_embedding": (False, None),
    "text_config": (None,),
    "use_bidirectional_attention": (False, None),
    "use_parallel_residual": (False, None),
    "use_qk_norm": (False, None),
}
"""Keys of other architectures' vocabulary, with the values under which they change nothing. An architecture that gives
some of them a meaning names them in its OWN_KEYS."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

_HARMLESS = re.compile(
    r"_.*|architectures|model_type|auto_map|trust_remote_code|(torch_)?dtype|torchscript|transformers.*|use_cache|"
    r"initializer_range|pretraining_tp|gradient_checkpointing|(output|summary)_.*|.*(dropout|_pdrop)|return_dict.*|"
    r"(id2label|label2id|problem_type|task_specific_params|finetuning_task|num_labels|tokenizer_class|prefix)|"
    r"is_decoder|cross_attention_hidden_size|tie_encoder_decoder|pruned_heads|chunk_size_feed_forward|"
    r"(bos|eos|pad|sep|decoder_start|forced_bos|forced_eos)_token_id|quantization_config|compression_config|"
    r"rope_(theta|scaling|parameters)|n_ctx|reorder_and_upcast_attn|attn_implementation|max_sequence_length|"
    r"temperature|top_[kp]|typical_p|do_sample|num_beams?(_groups)?|num_return_sequences|m(ax|in)_length|"
    r"(repetition|length|diversity|encoder_no_repeat_ngram|exponential_decay_length)_penalty|"
    r"(encoder_)?no_repeat_ngram_size|early_stopping|bad_words_ids|suppress_tokens|begin_suppress_tokens|"
    r"remove_invalid_values|use_bfloat16|tf_legacy_loss|max_window_layers|sliding_window|layer_types"
)
"""Keys that say nothing about the arithmetic of these models, or are read elsewhere."""

_DTYPES = ("auto", "float32", "float", "float16", "half", "bfloat16", "float64", "int8", "float8_e4m3fn")

_log = logging.getLogger("llmcore")


class Architecture(Protocol):
    """What a model file offers."""

    ARCHITECTURE: str
    """The name in config.json's `architectures`."""
    BASE: str
    """Prefix of the tensors of the model without its head; files saved from the bare model lack it."""
    LAYERS: str
    """Prefix of a layer's number in tensor names."""
    IGNORED: tuple[str, ...]
    """Regular expressions of the names of tensors that carry no weights."""

    def spec(self, config: Config) -> DecoderSpec:
        """The numbers, every one checked."""

    def slots(self, spec: DecoderSpec) -> list[Slot]:
        """Which tensors fill which slot."""


@functools.cache
def supported() -> tuple[str, ...]:
    """The model types there is a file for."""
    folder = [str(Path(__file__).parent)]
    names = (found.name for found in pkgutil.iter_modules(folder))
    return tuple(sorted(name for name in names if name not in _NOT_ARCHITECTURES and _NAME.fullmatch(name)))


def resolve(config: Config) -> Architecture:
    """The architecture of a config. Raises ConfigError when it names none, UnsupportedModelError when none is known."""
    model_type = config.string("model_type")
    if model_type not in supported():
        raise UnsupportedModelError(
            f"{shown(config.file)}: model_type {escape(model_type)} is not supported; "
            f"supported: {', '.join(supported())}"
        )
    module = cast(Architecture, importlib.import_module(f"llmcore.models.{model_type}"))
    _check_architectures(config, module.ARCHITECTURE)
    return module


def _check_architectures(config: Config, wanted: str) -> None:
    if "architectures" not in config:
        raise config.error("architectures", "a required key is missing")
    if config.get("architectures") != [wanted]:
        raise UnsupportedModelError(
            str(config.error("architectures", "is not supported with this model_type", allowed=f"[{wanted!r}]"))
        )


def describe(config: Config, generation: Config | None = None) -> tuple[Architecture, DecoderSpec]:
    """The architecture and numbers of a config. The token ids of generation_config.json, where set, go first.

    Keys that no code looks at are logged once as a warning. Raises ConfigError and UnsupportedModelError.
    """
    module = resolve(config)
    own: frozenset[str] = getattr(module, "OWN_KEYS", frozenset())
    config.require_neutral({key: values for key, values in NEUTRAL.items() if key not in own})
    _check_experts(config)
    _check_dtype(config)
    spec = module.spec(config)
    if generation is not None:
        spec = _with_generation_ids(spec, generation, getattr(module, "UNSET_TOKEN", None))
    unknown = [key for key in config.unread() if not _HARMLESS.fullmatch(key)]
    if unknown:
        _log.warning(
            "%s: keys that llmcore doesn't know were ignored: %s", config.file, [escape(key) for key in unknown]
        )
    return module, spec


def _with_generation_ids(spec: DecoderSpec, generation: Config, unset: int | None) -> DecoderSpec:
    ids = blocks.token_ids(generation, spec.vocab_size, unset=unset)
    return replace(
        spec,
        bos_id=spec.bos_id if ids.bos_id is None else ids.bos_id,
        eos_ids=ids.eos_ids or spec.eos_ids,
        pad_id=spec.pad_id if ids.pad_id is None else ids.pad_id,
    )


def _check_experts(config: Config) -> None:
    for key in _EXPERTS:
        if not config.has(key):
            config.get(key)
            continue
        experts = config.integer(key, minimum=1, maximum=1 << 20)
        for chosen in ("num_experts_per_tok", "moe_topk"):
            config.optional_integer(chosen, minimum=1, maximum=experts)
        raise UnsupportedModelError(
            str(config.error(key, "a mixture of experts is not supported with this model_type"))
        )


def _check_dtype(config: Config) -> None:
    for key in ("dtype", "torch_dtype"):
        if config.has(key) and config.string(key).removeprefix("torch.") not in _DTYPES:
            raise config.error(key, "is unknown", allowed=", ".join(_DTYPES))
