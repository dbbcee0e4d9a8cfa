"""llmcore doctor: what it reports, and that it finds what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcore import runtime
from llmcore.cli import _known_text
from llmcore.cli._known_text import KnownText
from llmcore.errors import CheckpointError

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_long_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "measure_read_bandwidth", lambda threads, seconds: 42e9)


def test_this_installation_is_well(run: Run) -> None:
    result = run("doctor")
    assert result.err == ""
    assert "\nnative core     ok: " in result.out
    # After an intended change of the model or the arithmetic, python -m llmcore.cli._known_text writes the text anew.
    assert "\nbuilt-in model  ok: writes its known text, to the bit\n" in result.out
    assert "\nmemory reads    42.0 GB/s on " in result.out
    assert result.code == 0


def test_report_for_machines(run: Run) -> None:
    report = run("doctor", "--json").json
    assert report["native"]["isa"] == runtime.isa()
    assert report["native"]["isa"] in report["native"]["features"]["available_isas"]
    assert report["native"]["threads"] == runtime.get_num_threads()
    assert report["versions"].keys() >= {"llmcore", "python", "numpy"}
    assert [check["ok"] for check in report["checks"]] == [True, True]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (KnownText("Something else.", "0x0.0p+0"), "not 'Something else.': please report"),
        (None, "wrote its known text, but with log-probability"),
    ],
)
def test_wrong_text_or_bits_fail(
    known: KnownText | None, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = known or KnownText(_known_text.read().text, "-0x1.0p+0")
    monkeypatch.setattr(_known_text, "read", lambda: expected)
    result = run("doctor")
    assert result.code == 1
    assert "built-in model  FAILED: " in result.out
    assert message in result.out


def test_model_that_does_not_load_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> KnownText:
        raise CheckpointError("no weights", file="tiny")

    monkeypatch.setattr(_known_text, "write", fail)
    result = run("doctor")
    assert result.code == 1
    assert "built-in model  FAILED: tiny: no weights" in result.out


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_damaged_file_fails(content: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "known_text.json").write_text(content)
    monkeypatch.setattr(_known_text, "path", lambda: tmp_path / "known_text.json")
    result = run("doctor")
    assert result.code == 1
    assert "is damaged; install llmcore again" in result.out


def test_core_that_can_not_be_asked_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ImportError("libm.so.6: not found")

    monkeypatch.setattr(runtime, "isa", fail)
    result = run("doctor", "--json")
    assert result.code == 1
    assert "libm.so.6: not found" in result.json["checks"][0]["message"]


def test_known_text_is_english(run: Run) -> None:
    known = json.loads(_known_text.path().read_text(encoding="utf-8"))
    assert len(known["text"].split()) > 20
