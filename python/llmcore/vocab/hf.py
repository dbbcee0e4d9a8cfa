"""tokenizer.json of Hugging Face tokenizers -> VocabSpec.

Source: the JSON that tokenizers 0.9 to 0.23 write. What can't be reproduced exactly raises TokenizerError and names the
part.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from llmcore import _core
from llmcore.checkpoint.strict_json import load_json, parse_json
from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab import bytelevel
from llmcore.vocab.bpe_model import byte_level_fields, character_fields, space_stage
from llmcore.vocab.fields import (
    JSON_LIMIT_BYTES,
    MAX_ITEMS,
    MAX_KEYS,
    UnsupportedPartError,
    array,
    flag,
    obj,
    refuse,
    shown,
    text,
    token_id,
)
from llmcore.vocab.hf_general import from_parts, model_kind
from llmcore.vocab.hf_pipeline import (
    Splitter,
    read_decoder,
    read_normalizer,
    read_post_processor,
    read_pre_tokenizer,
    splits_at_spaces,
)
from llmcore.vocab.spec import AddedToken, VocabSpec

_MAX_ADDED = 1 << 16


def read_tokenizer_json(path: str | os.PathLike[str]) -> VocabSpec:
    """The vocabulary in the tokenizer.json at `path`. Raises TokenizerError, LimitError, StorageError."""
    data = load_json(path, limit_bytes=JSON_LIMIT_BYTES, max_keys=MAX_KEYS, max_items=MAX_ITEMS, error=TokenizerError)
    return from_json(obj(data, "tokenizer.json"))


def parse_vocabulary(data: bytes) -> object:
    """What the JSON text `data` holds, as `parse_json` reads it; but if nothing is wrong with them, the vocabulary of a
    tokenizer.json with merges is a TokenList, and they are [n, 3] ids."""
    limits: dict[str, Any] = {"max_keys": MAX_KEYS, "max_items": MAX_ITEMS, "error": TokenizerError}
    tables = _core.json_vocabulary(data, MAX_KEYS, MAX_ITEMS // 3) if b'"merges"' in data else None
    if tables is not None:
        rest, vocab, merges = tables
        try:
            root: Any = parse_json(rest, **limits)
        except (TokenizerError, LimitError):
            pass  # the whole text says where
        else:
            root["model"] |= {"vocab": vocab, "merges": merges.reshape(-1, 3)}
            return root
    return parse_json(data, **limits)


def from_json(root: dict[str, Any]) -> VocabSpec:
    """The vocabulary in the parsed tokenizer.json `root`."""
    added = read_added(root.get("added_tokens"))
    if obj(root.get("model"), "model").get("dropout"):
        raise refuse("dropout as a part of the model (see the `dropout` of Tokenizer.encode)", "model")
    try:
        return _usual(root, added)
    except UnsupportedPartError:
        return from_parts(_spelled(root), added)  # which keeps the file as it is


def _spelled(root: dict[str, Any]) -> dict[str, Any]:
    """`root` with the vocabulary and the merges as the file has them."""
    model = obj(root.get("model"), "model")
    if not isinstance(model.get("merges"), np.ndarray):
        return root
    vocab = model["vocab"].to_dict()
    name_of = {at: token for token, at in vocab.items()}
    pairs = [[name_of[left], name_of[right]] for left, right, _ in model["merges"].tolist()]
    blanks = any(" " in side for pair in pairs for side in pair)
    return {
        **root,
        "model": {**model, "vocab": vocab, "merges": pairs if blanks else [" ".join(pair) for pair in pairs]},
    }


def _usual(root: dict[str, Any], added: tuple[AddedToken, ...]) -> VocabSpec:
    """A BPE vocabulary in one of the forms that most have. Raises UnsupportedPartError for another."""
    model = obj(root.get("model"), "model")
    if model_kind(model) != "BPE":
        raise refuse("another model than BPE", "model")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refuse(name, "model")
    normalizer = read_normalizer(root.get("normalizer"))
    cuts = root.get("pre_tokenizer")
    # Gemma's has nothing to split at where marks are in the place of all spaces.
    splitter = Splitter() if normalizer.metaspace and splits_at_spaces(cuts) else read_pre_tokenizer(cuts)
    decoder = read_decoder(root.get("decoder"))
    if splitter.byte_level != decoder.byte_level:
        raise refuse("a decoder of another kind than the pre-tokenizer", "decoder")
    if normalizer.metaspace and splitter.metaspace:
        raise refuse("a Metaspace pre-tokenizer behind a normalizer that replaces spaces", "pre_tokenizer")
    if normalizer.metaspace and any(t.normalized and (t.lstrip or t.rstrip) for t in added):
        raise refuse("an added token that takes spaces, but not the marks that stand for them, along", "added_tokens")
    given = model.get("vocab")
    vocab = given if isinstance(given, _core.TokenList) else read_vocab(given)
    merges = read_merges(model.get("merges"), vocab, {t.content for t in added if t.control})
    whole_words = flag(model.get("ignore_merges") or False, "model.ignore_merges")
    unk = model.get("unk_token")
    if splitter.byte_level:
        if normalizer.metaspace:
            raise refuse("a normalizer that replaces spaces before ByteLevel", "normalizer")
        fields = byte_level_fields(vocab, added, unk if isinstance(unk, str) else None)
    else:
        metaspace = normalizer.metaspace or splitter.metaspace
        byte_fallback = flag(model.get("byte_fallback") or False, "model.byte_fallback")
        if byte_fallback != decoder.byte_fallback:
            raise refuse("byte fallback of the model or the decoder alone", "decoder")
        if not metaspace:
            raise refuse("a decoder that replaces the marks of spaces alone", "decoder")
        if byte_fallback and vocab.get("\u2581") is None:  # spelled by its own bytes, not by that of the space
            raise refuse("byte fallback without a token for the mark of spaces", "model.vocab")
        fields = character_fields(vocab, added, unk, byte_fallback, metaspace)
        fields["fuse_unk"] = flag(model.get("fuse_unk") or False, "model.fuse_unk")
    stages = splitter.stages
    marked = normalizer.metaspace or splitter.metaspace
    if marked and not stages and not whole_words:  # which sees the text as one word
        stages = space_stage(fields["tokens"], fields["kinds"])
    around = read_post_processor(root.get("post_processor"), fields["size"])
    del fields["size"]
    return VocabSpec(
        **fields,
        merges=merges,
        whole_words=whole_words,
        stages=stages,
        added=added,
        nfc=normalizer.nfc,
        space_prefix=normalizer.space_prefix or splitter.space_prefix,
        prefix_even_if_space=normalizer.metaspace,
        prefix_before_added=normalizer.metaspace,
        metaspace=normalizer.metaspace or splitter.metaspace,
        **decoder.fields,
        **vars(around),
    )


def read_added(value: object) -> tuple[AddedToken, ...]:
    """The added tokens, in the file's order."""
    items = array([] if value is None else value, "added_tokens")
    if len(items) > _MAX_ADDED:
        raise LimitError(f"added_tokens: {len(items)} of them; at most {_MAX_ADDED} are read")
    tokens, contents, ids = [], set(), set()
    for i, item in enumerate(items):
        where = f"added_tokens[{i}]"
        entry = obj(item, where)
        content = text(entry.get("content"), where + ".content")
        if not content:
            raise TokenizerError(f"{where}: the content is empty")
        at = token_id(entry.get("id"), where)
        if content in contents or at in ids:
            raise TokenizerError(f"{where}: {shown(content)} or its id {at} was added before")
        contents.add(content)
        ids.add(at)
        flags = {
            name: flag(entry.get(name, name == "normalized" and not entry.get("special", False)), f"{where}.{name}")
            for name in ("special", "single_word", "lstrip", "rstrip", "normalized")
        }
        tokens.append(AddedToken(content, at, **flags))
    if any(token.rstrip for token in tokens):
        for token in tokens:
            if token.lstrip and token.content.isspace():  # of which nothing would be left behind another token
                raise refuse(f"{shown(token.content)} with lstrip, and a token with rstrip", "added_tokens")
    return tuple(tokens)


