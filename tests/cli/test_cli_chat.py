"""llmcore chat: history, its commands, templates, and what interrupts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import Engine, Pipe

from llmcore import cli
from llmcore.cli import chat
from llmcore.errors import ContextLengthError, NumericError, TemplateError

Run = Callable[..., Any]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a person types, a line an item; an exception is raised in its place. Then Ctrl-D."""
    lines: list[Any] = []

    def read() -> str:
        if not lines:
            raise EOFError
        item = lines.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    monkeypatch.setattr(chat, "_reader", lambda interactive: read)
    return lines


def prompts(engine: Engine) -> list[str]:
    return ["".join(map(chr, ids)) for ids, _ in engine.requests]


def test_piped_lines_are_messages_with_history(run: Run, engine: Engine) -> None:
    engine.pieces, engine.finish = (" Fine", "."), "stop"
    result = run("chat", stdin="Hi\n\nAnd you?\n")
    assert (result.code, result.out, result.err) == (0, "Fine.\nFine.\n", "")
    assert prompts(engine) == ["<user>Hi", "<user>Hi<assistant>Fine.<user>And you?"]


def test_last_piped_line_needs_no_newline(run: Run, engine: Engine) -> None:
    run("chat", stdin="Hi")
    assert prompts(engine) == ["<user>Hi"]


def test_system_message(run: Run, engine: Engine) -> None:
    run("chat", "--system", "Be brief.", stdin="Hi")
    assert prompts(engine) == ["<system>Be brief.<user>Hi"]


def test_system_message_must_be_utf8(run: Run, engine: Engine) -> None:
    assert run("chat", "--system", "caf\udce9", stdin="Hi").code == 2
    assert engine.loads == []


def test_reset_forgets(run: Run, engine: Engine) -> None:
    run("chat", stdin="Hi\n/reset\nHo\n")
    assert prompts(engine)[1] == "<user>Ho"


def test_system_command_sets_it_and_forgets(run: Run, engine: Engine) -> None:
    result = run("chat", stdin="Hi\n/system Be brief.\nHo\n/system\n")
    assert prompts(engine)[1] == "<system>Be brief.<user>Ho"
    assert result.err.endswith("system message: Be brief.\n")


def test_exit(run: Run, engine: Engine) -> None:
    assert run("chat", stdin="/exit\nHi\n").code == 0
    assert engine.requests == []
    assert engine.closed == 1


def test_help(run: Run, engine: Engine) -> None:
    result = run("chat", stdin="/help\n")
    assert "/reset" in result.err
    assert result.out == ""


def test_unknown_command_is_no_message(run: Run, engine: Engine) -> None:
    assert "no command /rest; /help lists them" in run("chat", stdin="/rest\n").err
    assert engine.requests == []


def test_a_message_may_begin_with_a_slash(run: Run, engine: Engine) -> None:
    run("chat", stdin="/usr/bin is full of what?\n")
    assert prompts(engine) == ["<user>/usr/bin is full of what?"]


def test_message_of_several_lines(run: Run, engine: Engine) -> None:
    run("chat", stdin='"""one\n\n  two"""\n"""three"""\n')
    assert prompts(engine)[0] == "<user>one\n\n  two"
    assert prompts(engine)[1].endswith("<user>three")


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_end_of_the_input_ends_a_message_of_several_lines(end: str, run: Run, engine: Engine) -> None:
    assert run("chat", stdin='"""one\ntwo' + end).code == 0
    assert prompts(engine) == ["<user>one\ntwo"]


def test_piped_lines_may_end_as_on_windows(run: Run, engine: Engine) -> None:
    run("chat", stdin='"""one\r\ntwo"""\r\nthree\r\n')
    assert prompts(engine)[0] == "<user>one\ntwo"
    assert prompts(engine)[1].endswith("<user>three")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # as in a UTF-8 and in the C locale
