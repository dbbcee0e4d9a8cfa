"""LLM: prompts, stops, lengths, log-probabilities, streams, errors, closing, interruption and threads."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bits_hash
import llmcore
from llmcore import SamplingParams
from llmcore.model import kv_bytes_per_page, random_model

GREEDY = SamplingParams(temperature=0, max_tokens=24)
PROMPT = "The prince"


@pytest.fixture(scope="module")
def tiny() -> Iterator[llmcore.LLM]:
    """The built-in model, with text."""
    with llmcore.LLM("tiny", max_batch_size=4, threads=1, progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model without a tokenizer, context 400."""
    folder = tmp_path_factory.mktemp("bare")
    bits_hash.write_model(folder)
    return folder


@pytest.fixture(scope="module")
def bare(bare_folder: Path) -> Iterator[llmcore.LLM]:
    with llmcore.LLM(bare_folder, max_batch_size=4, threads=1, progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def text(tiny: llmcore.LLM) -> str:
    """The greedy answer to PROMPT."""
    return tiny.generate(PROMPT, GREEDY)[0].text


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_prompt_gives_the_same_answer(tiny: llmcore.LLM, text: str) -> None:
    ids = tiny.tokenizer.encode(PROMPT)
    kinds: list[Any] = [PROMPT, [PROMPT], ids, [ids], tuple(ids), np.array(ids), np.array([ids]), [np.array(ids)]]
    for prompts in kinds:
        outputs = tiny.generate(prompts, GREEDY)
        assert isinstance(outputs, list)
        assert [output.text for output in outputs] == [text]
        assert outputs[0].prompt_token_ids == ids
    assert tiny.generate(PROMPT, GREEDY)[0].prompt == PROMPT
    assert tiny.generate(ids, GREEDY)[0].prompt is None


def test_answers_come_in_the_order_of_the_prompts(tiny: llmcore.LLM, text: str) -> None:
    prompts = ["A long time ago there was an old man who", PROMPT, "I", "And then she said to the king:", PROMPT]
    lengths = [20, 24, 1, 7, 3]
    params = [SamplingParams(temperature=0, max_tokens=n) for n in lengths]
    outputs = tiny.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.token_ids) for output in outputs] == lengths
    assert outputs[1].text == text
    assert text.startswith(outputs[4].text)
    assert len({output.request_id for output in outputs}) == len(prompts)


def test_no_prompts_no_answers(tiny: llmcore.LLM) -> None:
    assert tiny.generate([], GREEDY) == []


def test_text_is_what_the_tokens_say(tiny: llmcore.LLM) -> None:
    (output,) = tiny.generate(PROMPT, SamplingParams(temperature=1.5, max_tokens=60, seed=3, ignore_eos=True))
    whole = tiny.tokenizer.decode(output.prompt_token_ids + output.token_ids, skip_special_tokens=True)
    assert whole == PROMPT + output.text


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        ([[]], llmcore.ArgumentError),
        ([[0, 99999]], llmcore.ArgumentError),
        ([[0, -1]], llmcore.ArgumentError),
        ([[0, 2**40]], llmcore.ArgumentError),
        ([[0, 1.5]], TypeError),
        ([[0, True]], TypeError),
        ([[0, "a"]], TypeError),
        ([3, "text"], TypeError),
        (None, TypeError),
        (7, TypeError),
        (b"bytes", TypeError),
        ({"prompt": "x"}, TypeError),
        ([None], TypeError),
    ],
)
def test_wrong_prompts(tiny: llmcore.LLM, prompts: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        tiny.generate(prompts, GREEDY)
    assert isinstance(caught.value, llmcore.LlmcoreError)
    assert tiny.stats()["requests_waiting"] == tiny.stats()["requests_running"] == 0


def test_params_must_be_one_or_one_each(tiny: llmcore.LLM) -> None:
    with pytest.raises(llmcore.ArgumentError, match="2 prompts"):
        tiny.generate(["a", "b"], [GREEDY])


def test_one_bad_prompt_leaves_nothing_running(tiny: llmcore.LLM) -> None:
    with pytest.raises(llmcore.ArgumentError):
        tiny.generate([[0, 5], [0, 99999]], GREEDY)
    assert tiny.stats()["requests_waiting"] == 0
    assert tiny.stats()["kv_pages_free"] == tiny.stats()["kv_pages_total"]


# --- where an answer ends ---------------------------------------------------------------------------------------------


def test_stop_strings_end_the_text_before_them(tiny: llmcore.LLM, text: str) -> None:
    stop = text[9:15]
    for stops in (stop, [stop], ["never in it", stop]):
        (output,) = tiny.generate(PROMPT, SamplingParams(temperature=0, max_tokens=24, stop=stops))
        assert output.text == text[: text.index(stop)]
        assert output.finish_reason == "stop"
        assert output.outputs[0].stop_reason == stop
    params = SamplingParams(temperature=0, max_tokens=24, stop=stop, include_stop_str_in_output=True)
    assert tiny.generate(PROMPT, params)[0].text == text[: text.index(stop) + len(stop)]


def test_a_stop_string_that_never_comes_holds_nothing_back(tiny: llmcore.LLM, text: str) -> None:
    (output,) = tiny.generate(PROMPT, SamplingParams(temperature=0, max_tokens=24, stop=text[-3:] + "#"))
    assert output.text == text
    assert output.finish_reason == "length"


def test_stop_tokens_are_part_of_the_answer(bare: llmcore.LLM) -> None:
    ids = bare.generate([5, 6], GREEDY)[0].token_ids
    stop = ids[4]
    (output,) = bare.generate([5, 6], SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[stop]))
    assert output.token_ids == ids[: ids.index(stop) + 1]
    assert output.finish_reason == "stop"
    assert output.outputs[0].stop_reason == stop


