"""A lock that waiting threads get in turn."""

from __future__ import annotations

import threading
from types import TracebackType


class FairLock:
    """A context manager. A thread that releases it and wants it again gets it after whoever waits first."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._turn:
            self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
