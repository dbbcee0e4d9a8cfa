"""What architectures share when they read their config: sizes, rotary frequencies, token ids, tensor names.

Every number is checked here once, so that a model file reads like its paper.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.config import Config
from llmcore.errors import UnsupportedModelError
from llmcore.models.spec import Activation, DecoderSpec, Slot

MAX_HIDDEN_SIZE = 1 << 20
MAX_HEADS = 1 << 14
MAX_HEAD_DIM = 1 << 13
MAX_LAYERS = 10_000
MAX_INTERMEDIATE_SIZE = 1 << 22
MAX_VOCAB_SIZE = 1 << 24
MAX_POSITIONS = (1 << 31) - 1

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names -> ours. A name is only ever looked up here."""

Frequencies = npt.NDArray[np.float32]

_log = logging.getLogger("llmcore")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes every decoder has, in elements."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


def check_head_dim(config: Config, key: str, head_dim: int) -> None:
    """Raises ConfigError where `key` makes larger heads than there may be."""
    if head_dim > MAX_HEAD_DIM:
        raise config.error(key, f"makes heads of {head_dim} elements, more than {MAX_HEAD_DIM}")


def sizes(config: Config, *, kv_heads_required: bool = False, default_head_dim: int | None = None) -> Sizes:
    """Sizes under their usual keys. Without `head_dim` it is `default_head_dim` or hidden_size / heads."""
    hidden_size = config.integer("hidden_size", minimum=1, maximum=MAX_HIDDEN_SIZE)
    num_layers = config.integer("num_hidden_layers", minimum=1, maximum=MAX_LAYERS)
    num_heads = config.integer("num_attention_heads", minimum=1, maximum=MAX_HEADS)
    num_kv_heads: int | None
    if kv_heads_required:
        num_kv_heads = config.integer("num_key_value_heads", minimum=1, maximum=num_heads)
    else:
        num_kv_heads = config.optional_integer("num_key_value_heads", minimum=1, maximum=num_heads)
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_heads % num_kv_heads:
        raise config.error("num_key_value_heads", f"does not divide num_attention_heads, {num_heads}")
    head_dim = config.optional_integer("head_dim", minimum=1, maximum=MAX_HEAD_DIM) or default_head_dim
    if head_dim is None:
        if hidden_size % num_heads:
            raise config.error(
                "hidden_size", f"is no multiple of num_attention_heads, {num_heads}, and there is no head_dim"
            )
        head_dim = hidden_size // num_heads
        check_head_dim(config, "hidden_size", head_dim)
    if head_dim % 2:
        key = "head_dim" if config.has("head_dim") else "hidden_size"
        raise config.error(key, f"makes heads of {head_dim} elements, which rotary embedding can't pair")
    return Sizes(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.integer("vocab_size", minimum=1, maximum=MAX_VOCAB_SIZE),
    )


def intermediate_size(config: Config) -> int:
    """Width of the gated MLP."""
    return config.integer("intermediate_size", minimum=1, maximum=MAX_INTERMEDIATE_SIZE)


def max_positions(config: Config, key: str = "max_position_embeddings") -> int:
    """The longest context in tokens."""
    return config.integer(key, minimum=1, maximum=MAX_POSITIONS)


def norm_eps(config: Config, key: str = "rms_norm_eps") -> float:
    """The norms' epsilon; a float32 above zero."""
    return config.number(key, minimum=1e-30, below=1.0)


def activation(config: Config, key: str = "hidden_act") -> Activation:
    """The MLP's activation. Raises UnsupportedModelError for one that isn't known."""
    return config.choice(key, ACTIVATIONS, error=UnsupportedModelError)


# Rotary embedding


@functools.lru_cache(maxsize=32)
def inverse_frequencies(theta: float, dim: int) -> tuple[float, ...]:
    """float32 values of theta^(-2i/dim) for i < dim/2, rounded where transformers rounds.

    pow is taken in decimal arithmetic, so the values are the same on every system; libm's differ in the last bit.
    """
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    context = Context(prec=40)
    base = Decimal(float(np.float32(theta)))
    powers = np.array([float(context.power(base, Decimal(float(e)))) for e in exponents], np.float64)
    return tuple(float(value) for value in np.float32(1.0) / powers.astype(np.float32))


