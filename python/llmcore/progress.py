"""A progress bar on standard error, for work that takes more than a second."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

_REDRAW_SECONDS = 0.1
_PATIENCE_SECONDS = 0.5
"""Nothing is drawn before this, nor ever if the work looks like ending within a second."""


class Progress:
    """Shows how much of `total` is done, where to, and when it will end.

        with Progress(size, "loading", "B") as progress:
            progress.advance(4096)

    `total` counts units, None if unknown. `unit` "B" is shown as bytes, any other name as it is. The bar appears only
    if `enabled`, standard error is a terminal and the work takes more than a second; it vanishes at the end. Without
    a terminal this is free of output and of cost.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str = "",
        enabled: bool = True,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.done = 0
        self._description = description
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and is_terminal(self._stream) and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._start = clock()
        self._drawn_at = self._start
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self.update(self.done + count)

    def update(self, done: int) -> None:
        """`done` units are done in all."""
        self.done = done
        if not self._enabled:
            return
        now = self._clock()
        if now - self._drawn_at < _REDRAW_SECONDS:
            return
        if self._width or self._worth_showing(now - self._start):
            self._drawn_at = now
            self._draw(now - self._start)

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _worth_showing(self, elapsed: float) -> bool:
        if not self.total or not self.done:
            return elapsed >= 2 * _PATIENCE_SECONDS
        return elapsed >= _PATIENCE_SECONDS and elapsed / self.done * self.total >= 2 * _PATIENCE_SECONDS

    def _draw(self, elapsed: float) -> None:
        columns = shutil.get_terminal_size().columns - 1
        rate = self.done / elapsed if elapsed > 0 else 0.0
        amount, speed = quantity(self.done, self._unit), quantity(rate, self._unit)
        if not self.total:
            line = f"{self._description}  {amount}  {speed}/s"
        else:
            part = min(self.done / self.total, 1.0)
            rest = (self.total - self.done) / rate if rate else 0.0
            amount = amount if self._unit == "B" else quantity(self.done, "")
            whole = quantity(self.total, self._unit)
            numbers = f"{part:4.0%}  {amount} of {whole}  {speed}/s  {_clock_time(rest)} left"
            cells = max(min(columns - len(self._description) - len(numbers) - 6, 40), 0)
            filled = int(cells * part)
            bar = f"[{'=' * filled}{' ' * (cells - filled)}]  " if cells >= 8 else ""
            line = f"{self._description}  {bar}{numbers}"
        line = line[:columns]
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is there, open and a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def quantity(amount: float, unit: str) -> str:
    """`amount` for people: "1.50 GB" (decimal multiples) for bytes, unit "B"; else "12,345 tokens"."""
    if unit != "B":
        shown = f"{amount:,.0f}" if amount >= 100 or amount == int(amount) else f"{amount:.1f}"
        return f"{shown} {unit}".rstrip()
    name = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(amount) < 1000:
            break
        amount, name = amount / 1000, larger
    digits = 0 if name == "B" or amount >= 99.95 else 1 if amount >= 9.995 else 2
    return f"{amount:,.{digits}f} {name}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
