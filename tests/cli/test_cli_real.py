"""The commands with the real engine and the built-in model, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from llmcore.runtime import get_num_threads

LLMCORE = [sys.executable, "-m", "llmcore"]


def llmcore(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LLMCORE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
        check=False,
    )


def test_run_writes_the_same_text_each_time() -> None:
    first, second = (llmcore("run", "--max-tokens", "24", "The prince") for _ in range(2))
    assert first.returncode == 0
    assert first.stderr.startswith("24 tokens (length) in ")
    assert len(first.stdout.split()) > 8
    assert first.stdout == second.stdout


def test_stream_and_json_agree() -> None:
    options = ("--max-tokens", "24", "--seed", "3", "The prince")
    text = llmcore("run", "-q", *options).stdout
    report = json.loads(llmcore("run", "--json", *options).stdout)
    assert report["outputs"][0]["text"] + "\n" == text
    assert report["outputs"][0]["finish_reason"] == "length"
    assert len(report["outputs"][0]["token_ids"]) == 24


def test_stop_string() -> None:
    options = ("--temperature", "0", "--max-tokens", "40", "The prince")
    whole = llmcore("run", "-q", *options).stdout
    word = whole.split()[4]
    assert llmcore("run", "-q", "--stop", word, *options).stdout == whole[: whole.index(word)] + "\n"


def test_prompt_from_a_pipe() -> None:
    piped = llmcore("run", "-q", "--max-tokens", "8", stdin="The prince\n")
    assert piped.stdout == llmcore("run", "-q", "--max-tokens", "8", "The prince").stdout


def test_tokenize_and_back() -> None:
    text = "The prince said: ünd 🙂"
    ids = llmcore("tokenize", "--ids", "--no-special-tokens", text).stdout
    assert llmcore("tokenize", "--decode", "-", stdin=ids).stdout == text + "\n"


def test_tokenize_shows_parts_of_characters() -> None:
    report = json.loads(llmcore("tokenize", "--json", "--no-special-tokens", "🙂").stdout)
    assert "".join(report["pieces"]) == "\\xf0\\x9f\\x99\\x82"
    assert (report["tokens"], report["characters"], report["bytes"]) == (4, 1, 4)


def test_bench_on_the_built_in_model(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcore.runtime.measure_read_bandwidth", lambda threads, seconds: 40e9)  # it takes seconds
    options = "--prompt-tokens 32 --decode-tokens 8 --rounds 1 --batch-size 2"
    report = run("bench", "--json", *options.split()).json
    assert report["prefill_tokens_per_second"] > report["decode_tokens_per_second"] > 0
    assert 1e6 < report["bytes_per_token"] <= report["weight_bytes"]
    assert report["threads"] == get_num_threads()


def test_missing_model_is_one_line() -> None:
    done = llmcore("run", "no/such/model", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "llmcore: error: no/such/model: no such file or folder, and no model of this name in the Hugging Face cache\n"
    )


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_stops_at_once() -> None:
    command = [*LLMCORE, "run", "--ignore-eos", "--max-tokens", "400", "The prince"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # the first text
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - start < 5
    assert err == b"\nllmcore: interrupted\n"