def rope(config: Config, *, head_dim: int, default_theta: float = 10000.0, partial: bool = False) -> tuple[float, ...]:
    """float32 inverse frequencies [head_dim / 2], scaling applied, of either way to write them.

    `partial`: the architecture rotates just partial_rotary_factor of a head where the config has that; then there are
    fewer. Elsewhere a factor below 1 is refused.

    Old configs have `rope_theta` beside `rope_scaling`; transformers 5 has both in `rope_parameters`. Types: default,
    linear, llama3 and factors (what .gguf files have: a divisor for each frequency); others raise
    UnsupportedModelError. Source: Llama 3.1's published scaling.
    """
    scaling = config.section("rope_parameters")
    old = config.section("rope_scaling")
    if scaling is not None and not scaling.values:
        scaling = None
    if scaling is not None and old is not None and old.values and dict(old.values) != dict(scaling.values):
        raise config.error("rope_scaling", "differs from rope_parameters, which is there too")
    scaling = scaling or old or Config({}, file=config.file)
    outside = config.number("rope_theta", minimum=1.0, maximum=1e30, default=default_theta)
    theta = scaling.number("rope_theta", minimum=1.0, maximum=1e30, default=outside)
    if "rope_theta" in config and theta != outside:
        raise config.error("rope_theta", f"differs from rope_parameters.rope_theta, {theta:g}")
    rotated = min(_partial(config, head_dim, partial), _partial(scaling, head_dim, partial))
    key = "rope_type" if "rope_type" in scaling or "type" not in scaling else "type"
    kinds = {kind: kind for kind in ("default", "linear", "llama3", "factors")}
    kind = scaling.choice(key, kinds, default="default", error=UnsupportedModelError)
    if "type" in scaling and scaling.get("type") != scaling.get(key):
        raise scaling.error("type", f"differs from {key}")
    unscaled = np.array(inverse_frequencies(theta, rotated), np.float32)
    if kind == "default":
        return tuple(float(value) for value in unscaled)
    if kind == "factors":
        scaled = unscaled / _factors(scaling, len(unscaled))
    else:
        factor = np.float32(scaling.number("factor", minimum=1.0, maximum=1e6))
        scaled = unscaled / factor if kind == "linear" else _llama3(unscaled, factor, scaling, config)
    if scaling.unread():
        _log.warning("%s: keys of the rotary scaling that %s does not use: %s", config.file, kind, scaling.unread())
    return tuple(float(value) for value in scaled)


def _partial(config: Config, head_dim: int, allowed: bool) -> int:
    """How many elements of a head are rotated."""
    if "partial_rotary_factor" not in config:
        return head_dim
    factor = config.number("partial_rotary_factor", above=0.0, maximum=1.0)
    if int(head_dim * factor) % 2:
        raise config.error(
            "partial_rotary_factor", f"leaves an odd number of the {head_dim} elements of a head to rotate"
        )
    if not allowed:
        config.require_neutral({"partial_rotary_factor": (1.0,)})
    return int(head_dim * factor)


def _factors(scaling: Config, count: int) -> Frequencies:
    found = scaling.get("factors")
    if not isinstance(found, list) or len(found) != count:
        raise scaling.error("factors", "is no list of a divisor for each frequency", allowed=f"{count} numbers")
    if not all(isinstance(factor, float) and 1e-6 <= factor <= 1e6 for factor in found):
        raise scaling.error("factors", "holds what is no divisor", allowed="numbers from 1e-6 to 1e6")
    return np.array(found, np.float32)


def _llama3(unscaled: Frequencies, factor: np.float32, scaling: Config, config: Config) -> Frequencies:
    """Llama 3.1's scaling in float32, operation by operation as transformers has it: long waves are slowed down by
    `factor`, short ones are kept, those between are interpolated."""
    low = scaling.number("low_freq_factor", above=0.0, maximum=1e6)
    high = scaling.number("high_freq_factor", above=0.0, maximum=1e6)
    if low >= high:
        raise scaling.error("low_freq_factor", f"is not below high_freq_factor, {high:g}")
    key = "original_max_position_embeddings"
    context = (config if config.has(key) else scaling).integer(key, minimum=1, maximum=MAX_POSITIONS)
    one = np.float32(1.0)
    wavelength = (one / unscaled) * np.float32(2 * np.pi)
    slowed = np.where(wavelength > np.float32(context / low), unscaled / factor, unscaled)
    smooth = ((one / wavelength) * np.float32(context) - np.float32(low)) / np.float32(high - low)
    blended = (one - smooth) * slowed / factor + smooth * slowed
    between = ~(wavelength < np.float32(context / high)) & ~(wavelength > np.float32(context / low))
    return np.where(between, blended, slowed)


# Attention windows


Windows = tuple[int | None, tuple[int | None, ...] | None]


def windows_of(config: Config, *, num_layers: int, max_position_embeddings: int) -> Windows:
    """DecoderSpec's `sliding_window` and `layer_windows` from Qwen-style keys."""
    listed = layer_types(config, num_layers)
    used = config.boolean("use_sliding_window", default=False)
    first = config.integer("max_window_layers", minimum=0, maximum=MAX_LAYERS, default=28)
    config.optional_integer("sliding_window", minimum=1, maximum=MAX_POSITIONS)
    if listed is None:
        listed = ["sliding_attention" if used and i >= first else "full_attention" for i in range(num_layers)]
    if "sliding_attention" not in listed or not used or not config.has("sliding_window"):
        return None, None
    window = sliding_window(config, max_position_embeddings)
    if "full_attention" not in listed:
        return window, None
    return None, tuple(window if each == "sliding_attention" else None for each in listed)


