"""The engine's thread. Nothing else touches the native engine and the answers that grow on it.

Other threads hand it work, which it does between two steps, and wait for what comes of it. None of them ever holds a
lock that it needs: an exception that arrives anywhere in a caller, as Ctrl-C does, ends that call and nothing else.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from llmcore.errors import BusyError, ClosedError, LlmcoreError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmcore import _core
    from llmcore.request import Answer, Request

Result = TypeVar("Result")
Work = Callable[[], Any]
Reply = SimpleQueue[tuple[bool, Any]]
"""Of the engine's thread: True and a result, or False and an exception."""
_FINISH = (None, "stop", "length", "error")
_LOOK_SECONDS = 1.0
"""So often a caller that waits looks whether the thread is there."""
_LENT_SECONDS = 0.002
_JOIN_SECONDS = 0.05
_EXIT_SECONDS = 5.0


@dataclass(eq=False)
class _Loan:
    """Pages of the cache for texts of these lengths."""

    lengths: Sequence[int]
    reply: Reply = field(default_factory=SimpleQueue)
    tables: list[list[int]] = field(default_factory=list)


class EngineLoop:
    """Runs one native engine."""

    def __init__(self, engine: _core.Engine, models: Iterable[_core.Model]) -> None:
        self._engine: _core.Engine | None = engine
        self._models = frozenset(models)  # which an open engine keeps, too
        self._requests: set[Request] = set()  # handed over, and neither answered nor dropped yet
        self._sequences: dict[int, Answer] = {}  # of those, what the engine has taken
        self._editing = 0  # of them, those whose logits Python changes
        self._loans: deque[_Loan] = deque()  # of pages of the cache: those that wait
        self._lent = 0  # how many have some
        self._borrowers: set[int] = set()  # the threads of both
        self._masks: ThreadPoolExecutor | None = None  # computes the masks of structured outputs
        self._forked = False
        self._stats = engine.stats()
        self._set_up()
        _loops.add(self)

    def _set_up(self) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._serving = threading.Lock()  # held by the thread as long as it is there, and never by another
        self._ended: SimpleQueue[None] = SimpleQueue()  # tells those who wait for its end to look

    # --- for all threads ----------------------------------------------------------------------------------------------

    def require(self) -> _core.Engine:
        """The engine. Raises ClosedError."""
        if self._engine is None:
            raise ClosedError("the LLM was closed")
        if self._forked:
            raise ClosedError("the process was forked while the LLM was at work: make a new one here")
        return self._engine

    def with_pages(self, lengths: Sequence[int], function: Callable[[_core.Engine, list[list[int]]], Result]) -> Result:
        """What `function` makes, on the caller's thread, of the engine and of pages of its cache for the first of texts
        of these lengths, one of them at least. Requests run on beside it. Whoever asked first is first."""
        loan, this = _Loan(lengths), threading.get_ident()
        give_back, leave = (
            partial(self._work.put, partial(self._give_back, loan)),
            partial(self._borrowers.discard, this),
        )
        self._check_thread()
        self.require()
        self._start()
        try:
            self._borrowers.add(this)
            self._work.put(partial(self._loans.append, loan))
            tables = self._answer(loan.reply)
            return function(self.require(), tables)
        finally:
            try:  # Ctrl-C comes after a call of C code, and each of these is one: none is left out
                give_back()
            finally:
                leave()

    def settle(self) -> None:
        """Waits until what came back is counted, so that a fork finds the engine idle."""
        with suppress(ClosedError):
            if self._at_work():
                self.call(lambda engine: None)

    def call(self, function: Callable[[_core.Engine], Result]) -> Result:
        """What `function` returns or raises on the engine's thread. Raises BusyError on that thread itself."""
        self._check_thread()
        reply: Reply = SimpleQueue()

        def work() -> None:
            answer: tuple[bool, Any]
            try:
                answer = (True, function(self.require()))
                self._note_stats()
            except BaseException as error:
                answer = (False, error)
            reply.put(answer)

        self.require()
        self._start()
        self._work.put(work)
        return self._answer(reply)  # type: ignore[no-any-return]

    def _answer(self, reply: Reply) -> Any:
        well, result = self._wait(reply)
        if not well:
            raise result
        return result

    def wait(self, queue: SimpleQueue[Result], timeout: float | None = None) -> Result:
        """The next of a queue that the engine's thread fills. Raises Empty, BusyError on that thread itself, and
        ClosedError if it is gone."""
        self._check_thread()
        return self._wait(queue, timeout)

    def _wait(self, queue: SimpleQueue[Result], timeout: float | None = None) -> Result:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _LOOK_SECONDS if end is None else min(_LOOK_SECONDS, max(end - time.monotonic(), 0.0))
            try:
                return queue.get(timeout=left)
            except Empty:
                if end is not None and time.monotonic() >= end:
                    raise
                if not self._serving.locked():
                    try:
                        return queue.get_nowait()
                    except Empty:
                        self.require()
                        self._start()

    def _at_work(self) -> bool:
        """Whether the thread is there, or on its way to work that waits for it."""
        return not self._work.empty() or self._serving.locked()  # in this order: first it shows itself, then takes work

    def _check_idle(self) -> None:
        if running := self.running():
            raise BusyError(f"{len(running)} requests are running: finish or leave them before close()")

    def _check_thread(self) -> None:
        if self._inside():
            raise BusyError("the LLM is in the middle of a step: it can't be asked from inside of it")

    def _inside(self) -> bool:
        """Whether the engine may wait for this thread: the call comes from inside of a step or of other work with its
        models or pages, from a logits processor or a signal's handler."""
        this = threading.get_ident()
        return this in self._borrowers or _serving.get(this) is self or any(model.entered for model in self._models)

    def add(self, requests: Iterable[Request]) -> None:
        """Hands requests over, all of them before one step. Raises what is wrong with the first that is refused."""
        self._check_thread()
        engine, several = self.require(), list(requests)
        for request in several:
            engine.check(request.native)
        self._start()
        self._requests.update(several)
        self._work.put(lambda: self._add(several))
        self.require()  # it may have been closed meanwhile, and nobody looks at its work any more

    def stats(self, wait: bool = True) -> dict[str, int]:
        """The engine's counts between two steps, after all that it was asked for before. Without `wait`, and on its
        own thread, those after the last step."""
        self.require()
        if wait and self._at_work() and not self._inside():
            return self.call(lambda engine: engine.stats())
        return dict(self._stats)

    def drop(self, requests: Iterable[Request]) -> None:
        """Cancels what is still running of `requests`, and returns at once; from any thread, a finaliser's too."""
        running = [request for request in requests if not request.done]
        if not running or self._engine is None:
            return
        self._work.put(lambda: self._drop(running))
        self._requests.difference_update(running)  # close() comes behind that
        engine = self._engine
        theirs = sum(s.handle > 0 and not s.done for request in running for s in request.sequences)
        if engine is not None and theirs >= len(self._sequences):
            engine.interrupt()  # the step is nobody else's

    def cancel(self, request: Request) -> None:
        """The same, and waits until it is so, unless that is asked for on the engine's thread."""
        self.drop([request])
        if not request.done and not self._inside():
            request.wait()

    def close(self) -> None:
        """Lets the engine go. Raises BusyError while requests run."""
        if self._engine is not None and not self._forked:
            self._check_idle()
        if self._forked or not self._at_work():
            self._let_go()
            return
        if self._engine is not None:
            with suppress(ClosedError):  # another thread was quicker
                self.call(self._close)
        self.stop()
        self.join()

    def _let_go(self) -> None:
        self._engine, self._models = None, frozenset()
        while self._loans:
            self._loans.popleft().reply.put((False, ClosedError("the LLM was closed")))

    def stop(self) -> None:
        """Ends the thread after the work that it was handed before."""
        self._work.put(None)

    def join(self, timeout: float = float("inf")) -> bool:
        """Waits for the end of the thread, so many seconds at most; whether it came."""
        end = time.monotonic() + timeout
        while self._serving.locked() and _serving.get(threading.get_ident()) is not self and time.monotonic() < end:
            with suppress(Empty):
                self._ended.get(timeout=_JOIN_SECONDS)
        return not self._serving.locked()

    def running(self) -> list[Request]:
        """The requests that aren't answered yet."""
        return [request for request in list(self._requests) if not request.done]

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Sees to it that the thread comes. One too many ends at once."""
        if self._serving.locked():
            return
        if _exiting:
            raise ClosedError("Python is at its end")
        try:  # not threading.Thread, which waits for its start: Ctrl-C there may leave it standing still for ever
            start_new_thread(_serve, (self,))
        except RuntimeError as error:
            raise LlmcoreError(f"the engine's thread can't be started: {error}") from None

    def _turn(self) -> bool:
        """The work there is, then a step; False when told to stop."""
        if self._engine is not None:
            self._engine.resume()
        some = self._work.qsize()  # what comes meanwhile waits for a step
        self._lend()
        while not self._sequences or some > 0:
            if self._engine is None and self._work.empty():
                return False
            work = self._work.get()
            some -= 1
            if work is None:
                return False
            work()
            del work  # while it waits, this thread keeps nothing alive
            self._lend()
        steps = self._stats["steps"]
        self._step()
        if self._lent and self._stats["steps"] == steps:
            time.sleep(_LENT_SECONDS)  # the requests wait for the pages, too
        return True

    def _lend(self) -> None:
        """Gives pages to those who want some, as long as there are any for the first of them."""
        while self._loans and self._engine is not None:
            loan = self._loans[0]
            try:
                loan.tables = self._engine.reserve(loan.lengths)
                if not loan.tables:
                    return
                self._lent += 1
                loan.reply.put((True, loan.tables))
            except Exception as error:
                loan.reply.put((False, error))
            self._loans.popleft()  # last, for a fork looks whether pages may be taken

    def _give_back(self, loan: _Loan) -> None:
        if loan in self._loans:
            self._loans.remove(loan)
        elif loan.tables and self._engine is not None:
            self._engine.release(loan.tables)
            self._lent -= 1
        self._note_stats()

    def _add(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.done:  # dropped before it came here
                continue
            try:
                request.begin(self.require().submit(request.native))
            except Exception as error:  # its own: memory is short
                self._fail(request, error)
                continue
            for sequence in request.sequences:
                self._sequences[sequence.handle] = sequence
                self._editing += sequence.edits
                self._prepare(sequence)
        self._note_stats()

    def _prepare(self, sequence: Answer) -> None:
        """Begins to compute what its next token may be. Without a thread for that, it is computed when it is needed."""
        if sequence.guide is None:
            return
        try:
            if self._masks is None:
                self._masks = ThreadPoolExecutor(1, "llmcore-masks")
            sequence.guide.prepare(self._masks)
        except RuntimeError:  # there are too many threads, or Python is at its end
            self._masks = None

    def _drop(self, requests: Iterable[Request]) -> None:
        for request in requests:
            for sequence in request.sequences:
                if not sequence.done:
                    self._forget(sequence)
                    sequence.abort()
        self._note_stats()
        self._tell(requests)

    def _forget(self, sequence: Answer) -> None:
        if sequence.handle not in self._sequences:
            return
        if self._engine is not None:
            self._engine.cancel(sequence.handle)
        self._editing -= sequence.edits
        del self._sequences[sequence.handle]  # last, for a fork looks whether the engine is at work

    def _note_stats(self) -> None:
        if self._engine is not None:
            with suppress(ClosedError):  # of a model in a forked process
                self._stats = self._engine.stats()

    def _close(self, _: _core.Engine) -> None:
        self._check_idle()
        self._let_go()
        if self._masks is not None:
            self._masks.shutdown()

    def _step(self) -> None:
        told: dict[int, Request] = {}
        try:
            engine = self.require()
            for handle, token, logprob, top, finish, error, *timing, scores in engine.step(
                self._edit if self._editing else None
            ):
                sequence = self._sequences.get(handle)
                if sequence is None:
                    continue
                if scores:
                    sequence.request.note_scores(scores)
                if token is None and not error:
                    continue
                sequence.queue_time, sequence.preemptions, sequence.cached_tokens = timing  # type: ignore[assignment]
                sequence.take(token or 0, logprob, top, _FINISH[finish], error)
                if sequence.done:
                    self._forget(sequence)
                else:
                    self._prepare(sequence)
                told[id(sequence.request)] = sequence.request
        except BaseException as error:  # whoever waits for an answer raises it
            known = error if isinstance(error, LlmcoreError) else LlmcoreError(f"a step ended by {error!r}")
            self._fail_all(known)
        self._note_stats()
        self._tell(told.values())

    def _tell(self, requests: Iterable[Request]) -> None:
        """Lets those who wait for the requests know that there is more of them."""
        for request in requests:
            if request.done:
                self._requests.discard(request)
            request.tell()

    def _fail_all(self, error: Exception) -> None:
        """Ends what runs by an error."""
        for request in self.running():
            self._fail(request, error)
        self._note_stats()

    def _fail(self, request: Request, error: Exception) -> None:
        for sequence in request.sequences:
            if not sequence.done:
                self._forget(sequence)
                sequence.fail(error)
        self._tell([request])

    def _edit(self, handle: int, tokens: npt.NDArray[np.int32], prompt: int, row: npt.NDArray[np.float32]) -> None:
        self._sequences[handle].edit(tokens, prompt, row)

    def _after_fork(self) -> None:
        """In a child process, which has none of its parent's threads. If one was in the middle of a native call, the
        engine says so itself."""
        inherited = self.running()
        asked = inherited or self._sequences or self._loans or self._lent or not self._work.empty()
        self._forked = self._forked or bool(asked)
        self._sequences = {}
        self._loans.clear()
        self._borrowers.clear()
        self._masks = None
        self._set_up()
        for request in inherited:
            self._fail(request, ClosedError("the process was forked: the answer comes in its parent"))


def _serve(loop: EngineLoop) -> None:
    if not loop._serving.acquire(blocking=False):
        return  # one is there
    _serving[threading.get_ident()] = loop
    try:
        while loop._turn():
            pass
    finally:
        loop._fail_all(ClosedError("the LLM was closed"))
        del _serving[threading.get_ident()]
        loop._serving.release()
        loop._ended.put(None)


_loops: weakref.WeakSet[EngineLoop] = weakref.WeakSet()
_serving: dict[int, EngineLoop] = {}
"""By the ident of its thread, the loop that is run there."""
_exiting = False


def _stop_all() -> None:
    """Before Python ends: a thread that comes back from native code after that ends the process badly."""
    global _exiting
    _exiting = True
    for loop in list(_loops):
        loop.stop()
        if loop._engine is not None:
            loop._engine.interrupt()
    for loop in list(_loops):
        loop.join(_EXIT_SECONDS)


def _after_fork() -> None:
    _serving.clear()
    for loop in list(_loops):
        loop._after_fork()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
