"""LLM: text or token ids in, text and token ids out, many prompts at once.

One native engine runs everybody's sequences. `LLM` puts prompts into it and makes its steps, on the caller's thread or,
for streams, on its own; a `Request` is one prompt with its n answers, a `_Sequence` one answer: it turns the engine's
tokens into text, finds stop strings and keeps what the result reports. Checks of arguments are at the end.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from llmcore import _core
from llmcore.chat_formats import chat_format as named_format
from llmcore.errors import (
    ArgumentError,
    ArgumentTypeError,
    BusyError,
    ClosedError,
    ContextLengthError,
    LimitError,
    NumericError,
    OutOfMemoryError,
    escape,
)
from llmcore.fair_lock import FairLock
from llmcore.model import EXTRA_LOGIT_ROWS, STEP_TOKENS, Model, kv_bytes_per_page, load
from llmcore.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
from llmcore.progress import Progress
from llmcore.quantization import KV_DTYPES
from llmcore.request_params import native_params
from llmcore.sampling import SamplingParams, takes_prompt
from llmcore.speculative import SpeculativeConfig, load_draft
from llmcore.speculative import resolve as resolve_speculative
from llmcore.stop import StopMatcher

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import numpy.typing as npt

    from llmcore.beam import BeamSearchOutput, BeamSearchParams
    from llmcore.quantization import QuantConfig
    from llmcore.scoring import Loglikelihood, Reranked
    from llmcore.session import Session
    from llmcore.structured import Guide
    from llmcore.tokenizer import DecodeStream, Tokenizer

PAGE_TOKENS = 16
DEFAULT_BATCH_SIZE = 32
MAX_PROMPTS = 1 << 16
_MEMORY_SHARE = 0.5
_FINISH = (None, "stop", "length", "error")
_UTF8_TAIL = 4

Prompt = str | Sequence[int]
_log = logging.getLogger("llmcore")

__all__ = ["LLM", "CompletionOutput", "Logprob", "Request", "RequestMetrics", "RequestOutput", "StreamChunk"]


class LLM:
    """A model with a KV cache and a scheduler. A context manager; may be used from several threads.

    path_or_model: what `llmcore.load` takes, or a Model (which stays open when the LLM is closed).
    quantize, threads: as `llmcore.load`, for a path.
    max_model_len: tokens of one sequence, prompt and answer (default: the model's own maximum, cut to what the KV cache
        holds). max_batch_size: sequences that run at once (default 32); more prompts wait their turn.
    kv_dtype: "auto" (f32 for a float32 model, else f16), "f32", "f16", "bf16", or "int8" and "int4", with a float32
        scale for each token and KV head; queries are rounded to int8 for their keys, attention weights to 14 bits for
        their values.
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
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ArgumentError(f"{name} must be an integer of at least 1, got {value!r}")
        if kv_dtype not in ("auto", *KV_DTYPES):
            raise ArgumentError(f"kv_dtype must be one of auto, {', '.join(KV_DTYPES)}, got {kv_dtype!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ArgumentError(f"seed must be an integer within [0, 2**64), got {seed!r}"[:200])
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
        self.seed = seed
        batch = max_batch_size or DEFAULT_BATCH_SIZE
        kv = self.model.kv_dtype if kv_dtype == "auto" else kv_dtype
        step = max(STEP_TOKENS, batch)
        rows = batch + max(EXTRA_LOGIT_ROWS, min(drafts * batch, STEP_TOKENS))
        if max_memory is not None:
            self.model.plan(max_tokens=step, max_logit_rows=rows, max_model_len=max_model_len or PAGE_TOKENS)
            used = self.model.core.weight_bytes + self.model.core.activation_bytes
            used += 0 if self._draft is None else self._draft.core.weight_bytes
            kv_cache_bytes = min(max_memory - used, kv_cache_bytes or max_memory)
        pages, length = self._plan_pages(kv, max_model_len, batch, kv_cache_bytes)
        self.max_model_len = length
        self.max_batch_size = batch
        self._lock = FairLock()
        self._submitted: set[Request] = set()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._sequences: dict[int, _Sequence] = {}
        self._editing = 0  # of them, those whose logits Python changes
        self._masks: ThreadPoolExecutor | None = None  # computes the masks of structured outputs
        self._next_request = 0
        self.model.plan(max_tokens=step, max_logit_rows=rows, max_model_len=length)
        if self._draft is not None:
            self._draft.plan(max_tokens=max(STEP_TOKENS, 2 * batch), max_logit_rows=batch, max_model_len=length)
        tokenizer = self.model.tokenizer
        self._engine: _core.Engine | None = _core.Engine(
            self.model.core,
            max_model_len=length,
            max_batch_size=batch,
            max_step_tokens=step,
            pages=pages,
            kv_dtype=kv,
            drawable=tokenizer.vocab_size if tokenizer else self.model.spec.vocab_size,
            prefix_cache=enable_prefix_caching,
            draft_tokens=drafts,
            draft=None if self._draft is None else self._draft.core,
        )
        self._kv_bytes = self._engine.kv_bytes
        self.kv_dtype = kv
        self.enable_prefix_caching = enable_prefix_caching
        self.model._llms.add(self)

    def _plan_pages(self, kv: str, max_model_len: int | None, batch: int, budget: int | None) -> tuple[int, int]:
        """Pages of the KV cache, and tokens of one sequence."""
        spec = self.model.spec
        if max_model_len is not None and max_model_len > spec.max_position_embeddings:
            raise ArgumentError(
                f"max_model_len must be at most the model's {spec.max_position_embeddings} positions, "
                f"got {max_model_len}"
            )
        length = max_model_len or spec.max_position_embeddings
        page_bytes = kv_bytes_per_page(spec, kv)
        if self._draft is not None:
            page_bytes += kv_bytes_per_page(self._draft.spec, kv)
        available = _available_memory()
        if budget is None:
            budget = int(available * _MEMORY_SHARE)
        pages = min(math.ceil(length / PAGE_TOKENS) * batch, max(budget, 0) // page_bytes)
        if pages < 1 or (max_model_len is not None and pages * PAGE_TOKENS < length):
            needed = page_bytes * math.ceil((max_model_len or PAGE_TOKENS) / PAGE_TOKENS)
            raise OutOfMemoryError(
                f"the KV cache of one sequence needs {needed:,} bytes, {budget:,} are available for it; the largest "
                f"context that fits is {pages * PAGE_TOKENS} tokens: lower max_model_len or raise kv_cache_bytes",
                needed=needed,
                available=budget,
                largest_context=pages * PAGE_TOKENS,
            )
        if pages * PAGE_TOKENS < length:
            _log.info("the context is cut to %d of %d tokens: the KV cache holds no more", pages * PAGE_TOKENS, length)
            length = pages * PAGE_TOKENS
        return pages, length

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
        work = self._requests(prompts, params)
        requests: list[Request] = []
        try:
            for prompt, one in work:
                requests.append(self._submit(prompt, one, priority, cache_salt))
            self._finish(requests, progress)
            return [request.output(self.model.fingerprint) for request in requests]
        finally:
            self._drop(requests)

    def _finish(self, requests: Sequence[Request], progress: bool) -> None:
        """Steps until all are answered."""
        pending = [sequence for request in requests for sequence in request.sequences]
        with Progress(len(pending), "generating", "answers", enabled=progress) as bar:
            while any(not sequence.done for sequence in pending):
                self._step(pending)
                bar.update(sum(sequence.done for sequence in pending))

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
        work = self._requests(prompt, params)
        if len(work) != 1:
            raise ArgumentError(f"prompt must be one prompt, got {len(work)}")
        request = self._submit(*work[0], priority, cache_salt, listener, background=True)
        self._work.set()
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
        ((ids, one),) = self._requests(prompt, params)
        request = self._submit(ids, one, priority, cache_salt)  # at once, so that errors come from this call

        def chunks() -> Generator[StreamChunk, None, None]:
            try:
                while True:
                    done = all(sequence.done for sequence in request.sequences)
                    yield from request.take_chunks()
                    if done:
                        request.raise_error()
                        return
                    self._step(request.sequences)
            finally:
                self._drop([request])

        return chunks()

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
        if chat_format is not None:
            stops = named_format(chat_format).stops
            several_params = [params] if params is None or isinstance(params, SamplingParams) else list(params)
            ended = [replace(one, stop=(*(one.stop or ()), *stops)) for one in map(_or_default, several_params)]
            params = ended[0] if params is None or isinstance(params, SamplingParams) else ended
        return self.generate(cast(list[Prompt], prompts), params)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, progress: bool = False
    ) -> list[BeamSearchOutput]:
        """The likeliest sequences after each prompt, found by beam search; always a list, in the prompts' order.

        Raises as `generate`, and ContextLengthError when prompt and max_tokens don't fit together.
        """
        from llmcore.beam import beam_search

        self._require_engine()
        return beam_search(self, _prompts(prompts), params, progress)

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, pooling: str = "mean", normalize: bool = True, progress: bool = False
    ) -> npt.NDArray[np.float32]:
        """Embeddings, float32 [n, hidden]: the last layer's states after the final norm, pooled.

        texts: as `generate` takes prompts. pooling: "mean" over the tokens, "last" or "cls" (the first). normalize: to
        Euclidean length 1. The bits of a row depend on its own text alone.
        Raises ArgumentError, ContextLengthError (longer than the model's context), TokenizerError, ClosedError.
        """
        from llmcore.scoring import embed

        self._require_engine()
        return embed(self, _prompts(texts), pooling, normalize, progress)

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, Prompt]], *, progress: bool = False) -> list[Loglikelihood]:
        """How likely the model finds each continuation after its context, for (context, continuation) pairs.

        Contexts that begin alike are computed once, through the prefix cache. The tokens are those of both texts
        together, cut where the context's end, as lm-evaluation-harness does. Raises as `generate`.
        """
        from llmcore.scoring import loglikelihood

        self._require_engine()
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

        self._require_engine()
        return rerank(self, query, documents, method, instruction, top_n, progress)

    def session(self, *, cache_salt: str | None = None) -> Session:
        """A conversation, or a text that grows, to be forked, saved and restored. cache_salt: as for `generate`."""
        from llmcore.session import Session

        self._require_engine()
        return Session(self, cache_salt=cache_salt)

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """The session that `Session.save` wrote, its keys and values put into the prefix cache as far as there is room.

        What comes after has the bits it would have had without the break, in this process or another. Raises
        CheckpointError (SafetensorsError) for a file that is broken or of another model, LimitError, StorageError.
        """
        from llmcore.session import restore

        self._require_engine()
        return restore(self, path)

    def stats(self) -> dict[str, int]:
        """Counts since the start, and what is so now.

        kv_pages_total, kv_pages_free (those that only the prefix cache holds count as free), requests_running and
        requests_waiting (sequences), prefix_hit_tokens, preemptions, steps, generated_tokens, drafted_tokens and
        accepted_tokens (of speculation).
        """
        return self._require_engine().stats()

    def close(self) -> None:
        """Gives the KV cache back, and the model unless it was given. Raises BusyError while requests run."""
        if self._engine is None:
            return
        with self._lock:
            if self._sequences:
                raise BusyError(f"{len(self._sequences)} requests are running: finish or leave them before close()")
            self._engine = None
        self._work.set()
        if self._thread is not None:
            self._thread.join()
        if self._masks is not None:
            self._masks.shutdown()
        self.model._llms.discard(self)
        if self._draft is not None and self._owns_draft:
            self._draft.close()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an LLM holds native memory and can't be pickled or copied; make it again from its path")

    def _require_engine(self) -> _core.Engine:
        if self._engine is None:
            raise ClosedError("the LLM was closed")
        return self._engine

    def _requests(self, prompts: Any, params: Any) -> list[tuple[Prompt, SamplingParams]]:
        self._require_engine()
        several = _prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * len(several)
        else:
            each = list(params)
            if len(each) != len(several):
                raise ArgumentError(
                    f"params must be one, or one for each of the {len(several)} prompts: got {len(each)}"
                )
        return list(zip(several, each, strict=True))

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        priority: int = 0,
        cache_salt: str | None = None,
        listener: Callable[[], None] | None = None,
        *,
        background: bool = False,
        score_from: int = 1,
    ) -> Request:
        if isinstance(priority, bool) or not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
            raise ArgumentError(f"priority must be an integer within [-2**31, 2**31), got {priority!r}"[:200])
        salt = _salt(cache_salt)
        start = time.perf_counter()
        engine, model = self._require_engine(), self.model
        tokenizer = model.tokenizer
        eos = set(model.spec.eos_ids) | set(tokenizer.eos_ids if tokenizer else ())
        params = params.resolve(model.generation_config, eos, model.spec.vocab_size)
        text = prompt if isinstance(prompt, str) else None
        ids = model.require_tokenizer().encode(text) if text is not None else _token_ids(prompt, self.max_model_len)
        if params.echo and text is None:
            text = model.require_tokenizer().decode(ids)
        request = Request(self, text, ids, params, start, listener)
        seed = self.seed if params.seed is None else params.seed
        native = native_params(params, tokenizer, seed=seed, salt=salt, priority=priority, score_from=score_from)
        guides = self._guides(params, tokenizer, eos)
        with self._lock:
            self._next_request += 1
            request.request_id = self._next_request
            first = engine.submit(ids, native)
            for index in range(params.n):
                sequence = _Sequence(first + index, index, request, tokenizer, eos)
                request.sequences.append(sequence)
                if guides:
                    sequence.guide = guides[index]
                self._sequences[first + index] = sequence
                self._editing += sequence.edits
            if background:
                self._submitted.add(request)
                if self._thread is None:
                    weakref.finalize(self, self._work.set).atexit = False
                    served = (weakref.ref(self), self._work)
                    self._thread = threading.Thread(target=_serve, args=served, name="llmcore-engine", daemon=True)
                    self._thread.start()
        return request

    def _step(self, mine: Sequence[_Sequence]) -> None:
        """One step of the engine, for everyone's requests; nothing if another thread has just finished `mine`."""
        with self._lock:
            if all(sequence.done for sequence in mine):
                return
            self._step_locked()

    def _step_locked(self) -> None:
        engine = self._require_engine()
        editor = self._edit if self._editing else None
        for handle, token, logprob, top, finish, error, queue_time, preemptions, cached, scores in engine.step(editor):
            sequence = self._sequences.get(handle)
            if sequence is None:
                continue
            if scores:
                sequence.request.note_scores(scores)
            if token is None and not error:
                continue
            sequence.queue_time, sequence.preemptions, sequence.cached_tokens = queue_time, preemptions, cached
            sequence.take(token or 0, logprob, top, _FINISH[finish], error)
            if sequence.done:
                engine.cancel(handle)
                self._forget(handle)
            elif sequence.guide is not None and self._masks is not None:
                sequence.guide.prepare(self._masks)
            self._tell(sequence.request)

    def _guides(self, params: SamplingParams, tokenizer: Tokenizer | None, eos: set[int]) -> list[Guide]:
        """One for each of the n answers that must be structured."""
        if params.structured_outputs is None:
            return []
        from concurrent.futures import ThreadPoolExecutor

        from llmcore.structured import guide

        vocab_size = self.model.spec.vocab_size
        ends = frozenset(id for id in eos if id < vocab_size)
        made = [guide(params.structured_outputs, tokenizer, vocab_size, ends) for _ in range(params.n)]
        if self._masks is None:
            self._masks = ThreadPoolExecutor(1, "llmcore-masks")
        for one in made:
            one.prepare(self._masks)
        return made

    def _forget(self, handle: int) -> _Sequence | None:
        sequence = self._sequences.pop(handle, None)
        if sequence is not None:
            self._editing -= sequence.edits
        return sequence

    def _edit(self, handle: int, tokens: npt.NDArray[np.int32], prompt: int, row: npt.NDArray[np.float32]) -> None:
        self._sequences[handle].edit(tokens, prompt, row)

    def _tell(self, request: Request) -> None:
        """Lets whoever waits for the request know that there is more of it."""
        if request in self._submitted and all(sequence.done for sequence in request.sequences):
            self._submitted.remove(request)
            request.finished.set()
        if request.listener is not None:
            request.listener()

    def _serve_step(self) -> bool:
        """A step of the engine's thread, if there are submitted requests; False once the engine is closed."""
        with self._lock:
            if self._engine is None:
                return False
            if not self._submitted:
                self._work.clear()
                return True
            try:
                self._step_locked()
            except Exception as error:  # whoever waits for an answer raises it
                self._fail(error)
            return True

    def _fail(self, error: Exception) -> None:
        for handle, sequence in list(self._sequences.items()):
            self._require_engine().cancel(handle)
            self._forget(handle)
            sequence.error, sequence.done = error, True
            self._tell(sequence.request)

    def _drop(self, requests: Sequence[Request]) -> None:
        """Cancels what is still running of `requests`."""
        if all(request.done for request in requests):
            return
        with self._lock:
            engine = self._engine
            if engine is None:
                return
            for request in requests:
                for sequence in request.sequences:
                    if self._forget(sequence.handle) is not None:
                        engine.cancel(sequence.handle)
                        sequence.done = True
                        sequence.output.finish_reason = "abort"
                self._tell(request)


