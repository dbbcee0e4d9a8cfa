"""What `pretrain_tiny.py` writes: int8 tensors, the JSON files of a Hugging Face folder, and the loss curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """The size of the model; the defaults fit 3 MB with int8 matrices and float16 embeddings."""

    vocab_size: int = 2048
    hidden: int = 192
    layers: int = 5
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 64
    mlp: int = 512
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def quantize(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors to store: int8 matrices with a float32 scale a row, a float16 embedding, float32 norms.

    The parameters given are replaced by the stored values, so what is measured next is what is saved.
    """
    stored: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            scale = (tensor.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
            levels = (tensor / scale).round().clamp(-127, 127)
            stored[name], stored[name + "_scale"] = levels.to(torch.int8).numpy(), scale.numpy()
            tensor.copy_(levels * scale)
        else:
            stored[name] = tensor.to(torch.float16 if "embed" in name else torch.float32).numpy()
            tensor.copy_(torch.from_numpy(stored[name]))
    return stored


def configs(s: Shape, bos: tuple[str, int], eos: tuple[str, int]) -> dict[str, dict[str, object]]:
    """The JSON files of the folder. Scheme: compressed-tensors W8A8, activations quantised per token while running."""
    int8: dict[str, object] = {"num_bits": 8, "type": "int", "symmetric": True}
    scheme = {
        "targets": ["Linear"],
        "weights": {**int8, "strategy": "channel", "dynamic": False},
        "input_activations": {**int8, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    model: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "vocab_size": s.vocab_size,
        "hidden_size": s.hidden, "intermediate_size": s.mlp, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "hidden_act": "silu", "max_position_embeddings": s.context, "rms_norm_eps": s.norm_eps,
        "rope_theta": s.rope_theta, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "tie_word_embeddings": True, "use_cache": True,
        "bos_token_id": bos[1], "eos_token_id": eos[1],
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
            "config_groups": {"group_0": scheme}, "ignore": ["lm_head"], "kv_cache_scheme": None,
        },
    }  # fmt: skip
    sampling: dict[str, object] = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "bos_token_id": bos[1],
        "eos_token_id": eos[1],
    }
    tokenizer: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos[0], "eos_token": eos[0],
        "add_bos_token": True, "model_max_length": s.context, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return {"config.json": model, "generation_config.json": sampling, "tokenizer_config.json": tokenizer}


def begin_with(token: str, token_id: int) -> dict[str, object]:
    """tokenizer.json's post_processor that puts the begin-of-text token before every prompt."""
    special, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def plot(curves: dict[str, list[tuple[int, float]]]) -> str:
    """The loss curves as a small SVG: nats per byte over steps."""
    points = [point for curve in curves.values() for point in curve]
    steps, top, low = max(x for x, _ in points), min(3.0, max(y for _, y in points)), min(y for _, y in points) - 0.05
    rows = {v / 5: 20 + 280 * (top - v / 5) / (top - low) for v in range(math.ceil(low * 5), int(top * 5) + 1)}
    out = "".join(
        f'<path d="M60 {y:.1f}H620" stroke="#ddd"/><text x="30" y="{y + 4:.1f}">{v}</text>' for v, y in rows.items()
    )
    for i, (name, curve) in enumerate(curves.items()):
        color = ["#0a6ebd", "#d1495b"][i % 2]
        at = " ".join(
            f"{60 + 560 * x / steps:.1f},{20 + 280 * (top - min(y, top)) / (top - low):.1f}" for x, y in curve
        )
        out += f'<polyline points="{at}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        out += f'<text x="400" y="{40 + 18 * i}" fill="{color}">{name}: {curve[-1][1]:.3f}</text>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 340" font-family="sans-serif" font-size="12">'
        f'<rect width="640" height="340" fill="#fff"/>{out}<text x="60" y="318">0</text>'
        f'<text x="550" y="318">step {steps}</text><text x="260" y="332">loss, nats per byte</text></svg>\n'
    )
