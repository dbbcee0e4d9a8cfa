"""The parts of a tokenizer.json's pipeline, one by one: what vocab/hf_pipeline.py has no shorter form for.

Source: the serialised normalizers, pre-tokenizers and decoders of Hugging Face tokenizers 0.23.
"""

from __future__ import annotations

import base64
import binascii
from enum import IntEnum
from typing import Any

from llmcore.errors import TokenizerError
from llmcore.vocab.fields import flag, obj, refuse, shown, text
from llmcore.vocab.hf_pipeline import flatten, stage_of
from llmcore.vocab.patterns import Stage
from llmcore.vocab.spec import NormalizerPart, PreTokenizerPart

_SIMPLE_NORMALIZERS = {"NFC": 0, "NFD": 1, "NFKC": 2, "NFKD": 3, "Lowercase": 4, "StripAccents": 5, "Nmt": 7}


class NormalizerCode(IntEnum):
    """`NormalizerKind` in csrc/tokenizer/normalize.h."""

    STRIP = 6
    PRECOMPILED = 8
    REPLACE = 9
    REPLACE_REGEX = 10
    PREPEND = 11
    BYTE_LEVEL = 12
    BERT = 13
    SENTENCEPIECE = 14


class PreTokenizerCode(IntEnum):
    """`PreTokenizerKind` in csrc/tokenizer/pretokenize.h."""

    SCAN = 0
    SPLIT_TEXT = 1
    SPLIT_REGEX = 2
    WHITESPACE = 3
    WHITESPACE_SPLIT = 4
    PUNCTUATION = 5
    DIGITS = 6
    METASPACE = 7
    BERT = 8
    UNICODE_SCRIPTS = 9
    FIXED_LENGTH = 10
    BYTE_LEVEL = 11


_BEHAVIORS = {"Removed": 0, "Isolated": 1, "MergedWithPrevious": 2, "MergedWithNext": 3, "Contiguous": 4}
_ISOLATED = _BEHAVIORS["Isolated"]
ONIGURUMA, FANCY = 0, 1


def read_normalizers(value: object) -> tuple[NormalizerPart, ...]:
    """The parts of a normalizer."""
    return tuple(_normalizer(part) for part in flatten(value, "normalizers", "normalizer"))


def _normalizer(part: dict[str, Any]) -> NormalizerPart:
    kind = part.get("type")
    where = f"normalizer {shown(kind)}"
    if kind in _SIMPLE_NORMALIZERS:
        return (_SIMPLE_NORMALIZERS[kind], 0, b"", b"")
    if kind == "Strip":
        left, right = (flag(part.get(f"strip_{side}", True), where) for side in ("left", "right"))
        return (NormalizerCode.STRIP, left | right << 1, b"", b"")
    if kind == "Precompiled":
        return (NormalizerCode.PRECOMPILED, 0, character_map(part.get("precompiled_charsmap")), b"")
    if kind == "Replace":
        content = text(part.get("content"), where).encode()
        string, regex = pattern_of(part, where)
        if not (string or regex):
            raise refuse("Replace of nothing", "normalizer")
        code = NormalizerCode.REPLACE if regex is None else NormalizerCode.REPLACE_REGEX
        return (code, 0, (string if regex is None else regex).encode(), content)
    if kind == "Prepend":
        return (NormalizerCode.PREPEND, 0, text(part.get("prepend"), where).encode(), b"")
    if kind == "ByteLevel":
        return (NormalizerCode.BYTE_LEVEL, 0, b"", b"")
    if kind == "BertNormalizer":
        lower = flag(part.get("lowercase", True), where)
        accents = part.get("strip_accents")
        flags = [
            flag(part.get("clean_text", True), where),
            flag(part.get("handle_chinese_chars", True), where),
            lower if accents is None else flag(accents, where),
            lower,
        ]
        return (NormalizerCode.BERT, sum(on << bit for bit, on in enumerate(flags)), b"", b"")
    raise refuse(f"normalizer {shown(kind)}", "normalizer")


def character_map(value: object) -> bytes:
    """The bytes of a base64 character map; an absent or empty one changes nothing."""
    if value is None or value == "":
        return b""
    try:
        return base64.b64decode(text(value, "precompiled_charsmap"), validate=True)
    except binascii.Error as error:
        raise TokenizerError(f"precompiled_charsmap: not base64 ({error})") from None


