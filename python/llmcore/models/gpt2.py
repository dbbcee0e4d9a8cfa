"""GPT-2: LayerNorm, learned positions, one fused q-k-v matrix, a plain GELU MLP; weights stored [in, out]."""

from __future__ import annotations

from llmcore.checkpoint.config import Config
from llmcore.models import blocks
from llmcore.models.spec import DecoderSpec, Slot

ARCHITECTURE = "GPT2LMHeadModel"
BASE = "transformer."
LAYERS = "transformer.h."
IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)  # the causal mask, as old versions saved it
UNSET_TOKEN = 50256  # the class default of bos and eos, which small vocabularies leave as it is
_NEUTRAL = {"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)}


def spec(config: Config) -> DecoderSpec:
    hidden = config.integer("n_embd", minimum=1, maximum=blocks.MAX_HIDDEN_SIZE)
    heads = config.integer("n_head", minimum=1, maximum=blocks.MAX_HEADS)
    if hidden % heads:
        raise config.error("n_embd", f"is no multiple of n_head, {heads}")
    blocks.check_head_dim(config, "n_embd", hidden // heads)
    config.require_neutral(_NEUTRAL)
    vocab_size = config.integer("vocab_size", minimum=1, maximum=blocks.MAX_VOCAB_SIZE)
    inner = config.optional_integer("n_inner", minimum=1, maximum=blocks.MAX_INTERMEDIATE_SIZE)
    ids = blocks.token_ids(config, vocab_size, unset=UNSET_TOKEN)
    return DecoderSpec(
        model_type="gpt2",
        hidden_size=hidden,
        num_layers=config.integer("n_layer", minimum=1, maximum=blocks.MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden if inner is None else inner,
        vocab_size=vocab_size,
        max_position_embeddings=blocks.max_positions(config, "n_positions"),
        norm="layer_norm",
        norm_eps=blocks.norm_eps(config, "layer_norm_epsilon"),
        activation=blocks.activation(config, "activation_function"),
        gated_mlp=False,
        qkv_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        learned_positions=True,
        attention_scale=None if config.boolean("scale_attn_weights", default=True) else 1.0,
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=True),
        bos_id=ids.bos_id,
        eos_ids=ids.eos_ids,
        pad_id=ids.pad_id,
    )


def slots(spec: DecoderSpec) -> list[Slot]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    made = [
        _table("embedding", "transformer.wte", spec.vocab_size, hidden),
        _table("position_embedding", "transformer.wpe", spec.max_position_embeddings, hidden),
    ]
    for layer in range(spec.num_layers):
        to, at = f"layers.{layer}.", f"transformer.h.{layer}."
        made += _norm(to + "attention_norm", at + "ln_1", hidden)
        made += _conv1d(to + "qkv", at + "attn.c_attn", hidden, 3 * hidden)
        made += _conv1d(to + "attention_output", at + "attn.c_proj", hidden, hidden)
        made += _norm(to + "mlp_norm", at + "ln_2", hidden)
        made += _conv1d(to + "up", at + "mlp.c_fc", hidden, inner)
        made += _conv1d(to + "down", at + "mlp.c_proj", inner, hidden)
    made += _norm("final_norm", "transformer.ln_f", hidden)
    if not spec.tie_word_embeddings:
        made.append(_table("lm_head", "lm_head", spec.vocab_size, hidden))
    return made


def _table(slot: str, module: str, rows: int, columns: int) -> Slot:
    return Slot(name=slot, tensors=(module + ".weight",), shapes=((rows, columns),), modules=(module,))


def _norm(slot: str, module: str, size: int) -> list[Slot]:
    return [blocks.vector(slot, module + ".weight", size), blocks.vector(slot + "_bias", module + ".bias", size)]


def _conv1d(slot: str, module: str, inputs: int, outputs: int) -> list[Slot]:
    weight = Slot(
        name=slot,
        tensors=(module + ".weight",),
        shapes=((inputs, outputs),),
        transpose=True,
        modules=(module,),
    )
    return [weight, Slot(name=slot + "_bias", tensors=(module + ".bias",), shapes=((outputs,),), modules=(module,))]
