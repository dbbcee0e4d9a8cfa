"""The command line as a whole: finding commands, exit codes, errors in one line."""

from __future__ import annotations

import importlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import Engine

from llmcore import cli
from llmcore.cli import _terminal
from llmcore.errors import ArgumentError, CheckpointError


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


# --- commands ---


@pytest.mark.parametrize("name", cli.commands())
def test_every_command_has_a_help_with_examples(name: str, run: Callable[..., Any]) -> None:
    result = run(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: llmcore {name}")
    assert f"\n  llmcore {name}" in result.out.split("examples:")[1]


@pytest.mark.parametrize("name", cli.commands())
def test_every_command_says_what_it_does_in_a_line(name: str) -> None:
    text = importlib.import_module(f"llmcore.cli.{name}").HELP
    assert 10 < len(text) < 70
    assert "\n" not in text


def test_help_lists_the_commands(run: Callable[..., Any]) -> None:
    result = run("--help")
    assert result.code == 0
    for name in cli.commands():
        assert f"\n  {name} " in result.out


def test_no_command_is_wrong_usage(run: Callable[..., Any]) -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert "usage: llmcore COMMAND" in result.err


def test_version(run: Callable[..., Any]) -> None:
    from llmcore import __version__

    assert run("--version").out == f"llmcore {__version__}\n"


def test_unknown_command_suggests_the_nearest(run: Callable[..., Any]) -> None:
    result = run("inspekt")
    assert (result.code, result.out) == (2, "")
    assert "did you mean inspect?" in result.err


def test_a_new_command_is_one_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    (tmp_path / "sing.py").write_text(
        'HELP = "Sing a song"\ndef add_arguments(p): p.add_argument("what")\n'
        "def run(args): print(args.what); return 7\n"
    )
    (tmp_path / "_not_a_command.py").write_text("")
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    assert run("sing", "la").code == 7
    assert "sing" in run("--help").out
    assert "_not_a_command" not in run("--help").out


def test_only_the_chosen_command_is_imported() -> None:
    code = (
        "import sys; from llmcore.cli import main; main(['tokenize', '--help'])\n"
        "print([m for m in sys.modules if m.startswith('llmcore.cli.')], file=sys.stderr)"
    )
    assert (
        python(code).stderr
        == "['llmcore.cli._terminal', 'llmcore.cli._arguments', 'llmcore.cli._pieces', 'llmcore.cli.tokenize']\n"
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llmcore.cli import main; main(['--help'])\n"
        "sys.exit(','.join(set(sys.modules) & {'numpy', 'torch', 'jinja2', 'sentencepiece', 'llmcore._core'}))"
    )
    assert python(code).stderr == "\n"


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "llmcore", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("llmcore: error: ")


# --- errors ---


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    class Module:
        HELP = "Fail"

        def add_arguments(self, parser: Any) -> None:
            parser.add_argument("--number", type=int)

        def run(self, args: Any) -> int:
            raise error

    monkeypatch.setattr(cli, "commands", lambda: ["fail"])
    monkeypatch.setattr(cli, "_load", lambda name: Module())


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckpointError("no weights", file="/x/model"), 1, "/x/model: no weights"),
        (ArgumentError("top_p must be less"), 2, "top_p must be less"),
        (FileNotFoundError(2, "No such file", "x"), 1, "[Errno 2] No such file: 'x'"),
        (MemoryError(), 1, "out of memory; try --quantize int8 or int4, or a smaller model"),
        (KeyError("x"), 1, "internal error: KeyError: 'x'; LLMCORE_LOG=debug shows where: please report it"),
        (CheckpointError("two\nlines\x1b[2J"), 1, "two lines␛[2J"),
        (CheckpointError(""), 1, "CheckpointError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_are_one_line_and_an_exit_code(
    error: Exception, code: int, message: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMCORE_LOG", raising=False)
    failing(monkeypatch, error)
    result = run("fail")
    assert (result.code, result.out, result.err) == (code, "", f"llmcore: error: {message}\n")


def test_debug_log_shows_the_traceback(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCORE_LOG", "debug")
    failing(monkeypatch, KeyError("x"))
    result = run("fail")
    assert result.err.startswith("Traceback")
    assert result.err.endswith("llmcore: error: internal error: KeyError: 'x'\n")


def test_ctrl_c(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    result = run("fail")
    assert (result.code, result.err) == (130, "\nllmcore: interrupted\n")


def test_ctrl_c_while_the_native_core_is_imported(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    failing(monkeypatch, error)
    result = run("fail")
    assert (result.code, result.err) == (130, "\nllmcore: interrupted\n")


def test_wrong_argument_names_the_help(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, AssertionError("not reached"))
    result = run("fail", "--number", "x")
    assert result.code == 2
    assert result.err == (
        "llmcore: error: argument --number: invalid int value: 'x' (llmcore fail --help shows the arguments)\n"
    )


@pytest.mark.parametrize("name", ["LLMCORE_ISA", "LLMCORE_NUM_THREADS"])
def test_environment_that_is_no_text(
    name: str, run: Callable[..., Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "avx\udce9")
    assert run("run", "--help").code == 0
    result = run("run", "x")
    assert (result.code, engine.loads) == (2, [])
    assert result.err == f"llmcore: error: {name} must be ASCII text, got 'avx\\udce9'\n"


def test_options_are_not_abbreviated(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, AssertionError("not reached"))
    assert run("fail", "--num", "3").code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "--foo"], ["--foo"]),
        (["--", "-hello"], ["-hello"]),  # not -h with a value
        (["a", "--number", "3", "--", "--number", "--"], ["a", "--number", "--"]),
        (["--", "-1"], ["-1"]),
        (["a", "--"], ["a"]),
    ],
)
def test_after_two_dashes_there_are_only_words(
    arguments: list[str], words: list[str], run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Module:
        HELP = "See"

        def add_arguments(self, parser: Any) -> None:
            parser.add_argument("words", nargs="*")
            parser.add_argument("--number", type=int)

        def run(self, args: Any) -> int:
            seen.append(args.words)
            return 0

    monkeypatch.setattr(cli, "commands", lambda: ["see"])
    monkeypatch.setattr(cli, "_load", lambda name: Module())
    assert (run("see", *arguments).code, seen) == (0, [words])


def test_one_word_too_many_after_two_dashes_is_named(run: Callable[..., Any]) -> None:
    assert "unrecognized arguments: -b (" in run("plan", "--", "tiny", "-b").err


def test_reader_of_a_pipe_leaves(tmp_path: Any) -> None:
    (tmp_path / "shout.py").write_text(
        'HELP = "Shout"\ndef add_arguments(p): pass\ndef run(args):\n    while True: print("x" * 1000)\n'
    )
    code = f"import sys; from llmcore import cli; cli.__path__.append({str(tmp_path)!r})\nsys.exit(cli.main(['shout']))"
    shell = f'{sys.executable} -c "$CODE" | head -c 5 > /dev/null; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", shell], env={**os.environ, "CODE": code}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_log_goes_to_stderr_once_for_the_time_of_the_command(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Module:
        HELP = "Warn"

        def add_arguments(self, parser: Any) -> None: ...

        def run(self, args: Any) -> int:
            for _ in range(2):
                logging.getLogger("llmcore").warning("odd: %s", "a\nb")
            logging.getLogger("llmcore").info("not shown")
            return 0

    monkeypatch.delenv("LLMCORE_LOG", raising=False)
    monkeypatch.setattr(cli, "commands", lambda: ["warn"])
    monkeypatch.setattr(cli, "_load", lambda name: Module())
    handlers = list(logging.getLogger("llmcore").handlers)
    assert run("warn").err == "llmcore: warning: odd: a b\n"
    assert logging.getLogger("llmcore").handlers == handlers


# --- the terminal ---


def test_harmless_text_keeps_what_is_text() -> None:
    text = "a\tb\nç 終わり 🙂 \u05d0\u200f"
    assert _terminal.harmless(text) == text


def test_harmless_text_shows_control_characters() -> None:
    assert _terminal.harmless("\x1b]0;t\x07\x00\x7f\x9b2J\r") == "␛]0;t␇␀␡\ufffd2J"


def test_json_has_neither_nan_nor_a_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    _terminal.print_json({"a": float("nan"), "b": [float("-inf"), 1.5], 3: "ü\n"})
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5], "3": "\\u00fc\\n"}\n'