def _serve(reference: weakref.ref[LLM], work: threading.Event) -> None:
    """The engine's thread. While it waits, it doesn't keep the LLM alive."""
    while True:
        work.wait()
        llm = reference()
        if llm is None or not llm._serve_step():
            return
        del llm


class Request:
    """A prompt that is being answered, with its `n` sequences."""

    def __init__(
        self,
        llm: LLM,
        prompt: str | None,
        ids: list[int],
        params: SamplingParams,
        start: float,
        listener: Callable[[], None] | None,
    ) -> None:
        self.request_id = 0
        self.prompt = prompt
        self.ids = ids
        self.params = params
        self.start = start
        self.sequences: list[_Sequence] = []
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]
        self.finished = threading.Event()
        self.listener = listener
        self._llm = llm

    @property
    def done(self) -> bool:
        """Whether the answer is complete, or was cancelled."""
        return all(sequence.done for sequence in self.sequences)

    def cancel(self) -> None:
        """Stops it within one step; the answer so far stays, with finish_reason "abort"."""
        self._llm._drop([self])

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the answer, `timeout` seconds at most. Raises TimeoutError, NumericError."""
        if not self.finished.wait(timeout):
            raise TimeoutError(f"request {self.request_id} is not finished after {timeout} seconds")
        return self.output(self._llm.model.fingerprint)

    def note_scores(self, scores: list[tuple[int, float, list[tuple[int, float]]]]) -> None:
        """The next log-probabilities of the prompt's tokens, from the engine."""
        if self.prompt_logprobs is not None:
            self.prompt_logprobs += [_ranked(self._llm.model.tokenizer, *score) for score in scores]

    def take_chunks(self) -> list[StreamChunk]:
        """The tokens that have come since the last call."""
        chunks = []
        for sequence in self.sequences:
            while sequence.chunks:
                chunks.append(StreamChunk(*sequence.chunks.popleft(), sequence.output.index))
        return chunks

    def raise_error(self) -> None:
        """Raises what went wrong, if something did."""
        for sequence in self.sequences:
            if sequence.error is not None:
                raise sequence.error

    def output(self, fingerprint: str) -> RequestOutput:
        """The answer."""
        self.raise_error()
        outputs = [sequence.whole_output() for sequence in self.sequences]
        first = self.sequences[0]
        tokens = len(first.output.token_ids)
        metrics = RequestMetrics(
            queue_time=first.queue_time,
            time_to_first_token=max(first.first_time - self.start, 0.0),
            time_per_token=(first.last_time - first.first_time) / (tokens - 1) if tokens > 1 else 0.0,
            cached_tokens=first.cached_tokens,
            preemptions=sum(sequence.preemptions for sequence in self.sequences),
        )
        text = repr((fingerprint, self.ids, self.params, [output.token_ids for output in outputs]))
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return RequestOutput(self.request_id, self.prompt, self.ids, outputs, metrics, digest, self.prompt_logprobs)


