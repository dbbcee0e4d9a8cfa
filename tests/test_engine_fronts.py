"""The engine as its fronts show it: submitted requests, asyncio, the prefix cache, priorities, speculation."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import random
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bits_hash
import llmcore
from llmcore import SamplingParams, SpeculativeConfig
from llmcore.model import kv_bytes_per_page, random_model
from llmcore.models.spec import DecoderSpec

GREEDY = SamplingParams(temperature=0, max_tokens=16)
CASES = int(os.environ.get("LLMCORE_PROPERTY_CASES", "24"))
LONG = SamplingParams(temperature=0, max_tokens=380, ignore_eos=True)
# So long that nothing ends before it is cancelled, however busy the machine is.
SLOW = replace(LONG, logits_processors=[lambda output, row: time.sleep(0.02)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model without a tokenizer, context 400."""
    path = tmp_path_factory.mktemp("engine")
    bits_hash.write_model(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[llmcore.Model]:
    with llmcore.load(folder, threads=1, progress=False) as model:
        yield model


@pytest.fixture
def llm(model: llmcore.Model) -> Iterator[llmcore.LLM]:
    with llmcore.LLM(model, max_batch_size=4) as llm:
        yield llm


def prompt(seed: int, length: int, vocab: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocab) for _ in range(length)]


def bits(output: llmcore.RequestOutput) -> Any:
    """Token ids and log-probabilities of all answers."""
    return [(one.token_ids, one.logprobs, one.finish_reason) for one in output.outputs]


def all_free(llm: llmcore.LLM) -> bool:
    stats = llm.stats()
    return (
        stats["kv_pages_free"] == stats["kv_pages_total"]
        and stats["requests_running"] == stats["requests_waiting"] == 0
    )


# --- prefix cache ---------------------------------------------------------------------------------------------------


def test_a_prompt_seen_before_is_not_computed_again(llm: llmcore.LLM) -> None:
    ids = prompt(1, 100, llm.model.spec.vocab_size)
    cold, warm = llm.generate(ids, GREEDY)[0], llm.generate(ids, GREEDY)[0]
    assert cold.metrics.cached_tokens == 0
    assert warm.metrics.cached_tokens == 99  # all but the last, whose logits are wanted
    assert llm.stats()["prefix_hit_tokens"] == 99
    assert bits(cold) == bits(warm)
    assert all_free(llm)


def test_an_answer_is_a_prefix_too(llm: llmcore.LLM) -> None:
    ids = prompt(2, 20, llm.model.spec.vocab_size)
    first = llm.generate(ids, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))[0]
    turn = ids + first.token_ids + prompt(3, 10, llm.model.spec.vocab_size)
    assert llm.generate(turn, GREEDY)[0].metrics.cached_tokens == 59  # but the last token that was sampled


def test_one_other_token_is_another_prefix(llm: llmcore.LLM) -> None:
    ids = prompt(4, 64, llm.model.spec.vocab_size)
    llm.generate(ids, GREEDY)
    for at, cached in ((0, 0), (15, 15), (16, 16), (47, 47), (63, 63)):
        other = list(ids)
        other[at] = (other[at] + 1) % llm.model.spec.vocab_size
        assert llm.generate(other, GREEDY)[0].metrics.cached_tokens == cached


def test_a_page_that_another_goes_on_from_stays_as_it_is(llm: llmcore.LLM) -> None:
    """Sequences that part in the middle of a page: each has its own copy from there on."""
    vocab = llm.model.spec.vocab_size
    start = prompt(8, 21, vocab)
    prompts = [start + prompt(100 + i, 1 + i, vocab) for i in range(6)]
    with llmcore.LLM(llm.model, max_batch_size=1, enable_prefix_caching=False) as alone:
        expected = [bits(alone.generate(ids, GREEDY)[0]) for ids in prompts]
    llm.generate(start, SamplingParams(temperature=0, max_tokens=1))
    for _ in range(3):
        outputs = llm.generate(prompts, GREEDY)
        assert [bits(one) for one in outputs] == expected
        assert all(one.metrics.cached_tokens >= 21 for one in outputs)
    assert all_free(llm)


def test_tenants_share_nothing(llm: llmcore.LLM) -> None:
    ids = prompt(5, 40, llm.model.spec.vocab_size)
    cached = [
        llm.generate(ids, GREEDY, cache_salt=salt)[0].metrics.cached_tokens for salt in (None, "a", "b", "a", None, "")
    ]
    assert cached == [0, 0, 0, 39, 39, 0]
    with pytest.raises(TypeError):
        llm.generate(ids, GREEDY, cache_salt=3)  # type: ignore[arg-type]