def test_json_escapes_bytes_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    _terminal.print_json({"model": "caf\udce9"})
    assert capsys.readouterr().out == '{"model": "caf\\\\udce9"}\n'


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["tokenize", "--help"], b"Guten Tag, \\u4f60\\u597d"),
        (["tokenize", "你好", "--compare", "tiny"], b"\\u4f60"),
        (["tokenize", "--decode", "0"], b"\\u4f60\\u597d\n"),
        (["run", "-q", "x"], b"\\u4f60\n"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
def test_text_the_encoding_lacks_is_escaped(
    arguments: list[str], shown: bytes, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.pieces = ("你",)
    monkeypatch.setattr("llmcore.Tokenizer.decode", lambda self, ids: "你好")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stdout)
    assert cli.main(arguments) == 0
    stdout.flush()
    assert shown in stdout.buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["run", "x"], 0, " was not amused.\n", "3 tokens"),
        (["run", "--help"], 0, "usage: llmcore run", ""),
        (["nonsense"], 2, "", "llmcore: error: no command"),
    ],
    ids=["answer", "help", "error"],
)
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_takes_nothing(
    closed: str,
    arguments: list[str],
    code: int,
    out: str,
    err: str,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, closed, None)
    assert cli.main(arguments) == code
    getattr(sys, closed).close()
    expected = {"stdout": out, "stderr": err} | {closed: ""}
    for shown, beginning in zip(capsys.readouterr(), expected.values(), strict=True):
        assert shown.startswith(beginning) if beginning else shown == ""


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    _terminal.print_table([["a", "1"], ["bcd", "22"]], right="lr")
    assert capsys.readouterr().out == "a     1\nbcd  22\n"


def test_engine_is_closed_after_an_error(run: Callable[..., Any], engine: Engine) -> None:
    engine.fail = CheckpointError("broken")
    assert run("run", "x").code == 1
    assert engine.closed == 1