def test_min_tokens_keeps_stops_away(bare: llmcore.LLM) -> None:
    everything = list(range(bits_hash.VOCAB))
    allowed = SamplingParams(max_tokens=9, stop_token_ids=everything[:-2], min_tokens=5, seed=1)
    (output,) = bare.generate([5, 6], allowed)
    assert set(output.token_ids[:5]) <= set(everything[-2:])


def test_the_end_token_ends_unless_ignored(tiny: llmcore.LLM) -> None:
    (eos,) = tiny.tokenizer.eos_ids
    forced = {"temperature": 0, "max_tokens": 6, "logit_bias": {eos: 100.0}}
    (output,) = tiny.generate(PROMPT, SamplingParams(**forced))
    assert output.token_ids == [eos]
    assert (output.text, output.finish_reason, output.outputs[0].stop_reason) == ("", "stop", None)
    (output,) = tiny.generate(PROMPT, SamplingParams(**forced, ignore_eos=True))
    assert output.token_ids == [eos] * 6
    assert output.finish_reason == "length"
    (output,) = tiny.generate(PROMPT, SamplingParams(**forced, min_tokens=3))
    assert len(output.token_ids) == 4
    assert output.token_ids.index(eos) == 3


def test_the_context_bounds_an_answer(bare: llmcore.LLM) -> None:
    prompt = bits_hash.prompt(390)
    (output,) = bare.generate(prompt, SamplingParams(temperature=0, max_tokens=1000))
    assert len(output.token_ids) == bits_hash.CONTEXT - 390
    assert output.finish_reason == "length"


@pytest.mark.parametrize("length", [400, 401, 5000])
def test_a_prompt_that_fills_the_context_is_refused(bare: llmcore.LLM, length: int) -> None:
    with pytest.raises(llmcore.ContextLengthError, match="400"):
        bare.generate([3] * length, GREEDY)


