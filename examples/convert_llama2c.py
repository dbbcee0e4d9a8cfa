"""Converts a llama2.c checkpoint and its tokenizer to a Hugging Face folder that llmcore and transformers load.

    python examples/convert_llama2c.py stories260K.bin tok512.bin stories260K
    llmcore run ./stories260K "Once upon a time"

Reads the three layouts of llama2.c's export.py: the legacy header, version 1 (float32) and version 2 (int8 groups,
which become the float32 weights that they stand for). Needs numpy and llmcore.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.write import save_json, save_safetensors, write_atomically

Floats = npt.NDArray[np.float32]

MAGIC = 0x616B3432  # "ak42"
HEADER_BYTES = 256  # of versions 1 and 2
UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1  # SentencePiece's types of pieces
BOS, EOS = 1, 2


@dataclass(frozen=True)
class Shape:
    """The seven numbers of every header, and whether the output head is the embedding."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool

    @classmethod
    def of(cls, numbers: tuple[int, ...], tied: bool) -> Shape:
        shape = cls(*numbers, tied)
        if min(numbers) < 1 or shape.dim % shape.heads or shape.heads % shape.kv_heads:
            raise SystemExit(f"not a llama2.c checkpoint: its header says {shape}")
        return shape

    def matrices(self) -> Iterator[tuple[str, int, tuple[int, int]]]:
        """(name, number of them, shape) in the order of the files."""
        kv = self.dim // self.heads * self.kv_heads
        yield "embed_tokens", 1, (self.vocab, self.dim)
        yield "self_attn.q_proj", self.layers, (self.dim, self.dim)
        yield "self_attn.k_proj", self.layers, (kv, self.dim)
        yield "self_attn.v_proj", self.layers, (kv, self.dim)
        yield "self_attn.o_proj", self.layers, (self.dim, self.dim)
        yield "mlp.gate_proj", self.layers, (self.hidden, self.dim)
        yield "mlp.down_proj", self.layers, (self.dim, self.hidden)
        yield "mlp.up_proj", self.layers, (self.hidden, self.dim)
        if not self.tied:
            yield "lm_head", 1, (self.vocab, self.dim)


class Reader:
    """Takes arrays off a file's bytes, one after another."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int, kind: str) -> npt.NDArray[np.generic]:
        size = count * np.dtype(kind).itemsize
        if size > len(self.data) - self.at:
            raise SystemExit(f"the checkpoint ends at byte {len(self.data)}, but {size} more were needed at {self.at}")
        values = np.frombuffer(self.data, kind, count, self.at)
        self.at += size
        return values

    def floats(self, *shape: int) -> Floats:
        return self.take(int(np.prod(shape)), "<f4").astype(np.float32).reshape(shape)

    def groups(self, rows: int, columns: int, size: int) -> Floats:
        """Version 2: int8 codes, then a float32 scale for each `size` of them."""
        codes = self.take(rows * columns, "i1").astype(np.float32).reshape(-1, size)
        return (codes * self.floats(len(codes), 1)).reshape(rows, columns)


def half_split(weight: Floats, heads: int) -> Floats:
    """Rows of wq or wk reordered: llama2.c rotates neighbours 2i, 2i + 1; Hugging Face's Llama i, i + head_dim / 2."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_checkpoint(data: bytes) -> tuple[Shape, dict[str, Floats]]:
    """The shape and, by Hugging Face's names, the float32 weights of a llama2.c file."""
    reader = Reader(data)
    magic, version = struct.unpack_from("<Ii", data) if len(data) >= HEADER_BYTES else (0, 0)
    if magic != MAGIC:
        *numbers, vocab, context = (int(n) for n in reader.take(7, "<i4"))
        shape = Shape.of((*numbers, abs(vocab), context), tied=vocab > 0)
        return shape, named(shape, *read_legacy(reader, shape))
    numbers = list(struct.unpack_from("<7i", data, 8))
    tied, group = struct.unpack_from("<?i", data, 36)
    if version not in (1, 2):
        raise SystemExit(f"version {version} of llama2.c's format is not known; 1 and 2 are")
    shape = Shape.of(tuple(numbers), tied)
    reader.at = HEADER_BYTES
    norms = [reader.floats(shape.layers, shape.dim), reader.floats(shape.layers, shape.dim), reader.floats(shape.dim)]
    matrices = {}
    for name, count, (rows, columns) in shape.matrices():
        read = reader.floats if version == 1 else partial(reader.groups, size=group)
        matrices[name] = np.stack([read(rows, columns) for _ in range(count)])
    return shape, named(shape, norms, matrices)


