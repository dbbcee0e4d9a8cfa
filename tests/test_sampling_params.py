"""SamplingParams: ranges, types, contradictions, and the defaults a checkpoint brings."""

from __future__ import annotations

import dataclasses
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from llmcore.errors import ArgumentError, LlmcoreError
from llmcore.sampling import MAX_TOKENS, SamplingParams

NAN = math.nan
INF = math.inf


def resolve(
    params: SamplingParams, config: dict[str, Any] | None = None, eos: tuple[int, ...] = (2,), vocab: int = 100
):
    return params.resolve(config or {}, eos, vocab)


# --- section A of the catalogue of bad inputs: (id, arguments, word that the message must have) ---

OUT_OF_RANGE = [
    ("A01-1", {"temperature": NAN}, "temperature"),
    ("A01-2", {"temperature": INF}, "temperature"),
    ("A01-3", {"temperature": -1}, "temperature"),
    ("A01-huge", {"temperature": 10**400}, "temperature"),
    ("A02-2", {"top_p": -0.1}, "top_p"),
    ("A02-3", {"top_p": 1.0001}, "top_p"),
    ("A02-4", {"top_p": NAN}, "top_p"),
    ("A03-low", {"top_k": -2}, "top_k"),
    ("A03-vast", {"top_k": 2**63}, "top_k"),
    ("A04-3", {"min_p": 1.1}, "min_p"),
    ("A04-4", {"min_p": NAN}, "min_p"),
    ("sigma-low", {"top_n_sigma": -0.1}, "top_n_sigma"),
    ("sigma-vast", {"top_n_sigma": 101}, "top_n_sigma"),
    ("sigma-nan", {"top_n_sigma": NAN}, "top_n_sigma"),
    ("typical-low", {"typical_p": -0.1}, "typical_p"),
    ("xtc-high", {"xtc_probability": 1.1}, "xtc_probability"),
    ("xtc-nan", {"xtc_threshold": NAN}, "xtc_threshold"),
    ("dynatemp", {"dynatemp_range": -1}, "dynatemp_range"),
    ("mirostat", {"mirostat": 3}, "mirostat"),
    ("mirostat-eta", {"mirostat_eta": 2.0}, "mirostat_eta"),
    ("dry-base", {"dry_base": 0.5}, "dry_base"),
    ("dry-length", {"dry_allowed_length": 0}, "dry_allowed_length"),
    ("dry-last", {"dry_penalty_last_n": -2}, "dry_penalty_last_n"),
    ("bad-words-empty", {"bad_words": [""]}, "bad_words[0]"),
    ("bad-words-many", {"bad_words": [str(i) for i in range(2000)]}, "1024"),
    ("prompt-logprobs", {"prompt_logprobs": 257}, "prompt_logprobs"),
    ("processors-many", {"logits_processors": [len] * 17}, "16"),
    ("A05-1", {"repetition_penalty": 0}, "repetition_penalty"),
    ("A05-2", {"repetition_penalty": -1}, "repetition_penalty"),
    ("A05-3", {"repetition_penalty": NAN}, "repetition_penalty"),
    ("A05-4", {"repetition_penalty": 1e30}, "repetition_penalty"),
    ("A05-5", {"presence_penalty": 1e30}, "presence_penalty"),
    ("A05-6", {"frequency_penalty": NAN}, "frequency_penalty"),
    ("A06-1", {"n": 0}, "n must"),
    ("A06-2", {"n": -1}, "n must"),
    ("A06-3", {"n": 10**6}, "16"),
    ("A06-4", {"n": 2**63}, "16"),
    ("A07-1", {"max_tokens": 0}, "max_tokens"),
    ("A07-2", {"max_tokens": -1}, "max_tokens"),
    ("A07-4", {"max_tokens": 2**63}, "max_tokens"),
    ("A08-1", {"seed": -1}, "seed"),
    ("A08-2", {"seed": 2**64}, "seed"),
    ("A09-1", {"logprobs": -1}, "logprobs"),
    ("A09-2", {"logprobs": 10**6}, "256"),
    ("R14-2", {"logit_bias": dict.fromkeys(range(5000), 1.0)}, "4096"),
    ("R14-3", {"logit_bias": {7: NAN}}, "logit_bias[7]"),
    ("R14-4", {"logit_bias": {7: 10**400}}, "logit_bias[7]"),
    ("R14-neg", {"logit_bias": {-1: 1.0}}, "logit_bias"),
    ("R15-neg", {"stop_token_ids": [3, -1]}, "stop_token_ids[1]"),
    ("R16-1", {"stop": ""}, "stop[0]"),
    ("R16-1b", {"stop": ["x", ""]}, "stop[1]"),
    ("R16-2", {"stop": [str(i) for i in range(10**4)]}, "64"),
    ("R16-3", {"stop": "x" * 2**20}, "1024"),
    ("stop-surrogate", {"stop": "a\ud800"}, "surrogate"),
    ("allowed-none", {"allowed_token_ids": []}, "allowed_token_ids"),
    ("min-low", {"min_tokens": -1}, "min_tokens"),
    ("digits", {"n": 10**9000}, "bits"),
]