def test_max_model_len_is_the_context(bare: llmcore.LLM) -> None:
    with llmcore.LLM(bare.model, max_model_len=40, max_batch_size=1) as llm:
        assert llm.max_model_len == 40
        assert len(llm.generate(bits_hash.prompt(33), SamplingParams(max_tokens=50))[0].token_ids) == 7
        with pytest.raises(llmcore.ContextLengthError):
            llm.generate(bits_hash.prompt(40), GREEDY)


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_models_logits(bare: llmcore.LLM) -> None:
    ids = bits_hash.prompt(20)
    params = SamplingParams(temperature=0.7, top_k=20, seed=4, max_tokens=12, logprobs=5, frequency_penalty=1.0)
    (output,) = bare.generate(ids, params)
    logits = np.asarray(bare.model.forward(ids + output.token_ids), np.float64)[len(ids) - 1 : -1]
    shifted = logits - logits.max(1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids) == 12
    for row, token, found in zip(expected, output.token_ids, output.logprobs, strict=True):
        best = np.argsort(-row, kind="stable")[:5].tolist()
        assert list(found)[:5] == best
        assert [found[each].rank for each in best] == [1, 2, 3, 4, 5]
        assert set(found) == {*best, token}
        assert all(found[each].logprob == pytest.approx(row[each], abs=1e-5) for each in found)
        assert found[token].rank == (best.index(token) + 1 if token in best else None)
    chosen = [found[token].logprob for token, found in zip(output.token_ids, output.logprobs, strict=True)]
    assert output.outputs[0].cumulative_logprob == pytest.approx(sum(chosen))


def test_logprobs_zero_is_the_chosen_token_alone_and_none_is_none(tiny: llmcore.LLM) -> None:
    (output,) = tiny.generate(PROMPT, SamplingParams(temperature=0, max_tokens=3, logprobs=0))
    assert output.logprobs is not None
    assert [list(found) for found in output.logprobs] == [[token] for token in output.token_ids]
    decoded = [found[token].decoded_token for found, token in zip(output.logprobs, output.token_ids, strict=True)]
    assert "".join(each or "" for each in decoded) == output.text
    (output,) = tiny.generate(PROMPT, GREEDY)
    assert output.logprobs is None
    assert output.outputs[0].cumulative_logprob is None


# --- n, metrics, digests ----------------------------------------------------------------------------------------------


def test_n_answers(tiny: llmcore.LLM) -> None:
    (output,) = tiny.generate(PROMPT, SamplingParams(n=6, temperature=1.0, max_tokens=10, seed=1))
    assert [each.index for each in output.outputs] == list(range(6))
    assert len({tuple(each.token_ids) for each in output.outputs}) == 6
    assert output.text == output.outputs[0].text
    (alone,) = tiny.generate(PROMPT, SamplingParams(temperature=1.0, max_tokens=10, seed=1))
    assert alone.token_ids == output.token_ids


def test_metrics_are_plausible_times(tiny: llmcore.LLM) -> None:
    (output,) = tiny.generate(PROMPT, GREEDY, cache_salt="metrics")
    metrics = output.metrics
    assert 0 <= metrics.queue_time <= metrics.time_to_first_token < 60
    assert 0 < metrics.time_per_token < 60
    assert (metrics.cached_tokens, metrics.preemptions) == (0, 0)


def test_digest_names_model_prompt_parameters_and_answer(bare: llmcore.LLM) -> None:
    first, second = (bare.generate([5, 6], GREEDY)[0].digest for _ in range(2))
    others = [
        bare.generate([5, 7], GREEDY)[0].digest,
        bare.generate([5, 6], SamplingParams(temperature=0, max_tokens=25))[0].digest,
    ]
    assert first == second
    assert len({first, *others}) == 3
    for one, other in (
        ({"logit_bias": {3: 1.0, 4: 2.0}}, {"logit_bias": {4: 2.0, 3: 1.0}}),
        ({"allowed_token_ids": [3, 4]}, {"allowed_token_ids": [4, 3]}),
    ):
        digests = [bare.generate([5, 6], dataclasses.replace(GREEDY, **changes))[0].digest for changes in (one, other)]
        assert digests[0] == digests[1]


# --- streams and chat -------------------------------------------------------------------------------------------------


def test_a_stream_is_the_answer_in_pieces(tiny: llmcore.LLM, text: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, logprobs=0)
    chunks = list(tiny.stream(PROMPT, params))
    (output,) = tiny.generate(PROMPT, params)
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.token_id for chunk in chunks] == output.token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * 23 + ["length"]
    assert output.logprobs is not None
    assert [chunk.logprob for chunk in chunks] == [
        found[token].logprob for found, token in zip(output.logprobs, output.token_ids, strict=True)
    ]


