"""Llama 1 to 3.3 and the many models of its shape: RMSNorm, rotary GQA attention, SwiGLU."""

from __future__ import annotations

from llmcore.checkpoint.config import Config
from llmcore.models import blocks
from llmcore.models.spec import DecoderSpec, Slot

ARCHITECTURE = "LlamaForCausalLM"
BASE = "model."
LAYERS = "model.layers."
IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def spec(config: Config) -> DecoderSpec:
    sizes = blocks.sizes(config)
    bias = config.boolean("attention_bias", default=False)
    ids = blocks.token_ids(config, sizes.vocab_size)
    return DecoderSpec(
        model_type="llama",
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=blocks.intermediate_size(config),
        vocab_size=sizes.vocab_size,
        max_position_embeddings=blocks.max_positions(config),
        norm_eps=blocks.norm_eps(config),
        activation=blocks.activation(config),
        qkv_bias=bias,
        attention_output_bias=bias,
        mlp_bias=config.boolean("mlp_bias", default=False),
        rope_inv_freq=blocks.rope(config, head_dim=sizes.head_dim),
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        bos_id=ids.bos_id,
        eos_ids=ids.eos_ids,
        pad_id=ids.pad_id,
    )


def slots(spec: DecoderSpec) -> list[Slot]:
    return blocks.llama_slots(spec)
