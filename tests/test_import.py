"""`import llmcore` is quick, quiet and complete: names come at first use, and nothing heavy comes with them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

import llmcore

HEAVY = ["torch", "transformers", "jinja2", "sentencepiece", "safetensors", "tokenizers", "numpy", "llmcore._core"]


def run_python(code: str) -> str:
    """What a fresh interpreter prints; it starts where this one finds llmcore, and nowhere else."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


def test_import_brings_nothing_heavy() -> None:
    code = f"import sys, json, llmcore; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run_python(code)) == []


def test_import_starts_no_thread() -> None:
    code = "import llmcore, os; print(len(os.listdir('/proc/self/task')))"
    if not sys.platform.startswith("linux"):
        pytest.skip("threads are counted in /proc")
    assert run_python(code).strip() == "1"


def test_every_public_name_is_in_the_table_or_the_package() -> None:
    assert set(llmcore._MODULE_OF) | {"__version__"} == set(llmcore.__all__)


@pytest.mark.parametrize("name", sorted(llmcore.__all__))
def test_public_name_resolves(name: str) -> None:
    value = getattr(llmcore, name)
    assert value is getattr(llmcore, name)
    home = llmcore._MODULE_OF.get(name, "llmcore")
    assert getattr(value, "__name__", name) in (name, home)


def test_dir_lists_every_public_name() -> None:
    assert set(llmcore.__all__) <= set(dir(llmcore))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'does_not_exist'"):
        llmcore.does_not_exist  # noqa: B018


def test_using_the_model_brings_no_torch() -> None:
    if find_spec("torch") is None:
        pytest.skip("torch isn't installed, so it can't be imported by mistake")
    code = (
        "import sys, llmcore\n"
        "llmcore.load('tiny', progress=False).forward([1, 2, 3])\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"
