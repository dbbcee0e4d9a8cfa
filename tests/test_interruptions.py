"""What comes in between: Ctrl-C anywhere, garbage collection, calls from inside of calls, forks and the end of Python.

The engine has a thread of its own, so that none of these may stop it, or take a token from somebody else.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import llmcore
from llmcore import ArgumentError, BusyError, ClosedError, LlmcoreError, SamplingParams

PROMPT = "The prince"
GREEDY = SamplingParams(temperature=0, max_tokens=8)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
Row = npt.NDArray[np.float32]


@pytest.fixture
def llm() -> Iterator[llmcore.LLM]:
    with llmcore.LLM("tiny", progress=False) as one:
        yield one


@contextmanager
def interrupted(
    seconds: float, handler: Callable[[int, Any], None] = signal.default_int_handler, again: float = 0.0
) -> Iterator[None]:
    """KeyboardInterrupt, or what else a signal's handler does, after so long, wherever the main thread is."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timer signals here")
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, again)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def all_free(llm: llmcore.LLM) -> bool:
    stats = llm.stats()
    busy = stats["requests_running"] + stats["requests_waiting"]
    return busy == 0 and stats["kv_pages_free"] == stats["kv_pages_total"]


def test_interrupts_take_nothing_from_other_threads(llm: llmcore.LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=40, ignore_eos=True, logprobs=1)
    expected = llm.generate(PROMPT, params)[0].token_ids
    answers: list[list[int]] = []
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            answers.append(llm.generate(PROMPT, params)[0].token_ids)

    others = [threading.Thread(target=work) for _ in range(2)]
    for thread in others:
        thread.start()
    rng, interrupts = random.Random(0), 0
    try:
        end = time.monotonic() + 500
        while (interrupts < 100 or len(answers) < 6) and time.monotonic() < end:
            try:
                with interrupted(rng.uniform(0.0005, 0.02)):
                    llm.generate([PROMPT] * 4, LONG)
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        enough.set()
    for thread in others:
        thread.join(60)
        assert not thread.is_alive()
    assert interrupts >= 100
    assert len(answers) >= 6
    assert all(answer == expected for answer in answers)
    assert all_free(llm)


def test_interrupted_embeddings_leave_nothing_behind(llm: llmcore.LLM) -> None:
    """Nor does one that is still being handled keep its pages or its thread."""
    rng, interrupts = random.Random(0), 0
    texts = [[1, 2, 3]]
    expected = llm.embed(texts)
    while interrupts < 300:
        try:
            with interrupted(rng.uniform(0.0002, 0.002)):
                while True:
                    llm.embed(texts)
        except KeyboardInterrupt:
            interrupts += 1
            assert (llm.embed(texts) == expected).all()
            assert all_free(llm)


def test_an_interrupt_in_a_processor_is_the_callers(llm: llmcore.LLM) -> None:
    def slow(output: list[int], row: Row) -> None:
        time.sleep(0.005)

    with pytest.raises(KeyboardInterrupt), interrupted(0.1):
        llm.generate([PROMPT] * 4, SamplingParams(max_tokens=400, ignore_eos=True, logits_processors=[slow]))
    assert all_free(llm)


def test_what_a_processor_raises_is_its_requests_error(llm: llmcore.LLM) -> None:
    def leave(output: list[int], row: Row) -> None:
        raise SystemExit(3)

    with pytest.raises(ArgumentError, match="SystemExit"):
        llm.generate(PROMPT, SamplingParams(logits_processors=[leave]))
    assert llm.generate(PROMPT, GREEDY)[0].finish_reason == "length"


def test_a_processor_cannot_resize_its_row(llm: llmcore.LLM) -> None:
    def shrink(output: list[int], row: Row) -> None:
        row.resize(5, refcheck=False)

    def shrink_below(output: list[int], row: Row) -> None:
        assert isinstance(row.base, np.ndarray)
        row.base.resize(5, refcheck=False)

    for bad in (shrink, shrink_below):
        with pytest.raises(LlmcoreError, match="resize"):
            llm.generate(PROMPT, SamplingParams(logits_processors=[bad]))


def test_calls_from_inside_of_a_step(llm: llmcore.LLM) -> None:
    request = llm.submit(PROMPT, LONG)
    other = llmcore.LLM(llm.model, max_batch_size=1)
    inside: list[Callable[[], Any]] = [
        lambda: other.generate(PROMPT),
        lambda: other.embed(PROMPT),
        lambda: llmcore.LLM(llm.model),
        request.result,
        lambda: llm.generate(PROMPT),
        lambda: next(llm.stream(PROMPT)),
        lambda: llm.submit(PROMPT),
        lambda: llm.embed(PROMPT),
        lambda: llm.model.forward([1, 2]),
        llm.close,
    ]

    def calling(call: Callable[[], Any]) -> Callable[[list[int], Row], None]:
        return lambda output, row: call()

    for call in inside:
        with pytest.raises(ArgumentError, match="BusyError") as caught:
            llm.generate(PROMPT, SamplingParams(max_tokens=2, logits_processors=[calling(call)]))
        assert isinstance(caught.value.__cause__, BusyError)
    seen = []

    def allowed(output: list[int], row: Row) -> None:
        seen.append(llm.stats()["requests_running"])
        request.cancel()

    llm.generate(PROMPT, SamplingParams(max_tokens=2, logits_processors=[allowed]))
    assert len(seen) == 2
    assert len(other.generate(PROMPT, GREEDY)[0].token_ids) == 8
    other.close()
    assert request.result(500).finish_reason in ("abort", "length")
    assert all_free(llm)


