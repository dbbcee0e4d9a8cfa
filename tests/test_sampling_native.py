"""The native sampler against a plain numpy one: the same tokens for the same logits, parameters and seed.

The order stands in csrc/sampling/sampler.h.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import bits_hash
import llmcore
from llmcore import ops

Floats = npt.NDArray[np.float32]
MASK32 = 2**32 - 1
CASES_OF_RANDOM = int(os.environ.get("LLMCORE_PROPERTY_CASES", "2000"))


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK32, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


def uniform(seed: int, position: int, sequence: int, which: int = 0) -> float:
    counter = [position & MASK32, position >> 32, sequence & MASK32, sequence >> 32]
    r = philox(counter, [seed & MASK32, seed >> 32])[2 * which :]
    return ((r[0] << 21 ^ r[1] >> 11) & (2**53 - 1)) * 2.0**-53


class Mirostat:
    """The bound that Mirostat carries from token to token."""

    def __init__(self) -> None:
        self.mu: float | None = None


def draw(
    logits: Floats,
    u: float,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0,
    top_n_sigma: float = 0,
    typical_p: float = 1.0,
    xtc_probability: float = 0,
    xtc_threshold: float = 0.1,
    dynatemp_range: float = 0,
    dynatemp_exponent: float = 1,
    chance: float = 1,
    mirostat: int = 0,
    mirostat_tau: float = 5.0,
    mirostat_eta: float = 0.1,
    state: Mirostat | None = None,
) -> int:
    """The samplers after the penalties, then the token at `u` of what is left. chance: the number XTC is decided by."""
    if temperature == 0:
        return int(logits.argmax())
    if top_n_sigma > 0:
        finite = logits[logits > -np.inf].astype(np.float64)
        least = finite.max() - np.float64(np.float32(top_n_sigma)) * finite.std()
        logits = np.where(logits.astype(np.float64) < least, np.float32(-np.inf), logits)
    if dynatemp_range > 0 and (logits > -np.inf).sum() > 1:
        finite = logits[logits > -np.inf].astype(np.float64)
        p = np.exp(finite - finite.max())
        p /= p.sum()
        entropy = -(p[p > 0] * np.log(p[p > 0])).sum() / np.log(len(p))
        low = max(0.0, temperature - dynatemp_range)
        temperature = low + (temperature + dynatemp_range - low) * entropy**dynatemp_exponent
    scaled = logits * (np.float32(1) / np.float32(temperature))
    weights = np.exp((scaled - scaled.max()).astype(np.float64)).astype(np.float32)
    if mirostat:
        return draw_mirostat(weights, u, mirostat, mirostat_tau, mirostat_eta, state or Mirostat())
    weights[weights < np.float32(min_p)] = 0
    kept = np.arange(len(weights))
    if typical_p < 1:
        if 0 < top_k < len(weights):
            weights[np.argsort(-weights, kind="stable")[top_k:]] = 0
        p = weights.astype(np.float64) / weights.sum(dtype=np.float64)
        surprise = np.full(len(p), np.inf)
        surprise[p > 0] = -np.log(p[p > 0])
        distance = np.abs(surprise - (p[p > 0] * surprise[p > 0]).sum()).astype(np.float32)
        order = np.argsort(distance, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        weights[order[(before >= np.float32(typical_p)) & (np.arange(len(order)) > 0)]] = 0
    if 0 < top_k < len(weights) or top_p < 1:
        kept = np.argsort(-weights, kind="stable")
        kept = kept[: top_k or None]
        before = np.cumsum(weights[kept].astype(np.float64)) - weights[kept]
        if top_p < 1:
            limit = weights[kept].sum(dtype=np.float64) * np.float32(top_p)
            kept = kept[(before < limit) | (np.arange(len(kept)) == 0)]
    kept = kept[weights[kept] > 0]
    if chance < np.float32(xtc_probability) and xtc_threshold <= 0.5:
        reach = weights[kept] >= np.float64(np.float32(xtc_threshold)) * weights[kept].sum(dtype=np.float64)
        if reach.any():
            least = max(kept[reach], key=lambda i: (-weights[i], i))
            kept = kept[~reach | (kept == least)]
    return pick(weights, kept, u)


def pick(weights: Floats, kept: npt.NDArray[np.int64], u: float) -> int:
    kept = np.sort(kept)
    reached = np.cumsum(weights[kept].astype(np.float64))
    return int(kept[min(np.searchsorted(reached, u * reached[-1], side="right"), len(kept) - 1)])


def draw_mirostat(weights: Floats, u: float, version: int, tau: float, eta: float, state: Mirostat) -> int:
    """As in llama.cpp, whose names these are."""
    p = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    mu = 2 * np.float64(np.float32(tau)) if state.mu is None else state.mu
    order = np.argsort(-p, kind="stable")
    if version == 1:
        best = p[order[:100]]
        best = best[best > 0]
        t = np.log(np.arange(2, len(best) + 1) / np.arange(1, len(best)))
        s_hat = (t * np.log(best[:-1] / best[1:])).sum() / (t**2).sum() if len(best) > 1 else 0.0
        k: float = len(p)
        if s_hat >= 1e-6:
            e = s_hat - 1
            k = np.exp(min(np.log((e * 2**mu) / (1 - len(p) ** -e)) / s_hat, 50.0))
        kept = order[: max(int(min(k, len(p))), 1)]
    else:
        kept = order[(-np.log2(np.maximum(p[order], 1e-300)) <= mu) | (np.arange(len(p)) == 0)]
    token = pick(weights, kept[weights[kept] > 0], u)
    surprise = -np.log2(p[token] / p[kept].sum())
    state.mu = mu - np.float64(np.float32(eta)) * (surprise - np.float64(np.float32(tau)))
    return token


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([MASK32] * 4, [MASK32] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_reference_philox_gives_the_published_numbers(counter: list[int], key: list[int], expected: str) -> None:
    assert philox(counter, key) == [int(word, 16) for word in expected.split()]


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32, 2**64 - 1])
def test_native_random_number_is_philox(seed: int) -> None:
    """With equal logits the token is the random number's first sixteen bits."""
    flat = np.zeros(1 << 16, np.float32)
    for position, sequence in [(0, 0), (1, 0), (0, 1), (77, 3), (2**31, 15)]:
        token, logprob = ops.sample(flat, seed=seed, position=position, sequence=sequence)
        assert token == int(uniform(seed, position, sequence) * 2**16)
        assert logprob == pytest.approx(-16 * np.log(2), abs=1e-5)


