"""Structured output: answers that are JSON of a schema, match a regular expression, a grammar, or one of some texts.

The grammars are llguidance's (extra `[structured]`); here is what joins them to a tokenizer and to the sampler: for
each place of an answer a mask of the tokens that may come, computed on a thread of its own while the model runs.
"""

from __future__ import annotations

import json as json_text
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.errors import ArgumentError, ArgumentTypeError, LimitError, escape
from llmcore.request_params import token_bytes
from llmcore.vocab.spec import Kind

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

MAX_GRAMMAR_BYTES = 256 << 10
MAX_CHOICES = 4096
_DEEP_STACK = 512 << 20  # of address space: memory is taken as it is used
_stack_size = threading.Lock()  # it is one for all threads
_KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What an answer must be; exactly one of the first five is given (the names are vLLM's).

    Raises ArgumentError, ArgumentTypeError, LimitError (a text beyond 256 KiB). A grammar that is wrong in itself is an
    ArgumentError when a request is made with it.
    """

    json: str | Mapping[str, Any] | None = None
    """A JSON schema, as text or as the object."""
    regex: str | None = None
    """A regular expression (Rust's syntax) for the whole answer."""
    choice: Sequence[str] | None = None
    """The answer is one of these."""
    grammar: str | None = None
    """A context-free grammar: llama.cpp's GBNF, or Lark's syntax; it begins at `root` or `start`."""
    json_object: bool | None = None
    """True: any JSON object."""
    disable_any_whitespace: bool = False
    """JSON as Python's json.dumps writes it, rather than with any white space."""
    whitespace_pattern: str | None = None
    """With `json`: a regular expression for the white space between its parts."""

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) is not None and getattr(self, name) is not False]
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), bool | None):
                raise ArgumentTypeError(f"{name} must be True or False, got {type(getattr(self, name)).__name__}")
        if len(given) != 1:
            raise ArgumentError(f"structured outputs need exactly one of {', '.join(_KINDS)}, got {len(given)}")
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ArgumentTypeError(f"{name} must be a string, got {type(value).__name__}")
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        if self.json is not None:
            object.__setattr__(self, "json", _schema(self.json))
        text = self.json or self.regex or self.grammar or ""
        assert isinstance(text, str)
        if len(text.encode("utf-8", "surrogatepass")) > MAX_GRAMMAR_BYTES:
            raise LimitError(f"{given[0]} has {len(text)} characters, at most {MAX_GRAMMAR_BYTES} bytes are taken")


def _choices(choice: object) -> tuple[str, ...]:
    if isinstance(choice, str | bytes | Mapping) or not isinstance(choice, Sequence):
        raise ArgumentTypeError(f"choice must be a list of strings, got {type(choice).__name__}")
    if not 1 <= len(choice) <= MAX_CHOICES:
        raise ArgumentError(f"choice must hold 1 to {MAX_CHOICES} strings, got {len(choice)}")
    for i, text in enumerate(choice):
        if not isinstance(text, str):
            raise ArgumentTypeError(f"choice[{i}] must be a string, got {type(text).__name__}")
        if not text:
            raise ArgumentError(f"choice[{i}] must not be empty")
    return tuple(choice)


def _schema(schema: object) -> str:
    if isinstance(schema, str):
        try:
            schema = json_text.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"json is not a JSON schema: {escape(str(error), 200)}") from None
    if not isinstance(schema, Mapping):
        raise ArgumentTypeError(f"json must be a JSON schema, an object, got {type(schema).__name__}")
    try:
        return json_text.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"json is not a JSON schema: {escape(str(error), 200)}") from None


def end_tokens(ids: set[int], tokenizer: Tokenizer | None) -> set[int]:
    """Those of the model's end tokens that end a structured answer. One that ordinary text is made of is text there,
    where only the grammar says what may come."""
    if tokenizer is None:
        return ids
    words, added = tokenizer._spec.kinds, {token.id for token in tokenizer.added_tokens}
    return {id for id in ids if id in added or id >= len(words) or words[id] not in (Kind.NORMAL, Kind.BYTE)}


def guide(params: StructuredOutputsParams, tokenizer: Tokenizer | None, vocab_size: int, ends: frozenset[int]) -> Guide:
    """A fresh guide for one answer; `ends` are the model's end tokens. Raises ArgumentError."""
    if tokenizer is None:
        raise ArgumentError("structured outputs need a tokenizer, and this checkpoint has none")
    return Guide(_matcher(params, tokenizer, vocab_size, ends).deep_copy(), vocab_size)


