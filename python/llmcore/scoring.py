"""What a model thinks of given texts: embeddings, likelihoods, an order of documents."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmcore.arguments import integer, one_of
from llmcore.errors import ArgumentError, ArgumentTypeError
from llmcore.model import STEP_TOKENS
from llmcore.progress import Progress
from llmcore.prompts import Prompt, token_ids
from llmcore.sampling import SamplingParams

if TYPE_CHECKING:
    from llmcore import _core
    from llmcore.llm import LLM
    from llmcore.request import Request

_EMBED_TOKENS = 4096  # that are worked on together, while others wait
_EMBED_TEXTS = 256  # the same
_QUERY_INSTRUCTION = "Please write a question based on this passage."
_RERANK_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_RERANK_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)


@dataclass(frozen=True, slots=True)
class Loglikelihood:
    """Of a continuation after its context, in nats."""

    logprob: float
    """Sum over the continuation's tokens."""
    is_greedy: bool
    """Greedy decoding would give the continuation."""
    token_ids: list[int]
    token_logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Reranked:
    """A document with its score; the higher, the better."""

    index: int
    """Its place in the list that was given."""
    score: float
    document: str


def embed(
    llm: LLM, prompts: Sequence[Prompt], pooling: str, normalize: bool, progress: bool
) -> npt.NDArray[np.float32]:
    """See LLM.embed."""
    if not isinstance(normalize, bool):
        raise ArgumentTypeError(f"normalize must be True or False, got {type(normalize).__name__}")
    one_of("pooling", pooling, ("mean", "last", "cls"))
    sequences = []
    for i, prompt in enumerate(prompts):
        ids = _ids(llm, prompt, f"texts[{i}]", special=True)
        if not ids:
            raise ArgumentError(f"texts[{i}] has no tokens: give at least one")
        llm._check_length(len(ids), f"texts[{i}]", answer=0)
        sequences.append(np.asarray(ids, np.int32))

    def embed_first(
        part: list[npt.NDArray[np.int32]], engine: _core.Engine, tables: list[list[int]]
    ) -> npt.NDArray[np.float32]:
        return engine.embed(part[: len(tables)], tables, pooling, normalize)

    rows = np.empty((len(sequences), llm.model.spec.hidden_size), np.float32)
    with Progress(len(sequences), "embedding", "texts", enabled=progress) as bar:
        for begin, end in _portions([len(ids) for ids in sequences]):
            while begin < end:
                part = sequences[begin:end]
                done = llm._loop.with_pages([len(ids) for ids in part], partial(embed_first, part))
                rows[begin : begin + len(done)] = done
                begin += len(done)
                bar.update(begin)
    llm._loop.settle()
    return rows


def _portions(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring texts that are worked on together."""
    portions, begin, held = [], 0, 0
    for i, length in enumerate(lengths):
        full = i - begin == _EMBED_TEXTS or held + length > max(_EMBED_TOKENS, STEP_TOKENS)
        if i > begin and full:
            portions.append((begin, i))
            begin, held = i, 0
        held += length
    return [*portions, (begin, len(lengths))] if lengths else []


def loglikelihood(llm: LLM, pairs: Sequence[tuple[Prompt, Prompt]], progress: bool) -> list[Loglikelihood]:
    """See LLM.loglikelihood."""
    work = []
    if not isinstance(pairs, Sequence):
        raise ArgumentTypeError(f"pairs must be a list of (context, continuation), got {type(pairs).__name__}")
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ArgumentTypeError(f"pairs[{i}] must be (context, continuation)")
        context, ids = _split(llm, *pair)
        if not ids or not len(pair[1]):
            raise ArgumentError(f"pairs[{i}] has an empty continuation")
        if llm.model.tokenizer is not None and ids[-1] >= llm.model.tokenizer.vocab_size:
            raise ArgumentError(f"pairs[{i}] ends in id {ids[-1]}, which is padding and never drawn")
        work.append((context, ids))
    # The first of each context puts it into the prefix cache, where the others find it.
    seen: set[tuple[int, ...]] = set()
    waves: tuple[list[int], list[int]] = ([], [])
    for i, (context, _) in enumerate(work):
        waves[tuple(context) in seen].append(i)
        seen.add(tuple(context))
    results: dict[int, Loglikelihood] = {}
    for wave in waves:
        requests = [_scored(llm, *work[i]) for i in wave]
        llm._run(requests, progress)
        for i, request in zip(wave, requests, strict=True):
            results[i] = _likelihood(work[i][1], request)
    return [results[i] for i in range(len(work))]


def _scored(llm: LLM, context: list[int], ids: list[int]) -> Request:
    """A request that is as long as the context allows: the last of the ids is its answer, the only one allowed."""
    *scored, last = ids
    params = SamplingParams(
        temperature=0, max_tokens=1, min_tokens=0, prompt_logprobs=1, logprobs=1, allowed_token_ids=[last]
    )
    return llm._request([*context, *scored], params, score_from=len(context))


def _likelihood(ids: list[int], request: Request) -> Loglikelihood:
    entries = [entry for entry in request.prompt_logprobs or () if entry is not None]
    entries += request.sequences[0].output.logprobs or ()
    chosen = [entry[token] for entry, token in zip(entries, ids, strict=True)]
    logprobs = [one.logprob for one in chosen]
    return Loglikelihood(math.fsum(logprobs), all(one.rank == 1 for one in chosen), ids, logprobs)


def _split(llm: LLM, context: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
    """Token ids of both. White space at the end of the context belongs to the continuation's first token."""
    if not isinstance(context, str) or not isinstance(continuation, str):
        before = _ids(llm, context, special=True)
        after = _ids(llm, continuation, special=False)
    else:
        cut = len(context.rstrip())
        context, continuation = context[:cut], context[cut:] + continuation
        before, after = [], _ids(llm, continuation, special=False)
        if context:
            whole = _ids(llm, context + continuation, special=True)
            length = min(len(_ids(llm, context, special=True)), len(whole) - 1)  # one token may span both
            before, after = whole[:length], whole[length:] if continuation else []
    if not before:
        tokenizer = llm.tokenizer
        start = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(tokenizer.eos_ids), None)
        if start is None:
            raise ArgumentError("an empty context needs a tokenizer with a token for the beginning or end of text")
        before = [start]
    return before, after


