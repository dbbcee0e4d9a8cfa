"""Speculative decoding: who guesses the next tokens. A guess counts only when it is the token drawn anyway."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcore.arguments import integer, one_of
from llmcore.errors import ArgumentError, shown
from llmcore.model import Model, load

if TYPE_CHECKING:
    from llmcore.quantization import QuantConfig

_TOKENS = 4
_MAX_TOKENS = 15
_METHODS = ("ngram", "draft", "self")


@dataclass(frozen=True)
class SpeculativeConfig:
    """How tokens are guessed. No token changes by it, at any temperature.

    method: "ngram": from what followed the same words earlier in the text. "draft": by `model`, a smaller model (a path
        or a Model, which stays open) of the same vocabulary. "self": by the same checkpoint, quantised as `quantize`
        says, fewer bits than the model's own.
    num_tokens: guessed in a step, 1 to 15. Guessing pauses for a request where too few guesses are right to pay.
    quantize: as in `llmcore.load`, of the guessing model.
    """

    method: str = "ngram"
    num_tokens: int = _TOKENS
    model: str | os.PathLike[str] | Model | None = None
    quantize: str | QuantConfig | None = None

    def __post_init__(self) -> None:
        one_of("speculative method", self.method, _METHODS)
        object.__setattr__(self, "num_tokens", integer("speculative num_tokens", self.num_tokens, 1, _MAX_TOKENS))
        if (self.method == "draft") != (self.model is not None):
            raise ArgumentError('speculative method "draft" needs a model, and only it takes one')
        if self.method == "self" and self.quantize is None:
            raise ArgumentError('speculative method "self" needs quantize, of fewer bits than the model')
        if self.quantize is not None and (self.method == "ngram" or isinstance(self.model, Model)):
            raise ArgumentError("speculative quantize belongs to a model that is loaded for guessing")


def resolve(speculative: Any) -> SpeculativeConfig | None:
    """What `LLM(speculative=...)` means. Raises ArgumentError."""
    if speculative is None or isinstance(speculative, SpeculativeConfig):
        return speculative
    if isinstance(speculative, str) and speculative == "ngram":
        return SpeculativeConfig()
    if isinstance(speculative, int) and not isinstance(speculative, bool):
        return SpeculativeConfig(num_tokens=speculative)
    if isinstance(speculative, Model):
        return SpeculativeConfig("draft", model=speculative)
    raise ArgumentError(
        f'speculative must be None, "ngram", 1 to {_MAX_TOKENS}, a Model or a SpeculativeConfig, got '
        + shown(speculative)
    )


def load_draft(config: SpeculativeConfig, target: Model, *, progress: bool) -> Model | None:
    """The model that guesses for `target`, or None. Raises ArgumentError when their vocabularies differ."""
    if config.method == "ngram":
        return None
    if isinstance(config.model, Model):
        draft = config.model
    else:
        path = config.model if config.method == "draft" else target.source
        if path is None:
            raise ArgumentError('speculative method "self" needs a model that was loaded from a checkpoint')
        draft = load(path, config.quantize, threads=target.threads, progress=progress)
    try:
        _check(draft, target)
    except ArgumentError:
        if draft is not config.model:
            draft.close()
        raise
    return draft


def _check(draft: Model, target: Model) -> None:
    if draft is target:
        raise ArgumentError("a model can't guess for itself; use a smaller one, or method self")
    mine, its = target.tokenizer, draft.tokenizer
    if mine is None or its is None:
        if target.spec.vocab_size != draft.spec.vocab_size:
            raise ArgumentError(
                f"the guessing model has {draft.spec.vocab_size} ids, the model {target.spec.vocab_size}: "
                "they must have one vocabulary"
            )
    elif mine.fingerprint != its.fingerprint:
        shared = min(mine.vocab_size, its.vocab_size)
        if any(mine.id_to_token(at) != its.id_to_token(at) for at in range(shared)):
            raise ArgumentError("the guessing model has another vocabulary than the model")
