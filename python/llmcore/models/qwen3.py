"""Qwen3 (dense): Qwen2 without the biases, with an RMSNorm over each head of q and k."""

from __future__ import annotations

from llmcore.checkpoint.config import Config
from llmcore.models import blocks
from llmcore.models.spec import DecoderSpec, Slot

ARCHITECTURE = "Qwen3ForCausalLM"
BASE = "model."
LAYERS = "model.layers."
IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
_DEFAULT_HEAD_DIM = 128


def spec(config: Config) -> DecoderSpec:
    sizes = blocks.sizes(config, kv_heads_required=True, default_head_dim=_DEFAULT_HEAD_DIM)
    context = blocks.max_positions(config)
    bias = config.boolean("attention_bias", default=False)
    window, layer_windows = blocks.windows_of(config, num_layers=sizes.num_layers, max_position_embeddings=context)
    ids = blocks.token_ids(config, sizes.vocab_size)
    return DecoderSpec(
        model_type="qwen3",
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
        qk_norm=True,
        qkv_bias=bias,
        attention_output_bias=bias,
        rope_inv_freq=blocks.rope(config, head_dim=sizes.head_dim),
        sliding_window=window,
        layer_windows=layer_windows,
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        bos_id=ids.bos_id,
        eos_ids=ids.eos_ids,
        pad_id=ids.pad_id,
    )


def slots(spec: DecoderSpec) -> list[Slot]:
    return blocks.llama_slots(spec)
