"""SamplingParams as the engine takes them: what is text there is token ids here."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from llmcore.errors import ArgumentError
from llmcore.sampling import SamplingParams

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

SAMPLER_NUMBERS = (
    *("temperature", "top_p", "top_k", "min_p", "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold"),
    *("dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
)
"""Fields of the native SamplerParams that have the same name and value in SamplingParams."""


def native_params(
    params: SamplingParams,
    tokenizer: Tokenizer | None,
    *,
    seed: int,
    salt: tuple[int, int],
    priority: int,
    score_from: int = 1,
) -> dict[str, object]:
    """The native request of resolved parameters; prompt_logprobs begin at token `score_from`.

    Raises ArgumentError for texts without a tokenizer.
    """
    if tokenizer is None:
        if params.stop:
            raise ArgumentError("stop strings need a tokenizer, and this checkpoint has none; use stop_token_ids")
        if params.bad_words:
            raise ArgumentError("bad_words need a tokenizer, and this checkpoint has none; use logit_bias")
    scores = params.prompt_logprobs
    native: dict[str, object] = {name: getattr(params, name) for name in SAMPLER_NUMBERS}
    native.update(
        n=params.n,
        priority=priority,
        salt=salt,
        score_from=0 if scores is None else score_from,
        score_logprobs=scores or 0,
        edits_logits=bool(params.logits_processors or params.structured_outputs),
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop_ids=list(params.stop_token_ids or ()),
        seed=seed,
        logprobs=-1 if params.logprobs is None else params.logprobs,
        logit_bias=list((params.logit_bias or {}).items()),
        allowed=list(params.allowed_token_ids or ()),
    )
    if params.bad_words and tokenizer is not None:
        native["banned"] = banned_sequences(tokenizer, tuple(params.bad_words))
    if params.dry_multiplier and tokenizer is not None:
        native["dry_breakers"] = breaker_ids(tokenizer, tuple(params.dry_sequence_breakers))
    return native


@lru_cache(maxsize=16)
def banned_sequences(tokenizer: Tokenizer, words: tuple[str, ...]) -> list[list[int]]:
    """Token ids of each word by itself, and after a space where that is as long and begins otherwise (as in vLLM)."""
    sequences = []
    for word in words:
        alone = tokenizer.encode(word.lstrip() or word, add_special_tokens=False)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        if alone:
            sequences.append(alone)
        if spaced and len(spaced) == len(alone) and spaced[0] != alone[0]:
            sequences.append(spaced)
    return sequences


@lru_cache(maxsize=16)
def breaker_ids(tokenizer: Tokenizer, breakers: tuple[str, ...]) -> list[int]:
    """Ids, ascending, of the tokens whose text holds one of `breakers`."""
    wanted = [breaker.encode("utf-8") for breaker in breakers]
    return [id for id, text in enumerate(token_bytes(tokenizer)) if any(breaker in text for breaker in wanted)]


@lru_cache(maxsize=4)
def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each token adds inside a text; a gap in the vocabulary has none."""
    before = tokenizer.encode("a", add_special_tokens=False)
    start = len(tokenizer.decode_bytes(before))
    ids = range(tokenizer.vocab_size)
    return [tokenizer.decode_bytes([*before, id])[start:] if tokenizer._has(id) else b"" for id in ids]
