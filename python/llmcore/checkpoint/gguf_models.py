"""What the metadata and tensor names of a .gguf file mean in the words of config.json and a Hugging Face checkpoint.

Sources: the format's public description and the names llama.cpp's converter gives. It changes weights in two ways that
are undone here: rows of q and k of "llama" are reordered for a rotation of neighbours, and Gemma's norms have 1 added.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmcore.checkpoint.config import Config
from llmcore.checkpoint.files import shown
from llmcore.checkpoint.gguf import GGUFValue
from llmcore.checkpoint.safetensors_header import TensorInfo
from llmcore.errors import ConfigError, GGUFError, TokenizerError, UnsupportedModelError, escape

Metadata = Mapping[str, GGUFValue]
Tensors = Mapping[str, TensorInfo]

FACTORS = "rope_freqs.weight"
"""A tensor that isn't a weight: what the rotary frequencies are divided by."""

_MAX = (1 << 31) - 1
_FLOATS = ("f32", "f64")
_INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
_BLOCK = re.compile(r"blk\.([^.]+)\.(.+)\.(weight|bias)")
_log = logging.getLogger("llmcore")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """A file as a Hugging Face checkpoint would put it."""

    config: Config
    names: dict[str, str]
    """The file's tensors by the names of Hugging Face."""
    heads: dict[str, int]
    """Tensors of these names have the rows of so many heads reordered."""
    less_one: frozenset[str]
    """Tensors of these names have 1 added."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How an architecture differs from Llama."""

    model_type: str
    architecture: str
    activation: str = "silu"
    reordered: bool = False
    less_one: bool = False
    partial: bool = False
    """May rotate part of a head."""
    modules: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[_Fields], dict[str, object]] | None = None
    """Keys of its own."""


_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GEMMA2 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "use_parallel_residual": (False,),
}
"""Keys that change the model, with the values under which they don't."""
_HARMLESS = re.compile(
    r"block_count|vocab_size|tensor_data_layout|rope\.scaling\..*|expert_used_count|attention\.layer_norm_epsilon"
)


class _Fields:
    """Typed access to the metadata of one architecture."""

    def __init__(self, metadata: Metadata, prefix: str, file: Path) -> None:
        self._metadata = metadata
        self.prefix = prefix
        self.file = file
        self.keys: dict[str, str] = {}
        self._read: set[str] = set()

    def error(self, key: str, message: str, allowed: str | None = None) -> ConfigError:
        found = self._metadata.get(self.prefix + key)
        value = None if found is None else f"{found.kind} {str(found.value)[:60]}"
        return ConfigError(message, file=self.file, field=self.prefix + key, value=value, allowed=allowed)

    def get(self, key: str, kinds: tuple[str, ...], to: str | None = None) -> object:
        """The value, or None where there is none. `to`: the key of config.json it becomes, for messages."""
        self._read.add(key)
        if to is not None:
            self.keys[to] = self.prefix + key
        found = self._metadata.get(self.prefix + key)
        if found is not None and found.kind not in kinds:
            raise self.error(key, "has the wrong type", allowed=" or ".join(kinds))
        return None if found is None else found.value

    def integer(self, key: str, to: str, *, required: bool = False, layers: bool = False) -> int | None:
        """An integer; with `layers` maybe one for each layer, which must all be the same."""
        value = self.get(key, (*_INTEGERS, *(f"[{kind}]" for kind in _INTEGERS if layers)), to)
        if value is None and required:
            raise self.error(key, "a required key is missing")
        if isinstance(value, np.ndarray):
            if len(value) != self.integer("block_count", "num_hidden_layers") or not value.size:
                raise self.error(key, "has not one entry for each layer")
            if (value != value[0]).any():
                raise UnsupportedModelError(str(self.error(key, "layers that differ are not supported")))
            value = value[0]
        return None if value is None else int(str(value))

    def number(self, key: str, to: str) -> float | None:
        value = self.get(key, _FLOATS, to)
        return None if value is None else float(str(value))

    def check_neutral(self) -> None:
        for key, values in _NEUTRAL.items():
            found = self._metadata.get(self.prefix + key)
            self._read.add(key)
            if found is not None and not (found.is_scalar and found.value in values):
                raise UnsupportedModelError(str(self.error(key, "changes the model in a way not supported")))

    def warn_unread(self) -> None:
        own = [key[len(self.prefix) :] for key in self._metadata if key.startswith(self.prefix)]
        unknown = [key for key in own if key not in self._read and not _HARMLESS.fullmatch(key)]
        if unknown:
            _log.warning(
                "%s: keys that llmcore doesn't know were ignored: %s",
                shown(self.file),
                [escape(key) for key in unknown],
            )


