"""Mistral 7B and its kin: Llama without biases, and with a sliding window in the first version."""

from __future__ import annotations

from llmcore.checkpoint.config import Config
from llmcore.models import blocks
from llmcore.models.spec import DecoderSpec, Slot

ARCHITECTURE = "MistralForCausalLM"
BASE = "model."
LAYERS = "model.layers."
IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
_DEFAULT_WINDOW = 4096  # what transformers takes when the key is absent; null is no window


def spec(config: Config) -> DecoderSpec:
    sizes = blocks.sizes(config, kv_heads_required=True)
    context = blocks.max_positions(config)
    if "sliding_window" not in config:
        window = _DEFAULT_WINDOW if context > _DEFAULT_WINDOW else None
    else:
        window = blocks.sliding_window(config, context) if config.has("sliding_window") else None
    config.get("sliding_window")
    ids = blocks.token_ids(config, sizes.vocab_size)
    return DecoderSpec(
        model_type="mistral",
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=blocks.intermediate_size(config),
        vocab_size=sizes.vocab_size,
        max_position_embeddings=context,
        norm_eps=blocks.norm_eps(config),
        activation=blocks.activation(config),
        rope_inv_freq=blocks.rope(config, head_dim=sizes.head_dim),
        sliding_window=window,
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        bos_id=ids.bos_id,
        eos_ids=ids.eos_ids,
        pad_id=ids.pad_id,
    )


def slots(spec: DecoderSpec) -> list[Slot]:
    return blocks.llama_slots(spec)