WRONG_TYPE = [
    ("A01-8", {"temperature": "0.7"}, "temperature"),
    ("A01-9", {"temperature": True}, "temperature"),
    ("A01-complex", {"temperature": 1j}, "temperature"),
    ("A03-7", {"top_k": 1.5}, "top_k"),
    ("A03-bool", {"top_k": True}, "top_k"),
    ("A06-float", {"n": 2.0}, "n must"),
    ("A06-null", {"n": None}, "n must"),
    ("A07-5", {"max_tokens": 1.0}, "max_tokens"),
    ("A07-6", {"max_tokens": "5"}, "max_tokens"),
    ("A08-3", {"seed": 1.5}, "seed"),
    ("A08-4", {"seed": "x"}, "seed"),
    ("A09-3", {"logprobs": True}, "logprobs"),
    ("R14-5", {"logit_bias": {"abc": 1.0}}, "logit_bias"),
    ("R14-list", {"logit_bias": [1.0]}, "logit_bias"),
    ("sigma-null", {"top_n_sigma": None}, "top_n_sigma"),
    ("typical-null", {"typical_p": None}, "typical_p"),
    ("mirostat-float", {"mirostat": 2.0}, "mirostat"),
    ("processor-one", {"logits_processors": len}, "logits_processors"),
    ("processor-none", {"logits_processors": [3]}, "logits_processors[0]"),
    ("echo", {"echo": 1}, "echo"),
    ("presence-null", {"presence_penalty": None}, "presence_penalty"),
    ("stop-bytes", {"stop": b"x"}, "stop"),
    ("stop-int", {"stop": 3}, "stop"),
    ("stop-mixed", {"stop": ["a", 3]}, "stop[1]"),
    ("ids-str", {"stop_token_ids": "12"}, "stop_token_ids"),
    ("ids-int", {"stop_token_ids": 12}, "stop_token_ids"),
    ("ids-bool", {"allowed_token_ids": [True]}, "allowed_token_ids[0]"),
    ("flag", {"ignore_eos": 1}, "ignore_eos"),
]


@pytest.mark.parametrize(("arguments", "word"), [r[1:] for r in OUT_OF_RANGE], ids=[r[0] for r in OUT_OF_RANGE])
def test_out_of_range_is_an_argument_error_that_names_it(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        SamplingParams(**arguments)
    assert word in str(caught.value)
    assert not isinstance(caught.value, TypeError)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("arguments", "word"), [r[1:] for r in WRONG_TYPE], ids=[r[0] for r in WRONG_TYPE])
def test_wrong_type_is_an_argument_error_and_a_type_error(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        SamplingParams(**arguments)
    assert word in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, LlmcoreError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 1e30},
        {"temperature": np.float32(0.5)},
        {"temperature": Fraction(1, 2)},
        {"top_p": 0},
        {"top_p": 1},
        {"top_p": 1e-45},
        {"top_k": -1},
        {"top_k": 2**31},
        {"top_k": np.int64(5)},
        {"min_p": 0},
        {"min_p": 1},
        {"n": 16},
        {"max_tokens": 10**9},
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"seed": None},
        {"logprobs": 0},
        {"logprobs": 256},
        {"stop": None},
        {"stop_token_ids": None},
        {"stop_token_ids": np.array([1, 2])},
    ],
    ids=repr,
)
def test_accepted_limits(arguments: dict[str, Any]) -> None:
    SamplingParams(**arguments)


@pytest.mark.parametrize("temperature", [0, -0.0, 1e-45, 1e-8])
def test_vanishing_temperature_is_greedy(temperature: float) -> None:
    got = SamplingParams(temperature=temperature).temperature
    assert got == 0
    assert math.copysign(1, got) == 1


def test_temperature_above_the_greedy_limit_is_kept() -> None:
    assert SamplingParams(temperature=1.1e-8).temperature == 1.1e-8


def test_greedy_answers_must_be_one() -> None:
    with pytest.raises(ArgumentError, match="n is 2"):
        SamplingParams(n=2, temperature=0)


def test_min_tokens_above_max_tokens() -> None:
    with pytest.raises(ArgumentError, match=r"min_tokens must be at most max_tokens \(3\), got 4"):
        SamplingParams(max_tokens=3, min_tokens=4)


def test_unknown_argument() -> None:
    with pytest.raises(TypeError, match="best_off"):
        SamplingParams(best_off=3)  # type: ignore[call-arg]


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        SamplingParams(1)  # type: ignore[misc]


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2  # type: ignore[misc]


def test_lists_become_tuples_without_repeats() -> None:
    params = SamplingParams(stop=["a", "b", "a"], stop_token_ids=[5, 5, 3], allowed_token_ids=iter([9, 1, 9]))
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (5, 3)
    assert params.allowed_token_ids == (9, 1)


def test_one_stop_string_may_be_given_alone() -> None:
    assert SamplingParams(stop="abc").stop == ("abc",)


def test_logit_bias_is_copied() -> None:
    bias = {1: 2}
    params = SamplingParams(logit_bias=bias)
    bias[3] = 4
    assert params.logit_bias == {1: 2.0}