def random_case(rng: np.random.Generator) -> tuple[Floats, dict[str, Any]]:
    size = int(rng.choice([2, 17, 257, 1000, 3000]))
    logits = (rng.standard_normal(size) * rng.choice([0.1, 1, 4])).astype(np.float32)
    if rng.random() < 0.3:
        logits = np.round(logits)  # many ties
    if rng.random() < 0.2:
        logits[rng.random(size) < 0.5] = -np.inf
        logits[rng.integers(size)] = 1
    options = {
        "temperature": float(rng.choice([0.0, 0.2, 0.7, 1.0, 1.5, 10.0])),
        "top_k": int(rng.choice([0, 0, 1, 5, 40, 300, size, size + 5])),
        "top_p": float(rng.choice([1.0, 1.0, 0.0, 0.3, 0.9, 0.95, 0.999])),
        "min_p": float(rng.choice([0.0, 0.0, 0.02, 0.3, 1.0])),
        "top_n_sigma": float(rng.choice([0.0, 0.0, 0.7, 1.1, 2.3])),
        "typical_p": float(rng.choice([1.0, 1.0, 0.2, 0.9])),
        "xtc_probability": float(rng.choice([0.0, 0.0, 0.5, 1.0])),
        "xtc_threshold": float(rng.choice([0.0, 0.05, 0.2, 0.6])),
        "dynatemp_range": float(rng.choice([0.0, 0.0, 0.5, 2.0])),
        "dynatemp_exponent": float(rng.choice([0.5, 1.0, 3.0])),
        "mirostat": int(rng.choice([0, 0, 0, 1, 2])),
        "mirostat_tau": float(rng.choice([0.5, 2.0, 5.0])),
    }
    return logits, options


def test_same_tokens_as_numpy_in_random_cases() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for index in range(CASES_OF_RANDOM):
        logits, options = random_case(rng)
        seed, position, sequence = int(rng.integers(2**63)), int(rng.integers(5000)), int(rng.integers(16))
        u, chance = (uniform(seed, position, sequence, which) for which in (0, 1))
        token, logprob = ops.sample(logits, **options, seed=seed, position=position, sequence=sequence)
        assert token == draw(logits, u, chance=chance, **options), (index, options)
        shifted = logits.astype(np.float64) - logits.max()
        assert logprob == pytest.approx(shifted[token] - np.log(np.exp(shifted).sum()), abs=2e-5)
        seen.add(token)
    assert len(seen) > 300  # a sampler that always takes the best would not get there


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"top_n_sigma": 1.1},
        {"top_k": 4, "top_p": 0.9},
        {"typical_p": 0.6},
        {"dynatemp_range": 0.8},
        {"mirostat": 2, "mirostat_tau": 1.0},
    ],
)
def test_frequencies_follow_the_probabilities(options: dict[str, Any]) -> None:
    logits = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))
    draws = 5000
    counts = np.bincount([ops.sample(logits, **options, seed=9, position=i)[0] for i in range(draws)], minlength=5)
    grid = (np.arange(20_000) + 0.5) / 20_000
    full = {"temperature": 1.0, **options}
    expected = np.bincount([draw(logits, u, **full) for u in grid], minlength=5) * draws / len(grid)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < 23.5  # the 0.0001 quantile at four degrees of freedom


