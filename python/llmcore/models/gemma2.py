"""Gemma 2: norms before and after attention and MLP, capped scores and logits, windows in every other layer."""

from __future__ import annotations

import numpy as np

from llmcore.checkpoint.config import Config
from llmcore.models import blocks
from llmcore.models.spec import DecoderSpec, Slot

ARCHITECTURE = "Gemma2ForCausalLM"
BASE = "model."
LAYERS = "model.layers."
IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
OWN_KEYS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})


def spec(config: Config) -> DecoderSpec:
    sizes = blocks.sizes(config, kv_heads_required=True, default_head_dim=256)
    context = blocks.max_positions(config)
    ids = blocks.token_ids(config, sizes.vocab_size)
    scalar = config.number("query_pre_attn_scalar", above=0.0, maximum=1e6, default=256)
    bias = config.boolean("attention_bias", default=False)
    return DecoderSpec(
        model_type="gemma2",
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=blocks.intermediate_size(config),
        vocab_size=sizes.vocab_size,
        max_position_embeddings=context,
        norm_eps=blocks.norm_eps(config),
        activation=blocks.activation(config, "hidden_activation"),
        qkv_bias=bias,
        attention_output_bias=bias,
        rope_inv_freq=blocks.rope(config, head_dim=sizes.head_dim),
        embedding_scale=float(np.float32(sizes.hidden_size**0.5)),
        post_norms=True,
        attention_scale=scalar**-0.5,
        attention_softcap=_softcap(config, "attn_logit_softcapping", 50.0),
        logit_softcap=_softcap(config, "final_logit_softcapping", 30.0),
        layer_windows=_windows(config, sizes.num_layers, context),
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=True),
        bos_id=ids.bos_id,
        eos_ids=ids.eos_ids,
        pad_id=ids.pad_id,
    )


def _softcap(config: Config, key: str, absent: float) -> float | None:
    if key not in config:
        return absent
    return config.optional_number(key, above=0.0, maximum=1e6)


def _windows(config: Config, num_layers: int, context: int) -> tuple[int | None, ...]:
    """The window of each layer; the even ones have it where layer_types is absent."""
    if "sliding_window" not in config:
        window: int | None = min(4096, context)
    else:
        window = config.optional_integer("sliding_window", minimum=1, maximum=blocks.MAX_POSITIONS)
    types = blocks.layer_types(config, num_layers)
    sliding = [i % 2 == 0 for i in range(num_layers)] if types is None else [t == "sliding_attention" for t in types]
    return tuple(window if slides else None for slides in sliding)


def slots(spec: DecoderSpec) -> list[Slot]:
    hidden, wide = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    made = [blocks.embedding("embedding", "model.embed_tokens", spec)]
    for layer in range(spec.num_layers):
        to, at = f"layers.{layer}.", f"model.layers.{layer}."
        qkv = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
        norms = {
            "attention_norm": "input_layernorm",
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
        made += [blocks.vector(to + slot, f"{at}{name}.weight", hidden, offset=1.0) for slot, name in norms.items()]
        made += blocks.linear(to + "qkv", at + "self_attn.", qkv, hidden, bias=spec.qkv_bias)
        made += blocks.linear(
            to + "attention_output", at + "self_attn.", (("o_proj", hidden),), queries, bias=spec.attention_output_bias
        )
        gate_up = (("gate_proj", wide), ("up_proj", wide))
        made += blocks.linear(to + "gate_up", at + "mlp.", gate_up, hidden, bias=False)
        made += blocks.linear(to + "down", at + "mlp.", (("down_proj", hidden),), wide, bias=False)
    made.append(blocks.vector("final_norm", "model.norm.weight", hidden, offset=1.0))
    if not spec.tie_word_embeddings:
        made.append(blocks.embedding("lm_head", "lm_head", spec))
    return made
