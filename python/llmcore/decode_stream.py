"""Text of ids that come one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmcore import _core
from llmcore.errors import ArgumentError
from llmcore.vocab.arguments import integer
from llmcore.vocab.decoders import BYTES, EACH_BYTE
from llmcore.vocab.spec import BrokenBytes

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

_WINDOW = 8  # tokens that a stream decodes again where tokens have no text of their own


class DecodeStream:
    """Text of ids that come one at a time; made by `Tokenizer.decode_stream`. For one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        spec = tokenizer._spec
        skipped = tokenizer._skipped if skip_special_tokens else []
        self._stream: _core.DecodeStream | _PartsStream
        if spec.decoders is None:
            errors = EACH_BYTE if spec.broken_bytes == BrokenBytes.EACH else "replace"
            self._stream = _core.DecodeStream(tokenizer._core, skipped, errors)
        else:
            self._stream = _PartsStream(tokenizer, skip_special_tokens)
        self._step = self._stream.step

    def step(self, id: int) -> str:
        """The text that becomes whole with `id`: "" while a character is incomplete (at most 3 bytes are held back).

        A run of byte tokens isn't held back until it is known to be UTF-8 as a whole, which `decode` asks of those of a
        tokenizer.json. Raises ArgumentError for an id that isn't in the vocabulary.
        """
        if type(id) is int and -1 < id < 1 << 32:
            return self._step(id)
        at = integer(id, "id")
        if not 0 <= at < 1 << 32:
            raise ArgumentError(f"decode: id {at:#x} is not in the vocabulary"[:100])
        return self._step(at)

    def finish(self) -> str:
        """What is left: U+FFFD for an incomplete character, else ""."""
        return self._stream.finish()


class _PartsStream:
    """The same for decoders that look at a token's neighbours: the last few tokens are decoded again with each."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        spec = tokenizer._spec
        kinds = [part["type"] for part in spec.decoders or ()]
        self._tokenizer = tokenizer
        self._skipped = tokenizer._skipped_set if skip_special_tokens else frozenset()
        self._runs = {id for id, name in spec.names.items() if name in BYTES} if "ByteFallback" in kinds else set()
        self._drops_repeated = kinds[:1] == ["CTC"]
        self._ids: list[int] = []
        self._given = 0  # how many characters of their text have been given out
        self._limit = _WINDOW

    def step(self, id: int) -> str:
        self._tokenizer._core.decode(np.array([id], np.uint32), [])  # it is one
        if id in self._skipped or (self._drops_repeated and self._ids[-1:] == [id]):
            return ""
        self._ids.append(id)
        if id in self._runs:  # which decides what the run is only when it ends
            return ""
        text = self._tokenizer.decode(self._ids)
        new = text[self._given : len(text) - text.endswith("\ufffd")]  # of which more bytes may make a character
        self._given += len(new)
        if len(self._ids) >= self._limit:
            # The last ones alone, if what follows their first, which may be shown otherwise at the beginning of a text,
            # is shown as it was here, and all that is held back is within it.
            last = self._ids[-_WINDOW // 2 :]
            tail = self._tokenizer.decode(last)
            follows = len(tail) - len(self._tokenizer.decode(last[:1]))
            if follows > 0 and text[-follows:] == tail[-follows:] and len(text) - follows <= self._given:
                self._ids = last
                self._given -= len(text) - len(tail)
            self._limit = max(_WINDOW, 2 * len(self._ids))
        return new

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids)[self._given :]
