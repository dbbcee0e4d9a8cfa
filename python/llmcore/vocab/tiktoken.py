"""Rank files: lines of "base64 rank", as tiktoken and Llama-3's tokenizer.model hold them -> VocabSpec."""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass

import numpy as np

from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab.fields import shown
from llmcore.vocab.hf_parts import FANCY, regex_part
from llmcore.vocab.patterns import STAGE_OF_REGEX, Stage
from llmcore.vocab.spec import NO_ID, AddedToken, Kind, PreTokenizerPart, VocabSpec, check_ids

_MAX_LINES = 1 << 22
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?(\n|\Z)")


@dataclass(frozen=True)
class Encoding:
    """A published vocabulary: how its text is split, and the tokens that its rank file doesn't hold."""

    stage: Stage
    special: dict[str, int]


_LLAMA3_NAMES = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]
_LLAMA3_SPECIAL = {
    name: 128000 + i
    for i, name in enumerate(_LLAMA3_NAMES + [f"<|reserved_special_token_{n}|>" for n in range(2, 247)])
}
_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}

# SHA-256 of the rank file -> the vocabulary. Sources: tiktoken 0.14 (openai_public), Meta's llama3 repository.
KNOWN_FILES = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": "r50k",
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": "p50k",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": "cl100k",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": "o200k",
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": "llama3",
}
ENCODINGS = {
    "r50k": Encoding(Stage.GPT2, {"<|endoftext|>": 50256}),
    "p50k": Encoding(Stage.GPT2, {"<|endoftext|>": 50256}),
    "cl100k": Encoding(Stage.CL100K, {"<|endoftext|>": 100257, **_FIM}),
    "o200k": Encoding(Stage.O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "llama3": Encoding(Stage.LLAMA3, _LLAMA3_SPECIAL),
}


def looks_like_ranks(head: bytes) -> bool:
    """True when a file begins with a line of a rank file."""
    return _FIRST_LINE.match(head) is not None


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Token -> rank. Raises TokenizerError with the line for anything but base64, a space and a rank met once."""
    if data.count(b"\n") > _MAX_LINES:
        raise LimitError(f"rank file: more than {_MAX_LINES} lines")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        parts = line.split(b" ")
        if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 9:
            raise TokenizerError(f"rank file: line {number} is not base64, a space and a rank: {shown(str(line[:60]))}")
        try:
            token = binascii.a2b_base64(parts[0], strict_mode=True)
        except (binascii.Error, ValueError):
            raise TokenizerError(f"rank file: line {number}: not base64: {shown(str(parts[0][:60]))}") from None
        if not token or token in ranks:
            raise TokenizerError(f"rank file: line {number}: an empty token or one met before")
        ranks[token] = int(parts[1])
    return ranks


def identify(data: bytes) -> str | None:
    """The name of the published vocabulary that `data` is the rank file of, or None."""
    return KNOWN_FILES.get(hashlib.sha256(data).hexdigest())


def cut_by(pattern: str) -> Stage | PreTokenizerPart:
    """How the regular expression `pattern`, as tiktoken takes it, splits text."""
    stage = STAGE_OF_REGEX.get(pattern)
    return regex_part(pattern, FANCY) if stage is None else stage


def spec_of_ranks(ranks: dict[bytes, int], cut: Stage | PreTokenizerPart, special: dict[str, int]) -> VocabSpec:
    """The vocabulary of rank file and special tokens; `cut`: how text is split."""
    in_file = check_ids(list(ranks.values()), "rank file")
    # p50k leaves one rank out for <|endoftext|>; any other gap means that lines are missing.
    missing = in_file - len(ranks) - sum(at < in_file for at in special.values())
    if missing:
        raise TokenizerError(f"rank file: {missing} of {in_file} ranks are missing")
    if clash := set(special.values()) & set(ranks.values()):
        raise TokenizerError(f"rank file: rank {min(clash)} is the id of a special token too")
    size = max(in_file, *(at + 1 for at in special.values())) if special else in_file
    tokens = [b""] * size
    kinds = bytearray(size)
    for token, rank in ranks.items():
        tokens[rank], kinds[rank] = token, Kind.NORMAL
    for name, at in special.items():
        tokens[at], kinds[at] = name.encode(), Kind.ADDED
    by_id = np.full(size, NO_ID, np.uint32)
    by_id[list(ranks.values())] = list(ranks.values())
    byte_ids = [ranks.get(bytes([byte]), NO_ID) for byte in range(256)]
    if NO_ID in byte_ids:
        raise TokenizerError(f"rank file: byte 0x{byte_ids.index(NO_ID):02x} has no token")
    return VocabSpec(
        tokens=tokens,
        kinds=kinds,
        byte_ids=byte_ids,
        ranks=by_id,
        whole_words=True,
        stages=(cut,) if isinstance(cut, Stage) else (),
        pre_tokenizers=() if isinstance(cut, Stage) else (cut,),
        added=tuple(AddedToken(name, at) for name, at in special.items()),
        names={at: name for name, at in special.items()},
    )
