"""AsyncLLM: the same engine for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

from llmcore.errors import BusyError, ClosedError
from llmcore.llm import LLM
from llmcore.outputs import RequestOutput, StreamChunk
from llmcore.prompts import Prompt
from llmcore.request import Request
from llmcore.sampling import SamplingParams

__all__ = ["AsyncLLM"]

_READERS = 4  # threads that make tokens of prompts


class AsyncLLM:
    """An LLM whose answers are awaited; no call blocks the event loop. Takes what `LLM` takes.

        async with llmcore.AsyncLLM("tiny") as llm:
            async for chunk in llm.stream("The prince"):
                print(chunk.text, end="")

    The model is loaded on entry; on exit requests that still run are cancelled. A cancelled task cancels its request.
    Raises BusyError when it is entered a second time before that.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arguments = (args, kwargs)
        self._llm: LLM | None = None
        self._entered = False

    @property
    def llm(self) -> LLM:
        """The LLM beneath. Raises ClosedError outside of `async with`."""
        if self._llm is None:
            raise ClosedError("an AsyncLLM is used inside `async with`")
        return self._llm

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[StreamChunk, None]:
        """Answers one prompt token by token. Leaving the loop cancels the rest. Raises as `LLM.generate`."""
        more = asyncio.Event()
        request = await self._start(more, prompt, params, priority, cache_salt)
        try:
            while True:
                done = request.done
                for chunk in request.take_chunks():
                    yield chunk
                if done:
                    request.raise_error()
                    return
                await more.wait()
                more.clear()
        finally:
            request.abandon()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Answers one prompt; several at once through `asyncio.gather`. Raises as `LLM.generate`."""
        more = asyncio.Event()
        request = await self._start(more, prompt, params, priority, cache_salt)
        try:
            while not request.done:
                await more.wait()
                more.clear()
            return request.output()
        finally:
            request.abandon()

    async def _start(
        self,
        more: asyncio.Event,
        prompt: Prompt,
        params: SamplingParams | None,
        priority: int,
        cache_salt: str | None,
    ) -> Request:
        """Submits; `more` is set whenever there is more of the answer."""
        loop = asyncio.get_running_loop()

        def listener() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(more.set)

        submit = self.llm._submit_in_background
        call = partial(submit, prompt, params, priority, cache_salt, listener)
        if self._process != os.getpid():  # a forked one, without the threads
            self._make_readers()
        start = self._readers.submit(call)
        try:
            return await asyncio.shield(asyncio.wrap_future(start))
        except BaseException:  # the event loop may be gone by the time it has begun
            start.add_done_callback(_cancel_started)
            raise

    def stats(self) -> dict[str, int]:
        """As `LLM.stats`, after the last step."""
        return self.llm._loop.stats(wait=False)

    def _make_readers(self) -> None:
        self._readers, self._process = ThreadPoolExecutor(_READERS, "llmcore-prompts"), os.getpid()

    async def __aenter__(self) -> Self:
        if self._entered:
            raise BusyError("this AsyncLLM is in use already: make another one")
        self._entered = True
        args, kwargs = self._arguments
        self._make_readers()
        try:
            self._llm = await asyncio.to_thread(LLM, *args, **kwargs)
        finally:
            self._entered = self._llm is not None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llm, self._llm = self.llm, None
        try:
            await asyncio.shield(asyncio.to_thread(llm._cancel_and_close))
        finally:
            self._entered = False
        self._readers.shutdown(wait=False)


def _cancel_started(start: Future[Request]) -> None:
    if not start.cancelled() and start.exception() is None:
        start.result().abandon()