class _Sequence:
    """One answer as it grows: its text, its stop strings, its log-probabilities."""

    def __init__(
        self,
        handle: int,
        index: int,
        request: Request,
        tokenizer: Tokenizer | None,
        eos: set[int],
    ) -> None:
        params = request.params
        self.request = request
        self.handle = handle
        self.output = CompletionOutput(index=index)
        self.done = False
        self.error: Exception | None = None
        self.edits = bool(params.logits_processors or params.structured_outputs)
        self.guide: Guide | None = None
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
                self._decoder.step(token)
        stops = params.stop or ()
        self._stop = StopMatcher(stops, include=params.include_stop_str_in_output)
        if params.logprobs is not None:
            self.output.logprobs = []
            self.output.cumulative_logprob = 0.0

    def take(self, token: int, logprob: float, top: list[tuple[int, float]], finish: str | None, error: str) -> None:
        """The next token, from the engine."""
        self.last_time = time.perf_counter()
        self.first_time = self.first_time or self.last_time
        if finish == "error":
            self.error = self.error or NumericError(error)
            self.done, self.output.finish_reason = True, "abort"
            return
        output = self.output
        output.token_ids.append(token)
        if output.logprobs is not None:
            self._note_logprob(token, logprob, top)
        if self.guide is not None and finish is None:
            try:
                finish = "stop" if self.guide.take(output.token_ids) else None
            except LimitError as problem:
                self.error, self.done, output.finish_reason = problem, True, "abort"
                return
        ended = token in self._ends and finish == "stop"
        text = ""
        if self._decoder is not None and not (ended and self._params.skip_special_tokens and token in self._eos):
            enough = len(output.token_ids) >= (self._params.min_tokens or 0)
            text = self._stop.push(self._decoder.step(token), can_stop=enough)
        if self._stop.matched is not None:
            finish, output.stop_reason = "stop", self._stop.matched
        elif ended and token not in self._eos:
            output.stop_reason = token
        if finish is not None:
            self.done = True
            if self._decoder is not None and self._stop.matched is None:
                text += self._stop.push(self._decoder.finish()) + self._stop.finish()
        if self._params.echo and len(output.token_ids) == 1:
            text = (self.request.prompt or "") + text
        self._texts.append(text)
        output.finish_reason = finish
        shown = logprob if self._params.logprobs is not None else None
        self.chunks.append((text, token, shown, finish))

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
        except Exception as error:
            self.error = ArgumentError(f"a logits processor failed: {type(error).__name__}: {escape(str(error), 200)}")
            self.error.__cause__ = error
            raise


