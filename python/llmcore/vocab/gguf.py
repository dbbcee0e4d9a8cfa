"""The vocabulary inside of a .gguf file -> VocabSpec, with its BOS, EOS and chat template.

Names of models and of ways to split text (`tokenizer.ggml.pre`) are llama.cpp's. What it calls by a name that isn't
here can't be reproduced exactly and is refused.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.gguf import GGUFValue, read_metadata
from llmcore.errors import TokenizerError
from llmcore.vocab import sentencepiece
from llmcore.vocab.bpe_model import byte_level_fields
from llmcore.vocab.fields import shown
from llmcore.vocab.hf import read_merges
from llmcore.vocab.hf_general import WORD_PIECE
from llmcore.vocab.hf_parts import NormalizerCode, PreTokenizerCode, plain_part
from llmcore.vocab.patterns import Stage
from llmcore.vocab.spec import FIRST_TEXT, NO_ID, SECOND_TEXT, AddedToken, Kind, ModelSpec, VocabSpec

_REQUIRED = object()
_MAX_TOKENS = 1 << 22
_MAX_TOKEN_CHARACTERS = 1 << 16
_NORMAL, _UNKNOWN, _CONTROL, _USER, _, _BYTE = range(1, 7)
_DIGITS_APART = (Stage.DIGITS_EACH, Stage.GPT2)
_STAGES: dict[str, tuple[Stage, ...]] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "phi-2", "gigachat"), (Stage.GPT2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), (Stage.LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan"), (Stage.QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (Stage.O200K,)),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), _DIGITS_APART),
    "tekken": (Stage.TEKKEN,),
    "qwen35": (Stage.QWEN35,),
    **dict.fromkeys(("deepseek-v3", "deepseek-r1"), (Stage.DEEPSEEK,)),
    "falcon": (Stage.PUNCTUATION, Stage.GPT2, Stage.BYTE_DIGIT_RUNS, Stage.THREE_DIGITS),
}
_WHOLE_WORDS = {"tekken", "llama-bpe", "llama3", "llama-v3"}


def _of_tokens(
    values: dict[str, GGUFValue], key: str, kind: str, tokens: list[str], default: object = _REQUIRED
) -> list[Any]:
    """A number of each token."""
    found: npt.NDArray[Any] = _get(values, key, kind, default)
    if len(found) != len(tokens):
        raise TokenizerError(f"GGUF: {key} does not fit the tokens")
    listed: list[Any] = found.tolist()
    return listed


def read_gguf(path: str | os.PathLike[str]) -> tuple[VocabSpec, int | None, list[int], str | None]:
    """Vocabulary, BOS, EOS ids and chat template of the file at `path`.

    Raises GGUFError, TokenizerError (no vocabulary, or one that can't be reproduced exactly), LimitError.
    """
    values = read_metadata(path)
    model = _get(values, "tokenizer.ggml.model", "str")
    if model not in _READERS:
        raise TokenizerError(f"GGUF: the tokenizer model {shown(model)} can't be reproduced; {', '.join(_READERS)} can")
    tokens: list[str] = _get(values, "tokenizer.ggml.tokens", "[str]")
    if not 1 <= len(tokens) <= _MAX_TOKENS:
        raise TokenizerError(f"GGUF: {len(tokens)} tokens; 1 to {_MAX_TOKENS} can be read")
    longest = max(map(len, tokens))
    if longest > _MAX_TOKEN_CHARACTERS:
        raise TokenizerError(f"GGUF: a token of {longest} characters; at most {_MAX_TOKEN_CHARACTERS} can be read")
    types = _of_tokens(values, "tokenizer.ggml.token_type", "[i32]", tokens, np.full(len(tokens), _NORMAL))
    if not all(_NORMAL <= kind <= _BYTE for kind in types):
        raise TokenizerError("GGUF: tokenizer.ggml.token_type does not fit the tokens")
    special = {
        name: _id(values, f"tokenizer.ggml.{name}_token_id", len(tokens)) for name in ("bos", "eos", "eot", "unknown")
    }
    spec = _READERS[model](values, tokens, types, special)
    eos = [id for id in (special["eos"], special["eot"]) if id is not None]
    template = _get(values, "tokenizer.chat_template", "str", None)
    return spec, special["bos"], list(dict.fromkeys(eos)), template


def _byte_level(
    values: dict[str, GGUFValue], tokens: list[str], types: list[int], special: dict[str, int | None]
) -> VocabSpec:
    pre = _get(values, "tokenizer.ggml.pre", "str", "default")
    if pre not in _STAGES:
        known = ", ".join(_STAGES)
        raise TokenizerError(f"GGUF: the way {shown(pre)} to split text can't be reproduced; {known} can")
    vocab: dict[str, int] = {}
    for id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_NORMAL, _BYTE) and vocab.setdefault(text, id) != id:
            raise TokenizerError(f"GGUF: token {id} {shown(text)} is token {vocab[text]} again")
    added = _added(tokens, types)
    merges = read_merges(_get(values, "tokenizer.ggml.merges", "[str]"), vocab, {token.content for token in added})
    fields = byte_level_fields(vocab, added, None)
    del fields["size"]
    add_bos = _get(values, "tokenizer.ggml.add_bos_token", "bool", pre in _WHOLE_WORDS)
    bos = special["bos"]
    return VocabSpec(
        **fields,
        merges=merges,
        stages=_STAGES[pre],
        added=added,
        whole_words=pre in _WHOLE_WORDS,
        prefix_ids=(bos,) if add_bos and bos is not None else (),
    )


def _added(tokens: list[str], types: list[int]) -> tuple[AddedToken, ...]:
    found: dict[str, AddedToken] = {}
    for id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_CONTROL, _USER, _UNKNOWN) and text:
            found.setdefault(text, AddedToken(text, id, special=kind != _USER))
    return tuple(found.values())


def _sentencepiece(
    values: dict[str, GGUFValue], tokens: list[str], types: list[int], special: dict[str, int | None]
) -> VocabSpec:
    scores = _of_tokens(values, "tokenizer.ggml.scores", "[f32]", tokens)
    config = {
        "add_bos_token": _get(values, "tokenizer.ggml.add_bos_token", "bool", True),
        "add_eos_token": _get(values, "tokenizer.ggml.add_eos_token", "bool", False),
    }
    prefix = _get(values, "tokenizer.ggml.add_space_prefix", "bool", True)
    # Converters also call "unknown" what fills the vocabulary up; the unknown piece is the one that is named.
    unknown = special["unknown"]
    if unknown is not None:
        types = [_CONTROL if kind == _UNKNOWN else kind for kind in types]
        types[unknown] = _UNKNOWN
    pieces = list(zip(tokens, scores, types, strict=True))
    return sentencepiece.spec_of_pieces(pieces, _BYTE in types, prefix, config)


def _unigram(
    values: dict[str, GGUFValue], tokens: list[str], types: list[int], special: dict[str, int | None]
) -> VocabSpec:
    scores = _of_tokens(values, "tokenizer.ggml.scores", "[f32]", tokens)
    fields = {
        2: bytes(_get(values, "tokenizer.ggml.precompiled_charsmap", "[u8]", b"")),
        3: _get(values, "tokenizer.ggml.add_space_prefix", "bool", True),
        4: _get(values, "tokenizer.ggml.remove_extra_whitespaces", "bool", True),
    }
    config = {
        "add_bos_token": _get(values, "tokenizer.ggml.add_bos_token", "bool", False),
        "add_eos_token": _get(values, "tokenizer.ggml.add_eos_token", "bool", True),
    }
    pieces = list(zip(tokens, scores, types, strict=True))
    return sentencepiece.unigram_of_pieces(pieces, fields, config)


def _word_piece(
    values: dict[str, GGUFValue], tokens: list[str], types: list[int], special: dict[str, int | None]
) -> VocabSpec:
    """BERT's: the converter took "##" from the tokens within words and put U+2581 before the others."""
    names, matched, kinds, usable = {}, [], bytearray(), bytearray()
    added = tuple(token for token in _added(tokens, types) if token.special)
    control = {token.id for token in added}
    for id, text in enumerate(tokens):
        first = text.startswith("\u2581")
        names[id] = text if id in control else text[1:] if first else "##" + text
        matched.append(names[id].encode())
        kinds.append(Kind.ADDED if id in control else Kind.NORMAL)
        usable.append(id not in control)
    ends = [_id(values, f"tokenizer.ggml.{name}_token_id", len(tokens)) for name in ("cls", "seperator")]
    around = [(id,) if id is not None else () for id in (ends[0] or special["bos"], ends[1] or special["eos"])]
    before, after = (tuple((id, 0) for id in ids) for ids in around)
    second = (SECOND_TEXT, 1), *((id, 1) for id in around[1])
    return VocabSpec(
        tokens=list(matched),
        matched=matched,
        kinds=kinds,
        names=names,
        byte_ids=[NO_ID] * 256,
        byte_level=False,
        unk_id=special["unknown"],
        added=added,
        normalizers=((int(NormalizerCode.BERT), 15, b"", b""),),
        pre_tokenizers=(plain_part(PreTokenizerCode.BERT),),
        model=ModelSpec(WORD_PIECE, bytes(usable), prefix="##"),
        decoders=({"type": "WordPiece", "prefix": "##", "cleanup": True},),
        prefix_ids=around[0],
        suffix_ids=around[1],
        pair=(*before, (FIRST_TEXT, 0), *after, *second),
    )


_READERS = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram, "bert": _word_piece}


def _id(values: dict[str, GGUFValue], key: str, size: int) -> int | None:
    id = _get(values, key, "u32", None)
    if id is not None and id >= size:
        raise TokenizerError(f"GGUF: {key} is {id}, but there are {size} tokens")
    return None if id is None else int(id)


def _get(values: dict[str, GGUFValue], key: str, kind: str, default: Any = _REQUIRED) -> Any:
    found = values.get(key)
    if found is None:
        if default is _REQUIRED:
            raise TokenizerError(f"GGUF: has no {key}")
        return default
    if found.kind != kind:
        raise TokenizerError(f"GGUF: {key} is of type {found.kind}, not {kind}")
    return found.value
