"""A small valid Llama checkpoint made of numpy alone, to be broken in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.checkpoint.readers import open_checkpoint
from llmcore.checkpoint.write import save_json, save_safetensors
from llmcore.models.binding import Binding, bind

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 19,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors that CONFIG describes."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (19, 16),
        "model.norm.weight": (16,),
        "lm_head.weight": (19, 16),
    }
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (16,),
            at + "self_attn.q_proj.weight": (16, 16),
            at + "self_attn.k_proj.weight": (8, 16),
            at + "self_attn.v_proj.weight": (8, 16),
            at + "self_attn.o_proj.weight": (16, 16),
            at + "post_attention_layernorm.weight": (16,),
            at + "mlp.gate_proj.weight": (24, 16),
            at + "mlp.up_proj.weight": (24, 16),
            at + "mlp.down_proj.weight": (16, 24),
        }
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def save(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    config_text: str | bytes | None = None,
    weights: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint; `config` replaces keys (... removes one), `config_text` the whole file."""
    folder.mkdir(exist_ok=True)
    if config_text is None:
        made = {key: value for key, value in (CONFIG | (config or {})).items() if value is not ...}
        config_text = json.dumps(made)
    data = config_text.encode() if isinstance(config_text, str) else config_text
    (folder / "config.json").write_bytes(data)
    save_safetensors(folder / "model.safetensors", tensors() if weights is None else weights)
    if generation is not None:
        save_json(folder / "generation_config.json", generation)
    return folder


def shard(folder: Path, *, parts: int = 3, weights: dict[str, Any] | None = None) -> dict[str, str]:
    """Turns the single file into shards with their index, and gives the weight map."""
    weights = tensors() if weights is None else weights
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        chosen = names[part::parts]
        save_safetensors(folder / file, {name: weights[name] for name in chosen})
        weight_map |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors").unlink(missing_ok=True)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object, **metadata: object) -> None:
    value = {"metadata": metadata, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))


def bound(folder: Path) -> Binding:
    with open_checkpoint(folder) as checkpoint:
        return bind(checkpoint)