def test_piped_bytes_must_be_utf8(
    errors: str, run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = Pipe("Hé\n".encode() + b"caf\xe9\n")
    stdin.reconfigure(errors=errors)
    monkeypatch.setattr("sys.stdin", stdin)
    assert cli.main(["chat"]) == 2
    assert prompts(engine) == ["<user>Hé"]
    assert "a line of standard input' is not UTF-8 (byte 3)" in capsys.readouterr().err


def test_closed_standard_input(engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert (cli.main(["chat"]), engine.loads) == (2, [])
    assert capsys.readouterr().err == "llmcore: error: no text: standard input is closed\n"


def test_stats(run: Run, engine: Engine) -> None:
    assert "8 + 3 tokens in" in run("chat", "--stats", stdin="Hi\n").err


def test_answer_cut_by_its_limit_says_so(run: Run, engine: Engine) -> None:
    engine.finish = "length"
    assert "(cut: --max-tokens or the context is used up)" in run("chat", stdin="Hi\n").err


# --- templates ---


def test_model_without_a_template_names_the_remedy(run: Run, engine: Engine) -> None:
    engine.model.tokenizer.chat_template = None
    result = run("chat", stdin="Hi\n")
    assert result.code == 1
    assert "no chat template" in result.err
    assert "--template chatml" in result.err
    assert result.err.count("\n") == 1


def test_model_without_a_tokenizer(run: Run, engine: Engine) -> None:
    engine.model.tokenizer = None
    assert "has no tokenizer" in run("chat", stdin="Hi\n").err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nFine.<|im_end|>\n"
            "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("plain", "S\n\nUser: A\nAssistant: Fine.\nUser: C\nAssistant:"),
    ],
)
def test_built_in_templates(name: str, expected: str, run: Run, engine: Engine) -> None:
    engine.model.tokenizer.chat_template = None
    engine.pieces = ("Fine.",)
    run("chat", "--template", name, "--system", "S", stdin="A\nC\n")
    assert prompts(engine)[1] == expected


def test_text_begins_with_the_models_first_token(run: Run, engine: Engine) -> None:
    engine.model.tokenizer.bos_id = 0x2603
    run("chat", "--template", "plain", stdin="A\n")
    assert prompts(engine) == ["\u2603User: A\nAssistant:"]


def test_built_in_template_brings_its_end(run: Run, engine: Engine) -> None:
    run("chat", "--template", "chatml", "--stop", "own", stdin="Hi\n")
    assert engine.requests[0][1].stop == ("own", "<|im_end|>", "<|im_start|>")


def test_template_from_a_file(run: Run, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}!")
    run("chat", "--template", str(tmp_path / "t.jinja"), stdin="Hi\n")
    assert prompts(engine) == ["Hi!"]


def test_template_that_is_no_file(run: Run, engine: Engine) -> None:
    result = run("chat", "--template", "/no/such/file", stdin="Hi\n")
    assert result.code == 1
    assert "/no/such/file" in result.err


# --- a person at the keyboard ---


def test_ctrl_c_stops_the_answer_and_keeps_it(run: Run, engine: Engine, typed: list[Any]) -> None:
    typed.extend(["Hi", "And?"])
    engine.fail = KeyboardInterrupt()
    result = run("chat")
    assert result.code == 0
    assert result.out == "was\nwas\n\n"
    assert prompts(engine)[1] == "<user>Hi<assistant>was<user>And?"
    assert result.err.count("(stopped)") == 2


def test_ctrl_c_at_the_prompt_goes_on(run: Run, engine: Engine, typed: list[Any]) -> None:
    typed.extend([KeyboardInterrupt(), "Hi"])
    result = run("chat")
    assert "/exit or Ctrl-D leaves" in result.err
    assert prompts(engine) == ["<user>Hi"]


def test_typed_bytes_must_be_utf8(run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter([UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "caf\udce9", "Hi", EOFError()])

    def type_line(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", type_line)
    result = run("chat")
    assert (result.code, prompts(engine)) == (0, ["<user>Hi"])
    assert "llmcore: error: this line is not utf-8\nllmcore: error: 'this line' is not UTF-8 (byte 3)" in result.err


def test_failed_question_is_taken_back(run: Run, engine: Engine, typed: list[Any]) -> None:
    typed.extend(["Hi", "/reset", "Ho"])
    engine.fail = ContextLengthError("too long")
    result = run("chat")
    assert result.code == 0
    assert "llmcore: error: too long; /reset forgets the conversation" in result.err
    assert prompts(engine) == ["<user>Hi", "<user>Ho"]


def test_failure_in_a_pipe_is_the_exit_code(run: Run, engine: Engine) -> None:
    engine.fail = NumericError("NaN in the logits")
    result = run("chat", stdin="Hi\nHo\n")
    assert (result.code, len(engine.requests)) == (1, 1)


def test_ctrl_c_in_a_pipe_ends(run: Run, engine: Engine) -> None:
    engine.fail = KeyboardInterrupt()
    assert run("chat", stdin="Hi\nHo\n").code == 130


def test_a_bad_template_is_reported_as_it_is(run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> list[int]:
        raise TemplateError("line 3: unknown tag")

    monkeypatch.setattr(type(engine.model.tokenizer), "apply_chat_template", fail)
    assert run("chat", stdin="Hi").err == "llmcore: error: line 3: unknown tag\n"
