"""Typed, strict access to config.json: no coercion, every number in a range, every fault names its key.

`true` is not 1, `64.0` is not 64 and `"64"` is neither. A Config remembers which keys were asked for, so that what no
code has looked at can be reported.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar, overload

from llmcore.checkpoint.files import shown
from llmcore.errors import ConfigError, LimitError, LlmcoreError, UnsupportedModelError

MAX_CONFIG_BYTES = 4 << 20
MAX_TOKEN_IDS = 4096

T = TypeVar("T")


class _Required:
    """The default of a key that must be there."""


REQUIRED = _Required()


class Config:
    """The values of config.json or of an object inside it. `file` and `where` name it in messages."""

    def __init__(
        self,
        values: Mapping[str, object],
        *,
        file: object = None,
        where: str = "",
        names: Mapping[str, str] | None = None,
    ) -> None:
        """`names`: what the file calls some keys, for messages."""
        self.values = values
        self.file = file
        self._where = where
        self._names = names or {}
        self._read: set[str] = set()

    @classmethod
    def of(cls, value: object, *, file: object = None) -> Config:
        """A Config of a parsed JSON value. Raises ConfigError when it isn't an object."""
        if not isinstance(value, dict):
            raise ConfigError("is not a JSON object", file=file, value=kind_of(value))
        return cls(value, file=file)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.values.get(key) is not None

    def unread(self) -> list[str]:
        """The keys that nobody has asked for."""
        return sorted(set(self.values) - self._read)

    def error(self, key: str, message: str, *, allowed: str | None = None) -> ConfigError:
        """A ConfigError about `key` with its value."""
        value = self.values.get(key)
        found = None if key not in self.values else "null" if value is None else f"{kind_of(value)} {show(value)}"
        field = self._names.get(self._where + key, self._where + key)
        return ConfigError(message, file=self.file, field=field, value=found, allowed=allowed)

    def get(self, key: str) -> object:
        """The raw value, null when absent, and marks `key` as read."""
        self._read.add(key)
        return self.values.get(key)

    def _present(self, key: str, default: object) -> bool:
        """Whether to use the file's value rather than `default`. null is a value, and the wrong one."""
        self._read.add(key)
        if key in self.values:
            return True
        if isinstance(default, _Required):
            raise self.error(key, "a required key is missing")
        return False

    @overload
    def integer(self, key: str, *, minimum: int, maximum: int) -> int: ...
    @overload
    def integer(self, key: str, *, minimum: int, maximum: int, default: T) -> int | T: ...
    def integer(self, key: str, *, minimum: int, maximum: int, default: object = REQUIRED) -> object:
        """An integer from `minimum` to `maximum`, both included."""
        if not self._present(key, default):
            return default
        value = self.values[key]
        allowed = f"an integer from {minimum} to {maximum}"
        if type(value) is not int:
            raise self.error(key, "has the wrong type", allowed=allowed)
        if not minimum <= value <= maximum:
            raise self.error(key, "is out of range", allowed=allowed)
        return value

    def optional_integer(self, key: str, *, minimum: int, maximum: int) -> int | None:
        """As `integer`; absent and null are None."""
        self._read.add(key)
        return self.integer(key, minimum=minimum, maximum=maximum) if self.has(key) else None

    @overload
    def number(
        self, key: str, *, minimum: float = ..., maximum: float = ..., above: float = ..., below: float = ...
    ) -> float: ...
    @overload
    def number(
        self,
        key: str,
        *,
        minimum: float = ...,
        maximum: float = ...,
        above: float = ...,
        below: float = ...,
        default: T,
    ) -> float | T: ...
    def number(
        self,
        key: str,
        *,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        above: float = -math.inf,
        below: float = math.inf,
        default: object = REQUIRED,
    ) -> object:
        """A finite number (an integer will do) with `minimum` <= x <= `maximum` and `above` < x < `below`."""
        if not self._present(key, default):
            return default
        value = self.values[key]
        allowed = _interval(minimum, maximum, above, below)
        if type(value) is not int and type(value) is not float:
            raise self.error(key, "has the wrong type", allowed=allowed)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and minimum <= number <= maximum and above < number < below):
            raise self.error(key, "is out of range", allowed=allowed)
        return number

    def optional_number(
        self,
        key: str,
        *,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> float | None:
        """As `number`; absent and null are None."""
        self._read.add(key)
        if not self.has(key):
            return None
        return self.number(key, minimum=minimum, maximum=maximum, above=above, below=below)

    @overload
    def boolean(self, key: str) -> bool: ...
    @overload
    def boolean(self, key: str, *, default: T) -> bool | T: ...
    def boolean(self, key: str, *, default: object = REQUIRED) -> object:
        """true or false."""
        if not self._present(key, default):
            return default
        value = self.values[key]
        if type(value) is not bool:
            raise self.error(key, "has the wrong type", allowed="true or false")
        return value

    @overload
    def string(self, key: str) -> str: ...
    @overload
    def string(self, key: str, *, default: T) -> str | T: ...
    def string(self, key: str, *, default: object = REQUIRED) -> object:
        """Any string."""
        if not self._present(key, default):
            return default
        value = self.values[key]
        if not isinstance(value, str):
            raise self.error(key, "has the wrong type", allowed="a string")
        return value

    @overload
    def choice(self, key: str, choices: Mapping[str, T], *, error: type[LlmcoreError] = ...) -> T: ...
    @overload
    def choice(self, key: str, choices: Mapping[str, T], *, default: T, error: type[LlmcoreError] = ...) -> T: ...
    def choice(
        self, key: str, choices: Mapping[str, T], *, default: object = REQUIRED, error: type[LlmcoreError] = ConfigError
    ) -> object:
        """What the string at `key` stands for in `choices`; an unknown one raises `error`."""
        if not self._present(key, default):
            return default
        value = self.string(key)
        if value in choices:
            return choices[value]
        known = ", ".join(choices)
        if issubclass(error, ConfigError):
            raise self.error(key, "is unknown", allowed=known)
        raise error(str(self.error(key, "is not supported", allowed=known)))

    def section(self, key: str) -> Config | None:
        """The object at `key`, or None when it is absent or null."""
        self._read.add(key)
        if not self.has(key):
            return None
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.error(key, "has the wrong type", allowed="an object or null")
        return Config(value, file=self.file, where=f"{self._where}{key}.", names=self._names)

    def strings(self, key: str) -> list[str]:
        """A list of strings; empty when absent or null."""
        self._read.add(key)
        if not self.has(key):
            return []
        value = self.values[key]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "has the wrong type", allowed="a list of strings")
        return value

    def token_ids(self, key: str, *, below: int) -> tuple[int, ...]:
        """One token id or a list of them, each from 0 to `below` - 1; () when absent or null."""
        self._read.add(key)
        if not self.has(key):
            return ()
        value = self.values[key]
        ids = value if isinstance(value, list) else [value]
        if len(ids) > MAX_TOKEN_IDS:
            raise LimitError(f"{shown(self.file)}: {key} lists {len(ids)} ids, at most {MAX_TOKEN_IDS}")
        for token in ids:
            if type(token) is not int:
                raise self.error(key, "has the wrong type", allowed="an integer or a list of integers")
            if not 0 <= token < below:
                raise self.error(key, "names a token outside the vocabulary", allowed=f"0 to {below - 1}")
        return tuple(dict.fromkeys(ids))

    def require_neutral(self, neutral: Mapping[str, Collection[object]]) -> None:
        """Raises UnsupportedModelError when a key that changes the maths has another value than the listed ones."""
        for key, values in neutral.items():
            if key not in self.values:
                continue
            self._read.add(key)
            value = self.values[key]
            if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
                allowed = " or ".join(show(known) for known in values)
                raise UnsupportedModelError(
                    str(self.error(key, "changes the model in a way not supported", allowed=allowed))
                )


