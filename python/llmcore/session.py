"""Sessions: a text that grows by prompts and answers, whose keys and values can go to a file and come back.

A session itself is the ids of its tokens. Their keys and values lie in the prefix cache, where the next prompt finds
them, and what has left the cache is computed again, with the same bits; so a session never holds memory that others
need.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from llmcore.checkpoint.files import check_path
from llmcore.checkpoint.safetensors import SafetensorsFile
from llmcore.checkpoint.write import save_safetensors
from llmcore.errors import ArgumentError, ArgumentTypeError, CheckpointError, escape
from llmcore.prompts import Prompt, params_list, salt_bits, token_ids, with_stops

if TYPE_CHECKING:
    from llmcore.llm import LLM
    from llmcore.outputs import RequestOutput
    from llmcore.sampling import SamplingParams

_FORMAT = "llmcore-session"
_VERSION = "5"


class Session:
    """One conversation with an LLM. Made by `LLM.session` and `LLM.restore`; not for several threads at once.

    token_ids: everything so far, answers and their end tokens included. messages: those of `chat`.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        cache_salt: str | None = None,
        token_ids: Sequence[int] = (),
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        salt_bits(cache_salt)  # raises for what is no string
        self._llm = llm
        self._cache_salt = cache_salt
        self.token_ids = list(token_ids)
        self.messages = [dict(message) for message in messages]

    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestOutput:
        """Puts the prompt behind what there is and answers it; the answer becomes part of the session.

        Raises as `LLM.generate`, and ArgumentError for n > 1; the session is then as it was.
        """
        ids = self._ids(prompt)
        return self._answer([*self.token_ids, *ids], params)

    def chat(
        self, message: str | Mapping[str, Any], params: SamplingParams | None = None, **template: Any
    ) -> RequestOutput:
        """Answers the next message (a text: the user's) through the chat template, with all before it.

        `template` goes to the template, but for chat_format, which is as in `LLM.chat`. Raises as `LLM.chat`; the
        session is then as it was.
        """
        if "tokenize" in template:
            raise ArgumentError("tokenize: a session goes on with ids")
        if not isinstance(message, str | Mapping):
            raise ArgumentTypeError(f"message must be a text or a message, got {type(message).__name__}")
        said = {"role": "user", "content": message} if isinstance(message, str) else dict(message)
        messages = [*self.messages, said]
        ids = cast("list[int]", self._llm.tokenizer.apply_chat_template(messages, **template))
        out = self._answer(ids, params, template.get("chat_format"))
        self.messages = [*messages, {"role": "assistant", "content": out.text}]
        return out

    def fork(self) -> Session:
        """A second session with the same past, whose keys and values they share."""
        return Session(self._llm, cache_salt=self._cache_salt, token_ids=self.token_ids, messages=self.messages)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tokens, messages, and the keys and values that the prefix cache has of them, atomically.

        For `LLM.restore` of the same model with the same kv_dtype. Raises StorageError, ClosedError.
        """
        check_path(path)
        llm, salt = self._llm, salt_bits(self._cache_salt)
        tokens = token_ids(self.token_ids, lambda length: None)
        pages, page_bytes = llm._loop.call(lambda engine: (engine.export_prefix(tokens, salt), engine.page_bytes))
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": llm.model.fingerprint,
            "kv_dtype": llm.kv_dtype,
            "messages": self._messages_text(),
        }
        ids = np.asarray(tokens, np.int32)
        about["sha256"] = _digest(about, ids, pages)
        save_safetensors(path, {"token_ids": ids, "pages": pages.reshape(-1, page_bytes)}, about)

    def _messages_text(self) -> str:
        try:
            return json.dumps(self.messages, ensure_ascii=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise ArgumentError(f"a message can't be saved as JSON: {escape(str(error), 200)}") from None

    def __repr__(self) -> str:
        return f"<llmcore.Session of {len(self.token_ids)} tokens>"

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._llm._prompt_ids(prompt, add_special_tokens=not self.token_ids)

    def _answer(self, ids: list[int], params: SamplingParams | None, chat_format: str | None = None) -> RequestOutput:
        if not ids:
            raise ArgumentError("a prompt must have at least one token")
        (one,) = with_stops(params_list(params, 1), chat_format)
        if one.n != 1:
            raise ArgumentError(f"a session goes on with one answer, got n={one.n}; fork it for several")
        (out,) = self._llm.generate(ids, one, cache_salt=self._cache_salt)
        self.token_ids = [*ids, *out.token_ids]
        return out


def restore(llm: LLM, path: str | os.PathLike[str]) -> Session:
    """See LLM.restore."""
    check_path(path)
    with SafetensorsFile.open(path) as file:
        about = file.metadata
        if about.get("format") != _FORMAT or about.get("version") != _VERSION:
            raise CheckpointError("is no saved session, or of another version of llmcore", file=path)
        for key, mine, what in (("model", llm.model.fingerprint, "model"), ("kv_dtype", llm.kv_dtype, "kv_dtype")):
            if about.get(key) != mine:
                raise CheckpointError(f"was saved with another {what}", file=path, value=about.get(key), allowed=mine)
        ids, pages = (file.tensors.get(name) for name in ("token_ids", "pages"))
        engine = llm._loop.require()
        known = (
            ids is not None
            and ids.dtype == "I32"
            and len(ids.shape) == 1
            and pages is not None
            and pages.dtype == "U8"
            and len(pages.shape) == 2
            and pages.shape[1] == engine.page_bytes
            and 16 * pages.shape[0] <= ids.shape[0]
        )
        if not known:
            raise CheckpointError("does not hold the tokens and pages of a session of this model", file=path)
        token_ids = cast("list[int]", file.read("token_ids").tolist())
        data = file.read("pages")
    if _digest(about, np.asarray(token_ids, np.int32), data) != about.get("sha256"):
        raise CheckpointError("is not as it was saved", file=path)
    if not all(0 <= id < llm.model.spec.vocab_size for id in token_ids):
        raise CheckpointError("holds a token outside the vocabulary", file=path)
    messages = _json(about.get("messages"), path)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise CheckpointError("its messages can't be read", file=path)
    # A salt of its own: no file can put keys and values where others' prompts would find them.
    salt = secrets.token_hex(16)
    session = Session(llm, cache_salt=salt, token_ids=token_ids, messages=messages)
    if llm.enable_prefix_caching and len(data):
        native = np.ascontiguousarray(data, np.uint8).reshape(-1)
        llm._loop.call(lambda engine: engine.import_prefix(token_ids, salt_bits(salt), native))
    return session


def _digest(about: Mapping[str, str], ids: npt.NDArray[np.int32], pages: npt.NDArray[Any]) -> str:
    """Over all that a file holds."""
    rest = {name: value for name, value in about.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    digest.update(ids.tobytes())
    digest.update(np.ascontiguousarray(pages).data)
    return digest.hexdigest()


def _json(text: str | None, path: str | os.PathLike[str]) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        raise CheckpointError("its messages can't be read", file=path) from None
