"""The commands with the real engine and the built-in model, in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmcore as llmcore_package
from llmcore.model import load
from llmcore.runtime import get_num_threads

Run = Callable[..., Any]
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


def test_stream_and_json_agree(run: Run) -> None:
    options = ("--max-tokens", "24", "--seed", "3", "The prince")
    text = run("run", *options).out
    report = run("run", "--json", *options).json
    assert report["outputs"][0]["text"] + "\n" == text
    assert report["outputs"][0]["finish_reason"] == "length"
    assert len(report["outputs"][0]["token_ids"]) == 24


def test_stop_string(run: Run) -> None:
    options = ("--temperature", "0", "--max-tokens", "40", "The prince")
    whole = run("run", *options).out
    word = whole.split()[4]
    assert run("run", "--stop", word, *options).out == whole[: whole.index(word)] + "\n"


def test_prompt_from_a_pipe(run: Run) -> None:
    piped = run("run", "--max-tokens", "8", stdin="The prince\n")
    assert piped.out == run("run", "--max-tokens", "8", "The prince").out


def test_several_answers_differ(run: Run) -> None:
    report = run("run", "--json", "--n", "3", "--temperature", "1", "--max-tokens", "8", "The prince").json
    assert len({output["text"] for output in report["outputs"]}) == 3


def test_logprobs_of_greedy_tokens_come_first(run: Run) -> None:
    rows = run("run", "--logprobs", "2", "--temperature", "0", "--max-tokens", "3", "The prince").out.splitlines()
    assert len(rows) == 3
    for row in rows:
        chosen, token, likeliest = re.split(r"  +", row)[:3]
        assert likeliest == f"{token} {float(chosen):.3f}"


def test_tokenize_and_back(run: Run) -> None:
    text = "The prince said: ünd 🙂"
    ids = run("tokenize", "--ids", "--no-special-tokens", text).out
    assert run("tokenize", "--decode", "-", stdin=ids).out == text + "\n"


def test_tokenize_takes_utf8_in_any_locale() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert llmcore("tokenize", "--ids", "café", **ascii_only).stdout == llmcore("tokenize", "--ids", "café").stdout


def test_tokenize_shows_parts_of_characters(run: Run) -> None:
    report = run("tokenize", "--json", "--no-special-tokens", "🙂").json
    assert "".join(report["pieces"]) == "\\xf0\\x9f\\x99\\x82"
    assert (report["tokens"], report["characters"], report["bytes"]) == (4, 1, 4)


def test_tokenize_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The prince\n", encoding="utf-8")
    from_file = run("tokenize", "--file", str(tmp_path / "text.txt"), "--count")
    assert int(from_file.out) == int(run("tokenize", "The prince\n", "--count").out)


def test_tokenize_keeps_special_tokens_text(run: Run) -> None:
    text = "<|end_of_text|>"
    assert int(run("tokenize", "--count", "--no-special-tokens", text).out) > 1
    assert int(run("tokenize", "--count", "--no-special-tokens", "--allow-special", text).out) == 1


@pytest.mark.parametrize("words", ["-1", "1.5", "x", "999999", "1 99999999999"])
def test_tokenize_decode_refuses_what_is_no_id(words: str, run: Run) -> None:
    result = run("tokenize", "--decode", "--", words)
    assert result.code == 2
    assert "takes token ids from 0 to " in result.err


def test_bench_on_the_built_in_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcore.runtime.measure_read_bandwidth", lambda threads, seconds: 40e9)  # it takes seconds
    options = "--prompt-tokens 32 --decode-tokens 8 --rounds 1 --batch-size 2"
    report = run("bench", "--json", *options.split()).json
    assert report["prefill_tokens_per_second"] > 0
    assert report["decode_tokens_per_second"] > 0
    assert 1e6 < report["bytes_per_token"] <= report["weight_bytes"]
    assert report["threads"] == get_num_threads()


def test_bench_behind_a_context(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcore.runtime.measure_read_bandwidth", lambda threads, seconds: 40e9)
    options = "--prompt-tokens 8 --decode-tokens 8 --rounds 1 --batch-size 2 --depth 64 --kv-dtype int8"
    report = run("bench", "--json", *options.split()).json
    spec = load("tiny", progress=False).spec
    values = 2 * spec.num_layers * spec.num_kv_heads  # keys and values: a byte for each dimension, and a float32 scale
    assert report["kv_bytes_per_step"] == 2 * 64 * values * (spec.head_dim + 4)
    assert (report["depth"], report["kv_dtype"]) == (64, "int8")


def test_quantize_and_plan(run: Run, tmp_path: Path) -> None:
    report = run("quantize", "tiny", "-o", str(tmp_path / "packed"), "--format", "none", "--json").json
    plain = run("run", "--temperature", "0", "--max-tokens", "12", "-q", "The prince").out
    assert (
        run("run", "-m", str(tmp_path / "packed"), "--temperature", "0", "--max-tokens", "12", "-q", "The prince").out
        == plain
    )
    planned = run("plan", str(tmp_path / "packed"), "--json", "--context", "64", "--kv-dtype", "int8").json
    assert planned["weights"] == report["weight_bytes"] <= report["file_bytes"]
    assert planned["total"] == planned["weights"] + planned["kv_cache"] + planned["activations"]
    again = run("quantize", "tiny", "-o", str(tmp_path / "packed"))
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    assert run("quantize", "tiny", "-o", str(tmp_path / "x")).code == 2  # it is int8 already
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context", "0"), "--context must be an integer of at least 1"),
        (("--context", "513"), "--context must be at most the model's 512 positions, got 513"),
        (("--batch-size", "0"), "--batch-size must be an integer of at least 1"),
        (("--threads", "0"), "--threads must be an integer from 1 to 1024, got 0"),
        (("--context", "9" * 400), "argument --context: must be an integer of 32 bits, got '9999"),
    ],
)
def test_plan_refuses_what_no_model_could_do(arguments: tuple[str, ...], message: str, run: Run) -> None:
    result = run("plan", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"llmcore: error: {message}")


def test_quantize_refuses_an_immense_calibration(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The prince")
    options = ("--format", "int4", "--calibrate", str(tmp_path / "text.txt"), "--calibration-tokens", "9" * 20)
    result = run("quantize", "tiny", "-o", str(tmp_path / "packed"), *options)
    assert result.code == 2
    assert "argument --calibration-tokens: must be an integer of 32 bits" in result.err


@pytest.mark.parametrize(
    "options",
    [
        "--group-size 32",
        "--head int8",
        "--asymmetric",
        "--double-quant",
        "--scale mse",
        "--skip lm_head",
        "--calibrate x",
    ],
)
def test_quantize_as_stored_refuses_how_to_quantise(options: str, run: Run, tmp_path: Path) -> None:
    result = run("quantize", "tiny", "-o", str(tmp_path / "packed"), "--format", "none", *options.split())
    assert result.code == 2
    assert f"{options.split()[0]} needs a format to quantise to" in result.err
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("arguments", [("run", "x"), ("plan",), ("inspect",), ("bench",)])
def test_model_that_is_quantised_already_names_the_option(arguments: tuple[str, ...], run: Run) -> None:
    result = run(*arguments, "--quantize", "int4")
    assert result.code == 2
    assert "keeps its exact values: load it without quantize (llmcore quantize: --format none)\n" in result.err


def test_weights_are_no_tokenizer(run: Run) -> None:
    weights = Path(llmcore_package.__file__).parent / "assets/tiny/model.safetensors"
    result = run("tokenize", "-m", str(weights), "hi")
    assert result.err == (
        "llmcore: error: model.safetensors: not a tokenizer: neither JSON, nor ranks, nor a SentencePiece model\n"
    )


def test_missing_model_is_one_line() -> None:
    done = llmcore("run", "no/such/model", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "llmcore: error: no/such/model: no such file or folder, and no model of this name in the Hugging Face cache\n"
    )


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_stops_at_once() -> None:
    command = [*LLMCORE, "run", "--ignore-eos", "--max-tokens", "400", "The prince"]
    for _ in range(5):  # on a busy machine the text may be there before it is stopped
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)  # the first text
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=300)
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert err == b"\nllmcore: interrupted\n"
