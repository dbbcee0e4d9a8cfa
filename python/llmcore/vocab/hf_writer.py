"""VocabSpec -> tokenizer.json that Hugging Face tokenizers reads to the same ids."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore.errors import TokenizerError
from llmcore.vocab.fields import shown
from llmcore.vocab.hf import show_token
from llmcore.vocab.hf_general import WORD_PIECE
from llmcore.vocab.hf_parts import FANCY, NormalizerCode, PreTokenizerCode
from llmcore.vocab.oniguruma import to_oniguruma
from llmcore.vocab.patterns import REGEXES_OF_STAGE, Stage, split_part
from llmcore.vocab.spec import FIRST_TEXT, FirstSpace, Kind, SpacePrefix, VocabSpec

_MARK = "\u2581"


def to_json(spec: VocabSpec, merges: npt.NDArray[np.uint32]) -> str:
    """The text of the file. `merges`: the core's rules, uint32 [n, 3], which a vocabulary of ranks lacks."""
    return json.dumps(to_dict(spec, merges), ensure_ascii=False, indent=2)


def to_dict(spec: VocabSpec, merges: npt.NDArray[np.uint32]) -> dict[str, Any]:
    """The file as an object. Raises TokenizerError for what such a file can't say."""
    if spec.source is not None:
        return spec.source
    names = {at: show_token(spec, at) for at, kind in enumerate(spec.kinds) if kind != Kind.GAP}
    if spec.metaspace:  # symbols of a tokenizer.model's user may have spaces, where its tokens have their marks
        names |= {t.id: t.content for t in spec.added}
    _check_names(names)
    _check_added(spec, names)
    size = _vocabulary_size(spec, merges)
    model_vocab = {name: at for at, name in names.items() if at < size}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": t.id,
                "content": names[t.id],
                "single_word": t.single_word,
                "lstrip": t.lstrip,
                "rstrip": t.rstrip,
                "normalized": t.normalized,
                "special": t.special,
            }
            for t in sorted(spec.added, key=lambda t: t.id)
        ],
        "normalizer": _normalizer(spec),
        "pre_tokenizer": _pre_tokenizer(spec),
        "post_processor": _post_processor(spec, names),
        "decoder": _decoder(spec),
        "model": _model(spec, names, model_vocab, merges),
    }


def _refuse(what: str) -> TokenizerError:
    return TokenizerError(f"a tokenizer.json can't have {what}")


def _check_names(names: dict[int, str]) -> None:
    """A file tells tokens by their names."""
    ids: dict[str, int] = {}
    for at, name in names.items():
        if ids.setdefault(name, at) != at:
            raise _refuse(f"two tokens that read {shown(name)}: ids {ids[name]} and {at}")


def _check_added(spec: VocabSpec, names: dict[int, str]) -> None:
    """An added token is named like its id, and its text is normalised as any text is."""
    if len({t.id for t in spec.added}) < len(spec.added):
        raise _refuse("two added tokens of one id")
    for t in spec.added:
        name = names[t.id]
        # Symbols of SentencePiece's user are held with spaces, and found where a space is written as a mark.
        if t.content != name and not (t.exact and t.content == name.replace(_MARK, " ")):
            raise _refuse(f"the added token {shown(t.content)} for id {t.id}, which reads {shown(name)}")
        if t.exact and spec.space_prefix != SpacePrefix.NEVER:  # it would be looked for with the space before it
            raise _refuse(f"{shown(name)}, a symbol of SentencePiece's user, where a space is put before text")


def _model(
    spec: VocabSpec, names: dict[int, str], vocab: dict[str, int], merges: npt.NDArray[np.uint32]
) -> dict[str, Any]:
    unk = None if spec.unk_id is None else names[spec.unk_id]
    if spec.model is None:
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": spec.fuse_unk and spec.unk_id is not None,
            "byte_fallback": Kind.BYTE in spec.kinds,
            "ignore_merges": spec.whole_words,
            "vocab": vocab,
            "merges": [[names[int(a)], names[int(b)]] for a, b, _ in merges],
        }
    if spec.model.kind == WORD_PIECE:
        return {
            "type": "WordPiece",
            "unk_token": unk,
            "continuing_subword_prefix": spec.model.prefix,
            "max_input_chars_per_word": spec.model.max_characters,
            "vocab": vocab,
        }
    raise _refuse("SentencePiece's Unigram model as it is")


def _vocabulary_size(spec: VocabSpec, merges: npt.NDArray[np.uint32]) -> int:
    """How many ids the model has. Added tokens behind them stay outside, where they are found as a whole only: readers
    number them on from the vocabulary's size, which therefore must have no gaps."""
    inside = {spec.unk_id, *merges[:, :2].reshape(-1).tolist()}
    outside = {token.id for token in spec.added} - inside
    size = len(spec.kinds)
    while size > 0 and size - 1 in outside and spec.kinds[size - 1] == Kind.ADDED:
        size -= 1
    return len(spec.kinds) if Kind.GAP in spec.kinds[:size] else size


def _bert_normalizer(flags: int) -> dict[str, Any]:
    clean, chinese, accents, lower = (bool(flags >> bit & 1) for bit in range(4))
    return {
        "type": "BertNormalizer",
        "clean_text": clean,
        "handle_chinese_chars": chinese,
        "strip_accents": accents,
        "lowercase": lower,
    }


