"""Vocabularies inside of GGUF files: llama.cpp's own cases, and files that are broken (section G of the catalogue)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcore import GGUFError, LimitError, LlmcoreError, Tokenizer, TokenizerError, UnsupportedModelError
from llmcore.checkpoint.gguf import read_metadata

NAMES = ["bert-bge", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2"]


def path_of(data_dir: Path, name: str) -> Path:
    return data_dir / "tokenizers" / "llama.cpp-vocabs" / f"ggml-vocab-{name}.gguf"


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_cases(data_dir: Path, name: str) -> None:
    path = path_of(data_dir, name)
    tokenizer = Tokenizer.load(path)
    texts = path.with_name(path.name + ".inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    expected = path.with_name(path.name + ".out").read_text(encoding="utf-8").splitlines()
    assert len(texts) == 47
    for text, line in zip(texts, expected, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False) == [int(word) for word in line.split()]


def test_special_ids_and_template(data_dir: Path) -> None:
    llama = Tokenizer.load(path_of(data_dir, "llama-bpe"))
    assert (llama.bos_id, llama.eos_ids[0], llama.vocab_size) == (128000, 128001, 128256)
    assert llama.encode("x")[0] == 128000
    assert 128009 not in llama.encode("<|eot_id|>")
    assert llama.encode("<|eot_id|>", allow_special=True)[-1] == 128009
    phi = Tokenizer.load(path_of(data_dir, "phi-3"))
    assert phi.encode("x")[0] == 1
    text = phi.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|user|>\nHi<|end|>" in str(text)


def test_equal_to_the_gguf_package(data_dir: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(str(path_of(data_dir, "phi-3")))
    values = read_metadata(path_of(data_dir, "phi-3"))
    assert set(values) == {key for key in reader.fields if not key.startswith("GGUF.")}
    for key, found in values.items():
        expected = reader.get_field(key).contents()
        assert (found.value if found.is_scalar else list(found.value)) == (
            expected if found.is_scalar else list(expected)
        )


def test_what_cannot_be_reproduced_is_named(data_dir: Path) -> None:
    with pytest.raises(TokenizerError, match="pattern"):
        Tokenizer.load(path_of(data_dir, "gpt-2"), pattern="gpt2")


# --- broken files -----------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + data


def strings(*values: str) -> bytes:
    return array(8, len(values), b"".join(map(text, values)))


def build(*pairs: bytes, magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, keys: int | None = None) -> bytes:
    head = magic + struct.pack("<IQQ", version, tensors, len(pairs) if keys is None else keys)
    return head + b"".join(pairs)


ALPHABET = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
TOKENS = [*ALPHABET, "ab", "<|end|>"]
MODEL = pair("tokenizer.ggml.model", 8, text("gpt2"))
PRE = pair("tokenizer.ggml.pre", 8, text("gpt-2"))
LIST = pair("tokenizer.ggml.tokens", 9, strings(*TOKENS))
TYPES = pair("tokenizer.ggml.token_type", 9, array(5, 258, struct.pack("<258i", *[1] * 257, 3)))
MERGES = pair("tokenizer.ggml.merges", 9, strings("a b"))
EOS = pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 257))
GOOD = (MODEL, PRE, LIST, TYPES, MERGES, EOS)


def load(folder: Path, data: bytes) -> Tokenizer:
    (folder / "vocab.gguf").write_bytes(data)
    return Tokenizer.load(folder / "vocab.gguf")


def test_the_small_file_is_good(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, build(*GOOD))
    assert tokenizer.encode("abc<|end|>", allow_special=True) == [256, TOKENS.index("c"), 257]
    assert tokenizer.eos_ids == [257]


def without(index: int, *more: bytes) -> bytes:
    return build(*(one for i, one in enumerate(GOOD) if i != index), *more)


CASES: dict[str, tuple[bytes, type[LlmcoreError]]] = {
    "G01-1": (build(*GOOD, magic=b"FUGG"), GGUFError),
    "G02-1": (build(*GOOD, version=1), UnsupportedModelError),
    "G02-2": (build(*GOOD, version=0x03000000), UnsupportedModelError),
    "G03-1": (build(*GOOD, tensors=2**64 - 1), GGUFError),
    "G04-1": (build(*GOOD, keys=2**63), GGUFError),
    "G04-2": (build(*GOOD, keys=2**32), GGUFError),
    "G05-1": (build(*GOOD, keys=7), GGUFError),
    "G08-1": (build(struct.pack("<Q", 0) + b"\0" * 40), GGUFError),
    "G08-2": (build(struct.pack("<Q", 2**64 - 1) + b"\0" * 40), GGUFError),
    "G08-3": (build(struct.pack("<Q", 70_000) + b"a" * 70_100), GGUFError),
    "G09-1": (build(pair(b"k\xff", 8, text("x"))), GGUFError),
    "G09-2": (build(pair(b"k\0", 8, text("x"))), GGUFError),
    "G10-1": (build(*GOOD, MODEL), GGUFError),
    "G11-1": (build(pair("k", 13, b"\0" * 8)), GGUFError),
    "G11-2": (build(pair("k", 2**31, b"\0" * 8)), GGUFError),
    "G12-1": (build(pair("k", 8, struct.pack("<Q", 2**63) + b"x" * 20)), GGUFError),
    "G12-2": (build(pair("k", 8, text("x" * (1 << 24) + "x"))), LimitError),
    "G13": (build(pair("k", 7, b"\2"), pair("l", 7, b"\1")), GGUFError),
    "G14-1": (build(pair("k", 9, array(10, 2**62, b"\0" * 16))), GGUFError),
    "G14-2": (build(pair("k", 9, array(8, 2**61, b"\0" * 16))), GGUFError),
    "G15": (build(pair("k", 9, array(9, 1, array(9, 1, b"\0" * 16)))), GGUFError),
    "G16": (build(pair("k", 9, array(77, 0, b"\0" * 16))), GGUFError),
    "not UTF-8": (build(pair("k", 8, text(b"\xff\xfe"))), GGUFError),
    "G39-1": (without(2), TokenizerError),
    "G39-2": (without(2, pair("tokenizer.ggml.tokens", 9, array(0, 4, b"abcd"))), TokenizerError),
    "G39-3": (without(2, pair("tokenizer.ggml.tokens", 9, array(8, 0, b""))), TokenizerError),
    "G41-1": (without(3, pair("tokenizer.ggml.token_type", 9, array(5, 1, b"\1\0\0\0"))), TokenizerError),
    "G41-2": (without(4, pair("tokenizer.ggml.merges", 9, array(5, 1, b"\1\0\0\0"))), TokenizerError),
    "type": (
        without(3, pair("tokenizer.ggml.token_type", 9, array(5, 258, struct.pack("<258i", *[9] * 258)))),
        TokenizerError,
    ),
    "G44-1": (without(5, pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 258))), TokenizerError),
    "G44-2": (without(5, pair("tokenizer.ggml.eos_token_id", 5, struct.pack("<i", -1))), TokenizerError),
    "pre": (without(1, pair("tokenizer.ggml.pre", 8, text("unheard-of"))), TokenizerError),
    "model": (without(0, pair("tokenizer.ggml.model", 8, text("rwkv"))), TokenizerError),
    "twice": (without(2, pair("tokenizer.ggml.tokens", 9, strings(*TOKENS[:-2], "!", "x"))), TokenizerError),
    "merge": (without(4, pair("tokenizer.ggml.merges", 9, strings("a zz"))), TokenizerError),
    "G40": (
        build(
            pair("tokenizer.ggml.model", 8, text("llama")),
            pair("tokenizer.ggml.tokens", 9, strings("<unk>", "a")),
            pair("tokenizer.ggml.scores", 9, array(0, 2, b"\0\0")),
        ),
        TokenizerError,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_broken_files_are_typed_errors(tmp_path: Path, name: str) -> None:
    data, error = CASES[name]
    with pytest.raises(error) as caught:
        load(tmp_path, data)
    assert len(str(caught.value)) < 1024


def test_g06_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = build(*GOOD)
    for length in [*range(200), *range(200, len(data), 37), len(data) - 1]:
        with pytest.raises(LlmcoreError):
            load(tmp_path, data[:length])


def test_g07_a_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    data = build(*GOOD)
    refused = 0
    attempt: Callable[[bytes], Any] = lambda flipped: load(tmp_path, flipped).encode("abc ab")  # noqa: E731
    for at in [*range(160), *range(160, len(data), 101)]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        try:
            attempt(bytes(flipped))
        except LlmcoreError:
            refused += 1
    assert refused > 100


def test_g17_many_small_strings_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "many.gguf").write_bytes(build(pair("k", 9, array(8, 1 << 17, text("a") * (1 << 17)))))
    assert len(read_metadata(tmp_path / "many.gguf")["k"].value) == 1 << 17