def sliding_window(config: Config, max_position_embeddings: int) -> int:
    """`sliding_window` in tokens, at most the context."""
    return config.integer("sliding_window", minimum=1, maximum=max_position_embeddings)


def layer_types(config: Config, num_layers: int) -> list[str] | None:
    """full_attention or sliding_attention for each layer; None where the config has none."""
    if not config.has("layer_types"):
        config.get("layer_types")
        return None
    types = config.strings("layer_types")
    if len(types) != num_layers:
        raise config.error("layer_types", f"has {len(types)} entries for {num_layers} layers")
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModelError(
            str(config.error("layer_types", "holds an unknown type", allowed="full_attention, sliding_attention"))
        )
    return types


# Token ids


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Special tokens, each inside the vocabulary."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None


def token_ids(config: Config, vocab_size: int, *, unset: int | None = None) -> TokenIds:
    """bos, eos and pad. The id `unset`, a class default that says nothing, counts as absent outside the vocabulary."""

    def ids(key: str, none: tuple[int | None, ...] = ()) -> tuple[int, ...]:
        value = config.get(key)
        outside = type(value) is int and not 0 <= value < vocab_size
        if outside and value in none:
            return ()
        if outside and value == unset:
            _log.warning("%s: %s is %d, outside the vocabulary of %d: not set", config.file, key, value, vocab_size)
            return ()
        return config.token_ids(key, below=vocab_size)

    def one(key: str, none: tuple[int | None, ...] = ()) -> int | None:
        if isinstance(config.get(key), list):
            raise config.error(key, "has the wrong type", allowed="an integer or null")
        return next(iter(ids(key, none)), None)

    # Conversions of the first Llama write a padding id of -1 for none.
    return TokenIds(bos_id=one("bos_token_id"), eos_ids=ids("eos_token_id"), pad_id=one("pad_token_id", (-1,)))


# Slots


def linear(slot: str, prefix: str, modules: tuple[tuple[str, int], ...], inputs: int, *, bias: bool) -> list[Slot]:
    """The slot of a linear layer, weights [out, in] stacked, and that of its bias. `modules`: name and outputs."""
    names = tuple(prefix + name for name, _ in modules)
    made = [
        Slot(
            name=slot,
            tensors=tuple(name + ".weight" for name in names),
            shapes=tuple((outputs, inputs) for _, outputs in modules),
            modules=names,
        )
    ]
    if bias:
        made.append(
            Slot(
                name=slot + "_bias",
                tensors=tuple(name + ".bias" for name in names),
                shapes=tuple((outputs,) for _, outputs in modules),
                modules=names,
            )
        )
    return made


def vector(slot: str, tensor: str, size: int, *, offset: float = 0.0) -> Slot:
    """The slot of one vector, as a norm's weight; `offset` is added to it."""
    return Slot(name=slot, tensors=(tensor,), shapes=((size,),), offset=offset, modules=(tensor.rpartition(".")[0],))


def llama_slots(spec: DecoderSpec) -> list[Slot]:
    """The slots of a decoder whose tensors have Llama's names."""
    hidden, wide = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    slots = [embedding("embedding", "model.embed_tokens", spec)]
    for layer in range(spec.num_layers):
        to, at = f"layers.{layer}.", f"model.layers.{layer}."
        qkv = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
        slots.append(vector(to + "attention_norm", at + "input_layernorm.weight", hidden))
        slots += linear(to + "qkv", at + "self_attn.", qkv, hidden, bias=spec.qkv_bias)
        if spec.qk_norm:
            slots.append(vector(to + "q_norm", at + "self_attn.q_norm.weight", spec.head_dim))
            slots.append(vector(to + "k_norm", at + "self_attn.k_norm.weight", spec.head_dim))
        slots += linear(
            to + "attention_output", at + "self_attn.", (("o_proj", hidden),), queries, bias=spec.attention_output_bias
        )
        slots.append(vector(to + "mlp_norm", at + "post_attention_layernorm.weight", hidden))
        slots += linear(
            to + "gate_up", at + "mlp.", (("gate_proj", wide), ("up_proj", wide)), hidden, bias=spec.mlp_bias
        )
        slots += linear(to + "down", at + "mlp.", (("down_proj", hidden),), wide, bias=spec.mlp_bias)
    slots.append(vector("final_norm", "model.norm.weight", hidden))
    if not spec.tie_word_embeddings:
        slots.append(embedding("lm_head", "lm_head", spec))
    return slots


def embedding(slot: str, module: str, spec: DecoderSpec) -> Slot:
    """The slot of a [vocab_size, hidden_size] matrix."""
    return Slot(
        name=slot, tensors=(module + ".weight",), shapes=((spec.vocab_size, spec.hidden_size),), modules=(module,)
    )
