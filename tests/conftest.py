"""Where the tests find the real data that lies beside the project, and what they all stand on."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

# Tests build what they test; those of the cache say where it is.
os.environ["LLMCORE_CACHE_DIR"] = ""
ROOT = Path(__file__).resolve().parents[1]

# A shell without job control starts what it puts into the background deaf to Ctrl-C, and so are its children: the tests
# that interrupt a process would wait for nothing.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real models, tokenizers and texts; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("LLMCORE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set LLMCORE_TEST_DATA")
    return folder