def test_a_probe_that_asks_its_own_model(llm: llmcore.LLM) -> None:
    model = llm.model

    for call in (lambda: model.core.forward([np.array([1], np.int32)], "f32"), lambda: llm.generate(PROMPT, GREEDY)):
        with pytest.raises(BusyError):
            model.core.forward([np.array([1, 2], np.int32)], "f32", probe=lambda name, values, call=call: call())
    assert model.forward([1, 2]).shape[0] == 2


def test_calls_from_a_signals_handler(llm: llmcore.LLM) -> None:
    """While its thread computes, or waits for another that does: what the engine would wait for is refused."""
    request = llm.submit(PROMPT, LONG)
    cancelled = llm.submit(PROMPT, LONG)
    waits: list[Callable[[], Any]] = [
        lambda: llm.generate(PROMPT, GREEDY),
        lambda: llm.embed(PROMPT),
        lambda: llm.submit(PROMPT),
    ]
    refused, counted = [], []

    def handler(number: int, frame: Any) -> None:
        counted.append(llm.stats()["kv_pages_total"])
        cancelled.cancel()
        if llm.model.core.entered:
            for call in (*waits, lambda: llm.model.forward([1])):
                with pytest.raises(BusyError):
                    call()
                refused.append(call)

    long = list(range(1, 400))
    calls: list[Callable[[], Any]] = [lambda: llm.embed([long] * 8), lambda: llm.model.forward([long] * 8)]
    for call in calls:
        refused.clear()
        with interrupted(0.01, handler, again=0.03):
            while len(refused) < 12:
                call()
    assert cancelled.done
    assert len(counted) >= 6
    request.cancel()
    assert len(llm.generate(PROMPT, GREEDY)[0].token_ids) == 8
    assert all_free(llm)


def test_what_waits_for_the_model_can_be_left(llm: llmcore.LLM) -> None:
    """While another thread is in the middle of a forward pass: by Ctrl-C, or by cancel()."""
    model = llm.model
    expected = llm.generate(PROMPT, GREEDY)[0].token_ids
    held, go_on = threading.Event(), threading.Event()

    def probe(name: str, values: Row) -> None:
        held.set()
        go_on.wait(60)

    ids = [np.array([1], np.int32)]
    holder = threading.Thread(target=lambda: model.core.forward(ids, "f32", probe=probe))
    holder.start()
    try:
        assert held.wait(60)
        request = llm.submit(PROMPT, LONG)
        for call in (lambda: model.forward([1, 2]), lambda: llmcore.LLM(model), lambda: llm.embed(PROMPT)):
            with pytest.raises(KeyboardInterrupt), interrupted(0.2):
                call()
        assert not request.done
        request.cancel()
        assert request.result(0).finish_reason == "abort"
        later = llm.submit(PROMPT, GREEDY)
    finally:
        go_on.set()
        holder.join()
    assert later.result(500).token_ids == expected
    assert llm.embed(PROMPT).shape[0] == 1
    assert all_free(llm)


def test_an_exception_in_a_block_ends_what_runs() -> None:
    llm = llmcore.LLM("tiny", progress=False)
    requests = []

    def fail() -> None:
        with llm:
            requests.append(llm.submit(PROMPT, LONG))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert requests[0].result(500).finish_reason in ("abort", "length")
    with pytest.raises(ClosedError):
        llm.generate(PROMPT)


def test_streams_that_are_left_to_the_garbage_collector(llm: llmcore.LLM) -> None:
    class Box:
        me: Box
        stream: Any

    def leave() -> None:
        box = Box()
        box.me = box
        box.stream = llm.stream(PROMPT, LONG)
        next(box.stream)

    def collect(output: list[int], row: Row) -> None:
        gc.collect()

    for _ in range(20):
        leave()
        llm.generate(PROMPT, SamplingParams(max_tokens=4, logits_processors=[collect]))
    gc.collect()
    assert all_free(llm)