def _normalizer(spec: VocabSpec) -> dict[str, Any] | None:
    if spec.normalizers:
        (code, flags, _, _), *others = spec.normalizers
        if code != NormalizerCode.BERT or others or spec.nfc:
            raise _refuse("SentencePiece's own normaliser (a character map, or spaces that are left out)")
        return _bert_normalizer(flags)
    if spec.nfc:
        return {"type": "NFC"}
    if not spec.prefix_before_added:
        return None
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
    if spec.space_prefix == SpacePrefix.NEVER:
        return replace
    if spec.space_prefix == SpacePrefix.TEXT_START:  # Prepend stands before what follows an added token, too
        raise _refuse("a space before a text that isn't there behind special tokens (legacy: false)")
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _MARK}, replace]}


def _byte_level(prefix: bool, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def _given_pre_tokenizer(spec: VocabSpec) -> dict[str, Any]:
    """That of a vocabulary with `pre_tokenizers`: BERT's, or expressions before the byte alphabet."""
    codes = {part[0] for part in spec.pre_tokenizers}
    if codes == {PreTokenizerCode.BERT} and not spec.byte_level:
        return {"type": "BertPreTokenizer"}
    if codes != {PreTokenizerCode.SPLIT_REGEX} or not spec.byte_level or spec.stages:
        raise _refuse("this way to split text")
    splits = [
        split_part(to_oniguruma(regex.decode()), "Removed", True) if dialect == FANCY else split_part(regex.decode())
        for _, _, _, dialect, _, _, regex in spec.pre_tokenizers
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _byte_level(False, use_regex=False)]}


def _pre_tokenizer(spec: VocabSpec) -> dict[str, Any] | None:
    if spec.pre_tokenizers:
        return _given_pre_tokenizer(spec)
    if not spec.byte_level:
        if spec.prefix_before_added or not spec.metaspace:
            return None
        schemes = {SpacePrefix.NEVER: "never", SpacePrefix.EVERY_SEGMENT: "always", SpacePrefix.TEXT_START: "first"}
        split = spec.stages == (Stage.SPACE_EACH,)
        return {
            "type": "Metaspace",
            "replacement": _MARK,
            "prepend_scheme": schemes[spec.space_prefix],
            "split": split,
        }
    prefix = spec.space_prefix == SpacePrefix.EVERY_SEGMENT
    if spec.stages == (Stage.GPT2,):
        return _byte_level(prefix, use_regex=True)
    if not spec.stages:
        return _byte_level(prefix, use_regex=False)
    # Stages on bytes were read from behind ByteLevel and go back there.
    on_bytes = {Stage.BYTE_DIGIT_RUNS, Stage.BYTE_DIGITS_EACH}
    cut = next((i for i, stage in enumerate(spec.stages) if stage in on_bytes), len(spec.stages))
    before, behind = ([p for s in stages for p in _parts(s)] for stages in (spec.stages[:cut], spec.stages[cut:]))
    return {"type": "Sequence", "pretokenizers": [*before, _byte_level(prefix, False), *behind]}


def _parts(stage: Stage) -> list[dict[str, Any]]:
    if stage in REGEXES_OF_STAGE:
        return [split_part(regex) for regex in REGEXES_OF_STAGE[stage]]
    if stage == Stage.PUNCTUATION:
        return [{"type": "Punctuation", "behavior": "Contiguous"}]
    return [{"type": "Digits", "individual_digits": stage in (Stage.DIGITS_EACH, Stage.BYTE_DIGITS_EACH)}]


def _post_processor(spec: VocabSpec, names: dict[int, str]) -> dict[str, Any] | None:
    parts = [_byte_level(prefix, True) for prefix in spec.trims]
    single = [*((id, 0) for id in spec.prefix_ids), (FIRST_TEXT, 0), *((id, 0) for id in spec.suffix_ids)]
    pair = spec.pair_template
    special = sorted({id for id, _ in (*single, *pair) if id >= 0})

    def piece(at: int, type_id: int) -> dict[str, Any]:
        if at < 0:
            return {"Sequence": {"id": "A" if at == FIRST_TEXT else "B", "type_id": type_id}}
        return {"SpecialToken": {"id": names[at], "type_id": type_id}}

    if special or spec.pair is not None:
        parts.append(
            {
                "type": "TemplateProcessing",
                "single": [piece(*item) for item in single],
                "pair": [piece(*item) for item in pair],
                "special_tokens": {names[at]: {"id": names[at], "ids": [at], "tokens": [names[at]]} for at in special},
            }
        )
    if len(parts) > 1:
        return {"type": "Sequence", "processors": parts}
    return parts[0] if parts else None


def _decoder(spec: VocabSpec) -> dict[str, Any]:
    if spec.decoders is not None:
        return {"type": "Sequence", "decoders": list(spec.decoders)}
    if spec.byte_level:
        return _byte_level(True, True)
    if spec.first_space == FirstSpace.ALL_OF_TOKEN:
        return {"type": "Metaspace", "replacement": _MARK, "prepend_scheme": "always", "split": True}
    parts: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if spec.first_space != FirstSpace.KEPT:
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}
