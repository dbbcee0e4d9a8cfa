"""Changing a vocabulary: without the tokens that a corpus doesn't use, or with new ones. For models: `vocab.models`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llmcore.errors import ArgumentError, TokenizerError, escape, shown
from llmcore.tokenizer import Tokenizer
from llmcore.vocab.spec import AddedToken, Kind, VocabSpec
from llmcore.vocab.surrogates import clean

MAX_NEW_TOKENS = 1 << 16


def prune(tokenizer: Tokenizer, texts: Sequence[str], keep: Iterable[int] = ()) -> tuple[Tokenizer, list[int]]:
    """A tokenizer with only the tokens that `texts` use, and the old ids of its tokens in the order of the new ids.

    Bytes, added and special tokens stay, with `keep`, and what a kept token is merged from. The texts have the same
    tokens as before; what else is written with less suitable ones, down to bytes. Raises ArgumentError (an id of `keep`
    isn't one), TokenizerError when the texts would be cut otherwise, or for another vocabulary than a usual BPE.
    """
    spec = _editable(tokenizer)
    used = {id for text in texts for id in tokenizer.encode(text, add_special_tokens=False)}
    for id in keep:
        if not isinstance(id, int | np.integer) or not 0 <= id < tokenizer.vocab_size:
            raise ArgumentError(f"keep must hold ids below {tokenizer.vocab_size}, got {shown(id)}")
        used.add(int(id))
    used |= {*(id for id in spec.byte_ids if id < tokenizer.vocab_size), *spec.prefix_ids, *spec.suffix_ids}
    used |= {id for id, _ in spec.pair or () if id >= 0}
    used |= {token.id for token in spec.added} | {*tokenizer.eos_ids}
    used |= {id for id in (spec.unk_id, tokenizer.bos_id) if id is not None}
    if not spec.byte_level:  # characters that stand for themselves
        used |= {id for id, kind in enumerate(spec.kinds) if kind == Kind.BYTE}
    merges = tokenizer._core.merges.reshape(-1, 3)
    # A token is made by its first rule, as a rule; where neighbours make it by another one, all its rules are kept.
    for rules in (_first_rules(merges), merges):
        kept = sorted(_closed(used, rules))
        made = _selected(tokenizer, kept, merges)
        if all(_old_ids(made, kept, text) == tokenizer.encode(text) for text in texts):
            return made, kept
    raise TokenizerError("the texts are cut otherwise without the unused tokens; this vocabulary can't be pruned")


def _editable(tokenizer: Tokenizer) -> VocabSpec:
    """The vocabulary as data that can be written again after a change."""
    spec = tokenizer._spec
    if spec.source is not None or spec.matched is not None or spec.model is not None:
        raise TokenizerError(f"a vocabulary of this kind ({tokenizer.kind}, with its own pipeline) can't be changed")
    return spec


def _old_ids(made: Tokenizer, kept: Sequence[int], text: str) -> list[int]:
    return [kept[id] for id in made.encode(text)]


def _first_rules(merges: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    _, first = np.unique(merges[:, 2], return_index=True)
    return merges[first]


def _closed(used: set[int], rules: npt.NDArray[np.uint32]) -> set[int]:
    """`used` with all that its tokens are merged from."""
    parts: dict[int, list[int]] = {}
    for left, right, result in rules.tolist():
        parts.setdefault(result, []).extend((left, right))
    kept, pending = set(used), list(used)
    while pending:
        for part in parts.get(pending.pop(), ()):
            if part not in kept:
                kept.add(part)
                pending.append(part)
    return kept


def _selected(tokenizer: Tokenizer, kept: Sequence[int], merges: npt.NDArray[np.uint32]) -> Tokenizer:
    spec = tokenizer._spec
    new_id = np.full(max(tokenizer.vocab_size, len(spec.tokens)) + 1, -1, np.int64)
    new_id[list(kept)] = np.arange(len(kept))
    mapped = new_id[merges.astype(np.int64)]
    mapped = mapped[(mapped >= 0).all(axis=1)].astype(np.uint32)

    def ids(old: Iterable[int]) -> tuple[int, ...]:
        return tuple(int(new_id[id]) for id in old)

    changed = spec.changed(
        tokens=[spec.tokens[id] for id in kept],
        kinds=bytearray(spec.kinds[id] for id in kept),
        byte_ids=[int(new_id[id]) if id < len(spec.tokens) else id for id in spec.byte_ids],
        merges=np.ascontiguousarray(mapped),
        ranks=None,
        unk_id=None if spec.unk_id is None else int(new_id[spec.unk_id]),
        added=tuple(replace(token, id=int(new_id[token.id])) for token in spec.added),
        names={int(new_id[id]): name for id, name in spec.names.items() if new_id[id] >= 0},
        prefix_ids=ids(spec.prefix_ids),
        suffix_ids=ids(spec.suffix_ids),
        pair=None if spec.pair is None else tuple((int(new_id[id]) if id >= 0 else id, t) for id, t in spec.pair),
    )
    return _like(
        tokenizer, changed, None if tokenizer.bos_id is None else ids([tokenizer.bos_id])[0], ids(tokenizer.eos_ids)
    )


def _like(tokenizer: Tokenizer, spec: VocabSpec, bos_id: int | None, eos_ids: Sequence[int]) -> Tokenizer:
    return Tokenizer(spec, bos_id=bos_id, eos_ids=eos_ids, chat_template=tokenizer._chat_template)


def extend(tokenizer: Tokenizer, tokens: Sequence[str], *, special: bool = False) -> Tokenizer:
    """The tokenizer with further added tokens, which are found in text as a whole; their ids follow the present ones.

    special: control tokens, which text becomes only where the caller allows it. Raises ArgumentError for a token that
    is empty, given twice or there already, TokenizerError for another vocabulary than a usual BPE.
    """
    spec = _editable(tokenizer)
    if isinstance(tokens, str) or not 1 <= len(tokens) <= MAX_NEW_TOKENS:
        raise ArgumentError(f"tokens must be a list of 1 to {MAX_NEW_TOKENS} texts")
    there = {token.content for token in spec.added}
    added = []
    for i, content in enumerate(tokens):
        if not isinstance(content, str) or not content.strip() or clean(content) != content:
            raise ArgumentError(f"tokens[{i}] must be a text with something to see in it")
        if content in there or tokenizer.token_to_id(content) is not None:
            raise ArgumentError(f"tokens[{i}] {escape(content, 60)} is in the vocabulary already")
        there.add(content)
        added.append(AddedToken(content, tokenizer.vocab_size + i, special=special))
    gap = tokenizer.vocab_size - len(spec.tokens)
    changed = spec.changed(
        tokens=[*spec.tokens, *[b""] * gap, *(token.content.encode("utf-8") for token in added)],
        kinds=spec.kinds + bytearray([Kind.GAP] * gap + [Kind.ADDED] * len(added)),
        added=(*spec.added, *added),
        names={**spec.names, **{token.id: token.content for token in added}},
    )
    if changed.ranks is not None:
        none = np.full(gap + len(added), 0xFFFFFFFF, np.uint32)
        changed = changed.changed(ranks=np.concatenate([changed.ranks, none]))
    return _like(tokenizer, changed, tokenizer.bos_id, tokenizer.eos_ids)
