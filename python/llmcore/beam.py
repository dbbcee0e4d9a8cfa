"""Beam search over an LLM's own requests: the likeliest sequences rather than sampled ones.

Names and meaning are vLLM's. Each step asks for one token of every beam, with its likeliest alternatives; what the
beams have in common comes from the prefix cache. A search has the same bits whatever else runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmcore.arguments import integer, number
from llmcore.errors import ArgumentTypeError, ContextLengthError
from llmcore.progress import Progress
from llmcore.prompts import Prompt
from llmcore.sampling import SamplingParams

if TYPE_CHECKING:
    from llmcore.llm import LLM
    from llmcore.outputs import Logprob

MAX_BEAM_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """How wide and how far to search. Raises ArgumentError, ArgumentTypeError."""

    beam_width: int
    """Sequences kept at each step, and given back: 1 to 64."""
    max_tokens: int
    """At least 1."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    length_penalty: float = 1.0
    """-10 to 10: a sequence's score is its log-probability divided by its number of tokens to this power; above 0
    favours longer ones."""
    include_stop_str_in_output: bool = False
    """Keep the end-of-text token in `token_ids`."""

    def __post_init__(self) -> None:
        for name, most in (("beam_width", MAX_BEAM_WIDTH), ("max_tokens", 2**31 - 1)):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1, most))
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentTypeError(f"{name} must be True or False, got {type(getattr(self, name)).__name__}")
        object.__setattr__(self, "length_penalty", number("length_penalty", self.length_penalty, -10, 10))


@dataclass(slots=True)
class BeamSearchSequence:
    """One sequence that was found, without its prompt."""

    token_ids: list[int]
    cumulative_logprob: float
    """Sum of the tokens' log-probabilities (nats), the end token's included."""
    score: float
    """The log-probability by length, which sequences are ordered by."""
    text: str | None = None
    """None without a tokenizer."""
    finish_reason: str = "length"


@dataclass(slots=True)
class BeamSearchOutput:
    """The sequences found for one prompt, best first."""

    prompt_token_ids: list[int]
    sequences: list[BeamSearchSequence] = field(default_factory=list)


@dataclass(slots=True)
class _Beam:
    ids: list[int]
    logprob: float = 0.0


def beam_search(
    llm: LLM, prompts: Sequence[Prompt], params: BeamSearchParams, progress: bool
) -> list[BeamSearchOutput]:
    """See LLM.beam_search."""
    if not isinstance(params, BeamSearchParams):
        raise ArgumentTypeError(f"params must be BeamSearchParams, got {type(params).__name__}")
    tokenizer = llm.model.tokenizer
    ends = (
        frozenset()
        if params.ignore_eos
        else frozenset(llm.model.spec.eos_ids) | set(tokenizer.eos_ids if tokenizer else ())
    )
    searches = [_Search(llm, prompt, params, ends) for prompt in prompts]
    with Progress(params.max_tokens, "searching", "steps", enabled=progress) as bar:
        for step in range(params.max_tokens):
            open_searches = [search for search in searches if search.beams]
            if not open_searches:
                break
            work: list[Prompt] = [search.prompt + beam.ids for search in open_searches for beam in search.beams]
            width = min(2 * params.beam_width, llm.model.spec.vocab_size)
            one = SamplingParams(
                temperature=0, max_tokens=1, logprobs=width, ignore_eos=True, skip_special_tokens=False
            )
            outs = iter(llm.generate(work, one))
            for search in open_searches:
                search.advance([(next(outs).logprobs or [{}])[0] for _ in search.beams])
            bar.update(step + 1)
    return [search.output() for search in searches]


class _Search:
    def __init__(self, llm: LLM, prompt: Prompt, params: BeamSearchParams, ends: frozenset[int]) -> None:
        self.llm = llm
        self.params = params
        self.ends = ends
        self.prompt = llm._prompt_ids(prompt)
        if len(self.prompt) + params.max_tokens > llm.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(self.prompt)} tokens and max_tokens is {params.max_tokens}, but the context "
                f"holds {llm.max_model_len}"
            )
        self.beams = [_Beam([])]
        self.found: list[BeamSearchSequence] = []

    def advance(self, likeliest: Sequence[dict[int, Logprob]]) -> None:
        """Goes on with the best of all continuations; those that end leave the search."""
        grown: list[_Beam] = []
        for beam, entry in zip(self.beams, likeliest, strict=True):
            for token, one in entry.items():
                longer = _Beam([*beam.ids, token], beam.logprob + one.logprob)
                if token in self.ends:
                    self.finish(longer, "stop")
                else:
                    grown.append(longer)
        # All have one length, so the order by score is that by log-probability; ties: as the beams stand.
        grown.sort(key=lambda beam: -beam.logprob)
        self.beams = grown[: self.params.beam_width]

    def finish(self, beam: _Beam, reason: str) -> None:
        score = beam.logprob / len(beam.ids) ** self.params.length_penalty
        ids = beam.ids if reason == "length" or self.params.include_stop_str_in_output else beam.ids[:-1]
        self.found.append(BeamSearchSequence(ids, beam.logprob, score, finish_reason=reason))

    def output(self) -> BeamSearchOutput:
        for beam in self.beams:
            if beam.ids:
                self.finish(beam, "length")
        best = sorted(self.found, key=lambda one: -one.score)[: self.params.beam_width]
        if self.llm.model.tokenizer is not None:
            for one in best:
                one.text = self.llm.model.tokenizer._text(one.token_ids, skip_special_tokens=True)
        return BeamSearchOutput(self.prompt, best)