def _gemma2(fields: _Fields) -> dict[str, object]:
    layers = fields.integer("block_count", "num_hidden_layers")
    hidden = fields.integer("embedding_length", "hidden_size")
    heads = fields.integer("attention.head_count", "num_attention_heads", layers=True)
    width = _head_dim(fields)
    more: dict[str, object] = {
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", "attn_logit_softcapping"),
        "final_logit_softcapping": fields.number("final_logit_softcapping", "final_logit_softcapping"),
        "sliding_window": fields.integer("attention.sliding_window", "sliding_window"),
        # The file doesn't say; it is the width of a head, but for 27B.
        "query_pre_attn_scalar": hidden // heads if layers == 46 and hidden and heads else width,
    }
    return {key: value for key, value in more.items() if value is not None}


def _phi3(fields: _Fields) -> dict[str, object]:
    return {"sliding_window": fields.integer("attention.sliding_window", "sliding_window") or None}


_KINDS = {
    "llama": _Kind(model_type="llama", architecture="LlamaForCausalLM", reordered=True),
    "qwen2": _Kind(model_type="qwen2", architecture="Qwen2ForCausalLM"),
    "qwen3": _Kind(model_type="qwen3", architecture="Qwen3ForCausalLM"),
    "gemma2": _Kind(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        activation="gelu_pytorch_tanh",
        less_one=True,
        modules=_GEMMA2,
        more=_gemma2,
    ),
    "phi3": _Kind(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        partial=True,
        modules={"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        more=_phi3,
    ),
}
"""By `general.architecture`."""


def understand(metadata: Metadata, tensors: Tensors, factors: list[float] | None, file: Path) -> Meaning:
    """Config and names of a model's file. `factors`: what the tensor FACTORS holds.

    Raises GGUFError, ConfigError, TokenizerError, UnsupportedModelError.
    """
    kind = _kind(metadata, file)
    if not tensors:
        raise GGUFError("holds no tensors but a vocabulary alone, if anything", file=file)
    fields = _Fields(metadata, f"{_text(metadata, 'general.architecture', file)}.", file)
    fields.check_neutral()
    names = {_name(kind, name): name for name in tensors if name != FACTORS}
    if len(names) < len(tensors) - (FACTORS in tensors):
        raise GGUFError("two tensors are the same one", file=file)
    values = _config(kind, fields, tensors, factors)
    vocab_size = values["vocab_size"]
    values |= _token_ids(metadata, int(str(vocab_size)), file)
    fields.warn_unread()
    heads = {}
    if kind.reordered:
        for name in names:
            found = re.fullmatch(r"model\.layers\.[^.]+\.self_attn\.([qk])_proj\.(?:weight|bias)", name)
            if found:
                key = "num_attention_heads" if found[1] == "q" else "num_key_value_heads"
                heads[name] = int(str(values[key]))
    return Meaning(
        config=Config(values, file=file, names=fields.keys),
        names=names,
        heads=heads,
        less_one=frozenset(name for name in names if kind.less_one and "norm." in name),
    )


def _text(metadata: Metadata, key: str, file: Path) -> str:
    found = metadata.get(key)
    if found is None or found.kind != "str":
        raise GGUFError("is missing or no text", file=file, field=key, value=None if found is None else found.kind)
    return str(found.value)


def _kind(metadata: Metadata, file: Path) -> _Kind:
    if "general.type" in metadata and _text(metadata, "general.type", file) != "model":
        what = escape(metadata["general.type"].value)
        hint = "; load its base model and then the adapter" if what == "'adapter'" else ""
        raise UnsupportedModelError(f"{shown(file)}: holds no model but a GGUF {what}{hint}")
    name = _text(metadata, "general.architecture", file)
    if name not in _KINDS:
        raise UnsupportedModelError(
            f"{shown(file)}: the GGUF architecture {escape(name)} is not supported; supported: {', '.join(_KINDS)}"
        )
    return _KINDS[name]


def _name(kind: _Kind, name: str) -> str:
    """What Hugging Face calls a tensor; unknown ones keep their names."""
    stem, _, end = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{end}"
    found = _BLOCK.fullmatch(name)
    module = None if found is None else {**_MODULES, **kind.modules}.get(found[2])
    return name if found is None or module is None else f"model.layers.{found[1]}.{module}.{found[3]}"


def _config(kind: _Kind, fields: _Fields, tensors: Tensors, factors: list[float] | None) -> dict[str, object]:
    values: dict[str, object] = {
        "model_type": kind.model_type,
        "architectures": [kind.architecture],
        "hidden_size": fields.integer("embedding_length", "hidden_size", required=True),
        "num_hidden_layers": fields.integer("block_count", "num_hidden_layers", required=True),
        "num_attention_heads": fields.integer(
            "attention.head_count", "num_attention_heads", required=True, layers=True
        ),
        "num_key_value_heads": fields.integer("attention.head_count_kv", "num_key_value_heads", layers=True),
        "intermediate_size": fields.integer("feed_forward_length", "intermediate_size", required=True, layers=True),
        "max_position_embeddings": fields.integer("context_length", "max_position_embeddings", required=True),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        "hidden_activation" if kind.model_type == "gemma2" else "hidden_act": kind.activation,
        "vocab_size": _vocab_size(fields, tensors),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values["rms_norm_eps"] is None:
        raise fields.error("attention.layer_norm_rms_epsilon", "a required key is missing")
    head_dim = _head_dim(fields)
    if head_dim is not None:
        values["head_dim"] = head_dim
    if kind.model_type in ("llama", "qwen3"):
        values["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if kind.model_type == "llama":
        values["mlp_bias"] = "blk.0.ffn_down.bias" in tensors
    if kind.more is not None:
        values |= kind.more(fields)
    return values | _rope(kind, fields, head_dim, factors)


def _head_dim(fields: _Fields) -> int | None:
    """The width of a head. Raises ConfigError, UnsupportedModelError."""
    keys = fields.integer("attention.key_length", "head_dim")
    if (fields.integer("attention.value_length", "v_head_dim") or keys) != keys:
        raise UnsupportedModelError(
            str(fields.error("attention.value_length", "differs from attention.key_length, which is not supported"))
        )
    if keys is not None:
        return keys
    hidden = fields.integer("embedding_length", "hidden_size")
    heads = fields.integer("attention.head_count", "num_attention_heads", layers=True)
    return hidden // heads if hidden and heads and hidden % heads == 0 else None


def _vocab_size(fields: _Fields, tensors: Tensors) -> int:
    table = tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ConfigError("the tensor is missing or no matrix", file=fields.file, field="token_embd.weight")
    return table.shape[0]


def _rope(kind: _Kind, fields: _Fields, head_dim: int | None, factors: list[float] | None) -> dict[str, object]:
    theta = fields.number("rope.freq_base", "rope_theta")
    values: dict[str, object] = {"rope_theta": 10000.0 if theta is None else theta}
    rotated = fields.integer("rope.dimension_count", "partial_rotary_factor")
    if rotated is not None and rotated != head_dim:
        if head_dim is None or not 2 <= rotated < head_dim or rotated % 2:
            raise fields.error("rope.dimension_count", "must be even and at most the width of a head")
        values["partial_rotary_factor"] = rotated / head_dim
    # As llama.cpp: linear is what is meant where no type is said, and the factor had another name once.
    scaling = fields.get("rope.scaling.type", ("str",))
    if scaling not in (None, "none", "linear"):
        raise UnsupportedModelError(str(fields.error("rope.scaling.type", "is not supported", allowed="none, linear")))
    found = {key: fields.number(key, "rope_scaling") for key in ("rope.scaling.factor", "rope.scale_linear")}
    key = "rope.scale_linear" if found["rope.scaling.factor"] is None else "rope.scaling.factor"
    if scaling != "none" and found[key] not in (None, 0.0, 1.0):
        fields.keys["rope_scaling.factor"] = fields.prefix + key
        values["rope_scaling"] = {"rope_type": "linear", "factor": found[key]}
    fields.get("rope.scaling.original_context_length", _INTEGERS)
    fields.get("rope.scaling.finetuned", ("bool",))
    if factors is not None:
        if "rope_scaling" in values:
            raise fields.error(key, f"is there beside the factors of {FACTORS}")
        values["rope_scaling"] = {"rope_type": "factors", "factors": factors}
    return values


def _token_ids(metadata: Metadata, vocab_size: int, file: Path) -> dict[str, object]:
    """bos, eos and pad of config.json."""
    if "tokenizer.ggml.tokens" in metadata:
        tokens = metadata["tokenizer.ggml.tokens"]
        count = len(tokens.value) if tokens.kind.startswith("[") else 0
        if count != vocab_size:
            raise ConfigError(
                "tokenizer.ggml.tokens and token_embd.weight have different vocabularies",
                file=file,
                field="tokenizer.ggml.tokens",
                value=count,
                allowed=str(vocab_size),
            )
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "eot", "eom", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in metadata:
            continue
        found = metadata[key]
        if found.kind not in _INTEGERS or not 0 <= found.value < vocab_size:
            raise TokenizerError(
                f"{shown(file)}: {key} is {found.kind} {found.value}, but there are {vocab_size} tokens"
            )
        ids[name] = found.value
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))
    values: dict[str, object] = {"eos_token_id": ends} if ends else {}
    for name, key in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if name in ids:
            values[key] = ids[name]
    return values


_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def sampling_defaults(metadata: Metadata) -> dict[str, object]:
    """What `general.sampling.*` recommends, in the words of generation_config.json."""
    found: dict[str, object] = {}
    for theirs, ours in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{theirs}")
        if value is not None:
            found[ours] = value.value
    if found:
        temperature = metadata.get("general.sampling.temp")
        found["do_sample"] = temperature is None or not temperature.is_scalar or temperature.value != 0
    return found
