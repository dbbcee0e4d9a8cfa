"""The progress bar: when it shows, what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import io

import pytest

from llmcore.progress import Progress, quantity


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        super().isatty()  # raises once closed, as a real stream does
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def drive(progress: Progress, clock: Clock, steps: int, seconds: float) -> None:
    """Advances by 1 `steps` times, `seconds` apart."""
    for _ in range(steps):
        clock.now += seconds
        progress.advance()


def test_line_says_how_far_how_fast_and_how_long() -> None:
    out, clock = Terminal(), Clock()
    progress = Progress(100, "loading", "tensors", stream=out, clock=clock)
    drive(progress, clock, 25, 0.5)
    line = out.getvalue().rsplit("\r", 1)[1]
    assert line.startswith("loading  [")
    assert " 25%  25 of 100 tensors  2 tensors/s  0:38 left" in line
    assert len(line) < 80


def test_bytes() -> None:
    out, clock = Terminal(), Clock()
    progress = Progress(2_000_000_000, "loading", "B", stream=out, clock=clock)
    clock.now = 1.0
    progress.update(500_000_000)
    assert "500 MB of 2.00 GB  500 MB/s  0:03 left" in out.getvalue()


def test_unknown_total() -> None:
    out, clock = Terminal(), Clock()
    drive(Progress(None, "reading", "lines", stream=out, clock=clock), clock, 4, 0.5)
    assert out.getvalue().rsplit("\r", 1)[1] == "reading  4 lines  2 lines/s"


def test_short_work_shows_nothing() -> None:
    out, clock = Terminal(), Clock()
    with Progress(10, "loading", stream=out, clock=clock) as progress:
        drive(progress, clock, 10, 0.09)
    assert out.getvalue() == ""


def test_long_work_shows_before_a_second_has_passed() -> None:
    out, clock = Terminal(), Clock()
    drive(Progress(100, "loading", stream=out, clock=clock), clock, 6, 0.1)
    assert "loading" in out.getvalue()


def test_bar_vanishes_at_the_end() -> None:
    out, clock = Terminal(), Clock()
    with Progress(100, "loading", stream=out, clock=clock) as progress:
        drive(progress, clock, 50, 0.1)
        width = len(out.getvalue().rsplit("\r", 1)[1])
    assert out.getvalue().endswith("\r" + " " * width + "\r")


def test_bar_vanishes_after_an_error() -> None:
    out, clock = Terminal(), Clock()
    progress = Progress(100, "loading", stream=out, clock=clock)
    drive(progress, clock, 50, 0.1)
    with pytest.raises(KeyError), progress:
        raise KeyError
    assert out.getvalue().endswith(" \r")


def test_a_shorter_line_covers_the_longer_one() -> None:
    out, clock = Terminal(), Clock()
    progress = Progress(None, "reading", "lines", stream=out, clock=clock)
    for done in (1_000_000, 1):
        clock.now += 2
        progress.update(done)
    longer, shorter = out.getvalue().split("\r")[1:]
    assert len(shorter.rstrip()) < len(longer) == len(shorter)


def test_redrawn_ten_times_a_second_at_most() -> None:
    out, clock = Terminal(), Clock()
    drive(Progress(10**6, "loading", stream=out, clock=clock), clock, 2000, 0.001)
    assert 10 <= out.getvalue().count("\r") <= 20


@pytest.mark.parametrize("columns", ["1", "10", "40"])
def test_narrow_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out, clock = Terminal(), Clock()
    drive(Progress(100, "loading", stream=out, clock=clock), clock, 50, 0.1)
    assert max(map(len, out.getvalue().split("\r"))) < int(columns) or columns == "1"
    assert "\n" not in out.getvalue()


@pytest.mark.parametrize("reason", ["no terminal", "not enabled", "dumb", "closed"])
def test_silent(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO() if reason == "no terminal" else Terminal()
    if reason == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    if reason == "closed":
        out.close()
    clock = Clock()
    with Progress(100, "loading", enabled=reason != "not enabled", stream=out, clock=clock) as progress:
        drive(progress, clock, 100, 0.5)
    assert out.closed or out.getvalue() == ""
    assert progress.done == 100


def test_more_than_the_total_is_all() -> None:
    out, clock = Terminal(), Clock()
    drive(Progress(2, "loading", stream=out, clock=clock), clock, 4, 1.0)
    assert "100%" in out.getvalue().rsplit("\r", 1)[1]


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1500, "B", "1.50 kB"),
        (2_471_600_000, "B", "2.47 GB"),
        (41_960_000, "B", "42.0 MB"),
        (256e6, "B", "256 MB"),
        (3e15, "B", "3,000 TB"),
        (12345, "tokens", "12,345 tokens"),
        (2.5, "tokens", "2.5 tokens"),
        (7, "", "7"),
    ],
)
def test_quantity(amount: float, unit: str, text: str) -> None:
    assert quantity(amount, unit) == text
