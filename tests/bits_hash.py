"""One hash of the bits that a small model computes in every weight format: the same on every machine.

    python tests/bits_hash.py                    # 'sha256 ...' of the whole, a line for each part before it
    LLMCORE_ISA=scalar python tests/bits_hash.py # or under qemu-aarch64: the last line must not change

The weights come from integers, so that no libm is between the seed and them. Needs numpy and llmcore alone.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import llmcore
from llmcore.checkpoint.write import save_json, save_safetensors
from llmcore.quantization import KV_DTYPES

VOCAB = 257
# No size is a multiple of 16 or a power of two by itself, and rows are longer than a group of activations (256).
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, CONTEXT = 144, 6, 2, 40, 272, 2, 400
FORMATS: dict[str, dict[str, object]] = {
    "f32": {},
    "bf16": {"dtype": "bfloat16"},
    "f16": {"dtype": "float16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "int4-zero": {"quantize": llmcore.QuantConfig(format="int4", symmetric=False)},
    "int8-zero": {"quantize": llmcore.QuantConfig(format="int8", symmetric=False)},
    "int4-32": {"quantize": llmcore.QuantConfig(format="int4", group_size=32)},
    "int4-minima": {"quantize": llmcore.QuantConfig(format="int4", group_size=32, symmetric=False, double_quant=True)},
    "ternary": {"quantize": "ternary"},
    "int6-double": {"quantize": llmcore.QuantConfig(format="int6", group_size=16, double_quant=True)},
    "int5-minima": {"quantize": llmcore.QuantConfig(format="int5", group_size=32, symmetric=False, double_quant=True)},
    "int3": {"quantize": "int3"},
    "int2": {"quantize": llmcore.QuantConfig(format="int2", group_size=16, symmetric=False, double_quant=True)},
    "iq4": {"quantize": "iq4"},
    "fp4": {"quantize": "fp4"},
    "nf4": {"quantize": "nf4"},
    "ternary_dense": {"quantize": "ternary_dense"},
}


def values(rng: np.random.Generator, *shape: int, spread: float) -> npt.NDArray[np.float32]:
    """Uniform in [-spread, spread], from integers by one rounding."""
    return rng.integers(-(2**20), 2**20 + 1, shape).astype(np.float32) * np.float32(spread / 2**20)


def write_model(folder: Path, layers: int = LAYERS, vocab: int = VOCAB) -> None:
    """A Qwen3 (norms of q and k, grouped heads) with attention biases and drawn norms, as a Hugging Face folder."""
    rng = np.random.default_rng(20240229)
    query, key = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = {
        "model.embed_tokens.weight": values(rng, vocab, HIDDEN, spread=1.0),
        "lm_head.weight": values(rng, vocab, HIDDEN, spread=0.3),
        "model.norm.weight": 1 + values(rng, HIDDEN, spread=0.3),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, rows, columns in (
            *(("self_attn.q_proj", query, HIDDEN), ("self_attn.k_proj", key, HIDDEN)),
            *(("self_attn.v_proj", key, HIDDEN), ("self_attn.o_proj", HIDDEN, query)),
            *(("mlp.gate_proj", MLP, HIDDEN), ("mlp.up_proj", MLP, HIDDEN), ("mlp.down_proj", HIDDEN, MLP)),
        ):
            tensors[f"{at}{name}.weight"] = values(rng, rows, columns, spread=0.15)
            if "self_attn" in name:
                tensors[f"{at}{name}.bias"] = values(rng, rows, spread=0.1)
        for name, size in (
            *(("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN)),
            *(("self_attn.q_norm", HEAD_DIM), ("self_attn.k_norm", HEAD_DIM)),
        ):
            tensors[f"{at}{name}.weight"] = 1 + values(rng, size, spread=0.3)
    save_safetensors(folder / "model.safetensors", tensors)
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocab,
        "max_position_embeddings": CONTEXT,
        "attention_bias": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    save_json(folder / "config.json", config)


def load(folder: Path, name: str, *, threads: int | None = None) -> llmcore.Model:
    """The model in one of FORMATS."""
    return llmcore.load(folder, threads=threads, progress=False, **FORMATS[name])  # type: ignore[arg-type]


def prompt(length: int) -> list[int]:
    """Ids that depend on the length alone."""
    return np.random.default_rng(length).integers(0, VOCAB, length).tolist()


def sampled(index: int, max_tokens: int = 24) -> llmcore.SamplingParams:
    """Greedy for even requests; for odd ones a seed and filters of their own."""
    if index % 2 == 0:
        return llmcore.SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=3)
    return llmcore.SamplingParams(
        temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, seed=index, max_tokens=max_tokens, logprobs=3
    )


Answer = tuple[tuple[int, ...], tuple[tuple[tuple[int, float], ...], ...]]


def answer_of(output: llmcore.RequestOutput) -> Answer:
    """Token ids and the exact log-probabilities of an answer."""
    logprobs = output.logprobs or []
    return tuple(output.token_ids), tuple(tuple((i, p.logprob) for i, p in each.items()) for each in logprobs)


def parts(folder: Path) -> dict[str, str]:
    """Hash by part: each format's logits and answers, f32 with rounded keys and values, and single kernels."""
    found = {}
    lengths = (300, 1, 33)
    for name in FORMATS:
        with load(folder, name) as model:
            bits = b"".join(np.asarray(model.forward(prompt(n))).tobytes() for n in lengths)
            if name == "f32":
                for kv in KV_DTYPES[1:]:
                    cached = np.asarray(model.forward(prompt(300), kv_dtype=kv)).tobytes()
                    found[f"{name}, kv {kv}"] = hashlib.sha256(cached).hexdigest()
            with llmcore.LLM(model, max_batch_size=4) as llm:
                prompts = [prompt(n) for n in (270, 5, 40)]
                outputs = llm.generate(prompts, [sampled(i) for i in range(len(prompts))])
            bits += repr([answer_of(output) for output in outputs]).encode()
        found[name] = hashlib.sha256(bits).hexdigest()
    x = values(np.random.default_rng(7), 3, 1001, spread=12.0)
    for name in ("silu", "gelu", "gelu_tanh", "relu2"):
        found[name] = hashlib.sha256(llmcore.ops.activation(x, name).tobytes()).hexdigest()
    found["softmax"] = hashlib.sha256(llmcore.ops.softmax(x).tobytes()).hexdigest()
    ones, zeros = np.ones(1001, np.float32), np.zeros(1001, np.float32)
    found["layer_norm"] = hashlib.sha256(llmcore.ops.layer_norm(x, ones, zeros).tobytes()).hexdigest()
    return found


def total(found: dict[str, str]) -> str:
    """One hash of all parts."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        found = parts(Path(folder))
    for name, value in found.items():
        print(f"{value[:16]}  {name}")
    print(f"isa {llmcore.isa()}", file=sys.stderr)
    print(f"sha256 {total(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