@lru_cache(maxsize=32)
def _matcher(params: StructuredOutputsParams, tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> Any:
    library = _library()

    def make() -> Any:
        try:
            grammar = _grammar(params, library)
            vocabulary = _vocabulary(tokenizer, vocab_size, ends)
            failed, messages = library.LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
        except ValueError as error:
            failed, messages = True, [str(error)]
        if failed:
            raise ArgumentError(f"structured outputs: {_first_line(messages[0])}")
        matcher = library.LLMatcher(vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ArgumentError(f"structured outputs: {_first_line(matcher.get_error())}")
        return matcher

    return _on_a_deep_stack(make)


def _on_a_deep_stack(make: Callable[[], Any]) -> Any:
    """What it returns or raises. llguidance goes down a chain of rules by recursion, and the largest grammar that is
    taken may be one chain: an ordinary stack ends the process."""
    made: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            made.append(make())
        except BaseException as error:
            errors.append(error)

    with _stack_size:
        before = threading.stack_size(_DEEP_STACK)
        try:
            thread = threading.Thread(target=run, name="llmcore-grammar", daemon=True)
            thread.start()
        except RuntimeError as error:
            raise LimitError(f"structured outputs: no memory for a thread to read the grammar on: {error}") from None
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


def _first_line(message: str) -> str:
    return escape(message.partition("\n")[0], 300)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ArgumentError('structured outputs need llguidance: pip install "llmcore[structured]"') from None
    return llguidance


def _grammar(params: StructuredOutputsParams, library: Any) -> str:
    if params.json is not None or params.json_object:
        options: dict[str, Any] = {}
        if params.disable_any_whitespace:
            options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        if params.whitespace_pattern is not None:
            options["whitespace_pattern"] = params.whitespace_pattern
        schema = params.json if params.json is not None else '{"type": "object"}'
        return str(library.LLMatcher.grammar_from_json_schema(schema, overrides=options))
    if params.regex is not None:
        return str(library.LLMatcher.grammar_from_regex(params.regex))
    if params.choice is not None:
        # Alternatives of a grammar may be 2,000.
        return str(library.LLMatcher.grammar_from_regex("|".join(map(_literal, params.choice))))
    return str(library.grammar_from("grammar", params.grammar))


def _literal(text: str) -> str:
    """A regular expression for this text alone."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


class _Words:
    """A tokenizer as llguidance looks at it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        tokens = token_bytes(tokenizer)
        self.tokens = [*tokens, *[b""] * (vocab_size - len(tokens))]  # a model's padding is never allowed
        self.special_token_ids = sorted({*tokenizer.special_tokens.values(), *ends})
        self.eos_token_id = min(ends, default=None)
        self.bos_token_id = tokenizer.bos_id

    def __call__(self, text: bytes | str) -> list[int]:
        text = text if isinstance(text, str) else text.decode("utf-8")
        return self._tokenizer.encode(text, add_special_tokens=False)


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> Any:
    library = _library()
    words = _Words(tokenizer, vocab_size, ends)
    if words.eos_token_id is None:
        raise ArgumentError("structured outputs need a model with an end-of-text token that is no ordinary text")
    return library.LLTokenizer(library.TokenizerWrapper(words), n_vocab=vocab_size, eos_token=sorted(ends))


class Guide:
    """One answer's way through a grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask: npt.NDArray[np.uint32] = np.zeros((vocab_size + 31) // 32, np.uint32)
        self._taken = 0
        self._complete: int | None = None  # tokens after which nothing but the end may come
        self._ready: Future[None] | None = None
        self._valid = False

    def take(self, output: Sequence[int]) -> bool:
        """Goes on to the end of `output`; whether the answer is complete there. Raises LimitError."""
        for token in output[self._taken :]:
            self._wait()
            self._valid = False
            self._matcher.consume_token(token)
            self._taken += 1
            self._check()
            if self._complete is None and self._matcher.is_stopped():
                self._complete = self._taken
        return self._complete is not None and len(output) >= self._complete

    def prepare(self, pool: ThreadPoolExecutor) -> None:
        """Begins to compute the mask of the next token."""
        if self._ready is None and not self._valid:
            self._ready = pool.submit(self._compute)

    def apply(self, output: Sequence[int], row: npt.NDArray[np.float32]) -> None:
        """Sets the logits [vocab] of the tokens that may not follow `output` to -infinity."""
        self.take(output)
        self._wait()
        if not self._valid:
            self._compute()
        self._check()
        _core.apply_bitmask(row, self._mask)

    def _compute(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._valid = True

    def _wait(self) -> None:
        if self._ready is not None:
            self._ready.result()
            self._ready = None

    def _check(self) -> None:
        if self._matcher.is_error():
            problem = self._matcher.get_error()
            where = "no token may come here: " if "NoExtension" in problem else ""
            raise LimitError(f"structured outputs: {where}{_first_line(problem)}")
