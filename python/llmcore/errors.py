"""Every error llmcore raises. File-supplied text in a message is escaped and cut, so a log can't be attacked by it."""

from __future__ import annotations

import numbers

_MESSAGE_LIMIT = 1024


def escape(text: object, limit: int = 80) -> str:
    """`text` as printable ASCII-quoted text of at most `limit` characters, safe for a terminal or log."""
    quoted = ascii(text if isinstance(text, str) else _text(text))
    return quoted if len(quoted) <= limit else quoted[: limit - 4] + "...'"


def shown(value: object) -> str:
    """What a caller gave, for a message: short and printable, by its type where that is the trouble."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return escape(value, 40)
    return _text(value)[:40] if isinstance(value, numbers.Real) else type(value).__name__


def _text(value: object) -> str:
    # An integer of a million digits must neither be printed nor, beyond Python's limit on digits, fail to be.
    try:
        if isinstance(value, numbers.Integral) and (bits := int(value).bit_length()) > 80:
            return f"an integer of {bits} bits"
        return str(value)
    except Exception:  # its own __str__ failed
        return type(value).__name__


class LlmcoreError(Exception):
    """Base class of all llmcore errors. The message is at most 1 KiB."""

    def __init__(self, message: str = "", *args: object) -> None:
        if len(message.encode("utf-8", "replace")) > _MESSAGE_LIMIT:
            message = message.encode("utf-8", "replace")[: _MESSAGE_LIMIT - 4].decode("utf-8", "ignore") + " ..."
        super().__init__(message, *args)


class ArgumentError(LlmcoreError, ValueError):
    """A call's argument is out of range; the message names the argument and its range."""


class ArgumentTypeError(ArgumentError, TypeError):
    """A call's argument is of the wrong type."""


class CheckpointError(LlmcoreError):
    """A checkpoint on disk can't be used as it is.

    The fields say where: `file`, `field` (a key or tensor name), `offset` (bytes from the start of the file),
    `value` (what was found) and `allowed` (what would have been accepted); each may be None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        file: object = None,
        field: str | None = None,
        offset: int | None = None,
        value: object = None,
        allowed: str | None = None,
    ) -> None:
        parts = [message]
        if field is not None:
            parts.append(f"field {escape(field)}")
        if value is not None:
            parts.append(f"found {escape(value)}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if offset is not None:
            parts.append(f"at byte {offset}")
        text = "; ".join(p for p in parts if p)
        if file is not None:
            text = f"{escape(file, 200)[1:-1]}: {text}"
        super().__init__(text)
        self.file = None if file is None else str(file)
        self.field = field
        self.offset = offset
        self.value = value
        self.allowed = allowed


class SafetensorsError(CheckpointError):
    """A .safetensors file breaks the format."""


class GGUFError(CheckpointError):
    """A .gguf file breaks the format."""


class ConfigError(CheckpointError):
    """config.json or generation_config.json holds something a model can't have."""


class AdapterError(CheckpointError):
    """A LoRA adapter can't be used with this model."""


class QuantError(CheckpointError):
    """A quantisation setting or a quantised tensor can't be used."""


class TokenizerError(LlmcoreError):
    """A tokenizer can't be loaded exactly, or text was given to a model that has none."""


class TemplateError(LlmcoreError):
    """A chat template is missing, failed, or used more than its share of steps, output or time."""


class UnsupportedModelError(LlmcoreError):
    """The file is sound, but llmcore has no code for what it describes."""


class LimitError(LlmcoreError):
    """A size in the input is beyond what llmcore accepts."""


class ContextLengthError(LlmcoreError):
    """A prompt, or a prompt with its answer, doesn't fit the context."""


class OutOfMemoryError(LlmcoreError, MemoryError):
    """Memory is short. `needed` and `available` are bytes, `largest_context` tokens; each may be None."""

    def __init__(
        self,
        message: str = "",
        *,
        needed: int | None = None,
        available: int | None = None,
        largest_context: int | None = None,
    ) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.largest_context = largest_context


class NumericError(LlmcoreError):
    """NaN or infinity where a number was needed."""


class StorageError(LlmcoreError, OSError):
    """Reading or writing a file failed."""


class ClosedError(LlmcoreError):
    """The object was closed."""


class BusyError(LlmcoreError):
    """The object is in use and can't be closed or changed now."""
