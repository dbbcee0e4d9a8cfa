"""What a file is, by its first bytes, so that a message can name what came instead of what was wanted."""

from __future__ import annotations

HEAD_BYTES = 64
"""How many bytes `identify` looks at."""

_MAGIC = (
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the real file with `git lfs pull`)"),
    (b"PK\x03\x04", "a ZIP archive, as torch.save writes (pickle inside, which is never opened)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
)


def identify(head: bytes) -> str | None:
    """What a file beginning with `head` looks like, or None when nothing known fits."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "a pickle, which could run code and is never opened"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page (a failed download?)"
    return None
