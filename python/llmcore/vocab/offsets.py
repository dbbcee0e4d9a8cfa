"""Places in a text: of tokens, without the white space around them, and in UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcore.errors import ArgumentError

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

# What Unicode calls white space: `str.isspace` counts four control characters more.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def trimmed(
    tokenizer: Tokenizer,
    text: str,
    ids: list[int],
    places: list[tuple[int, int]],
    keep_first: bool,
    first: int,
) -> list[tuple[int, int]]:
    """`places` without white space, as `process_offsets` of Hugging Face tokenizers has it; but with `keep_first` a
    single space stays at the start, where it may have been put."""
    spec = tokenizer._spec
    # These tokens are what they cover there, however they are spelled.
    as_written = {token.id for token in spec.added} | ({spec.unk_id} if tokenizer.kind == "Unigram" else set())
    blanks = {id: _blanks(tokenizer.id_to_token(id) or "") for id in set(ids) - as_written}
    trimmed = []
    for i, (id, (begin, end)) in enumerate(zip(ids, places, strict=True)):
        before, after = blanks[id] if id in blanks else _blanks(text[begin:end])
        if before and not (keep_first and before == 1 and (i == first or begin == 0)):
            begin = min(begin + before, end)
        if after and end >= after:
            end = max(end - after, begin)
        trimmed.append((begin, end))
    return trimmed


def byte_places(text: str, stretches: Sequence[tuple[int, int]]) -> list[int]:
    """Where stretches of characters, in order, begin and end in UTF-8. Raises ArgumentError for what isn't that."""
    if not isinstance(text, str):
        raise ArgumentError(f"text: must be str, found {type(text).__name__}")
    lengths = [0]
    done = 0
    for i, (begin, end) in enumerate(stretches):
        if not (isinstance(begin, int) and isinstance(end, int) and done <= begin <= end <= len(text)):
            raise ArgumentError(f"guarded[{i}]: must be a stretch of the text behind the last, found {begin, end}")
        done = end
    done = 0
    for at in (place for stretch in stretches for place in stretch):
        lengths.append(lengths[-1] + len(text[done:at].encode("utf-8", "surrogatepass")))
        done = at
    return lengths[1:]


def _blanks(token: str) -> tuple[int, int]:
    """How many characters of white space `token` begins and ends with, in the byte alphabet's spelling or its own."""
    spelled = token.replace("\u0120", " ")
    return len(token) - len(spelled.lstrip(_WHITE)), len(token) - len(spelled.rstrip(_WHITE))