def _ranked(
    tokenizer: Tokenizer | None, token: int, logprob: float, top: list[tuple[int, float]]
) -> dict[int, Logprob]:
    """The log-probabilities of a place: the likeliest tokens, best first, and `token`."""

    def piece(id: int) -> str | None:
        return tokenizer.decode([id]) if tokenizer is not None and id < tokenizer.vocab_size else None

    ranked = {id: Logprob(value, rank, piece(id)) for rank, (id, value) in enumerate(top, 1)}
    if token not in ranked:
        ranked[token] = Logprob(logprob, None, piece(token))
    return ranked


def _or_default(params: SamplingParams | None) -> SamplingParams:
    return params or SamplingParams()


def _salt(salt: str | None) -> tuple[int, int]:
    """128 bits of a cryptographic hash, so that nobody can find another's."""
    if salt is None:
        return 0, 0
    if not isinstance(salt, str):
        raise ArgumentTypeError(f"cache_salt must be a string, got {type(salt).__name__}")
    digest = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def _prompts(prompts: Any) -> list[Prompt]:
    """The prompts in what a caller gave: a text, token ids, or a list of either."""
    if isinstance(prompts, str):
        return [prompts]
    _check_list("prompts must be text, token ids, or a list of these", prompts)
    if len(prompts) > MAX_PROMPTS and hasattr(prompts[0], "__len__"):
        raise LimitError(f"one call takes at most {MAX_PROMPTS} prompts, got {len(prompts)}")
    if len(prompts) and not hasattr(prompts[0], "__len__"):
        return [prompts]
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            _check_list(f"prompts[{i}] must be text or token ids", prompt)
    return list(prompts)


def _check_list(rule: str, value: Any) -> None:
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__") and getattr(value, "shape", None) != ()
    if not sized or isinstance(value, bytes | bytearray | memoryview | Mapping):
        raise ArgumentTypeError(f"{rule}, got {type(value).__name__}")


def _token_ids(prompt: Sequence[Any], limit: int) -> list[int]:
    """The ids of a prompt; `limit` is what the context holds, so that a huge list isn't looked at."""
    if len(prompt) > limit:
        raise ContextLengthError(
            f"the prompt has {len(prompt)} tokens, but the context holds {limit} with at least one of them for the "
            "answer; shorten the prompt or raise max_model_len"
        )
    ids = []
    for i, value in enumerate(prompt):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ArgumentTypeError(f"token ids must be integers, got {type(value).__name__} at position {i}")
        token = int(value.__index__())
        if not 0 <= token < 2**31:
            raise ArgumentError(f"token ids must be within [0, 2**31), got {token} at position {i}"[:200])
        ids.append(token)
    return ids


def _available_memory() -> int:
    """Bytes that can be had without swapping; a guess of 4 GiB where the system doesn't say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30
