"""Phi-3 and Phi-4 mini: Llama with q, k, v in one tensor, gate and up in another, and heads rotated in part."""

from __future__ import annotations

from llmcore.checkpoint.config import Config
from llmcore.models import blocks
from llmcore.models.spec import DecoderSpec, Slot

ARCHITECTURE = "Phi3ForCausalLM"
BASE = "model."
LAYERS = "model.layers."
IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def spec(config: Config) -> DecoderSpec:
    sizes = blocks.sizes(config)
    context = blocks.max_positions(config)
    config.optional_integer("original_max_position_embeddings", minimum=1, maximum=blocks.MAX_POSITIONS)  # of longrope
    window = config.optional_integer("sliding_window", minimum=1, maximum=blocks.MAX_POSITIONS)
    ids = blocks.token_ids(config, sizes.vocab_size)
    return DecoderSpec(
        model_type="phi3",
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
        rope_inv_freq=blocks.rope(config, head_dim=sizes.head_dim, partial=True),
        sliding_window=window,
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        bos_id=ids.bos_id,
        eos_ids=ids.eos_ids,
        pad_id=ids.pad_id,
    )


def slots(spec: DecoderSpec) -> list[Slot]:
    hidden, wide = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    made = [blocks.embedding("embedding", "model.embed_tokens", spec)]
    for layer in range(spec.num_layers):
        to, at = f"layers.{layer}.", f"model.layers.{layer}."
        made.append(blocks.vector(to + "attention_norm", at + "input_layernorm.weight", hidden))
        for slot, module, outputs, inputs in (
            ("qkv", "self_attn.qkv_proj", queries + 2 * keys, hidden),
            ("attention_output", "self_attn.o_proj", hidden, queries),
            ("gate_up", "mlp.gate_up_proj", 2 * wide, hidden),
            ("down", "mlp.down_proj", hidden, wide),
        ):
            made += blocks.linear(to + slot, at, ((module, outputs),), inputs, bias=False)
        made.append(blocks.vector(to + "mlp_norm", at + "post_attention_layernorm.weight", hidden))
    made.append(blocks.vector("final_norm", "model.norm.weight", hidden))
    if not spec.tie_word_embeddings:
        made.append(blocks.embedding("lm_head", "lm_head", spec))
    return made