def kind_of(value: object) -> str:
    """The JSON name of the type of `value`."""
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "list", dict: "object"}
    return "null" if value is None else kinds.get(type(value), "value")


def show(value: object) -> str:
    """`value` as short JSON-like text."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list) and len(value) <= 8 and not any(isinstance(item, list | dict) for item in value):
        return f"[{', '.join(show(item) for item in value)}]"[:80]
    if isinstance(value, list | dict):
        return f"of {len(value)}"
    return str(value)[:80]


def _interval(minimum: float, maximum: float, above: float, below: float) -> str:
    bounds = []
    for bound, word in ((minimum, "at least"), (above, "above"), (maximum, "at most"), (below, "below")):
        if math.isfinite(bound):
            bounds.append(f"{word} {bound:g}")
    return ", ".join(["a finite number", *bounds])


_MAX_TOKENS = 1 << 40
_GENERATION_NUMBERS: dict[str, dict[str, float]] = {
    "temperature": {"minimum": 0.0},
    "top_p": {"minimum": 0.0, "maximum": 1.0},
    "min_p": {"minimum": 0.0, "maximum": 1.0},
    "typical_p": {"minimum": 0.0, "maximum": 1.0},
    "repetition_penalty": {"above": 0.0},
}
_GENERATION_INTEGERS = {
    "top_k": -1,
    "max_length": 0,
    "max_new_tokens": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_return_sequences": 1,
    "num_beams": 1,
}


def check_generation_config(config: Config) -> None:
    """Raises ConfigError for a sampling default that no request could use. Token ids wait for the vocabulary."""
    for key, bounds in _GENERATION_NUMBERS.items():
        config.optional_number(key, **bounds)
    for key, minimum in _GENERATION_INTEGERS.items():
        config.optional_integer(key, minimum=minimum, maximum=_MAX_TOKENS)
    if config.has("do_sample"):
        config.boolean("do_sample")


def empty_config(file: Path | None = None) -> Config:
    """The Config of a file that isn't there and needn't be."""
    return Config({}, file=file)
