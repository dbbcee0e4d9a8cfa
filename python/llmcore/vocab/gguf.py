"""The vocabulary inside of a .gguf file -> VocabSpec, with its BOS, EOS and chat template.

Names of models and of ways to split text (`tokenizer.ggml.pre`) are llama.cpp's. What it calls by a name that isn't
here can't be reproduced exactly and is refused.
"""

from __future__ import annotations

import os
from typing import Any

from llmcore.checkpoint.gguf import GGUFValue, read_metadata
from llmcore.errors import TokenizerError
from llmcore.vocab import sentencepiece
from llmcore.vocab.bpe_model import byte_level_fields
from llmcore.vocab.fields import shown
from llmcore.vocab.hf import read_merges
from llmcore.vocab.patterns import Stage
from llmcore.vocab.spec import AddedToken, VocabSpec

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
    "falcon": (Stage.PUNCTUATION, Stage.GPT2, Stage.BYTE_DIGIT_RUNS, Stage.THREE_DIGITS),
}
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3"}


def read_gguf(path: str | os.PathLike[str]) -> tuple[VocabSpec, int | None, list[int], str | None]:
    """Vocabulary, BOS, EOS ids and chat template of the file at `path`.

    Raises GGUFError, TokenizerError (no vocabulary, or one that can't be reproduced exactly), LimitError.
    """
    values = read_metadata(path)
    model = _get(values, "tokenizer.ggml.model", "str")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(f"GGUF: the tokenizer model {shown(model)} can't be reproduced; gpt2 and llama can")
    tokens: list[str] = _get(values, "tokenizer.ggml.tokens", "[str]")
    if not 1 <= len(tokens) <= _MAX_TOKENS:
        raise TokenizerError(f"GGUF: {len(tokens)} tokens; 1 to {_MAX_TOKENS} can be read")
    longest = max(map(len, tokens))
    if longest > _MAX_TOKEN_CHARACTERS:
        raise TokenizerError(f"GGUF: a token of {longest} characters; at most {_MAX_TOKEN_CHARACTERS} can be read")
    types = _get(values, "tokenizer.ggml.token_type", "[i32]", [_NORMAL] * len(tokens))
    if len(types) != len(tokens) or not all(_NORMAL <= kind <= _BYTE for kind in types):
        raise TokenizerError("GGUF: tokenizer.ggml.token_type does not fit the tokens")
    special = {
        name: _id(values, f"tokenizer.ggml.{name}_token_id", len(tokens)) for name in ("bos", "eos", "eot", "unknown")
    }
    read = _byte_level if model == "gpt2" else _sentencepiece
    spec = read(values, tokens, types, special)
    eos = [id for id in (special["eos"], special["eot"]) if id is not None]
    template = _get(values, "tokenizer.chat_template", "str", None)
    return spec, special["bos"], list(dict.fromkeys(eos)), template


def _byte_level(
    values: dict[str, GGUFValue], tokens: list[str], types: list[int], special: dict[str, int | None]
) -> VocabSpec:
    pre = _get(values, "tokenizer.ggml.pre", "str", "default")
    if pre not in _STAGES:
        raise TokenizerError(f"GGUF: the way {shown(pre)} to split text can't be reproduced; {', '.join(_STAGES)} can")
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
    scores = _get(values, "tokenizer.ggml.scores", "[f32]")
    if len(scores) != len(tokens):
        raise TokenizerError("GGUF: tokenizer.ggml.scores does not fit the tokens")
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


def _id(values: dict[str, GGUFValue], key: str, size: int) -> int | None:
    id = _get(values, key, "u32", None)
    if id is not None and id >= size:
        raise TokenizerError(f"GGUF: {key} is {id}, but there are {size} tokens")
    return None if id is None else int(id)


_REQUIRED = object()


def _get(values: dict[str, GGUFValue], key: str, kind: str, default: Any = _REQUIRED) -> Any:
    found = values.get(key)
    if found is None:
        if default is _REQUIRED:
            raise TokenizerError(f"GGUF: has no {key}")
        return default
    if found.kind != kind:
        raise TokenizerError(f"GGUF: {key} is of type {found.kind}, not {kind}")
    return found.value
