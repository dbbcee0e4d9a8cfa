"""Where the tests find the real data that lies beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real models, tokenizers and texts; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("LLMCORE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set LLMCORE_TEST_DATA")
    return folder
