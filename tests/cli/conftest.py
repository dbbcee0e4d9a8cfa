"""The commands, run in this process against the stand-in engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fake_engine import Engine, Pipe, Terminal

import llmcore
from llmcore import cli


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The stand-in engine in the place of llmcore.load and llmcore.LLM."""
    engine = Engine()
    monkeypatch.setitem(llmcore.__dict__, "load", engine.load)
    monkeypatch.setitem(llmcore.__dict__, "LLM", engine.llm)
    return engine


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command line, with `stdin` (None: a terminal nobody types at), and returns what came of it."""

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        monkeypatch.setattr("sys.stdin", Terminal() if stdin is None else Pipe(stdin))
        capsys.readouterr()
        code = cli.main(list(arguments))
        return Result(code, *capsys.readouterr())

    return run
