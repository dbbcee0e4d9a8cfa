"""Llama-shaped GGUF files with random weights, made with the gguf package and llama.cpp's own quantiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# name -> llama.cpp's llama_ftype (include/llama.h)
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18, "TQ1_0": 36, "TQ2_0": 37}


def make(shape: dict[str, Any], formats: Sequence[str], folder: Path, *, threads: int) -> dict[str, Path]:
    """The file of each format, made where it isn't there yet. `shape`: a config.json of the Llama family, tied head."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"llama-{shape['hidden_size']}x{shape['num_hidden_layers']}"
    paths = {wanted: folder / f"{name}-{wanted}.gguf" for wanted in formats}
    missing = [wanted for wanted in formats if not paths[wanted].exists()]
    source = folder / f"{name}-F16.gguf"
    had_source = source.exists()
    if missing and not had_source:
        _write_f16(shape, source)
    for wanted in missing:
        if wanted != "F16":
            _quantize(source, paths[wanted], FILE_TYPES[wanted], threads)
    if not had_source and "F16" not in formats:
        source.unlink(missing_ok=True)
    return paths


def weight_error(format: str) -> float | None:
    """Relative root-mean-square error of normal weights in a format of llama.cpp, where it can be told."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    weights = np.random.default_rng(0).standard_normal((64, 2048), np.float32) * np.float32(0.02)
    kind = GGMLQuantizationType.__members__.get(format)
    try:
        decoded = quants.dequantize(quants.quantize(weights, kind), kind)
    except (AttributeError, NotImplementedError):  # a mix, or a type that the package only reads
        return None
    return float(np.sqrt(np.mean((decoded - weights) ** 2) / np.mean(weights**2)))


def _quantize(source: Path, target: Path, file_type: int, threads: int) -> None:
    import ctypes

    import llama_cpp

    part = target.with_suffix(".part")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    params.pure = not target.stem.endswith("_M")  # which is a mix
    if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp can't quantise to {target.name}")
    part.replace(target)


def _write_f16(shape: dict[str, Any], path: Path) -> None:
    import gguf
    import numpy as np

    hidden, ffn, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    head_dim = shape.get("head_dim", hidden // heads)
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(str(part), "llama")
    writer.add_name("random weights")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    writer.add_file_type(FILE_TYPES["F16"])
    _add_vocabulary(writer, vocab)

    values = (np.random.default_rng(0).standard_normal(1 << 24, np.float32) * np.float32(0.02)).astype(np.float16)
    matrices: dict[tuple[int, int], Any] = {}  # one array a shape: the writer holds all until the end

    def matrix(name: str, rows: int, columns: int) -> None:
        if (rows, columns) not in matrices:
            matrices[rows, columns] = np.resize(values, (rows, columns))
        writer.add_tensor(name, matrices[rows, columns])

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(hidden, np.float32))

    matrix("token_embd.weight", vocab, hidden)
    ones("output_norm.weight")
    for layer in range(shape["num_hidden_layers"]):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight")
        matrix(block + "attn_q.weight", heads * head_dim, hidden)
        matrix(block + "attn_k.weight", kv_heads * head_dim, hidden)
        matrix(block + "attn_v.weight", kv_heads * head_dim, hidden)
        matrix(block + "attn_output.weight", hidden, heads * head_dim)
        ones(block + "ffn_norm.weight")
        matrix(block + "ffn_gate.weight", ffn, hidden)
        matrix(block + "ffn_up.weight", ffn, hidden)
        matrix(block + "ffn_down.weight", hidden, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _add_vocabulary(writer: Any, size: int) -> None:
    """A byte-level vocabulary of the right size, for llama.cpp doesn't load a model without one."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    tokens = [letters[byte] for byte in range(256)] + ["to", "tok"]
    tokens += [f"tok{i}" for i in range(258, size - 2)] + ["<s>", "</s>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (size - 2) + [3, 3])
    writer.add_token_merges(["t o", "to k"])
    writer.add_bos_token_id(size - 2)
    writer.add_eos_token_id(size - 1)
