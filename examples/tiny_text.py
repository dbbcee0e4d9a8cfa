"""Text for `pretrain_tiny.py`: downloaded books -> clean training documents and held-out ends."""

from __future__ import annotations

import re
from pathlib import Path

WRAPPED_AT = {"war-and-peace.txt": 72, "wizard_of_oz_excerpt.txt": 62}  # prose in lines of a fixed width; verse is not
ASCII = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "…": "...", "\xa0": " "})


def clean(name: str, text: str) -> str:
    """Plain paragraphs out of a downloaded book: no Gutenberg frame, no line wrapping, ASCII punctuation."""
    text = text.replace("\r\n", "\n").translate(ASCII)
    text = re.sub(r"(?s)^.*?\*\*\* ?START OF TH[^\n]*\*\*\*", "", text)
    text = re.sub(r"(?s)\*\*\* ?END OF TH.*$", "", text)
    if '",\n    "' in text:  # an excerpt stored as a JSON list of overlapping chunks: drop the seams and the repeats
        text = re.sub(r'(?s)(\S.{23,500}?)(?:",\n    ")?\1', r"\1", text)
        text = re.sub(r'(?:",)?\n  \]\n.*$|",\n    "', "\n", text)
    width = WRAPPED_AT.get(name)
    if width is None:
        return text.strip() + "\n"
    lines, out = text.split("\n"), ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        word = following.split(" ", 1)[0]
        wrapped = bool(line) and bool(word) and len(line) + 1 + len(word) > width
        out += line.rstrip() + (("" if line.endswith("--") else " ") if wrapped else "\n")
    if "\n\n" not in out.strip():  # paragraphs one a line: a blank line between, as in the other books
        out = out.replace("\n", "\n\n")
    return re.sub(r"\n{3,}", "\n\n", out).strip() + "\n"


def read_texts(paths: list[Path], held_out: float = 0.05) -> tuple[list[str], dict[str, str]]:
    """Training documents (chapters) and {file name: its held-out end}."""
    training: list[str] = []
    validation: dict[str, str] = {}
    for path in paths:
        text = clean(path.name, path.read_text(encoding="utf-8"))
        cut = text.index("\n", int(len(text) * (1 - held_out))) + 1
        training += [part for part in re.split(r"(?m)^(?=CHAPTER )", text[:cut]) if part.strip()]
        validation[path.name] = text[cut:].lstrip("\n")
    return training, validation