def test_a_stream_holds_back_what_may_become_a_stop_string(tiny: llmcore.LLM, text: str) -> None:
    stop = text[9:15]
    chunks = list(tiny.stream(PROMPT, SamplingParams(temperature=0, max_tokens=24, stop=stop)))
    assert "".join(chunk.text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_leaving_a_stream_cancels_it(tiny: llmcore.LLM) -> None:
    params = SamplingParams(max_tokens=200, ignore_eos=True, logits_processors=[lambda output, row: time.sleep(0.02)])
    for _ in tiny.stream(PROMPT, params):
        assert tiny.stats()["requests_running"] == 1
        break
    assert tiny.stats()["requests_running"] == 0
    assert tiny.stats()["kv_pages_free"] == tiny.stats()["kv_pages_total"]


def test_a_stream_is_not_copied(tiny: llmcore.LLM) -> None:
    stream = tiny.stream(PROMPT, GREEDY)
    with pytest.raises(TypeError):
        copy.copy(stream)
    assert len(list(stream)) == GREEDY.max_tokens


def test_threads_share_a_stream(tiny: llmcore.LLM) -> None:
    for _ in range(20):
        stream = tiny.stream(PROMPT, GREEDY)
        taken: list[int] = []
        threads = [
            threading.Thread(target=lambda stream=stream, taken=taken: taken.extend(chunk.token_id for chunk in stream))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert sorted(taken) == sorted(tiny.generate(PROMPT, GREEDY)[0].token_ids)


def test_a_stream_reports_a_wrong_prompt_at_once(tiny: llmcore.LLM) -> None:
    with pytest.raises(llmcore.ArgumentError):
        tiny.stream([0, 99999], GREEDY)


def test_n_answers_in_a_stream_carry_their_index(tiny: llmcore.LLM) -> None:
    params = SamplingParams(n=2, max_tokens=5, seed=1, temperature=1.0, ignore_eos=True)
    chunks = list(tiny.stream(PROMPT, params))
    (output,) = tiny.generate(PROMPT, params)
    for each in output.outputs:
        assert [chunk.token_id for chunk in chunks if chunk.index == each.index] == each.token_ids


def test_chat_without_a_template_is_a_template_error(tiny: llmcore.LLM) -> None:
    with pytest.raises(llmcore.TemplateError):
        tiny.chat([{"role": "user", "content": "Hello"}], GREEDY)


def test_chat_answers_the_rendered_template(tmp_path: Path) -> None:
    source = Path(llmcore.__file__).parent / "assets" / "tiny"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ extra }}"
    (tmp_path / "chat_template.jinja").write_text(template, "utf-8")
    with llmcore.LLM(tmp_path, max_batch_size=1, threads=1, progress=False) as llm:
        messages = [{"role": "king", "content": "Who goes there?"}, {"role": "prince", "content": "I."}]
        (chatted,) = llm.chat(messages, GREEDY, extra="The")
        rendered = "king: Who goes there?\nprince: I.\nThe"
        ids = llm.tokenizer.encode(rendered, add_special_tokens=False)
        assert chatted.prompt_token_ids == ids
        assert chatted.token_ids == llm.generate(ids, GREEDY)[0].token_ids
        several = llm.chat([messages, messages[:1], messages], GREEDY, extra="The")
        assert [answer.token_ids == chatted.token_ids for answer in several] == [True, False, True]


# --- what can't be done -----------------------------------------------------------------------------------------------


def test_text_needs_a_tokenizer(bare: llmcore.LLM) -> None:
    with pytest.raises(llmcore.TokenizerError):
        bare.generate("text", GREEDY)
    with pytest.raises(llmcore.ArgumentError, match="stop_token_ids"):
        bare.generate([1], SamplingParams(stop="x"))
    assert bare.generate([1], GREEDY)[0].text == ""


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 0},
        {"max_batch_size": True},
        {"max_batch_size": 10**18},
        {"max_model_len": 0},
        {"max_model_len": 1},
        {"max_model_len": 10**5000},
        {"max_batch_size": 10**5000},
        {"max_model_len": 401},
        {"kv_dtype": "int3"},
        {"kv_dtype": np.array(["f16", "f32"])},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 10**5000},
        {"quantize": "int8"},
        {"threads": 2},
    ],
)
def test_wrong_options(bare: llmcore.LLM, options: dict[str, Any]) -> None:
    with pytest.raises(llmcore.ArgumentError):
        llmcore.LLM(bare.model, **options)


