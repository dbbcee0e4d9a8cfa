"""llmcore chat: a conversation with a model."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from llmcore.cli._arguments import (
    BUILT_IN,
    MODEL_HELP,
    add_loading,
    add_sampling,
    as_utf8,
    load_model,
    read_file,
    read_line,
    sampling_params,
    standard_input,
)
from llmcore.cli._stream import streaming
from llmcore.cli._terminal import Output, note
from llmcore.errors import ArgumentError, ContextLengthError, LlmcoreError, TemplateError, TokenizerError
from llmcore.progress import is_terminal

if TYPE_CHECKING:
    from llmcore.llm import LLM
    from llmcore.sampling import SamplingParams
    from llmcore.tokenizer import Tokenizer

HELP = "Talk to a model"

_EPILOG = """\
examples:
  llmcore chat path/to/model                        a model with a chat template
  llmcore chat path/to/model --system "Be brief."   with a system message
  llmcore chat path/to/base-model --template plain  a model without one
  echo "What is a fjord?" | llmcore chat path/to/model

in the conversation: /help, /reset, /system TEXT, /exit; Ctrl-C stops an answer, Ctrl-D leaves.
templates for models without their own: chatml, llama-2, llama-3, alpaca, gemma, mistral, phi-3, plain, or a file with
a Jinja template.
"""

_HELP_IN_CHAT = """\
/reset          forget the conversation
/system TEXT    set the system message and forget the conversation; without TEXT show it
/help           this list
/exit           leave (also Ctrl-D)
\"\"\"             begins and ends a message of several lines
Ctrl-C          stop the answer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore chat`."""
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", default=BUILT_IN, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--template", metavar="NAME", help="a name listed below, or a file with a Jinja template")
    add_loading(parser)
    add_sampling(parser, max_tokens=None)
    parser.add_argument("--stats", action="store_true", help="tokens and speed after each answer")


@dataclass
class Conversation:
    """The messages so far and how they become a prompt."""

    tokenizer: Tokenizer
    template: str | None = None
    """Jinja source; None for the model's own."""
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def prompt(self) -> list[int]:
        """The token ids of the whole conversation, ready for the next answer."""
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*opening, *self.turns]
        if self.template is None:
            return cast("list[int]", self.tokenizer.apply_chat_template(messages))
        from llmcore.chat import ChatTemplate, conversation, render_ids

        template = ChatTemplate(self.template, self.tokenizer.template_variables)
        ids = render_ids(self.tokenizer, template, conversation(messages, None, True, {}))
        bos = self.tokenizer.bos_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore chat`."""
    template, stops = _template(args.template)
    args.stop = [*args.stop, *stops]
    params = sampling_params(args)
    system = args.system and as_utf8(args.system, "--system")
    interactive = is_terminal(sys.stdin)
    read = _reader(interactive)
    import llmcore

    model = load_model(args.model, args)
    if model.tokenizer is None:
        raise TokenizerError("this checkpoint has no tokenizer, so it can't chat; put its tokenizer files beside it")
    conversation = Conversation(model.tokenizer, template, system)
    _check_template(conversation)
    if interactive:
        note(f"{args.model}: /help lists what you can do, Ctrl-D leaves")
    with llmcore.LLM(model) as llm:
        return _Chat(llm, conversation, params, interactive, args.stats).talk(read)


def _template(name: str | None) -> tuple[str | None, tuple[str, ...]]:
    from llmcore.chat_formats import CHAT_FORMATS

    if name is None:
        return None, ()
    found = CHAT_FORMATS.get(name)
    return (read_file(name), ()) if found is None else (found.source, found.stops)


def _check_template(conversation: Conversation) -> None:
    """Fails before the first question, not after it, for a model that has no template."""
    if conversation.template is None and conversation.tokenizer.chat_template is None:
        raise TemplateError(
            "this model has no chat template: it continues texts (llmcore run). To chat with it all the same, "
            "choose one: --template plain, --template chatml, or --template FILE"
        )


def _reader(interactive: bool) -> Callable[[], str]:
    """A function that returns the next line and raises EOFError at the end."""
    if not interactive:
        source = standard_input()
        return lambda: read_line(source)
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (importing it gives input() its editing and history)
    return _read_typed_line


def _read_typed_line() -> str:
    try:
        return as_utf8(input("> "), "this line")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"this line is not {error.encoding}") from None


def _read_message(read: Callable[[], str]) -> str:
    """A line, or the lines between three quotes; the end of the input ends such a message, too."""
    line = read()
    if not line.startswith('"""'):
        return line
    lines, line = [], line[3:]
    while not line.endswith('"""'):
        lines.append(line)
        try:
            line = read()
        except EOFError:
            return "\n".join(lines)
    return "\n".join([*lines, line[:-3]])


