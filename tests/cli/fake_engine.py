"""A stand-in for the engine, so that the commands are tested for themselves: it answers with known words."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from llmcore.errors import TemplateError
from llmcore.outputs import Logprob
from llmcore.vocab.spec import AddedToken


class Terminal(io.StringIO):
    """A standard stream that says it is a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


class Pipe(io.TextIOWrapper):
    """A standard input with this content."""

    def __init__(self, content: str | bytes) -> None:
        super().__init__(io.BytesIO(content.encode() if isinstance(content, str) else content), encoding="utf-8")


class FakeTokenizer:
    """One token a character, its code point; the chat template writes each message as <role>text."""

    kind = "characters"
    vocab_size = 0x110000
    bos_id = None
    eos_ids = (0,)
    special_tokens: dict[str, int] = {"<end>": 0}  # noqa: RUF012
    added_tokens = (AddedToken("<end>", 0),)
    template_variables: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, chat_template: str | None = "fake") -> None:
        self.chat_template = chat_template

    def encode(self, text: str, add_special_tokens: bool = True, allow_special: bool = False) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))

    def decode_bytes(self, ids: list[int]) -> bytes:
        return self.decode(ids).encode()

    def apply_chat_template(self, messages: list[dict[str, str]]) -> list[int]:
        if self.chat_template is None:
            raise TemplateError("no chat template")
        return self.encode("".join(f"<{m['role']}>{m['content']}" for m in messages))

    _marks: Any = ()

    def encode_rendered(self, text: str, guarded: Any, also: Any = ()) -> list[int]:
        return self.encode(text)


@dataclass
class FakeModel:
    tokenizer: FakeTokenizer | None = field(default_factory=FakeTokenizer)
    closed: bool = False
    threads: int = 2
    spec: Any = field(default_factory=lambda: SimpleNamespace(vocab_size=100, max_position_embeddings=2048))

    def bytes_per_token(self) -> int:
        return 1_000_000

    def memory_usage(self) -> dict[str, int]:
        return {"weights": 1_200_000, "kv_cache": 0, "activations": 0, "total": 1_200_000}

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@dataclass
class Engine:
    """What the fake does, and what was asked of it."""

    pieces: tuple[str, ...] = (" was", " not", " amused.")
    finish: str = "length"
    fail: BaseException | None = None
    """Raised after the first piece of a stream."""
    model: FakeModel = field(default_factory=FakeModel)
    loads: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    requests: list[tuple[Any, Any]] = field(default_factory=list)
    closed: int = 0

    def load(self, path: str, **options: Any) -> FakeModel:
        self.loads.append((path, options))
        return self.model

    def llm(self, model: FakeModel, **options: Any) -> FakeLLM:
        return FakeLLM(self, model)


class FakeLLM:
    def __init__(self, engine: Engine, model: FakeModel) -> None:
        self.engine = engine
        self.model = model
        self.tokenizer = model.tokenizer

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.closed += 1

    def stream(self, prompt: Any, params: Any) -> Iterator[Any]:
        self.engine.requests.append((prompt, params))
        for i, piece in enumerate(self.engine.pieces):
            if i == 1 and self.engine.fail is not None:
                raise self.engine.fail
            last = i == len(self.engine.pieces) - 1
            yield SimpleNamespace(
                text=piece, token_id=i, logprob=-0.5, finish_reason=self.engine.finish if last else None
            )

    def generate(self, prompts: Any, params: Any, progress: bool = True) -> list[Any]:
        self.engine.requests.append((prompts, params))
        ids = list(range(len(self.engine.pieces)))
        answer = SimpleNamespace(
            text="".join(self.engine.pieces),
            token_ids=ids,
            finish_reason=self.engine.finish,
            logprobs=None
            if params.logprobs is None
            else [{i: Logprob(-0.25, 1, None), 65: Logprob(-1.5, 2, None), 66: Logprob(-9.0, None, None)} for i in ids],
        )
        metrics = SimpleNamespace(queue_time=0.0, time_to_first_token=0.5, time_per_token=0.25)
        return [SimpleNamespace(outputs=[answer] * params.n, prompt_token_ids=[1, 2], metrics=metrics, digest="d")]