def test_draws_of_neighbouring_positions_seeds_and_sequences_are_independent() -> None:
    flat = np.zeros(2, np.float32)
    for name in ("position", "seed", "sequence"):
        bits = np.array([ops.sample(flat, **{name: i})[0] for i in range(4000)])
        assert abs(bits.mean() - 0.5) < 0.04
        assert abs(np.corrcoef(bits[:-1], bits[1:])[0, 1]) < 0.06


def test_ties_go_to_the_lowest_id() -> None:
    logits = np.array([1, 3, 3, 3, 0], np.float32)
    assert ops.sample(logits, temperature=0)[0] == 1
    assert ops.sample(logits, top_k=1)[0] == 1
    assert ops.sample(logits, top_p=0.0)[0] == 1
    assert {ops.sample(logits, top_k=2, position=i)[0] for i in range(50)} == {1, 2}


def test_a_temperature_near_zero_is_greedy_and_a_huge_one_flat() -> None:
    logits = np.array([0, 5, 4.999], np.float32)
    assert all(ops.sample(logits, temperature=1e-39, position=i)[0] == 1 for i in range(20))
    flat = [ops.sample(logits, temperature=1e30, position=i)[0] for i in range(600)]
    assert (np.bincount(flat) > 150).all()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_broken_logits_are_a_numeric_error(value: float) -> None:
    logits = np.array([0, value, 1] if np.isnan(value) else [value] * 3, np.float32)
    for temperature in (0.0, 1.0):
        with pytest.raises(llmcore.NumericError):
            ops.sample(logits, temperature=temperature)


# --- with a history: through the engine, against the model's own logits -----------------------------------------------


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> llmcore.LLM:
    folder: Path = tmp_path_factory.mktemp("sampling")
    bits_hash.write_model(folder)
    return llmcore.LLM(bits_hash.load(folder, "f32", threads=1), max_batch_size=3)


def expected_tokens(
    llm: llmcore.LLM, prompt: list[int], params: llmcore.SamplingParams, sequence: int = 0
) -> list[int]:
    """What a sampler over Model.forward's logits draws, token by token."""
    tokens = list(prompt)
    stops = set(params.stop_token_ids or ())
    state = Mirostat()
    for step in range(params.max_tokens or 0):
        logits = np.asarray(llm.model.forward(tokens))[-1].copy()
        if params.allowed_token_ids is not None:
            masked = np.ones(len(logits), bool)
            masked[list(params.allowed_token_ids)] = False
            logits[masked] = -np.inf
        for token, bias in (params.logit_bias or {}).items():
            logits[token] += np.float32(bias)
        if step < (params.min_tokens or 0):
            logits[list(stops)] = -np.inf
        penalise(logits, tokens, len(prompt), params)
        penalise_repeats(logits, tokens, params)
        u, chance = (uniform(params.seed or 0, len(tokens), sequence, which) for which in (0, 1))
        names = ("top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent")
        options = {name: getattr(params, name) for name in (*names, "mirostat", "mirostat_tau", "mirostat_eta")}
        options |= {name: getattr(params, name) or 0 for name in ("top_k", "min_p")}
        top_p = 1.0 if params.top_p is None else params.top_p
        temperature = 1.0 if params.temperature is None else params.temperature
        tokens.append(draw(logits, u, temperature=temperature, top_p=top_p, chance=chance, state=state, **options))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def penalise(logits: Floats, tokens: list[int], prompt: int, params: llmcore.SamplingParams) -> None:
    """Repetition over prompt and answer, presence and frequency over the answer."""
    if params.repetition_penalty is not None:
        penalty = np.float32(params.repetition_penalty)
        for token in set(tokens):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    counted: set[int] = set()
    for token in tokens[prompt:]:
        first = 0.0 if token in counted else params.presence_penalty
        logits[token] -= np.float32(params.frequency_penalty) + np.float32(first)
        counted.add(token)


