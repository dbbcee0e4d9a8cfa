"""LLM: text or token ids in, text and token ids out, many prompts at once.

One native engine runs everybody's sequences on a thread of its own (engine_loop.py). `LLM` plans its memory, makes
requests of what callers give (prompts.py), hands them over and waits; request.py turns the engine's tokens into text.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from llmcore import _core
from llmcore.arguments import integer, one_of
from llmcore.engine_loop import EngineLoop
from llmcore.errors import ArgumentError, ArgumentTypeError, BusyError, ContextLengthError, OutOfMemoryError, shown
from llmcore.machine import memory
from llmcore.model import Model, check_count, kv_bytes_per_page, load
from llmcore.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
from llmcore.planning import PAGE_TOKENS, draft_sizes, step_sizes
from llmcore.progress import Progress
from llmcore.prompts import MAX_PROMPTS, Prompt, params_list, prompt_list, salt_bits, token_ids, with_stops
from llmcore.quantization import KV_DTYPES
from llmcore.request import Request
from llmcore.request_params import native_params
from llmcore.sampling import SamplingParams
from llmcore.speculative import SpeculativeConfig, load_draft
from llmcore.speculative import resolve as resolve_speculative

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmcore.beam import BeamSearchOutput, BeamSearchParams
    from llmcore.quantization import QuantConfig
    from llmcore.scoring import Loglikelihood, Reranked
    from llmcore.session import Session
    from llmcore.structured import Guide
    from llmcore.tokenizer import Tokenizer

DEFAULT_BATCH_SIZE = 32
_MEMORY_SHARE = 0.5
_UNKNOWN_MEMORY = 4 << 30  # where the system doesn't say
_log = logging.getLogger("llmcore")

__all__ = ["LLM", "CompletionOutput", "Logprob", "Request", "RequestMetrics", "RequestOutput", "StreamChunk"]


class LLM:
    """A model with a KV cache and a scheduler. A context manager; may be used from several threads.

    path_or_model: what `llmcore.load` takes, or a Model (which stays open when the LLM is closed).
    quantize, threads: as `llmcore.load`, for a path.
    max_model_len: tokens of one sequence, prompt and answer (default: the model's own maximum, cut to what the KV cache
        holds). max_batch_size: sequences that run at once (default 32); more prompts wait their turn.
    kv_dtype: "auto" (f32 for a float32 model, f16 for other floats, int8 for quantised weights), "f32", "f16", "bf16",
        or "int12", "int8" and "int4", with a float32 scale for each token and KV head. int12's error lies between
        those of f16 and bf16, int8's is about that of int8 weights. Integer keys go through a Walsh-Hadamard transform
        first, so that no element takes the bits of the others (QuaRot, Ashkboos et al. 2024). Over integers queries
        are rounded, too (over int8 and int4 to int8), and attention weights, to 12 bits or more of their largest.
    kv_cache_bytes: size of the KV cache (default: room for max_batch_size full sequences, at most half of the free
        memory). It is planned here and never grows; the system commits its pages when they are first used.
    max_memory: bytes that weights, activations and KV cache may take together: the KV cache gets what the others leave,
        and with it the context is cut, unless max_model_len asks for more than fits.
    enable_prefix_caching: pages of earlier prompts and answers are kept while nobody else wants them, and a prompt that
        begins with the same tokens doesn't compute them again.
    speculative: None; "ngram": up to 4 tokens a step are guessed from what followed the same words earlier in the text
        (an integer, 1 to 15: up to so many); a Model: that smaller one guesses; or a SpeculativeConfig. Each guess is
        verified: no token changes, at any temperature.
    seed: of requests whose SamplingParams have none (0 to 2**64 - 1).

    The same model, prompt, parameters and seed give the same bits, whatever else runs beside it.
    What the engine would have to wait for raises BusyError: calls of a logits processor, or of a signal's handler while
    its thread embeds or computes, beside stats() and cancel().
    Raises as `llmcore.load`, and OutOfMemoryError when not even one short sequence fits.
    """

    def __init__(
        self,
        path_or_model: str | os.PathLike[str] | Model,
        quantize: str | QuantConfig | None = None,
        *,
        max_model_len: int | None = None,
        max_batch_size: int | None = None,
        kv_dtype: str = "auto",
        kv_cache_bytes: int | None = None,
        max_memory: int | None = None,
        enable_prefix_caching: bool = True,
        speculative: str | int | Model | SpeculativeConfig | None = None,
        threads: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        limits = {
            "max_model_len": max_model_len,
            "max_batch_size": max_batch_size,
            "kv_cache_bytes": kv_cache_bytes,
            "max_memory": max_memory,
        }
        for name, value in limits.items():
            if value is not None:
                check_count(name, value)
        if max_batch_size is not None and max_batch_size > MAX_PROMPTS:
            raise ArgumentError(f"max_batch_size must be at most {MAX_PROMPTS}, got {shown(max_batch_size)}")
        if max_model_len == 1:
            raise ArgumentError("max_model_len must be at least 2: a token of the prompt and one of the answer")
        if not isinstance(enable_prefix_caching, bool):
            raise ArgumentTypeError(
                f"enable_prefix_caching must be True or False, got {type(enable_prefix_caching).__name__}"
            )
        one_of("kv_dtype", kv_dtype, ("auto", *KV_DTYPES))
        self.seed = integer("seed", seed, 0, 2**64 - 1)
        guessing = resolve_speculative(speculative)
        drafts = 0 if guessing is None else guessing.num_tokens
        self._owns_model = not isinstance(path_or_model, Model)
        if isinstance(path_or_model, Model):
            if quantize is not None or threads is not None:
                raise ArgumentError("quantize and threads belong to llmcore.load when a Model is given")
            self.model = path_or_model
        else:
            self.model = load(path_or_model, quantize, threads=threads, progress=progress)
        self._draft = None if guessing is None else load_draft(guessing, self.model, progress=progress)
        self._owns_draft = guessing is not None and self._draft is not guessing.model
        self.max_batch_size = batch = max_batch_size or DEFAULT_BATCH_SIZE
        kv = self.model.kv_dtype if kv_dtype == "auto" else kv_dtype
        given = {"kv_cache_bytes": kv_cache_bytes, "max_memory": max_memory}
        self._bounds = " and ".join(name for name in given if given[name] is not None) or "kv_cache_bytes"
        """The arguments to raise for more room in the KV cache."""
        step, rows = step_sizes(batch, drafts)
        sizes = [(self.model, step, rows)]
        if self._draft is not None:
            sizes.append((self._draft, *draft_sizes(batch)))
        length, fits = 0, PAGE_TOKENS
        while fits > length:  # the more context, the more activations
            length = fits
            used = sum(
                model.core.weight_bytes + model.core.planned_bytes(tokens, rows, length)
                for model, tokens, rows in sizes
            )
            budget = _cache_room(kv_cache_bytes, max_memory, used)
            pages, fits = self._plan_pages(kv, max_model_len, batch, budget)
        for model, tokens, rows in sizes:
            model.plan(max_tokens=tokens, max_logit_rows=rows, max_model_len=fits)
        self.max_model_len = fits
        self._asked = max_model_len is not None
        self._numbers = itertools.count(1)
        tokenizer = self.model.tokenizer
        engine = _core.Engine(
            self.model.core,
            max_model_len=self.max_model_len,
            max_batch_size=batch,
            max_step_tokens=step,
            pages=pages,
            kv_dtype=kv,
            drawable=tokenizer.vocab_size if tokenizer else self.model.spec.vocab_size,
            prefix_cache=enable_prefix_caching,
            draft_tokens=drafts,
            draft=None if self._draft is None else self._draft.core,
        )
        self._kv_bytes = engine.kv_bytes
        self._loop = EngineLoop(engine, [model.core for model, _, _ in sizes])
        weakref.finalize(self, self._loop.stop).atexit = False
        self.kv_dtype = kv
        self.enable_prefix_caching = enable_prefix_caching
        self.model._llms.add(self)

    def _plan_pages(self, kv: str, max_model_len: int | None, batch: int, budget: int) -> tuple[int, int]:
        """Pages of the KV cache, and tokens of one sequence."""
        spec = self.model.spec
        if max_model_len is not None and max_model_len > spec.max_position_embeddings:
            raise ArgumentError(
                f"max_model_len must be at most the model's {spec.max_position_embeddings} positions, "
                f"got {shown(max_model_len)}"
            )
        length = max_model_len or spec.max_position_embeddings
        models = [self.model] if self._draft is None else [self.model, self._draft]
        page_bytes = sum(kv_bytes_per_page(model.spec, kv) for model in models)
        pages = min(math.ceil(length / PAGE_TOKENS) * batch, budget // page_bytes)
        if pages < 1 or (max_model_len is not None and pages * PAGE_TOKENS < length):
            needed = page_bytes * math.ceil((max_model_len or PAGE_TOKENS) / PAGE_TOKENS)
            raise OutOfMemoryError(
                f"the KV cache of one sequence needs {needed:,} bytes, {budget:,} are available for it; the largest "
                f"context that fits is {pages * PAGE_TOKENS} tokens: lower max_model_len or raise {self._bounds}",
                needed=needed,
                available=budget,
                largest_context=pages * PAGE_TOKENS,
            )
        if pages * PAGE_TOKENS < length:
            _log.info("the context is cut to %d of %d tokens: the KV cache holds no more", pages * PAGE_TOKENS, length)
            length = pages * PAGE_TOKENS
        return pages, length

    def _check_length(self, length: int, name: str = "the prompt", answer: int = 1) -> None:
        """Raises ContextLengthError for a text of so many tokens if none is left for its `answer`."""
        if length + answer <= self.max_model_len:
            return
        remedy = f"shorten {name}"
        if self.max_model_len < self.model.spec.max_position_embeddings:
            remedy += f", or raise {'max_model_len' if self._asked else self._bounds}"
        least = " with at least one of them for the answer" * answer
        raise ContextLengthError(
            f"{name} has {length} tokens, but the context holds {self.max_model_len}{least}: {remedy}"
        )

    def _prompt_ids(self, prompt: Prompt, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a prompt. Raises as `generate`."""
        if not isinstance(prompt, str):
            return token_ids(prompt, self._check_length, self.model.spec.vocab_size)
        ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        self._check_length(len(ids))
        return ids

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError when it has none."""
        return self.model.require_tokenizer()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answers all prompts; always a list, in their order.

        prompts: a text, a list of texts, a list of token ids, or a list of such lists. params: for all, or one each.
        priority: the lowest number runs first, and may take the place of a higher one, which goes on later.
        cache_salt: only requests with the same salt share pages of the prefix cache.
        Ctrl-C ends it within 200 ms; the LLM stays usable.
        Raises ArgumentError, ContextLengthError (a prompt doesn't fit), TokenizerError (text without a tokenizer),
        NumericError (the model's logits are broken), ClosedError.
        """
        requests = [self._request(*work, priority, cache_salt) for work in self._requests(prompts, params)]
        self._run(requests, progress)
        return [request.output() for request in requests]

    def _run(self, requests: Sequence[Request], progress: bool) -> None:
        """Answers them all. What ends one by an error ends the others, too."""
        finished: SimpleQueue[Request] = SimpleQueue()
        for request in requests:
            request.finished.append(finished)
        try:
            self._loop.add(requests)
            with Progress(len(requests), "generating", "answers", enabled=progress) as bar:
                for done in range(1, len(requests) + 1):
                    self._loop.wait(finished).raise_error()
                    bar.update(done)
        finally:
            self._loop.drop(requests)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Request:
        """Starts to answer one prompt in the background, and returns at once. Raises as `generate`.

        The answer is `request.result()`; `request.cancel()` stops it within one step.
        """
        return self._submit_in_background(prompt, params, priority, cache_salt, None)

    def _submit_in_background(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        priority: int,
        cache_salt: str | None,
        listener: Callable[[], None] | None,
    ) -> Request:
        request = self._only_request(prompt, params, priority, cache_salt)
        request.listener = listener
        request.owner = self
        try:
            self._loop.add([request])
        except BaseException:
            self._loop.drop([request])
            raise
        return request

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Generator[StreamChunk, None, None]:
        """Answers one prompt token by token. Leaving the loop cancels the rest. Raises as `generate`."""
        return _Stream(self, self._loop, self._only_request(prompt, params, priority, cache_salt))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_format: str | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Answers a conversation, or a list of them, through the model's chat template; always a list.

        messages: [{"role": "user", "content": "..."}, ...]. `template_kwargs` go to the template. chat_format: as in
        Tokenizer.apply_chat_template, for a model without a template; an answer then ends at the format's texts too.
        Raises TemplateError (no template, or it failed), ArgumentError, and as `generate`.
        """
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise ArgumentTypeError(f"messages must be a conversation or a list of them, got {type(messages).__name__}")
        several = len(messages) > 0 and not isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Mapping[str, Any]]], messages if several else [messages])
        tokenizer = self.tokenizer
        prompts = [
            tokenizer.apply_chat_template(one, tools=tools, chat_format=chat_format, **template_kwargs)
            for one in conversations
        ]
        return self.generate(cast(list[Prompt], prompts), with_stops(params_list(params, len(prompts)), chat_format))

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, progress: bool = False
    ) -> list[BeamSearchOutput]:
        """The likeliest sequences after each prompt, found by beam search; always a list, in the prompts' order.

        Raises as `generate`, and ContextLengthError when prompt and max_tokens don't fit together.
        """
        from llmcore.beam import beam_search

        self._loop.require()
        return beam_search(self, prompt_list(prompts), params, progress)

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, pooling: str = "mean", normalize: bool = True, progress: bool = False
    ) -> npt.NDArray[np.float32]:
        """Embeddings, float32 [n, hidden]: the last layer's states after the final norm, pooled.

        texts: as `generate` takes prompts. pooling: "mean" over the tokens, "last" or "cls" (the first). normalize: to
        Euclidean length 1. The bits of a row depend on its own text alone.
        The keys and values of the texts lie in the KV cache, between the steps of the requests that run.
        Raises ArgumentError, ContextLengthError (longer than max_model_len), TokenizerError, NumericError (not finite),
        ClosedError.
        """
        from llmcore.scoring import embed

        self._loop.require()
        return embed(self, prompt_list(texts), pooling, normalize, progress)

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, Prompt]], *, progress: bool = False) -> list[Loglikelihood]:
        """How likely the model finds each continuation after its context, for (context, continuation) pairs.

        Contexts that begin alike are computed once, through the prefix cache. The tokens are those of both texts
        together, cut where the context's end, as lm-evaluation-harness does. Raises as `generate`.
        """
        from llmcore.scoring import loglikelihood

        self._loop.require()
        return loglikelihood(self, pairs, progress)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        method: str = "likelihood",
        instruction: str | None = None,
        top_n: int | None = None,
        progress: bool = False,
    ) -> list[Reranked]:
        """The documents by how well they answer the query, best first; `top_n` of them.

        method: "likelihood": the mean log-likelihood of the query's tokens after the document (Sachan et al., 2022,
        "Improving Passage Retrieval with Zero-Shot Question Generation"); for any model. "yes_no": the probability of
        "yes" against "no" as a reranker of the Qwen3 family answers in its chat format. instruction: the sentence
        between document and query, or the task of the reranker. Raises as `generate`.
        """
        from llmcore.scoring import rerank

        self._loop.require()
        return rerank(self, query, documents, method, instruction, top_n, progress)

    def session(self, *, cache_salt: str | None = None) -> Session:
        """A conversation, or a text that grows, to be forked, saved and restored. cache_salt: as for `generate`."""
        from llmcore.session import Session

        self._loop.require()
        return Session(self, cache_salt=cache_salt)

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """The session that `Session.save` wrote, its keys and values put into the prefix cache as far as there is room.

        What comes after has the bits it would have had without the break, in this process or another. What a file
        brings into the cache is found by this session and its forks alone. Raises
        CheckpointError (SafetensorsError) for a file that is broken or of another model, LimitError, StorageError.
        """
        from llmcore.session import restore

        self._loop.require()
        return restore(self, path)

    def stats(self) -> dict[str, int]:
        """Counts since the start, and what is so now.

        kv_pages_total, kv_pages_free (those that only the prefix cache holds count as free), requests_running and
        requests_waiting (sequences), prefix_hit_tokens, preemptions, steps, generated_tokens, drafted_tokens and
        accepted_tokens (of speculation).
        """
        return self._loop.stats()

    def close(self) -> None:
        """Gives the KV cache back, and the model unless it was given. Raises BusyError while requests run. Texts that
        another thread embeds meanwhile end by ClosedError, unless they are the last of theirs."""
        self._loop.close()
        self.model._llms.discard(self)
        if self._draft is not None and self._owns_draft:
            self._draft.close()
        if self._owns_model:
            self.model.close()

    def _cancel_and_close(self) -> None:
        while True:
            running = self._loop.running()
            self._loop.drop(running)
            try:
                return self.close()
            except BusyError:  # of a request that was on its way
                if not running and not self._loop.running():
                    raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # which what still runs is not to hide
            self._cancel_and_close()

    def __reduce__(self) -> Any:
        raise TypeError("an LLM holds native memory and can't be pickled or copied; make it again from its path")

    def _requests(self, prompts: Any, params: Any) -> list[tuple[Prompt, SamplingParams]]:
        self._loop.require()
        several = prompt_list(prompts)
        return list(zip(several, params_list(params, len(several)), strict=True))

    def _only_request(self, prompt: Any, params: Any, priority: int, cache_salt: str | None) -> Request:
        work = self._requests(prompt, params)
        if len(work) != 1:
            raise ArgumentError(f"prompt must be one prompt, got {len(work)}")
        return self._request(*work[0], priority, cache_salt)

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        priority: int = 0,
        cache_salt: str | None = None,
        *,
        score_from: int = 1,
    ) -> Request:
        """What is to be answered, checked and made ready for the engine."""
        priority = integer("priority", priority, -(2**31), 2**31 - 1)
        salt = salt_bits(cache_salt)
        start = time.perf_counter()
        model, tokenizer = self.model, self.model.tokenizer
        eos = set(model.spec.eos_ids) | set(tokenizer.eos_ids if tokenizer else ())
        if params.structured_outputs is not None:
            from llmcore.structured import end_tokens

            eos = end_tokens(eos, tokenizer)
        params = params.resolve(model.generation_config, eos, model.spec.vocab_size)
        text = prompt if isinstance(prompt, str) else None
        ids = self._prompt_ids(prompt)
        if params.echo and text is None:
            text = model.require_tokenizer()._text(ids)
        seed = self.seed if params.seed is None else params.seed
        native = native_params(params, tokenizer, seed=seed, salt=salt, priority=priority, score_from=score_from)
        return Request(
            self._loop,
            model.fingerprint,
            tokenizer,
            text,
            ids,
            params,
            number=next(self._numbers),
            native=_core.Request(ids, native),
            eos=eos,
            guides=self._guides(params, tokenizer, eos),
            start=start,
        )

    def _guides(self, params: SamplingParams, tokenizer: Tokenizer | None, eos: set[int]) -> list[Guide]:
        """One for each of the n answers that must be structured."""
        if params.structured_outputs is None:
            return []
        from llmcore.structured import guide

        vocab_size = self.model.spec.vocab_size
        ends = frozenset(id for id in eos if id < vocab_size)
        return [guide(params.structured_outputs, tokenizer, vocab_size, ends) for _ in range(params.n)]


def _cache_room(kv_cache_bytes: int | None, max_memory: int | None, used: int) -> int:
    """Bytes that the KV cache may take, beside `used` ones of weights and activations."""
    if max_memory is None:
        free = memory().available
        return kv_cache_bytes or int((_UNKNOWN_MEMORY if free is None else free) * _MEMORY_SHARE)
    if used >= max_memory:
        raise OutOfMemoryError(
            f"weights and activations take {used:,} bytes and max_memory is {max_memory:,}: raise it, or choose fewer "
            "bits or a smaller max_batch_size",
            needed=used,
            available=max_memory,
            largest_context=0,
        )
    return min(max_memory - used, kv_cache_bytes or max_memory)


class _Stream(Generator[StreamChunk, None, None]):
    """What comes of one request. Its end, whoever brings it about, cancels the rest."""

    def __init__(self, llm: LLM, loop: EngineLoop, request: Request) -> None:
        self._llm: LLM | None = llm  # lives as long as there is more
        self._loop = loop
        self._request = request
        self._chunks: deque[StreamChunk] = deque()
        self._more: SimpleQueue[None] = SimpleQueue()
        request.listener = partial(self._more.put, None)
        loop.add([request])

    def send(self, value: None) -> StreamChunk:
        while True:
            with suppress(IndexError):  # another thread may have taken it
                return self._chunks.popleft()
            if self._llm is None:
                self._more.put(None)  # for the next thread that waits
                raise StopIteration
            done = self._request.done
            self._chunks.extend(self._request.take_chunks())
            if self._chunks:
                continue
            if done:
                self._llm = None
                self._more.put(None)
                self._request.raise_error()
                raise StopIteration
            try:
                self._loop.wait(self._more)
            except BaseException:
                self._end()
                raise

    def throw(self, *error: Any) -> StreamChunk:  # as a generator that doesn't catch it
        self._end()
        return super().throw(*error)

    def close(self) -> None:
        if self._llm is not None and not self._request.done:
            self._loop.cancel(self._request)
        self._end()

    def __reduce__(self) -> Any:
        raise TypeError("a stream of tokens can't be pickled or copied")

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        self._chunks.clear()
        self._llm = None
        self._loop.drop([self._request])