def pattern_of(part: dict[str, Any], where: str) -> tuple[str, str | None]:
    """(string, None) or ("", regular expression) of a `pattern`."""
    pattern = obj(part.get("pattern"), f"{where}.pattern")
    if "String" in pattern:
        return text(pattern["String"], f"{where}.pattern"), None
    return "", text(pattern.get("Regex"), f"{where}.pattern")


def read_pre_tokenizers(value: object, spell_bytes: bool) -> tuple[PreTokenizerPart, ...]:
    """The parts of a pre-tokenizer. With `spell_bytes`, ByteLevel writes text in the byte alphabet."""
    return tuple(_pre_tokenizer(part, spell_bytes) for part in flatten(value, "pretokenizers", "pre_tokenizer"))


def _part(
    code: int, *, behavior: int = _ISOLATED, inverted: bool = False, flags: int = 0, number: int = 0, data: bytes = b""
) -> PreTokenizerPart:
    return (int(code), behavior, inverted, ONIGURUMA, flags, number, data)


def plain_part(code: PreTokenizerCode) -> PreTokenizerPart:
    """A part without options."""
    return _part(code)


def regex_part(regex: str, dialect: int) -> PreTokenizerPart:
    """Splitting at what `regex` matches. tiktoken (FANCY) drops what it doesn't."""
    behavior, inverted = (_BEHAVIORS["Removed"], True) if dialect == FANCY else (_ISOLATED, False)
    return (int(PreTokenizerCode.SPLIT_REGEX), behavior, inverted, dialect, 0, 0, regex.encode())


def _pre_tokenizer(part: dict[str, Any], spell_bytes: bool) -> PreTokenizerPart:
    kind = part.get("type")
    where = f"pre_tokenizer {shown(kind)}"
    code = PreTokenizerCode
    if kind == "ByteLevel":
        prefix = flag(part.get("add_prefix_space", True), where)
        stage = Stage.GPT2 if flag(part.get("use_regex", True), where) else Stage.NONE
        return _part(code.BYTE_LEVEL, flags=prefix | spell_bytes << 1, number=stage)
    if kind == "Split":
        known = stage_of(part)
        if known is not None:
            return _part(code.SCAN, number=known)
        string, regex = pattern_of(part, where)
        data = (string if regex is None else regex).encode()
        inverted = flag(part.get("invert", False), where)
        at = code.SPLIT_TEXT if regex is None else code.SPLIT_REGEX
        return _part(at, behavior=_behavior(part, where), inverted=inverted, data=data)
    if kind == "CharDelimiterSplit":
        delimiter = text(part.get("delimiter"), where)
        return _part(code.SPLIT_TEXT, behavior=_BEHAVIORS["Removed"], data=delimiter.encode())
    if kind == "Punctuation":
        return _part(code.PUNCTUATION, behavior=_behavior({"behavior": "Isolated", **part}, where))
    if kind == "Digits":
        each = flag(part.get("individual_digits", False), where)
        return _part(code.DIGITS, behavior=_ISOLATED if each else _BEHAVIORS["Contiguous"])
    if kind == "Metaspace":
        mark = text(part.get("replacement", "\u2581"), where)
        scheme = part.get("prepend_scheme")
        if scheme is None:
            scheme = "always" if part.get("add_prefix_space", True) else "never"
        if scheme not in ("always", "first", "never"):
            raise TokenizerError(f"{where}.prepend_scheme: {shown(scheme)} is none of always, first, never")
        flags = {"always": 1, "first": 2, "never": 0}[scheme]
        return _part(code.METASPACE, flags=flags | flag(part.get("split", True), where) << 2, data=mark.encode())
    if kind == "FixedLength":
        length = part.get("length", 5)
        if type(length) is not int or not 1 <= length < 1 << 31:
            raise TokenizerError(f"{where}.length: must be an integer from 1, found {shown(length)}")
        return _part(code.FIXED_LENGTH, number=length)
    plain = {
        "Whitespace": code.WHITESPACE,
        "WhitespaceSplit": code.WHITESPACE_SPLIT,
        "BertPreTokenizer": code.BERT,
        "UnicodeScripts": code.UNICODE_SCRIPTS,
    }
    if kind not in plain:
        raise refuse(f"pre-tokenizer {shown(kind)}", "pre_tokenizer")
    return _part(plain[kind])


def _behavior(part: dict[str, Any], where: str) -> int:
    behavior = part.get("behavior")
    if not isinstance(behavior, str) or behavior not in _BEHAVIORS:
        raise TokenizerError(f"{where}.behavior: {shown(behavior)} is none of {', '.join(_BEHAVIORS)}")
    return _BEHAVIORS[behavior]