def test_a_cache_too_small_names_the_bytes(bare: llmcore.LLM) -> None:
    with pytest.raises(llmcore.OutOfMemoryError) as caught:
        llmcore.LLM(bare.model, max_model_len=400, kv_cache_bytes=100_000)
    error = caught.value
    assert error.available == 100_000
    assert error.needed is not None
    assert error.needed > 100_000
    assert error.largest_context is not None
    assert error.largest_context < 400
    with llmcore.LLM(bare.model, max_model_len=400, max_batch_size=1, kv_cache_bytes=error.needed) as llm:
        assert llm.max_model_len == 400


def test_logits_that_are_not_numbers_are_a_numeric_error(bare_folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(bare_folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((bare_folder / "config.json").read_bytes())
    with llmcore.LLM(tmp_path, max_batch_size=2, threads=1, progress=False) as llm:
        for _ in range(2):
            with pytest.raises(llmcore.NumericError):
                llm.generate([[1, 2], [3]], GREEDY)
        assert llm.stats()["requests_running"] == 0


# --- closing ----------------------------------------------------------------------------------------------------------


def test_a_refused_llm_leaves_the_others_theirs(bare: llmcore.LLM) -> None:
    expected = bare.generate([1, 2, 3], GREEDY)[0].token_ids
    for size in (10**18, 10**10):
        with pytest.raises(llmcore.LlmcoreError):
            llmcore.LLM(bare.model, max_batch_size=size)
    assert bare.generate([1, 2, 3], GREEDY)[0].token_ids == expected
    assert bare.model.forward([1]).shape == (1, bare.model.spec.vocab_size)


def test_plans_of_several_threads_are_as_large_as_the_largest() -> None:
    for _ in range(5):
        with llmcore.load("tiny", progress=False) as model:
            sizes = [4, 64, 16, 32]
            threads = [threading.Thread(target=llmcore.LLM, args=(model,), kwargs={"max_batch_size": n}) for n in sizes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with llmcore.LLM(model, max_batch_size=64) as llm:
                assert len(llm.generate([[1, i] for i in range(64)], GREEDY)) == 64


def test_close_waits_for_nobody(bare: llmcore.LLM) -> None:
    llm = llmcore.LLM(bare.model, max_batch_size=2)
    go_on = threading.Event()

    def slow(ids: list[int], logits: np.ndarray) -> None:
        if ids:
            go_on.wait(60)

    stream = llm.stream([1, 2, 3], dataclasses.replace(GREEDY, logits_processors=[slow]))
    next(stream)
    with pytest.raises(llmcore.BusyError):
        llm.close()
    go_on.set()
    stream.close()
    llm.close()
    llm.close()
    for call in (lambda: llm.generate([1], GREEDY), lambda: llm.stream([1], GREEDY), llm.stats):
        with pytest.raises(llmcore.ClosedError):
            call()
    assert bare.model.forward([1, 2]).shape == (2, bits_hash.VOCAB)  # the model was given, and stays open


def test_close_may_follow_what_was_interrupted(bare: llmcore.LLM) -> None:
    llm = llmcore.LLM(bare.model, max_batch_size=2)
    stream = llm.stream([1, 2], SamplingParams(max_tokens=300, ignore_eos=True))
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    llm.close()


def test_threads_may_close_at_once(bare: llmcore.LLM) -> None:
    for _ in range(50):
        llm = llmcore.LLM(bare.model, max_batch_size=2)
        llm.generate([1], GREEDY)
        errors: list[BaseException] = []

        def close(llm: llmcore.LLM = llm, errors: list[BaseException] = errors) -> None:
            try:
                llm.close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=close) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        with pytest.raises(llmcore.ClosedError):
            llm.submit([1], GREEDY)


def test_a_request_that_is_asked_often_keeps_nothing_of_it(bare: llmcore.LLM) -> None:
    request = bare.submit([1], dataclasses.replace(GREEDY, logits_processors=[lambda output, row: time.sleep(0.01)]))
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            request.result(timeout)
    assert not request.finished
    for wrong in (-1.0, float("nan")):
        with pytest.raises(llmcore.ArgumentError, match="timeout"):
            request.result(wrong)
    request.cancel()


def test_closing_gives_the_memory_back(bare_folder: Path) -> None:
    with llmcore.load(bare_folder, threads=1, progress=False) as model:
        assert model.memory_usage()["kv_cache"] == 0
        with llmcore.LLM(model, max_batch_size=2):
            assert model.memory_usage()["kv_cache"] > 0
        assert model.memory_usage()["kv_cache"] == 0
    with pytest.raises(llmcore.ClosedError):
        model.forward([1])


def test_an_llm_that_loaded_its_model_closes_it(bare_folder: Path) -> None:
    with llmcore.LLM(bare_folder, max_batch_size=1, threads=1, progress=False) as llm:
        model = llm.model
    with pytest.raises(llmcore.ClosedError):
        model.forward([1])


# --- threads and signals ----------------------------------------------------------------------------------------------


def test_several_threads_at_once_get_their_own_answers(bare: llmcore.LLM) -> None:
    params = [SamplingParams(temperature=0.8, seed=i, max_tokens=20) for i in range(6)]
    alone = [bare.generate(bits_hash.prompt(10 + i), params[i])[0].token_ids for i in range(6)]
    found: list[list[list[int]]] = [[] for _ in range(6)]

    def work(i: int) -> None:
        for turn in range(5):
            if turn % 2:
                found[i].append([chunk.token_id for chunk in bare.stream(bits_hash.prompt(10 + i), params[i])])
            else:
                found[i].append(bare.generate(bits_hash.prompt(10 + i), params[i])[0].token_ids)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[tokens] * 5 for tokens in alone]
    assert bare.stats()["kv_pages_free"] == bare.stats()["kv_pages_total"]


def test_forward_and_generate_at_once(bare: llmcore.LLM) -> None:
    ids = bits_hash.prompt(30)
    logits, tokens = np.asarray(bare.model.forward(ids)), bare.generate(ids, GREEDY)[0].token_ids
    same: list[bool] = []
    thread = threading.Thread(
        target=lambda: same.extend(np.array_equal(bare.model.forward(ids), logits) for _ in range(20))
    )
    thread.start()
    answers = [bare.generate(ids, GREEDY)[0].token_ids for _ in range(10)]
    thread.join(60)
    assert same == [True] * 20
    assert answers == [tokens] * 10


INTERRUPTED = """
import os, signal, threading, time
import llmcore
from llmcore.model import random_model
from llmcore.models.spec import DecoderSpec

# A layer of a step of 512 tokens is a sixteenth of the whole: interrupting between layers would be too late.
spec = DecoderSpec(model_type="llama", hidden_size=2048, num_layers=2, num_heads=32, num_kv_heads=4, head_dim=64,
                   intermediate_size=16384, vocab_size=2000, max_position_embeddings=4096,
                   rope_inv_freq=tuple(0.9**i for i in range(32)))
model = random_model(spec)
llm = llmcore.LLM(model, max_batch_size=2)
greedy = llmcore.SamplingParams(temperature=0, max_tokens=2)
before = llm.generate([1, 2, 3], greedy)[0].token_ids
began = time.process_time()
model.forward([5] * 4000)
whole = time.process_time() - began
for work in (lambda: llm.generate([5] * 4000), lambda: list(llm.stream([5] * 4000)), lambda: model.forward([5] * 4000)):
    sent = []
    def interrupt():
        time.sleep(0.3)
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        work()
        raise SystemExit("the work ended before it was interrupted")
    except KeyboardInterrupt:
        print((time.process_time() - sent[0]) / whole)
    thread.join()
    stats = llm.stats()
    assert stats["requests_running"] == stats["requests_waiting"] == 0, stats
    assert stats["kv_pages_free"] == stats["kv_pages_total"], stats
    assert llm.generate([1, 2, 3], greedy)[0].token_ids == before
llm.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="os.kill sends no SIGINT there")
def test_control_c_stops_within_a_layer_and_leaves_all_usable() -> None:
    """By the work done after it, in processor time, so that a busy machine counts for nothing."""
    environment = os.environ | {"LLMCORE_NUM_THREADS": "2"}  # with many it would end before it is interrupted
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert all(float(share) < 1 / 20 for share in done.stdout.split()), done.stdout
    assert len(done.stdout.split()) == 3


S = SamplingParams()
WRONG: dict[str, Callable[[llmcore.LLM], object]] = {
    "params of ints": lambda llm: llm.generate("a", [5]),  # type: ignore[list-item]
    "params of text": lambda llm: llm.generate("a", "x"),  # type: ignore[arg-type]
    "params as a dict": lambda llm: llm.generate("a", {"temperature": 0}),  # type: ignore[arg-type]
    "params as an int": lambda llm: llm.generate("a", 5),  # type: ignore[arg-type]
    "params of chat": lambda llm: llm.chat([{"role": "user", "content": "a"}], [5], chat_format="chatml"),  # type: ignore[list-item]
    "beams": lambda llm: llm.beam_search("a", S),  # type: ignore[arg-type]
    "two streams": lambda llm: llm.stream(["a", "b"]),  # type: ignore[list-item]
    "no stream": lambda llm: llm.stream([]),
    "session params": lambda llm: llm.session().generate("a", 5),  # type: ignore[arg-type]
    "session prompt": lambda llm: llm.session().generate(None),  # type: ignore[arg-type]
    "session message": lambda llm: llm.session().chat(5),  # type: ignore[arg-type]
    "restore": lambda llm: llm.restore(None),  # type: ignore[arg-type]
    "context": lambda llm: llm.loglikelihood([(None, "b")]),  # type: ignore[list-item]
    "pairs": lambda llm: llm.loglikelihood(5),  # type: ignore[arg-type]
    "documents": lambda llm: llm.rerank("a", None),  # type: ignore[arg-type]
    "normalize": lambda llm: llm.embed("a", normalize="x"),  # type: ignore[arg-type]
    "prefix caching": lambda llm: llmcore.LLM(llm.model, enable_prefix_caching="x"),  # type: ignore[arg-type]
    "stop ids": lambda llm: SamplingParams(stop_token_ids=np.array(1)),  # type: ignore[arg-type]
    "ignore_eos": lambda llm: llmcore.BeamSearchParams(beam_width=1, max_tokens=1, ignore_eos="no"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("timeout", [-1, float("nan"), "x", np.array([1, 2])])
def test_wrong_timeouts(bare: llmcore.LLM, timeout: Any) -> None:
    request = bare.submit([1], SamplingParams(max_tokens=1))
    with pytest.raises(llmcore.ArgumentError, match="timeout"):
        request.result(timeout)
    assert request.result(10**400) == request.result()  # longer than any float says


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_the_wrong_type_are_named(tiny: llmcore.LLM, name: str) -> None:
    with pytest.raises(llmcore.ArgumentError) as caught:
        WRONG[name](tiny)
    assert len(str(caught.value)) < 300


def test_a_refused_llm_leaves_no_larger_plan() -> None:
    with llmcore.load("tiny", progress=False) as model:
        with llmcore.LLM(model, max_batch_size=1, max_model_len=16):
            usage = model.memory_usage()
            limit = usage["total"] + 1_000_000
        with pytest.raises(llmcore.OutOfMemoryError, match="smaller max_batch_size"):
            llmcore.LLM(model, max_batch_size=4096, max_memory=limit)
        with llmcore.LLM(model, max_batch_size=1, max_memory=limit):
            assert model.memory_usage()["activations"] == usage["activations"]


def test_max_memory_counts_the_guessing_model() -> None:
    with llmcore.load("tiny", progress=False) as model, random_model(model.spec, "int8") as draft:
        both = (model, draft)
        with llmcore.LLM(model, speculative=draft):
            limit = sum(one.memory_usage()["total"] - one.memory_usage()["kv_cache"] for one in both)
            limit += 100 * sum(kv_bytes_per_page(one.spec, one.kv_dtype) for one in both)
            assert sum(one.memory_usage()["total"] for one in both) > limit
        with llmcore.LLM(model, max_memory=limit, speculative=draft):
            assert model.memory_usage()["total"] + draft.memory_usage()["total"] <= limit
        with pytest.raises(llmcore.OutOfMemoryError, match="max_memory") as caught:
            llmcore.LLM(model, max_memory=1_000_000)
        assert caught.value.available == 1_000_000 < caught.value.needed