def test_the_cache_can_be_switched_off(model: llmcore.Model) -> None:
    with llmcore.LLM(model, max_batch_size=2, enable_prefix_caching=False) as llm:
        ids = prompt(6, 40, model.spec.vocab_size)
        assert [llm.generate(ids, GREEDY)[0].metrics.cached_tokens for _ in range(2)] == [0, 0]


def test_a_prompt_is_computed_once_for_all_of_its_answers(llm: llmcore.LLM) -> None:
    ids = prompt(7, 150, llm.model.spec.vocab_size)
    params = SamplingParams(n=4, temperature=1.0, seed=5, max_tokens=8, logprobs=2, ignore_eos=True)
    together = llm.generate(ids, params)[0]
    assert llm.stats()["steps"] == 8
    with llmcore.LLM(llm.model, max_batch_size=1, enable_prefix_caching=False) as alone:
        assert bits(alone.generate(ids, params)[0]) == bits(together)
    assert len({tuple(one.token_ids) for one in together.outputs}) == 4


# --- the same bits whatever happens around ----------------------------------------------------------------------------


CUTS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"typical_p": 0.8, "top_p": 0.95},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05},
]


def random_requests(seed: int, count: int, vocab: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts, some with a common beginning or a repeated part, greedy and sampled, up to 4 answers."""
    rng = random.Random(seed)
    shared = prompt(seed, 70, vocab)
    work = []
    for i in range(count):
        own = prompt(seed * 1000 + i, rng.randrange(1, 60), vocab)
        ids = own if i % 3 == 0 else shared[: rng.randrange(1, 70)] + own if i % 3 == 1 else own[:12] * 5
        greedy = rng.random() < 0.4
        params = SamplingParams(
            n=1 if greedy else rng.randrange(1, 5),
            temperature=0.0 if greedy else 0.8,
            seed=rng.randrange(2**40),
            max_tokens=rng.randrange(1, 40),
            logprobs=2,
            repetition_penalty=1.1 if rng.random() < 0.3 else 1.0,
            top_k=rng.choice([0, 20]),
            **rng.choice(CUTS),
        )
        work.append((ids, params))
    return work


def test_bits_are_those_of_a_request_alone(folder: Path, model: llmcore.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    work = random_requests(3, CASES, model.spec.vocab_size)
    with llmcore.LLM(model, max_batch_size=1, enable_prefix_caching=False) as alone:
        expected = [bits(alone.generate(*one)[0]) for one in work]
    few = [i for i, (_, one) in enumerate(work) if one.repetition_penalty == 1 and (one.top_k or not one.temperature)]
    compared = 0
    settings: list[dict[str, Any]] = [
        {"max_batch_size": 2},
        {"max_batch_size": 16, "speculative": "ngram"},
        {"max_batch_size": 64, "enable_prefix_caching": False},
        {"max_batch_size": 8, "kv_cache_bytes": "small", "speculative": 7},
        {"max_batch_size": 5, "kv_cache_bytes": "small"},
        {"max_batch_size": 16, "speculative": SpeculativeConfig("self", quantize="int8")},
        {"max_batch_size": 8, "kv_cache_bytes": "small", "speculative": SpeculativeConfig("self", 6, quantize="int8")},
    ]
    chunks = itertools.cycle([1, 16, 64, 256])  # 1: as many as there are requests
    for threads in (1, 2, 4):
        with llmcore.load(folder, threads=threads, progress=False) as other:
            for i, setting in enumerate(settings):
                setting = dict(setting)
                if setting.get("kv_cache_bytes") == "small":
                    models = 1 + isinstance(setting.get("speculative"), SpeculativeConfig)
                    setting["kv_cache_bytes"] = models * 14 * kv_bytes_per_page(other.spec, other.kv_dtype)
                monkeypatch.setattr("llmcore.planning.STEP_TOKENS", next(chunks))
                order = list(range(len(work)))
                random.Random(i + 10 * threads).shuffle(order)
                with llmcore.LLM(other, **setting) as llm:
                    for _ in range(2):  # cold, then with a warm cache
                        neighbours = [llm.submit(prompt(i, 30, model.spec.vocab_size), LONG) for i in range(3)]
                        while not any(neighbour.take_chunks() for neighbour in neighbours):
                            time.sleep(0.001)
                        requests = [llm.submit(*work[at], priority=at % 3) for at in order]
                        for neighbour in neighbours:
                            neighbour.cancel()
                        for at, request in zip(order, requests, strict=True):
                            assert bits(request.result(500)) == expected[at], (threads, setting, at)
                            compared += sum(len(one[0]) for one in expected[at])
                    # Where few logits decide and none are asked for, no row of them is written: the same tokens.
                    prompts, params = zip(*(work[at] for at in few), strict=True)
                    outputs = llm.generate(prompts, [replace(one, logprobs=None) for one in params])
                    ids = [[one.token_ids for one in output.outputs] for output in outputs]
                    assert ids == [[one[0] for one in expected[at]] for at in few], setting
                    assert all_free(llm)
                    if "kv_cache_bytes" in setting:
                        assert llm.stats()["preemptions"] > 0
                    if "speculative" in setting:
                        assert llm.stats()["accepted_tokens"] > 0
    print(f"{compared:,} tokens with their log-probabilities compared")


# --- submit -----------------------------------------------------------------------------------------------------------


def test_submitted_requests_run_beside_all_others(llm: llmcore.LLM) -> None:
    ids = [prompt(i, 20, llm.model.spec.vocab_size) for i in range(6)]
    requests = [llm.submit(one, GREEDY) for one in ids]
    outputs = llm.generate(ids, GREEDY)
    assert [bits(request.result(500)) for request in requests] == [bits(output) for output in outputs]
    assert all(request.done for request in requests)
    assert len(requests[0].take_chunks()) == 16
    assert all_free(llm)


def test_counts_know_of_what_was_just_submitted(model: llmcore.Model) -> None:
    for _ in range(20):
        with llmcore.LLM(model, max_batch_size=1) as llm:
            request = llm.submit([1, 2], SLOW)
            stats = llm.stats()
            assert stats["requests_running"] + stats["requests_waiting"] == 1
            request.cancel()


def test_a_cancelled_request_ends_with_what_it_has(llm: llmcore.LLM) -> None:
    request = llm.submit(prompt(1, 20, llm.model.spec.vocab_size), SLOW)
    request.cancel()
    request.cancel()
    output = request.result(500)
    assert output.finish_reason == "abort"
    assert len(output.token_ids) < 380
    assert all_free(llm)


def test_errors_of_submit_come_at_once(llm: llmcore.LLM) -> None:
    with pytest.raises(llmcore.ContextLengthError):
        llm.submit([1] * 400, GREEDY)
    with pytest.raises(llmcore.ArgumentError, match="one prompt"):
        llm.submit([[1], [2]], GREEDY)  # type: ignore[list-item]
    for priority in (2**31, 10**5000, 1.0):
        with pytest.raises(llmcore.ArgumentError, match="priority"):
            llm.submit([1], GREEDY, priority=priority)  # type: ignore[arg-type]
    request = llm.submit([1, 2], SLOW)
    with pytest.raises(llmcore.BusyError):
        llm.close()
    with pytest.raises(TimeoutError):
        request.result(0)
    request.cancel()


def test_submit_does_not_wait_for_the_step_under_way(llm: llmcore.LLM) -> None:
    """What a step's time would be counted as is part of the queue's."""
    held, go_on = threading.Event(), threading.Event()

    def hold(output: list[int], row: Any) -> None:
        held.set()
        go_on.wait(60)

    slow = llm.submit([1, 2, 3], replace(GREEDY, max_tokens=1, logits_processors=[hold]))
    assert held.wait(60)
    request = llm.submit([4, 5, 6], GREEDY)
    begin = time.perf_counter()
    with pytest.raises(llmcore.ArgumentError):
        llm.submit([10**6], GREEDY)
    assert not request.done
    assert not slow.done
    waited = time.perf_counter() - begin
    go_on.set()
    metrics = request.result(500).metrics
    assert waited <= metrics.queue_time <= metrics.time_to_first_token
    assert slow.result(500).finish_reason == "length"


def test_urgent_requests_come_first(model: llmcore.Model) -> None:
    with llmcore.LLM(model, max_batch_size=1) as llm:
        slow = llm.submit([1, 2, 3], LONG, priority=5)
        urgent = llm.submit([4, 5, 6], GREEDY, priority=-1)
        assert urgent.result(500).finish_reason == "length"
        assert slow.result(500).metrics.preemptions <= 1
        with llmcore.LLM(model, max_batch_size=1, enable_prefix_caching=False) as alone:
            assert bits(slow.result()) == bits(alone.generate([1, 2, 3], LONG)[0])


# --- asyncio ----------------------------------------------------------------------------------------------------------


def test_async_streams_run_together(folder: Path) -> None:
    async def answer(llm: llmcore.AsyncLLM, ids: list[int]) -> list[int]:
        return [chunk.token_id async for chunk in llm.stream(ids, GREEDY)]

    async def main() -> None:
        async with llmcore.AsyncLLM(folder, threads=1, max_batch_size=4, progress=False) as llm:
            ids = [prompt(i, 20, llm.llm.model.spec.vocab_size) for i in range(8)]
            answers = await asyncio.gather(*(answer(llm, one) for one in ids))
            outputs = await asyncio.gather(*(llm.generate(one, GREEDY) for one in ids))
            assert answers == [output.token_ids for output in outputs]
            with pytest.raises(llmcore.ContextLengthError):
                await llm.generate([1] * 400)

    asyncio.run(main())


def test_leaving_an_async_stream_or_its_task_cancels_the_request(folder: Path) -> None:
    async def main() -> None:
        async with llmcore.AsyncLLM(folder, threads=1, max_batch_size=2, progress=False) as llm:
            stream = llm.stream([1, 2, 3], SLOW)
            async for _ in stream:
                break
            await stream.aclose()
            assert all_free(llm.llm)
            task = asyncio.create_task(llm.generate([1, 2, 3], SLOW))
            while llm.llm.stats()["requests_running"] == 0:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await llm.generate([1], GREEDY)
            assert all_free(llm.llm)
        with pytest.raises(llmcore.ClosedError):
            await llm.generate([1])

    asyncio.run(main())


def test_leaving_while_requests_are_on_their_way_cancels_them(folder: Path) -> None:
    async def main() -> None:
        for _ in range(30):
            async with llmcore.AsyncLLM(folder, threads=1, max_batch_size=2, progress=False) as llm:
                tasks = [asyncio.create_task(llm.generate([1, 2, 3], SLOW)) for _ in range(4)]
                await asyncio.sleep(0)
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(outcome, llmcore.ClosedError) or outcome.finish_reason == "abort"  # type: ignore[union-attr]

    asyncio.run(main())


def test_an_async_llm_is_entered_by_one_at_a_time(folder: Path) -> None:
    async def main() -> None:
        llm = llmcore.AsyncLLM(folder, threads=1, progress=False)
        for _ in range(2):
            async with llm:
                with pytest.raises(llmcore.BusyError):
                    await llm.__aenter__()
                assert len((await llm.generate([1, 2, 3], replace(GREEDY, ignore_eos=True))).token_ids) == 16
        loads = await asyncio.gather(llm.__aenter__(), llm.__aenter__(), return_exceptions=True)
        assert sorted(type(one).__name__ for one in loads) == ["AsyncLLM", "BusyError"]
        await llm.__aexit__(None, None, None)
        missing = llmcore.AsyncLLM(folder / "missing", progress=False)
        for _ in range(2):
            with pytest.raises(llmcore.CheckpointError):
                await missing.__aenter__()

    asyncio.run(main())


# --- the prefix cache -------------------------------------------------------------------------------------------------


def test_answers_that_share_pages_outlive_what_came_before_them(model: llmcore.Model) -> None:
    first, second, other = [5] * 16, [6] * 16, [7] * 16
    one, several = replace(GREEDY, max_tokens=1), SamplingParams(temperature=1, n=4, max_tokens=3, seed=1)
    pages = 8 * kv_bytes_per_page(model.spec, model.kv_dtype)
    prompts = [[*first, 8], [*first, *other, 9], [*first, *second, 10]]
    with llmcore.LLM(model, max_batch_size=8, kv_cache_bytes=pages) as llm:
        llm.generate(prompts, [one, one, several])
        output = llm.generate([11] * 120, one)[0]
        assert all_free(llm)
        again = [bits(llm.generate(ids, one)[0]) for ids in prompts]
    with llmcore.LLM(model, enable_prefix_caching=False) as alone:
        assert bits(alone.generate([11] * 120, one)[0]) == bits(output)
        assert [bits(alone.generate(ids, one)[0]) for ids in prompts] == again


# --- memory -----------------------------------------------------------------------------------------------------------


def test_max_memory_cuts_the_context_or_refuses(model: llmcore.Model) -> None:
    with llmcore.LLM(model, max_batch_size=2) as llm:
        whole = model.memory_usage()["total"]
        fixed = whole - model.memory_usage()["kv_cache"]
        assert llm.max_model_len == 400
    page = kv_bytes_per_page(model.spec, model.kv_dtype)
    with llmcore.LLM(model, max_batch_size=2, max_memory=fixed + 5 * page) as llm:
        assert model.memory_usage()["total"] <= fixed + 5 * page
        assert llm.max_model_len == 80
    with pytest.raises(llmcore.OutOfMemoryError) as caught:
        llmcore.LLM(model, max_batch_size=2, max_model_len=200, max_memory=fixed + 5 * page)
    assert caught.value.largest_context == 80


def test_max_memory_counts_what_a_longer_context_adds_to_the_activations() -> None:
    spec = DecoderSpec(
        model_type="llama",
        hidden_size=64,
        num_layers=1,
        num_heads=64,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=64,
        vocab_size=131,
        max_position_embeddings=1 << 19,
        rope_inv_freq=(1.0,) * 8,
    )
    lengths = []
    for limit in (30_000_000, 40_000_000):
        with random_model(spec, "int8") as model, llmcore.LLM(model, max_memory=limit) as llm:
            assert model.memory_usage()["total"] <= limit
            lengths.append(llm.max_model_len)
    assert lengths[0] < lengths[1]


def test_what_to_raise_for_a_longer_context_is_named(model: llmcore.Model) -> None:
    page = kv_bytes_per_page(model.spec, model.kv_dtype)
    cut = {"max_batch_size": 1, "kv_cache_bytes": 5 * page}
    whole = model.memory_usage()["total"]
    for options, remedy in (
        ({"max_model_len": 64}, "shorten the prompt, or raise max_model_len"),
        (cut, "shorten the prompt, or raise kv_cache_bytes"),
        (cut | {"max_memory": 2 * whole}, "shorten the prompt, or raise kv_cache_bytes and max_memory"),
        ({}, "shorten the prompt"),
    ):
        with llmcore.LLM(model, **options) as llm:  # type: ignore[arg-type]
            for given in ([1] * llm.max_model_len, [1] * 10**6):
                with pytest.raises(llmcore.ContextLengthError) as caught:
                    llm.generate(given)
                assert str(caught.value).endswith(f"the answer: {remedy}")


def test_a_smaller_model_guesses(folder: Path, model: llmcore.Model, tmp_path: Path) -> None:
    """Its guesses change nothing, are counted, and stop when they don't pay; it comes and goes with the LLM."""
    small = tmp_path / "small"
    small.mkdir()
    bits_hash.write_model(small, layers=1)
    work = random_requests(8, 20, model.spec.vocab_size)
    with llmcore.LLM(model, max_batch_size=8) as llm:
        expected = [bits(llm.generate(*one)[0]) for one in work]
    accepted = []
    with llmcore.load(small, progress=False) as draft:
        for config in (
            draft,
            SpeculativeConfig("draft", model=small),
            SpeculativeConfig("draft", 9, model=draft),
            SpeculativeConfig("self", quantize="int8"),
        ):
            with llmcore.LLM(model, max_batch_size=8, speculative=config) as llm:
                requests = [llm.submit(*one) for one in work]
                assert [bits(request.result(500)) for request in requests] == expected
                stats = llm.stats()
                # How many there are is for measured times to decide, and of few nothing can be said.
                few = stats["drafted_tokens"] < 24
                accepted.append(None if few else stats["accepted_tokens"] / stats["drafted_tokens"])
                assert all_free(llm)
        assert draft.forward([1, 2]).shape[0] == 2  # still open
    *others, own = accepted
    assert own is None or own > 0.5
    assert all(share is None or share < 0.5 for share in others)


def test_ids_that_the_tokenizer_has_not_have_no_text(tmp_path: Path) -> None:
    """A vocabulary may have gaps, and a model more ids than it; neither may end anybody's request."""
    bits_hash.write_model(tmp_path, layers=1, vocab=300)
    llmcore.Tokenizer.train(["none"], vocab_size=256).save(tmp_path / "tokenizer.json")
    root = json.loads((tmp_path / "tokenizer.json").read_text())
    flags = {"special": True, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    root["added_tokens"] = [{"id": 290, "content": "<x>", **flags}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(root))
    with llmcore.LLM(tmp_path, max_batch_size=4, progress=False) as llm:
        for ids in ([1, 270, 2], [1, 2, 295], [270]):
            with_gaps = SamplingParams(temperature=0, max_tokens=4, allowed_token_ids=[270], logprobs=3, echo=True)
            output = llm.generate(ids, with_gaps)[0]
            assert output.token_ids == [270] * 4
            assert output.text == llm.tokenizer.decode([id for id in ids if id < 256])
            (beam,) = llm.beam_search([ids], llmcore.BeamSearchParams(beam_width=2, max_tokens=3))
            assert len(beam.sequences) == 2
        for params in ({"logprobs": 200}, {"dry_multiplier": 1.0}):
            assert len(llm.generate([1, 2], SamplingParams(temperature=0, max_tokens=4, **params))[0].token_ids) == 4  # type: ignore[arg-type]
        assert len(llm.loglikelihood([([1], [295, 2])])[0].token_ids) == 2
        with pytest.raises(llmcore.ArgumentError, match="id 295"):
            llm.loglikelihood([([1], [2, 295])])


def test_a_guessing_model_may_lack_ids_of_padding(tmp_path: Path) -> None:
    """Checkpoints of one family pad the same vocabulary to different sizes."""
    tiny = Path(llmcore.__file__).parent / "assets" / "tiny"
    folders = {vocab: tmp_path / str(vocab) for vocab in (2048, 2112)}
    for vocab, folder in folders.items():
        folder.mkdir()
        bits_hash.write_model(folder, layers=1, vocab=vocab)
        shutil.copy(tiny / "tokenizer.json", folder)
    prompts = [[5, 2100, *prompt(3, 30, 2048)], prompt(4, 20, 2048)]
    with llmcore.load(folders[2112], progress=False) as model:
        found = []
        for guessing in (None, SpeculativeConfig("draft", model=folders[2048])):
            with llmcore.LLM(model, max_batch_size=8, speculative=guessing) as llm:
                found.append([bits(output) for output in llm.generate(prompts, GREEDY)])
                drafted = llm.stats()["drafted_tokens"]
    assert found[0] == found[1]
    assert drafted > 0


def test_a_guessing_model_must_fit(folder: Path, model: llmcore.Model, tmp_path: Path) -> None:
    with pytest.raises(llmcore.ArgumentError, match="itself"):
        llmcore.LLM(model, speculative=model)
    bits_hash.write_model(tmp_path, vocab=64)
    with pytest.raises(llmcore.ArgumentError, match="vocabulary"):
        llmcore.LLM(model, speculative=SpeculativeConfig("draft", model=tmp_path))
    for wrong in (
        {"method": "magic"},
        {"method": "draft"},
        {"method": "self"},
        {"method": "ngram", "model": tmp_path},
        {"method": "ngram", "quantize": "int8"},
        {"num_tokens": 0},
        {"num_tokens": 16},
        {"num_tokens": True},
        {"method": "draft", "model": model, "quantize": "int8"},
    ):
        with pytest.raises(llmcore.ArgumentError, match="speculative"):
            SpeculativeConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["draft", 0, 16, True, 1.5, np.array([1, 2])])
def test_wrong_speculation(model: llmcore.Model, wrong: Any) -> None:
    with pytest.raises(llmcore.ArgumentError, match="speculative"):
        llmcore.LLM(model, speculative=wrong)


@pytest.mark.parametrize("used", [False, True])
def test_a_closed_llm_holds_no_memory(used: bool) -> None:
    """Though it is still there."""
    gc.collect()
    before = llmcore._core.allocated_bytes()
    llm = llmcore.LLM("tiny", max_batch_size=1, progress=False)
    assert llmcore._core.allocated_bytes() > before
    if used:
        llm.generate([1, 2], GREEDY)
    llm.close()
    assert llmcore._core.allocated_bytes() == before


def test_a_dropped_llm_is_gone() -> None:
    model = llmcore.load("tiny", progress=False)
    llm = llmcore.LLM(model, max_model_len=64, max_batch_size=1)
    assert model.memory_usage()["kv_cache"] > 0
    llm.submit([1, 2], llmcore.SamplingParams(max_tokens=2)).result(500)
    loop, alive = llm._loop, weakref.ref(llm)
    del llm
    gc.collect()
    assert loop.join(60)
    assert alive() is None
    assert model.memory_usage()["kv_cache"] == 0
