"""NFC as Hugging Face tokenizers has it, with a way back: where each character of the normalised text came from.

Its normaliser knows Unicode 9. For everything assigned then, normalisation never changes; what came later (marks with a
combining class, and parts of new compositions) it leaves where it stands, so text is cut around those characters and
the rest is left to the standard library, whichever Unicode version that has.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Assigned after Unicode 9, up to 17: combining class not 0, or the part by which a new composition is recognised.
_LATER = (
    "\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1add\u1ae0-\u1aeb\u1df6-\u1dfa\ua82c"
    "\U000105d2\U000105da\U00010d24-\U00010d27\U00010d69-\U00010d6d\U00010eab-\U00010eac\U00010efa-\U00010efb"
    "\U00010efd-\U00010eff\U00010f46-\U00010f50\U00010f82-\U00010f85\U00011070\U0001133b\U000113b8\U000113bb\U000113c2"
    "\U000113c9\U000113ce-\U000113d0\U0001145e\U00011839-\U0001183a\U00011930\U0001193d-\U0001193e\U00011943\U000119e0"
    "\U00011a34\U00011a47\U00011a99\U00011d42\U00011d44-\U00011d45\U00011d97\U00011f41-\U00011f42\U0001611e-\U00016120"
    "\U00016129\U0001612f\U00016d67\U00016ff0-\U00016ff1\U0001e08f\U0001e130-\U0001e136\U0001e2ae\U0001e2ec-\U0001e2ef"
    "\U0001e4ec-\U0001e4ef\U0001e5ee-\U0001e5ef\U0001e6e3\U0001e6e6\U0001e6ee-\U0001e6ef\U0001e6f5"
)


@cache
def _later() -> re.Pattern[str]:
    return re.compile(f"[{_LATER}]")


def is_nfc(text: str) -> bool:
    """True when normalisation surely leaves `text` as it is."""
    return text.isascii() or (unicodedata.is_normalized("NFC", text) and _later().search(text) is None)


def nfc(text: str) -> str:
    """`text` normalised."""
    return nfc_with_origin(text)[0] if not is_nfc(text) else text


def nfc_with_origin(text: str) -> tuple[str, list[int], list[int]]:
    """NFC of `text`, and for each of its characters the start and end of the stretch of `text` it stands for.

    `text` is cut before each character that begins a normalised stretch for certain: one below U+0300 (those neither
    reorder nor join what stands before them). A stretch that stays as it is maps character by character.
    """
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    alone = {match.start() for match in _later().finditer(text)}
    begin = 0
    for at in range(1, len(text) + 1):
        if at < len(text) and text[at] >= "\u0300" and at not in alone and at - 1 not in alone:
            continue
        part = text[begin:at]
        changed = part if begin in alone else unicodedata.normalize("NFC", part)
        out.append(changed)
        if changed == part:
            starts += range(begin, at)
            ends += range(begin + 1, at + 1)
        else:
            starts += [begin] * len(changed)
            ends += [at] * len(changed)
        begin = at
    return "".join(out), starts, ends
