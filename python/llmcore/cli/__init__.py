"""The `llmcore` command: finds the commands, runs one, and turns what goes wrong into a line and an exit code.

A command is a module of this package whose name has no leading underscore. It offers

    HELP: str                                         # what it does, in a line
    def add_arguments(parser: ArgumentParser) -> None # its arguments, and examples as parser.epilog
    def run(args: Namespace) -> int                   # does it; returns the exit code

and keeps heavy imports inside `run`, for `llmcore --help` imports every command.
"""

from __future__ import annotations

import argparse
import logging
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Protocol, cast

from llmcore.cli._terminal import one_line, prepare_streams, silence_stdout
from llmcore.errors import ArgumentError, LlmcoreError, escape

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141

_EPILOG = """\
examples:
  llmcore run "The prince"                  text from the built-in model
  llmcore run path/to/model "Once upon"     text from a checkpoint folder
  llmcore chat path/to/model                talk to a chat model
  llmcore inspect path/to/model             what is in a checkpoint
  llmcore doctor                            is this machine set up well?

llmcore COMMAND --help shows a command's arguments and examples.
environment: LLMCORE_NUM_THREADS, LLMCORE_ISA, LLMCORE_LOG (debug, info, warning, error), NO_COLOR
exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 the reader of the output has gone
"""


class Command(Protocol):
    """What a command's module offers."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


_WORD = "\0"  # begins what comes after `--`, while argparse sees it; no argument of a process can hold it


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as an ArgumentError instead of printing the usage and leaving."""

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Options and words in any order; after `--` there are only words.

        Before Python 3.12 argparse forgets the `--` of intermixed arguments, so the words after it are marked.
        """
        end = arguments.index("--") + 1 if "--" in arguments else len(arguments)
        args = self.parse_intermixed_args([*arguments[:end], *(_WORD + word for word in arguments[end:])])
        for name, value in vars(args).items():
            if isinstance(value, list):
                setattr(args, name, [item.removeprefix(_WORD) if isinstance(item, str) else item for item in value])
            elif isinstance(value, str):
                setattr(args, name, value.removeprefix(_WORD))
        return args

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ArgumentError(f"{message.replace(_WORD, '')} ({self.prog} --help shows the arguments)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line, sys.argv's if `argv` is None, and returns its exit code. Raises nothing."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    try:
        with _logging():
            code = _dispatch(arguments)
            sys.stdout.flush()  # here, where a broken pipe can still be handled
            return code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        silence_stdout()
        return EXIT_PIPE
    except SystemExit as stop:  # argparse, after it has printed a help or a version
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while a native module is imported
            return _interrupted()
        _report(error)
        return EXIT_USAGE if isinstance(error, ArgumentError) else EXIT_FAILED


def _interrupted() -> int:
    print("\nllmcore: interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def commands() -> list[str]:
    """The names of all commands, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_overview(), file=sys.stderr, end="")
        return EXIT_USAGE
    name = arguments[0]
    if name in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0
    if name in ("-V", "--version"):
        from llmcore import __version__

        print(f"llmcore {__version__}")
        return 0
    if name not in commands():
        raise ArgumentError(f"no command {escape(name)}{_suggestion(name)}; llmcore --help lists the commands")
    command = _load(name)
    parser = _Parser(
        prog=f"llmcore {name}",
        description=command.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    args = parser.parse(arguments[1:])
    _check_environment()
    return command.run(args)


def _check_environment() -> None:
    """The native core reads these, and quotes in a message what it doesn't know: cut anywhere, that must stay text."""
    for name in ("LLMCORE_ISA", "LLMCORE_NUM_THREADS"):
        value = os.environ.get(name, "")
        if not value.isascii():
            raise ArgumentError(f"{name} must be ASCII text, got {escape(value)}")


def _load(name: str) -> Command:
    return cast(Command, import_module(f"{__name__}.{name}"))


def _overview() -> str:
    names = commands()
    width = max(map(len, names))
    rows = "".join(f"  {name:<{width}}  {_load(name).HELP}\n" for name in names)
    return (
        f"usage: llmcore COMMAND ...\n\nRuns language models: fast, small, the same bits on any machine.\n\n"
        f"commands:\n{rows}\n{_EPILOG}"
    )


def _suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, commands(), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _report(error: Exception) -> None:
    """One line on standard error; with LLMCORE_LOG=debug the traceback before it."""
    debug = os.environ.get("LLMCORE_LOG", "").lower() == "debug"
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, LlmcoreError | OSError):
        message = str(error) or type(error).__name__
    elif isinstance(error, MemoryError):
        message = "out of memory; try --quantize int8 or int4, or a smaller model"
    else:
        where = "" if debug else "; LLMCORE_LOG=debug shows where: please report it"
        message = f"internal error: {type(error).__name__}: {error}{where}"
    print(f"llmcore: error: {one_line(message)}", file=sys.stderr)


@contextmanager
def _logging() -> Iterator[None]:
    """Sends llmcore's log to standard error, from the level of LLMCORE_LOG (warning) upwards, for one command."""
    wanted = os.environ.get("LLMCORE_LOG", "warning").upper()
    level = logging.getLevelNamesMapping().get(wanted, logging.WARNING)
    logger = logging.getLogger("llmcore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogFormat())
    handler.addFilter(_Once())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _LogFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"llmcore: {record.levelname.lower()}: {one_line(record.getMessage())}"


class _Once(logging.Filter):
    """A command may open a checkpoint several times; what is odd about it is said once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        new = line not in self._said
        self._said.add(line)
        return new
