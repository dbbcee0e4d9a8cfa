"""A stream that ends when it is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcore.llm import LLM, StreamChunk
    from llmcore.sampling import SamplingParams


def streaming(
    llm: LLM, prompt: str | list[int], params: SamplingParams
) -> AbstractContextManager[Iterator[StreamChunk]]:
    """`llm.stream` as a context: Ctrl-C or a broken pipe inside cancels the request at once.

    Otherwise the request would live until the iterator is collected, and the LLM couldn't be closed.
    """
    return closing(llm.stream(prompt, params))
