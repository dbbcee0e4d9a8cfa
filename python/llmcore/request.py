"""A prompt that is being answered, and its answers as they grow.

The engine's thread (engine_loop.py) feeds them; other threads read what is there and wait for more.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from llmcore.arguments import number
from llmcore.errors import ArgumentError, LimitError, NumericError, escape
from llmcore.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
from llmcore.sampling import SamplingParams, takes_prompt
from llmcore.stop import StopMatcher

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmcore import _core
    from llmcore.engine_loop import EngineLoop
    from llmcore.structured import Guide
    from llmcore.tokenizer import DecodeStream, Tokenizer

_UTF8_TAIL = 4


class Request:
    """A prompt that is being answered, with its `n` answers."""

    def __init__(
        self,
        loop: EngineLoop,
        fingerprint: str,
        tokenizer: Tokenizer | None,
        prompt: str | None,
        ids: list[int],
        params: SamplingParams,
        *,
        number: int,
        native: _core.Request,
        eos: set[int],
        guides: list[Guide],
        start: float,
    ) -> None:
        self.request_id = number
        self.prompt = prompt
        self.ids = ids
        self.params = params
        self.native = native
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]
        self.sequences = [
            Answer(index, self, tokenizer, eos, guides[index] if guides else None) for index in range(params.n)
        ]
        self.finished: list[SimpleQueue[Request]] = []
        """It is put into these when it is done."""
        self.listener: Callable[[], None] | None = None
        """Called on the engine's thread whenever there is more of it."""
        self._loop = loop
        self._fingerprint = fingerprint
        self._tokenizer = tokenizer
        self._start = start
        self.waited = 0.0
        """Seconds until the engine took it."""
        self._told = False
        self.owner: object = None
        """What must live until it is done."""

    @property
    def done(self) -> bool:
        """Whether the answer is complete, or was cancelled."""
        return all(sequence.done for sequence in self.sequences)

    def cancel(self) -> None:
        """Stops it within one step; the answer so far stays, with finish_reason "abort"."""
        self._loop.cancel(self)

    def abandon(self) -> None:
        """As `cancel`, and returns at once."""
        self._loop.drop([self])

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the answer, `timeout` seconds at most. Raises TimeoutError, NumericError, ClosedError."""
        timeout = None if timeout is None else number("timeout", timeout, 0, math.inf)
        try:
            self.wait(timeout)
        except Empty:
            raise TimeoutError(f"request {self.request_id} is not finished after {timeout:g} seconds") from None
        return self.output()

    def wait(self, timeout: float | None = None) -> None:
        """Until it is done. Raises queue.Empty after `timeout` seconds, ClosedError."""
        woken: SimpleQueue[Request] = SimpleQueue()
        self.finished.append(woken)
        try:
            if not self.done:  # or it was done before it could know of the queue
                self._loop.wait(woken, timeout)
        finally:
            self.finished.remove(woken)

    def take_chunks(self) -> list[StreamChunk]:
        """The tokens that have come since the last call."""
        chunks = []
        for sequence in self.sequences:
            with suppress(IndexError):  # several threads may take them
                while True:
                    chunks.append(StreamChunk(*sequence.chunks.popleft(), sequence.output.index))
        return chunks

    def raise_error(self) -> None:
        """Raises what went wrong, if something did."""
        for sequence in self.sequences:
            if sequence.error is not None:
                raise sequence.error

    def output(self) -> RequestOutput:
        """The answer."""
        self.raise_error()
        outputs = [sequence.whole_output() for sequence in self.sequences]
        first = self.sequences[0]
        tokens = len(first.output.token_ids)
        metrics = RequestMetrics(
            queue_time=self.waited + first.queue_time,
            time_to_first_token=max(first.first_time - self._start, 0.0),
            time_per_token=(first.last_time - first.first_time) / (tokens - 1) if tokens > 1 else 0.0,
            cached_tokens=first.cached_tokens,
            preemptions=sum(sequence.preemptions for sequence in self.sequences),
        )
        text = repr((self._fingerprint, self.ids, self.params, [output.token_ids for output in outputs]))
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return RequestOutput(self.request_id, self.prompt, self.ids, outputs, metrics, digest, self.prompt_logprobs)

    # --- of the engine's thread ---------------------------------------------------------------------------------------

    def begin(self, first: int) -> None:
        """The engine has taken it; its numbers of the answers are `first` and those after it."""
        self.waited = time.perf_counter() - self._start
        for index, sequence in enumerate(self.sequences):
            sequence.handle = first + index

    def note_scores(self, scores: list[tuple[int, float, list[tuple[int, float]]]]) -> None:
        """The next log-probabilities of the prompt's tokens."""
        if self.prompt_logprobs is not None:
            self.prompt_logprobs += [_ranked(self._tokenizer, *score) for score in scores]

    def tell(self) -> None:
        """Lets whoever waits know that there is more of it."""
        if self.done and not self._told:
            self._told = True
            self.owner = None
            for queue in list(self.finished):
                queue.put(self)
        if self.listener is not None:
            with suppress(RuntimeError):  # of an event loop that was closed meanwhile
                self.listener()


