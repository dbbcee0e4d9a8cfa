"""Writes .gguf files: from a Hugging Face folder as llama.cpp's converter does, and broken ones. Plain struct, so that
the reader is not tested against itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

KINDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8}
KINDS |= {"u64": 10, "i64": 11, "f64": 12}
_LETTERS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?"}
_LETTERS |= {"u64": "Q", "i64": "q", "f64": "d"}
TYPES = {"F32": 0, "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11}
TYPES |= {"Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39}
TYPES |= {"IQ1_S": 19, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ2_S": 22, "IQ3_XXS": 18, "IQ3_S": 21}

# Weights and bytes of a block, and where its float16 numbers are.
BLOCKS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "Q4_0": (32, 18, (0,)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)),
    "Q8_0": (32, 34, (0,)),
    "Q2_K": (256, 84, (80, 82)),
    "Q3_K": (256, 110, (108,)),
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
    "IQ4_NL": (32, 18, (0,)),
    "IQ4_XS": (256, 136, (0,)),
    "IQ1_S": (256, 50, (0,)),
    "IQ2_XXS": (256, 66, (0,)),
    "IQ2_XS": (256, 74, (0,)),
    "IQ2_S": (256, 82, (0,)),
    "IQ3_XXS": (256, 98, (0,)),
    "IQ3_S": (256, 110, (0,)),
    "TQ1_0": (256, 54, (52,)),
    "TQ2_0": (256, 66, (64,)),
}

Value = tuple[str, Any]
Tensor = tuple[str, tuple[int, ...], bytes]
"""Type, shape with the rows first, data."""


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value_bytes(kind: str, value: Any) -> bytes:
    if kind.startswith("["):
        items = b"".join(value_bytes(kind[1:-1], item)[4:] for item in value)
        return struct.pack("<IIQ", 9, KINDS[kind[1:-1]], len(value)) + items
    body = text(value) if kind == "str" else struct.pack("<" + _LETTERS[kind], value)
    return struct.pack("<I", KINDS[kind]) + body


def build(
    metadata: Mapping[str, Value], tensors: Mapping[str, Tensor], *, version: int = 3, alignment: int = 32
) -> bytes:
    """A whole file."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value_bytes(kind, value) for key, (kind, value) in metadata.items())
    data = b""
    for name, (kind, shape, body) in tensors.items():
        data += bytes(-len(data) % alignment)
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += text(name) + sizes + struct.pack("<iQ", TYPES[kind], len(data))
        data += body
    return head + bytes(-len(head) % alignment) + data


# How far weights of random bits reach, in units of the block's number: roughly the deviation of a code times a scale's.
_REACH = {"Q4_0": 4.6, "Q4_1": 4.6, "Q5_0": 9.2, "Q5_1": 9.2, "Q8_0": 74.0, "Q2_K": 12.0, "Q3_K": 42.0, "Q4_K": 200.0}
_REACH |= {"Q5_K": 400.0, "Q6_K": 1360.0, "IQ4_NL": 66.0, "IQ4_XS": 1220.0, "TQ1_0": 0.8, "TQ2_0": 0.8}
_REACH |= {"IQ1_S": 6.5, "IQ2_XXS": 46.0, "IQ2_XS": 46.0, "IQ2_S": 46.0, "IQ3_XXS": 166.0, "IQ3_S": 166.0}
_MINIMUM = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
"""The second number in units of the first, for weights around 0."""


def random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator, size: float) -> bytes:
    """Blocks of random bits; their float16 numbers are such that weights are of about that size."""
    weights, nbytes, halves = BLOCKS[kind]
    blocks = rng.integers(0, 256, (rows * columns // weights, nbytes), dtype=np.uint8)
    numbers = rng.uniform(0.5, 1.5, len(blocks)) * size / _REACH[kind]
    for at, factor in zip(halves, (1.0, _MINIMUM.get(kind, 0.0)), strict=False):
        blocks[:, at : at + 2] = (numbers * factor).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return (without_threes(blocks) if kind == "TQ2_0" else blocks).tobytes()


def without_threes(values: np.ndarray) -> np.ndarray:
    """Bytes of four numbers from 0 to 3, each 3 made a 2."""
    return values & ~((values >> 1) & 0x55)


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

Encode = Callable[[str, np.ndarray], tuple[str, bytes]]


def as_float32(name: str, values: np.ndarray) -> tuple[str, bytes]:
    return "F32", values.astype(np.float32).tobytes()


def vocabulary(size: int) -> dict[str, Value]:
    """A byte-level vocabulary of 256 bytes, some words and two control tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [letters[byte] for byte in range(256)]
    tokens += [f"word{i}" for i in range(size - 258)] + ["<s>", "</s>"]
    return {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", "llama-bpe"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.token_type": ("[i32]", [1] * (size - 2) + [3, 3]),
        "tokenizer.ggml.merges": ("[str]", []),
        "tokenizer.ggml.bos_token_id": ("u32", size - 2),
        "tokenizer.ggml.eos_token_id": ("u32", size - 1),
        "tokenizer.ggml.add_bos_token": ("bool", True),
    }


def converted(folder: Path, encode: Encode = as_float32) -> tuple[dict[str, Value], dict[str, Tensor]]:
    """Metadata and tensors for the model in a Hugging Face folder. `encode` turns a matrix into a type and bytes."""
    config = json.loads((folder / "config.json").read_text())
    kind, heads = config["model_type"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    name = "llama" if kind == "mistral" else kind
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    fields: dict[str, Value] = {
        "block_count": ("u32", config["num_hidden_layers"]),
        "context_length": ("u32", config["max_position_embeddings"]),
        "embedding_length": ("u32", config["hidden_size"]),
        "feed_forward_length": ("u32", config["intermediate_size"]),
        "attention.head_count": ("u32", heads),
        "attention.head_count_kv": ("u32", kv_heads),
        "attention.key_length": ("u32", width),
        "attention.value_length": ("u32", width),
        "attention.layer_norm_rms_epsilon": ("f32", config["rms_norm_eps"]),
        "rope.freq_base": ("f32", theta),
        "rope.dimension_count": (
            "u32",
            int(width * (config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0)),
        ),
        "vocab_size": ("u32", config["vocab_size"]),
    }
    if rope.get("rope_type") == "linear":
        fields |= {"rope.scaling.type": ("str", "linear"), "rope.scaling.factor": ("f32", rope["factor"])}
    if kind == "gemma2":
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            fields[key] = ("f32", config[key])
    if kind in ("gemma2", "phi3") and config.get("sliding_window"):
        fields["attention.sliding_window"] = ("u32", config["sliding_window"])
    metadata: dict[str, Value] = {"general.architecture": ("str", name), "general.type": ("str", "model")}
    metadata |= {f"{name}.{key}": value for key, value in fields.items()}
    tensors: dict[str, Tensor] = {}
    for full, values in load_file(folder / "model.safetensors").items():
        stem, _, end = full.rpartition(".")
        module, prefix = stem, ""
        if stem.startswith("model.layers."):
            number, module = stem.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{number}."
        theirs = ({**_NAMES, **_GEMMA_NAMES} if kind == "gemma2" else _NAMES)[module]
        if kind == "gemma2" and "norm" in module:
            values = values + np.float32(1)
        if name == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            count = heads if "q_proj" in module else kv_heads
            values = values.reshape(count, 2, width // 2, -1).swapaxes(1, 2).reshape(values.shape)
        form, body = encode(full, values) if values.ndim == 2 else as_float32(full, values)
        tensors[f"{prefix}{theirs}.{end}"] = (form, values.shape, body)
    return metadata, tensors