def read_legacy(reader: Reader, shape: Shape) -> tuple[list[Floats], dict[str, Floats]]:
    """The layout without a version: norms stand between the matrices, and two RoPE tables near the end go unused."""
    norms: list[Floats] = []
    matrices: dict[str, Floats] = {}
    for name, count, (rows, columns) in shape.matrices():
        if name in ("self_attn.q_proj", "mlp.gate_proj"):
            norms.append(reader.floats(shape.layers, shape.dim))
        if name == "lm_head":
            norms.append(reader.floats(shape.dim))
            reader.floats(shape.context, shape.dim // shape.heads)
        matrices[name] = reader.floats(count, rows, columns)
    if shape.tied:
        norms.append(reader.floats(shape.dim))
    return norms, matrices


def named(shape: Shape, norms: list[Floats], matrices: dict[str, Floats]) -> dict[str, Floats]:
    """The tensors under Hugging Face's names."""
    attention, mlp, final = norms
    tensors = {"model.norm.weight": final, "model.embed_tokens.weight": matrices["embed_tokens"][0]}
    if not shape.tied:
        tensors["lm_head.weight"] = matrices["lm_head"][0]
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = attention[layer]
        tensors[prefix + "post_attention_layernorm.weight"] = mlp[layer]
        for name, stack in matrices.items():
            if "." not in name:
                continue
            heads = {"self_attn.q_proj": shape.heads, "self_attn.k_proj": shape.kv_heads}.get(name)
            tensors[f"{prefix}{name}.weight"] = half_split(stack[layer], heads) if heads else stack[layer]
    return tensors


def config(shape: Shape) -> dict[str, object]:
    """config.json. BOS ends a text as well: the stories were trained with it between them, and run.c stops there."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": BOS,
        "eos_token_id": [EOS, BOS],
    }


def read_pieces(data: bytes) -> Iterator[tuple[str, float, int]]:
    """(text, score, SentencePiece type) of each token of a llama2.c tokenizer file."""
    special = {0: ("<unk>", UNKNOWN), BOS: ("<s>", CONTROL), EOS: ("</s>", CONTROL)}
    at, index = 4, 0  # the longest token's length comes first
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        text = data[at + 8 : at + 8 + length].decode("utf-8").replace(" ", "\u2581")
        kind = BYTE if len(text) == 6 and text.startswith("<0x") else NORMAL
        text, kind = special.get(index, (text, kind))
        yield text, score, kind
        at += 8 + length
        index += 1


def sentencepiece_model(pieces: Iterator[tuple[str, float, int]]) -> bytes:
    """A tokenizer.model: BPE with byte fallback, a space before the text, as Llama 2's."""

    def number(field: int, value: int) -> bytes:
        return bytes([*varint(field << 3), *varint(value)])

    def block(field: int, value: bytes) -> bytes:
        return bytes([*varint(field << 3 | 2), *varint(len(value))]) + value

    parts, count = b"", 0
    for text, score, kind in pieces:
        parts += block(1, block(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + number(3, kind))
        count += 1
    trainer = number(3, 2) + number(4, count) + number(35, 1) + number(40, 0) + number(41, BOS) + number(42, EOS)
    trainer += bytes([*varint(43 << 3), *varint(2**64 - 1)])  # no padding token: -1
    normalizer = block(1, b"identity") + number(3, 1) + number(4, 0) + number(5, 1)
    return parts + block(2, trainer) + block(3, normalizer)


def varint(value: int) -> Iterator[int]:
    """Seven bits a byte, the lowest first."""
    while value >= 0x80:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def convert(checkpoint: Path, tokenizer: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer.model and tokenizer_config.json."""
    shape, tensors = read_checkpoint(checkpoint.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    save_json(folder / "config.json", config(shape))
    save_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": [EOS, BOS]})
    write_atomically(folder / "tokenizer.model", [sentencepiece_model(read_pieces(tokenizer.read_bytes()))])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "add_eos_token": False}
    save_json(folder / "tokenizer_config.json", {**settings, **names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="stories260K.bin or another of llama2.c's model files")
    parser.add_argument("tokenizer", type=Path, help="tok512.bin or another of llama2.c's tokenizer files")
    parser.add_argument("folder", type=Path, help="where the Hugging Face folder goes")
    args = parser.parse_args()
    convert(args.checkpoint, args.tokenizer, args.folder)
    print(f"{args.folder}: try  llmcore run {args.folder} 'Once upon a time'")


if __name__ == "__main__":
    main()
