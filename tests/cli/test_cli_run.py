"""llmcore run: where model and prompt come from, and what is printed where."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import Engine, Terminal

from llmcore.cli._arguments import is_checkpoint

Run = Callable[..., Any]


def prompt(engine: Engine) -> Any:
    assert len(engine.requests) == 1
    return engine.requests[0][0]


def model(engine: Engine) -> str:
    assert len(engine.loads) == 1
    return engine.loads[0][0]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


# --- model and prompt ---


def test_one_word_is_the_prompt(run: Run, engine: Engine) -> None:
    assert run("run", "The prince").code == 0
    assert (model(engine), prompt(engine)) == ("tiny", "The prince")


def test_two_words_are_model_and_prompt(run: Run, engine: Engine) -> None:
    run("run", "some/model", "The prince")
    assert (model(engine), prompt(engine)) == ("some/model", "The prince")


def test_model_as_an_option(run: Run, engine: Engine) -> None:
    run("run", "tiny", "-m", "some/model")
    assert (model(engine), prompt(engine)) == ("some/model", "tiny")


def test_prompt_from_a_pipe_without_its_last_newline(run: Run, engine: Engine) -> None:
    run("run", stdin="Line one\n\nline three\n")
    assert prompt(engine) == "Line one\n\nline three"


def test_dash_reads_standard_input(run: Run, engine: Engine) -> None:
    run("run", "some/model", "-", stdin="piped\n")
    assert (model(engine), prompt(engine)) == ("some/model", "piped")


def test_a_checkpoint_alone_takes_its_prompt_from_the_pipe(run: Run, engine: Engine, checkpoint: str) -> None:
    run("run", checkpoint, stdin="piped")
    assert (model(engine), prompt(engine)) == (checkpoint, "piped")


def test_prompt_given_beats_the_pipe(run: Run, engine: Engine) -> None:
    run("run", "given", stdin="piped")
    assert prompt(engine) == "given"


def test_options_between_the_words(run: Run, engine: Engine) -> None:
    assert run("run", "some/model", "--max-tokens", "5", "The prince").code == 0
    assert (model(engine), prompt(engine)) == ("some/model", "The prince")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), None, 'no text: write llmcore run [MODEL] "some text"'),
        (("tiny",), None, "no text: write"),
        ((), "", "standard input is empty"),
        (("a", "b", "c"), None, "too many words (3): put the text in quotes"),
        (("-m", "x", "a", "b"), None, "too many words (2)"),
        (("-",), b"\xff", "standard input is not UTF-8 (byte 0)"),
        (("caf\udce9",), None, "the text is not UTF-8 (byte 3)"),
        (("-m", "x", "\udce9"), None, "the text is not UTF-8 (byte 0)"),
        (("--stop", "caf\udce9", "y"), None, "--stop is not UTF-8 (byte 3)"),
        (("--chat", "--system", "caf\udce9", "y"), None, "--system is not UTF-8 (byte 3)"),
        (("--system", "x", "y"), None, "--system needs --chat"),
        (("--seed", "x", "y"), None, "--seed must be an integer"),
        (("--temperature", "-1", "y"), None, "temperature must be a number from 0"),
        (("--n", "0", "y"), None, "n must be an integer from 1 to 16"),
        (("--threads", "0", "y"), None, "--threads must be at least 1"),
        (("--max-tokens", "9" * 400, "y"), None, "argument --max-tokens: must be an integer of 32 bits, got 999"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], stdin: str | None, message: str, run: Run, engine: Engine) -> None:
    result = run("run", *arguments, stdin=stdin)
    assert (result.code, result.out, engine.loads) == (2, "", [])
    assert message in result.err.replace("'", "")
    assert result.err.count("\n") == 1


def test_a_text_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    assert is_checkpoint(str(tmp_path / "model.gguf"))
    assert is_checkpoint(str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert not is_checkpoint(str(tmp_path / "empty"))
    assert not is_checkpoint("nowhere/model.gguf")
    assert not is_checkpoint("a\0b")


# --- what is asked of the engine ---


def test_sampling_options(run: Run, engine: Engine) -> None:
    options = "--temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --repetition-penalty 1.2 --seed 9 --max-tokens 11"
    run("run", *options.split(), "--stop", "a", "--stop", "b", "--ignore-eos", "x")
    params = engine.requests[0][1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.repetition_penalty, params.seed, params.max_tokens) == (1.2, 9, 11)
    assert (params.stop, params.ignore_eos) == (("a", "b"), True)


def test_what_is_not_given_is_left_to_the_model(run: Run, engine: Engine) -> None:
    run("run", "x")
    params = engine.requests[0][1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (None, None, None, None)
    assert (params.repetition_penalty, params.seed, params.max_tokens) == (None, 0, 256)


def test_random_seed_differs(run: Run, engine: Engine) -> None:
    for _ in range(3):
        run("run", "--seed", "random", "x")
    assert len({params.seed for _, params in engine.requests}) > 1


def test_loading_options(run: Run, engine: Engine) -> None:
    run("run", "--quantize", "int4", "--threads", "2", "x")
    assert engine.loads[0][1] == {"quantize": "int4", "threads": 2, "progress": True}


def test_chat_template(run: Run, engine: Engine) -> None:
    run("run", "--chat", "--system", "Be brief.", "Hi")
    assert engine.model.tokenizer.decode(prompt(engine)) == "<system>Be brief.<user>Hi"


def test_chat_without_a_tokenizer(run: Run, engine: Engine) -> None:
    engine.model.tokenizer = None
    result = run("run", "--chat", "Hi")
    assert result.code == 1
    assert "this checkpoint has none" in result.err


def test_chat_without_a_template_names_the_options(run: Run, engine: Engine) -> None:
    engine.model.tokenizer.chat_template = None
    result = run("run", "--chat", "Hi")
    assert (result.code, engine.requests) == (1, [])
    assert "--chat needs a chat template, and this model has none" in result.err


# --- what is printed ---


def test_text_to_stdout_figures_to_stderr(run: Run, engine: Engine) -> None:
    result = run("run", "The prince")
    assert result.out == " was not amused.\n"
    assert re.fullmatch(r"3 tokens \(length\) in [\d.]+ s: first after [\d.]+ s, then [\d,.]+ tokens/s\n", result.err)


def test_quiet(run: Run, engine: Engine) -> None:
    assert run("run", "-q", "The prince").err == ""


def test_text_is_shown_as_it_comes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcore import cli

    shown = []

    class Stdout(Terminal):
        def flush(self) -> None:
            shown.append(self.getvalue())

    monkeypatch.setattr("sys.stdout", Stdout())
    cli.main(["run", "--no-echo", "-q", "The prince"])
    assert shown[:3] == [" was", " was not", " was not amused."]


def test_no_second_newline(run: Run, engine: Engine) -> None:
    engine.pieces = ("line\n",)
    assert run("run", "x").out == "line\n"


def test_echo(run: Run, engine: Engine) -> None:
    assert run("run", "--echo", "The prince").out == "The prince was not amused.\n"


@pytest.mark.parametrize(("no_color", "shown"), [("", "\x1b[2mThe prince\x1b[0m was"), ("1", "The prince was")])
def test_prompt_is_shown_dim_on_a_terminal(
    no_color: str, shown: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcore import cli

    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    stdout = Terminal()
    monkeypatch.setattr("sys.stdout", stdout)
    cli.main(["run", "The prince"])
    assert stdout.getvalue().startswith(shown)


def test_escape_sequences_reach_a_pipe_but_not_a_terminal(
    run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcore import cli

    engine.pieces = ("a\x1b[2Jb",)
    assert run("run", "x").out == "a\x1b[2Jb\n"
    stdout = Terminal()
    monkeypatch.setattr("sys.stdout", stdout)
    cli.main(["run", "--no-echo", "x"])
    assert stdout.getvalue() == "a␛[2Jb\n"


def test_several_answers(run: Run, engine: Engine) -> None:
    result = run("run", "--n", "2", "The prince")
    assert result.out == "--- 1 of 2 (length)\n was not amused.\n--- 2 of 2 (length)\n was not amused.\n"
    assert engine.requests[0][1].n == 2


def test_logprobs_are_a_row_a_token(run: Run, engine: Engine) -> None:
    result = run("run", "--logprobs", "1", "x")
    assert result.out.splitlines()[1] == "-0.2500  '\\x01'  '\\x01' -0.250  'A' -1.500"
    assert result.out.count("\n") == 3


def test_json(run: Run, engine: Engine) -> None:
    result = run("run", "--json", "--seed", "5", "The prince")
    assert result.err == ""
    assert result.json["outputs"] == [
        {"text": " was not amused.", "token_ids": [0, 1, 2], "finish_reason": "length", "logprobs": None}
    ]
    assert (result.json["model"], result.json["prompt"], result.json["seed"]) == ("tiny", "The prince", 5)
    assert result.json["prompt_token_ids"] == [1, 2]
    assert result.json["seconds"]["per_token"] == 0.25


def test_aborted_answer_fails(run: Run, engine: Engine) -> None:
    engine.finish = "abort"
    assert run("run", "x").code == 1


def test_ctrl_c_keeps_what_was_written(run: Run, engine: Engine) -> None:
    engine.fail = KeyboardInterrupt()
    result = run("run", "x")
    assert (result.code, result.out) == (130, " was\n")
    assert "interrupted" in result.err
    assert engine.closed == 1
