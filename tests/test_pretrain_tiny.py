"""The recipe of the built-in model, run for a few steps on a few kilobytes, and its preparation of text."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
ASSETS = ROOT / "python" / "llmcore" / "assets" / "tiny"
WORDS = ["the", "prince", "and", "a", "queen", "of", "some", "old", "castle", "went", "into", "his", "dark", "garden"]

if not EXAMPLES.is_dir():
    pytest.skip("the examples are not beside these tests", allow_module_level=True)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("tiny_text").clean


def train(out: Path, texts: Path, steps: int = 3) -> str:
    arguments = ["--steps", str(steps), "--tokens", "1024", "--threads", "1", "--warmup", "1", "--dtype", "float32"]
    arguments += ["--plot", f"{out}.svg", "--state", f"{out}.state"]
    command = [sys.executable, EXAMPLES / "pretrain_tiny.py", "--text", texts, "--out", out, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=800).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two identical runs, `a` and `b`, and their plots."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "texts").mkdir()
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.permutation(WORDS)) + f" {rng.integers(10**9):x}.\n" for _ in range(900)]
    (folder / "texts" / "story.txt").write_text("".join(lines), encoding="utf-8")
    for name in ("a", "b"):
        train(folder / name, folder / "texts")
    return folder


@pytest.mark.slow
def test_it_writes_the_built_in_models_files(made: Path) -> None:
    names = {p.name for p in (made / "a").iterdir()}
    assert names == {p.name for p in ASSETS.iterdir()} - {"README.md", "known_text.json"}


@pytest.mark.slow
def test_it_writes_the_built_in_models_config(made: Path) -> None:
    ours, theirs = (json.loads((p / "config.json").read_text(encoding="utf-8")) for p in (made / "a", ASSETS))
    assert ours == theirs


@pytest.mark.slow
def test_it_writes_the_built_in_models_tensors(made: Path) -> None:
    ours, theirs = (load_file(p / "model.safetensors") for p in (made / "a", ASSETS))
    assert {k: (t.shape, t.dtype) for k, t in ours.items()} == {k: (t.shape, t.dtype) for k, t in theirs.items()}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(made: Path) -> None:
    for file in (made / "a").iterdir():
        assert file.read_bytes() == (made / "b" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_it_draws_both_curves(made: Path) -> None:
    assert (made / "a.svg").read_text(encoding="utf-8").count("<polyline") == 2


@pytest.mark.slow
def test_a_kept_state_is_gone_on_from(made: Path, tmp_path: Path) -> None:
    (tmp_path / "a.state").write_bytes((made / "a.state").read_bytes())
    printed = train(tmp_path / "a", made / "texts", steps=4)
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("step")] == ["step 4"]


def test_clean_joins_wrapped_lines_and_keeps_paragraphs(clean: Callable[[str, str], str]) -> None:
    first = "It was in July, 1805, and the speaker was the well-known Anna Pavlovna"
    text = f"{first}\nScherer, maid of honor.\n\nShe smiled.\n"
    assert clean("war-and-peace.txt", text) == f"{first} Scherer, maid of honor.\n\nShe smiled.\n"


def test_clean_leaves_verse_alone(clean: Callable[[str, str], str]) -> None:
    text = "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east.\n"
    assert clean("tinyshakespeare.txt", text) == text


def test_clean_drops_the_gutenberg_frame(clean: Callable[[str, str], str]) -> None:
    frame = (
        "The Project Gutenberg eBook\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n{}\n*** END OF THE PROJECT\nmore"
    )
    assert clean("x.txt", frame.format("Once upon a time.")) == "Once upon a time.\n"


def test_clean_removes_the_seams_of_an_excerpt(clean: Callable[[str, str], str]) -> None:
    shared = "the wind blew over the wide gray plain"
    text = f'She looked out and {shared}",\n    "{shared} and the house shook.\n'
    assert clean("x.txt", text) == f"She looked out and {shared} and the house shook.\n"