def test_pickle_equality_and_hash() -> None:
    params = SamplingParams(temperature=0.5, stop="x", logit_bias={1: 2})
    again = pickle.loads(pickle.dumps(params))
    assert again == params
    assert hash(again) == hash(params)
    assert params != SamplingParams(temperature=0.5, stop="x", logit_bias={1: 3})


# --- resolve ---


def test_neutral_values() -> None:
    got = resolve(SamplingParams())
    assert (got.temperature, got.top_p, got.top_k, got.min_p, got.repetition_penalty) == (1.0, 1.0, 0, 0.0, 1.0)
    assert (got.max_tokens, got.min_tokens, got.seed, got.logprobs) == (MAX_TOKENS, 0, None, None)


def test_generation_config_fills_what_is_not_given() -> None:
    config = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_new_tokens": 64,
        "min_new_tokens": 2,
    }
    got = resolve(SamplingParams(top_p=0.5), config)
    assert (got.temperature, got.top_p, got.top_k, got.min_p) == (0.6, 0.5, 40, 0.05)
    assert (got.repetition_penalty, got.max_tokens, got.min_tokens) == (1.1, 64, 2)


def test_a_neutral_value_given_beats_generation_config() -> None:
    got = resolve(SamplingParams(temperature=1, top_k=0, min_p=0), {"temperature": 0.6, "top_k": 40, "min_p": 0.1})
    assert (got.temperature, got.top_k, got.min_p) == (1.0, 0, 0.0)


def test_null_in_generation_config_is_not_given() -> None:
    assert resolve(SamplingParams(), {"temperature": None}).temperature == 1.0


def test_do_sample_false_is_greedy_unless_asked() -> None:
    config = {"do_sample": False, "temperature": 0.7}
    assert resolve(SamplingParams(), config).temperature == 0.0
    assert resolve(SamplingParams(temperature=0.3), config).temperature == 0.3


def test_greedy_model_with_several_answers() -> None:
    with pytest.raises(ArgumentError, match="n is 2"):
        resolve(SamplingParams(n=2), {"do_sample": False})


@pytest.mark.parametrize(("key", "value"), [("temperature", -1), ("temperature", NAN), ("top_p", 2), ("top_k", "5")])
def test_bad_generation_config_is_typed(key: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=key):
        resolve(SamplingParams(), {key: value})


@pytest.mark.parametrize(("asked", "got"), [(-1, 0), (0, 0), (1, 1), (99, 99), (100, 0), (101, 0), (2**31, 0)])
def test_top_k_off_and_beyond_the_vocabulary(asked: int, got: int) -> None:
    assert resolve(SamplingParams(top_k=asked), {"top_k": 7}).top_k == got


def test_eos_joins_the_stop_tokens() -> None:
    assert resolve(SamplingParams(stop_token_ids=[9, 4]), eos=(2, 4)).stop_token_ids == (2, 4, 9)


def test_ignore_eos_leaves_the_callers_stop_tokens() -> None:
    assert resolve(SamplingParams(stop_token_ids=[9], ignore_eos=True), eos=(2,)).stop_token_ids == (9,)


def test_eos_outside_the_vocabulary_is_dropped() -> None:
    assert resolve(SamplingParams(), eos=(2, 50256)).stop_token_ids == (2,)


@pytest.mark.parametrize(
    "arguments", [{"stop_token_ids": [100]}, {"allowed_token_ids": [1, 100]}, {"logit_bias": {100: 1}}], ids=str
)
def test_token_ids_beyond_the_vocabulary(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"0 to 99, got 100") as caught:
        resolve(SamplingParams(**arguments))
    assert next(iter(arguments)) in str(caught.value)


def test_logprobs_are_clamped_to_the_vocabulary() -> None:
    assert resolve(SamplingParams(logprobs=200)).logprobs == 100


def test_own_max_tokens_beats_the_models_min() -> None:
    got = resolve(SamplingParams(max_tokens=1), {"min_new_tokens": 5})
    assert (got.min_tokens, got.max_tokens) == (1, 1)


def test_own_min_tokens_beats_the_models_max() -> None:
    got = resolve(SamplingParams(min_tokens=9), {"max_new_tokens": 5})
    assert (got.min_tokens, got.max_tokens) == (9, 9)


def test_only_end_tokens_allowed_before_an_end_may_come() -> None:
    with pytest.raises(ArgumentError, match="allowed_token_ids"):
        resolve(SamplingParams(allowed_token_ids=[2], min_tokens=1))


def test_only_end_tokens_allowed_without_min_tokens() -> None:
    assert resolve(SamplingParams(allowed_token_ids=[2])).allowed_token_ids == (2,)


def test_resolving_twice_changes_nothing() -> None:
    config = {"temperature": 0.6, "top_k": 40, "max_new_tokens": 7}
    once = resolve(SamplingParams(stop="x", stop_token_ids=[5], logprobs=3), config)
    assert resolve(once, config) == once
    assert resolve(once, {"temperature": 0.1, "top_k": 3, "do_sample": False}) == once