def _ids(llm: LLM, prompt: Prompt, name: str = "a text", *, special: bool) -> list[int]:
    if isinstance(prompt, str):
        return llm.tokenizer.encode(prompt, add_special_tokens=special)
    vocab_size = llm.model.spec.vocab_size
    return token_ids(prompt, lambda length: llm._check_length(length, name, answer=0), vocab_size)


def rerank(
    llm: LLM,
    query: str,
    documents: Sequence[str],
    method: str,
    instruction: str | None,
    top_n: int | None,
    progress: bool,
) -> list[Reranked]:
    """See LLM.rerank."""
    several = isinstance(documents, Sequence) and not isinstance(documents, str)
    if not isinstance(query, str) or not several or not all(isinstance(d, str) for d in documents):
        raise ArgumentTypeError("rerank takes a query and a list of documents, all of them texts")
    if not query:
        raise ArgumentError("query must not be empty")
    if not isinstance(instruction, str | None):
        raise ArgumentTypeError(f"instruction must be a text, got {type(instruction).__name__}")
    if top_n is not None:
        top_n = integer("top_n", top_n, 1, sys.maxsize)
    one_of("method", method, ("likelihood", "yes_no"))
    if method == "likelihood":
        scores = _query_likelihoods(llm, query, documents, instruction or _QUERY_INSTRUCTION, progress)
    else:
        scores = _yes_probabilities(llm, query, documents, instruction or _RERANK_TASK, progress)
    ranked = [Reranked(i, score, document) for i, (score, document) in enumerate(zip(scores, documents, strict=True))]
    return sorted(ranked, key=lambda one: (-one.score, one.index))[:top_n]


def _query_likelihoods(llm: LLM, query: str, documents: Sequence[str], instruction: str, progress: bool) -> list[float]:
    pairs = [(f"Passage: {document}\n{instruction}\n", query) for document in documents]
    return [each.logprob / len(each.token_ids) for each in loglikelihood(llm, pairs, progress)]


def _yes_probabilities(llm: LLM, query: str, documents: Sequence[str], instruction: str, progress: bool) -> list[float]:
    tokenizer = llm.tokenizer
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no"))
    if len(yes) != 1 or len(no) != 1:
        raise ArgumentError('this tokenizer has no single tokens "yes" and "no": use method="likelihood"')
    pairs: list[tuple[Prompt, Prompt]] = []
    for document in documents:
        before = f"<|im_start|>system\n{_RERANK_SYSTEM}<|im_end|>\n<|im_start|>user\n"
        said = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        guarded = [(len(before), len(before) + len(said))]  # no control token comes of what is said
        prompt = tokenizer.encode_rendered(before + said + after, guarded)
        pairs += [(prompt, yes), (prompt, no)]
    found = [one.logprob for one in loglikelihood(llm, pairs, progress)]
    return [1.0 / (1.0 + math.exp(min(no - yes, 700.0))) for yes, no in zip(found[::2], found[1::2], strict=True)]
