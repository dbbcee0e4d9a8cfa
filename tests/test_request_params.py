"""What a request asks beside numbers: bad words, breakers, logits processors, scores of the prompt, echo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import llmcore
from llmcore import ArgumentError, SamplingParams
from llmcore.model import kv_bytes_per_page
from llmcore.request_params import banned_sequences, breaker_ids

PROMPT = "The prince said that the old prince"


@pytest.fixture(scope="module")
def llm() -> Iterator[llmcore.LLM]:
    with llmcore.LLM("tiny", threads=1, max_batch_size=4, progress=False) as opened:
        yield opened


def text(llm: llmcore.LLM, **options: Any) -> str:
    return llm.generate(PROMPT, SamplingParams(**{"temperature": 0, "max_tokens": 40, **options}))[0].text


def test_bad_words_do_not_come(llm: llmcore.LLM) -> None:
    plain = text(llm)
    words = [word for word in plain.split() if len(word) > 2 and word.isalpha()][:3]
    banned = text(llm, bad_words=words)
    # Two tokens that spell a word otherwise are another sequence, so the ids decide.
    ids = llm.tokenizer.encode(banned, add_special_tokens=False)
    for sequence in banned_sequences(llm.tokenizer, tuple(words)):
        assert not any(ids[i : i + len(sequence)] == sequence for i in range(len(ids)))
    assert words
    assert banned != plain


def test_a_bad_word_of_several_tokens_only_loses_its_last(llm: llmcore.LLM) -> None:
    answer = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12))[0].token_ids
    sequence = answer[4:7]
    word = llm.tokenizer.decode(sequence)
    assert banned_sequences(llm.tokenizer, (word,))[-1] == sequence
    after = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12, bad_words=[word]))[0].token_ids
    assert after[:6] == answer[:6]
    assert after[6] != answer[6]


def test_breakers_are_the_tokens_that_hold_them(llm: llmcore.LLM) -> None:
    ids = breaker_ids(llm.tokenizer, ("\n", "the"))
    assert ids == sorted(ids)
    assert {llm.tokenizer.token_to_id(token) for token in ("Ċ", "Ġthe", "Ġthere")} <= set(ids)
    assert all("\n" in t or "the" in t for t in (llm.tokenizer.decode([i]) for i in ids))


def test_dry_ends_a_loop_and_breakers_let_it_be(llm: llmcore.LLM) -> None:
    looping = llm.tokenizer.encode("one two three one two three one two three one two")
    three = llm.tokenizer.encode(" three", add_special_tokens=False)
    bias = dict.fromkeys(three, 12.0)  # a model that wants to go on
    options: dict[str, Any] = {"temperature": 0, "max_tokens": len(three), "logit_bias": bias}
    dry = {"dry_multiplier": 20.0, "dry_allowed_length": 2}

    def answer(**more: Any) -> list[int]:
        return llm.generate(looping, SamplingParams(**options, **more))[0].token_ids

    assert answer() == three
    assert answer(**dry) != three
    assert answer(**dry, dry_sequence_breakers=["o"]) == three
    assert answer(**dry, dry_penalty_last_n=0) == three


def test_a_processor_decides_and_its_neighbour_has_the_bits_it_has_alone(llm: llmcore.LLM) -> None:
    alone = llm.generate(PROMPT, SamplingParams(seed=1, max_tokens=10, logprobs=1))[0]
    calls: list[tuple[list[int], list[int]]] = []

    def forced(prompt: list[int], output: list[int], logits: npt.NDArray[np.float32]) -> None:
        calls.append((prompt, output))
        assert logits.dtype == np.float32
        assert logits.shape == (llm.model.spec.vocab_size,)
        logits[:] = -np.inf
        logits[100 + len(output)] = 0

    def negated(output: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return -logits

    params = [
        SamplingParams(max_tokens=5, logits_processors=[forced], logprobs=0),
        SamplingParams(seed=1, max_tokens=10, logprobs=1),
        SamplingParams(max_tokens=3, temperature=0, logits_processors=[negated]),
    ]
    first, second, third = llm.generate([PROMPT] * 3, params)
    assert first.token_ids == [100, 101, 102, 103, 104]
    assert [len(output) for _, output in calls] == [0, 1, 2, 3, 4]
    assert all(prompt == first.prompt_token_ids for prompt, _ in calls)
    assert (second.token_ids, second.logprobs) == (alone.token_ids, alone.logprobs)
    least = int(np.argmin(np.asarray(llm.model.forward(first.prompt_token_ids))[-1]))
    assert third.token_ids[0] == least
    # Log-probabilities are the model's, whatever a processor made of the logits.
    assert first.logprobs is not None
    assert all(entry[t].logprob < 0 for entry, t in zip(first.logprobs, range(100, 105), strict=True))


def test_a_failing_processor_ends_its_own_request(llm: llmcore.LLM) -> None:
    def failing(output: list[int], logits: npt.NDArray[np.float32]) -> None:
        raise KeyError("no such thing")

    bad = llm.submit(PROMPT, SamplingParams(max_tokens=5, logits_processors=[failing]))
    good = llm.submit(PROMPT, SamplingParams(max_tokens=5, temperature=0))
    with pytest.raises(ArgumentError, match="KeyError") as caught:
        bad.result(timeout=60)
    assert isinstance(caught.value.__cause__, KeyError)
    assert (
        good.result(timeout=60).token_ids
        == llm.generate(PROMPT, SamplingParams(max_tokens=5, temperature=0))[0].token_ids
    )
    assert llm.stats()["requests_running"] == 0
    assert not llm._loop._editing


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), "text"])
def test_a_processor_must_return_logits(llm: llmcore.LLM, wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="a logits processor failed"):
        llm.generate(PROMPT, SamplingParams(max_tokens=2, logits_processors=[lambda output, logits: wrong]))


def test_prompt_logprobs_are_those_of_the_models_logits(llm: llmcore.LLM) -> None:
    for _ in range(2):  # the second time the prompt is in the prefix cache
        (out,) = llm.generate(PROMPT * 3, SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=3))
        ids = out.prompt_token_ids
        assert out.prompt_logprobs is not None
        assert len(out.prompt_logprobs) == len(ids)
        logits = np.asarray(llm.model.forward(ids), np.float64)
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert out.prompt_logprobs[0] is None
        for position, entry in enumerate(out.prompt_logprobs[1:], 1):
            assert entry is not None
            best = np.argsort(-expected[position - 1], kind="stable")[:3]
            assert [id for id in entry if entry[id].rank is not None] == best.tolist()
            for id, one in entry.items():
                assert one.logprob == pytest.approx(expected[position - 1][id], abs=1e-4)
                assert one.decoded_token == llm.tokenizer.decode([id])
            assert ids[position] in entry
    assert llm.generate(PROMPT, SamplingParams(max_tokens=2))[0].prompt_logprobs is None


def test_echo_begins_the_text_with_the_prompt(llm: llmcore.LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    plain, echoed = llm.generate([PROMPT] * 2, [params, SamplingParams(temperature=0, max_tokens=6, echo=True)])
    assert echoed.text == PROMPT + plain.text
    assert echoed.token_ids == plain.token_ids
    chunks = llm.stream(plain.prompt_token_ids[1:], SamplingParams(temperature=0, max_tokens=6, echo=True))
    assert "".join(chunk.text for chunk in chunks).startswith(PROMPT)


def test_texts_need_a_tokenizer(llm: llmcore.LLM) -> None:
    from llmcore.request_params import native_params

    resolved = SamplingParams(bad_words=["x"]).resolve({}, (), 100)
    with pytest.raises(ArgumentError, match="bad_words need a tokenizer"):
        native_params(resolved, None, seed=0, salt=(0, 0), priority=0)


OPTIONS: list[dict[str, Any]] = [
    {"mirostat": 2, "mirostat_tau": 3.0},
    {"mirostat": 1},
    {"dry_multiplier": 1.0, "temperature": 0.3},
    {"typical_p": 0.6, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"dynatemp_range": 0.8, "bad_words": ["prince"]},
]


def test_bits_of_stateful_samplers_survive_neighbours_preemption_and_drafts(llm: llmcore.LLM) -> None:
    prompts = [PROMPT, "Napoleon", "one two three one two three one two", "It was", "He said"]
    params = [SamplingParams(seed=i, max_tokens=60, ignore_eos=True, logprobs=0, **OPTIONS[i]) for i in range(5)]
    alone = [llm.generate(p, one)[0] for p, one in zip(prompts, params, strict=True)]
    page = kv_bytes_per_page(llm.model.spec, llm.kv_dtype)
    for options in ({"kv_cache_bytes": 15 * page}, {"speculative": 4}):
        with llmcore.LLM(llm.model, max_batch_size=5, enable_prefix_caching=False, progress=False, **options) as other:
            together = other.generate(prompts, params)
            assert [(o.token_ids, o.logprobs) for o in together] == [(o.token_ids, o.logprobs) for o in alone]
            stats = other.stats()
            assert stats["preemptions"] > 0 if "kv_cache_bytes" in options else stats["accepted_tokens"] > 0
