"""NFC with a way back: where each character of the normalised text came from."""

from __future__ import annotations

import unicodedata


def nfc_with_origin(text: str) -> tuple[str, list[int], list[int]]:
    """NFC of `text`, and for each of its characters the start and end of the stretch of `text` it stands for.

    `text` is cut before each character that begins a normalised stretch for certain: one below U+0300 (those neither
    reorder nor join what stands before them). A stretch that stays as it is maps character by character.
    """
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    begin = 0
    for at in range(1, len(text) + 1):
        if at < len(text) and text[at] >= "\u0300":
            continue
        part = text[begin:at]
        changed = unicodedata.normalize("NFC", part)
        out.append(changed)
        if changed == part:
            starts += range(begin, at)
            ends += range(begin + 1, at + 1)
        else:
            starts += [begin] * len(changed)
            ends += [at] * len(changed)
        begin = at
    return "".join(out), starts, ends
