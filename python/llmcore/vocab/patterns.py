"""The pre-tokenisers llmcore has a scanner for, and the regular expressions they are recognised by.

A pattern counts as known only when its text is exactly one of these: two expressions that look alike can split the
last space of a text differently, and then every id after it is another.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Stage(IntEnum):
    """One splitting stage; the values are those of `Pattern` in csrc/tokenizer/scan.h."""

    NONE = 0
    GPT2 = 1
    CL100K = 2
    LLAMA3 = 3
    QWEN2 = 4
    O200K = 5
    DIGIT_RUNS = 6
    DIGITS_EACH = 7
    PUNCTUATION = 8
    THREE_DIGITS = 9
    SPACE_RUNS = 10
    SPACE_EACH = 11
    BYTE_DIGIT_RUNS = 12
    BYTE_DIGITS_EACH = 13
    TEKKEN = 14
    QWEN35 = 15
    DEEPSEEK = 16


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35_REGEX = QWEN2_REGEX.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
# tiktoken's own spelling has possessive `{1,3}+` and `$`, which mean other things to Oniguruma, the engine behind
# tokenizer.json. This one means the same to both.
CL100K_REGEX = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_REGEX = O200K_REGEX.replace(_CONTRACTIONS + "?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK_REGEXES = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)

# Name in the API -> its stage.
STAGE_OF_NAME = {
    "gpt2": Stage.GPT2,
    "r50k": Stage.GPT2,
    "p50k": Stage.GPT2,
    "cl100k": Stage.CL100K,
    "llama3": Stage.LLAMA3,
    "qwen2": Stage.QWEN2,
    "o200k": Stage.O200K,
}
# Stage -> what it is recognised by and saved as: an expression, or several, each of which takes the pieces of the last.
REGEXES_OF_STAGE = {
    Stage.GPT2: (GPT2_REGEX,),
    Stage.CL100K: (CL100K_REGEX,),
    Stage.LLAMA3: (LLAMA3_REGEX,),
    Stage.QWEN2: (QWEN2_REGEX,),
    Stage.O200K: (O200K_REGEX,),
    Stage.THREE_DIGITS: (r"[0-9][0-9][0-9]",),
    Stage.TEKKEN: (TEKKEN_REGEX,),
    Stage.QWEN35: (QWEN35_REGEX,),
    Stage.DEEPSEEK: DEEPSEEK_REGEXES,
}
# Regular expression -> the stage that is equal to it alone.
STAGE_OF_REGEX = {regexes[0]: stage for stage, regexes in REGEXES_OF_STAGE.items() if len(regexes) == 1}
STAGE_OF_REGEX[r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"] = Stage.GPT2


def split_part(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """The part of a tokenizer.json that splits at `regex`."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}
