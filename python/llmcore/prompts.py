"""What a caller gives: prompts, ids, parameters and salts, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmcore.chat_formats import chat_format
from llmcore.errors import ArgumentError, ArgumentTypeError, LimitError, shown
from llmcore.sampling import SamplingParams

MAX_PROMPTS = 1 << 16

Prompt = str | Sequence[int]


def salt_bits(salt: str | None) -> tuple[int, int]:
    """128 bits of a cryptographic hash, so that nobody can find another's."""
    if salt is None:
        return 0, 0
    if not isinstance(salt, str):
        raise ArgumentTypeError(f"cache_salt must be a string, got {type(salt).__name__}")
    digest = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def prompt_list(prompts: Any) -> list[Prompt]:
    """The prompts in what a caller gave: a text, token ids, or a list of either."""
    if isinstance(prompts, str):
        return [prompts]
    _check_list("prompts must be text, token ids, or a list of these", prompts)
    if len(prompts) > MAX_PROMPTS and hasattr(prompts[0], "__len__"):
        raise LimitError(f"one call takes at most {MAX_PROMPTS} prompts, got {len(prompts)}")
    if len(prompts) and not hasattr(prompts[0], "__len__"):
        return [prompts]
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            _check_list(f"prompts[{i}] must be text or token ids", prompt)
    return list(prompts)


def _check_list(rule: str, value: Any) -> None:
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__") and getattr(value, "shape", None) != ()
    if not sized or isinstance(value, bytes | bytearray | memoryview | Mapping):
        raise ArgumentTypeError(f"{rule}, got {type(value).__name__}")


def token_ids(prompt: Sequence[Any], check_length: Callable[[int], None], vocab_size: int = 2**31) -> list[int]:
    """The ids of a prompt, below `vocab_size`. `check_length` refuses too many, so that a huge list isn't looked at."""
    _check_list("a prompt must be text or token ids", prompt)
    check_length(len(prompt))
    ids = []
    for i, value in enumerate(prompt):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ArgumentTypeError(f"token ids must be integers, got {type(value).__name__} at position {i}")
        token = int(value.__index__())
        if not 0 <= token < vocab_size:
            raise ArgumentError(f"token ids must be from 0 to {vocab_size - 1}, got {shown(token)} at position {i}")
        ids.append(token)
    return ids


def params_list(params: Any, count: int) -> list[SamplingParams]:
    """The parameters of each of `count` prompts: one for all, one each, or None for the defaults."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if isinstance(params, str | bytes | Mapping) or not isinstance(params, Sequence):
        raise ArgumentTypeError(f"params must be SamplingParams or a list of them, got {type(params).__name__}")
    each = [SamplingParams() if one is None else one for one in params]
    for i, one in enumerate(each):
        if not isinstance(one, SamplingParams):
            raise ArgumentTypeError(f"params[{i}] must be SamplingParams, got {type(one).__name__}")
    if len(each) != count:
        raise ArgumentError(f"params must be one, or one for each of the {count} prompts: got {len(each)}")
    return each


def with_stops(params: list[SamplingParams], name: str | None) -> list[SamplingParams]:
    """The parameters with the texts at which an answer in the chat format of this name ends."""
    stops = chat_format(name).stops if name is not None else ()
    return [replace(one, stop=(*(one.stop or ()), *stops)) for one in params] if stops else params