def _reset(conversation: Conversation, message: str) -> None:
    conversation.turns.clear()
    note("forgotten")


def _system(conversation: Conversation, message: str) -> None:
    text = message.removeprefix("/system").strip()
    if text:
        conversation.system = text
        conversation.turns.clear()
        note("system message set")
    else:
        note(f"system message: {conversation.system}" if conversation.system else "no system message")


def _help(conversation: Conversation, message: str) -> None:
    print(_HELP_IN_CHAT, file=sys.stderr, end="")


_COMMANDS: dict[str, Callable[[Conversation, str], None]] = {"/reset": _reset, "/system": _system, "/help": _help}


@dataclass
class _Chat:
    """Reads messages and answers them until the end of input. Without a person, an error or Ctrl-C ends it."""

    llm: LLM
    conversation: Conversation
    params: SamplingParams
    interactive: bool
    stats: bool

    def talk(self, read: Callable[[], str]) -> int:
        """The loop; `read` returns a line or raises EOFError. Returns the exit code."""
        while True:
            try:
                message = _read_message(read).strip()
            except EOFError:
                if self.interactive:
                    print()
                return 0
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print()
                note("/exit or Ctrl-D leaves")
                continue
            except ArgumentError as error:
                if not self.interactive:
                    raise
                note(f"llmcore: error: {error}")
                continue
            if message in ("/exit", "/quit"):
                return 0
            self._take(message)

    def _take(self, message: str) -> None:
        word = message.split()[0] if message.startswith("/") else ""
        if word in _COMMANDS:
            _COMMANDS[word](self.conversation, message)
        elif word and word == message:
            note(f"no command {message}; /help lists them")
        elif message:
            self._exchange(message)

    def _exchange(self, message: str) -> None:
        """A question and its answer. A question without any answer is taken back, a stopped answer is kept."""
        turns = self.conversation.turns
        turns.append({"role": "user", "content": message})
        text = ""
        try:
            text = self._answer(self.conversation.prompt())
        except LlmcoreError as error:
            if not self.interactive:
                raise
            remedy = "; /reset forgets the conversation" if isinstance(error, ContextLengthError) else ""
            note(f"llmcore: error: {error}{remedy}")
        if text:
            turns.append({"role": "assistant", "content": text})
        else:
            turns.pop()

    def _answer(self, prompt: list[int]) -> str:
        """Streams the answer to standard output and returns what was shown."""
        output = Output()
        text, count, cut, start = "", 0, False, time.perf_counter()
        try:
            with streaming(self.llm, prompt, self.params) as chunks:
                for chunk in chunks:
                    # An answer often begins with the space or newline that the template left to the model.
                    piece = chunk.text if text else chunk.text.lstrip()
                    text += piece
                    output.write(piece)
                    count += 1
                    cut = chunk.finish_reason == "length"
        except KeyboardInterrupt:
            output.end_line()
            if not self.interactive:
                raise
            note("(stopped)")
        output.end_line()
        if cut:
            note("(cut: --max-tokens or the context is used up)")
        if self.stats:
            note(f"{len(prompt)} + {count} tokens in {time.perf_counter() - start:.2f} s")
        return text