def penalise_repeats(logits: Floats, tokens: list[int], params: llmcore.SamplingParams) -> None:
    """DRY, by trying every earlier place (this model has no tokenizer, so nothing breaks a sequence)."""
    last = params.dry_penalty_last_n
    text = tokens if last < 0 else tokens[len(tokens) - min(last, len(tokens)) :]
    longest: dict[int, int] = {}
    for end in range(1, len(text)):
        length = 0
        while length < end and text[end - 1 - length] == text[len(text) - 1 - length]:
            length += 1
        longest[text[end]] = max(length, longest.get(text[end], 0))
    for token, length in longest.items():
        if length >= params.dry_allowed_length:
            base = np.float64(np.float32(params.dry_base)) ** (length - params.dry_allowed_length)
            logits[token] -= np.float32(np.float64(np.float32(params.dry_multiplier)) * base)


CASES: dict[str, dict[str, Any]] = {
    "typical": {"typical_p": 0.5},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.02},
    "xtc and top_p": {"xtc_probability": 0.9, "xtc_threshold": 0.05, "top_p": 0.9},
    "dynamic temperature": {"dynatemp_range": 0.9, "dynatemp_exponent": 2.0},
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 3.0, "mirostat_eta": 0.4},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.4},
    "dry": {"dry_multiplier": 3.0, "dry_allowed_length": 1, "temperature": 0},
    "dry with a window": {"dry_multiplier": 2.0, "dry_base": 1.2, "dry_penalty_last_n": 9, "temperature": 0.2},
    "top_n_sigma": {"top_n_sigma": 1.5, "temperature": 2.0, "presence_penalty": 0.5},
    "plain": {},
    "cold": {"temperature": 0.3},
    "greedy with penalties": {"temperature": 0, "repetition_penalty": 1.5, "presence_penalty": 0.7},
    "repetition": {"repetition_penalty": 2.0, "temperature": 0.5},
    "repetition below one": {"repetition_penalty": 0.5, "temperature": 0.5},
    "presence": {"presence_penalty": 2.0, "temperature": 0.4},
    "frequency": {"frequency_penalty": 1.5, "temperature": 0.4},
    "negative frequency": {"frequency_penalty": -1.0, "temperature": 0.4},
    "bias": {"logit_bias": {3: 6.0, 250: -100.0, 17: 4.5}},
    "allowed": {"allowed_token_ids": [5, 9, 200, 13]},
    "allowed and biased": {"allowed_token_ids": [5, 9, 200, 13], "logit_bias": {9: 3.0, 40: 90.0}},
    "allowed and penalised": {"allowed_token_ids": [5, 9], "frequency_penalty": 2.0, "temperature": 0.5},
    "min_tokens": {"stop_token_ids": list(range(0, 257, 2)), "min_tokens": 6},
    "stop at once": {"stop_token_ids": list(range(257))},
    "everything": {
        "temperature": 0.8,
        "top_k": 60,
        "top_p": 0.9,
        "min_p": 0.005,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {7: 2.0},
        "stop_token_ids": [11, 12],
        "min_tokens": 4,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_answers_equal_numpy(llm: llmcore.LLM, name: str) -> None:
    prompts = [bits_hash.prompt(n) for n in (3, 12, 30)]
    params = [llmcore.SamplingParams(max_tokens=14, seed=100 + i, **CASES[name]) for i in range(3)]
    answers = llm.generate(prompts, params)
    assert [a.token_ids for a in answers] == [
        expected_tokens(llm, each, one) for each, one in zip(prompts, params, strict=True)
    ]


def test_each_of_n_answers_has_a_stream_of_its_own(llm: llmcore.LLM) -> None:
    params = llmcore.SamplingParams(n=3, max_tokens=10, seed=5)
    (answer,) = llm.generate(bits_hash.prompt(8), params)
    expected = [expected_tokens(llm, bits_hash.prompt(8), params, sequence) for sequence in range(3)]
    assert [output.token_ids for output in answer.outputs] == expected
    assert [output.index for output in answer.outputs] == [0, 1, 2]
    assert len({tuple(tokens) for tokens in expected}) == 3


def test_the_seed_of_the_engine_is_the_default(llm: llmcore.LLM) -> None:
    ids = bits_hash.prompt(8)
    with llmcore.LLM(llm.model, max_batch_size=1, seed=77) as other:
        by_engine = other.generate(ids, llmcore.SamplingParams(max_tokens=10))[0].token_ids
    by_request = llm.generate(ids, llmcore.SamplingParams(max_tokens=10, seed=77))[0].token_ids
    assert by_engine == by_request != llm.generate(ids, llmcore.SamplingParams(max_tokens=10))[0].token_ids
