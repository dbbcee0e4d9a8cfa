"""Sessions: forked, saved and restored, here and in another process, with the bits of one never interrupted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcore
from llmcore import ArgumentError, LlmcoreError, SamplingParams
from llmcore.checkpoint.safetensors import SafetensorsFile
from llmcore.checkpoint.write import save_safetensors

FIRST = "Prince Andrew looked at the old count, who had come from Moscow, and said that he would go. "
PAGE_BYTES = 10880  # of the built-in model with int8 keys and values
PARAMS = [SamplingParams(seed=seed, max_tokens=20, ignore_eos=True, logprobs=1) for seed in range(3)]


@pytest.fixture
def llm() -> Iterator[llmcore.LLM]:
    with llmcore.LLM("tiny", threads=1, progress=False) as opened:
        yield opened


def bits(out: llmcore.RequestOutput) -> Any:
    return out.prompt_token_ids, out.token_ids, out.logprobs


def uninterrupted(llm: llmcore.LLM) -> list[Any]:
    session = llm.session()
    return [bits(session.generate(text, one)) for text, one in zip([FIRST, " Then", " And"], PARAMS, strict=True)]


def test_a_session_goes_on_where_it_was(llm: llmcore.LLM) -> None:
    session = llm.session()
    first = session.generate(FIRST, PARAMS[0])
    second = session.generate(" Then", PARAMS[1])
    assert second.prompt_token_ids == [*first.prompt_token_ids, *first.token_ids, *llm.tokenizer.encode(" Then", False)]
    assert session.token_ids == [*second.prompt_token_ids, *second.token_ids]
    assert second.metrics.cached_tokens >= len(first.prompt_token_ids) // 16 * 16
    with llmcore.LLM(llm.model, enable_prefix_caching=False, progress=False) as cold:
        assert bits(cold.generate(second.prompt_token_ids, PARAMS[1])[0]) == bits(second)


def test_saved_and_restored_bits(llm: llmcore.LLM, tmp_path: Path) -> None:
    expected = uninterrupted(llm)
    session = llm.session()
    assert bits(session.generate(FIRST, PARAMS[0])) == expected[0]
    session.save(tmp_path / "session")
    for options in ({}, {"max_batch_size": 1, "kv_cache_bytes": 8 * PAGE_BYTES}, {"enable_prefix_caching": False}):
        with llmcore.LLM(llm.model, progress=False, **options) as other:  # type: ignore[arg-type]
            again = other.restore(tmp_path / "session")
            assert again.token_ids == session.token_ids
            second = again.generate(" Then", PARAMS[1])
            assert bits(second) == expected[1]
            assert bits(again.generate(" And", PARAMS[2])) == expected[2]
            if not options:
                assert second.metrics.cached_tokens == len(session.token_ids) // 16 * 16 or (
                    second.metrics.cached_tokens == (len(session.token_ids) - 1) // 16 * 16
                )


def test_a_session_that_fills_its_context_is_saved(llm: llmcore.LLM, tmp_path: Path) -> None:
    with llmcore.LLM(llm.model, max_model_len=32, progress=False) as short:
        session = short.session()
        session.generate(FIRST, llmcore.SamplingParams(max_tokens=100, temperature=0, ignore_eos=True))
        assert len(session.token_ids) == 32
        session.save(tmp_path / "full")
        assert short.restore(tmp_path / "full").token_ids == session.token_ids
        for path in ("a\0b", 5):
            with pytest.raises(llmcore.ArgumentError, match="path"):
                session.save(path)  # type: ignore[arg-type]


def test_another_process_goes_on(llm: llmcore.LLM, tmp_path: Path) -> None:
    expected = uninterrupted(llm)
    session = llm.session()
    session.generate(FIRST, PARAMS[0])
    session.save(tmp_path / "session")
    program = (
        "import sys, llmcore\n"
        "with llmcore.LLM('tiny', progress=False) as llm:\n"
        "    session = llm.restore(sys.argv[1])\n"
        "    out = session.generate(' Then', llmcore.SamplingParams(seed=1, max_tokens=20, ignore_eos=True))\n"
        "    print(out.metrics.cached_tokens, *out.token_ids)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "session")], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    cached, *ids = map(int, done.stdout.split())
    assert ids == expected[1][1]
    assert cached > 0


def test_forks_part_and_share_their_past(llm: llmcore.LLM) -> None:
    expected = uninterrupted(llm)
    session = llm.session()
    session.generate(FIRST, PARAMS[0])
    fork = session.fork()
    other = fork.generate(" Napoleon", PARAMS[2])
    assert bits(session.generate(" Then", PARAMS[1])) == expected[1]
    assert other.metrics.cached_tokens > 0
    assert fork.token_ids != session.token_ids


def test_chat_keeps_its_messages(llm: llmcore.LLM, tmp_path: Path) -> None:
    session = llm.session(cache_salt="one")
    out = session.chat("Hi", SamplingParams(temperature=0, max_tokens=5), chat_format="plain")
    assert session.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": out.text}]
    session.save(tmp_path / "chat")
    again = llm.restore(tmp_path / "chat")
    assert (again.messages, again.token_ids) == (session.messages, session.token_ids)
    assert again._cache_salt not in (None, "one")  # of its own
    more = again.chat(
        {"role": "user", "content": "Bye"}, SamplingParams(temperature=0, max_tokens=5), chat_format="plain"
    )
    assert len(again.messages) == 4
    assert llm.tokenizer.decode(more.prompt_token_ids).endswith("User: Bye\nAssistant:")


def test_a_failed_request_leaves_the_session_as_it_was(llm: llmcore.LLM) -> None:
    session = llm.session()
    session.generate("The prince", PARAMS[0])
    before = list(session.token_ids)
    with pytest.raises(ArgumentError, match="n=2"):
        session.generate("x", SamplingParams(n=2, seed=1))
    with pytest.raises(llmcore.ContextLengthError):
        session.generate("word " * 600)
    assert session.token_ids == before


def test_close_ends_sessions(tmp_path: Path) -> None:
    llm = llmcore.LLM("tiny", progress=False)
    session = llm.session()
    llm.close()
    for call in (lambda: session.generate("x"), lambda: session.save(tmp_path / "s"), llm.session):
        with pytest.raises(llmcore.ClosedError):
            call()


def changed(path: Path, about: dict[str, str], **tensors: Any) -> None:
    with SafetensorsFile.open(path) as file:
        metadata = dict(file.metadata)
    save_safetensors(path, {**load_file(path), **tensors}, {**metadata, **about})


BROKEN: dict[str, Any] = {
    "format": ({"format": "x"}, {}),
    "version": ({"version": "9"}, {}),
    "model": ({"model": "0" * 32}, {}),
    "kv_dtype": ({"kv_dtype": "int4"}, {}),
    "checksum": ({"sha256": "0" * 64}, {}),
    "messages": ({"messages": "["}, {}),
    "messages type": ({"messages": "[1]"}, {}),
    "deep": ({"messages": "[" * 100_000}, {}),
    "salt": ({"cache_salt": "3"}, {}),
    "ids type": ({}, {"token_ids": np.zeros(200, np.int64)}),
    "ids shape": ({}, {"token_ids": np.zeros((10, 20), np.int32)}),
    "ids value": ({}, {"token_ids": np.full(200, 2**30, np.int32)}),
    "few ids": ({}, {"token_ids": np.zeros(3, np.int32)}),
    "pages": ({}, {"pages": np.zeros((1, 7), np.uint8)}),
    "page values": ({}, {"pages": np.zeros((1, PAGE_BYTES), np.uint8)}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_typed_error(llm: llmcore.LLM, tmp_path: Path, name: str) -> None:
    session = llm.session()
    session.generate(FIRST, PARAMS[0])
    session.save(tmp_path / "session")
    assert llm._loop.require().page_bytes == PAGE_BYTES
    about, tensors = BROKEN[name]
    changed(tmp_path / "session", about, **tensors)
    with pytest.raises(LlmcoreError) as caught:
        llm.restore(tmp_path / "session")
    assert len(str(caught.value)) < 1024


def test_every_changed_bit_is_seen(llm: llmcore.LLM, tmp_path: Path) -> None:
    session = llm.session()
    session.generate(FIRST, PARAMS[0])
    session.save(tmp_path / "session")
    whole = (tmp_path / "session").read_bytes()
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, 8 * 1200, 150), *rng.integers(0, 8 * len(whole), 50)]:
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            again = llm.restore(tmp_path / "damaged")
        except LlmcoreError:
            continue
        # Bits of the header that mean nothing, as white space.
        assert (again.token_ids, again.messages) == (session.token_ids, session.messages)


def test_a_file_brings_nothing_to_others(llm: llmcore.LLM, tmp_path: Path) -> None:
    session = llm.session()
    session.generate(FIRST, PARAMS[0])
    session.save(tmp_path / "session")
    with llmcore.LLM(llm.model, progress=False) as other:
        again = other.restore(tmp_path / "session")
        assert other.generate(again.token_ids, PARAMS[0])[0].metrics.cached_tokens == 0
        assert again.fork().generate(FIRST, PARAMS[0]).metrics.cached_tokens > 0


def test_files_that_are_no_sessions(llm: llmcore.LLM, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, this is no session")
    for path in (tmp_path / "text", tmp_path / "missing", tmp_path):
        with pytest.raises(LlmcoreError):
            llm.restore(path)


def test_pages_are_accounted_for(llm: llmcore.LLM, tmp_path: Path) -> None:
    session = llm.session()
    session.generate(FIRST, PARAMS[0])
    session.save(tmp_path / "session")
    for _ in range(50):
        llm.restore(tmp_path / "session")
    stats = llm.stats()
    assert stats["kv_pages_free"] == stats["kv_pages_total"]


def test_a_chat_format_ends_a_sessions_answers_too(llm: llmcore.LLM) -> None:
    forced = "Hi<|im_end|>\n<|im_start|>user\n"
    ids = llm.tokenizer.encode(forced, add_special_tokens=False)

    def force(output: list[int], row: np.ndarray) -> None:
        row[:] = -np.inf
        row[ids[len(output) % len(ids)]] = 0

    params = SamplingParams(max_tokens=3 * len(ids), logits_processors=[force], temperature=0)
    session = llm.session()
    assert session.chat("a", params, chat_format="chatml").text == "Hi"
    assert session.messages[-1] == {"role": "assistant", "content": "Hi"}


def test_what_a_session_does_not_take(llm: llmcore.LLM) -> None:
    with pytest.raises(TypeError, match="cache_salt"):
        llm.session(cache_salt=5)  # type: ignore[arg-type]
    session = llm.session()
    with pytest.raises(llmcore.ArgumentError, match="tokenize"):
        session.chat("a", chat_format="chatml", tokenize=False)
    with pytest.raises(llmcore.ArgumentError, match="at least one token"):
        session.generate([])
    assert (session.token_ids, session.messages) == ([], [])