def test_streams_that_are_never_read(llm: llmcore.LLM) -> None:
    stream = llm.stream(PROMPT, LONG)
    stream.close()
    assert next(stream, None) is None
    llm.stream(PROMPT, LONG)
    assert all_free(llm)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_anew(llm: llmcore.LLM) -> None:
    expected = llm.submit(PROMPT, GREEDY).result(500).token_ids

    def in_child(check: Callable[[], bool]) -> bool:
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if check() else 1)
            except BaseException:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert in_child(lambda: llm.submit(PROMPT, GREEDY).result(500).token_ids == expected)
    assert in_child(lambda: llm.generate(PROMPT, GREEDY)[0].token_ids == expected)
    row = llm.embed(PROMPT)
    assert in_child(lambda: bool((llm.embed(PROMPT) == row).all()))
    queued = llmcore.AsyncLLM("tiny", progress=False)
    events = asyncio.new_event_loop()
    events.run_until_complete(queued.__aenter__())
    assert events.run_until_complete(queued.generate(PROMPT, GREEDY)).token_ids == expected
    assert in_child(lambda: asyncio.run(queued.generate(PROMPT, GREEDY)).token_ids == expected)
    events.run_until_complete(queued.__aexit__(None, None, None))
    events.close()
    request = llm.submit(PROMPT, LONG)

    def refused() -> bool:
        for call in (request.result, lambda: llm.generate(PROMPT)):
            with pytest.raises(ClosedError, match="forked"):
                call()
        return True

    assert in_child(refused)

    def model_refused() -> bool:
        for call in (lambda: llm.model.forward([1, 2]), lambda: llmcore.LLM(llm.model)):
            with pytest.raises(ClosedError, match="forked"):
                call()
        return True

    # Inside of a step the model is somebody's: here for sure, while a logits processor holds it up.
    held, go_on = threading.Event(), threading.Event()

    def hold(output: list[int], row: Any) -> None:
        held.set()
        go_on.wait(60)

    slow = llm.submit(PROMPT, replace(GREEDY, logits_processors=[hold]))
    assert held.wait(60)
    assert in_child(model_refused)
    go_on.set()
    assert slow.result(500).token_ids == expected
    assert len(request.result(500).token_ids) == 400


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory that the system keeps")
def test_a_request_for_which_memory_is_short_leaves_nothing_behind() -> None:
    code = """
import resource, llmcore, numpy as np
from llmcore.model import random_model
from llmcore.models.spec import DecoderSpec
sizes = dict(hidden_size=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, intermediate_size=32)
context = 1 << 22
spec = DecoderSpec(model_type="x", **sizes, vocab_size=300, max_position_embeddings=context, rope_inv_freq=(1.0,) * 8)
llm = llmcore.LLM(random_model(spec), max_batch_size=2, kv_dtype="int4", kv_cache_bytes=context * 40)
llm.generate([1, 2], llmcore.SamplingParams(max_tokens=2))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), resource.RLIM_INFINITY))
request = llm.submit([1, 2], llmcore.SamplingParams(n=16, max_tokens=context, ignore_eos=True))
try:
    request.result(100)
    raise SystemExit("it was not short")
except llmcore.OutOfMemoryError:
    pass
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
stats = llm.stats()
assert stats["requests_running"] + stats["requests_waiting"] == 0, stats
llm.generate([1, 2], llmcore.SamplingParams(max_tokens=2))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(llmcore.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=300, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]


EXITS = {
    "submitted": """
llm = llmcore.LLM("tiny", progress=False)
requests = [llm.submit("The prince", llmcore.SamplingParams(max_tokens=400, ignore_eos=True)) for _ in range(8)]
""",
    "threads": """
llm = llmcore.LLM("tiny", progress=False)
model = llmcore.load("tiny", progress=False)
def forever(call):
    while True: call()
for call in (lambda: llm.generate("The prince"), lambda: model.forward(list(range(1, 300))),
             lambda: model.tokenizer.encode("hello there world " * 2000)):
    threading.Thread(target=forever, args=(call,), daemon=True).start()
""",
}


@pytest.mark.parametrize("name", EXITS)
@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1])
def test_python_ends_while_work_is_done(name: str, seconds: float) -> None:
    code = f"import threading, time, llmcore\n{EXITS[name]}\ntime.sleep({seconds})"
    environment = os.environ | {"PYTHONPATH": str(Path(llmcore.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]


POOLS = {
    "two at work": """
def work():
    while not enough.is_set():
        right.append(np.array_equal(ops.matmul(x, w), expected))

others = [threading.Thread(target=work) for _ in range(2)]
for thread in others: thread.start()
for i in range(2000):
    llmcore.set_num_threads(1 + i % 4)
    if i % 8 == 0: time.sleep(0.0002)
enough.set()
for thread in others: thread.join()
""",
    "forks": """
def work():
    for i in itertools.count():
        if enough.is_set(): break
        llmcore.set_num_threads(16 + i % 2)
        ops.matmul(x, w)

other = threading.Thread(target=work)
other.start()
for _ in range(200):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if np.array_equal(ops.matmul(x, w), expected) else 1)
    right.append(os.waitpid(child, 0)[1] == 0)
    if not right[-1]: break
enough.set()
other.join()
""",
}


@pytest.mark.parametrize("name", POOLS)
def test_the_number_of_threads_is_set_meanwhile(name: str) -> None:
    if name == "forks" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    code = f"""
import itertools, os, signal, threading, time, llmcore, numpy as np
from llmcore import ops
x = np.ones((4, 64), np.float32)
w = ops.quantize(np.ones((256, 64), np.float32), "int8")
expected = ops.matmul(x, w)
enough, right = threading.Event(), []
{POOLS[name]}
assert right and all(right)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(llmcore.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, timeout=300, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]
