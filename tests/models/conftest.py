"""Lets these tests use the tiny checkpoint of the reader's tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "checkpoint"))
