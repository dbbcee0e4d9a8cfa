"""tekken.json of Mistral -> VocabSpec: ranks of tiktoken behind a block of control tokens.

Source: mistral-common's Tekkenizer, file versions v3 to v13.
"""

from __future__ import annotations

import binascii
from typing import Any

from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab.fields import array, obj, shown, text
from llmcore.vocab.spec import NO_ID, AddedToken, Kind, VocabSpec
from llmcore.vocab.tiktoken import cut_by, spec_of_ranks

_MAX_TOKENS = 1 << 22
# Of files that don't list their control tokens.
_CONTROL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
_CONTROL += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
_CONTROL += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]


def _number(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise TokenizerError(f"tekken: config.{name}: must be an integer from 1, found {shown(value)}")
    if value > _MAX_TOKENS:
        raise LimitError(f"tekken: config.{name}: {value}; at most {_MAX_TOKENS}")
    return value


def read_tekken(root: dict[str, Any]) -> VocabSpec:
    """The vocabulary in the parsed tekken.json `root`. Raises TokenizerError, LimitError."""
    config = obj(root.get("config"), "tekken: config")
    size = _number(config, "default_vocab_size")
    reserved = _number(config, "default_num_special_tokens")
    if reserved >= size:
        raise TokenizerError(f"tekken: {reserved} control tokens in a vocabulary of {size}")
    ranks: dict[bytes, int] = {}
    for at, item in enumerate(array(root.get("vocab"), "tekken: vocab")):
        where = f"tekken: vocab[{at}]"
        entry = obj(item, where)
        if entry.get("rank") != at:
            raise TokenizerError(f"{where}: the rank is {shown(entry.get('rank'))}; ranks go up one by one")
        try:
            token = binascii.a2b_base64(text(entry.get("token_bytes"), where), strict_mode=True)
        except (binascii.Error, ValueError):
            raise TokenizerError(f"{where}: not base64: {shown(entry.get('token_bytes'))}") from None
        if not token or token in ranks:
            raise TokenizerError(f"{where}: an empty token or one met before")
        if at < size - reserved:
            ranks[token] = at
    spec = spec_of_ranks(ranks, cut_by(text(config.get("pattern"), "tekken: config.pattern")), {})
    names = _control_names(root, reserved)
    by_rank = spec.ranks
    assert by_rank is not None
    return spec.changed(
        tokens=[*(name.encode() for name in names), *spec.tokens],
        kinds=bytearray([Kind.ADDED] * reserved) + spec.kinds,
        ranks=_behind(by_rank, reserved),
        byte_ids=[at + reserved for at in spec.byte_ids],
        added=tuple(AddedToken(name, at) for at, name in enumerate(names)),
        names=dict(enumerate(names)),
        prefix_ids=(names.index("<s>"),) if "<s>" in names else (),
    )


def _behind(ranks: Any, count: int) -> Any:
    import numpy as np

    return np.concatenate([np.full(count, NO_ID, np.uint32), ranks])


def _control_names(root: dict[str, Any], reserved: int) -> list[str]:
    names: dict[int, str] = dict(enumerate(_CONTROL))
    listed = root.get("special_tokens")
    if listed is not None:
        names = {}
        for at, item in enumerate(array(listed, "tekken: special_tokens")):
            entry = obj(item, f"tekken: special_tokens[{at}]")
            rank = entry.get("rank")
            if type(rank) is not int or not 0 <= rank < reserved or rank in names:
                raise TokenizerError(
                    f"tekken: special_tokens[{at}]: rank {shown(rank)} is not from 0 to {reserved - 1}, once"
                )
            names[rank] = text(entry.get("token_str"), f"tekken: special_tokens[{at}]")
    all_names = [names.get(at, f"<SPECIAL_{at}>") for at in range(reserved)]
    if len(set(all_names)) != reserved or not all(all_names):
        raise TokenizerError("tekken: two control tokens have one name, or none")
    return all_names
