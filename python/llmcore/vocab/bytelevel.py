"""GPT-2's byte alphabet: every byte as one printable character, so that a JSON file can hold any token."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt


@cache
def alphabet() -> tuple[str, ...]:
    """By byte, the character that stands for it: printable Latin-1 as it is, the other 68 from U+0100 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shown, spare = [], 0x100
    for byte in range(256):
        if byte in kept:
            shown.append(chr(byte))
        else:
            shown.append(chr(spare))
            spare += 1
    return tuple(shown)


@cache
def _to_latin1() -> dict[int, int]:
    table = {ord(char): byte for byte, char in enumerate(alphabet())}
    # A character outside of the alphabet must not slip through as the Latin-1 byte of the same number.
    return {code: table.get(code, 0xFFFF) for code in {*range(256), *table}}


def to_bytes(text: str) -> bytes | None:
    """The bytes that `text` stands for, or None when a character is outside of the alphabet."""
    try:
        return text.translate(_to_latin1()).encode("latin-1")
    except UnicodeEncodeError:
        return None


@cache
def byte_of() -> npt.NDArray[np.uint16]:
    """By character, the byte it stands for; 0xFFFF: none. Characters beyond the array have none either."""
    table = np.full(0x200, 0xFFFF, np.uint16)
    table[[ord(char) for char in alphabet()]] = np.arange(256)
    return table


def to_text(data: bytes) -> str:
    """`data` in the byte alphabet."""
    return data.decode("latin-1").translate(_from_latin1())


@cache
def _from_latin1() -> dict[int, str]:
    return dict(enumerate(alphabet()))


def training_order() -> bytes:
    """The 256 bytes in the order of their characters: the order of ids in a freshly trained vocabulary."""
    return bytes(sorted(range(256), key=lambda byte: alphabet()[byte]))