def read_vocab(value: object) -> dict[str, int]:
    """The vocabulary of the model, token -> id."""
    vocab = obj(value, "model.vocab")
    for token, at in vocab.items():
        if type(at) is not int or at < 0 or at >= 1 << 24:
            token_id(at, f"model.vocab[{shown(token)}]")
    return vocab


def read_merges(
    value: object, vocab: dict[str, int] | _core.TokenList, control: set[str], skip: int = 0
) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The merges as [n, 3] ids. A rule that spells a control token is left out: text must never become one.

    `skip`: characters at the start of the right side that the result lacks (the prefix of tokens within words).
    """
    left_out = [at for token in control if (at := vocab.get(token)) is not None]
    if isinstance(value, np.ndarray):  # by `parse_vocabulary`, which reads none where tokens have a prefix
        return value[~np.isin(value[:, 2], left_out)] if left_out else value
    if not isinstance(vocab, dict):
        vocab = vocab.to_dict()
    items = array(value, "model.merges")
    read = _core.resolve_merges(items, vocab, skip, left_out)
    if read is not None:
        return read.reshape(-1, 3)
    # One of them is wrong, and it is found out which.
    flat: list[int] = []
    seen: set[tuple[int, int]] = set()
    for i, item in enumerate(items):
        parts = item.split(" ") if isinstance(item, str) else item
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise TokenizerError(f"model.merges[{i}]: must be two tokens, found {shown(item)}")
        left, right = parts
        whole = left + right[skip:]
        try:
            a, b, c = vocab[left], vocab[right], vocab[whole]
        except KeyError as missing:
            raise TokenizerError(f"model.merges[{i}]: {shown(missing.args[0])} is not in the vocabulary") from None
        if (a, b) in seen:
            raise TokenizerError(f"model.merges[{i}]: {shown(item)} stands there twice")
        seen.add((a, b))
        if whole not in control:
            flat += (a, b, c)
    return np.array(flat, np.uint32).reshape(-1, 3)


def show_token(spec: VocabSpec, at: int) -> str:
    """Token `at` the way a tokenizer.json spells it."""
    name = spec.names.get(at)
    if name is not None:
        return name
    if spec.matched is not None:  # as SentencePiece's normaliser leaves text, with its marks for spaces
        return spec.matched[at].decode("utf-8", "replace")
    data = spec.tokens[at]
    if spec.byte_level:
        return bytelevel.to_text(data)
    shown_text = data.decode("utf-8", "replace")
    return shown_text.replace(" ", "\u2581") if spec.metaspace else shown_text
