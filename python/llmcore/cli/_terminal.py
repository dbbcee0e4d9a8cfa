"""Writing to terminals and pipes: harmless text, colours where wanted, tables, JSON."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from llmcore.progress import is_terminal

# Control characters of a model's text could move the cursor, retitle the window or answer queries: on a terminal they
# are shown as the symbols Unicode has for them. Newline and tab stay; a carriage return, which could overwrite what
# was printed, is dropped.
_HARMLESS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t\r"}
_HARMLESS |= {0x0D: "", 0x7F: "\u2421"} | dict.fromkeys(range(128, 160), "�")

_LINE_LIMIT = 1200


def harmless(text: str) -> str:
    """`text` with every control character but newline and tab made visible."""
    return text.translate(_HARMLESS)


def one_line(text: str) -> str:
    """`text` as a single printable line, for errors and logs: file names and the like can't forge another line."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= _LINE_LIMIT else line[: _LINE_LIMIT - 4] + " ..."


class Output:
    """Standard output for a model's text: flushed at each piece, harmless on a terminal, untouched in a pipe."""

    def __init__(self) -> None:
        self.stream = sys.stdout
        self.terminal = is_terminal(self.stream)
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Writes `text`."""
        if not text:
            return
        self.stream.write(harmless(text) if self.terminal else text)
        self.stream.flush()
        self._at_line_start = text.endswith("\n")

    def style(self, text: str, code: str) -> str:
        """`text`, harmless, in the terminal style `code` ("2" is dim, "1" bold), plain where colours aren't wanted."""
        return f"\x1b[{code}m{harmless(text)}\x1b[0m" if self.terminal and colours() else harmless(text)

    def write_styled(self, text: str, code: str) -> None:
        """Writes the caller's own text in a style."""
        self.stream.write(self.style(text, code))
        self.stream.flush()
        self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Ends the line, unless it has been ended."""
        if not self._at_line_start:
            self.write("\n")


def colours() -> bool:
    """Whether the user wants colours (https://no-color.org) and the terminal has them."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(value: Any) -> None:
    """One JSON object on standard output, in ASCII, on one line.

    What JSON lacks: NaN and infinity become null, bytes of a file's name that are no UTF-8 become escapes.
    """
    print(json.dumps(_plain(value), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def print_table(rows: Iterable[Sequence[str]], *, right: str = "") -> None:
    """Prints rows as aligned columns; `right` has one letter a column, "r" for those aligned to the right."""
    table = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell.rjust(width) if right[i : i + 1] == "r" else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints names and values, a line each."""
    print_table(facts)


def note(text: str) -> None:
    """A line for people on standard error, beside the output proper."""
    print(one_line(text), file=sys.stderr)


def prepare_streams() -> None:
    """Before anything is printed: a closed stream takes nothing, and what an encoding lacks becomes an escape."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence_stdout() -> None:
    """After a broken pipe: what is still buffered goes nowhere instead of failing at the interpreter's exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):  # standard output is no file (a test's, or closed)
        return