class Answer:
    """One answer as it grows: its text, its stop strings, its log-probabilities."""

    def __init__(
        self, index: int, request: Request, tokenizer: Tokenizer | None, eos: set[int], guide: Guide | None
    ) -> None:
        params = request.params
        self.request = request
        self.handle = 0  # the engine's number of it, from 1 on once it has one
        self.output = CompletionOutput(index=index)
        self.done = False
        self.error: Exception | None = None
        self.edits = bool(params.logits_processors or params.structured_outputs)
        self.guide = guide
        self.chunks: deque[tuple[str, int, float | None, str | None]] = deque()
        self._texts: list[str] = []
        self.first_time = self.last_time = self.queue_time = 0.0
        self.preemptions = self.cached_tokens = 0
        self._params = params
        self._eos = eos
        self._ends = frozenset(params.stop_token_ids or ())
        self._tokenizer = tokenizer
        self._decoder: DecodeStream | None = None
        if tokenizer is not None:
            self._decoder = tokenizer.decode_stream(params.skip_special_tokens)
            # The prompt may end inside a character, or mean that the answer's first space is a real one.
            for token in request.ids[-_UTF8_TAIL:]:
                if tokenizer._has(token):  # others have no text
                    self._decoder.step(token)
        self._stop = StopMatcher(params.stop or (), include=params.include_stop_str_in_output)
        if params.logprobs is not None:
            self.output.logprobs = []
            self.output.cumulative_logprob = 0.0

    def take(self, token: int, logprob: float, top: list[tuple[int, float]], finish: str | None, error: str) -> None:
        """The next token, from the engine."""
        self.last_time = time.perf_counter()
        self.first_time = self.first_time or self.last_time
        if finish == "error":
            where = ", after the request's own logits processors or structured output" if self.edits else ""
            self.fail(self.error or NumericError(error + where))
            return
        output = self.output
        output.token_ids.append(token)
        if output.logprobs is not None:
            self._note_logprob(token, logprob, top)
        if self.guide is not None and finish is None:
            try:
                finish = "stop" if self.guide.take(output.token_ids) else None
            except LimitError as problem:
                self.fail(problem)
                return
        ended = token in self._ends and finish == "stop"
        text = ""
        if self._decoder is not None and not (ended and self._params.skip_special_tokens and token in self._eos):
            enough = len(output.token_ids) >= (self._params.min_tokens or 0)
            try:
                text = self._decoder.step(token)
            except ArgumentError:  # a gap in the vocabulary
                text = ""
            text = self._stop.push(text, can_stop=enough)
        if self._stop.matched is not None:
            finish, output.stop_reason = "stop", self._stop.matched
        elif ended and token not in self._eos:
            output.stop_reason = token
        if finish is not None and self._decoder is not None and self._stop.matched is None:
            text += self._stop.push(self._decoder.finish()) + self._stop.finish()
        if self._params.echo and len(output.token_ids) == 1:
            text = (self.request.prompt or "") + text
        self._texts.append(text)
        output.finish_reason = finish
        shown = logprob if self._params.logprobs is not None else None
        self.chunks.append((text, token, shown, finish))
        self.done = finish is not None  # last, for others look at it

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        self.error = error
        self.abort()

    def abort(self) -> None:
        """Ends it with what it has."""
        self.output.finish_reason = "abort"
        self.done = True

    def whole_output(self) -> CompletionOutput:
        """The answer so far."""
        self.output.text = "".join(self._texts)
        return self.output

    def _note_logprob(self, token: int, logprob: float, top: list[tuple[int, float]]) -> None:
        assert self.output.logprobs is not None
        self.output.logprobs.append(_ranked(self._tokenizer, token, logprob, top))
        self.output.cumulative_logprob = (self.output.cumulative_logprob or 0.0) + logprob

    def edit(self, tokens: npt.NDArray[np.int32], prompt: int, row: npt.NDArray[np.float32]) -> None:
        """Lets the logits processors change `row`. What one raises ends this request, as an ArgumentError."""
        output = tokens[prompt:].tolist()
        processors = self._params.logits_processors or ()
        before = tokens[:prompt].tolist() if processors else []
        try:
            for processor in processors:
                arguments = (before, output, row) if takes_prompt(processor) else (output, row)
                changed = processor(*arguments)
                if changed is not None and changed is not row:
                    row[:] = changed
            if self.guide is not None:
                self.guide.apply(output, row)
        except LimitError as error:
            self.error = error
            raise
        except BaseException as error:  # this request's own, whatever it is
            self.error = ArgumentError(f"a logits processor failed: {type(error).__name__}{_message(error)}")
            self.error.__cause__ = error
            raise self.error from error


def _message(error: BaseException) -> str:
    try:
        return f": {escape(str(error), 200)}"
    except Exception:  # its own __str__ failed
        return ""


def _ranked(
    tokenizer: Tokenizer | None, token: int, logprob: float, top: list[tuple[int, float]]
) -> dict[int, Logprob]:
    """The log-probabilities of a place: the likeliest tokens, best first, and `token`."""

    def piece(id: int) -> str | None:
        return tokenizer.decode([id]) if tokenizer is not None and tokenizer._has(id) else None

    ranked = {id: Logprob(value, rank, piece(id)) for rank, (id, value) in enumerate(top, 1)}
    if token not in ranked:
        ranked[token] = Logprob(logprob, None, piece(token))
    return ranked
