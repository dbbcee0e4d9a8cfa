"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability (nats) of a token under the model's own distribution, before temperature and filters."""

    logprob: float
    rank: int | None
    """1 for the likeliest token; None for a chosen token that isn't among those asked for."""
    decoded_token: str | None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times in seconds."""

    queue_time: float
    """From the call until the first step that computed a part of the prompt."""
    time_to_first_token: float
    """From the call until the first token."""
    time_per_token: float
    """Mean time of the tokens after the first; 0 when there is just one."""
    cached_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` answers to a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    """For each token the chosen one and the likeliest, by id; None unless asked for."""
    finish_reason: str | None = None
    """"stop" (an end token or a stop string), "length" (max_tokens or the context), "abort"."""
    stop_reason: int | str | None = None
    """The stop string or stop token that ended it; None for the model's end-of-text."""


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its answers. `text`, `token_ids`, `finish_reason` and `logprobs` are those of the first answer."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    digest: str
    """Replay digest: a hash of the model, the prompt, the parameters and the answers' token ids."""
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """For each of the prompt's tokens as `logprobs`, None for the first; None unless asked for."""

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first answer, an end token included."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        """Why the first answer ended."""
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[dict[int, Logprob]] | None:
        """Log-probabilities of the first answer."""
        return self.outputs[0].logprobs


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """One token of a stream. `text` may be empty while a character or a possible stop string is incomplete."""

    text: str
    token_id: int
    logprob: float | None
    finish_reason: str | None
    index: int = 0
    """Which of the `n` answers."""
