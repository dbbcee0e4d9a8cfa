"""tokenizer.json -> VocabSpec by its parts as they stand: any model, any pipeline that the core has the parts of.

vocab/hf.py takes a file when it comes down to one of the usual forms, for which the core has shorter ways.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from llmcore.errors import TokenizerError
from llmcore.vocab import bytelevel
from llmcore.vocab.bpe_model import BYTE_NAMES, byte_level_fields
from llmcore.vocab.decoders import check_decoders
from llmcore.vocab.fields import UnsupportedPartError, array, flag, obj, refuse, shown, text
from llmcore.vocab.hf_parts import NormalizerCode, read_normalizers, read_pre_tokenizers
from llmcore.vocab.hf_pipeline import Decoder, flatten, read_decoder, read_post_processor, read_pre_tokenizer
from llmcore.vocab.spec import NO_ID, AddedToken, FirstSpace, Kind, ModelSpec, VocabSpec, check_ids

UNIGRAM, WORD_PIECE, WORD_LEVEL, AFFIX_BPE = 1, 2, 3, 4
_MARK = "\u2581"


def from_parts(root: dict[str, Any], added: tuple[AddedToken, ...]) -> VocabSpec:
    """The vocabulary in the parsed tokenizer.json `root`. Raises TokenizerError, LimitError."""
    model = obj(root.get("model"), "model")
    kind = model_kind(model)
    normalizers = read_normalizers(root.get("normalizer"))
    fields: dict[str, Any]
    if kind == "BPE" and _joins_bytes(root, model, normalizers):
        fields = _byte_level_bpe(root, model, added)
    else:
        fields = _text_model(root, model, kind, added)
    around = read_post_processor(root.get("post_processor"), len(fields["tokens"]))
    return VocabSpec(**fields, **vars(around), added=added, normalizers=normalizers, source=root)


def model_kind(model: dict[str, Any]) -> str:
    """The type of the model; files from before types were written are told by what they have."""
    kind = model.get("type")
    if kind is None:
        kind = "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"
    if kind not in ("BPE", "Unigram", "WordPiece", "WordLevel"):
        raise refuse(f"model type {shown(kind)}", "model")
    return str(kind)


def _affixes(model: dict[str, Any]) -> tuple[str, str]:
    named = [model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix")]
    prefix, suffix = (text(value, "model") if value else "" for value in named)
    return prefix, suffix


def _joins_bytes(root: dict[str, Any], model: dict[str, Any], normalizers: tuple[Any, ...]) -> bool:
    """True when text can stay as bytes all the way: it is spelled in the byte alphabet last, and read so."""
    kinds = [part.get("type") for part in flatten(root.get("pre_tokenizer"), "pretokenizers", "pre_tokenizer")]
    decoders = [part.get("type") for part in flatten(root.get("decoder"), "decoders", "decoder")]
    once = kinds[-1:] == ["ByteLevel"] and kinds.count("ByteLevel") == 1 and decoders == ["ByteLevel"]
    return once and not any(_affixes(model)) and all(part[0] != NormalizerCode.BYTE_LEVEL for part in normalizers)


def _byte_level_bpe(root: dict[str, Any], model: dict[str, Any], added: tuple[AddedToken, ...]) -> dict[str, Any]:
    from llmcore.vocab.hf import read_merges, read_vocab

    vocab = read_vocab(model.get("vocab"))
    unk = model.get("unk_token")
    fields = byte_level_fields(vocab, added, unk if isinstance(unk, str) else None)
    del fields["size"]
    fields["merges"] = read_merges(model.get("merges"), vocab, {t.content for t in added if t.control})
    fields["whole_words"] = flag(model.get("ignore_merges") or False, "model.ignore_merges")
    try:
        known = read_pre_tokenizer(root.get("pre_tokenizer"))
        return {**fields, "stages": known.stages, "space_prefix": known.space_prefix}
    except UnsupportedPartError:
        return {**fields, "pre_tokenizers": read_pre_tokenizers(root.get("pre_tokenizer"), spell_bytes=False)}


_POWERS = [float(f"1e{places}") for places in range(309)]


def _scored(model: dict[str, Any]) -> tuple[dict[str, int], list[float]]:
    """The vocabulary of a Unigram model: token -> id, and scores by id."""
    vocab: dict[str, int] = {}
    scores: list[float] = []
    for at, item in enumerate(array(model.get("vocab"), "model.vocab")):
        pair = array(item, f"model.vocab[{at}]")
        if len(pair) != 2 or not isinstance(pair[0], str) or type(pair[1]) not in (int, float):
            raise TokenizerError(f"model.vocab[{at}]: must be a token and its score, found {shown(item)}")
        if pair[0] in vocab:
            raise TokenizerError(f"model.vocab[{at}]: {shown(pair[0])} stands there twice")
        if not -sys.float_info.max <= pair[1] <= 0.0:
            raise TokenizerError(f"model.vocab[{at}]: the score {shown(pair[1])} is no logarithm of a probability")
        vocab[pair[0]] = at
        scores.append(_as_hugging_face_reads(float(pair[1])))
    return vocab, scores


def _as_hugging_face_reads(score: float) -> float:
    """The value that serde_json, which Hugging Face tokenizers reads files with, makes of the decimals of `score`.

    Its digits as an integer, rounded to a float, by a power of ten, rounded again: often the next float. Which cut of a
    text is the best one can depend on it, where two have the same tokens in another order.
    """
    digits, _, exponent = repr(score).partition("e")
    whole, _, fraction = digits.partition(".")
    places = int(exponent or 0) - len(fraction)
    value = float(int(whole + fraction))
    while places < -308:
        value /= 1e308
        places += 308
    return value * _POWERS[places] if places >= 0 else value / _POWERS[-places]


def _text_model(
    root: dict[str, Any], model: dict[str, Any], kind: str, added: tuple[AddedToken, ...]
) -> dict[str, Any]:
    """The fields of a vocabulary whose tokens are compared with text as they are written."""
    from llmcore.vocab.hf import read_merges, read_vocab

    scores: list[float] = []
    if kind == "Unigram":
        vocab, scores = _scored(model)
    else:
        vocab = read_vocab(model.get("vocab"))
    for token in added:
        if vocab.get(token.content, token.id) != token.id:
            raise TokenizerError(f"added token {shown(token.content)}: id {token.id} here, another in the vocabulary")
    size = check_ids([*vocab.values(), *(t.id for t in added if t.content not in vocab)], "vocabulary")
    control = {t.content for t in added if t.control}
    name_of = {at: token for token, at in vocab.items()} | {t.id: t.content for t in added}
    fallback = flag(model.get("byte_fallback") or False, "model.byte_fallback")
    decoder, decoders = _decoder(root, fallback, any(" " in name for name in name_of.values()))
    tokens, matched, kinds = [b""] * size, [b""] * size, bytearray(size)
    usable = bytearray(size)
    outside = {t.id for t in added if t.content not in vocab}
    for at, name in name_of.items():
        tokens[at] = _decoded(name, decoder)
        matched[at] = name.encode()
        kinds[at] = Kind.ADDED if name in control or at in outside else Kind.NORMAL
        usable[at] = kinds[at] == Kind.NORMAL
    byte_ids = [vocab.get(name, NO_ID) if fallback else NO_ID for name in BYTE_NAMES]
    for byte, at in enumerate(byte_ids):
        if at != NO_ID and kinds[at] == Kind.NORMAL:
            kinds[at] = Kind.BYTE
            if kind != "Unigram":  # which also finds the name of a byte in text, as it finds any token
                matched[at], usable[at] = bytes([byte]), 0
            if decoder.byte_fallback:
                tokens[at] = bytes([byte])
    fields: dict[str, Any] = {
        "tokens": tokens,
        "matched": matched,
        "kinds": kinds,
        "names": name_of,
        "byte_ids": byte_ids,
        "byte_level": False,
        "unk_id": _unknown(model, kind, vocab),
        **decoder.fields,
        "decoders": decoders,
        "pre_tokenizers": read_pre_tokenizers(root.get("pre_tokenizer"), spell_bytes=True),
    }
    fuse = flag(model.get("fuse_unk") or False, "model.fuse_unk")
    prefix, suffix = _affixes(model) if kind in ("BPE", "WordPiece") else ("", "")
    if kind == "BPE":
        fields["merges"] = read_merges(model.get("merges"), vocab, control, len(prefix))
        if not prefix and not suffix:
            fields["fuse_unk"] = fuse
            fields["whole_words"] = flag(model.get("ignore_merges") or False, "model.ignore_merges")
            if fields["unk_id"] is not None:
                kinds[fields["unk_id"]] = Kind.ADDED
            return fields
        if model.get("ignore_merges"):
            raise refuse("ignore_merges with marks of words", "model")
        if fallback:
            raise refuse("byte_fallback with marks of words", "model")
        fields["model"] = ModelSpec(
            AFFIX_BPE, bytes(usable), fuse_unk=fuse, byte_fallback=fallback, prefix=prefix, suffix=suffix
        )
    elif kind == "Unigram":
        padded = np.zeros(size)
        padded[: len(scores)] = scores
        lowest = min(scores, default=0.0)
        fields["model"] = ModelSpec(
            UNIGRAM, bytes(usable), padded, fuse_unk=True, byte_fallback=fallback, min_score=lowest
        )
    elif kind == "WordPiece":
        longest = model.get("max_input_chars_per_word", 100)
        if type(longest) is not int or not 0 <= longest < 1 << 31:
            raise TokenizerError(f"model.max_input_chars_per_word: must be an integer, found {shown(longest)}")
        inner = prefix if "continuing_subword_prefix" in model else "##"
        fields["model"] = ModelSpec(WORD_PIECE, bytes(usable), max_characters=longest, prefix=inner)
    else:
        fields["model"] = ModelSpec(WORD_LEVEL, bytes(usable))
    return fields


def _unknown(model: dict[str, Any], kind: str, vocab: dict[str, int]) -> int | None:
    if kind == "Unigram":
        at = model.get("unk_id")
        if at is not None and (type(at) is not int or not 0 <= at < len(vocab)):
            raise TokenizerError(f"model.unk_id: {shown(at)} is not in the vocabulary of {len(vocab)}")
        return at
    unk = model.get("unk_token")
    if unk is None and kind == "BPE":
        return None
    if not isinstance(unk, str) or unk not in vocab:
        if kind == "BPE":
            raise TokenizerError(f"unk_token {shown(unk)} is not in the vocabulary")
        return None
    return vocab[unk]


def _decoder(
    root: dict[str, Any], byte_fallback: bool, spaces: bool
) -> tuple[Decoder, tuple[dict[str, Any], ...] | None]:
    """What the decoder comes down to, or its parts when it does more than joining tokens.

    `byte_fallback`: the model's; `spaces`: some tokens have spaces beside the marks that stand for them.
    """
    value = root.get("decoder")
    if value is None:
        return Decoder(), ({"type": "Join"},)
    try:
        decoder = read_decoder(value)
        if (decoder.byte_fallback and not byte_fallback) or (decoder.first_space == FirstSpace.ALL_OF_TOKEN and spaces):
            raise refuse("a decoder that the tokens don't allow to shorten", "decoder")
        return decoder, None
    except UnsupportedPartError:
        parts = tuple(flatten(value, "decoders", "decoder"))
        check_decoders(parts)
        return Decoder(), parts


def _decoded(token: str, decoder: Decoder) -> bytes:
    """What `token` contributes to a text."""
    if not decoder.byte_level:
        return token.replace(_MARK, " ").encode()
    data = bytelevel.to_bytes(token)
    return token.encode() if data is None else data
