"""What a caller may ask of a generation: SamplingParams, its ranges and its defaults.

Field names, meanings and the interplay of penalties, top-k, top-p and min-p are vLLM's, so that parameters carry over;
what vLLM doesn't have is llama.cpp's. The order of the samplers stands in csrc/sampling/sampler.h.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmcore.arguments import integer, number
from llmcore.errors import ArgumentError, ArgumentTypeError, shown

if TYPE_CHECKING:
    from llmcore.structured import StructuredOutputsParams

MAX_N = 16
MAX_LOGPROBS = 256
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_TOKEN_LIST = 4096
MAX_BAD_WORDS = 1024
MAX_PROCESSORS = 16
MAX_TOKENS = 2**31 - 1
GREEDY_TEMPERATURE = 1e-8
"""At or below this a float32 softmax has no second choice left, so the temperature counts as 0."""
_FLOAT32_MAX = 3.4028234663852886e38

LogitsProcessor = Callable[..., Any]
"""Takes (output ids, logits) or (prompt ids, output ids, logits); changes the float32 logits [vocab] or returns new."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to turn logits into tokens, and when to stop.

    A field left None takes the value of the checkpoint's generation_config.json, else the neutral value given below.

    Raises:
        ArgumentError: a value is out of its range, or two values contradict each other.
        ArgumentTypeError: a value has the wrong type (also a TypeError); true and false are not numbers.
    """

    n: int = 1
    """Completions per prompt, 1 to 16."""
    temperature: float | None = None
    """At least 0; 0 (as is all up to 1e-8) is greedy. None: 0 if generation_config says `do_sample: false`, else its
    temperature, else 1."""
    top_p: float | None = None
    """0 to 1: sample among the fewest tokens that hold this much probability (always one at least). Neutral: 1."""
    top_k: int | None = None
    """Sample among this many of the likeliest tokens; 0 or -1 (neutral) for all; beyond the vocabulary means all."""
    min_p: float | None = None
    """0 to 1: drop tokens less likely than this times the likeliest. Neutral: 0."""
    top_n_sigma: float = 0.0
    """0 to 100: drop tokens whose logit, after penalties, is further below the largest than this many standard
    deviations of the logits that may come (llama.cpp's). 0: off."""
    typical_p: float = 1.0
    """0 to 1: sample among the tokens whose surprise is nearest to the entropy, as few as hold this much probability
    (always one at least). 1: off."""
    xtc_probability: float = 0.0
    """0 to 1: how often all but the least likely of the tokens that reach `xtc_threshold` are dropped. 0: off."""
    xtc_threshold: float = 0.1
    """0 to 1, a probability; above 0.5 nothing is dropped."""
    dynatemp_range: float = 0.0
    """0 to 100: the temperature lies within this of `temperature`, lower where the model is sure. 0: off."""
    dynatemp_exponent: float = 1.0
    """0 to 100: how the temperature grows with the entropy's share of its maximum."""
    mirostat: int = 0
    """1 or 2: Mirostat of that version in the place of min_p, top_k, typical_p, top_p and XTC. 0: off."""
    mirostat_tau: float = 5.0
    """0 to 100: the surprise per token, in bits, that Mirostat steers to."""
    mirostat_eta: float = 0.1
    """0 to 1: how fast it steers."""
    dry_multiplier: float = 0.0
    """0 to 100. A token that would make a repeated sequence longer than it is loses dry_multiplier *
    dry_base**(length - dry_allowed_length) of its logit, `length` being the tokens before it which the text, prompt
    included, has had in the same order. 0: off."""
    dry_base: float = 1.75
    """1 to 1000."""
    dry_allowed_length: int = 2
    """At least 1: shorter repetitions cost nothing."""
    dry_penalty_last_n: int = -1
    """How many of the last tokens are looked at; -1: all, 0: none."""
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    """A token whose text holds one of these ends every sequence, and is never penalised by DRY."""
    bad_words: Sequence[str] | None = ()
    """Texts that the answer may not hold, as the tokenizer writes them by themselves and after a space."""
    seed: int | None = None
    """0 to 2**64 - 1. The same seed, prompt and parameters give the same tokens. None: the LLM's own seed."""
    stop: str | Sequence[str] | None = ()
    """Generation ends where one of these texts is complete; at most 64, each of 1 to 1,024 characters."""
    stop_token_ids: Sequence[int] | None = ()
    """Generation ends at these tokens, as at the end-of-text tokens."""
    max_tokens: int | None = None
    """At least 1. Neutral: until the context is full, which also bounds any larger value."""
    min_tokens: int | None = None
    """No stop token and no stop text ends the answer before it has this many tokens; a structured output ends where it
    is complete. Neutral: 0."""
    logprobs: int | None = None
    """None: no log-probabilities. 0: of the chosen token. k: of the k likeliest tokens too, up to 256."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens but the first. None: off."""
    presence_penalty: float = 0.0
    """-2 to 2, subtracted from the logits of tokens which the answer already has."""
    frequency_penalty: float = 0.0
    """-2 to 2, subtracted once for each time the answer has the token."""
    repetition_penalty: float | None = None
    """0.01 to 100: logits of tokens in prompt or answer are divided (negative ones multiplied) by it. Neutral: 1."""
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    """Added to the logits of these token ids, each -100 to 100."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these tokens can be chosen. None: all."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    include_stop_str_in_output: bool = False
    """Keep the stop text at the end of the answer."""
    echo: bool = False
    """The answer's text begins with the prompt's."""
    structured_outputs: StructuredOutputsParams | None = None
    """What the answer must be: JSON of a schema, a regular expression, a grammar, one of some texts."""
    logits_processors: Sequence[LogitsProcessor] | None = field(default=(), repr=False)
    """Functions that change the logits before the samplers do, in this order; not part of the replay digest."""

    def __post_init__(self) -> None:
        _fix(self, "n", integer("n", self.n, 1, MAX_N))
        self._check_numbers()
        self._check_lists()
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "echo"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentTypeError(f"{name} must be true or false, got {shown(getattr(self, name))}")
        if self.structured_outputs is not None:
            from llmcore.structured import StructuredOutputsParams

            if not isinstance(self.structured_outputs, StructuredOutputsParams):
                raise ArgumentTypeError(
                    f"structured_outputs must be StructuredOutputsParams, got {shown(self.structured_outputs)}"
                )
        if self.n > 1 and self.temperature == 0:
            raise ArgumentError(
                f"n is {self.n}, but temperature 0 gives the same answer each time: set n=1 or a temperature above 0"
            )
        if self.max_tokens is not None and self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise ArgumentError(f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}")

    def _check_numbers(self) -> None:
        for name, (low, high) in _FLOATS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _fix(self, name, number(name, value, low, high))
        if self.temperature is not None and self.temperature <= GREEDY_TEMPERATURE:
            _fix(self, "temperature", 0.0)
        for name, (least, most) in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _fix(self, name, integer(name, value, least, most))

    def _check_lists(self) -> None:
        _fix(self, "stop", _strings("stop", self.stop, MAX_STOP_STRINGS))
        _fix(self, "bad_words", _strings("bad_words", self.bad_words, MAX_BAD_WORDS))
        _fix(
            self,
            "dry_sequence_breakers",
            _strings("dry_sequence_breakers", self.dry_sequence_breakers, MAX_STOP_STRINGS),
        )
        _fix(self, "logits_processors", _processors(self.logits_processors))
        _fix(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.logit_bias is not None:
            _fix(self, "logit_bias", _logit_bias(self.logit_bias))
        if self.allowed_token_ids is not None:
            allowed = _token_ids("allowed_token_ids", self.allowed_token_ids, limit=None)
            if not allowed:
                raise ArgumentError("allowed_token_ids must hold at least one token id, got none; None allows all")
            _fix(self, "allowed_token_ids", allowed)

    def resolve(self, generation_config: Mapping[str, Any], eos_ids: Iterable[int], vocab_size: int) -> SamplingParams:
        """These parameters for one model: every number is set but `seed`, `logprobs` (None: off) and lists.

        `generation_config` is generation_config.json's object; absent and null keys count as not given. The model's
        `eos_ids` join `stop_token_ids` unless `ignore_eos`; those beyond the vocabulary can't occur and are dropped.
        `top_k` 0 means all. Token ids come in ascending order. Resolving twice changes nothing.

        Raises:
            ArgumentError: a token id is not below `vocab_size`, or the model's defaults contradict what was asked.
        """
        self._check_ids(vocab_size)

        def given(name: str, neutral: Any, key: str | None = None) -> Any:
            own = getattr(self, name)
            if own is not None:
                return own
            theirs = generation_config.get(key or name)
            return neutral if theirs is None else theirs

        greedy = generation_config.get("do_sample") is False
        temperature = 0.0 if greedy and self.temperature is None else given("temperature", 1.0)
        ends = () if self.ignore_eos else tuple(i for i in eos_ids if 0 <= i < vocab_size)
        minimum = given("min_tokens", 0, "min_new_tokens")
        maximum = given("max_tokens", MAX_TOKENS, "max_new_tokens")
        if self.min_tokens is None and self.max_tokens is not None:
            minimum = min(minimum, maximum)
        elif self.max_tokens is None and self.min_tokens is not None:
            maximum = max(minimum, maximum)
        resolved = replace(
            self,
            temperature=temperature,
            top_p=given("top_p", 1.0),
            top_k=given("top_k", 0),
            min_p=given("min_p", 0.0),
            repetition_penalty=given("repetition_penalty", 1.0),
            max_tokens=maximum,
            min_tokens=minimum,
            stop_token_ids=tuple(sorted({*(self.stop_token_ids or ()), *ends})),
            logit_bias=self.logit_bias and dict(sorted(self.logit_bias.items())),
            allowed_token_ids=self.allowed_token_ids and tuple(sorted(self.allowed_token_ids)),
            logprobs=None if self.logprobs is None else min(self.logprobs, vocab_size),
            prompt_logprobs=None if self.prompt_logprobs is None else min(self.prompt_logprobs, vocab_size),
        )
        resolved._settle(vocab_size)
        return resolved

    def _settle(self, vocab_size: int) -> None:
        """The last steps of resolve(), on values that are checked and set."""
        if not 0 < (self.top_k or 0) < vocab_size:
            _fix(self, "top_k", 0)
        allowed = self.allowed_token_ids
        if self.min_tokens and allowed is not None and set(allowed) <= set(self.stop_token_ids or ()):
            raise ArgumentError(
                f"allowed_token_ids holds only tokens that end the answer, but min_tokens asks for {self.min_tokens}"
                " tokens before an end: allow another token, or set min_tokens=0"
            )

    def _check_ids(self, vocab_size: int) -> None:
        lists: dict[str, Iterable[int]] = {
            "stop_token_ids": self.stop_token_ids or (),
            "allowed_token_ids": self.allowed_token_ids or (),
            "logit_bias": self.logit_bias or (),
        }
        for name, ids in lists.items():
            worst = max(ids, default=-1)
            if worst >= vocab_size:
                raise ArgumentError(f"{name} must hold token ids from 0 to {vocab_size - 1}, got {worst}")


_FLOATS = {
    "temperature": (0.0, _FLOAT32_MAX),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_n_sigma": (0.0, 100.0),
    "typical_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "dynatemp_range": (0.0, 100.0),
    "dynatemp_exponent": (0.0, 100.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 1000.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_INTEGERS = {
    "top_k": (-1, 2**63 - 1),
    "mirostat": (0, 2),
    "dry_allowed_length": (1, MAX_TOKENS),
    "dry_penalty_last_n": (-1, MAX_TOKENS),
    "seed": (0, 2**64 - 1),
    "max_tokens": (1, MAX_TOKENS),
    "min_tokens": (0, MAX_TOKENS),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_OPTIONAL = {
    *("temperature", "top_p", "min_p", "repetition_penalty", "top_k", "seed"),
    *("max_tokens", "min_tokens", "logprobs", "prompt_logprobs"),
}
"""Fields that may be None."""


def _fix(params: SamplingParams, name: str, value: object) -> None:
    object.__setattr__(params, name, value)


def _strings(name: str, strings: object, limit: int) -> tuple[str, ...]:
    strings = (strings,) if isinstance(strings, str) else strings
    if strings is None:
        return ()
    if not isinstance(strings, Sequence) or isinstance(strings, bytes | bytearray):
        raise ArgumentTypeError(f"{name} must be a string or a list of strings, got {shown(strings)}")
    if len(strings) > limit:
        raise ArgumentError(f"{name} must hold at most {limit} strings, got {len(strings)}")
    for i, text in enumerate(strings):
        if not isinstance(text, str):
            raise ArgumentTypeError(f"{name}[{i}] must be a string, got {shown(text)}")
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise ArgumentError(f"{name}[{i}] must have 1 to {MAX_STOP_LENGTH} characters, got {len(text)}")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ArgumentError(f"{name}[{i}] must be valid Unicode, got a lone surrogate, which no answer contains")
    return tuple(dict.fromkeys(strings))


def _processors(given: object) -> tuple[LogitsProcessor, ...]:
    if given is None:
        return ()
    if callable(given) or not isinstance(given, Sequence) or isinstance(given, str | bytes | bytearray):
        raise ArgumentTypeError(f"logits_processors must be a list of functions, got {shown(given)}")
    if len(given) > MAX_PROCESSORS:
        raise ArgumentError(f"logits_processors must hold at most {MAX_PROCESSORS} functions, got {len(given)}")
    for i, one in enumerate(given):
        if not callable(one):
            raise ArgumentTypeError(f"logits_processors[{i}] must be a function, got {shown(one)}")
    return tuple(given)


def takes_prompt(processor: LogitsProcessor) -> bool:
    """Whether a logits processor wants the prompt's ids before the output's: it has three parameters."""
    try:
        parameters = inspect.signature(processor).parameters.values()
    except (TypeError, ValueError):  # a builtin that doesn't say
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) >= 3


def _token_ids(name: str, ids: object, limit: int | None = MAX_TOKEN_LIST) -> tuple[int, ...]:
    if ids is None:
        return ()
    scalar = getattr(ids, "shape", None) == ()
    if isinstance(ids, str | bytes | bytearray | Mapping) or not isinstance(ids, Iterable) or scalar:
        raise ArgumentTypeError(f"{name} must be a list of token ids, got {shown(ids)}")
    out: list[int] = []
    for i in ids:
        out.append(integer(f"{name}[{len(out)}]", i, 0, MAX_TOKENS))
        if limit is not None and len(out) > limit:
            raise ArgumentError(f"{name} must hold at most {limit} token ids, got more")
    return tuple(dict.fromkeys(out))


def _logit_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise ArgumentTypeError(f"logit_bias must map token ids to numbers, got {shown(bias)}")
    if len(bias) > MAX_TOKEN_LIST:
        raise ArgumentError(f"logit_bias must hold at most {MAX_TOKEN_LIST} entries, got {len(bias)}")
    out = {}
    for key, value in bias.items():
        token = integer("logit_bias key", key, 0, MAX_TOKENS)
        out[token] = number(f"logit_bias[{token}]", value, -100.0, 100.0)
    return out
