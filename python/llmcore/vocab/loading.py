"""What lies at a path -> vocabulary, special ids and chat template. Contents decide, not names."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore import _core
from llmcore.checkpoint.containers import HEAD_BYTES, identify
from llmcore.checkpoint.files import PlainFile, exists, is_file
from llmcore.checkpoint.hf_dir import TOKENIZER_FILES
from llmcore.checkpoint.strict_json import load_json
from llmcore.errors import LimitError, StorageError, TokenizerError, escape
from llmcore.vocab import cache, sentencepiece, tiktoken
from llmcore.vocab.fields import JSON_LIMIT_BYTES, obj, shown
from llmcore.vocab.hf import from_json, parse_vocabulary
from llmcore.vocab.merges import read_vocab_and_merges
from llmcore.vocab.patterns import STAGE_OF_NAME
from llmcore.vocab.spec import AddedToken, Kind, VocabSpec
from llmcore.vocab.tekken import read_tekken
from llmcore.vocab.training import stages_of

if TYPE_CHECKING:
    from llmcore.chat import ChatTemplate

_log = logging.getLogger("llmcore")
_CONFIG_LIMIT_BYTES = 1 << 24
_MODEL_LIMIT_BYTES = 1 << 26
_BOS_NAMES = ("<s>", "<|begin_of_text|>")
_EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|end|>")


@dataclass
class Parts:
    """What `Tokenizer.load` is made of."""

    spec: VocabSpec
    bos_id: int | None = None
    eos_ids: list[int] = field(default_factory=list)
    chat_template: ChatTemplate | None = None
    core: _core.Tokenizer | None = None
    fingerprint: str | None = None


def load_parts(path: str | os.PathLike[str], pattern: str | None) -> Parts:
    """The parts of the tokenizer at `path`, a folder or a file. Raises TokenizerError, LimitError, StorageError.

    One that was loaded before comes from the cache, with its core.
    """
    signature = cache.signature(Path(path), pattern)
    found = cache.read(signature)
    if found is not None:
        return found
    parts = _build_parts(path, pattern)
    parts.core = _core.Tokenizer(parts.spec.core_fields())
    cache.write(signature, parts, parts.core)
    return parts


@contextmanager
def _no_collections() -> Iterator[None]:
    """Vocabularies hold no cycles: the collector would only walk their many objects over and over."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_no_collections()
def _build_parts(path: str | os.PathLike[str], pattern: str | None) -> Parts:
    where = Path(path)
    if os.path.isdir(where):
        return _load_folder(where, pattern)
    if not exists(where):
        raise TokenizerError(f"{escape(path, 200)[1:-1]}: no such file or folder")
    with PlainFile(where) as file:
        is_gguf = bytes(file.read(min(file.size, 4), 0)) in (b"GGUF", b"FUGG")
    if is_gguf:
        return _load_gguf(where, pattern)
    spec = _load_file(where, pattern, {})
    return Parts(spec, *_guess_ids(spec))


def _load_gguf(path: Path, pattern: str | None) -> Parts:
    from llmcore.chat import ChatTemplate
    from llmcore.vocab.gguf import read_gguf

    if pattern is not None:
        raise TokenizerError("pattern= is for rank files; this file says itself how text is split")
    spec, bos_id, eos_ids, template = read_gguf(path)
    named = {"bos_token": bos_id, "eos_token": eos_ids[0] if eos_ids else None}
    contents = {token.id: token.content for token in spec.added} | spec.names
    variables = {key: contents[id] for key, id in named.items() if id in contents}
    return Parts(spec, bos_id, eos_ids, None if template is None else ChatTemplate(template, variables))


def _load_folder(folder: Path, pattern: str | None) -> Parts:
    config = _config(folder / "tokenizer_config.json")
    names = [name for name in TOKENIZER_FILES if is_file(folder / name)]
    names += sorted(p.name for p in folder.glob("*.tiktoken"))
    if not names:
        raise TokenizerError(
            f"{escape(folder, 200)[1:-1]}: no tokenizer here; looked for {', '.join(TOKENIZER_FILES)} and *.tiktoken"
        )
    if names[0].endswith(".gguf"):
        return _load_gguf(folder / names[0], pattern)
    spec = _load_file(folder / names[0], pattern, _with_neighbours(config, folder))
    if names[0] not in ("tokenizer.json", "tekken.json"):
        spec = _add_config_tokens(spec, config, folder)
    bos_id, eos_ids = _configured_ids(spec, config, folder)
    from llmcore.chat import find_template

    return Parts(spec, bos_id, eos_ids, find_template(folder, config, _variables(config, folder)))


def _load_file(path: Path, pattern: str | None, config: dict[str, Any]) -> VocabSpec:
    """The vocabulary in one file, told by what it begins with."""
    with PlainFile(path) as file:
        head = bytes(file.read(min(file.size, 1 << 10), 0))
        size = file.size
        limit = JSON_LIMIT_BYTES if head.lstrip()[:1] == b"{" else _MODEL_LIMIT_BYTES
        if size > limit:
            raise LimitError(f"{escape(path, 200)[1:-1]}: {size} bytes; at most {limit} are read")
        data = bytes(file.read(size, 0))
    try:
        return _parse(data, path, pattern, config)
    except (TokenizerError, LimitError) as error:
        raise type(error)(f"{escape(path.name, 200)[1:-1]}: {error}") from None


def _parse(data: bytes, path: Path, pattern: str | None, config: dict[str, Any]) -> VocabSpec:
    if tiktoken.looks_like_ranks(data[:1024]):
        return _ranks(data, path, pattern)
    if pattern is not None:
        raise TokenizerError("pattern= is for rank files; this file says itself how text is split")
    if data.lstrip()[:1] in (b"{", b"[") or data.startswith(b"\xef\xbb\xbf"):
        root = obj(parse_vocabulary(data), "the file")
        if isinstance(root.get("config"), dict) and isinstance(root.get("vocab"), list):
            return read_tekken(root)
        if isinstance(root.get("model"), dict) or not (root and all(type(at) is int for at in root.values())):
            return from_json(_with_config_tokens(root, config))
        return read_vocab_and_merges(root, path)
    looks = identify(data[:HEAD_BYTES])
    if looks is not None:
        raise TokenizerError(f"not a tokenizer, but {looks}")
    if data[:1] not in sentencepiece.FIRST_BYTES:
        raise TokenizerError("not a tokenizer: neither JSON, nor ranks, nor a SentencePiece model")
    return sentencepiece.read_model(data, config)


def _ranks(data: bytes, path: Path, pattern: str | None) -> VocabSpec:
    name = tiktoken.identify(data)
    if name is None and pattern is None:
        stem = path.name.split(".")[0].removesuffix("_base")
        name = stem if path.suffix == ".tiktoken" and stem in tiktoken.ENCODINGS else None
    ranks = tiktoken.read_ranks(data)
    known = tiktoken.ENCODINGS[name] if name is not None else None
    if pattern is not None:
        is_regex = pattern not in STAGE_OF_NAME and any(sign in pattern for sign in "\\[(|+*?")
        cut = tiktoken.cut_by(pattern) if is_regex else stages_of(pattern)[0]
    elif known is not None:
        cut = known.stage
    else:
        raise TokenizerError(
            "not a rank file of a known vocabulary: say pattern= (gpt2, cl100k, llama3, qwen2, o200k, or an expression)"
        )
    spec = tiktoken.spec_of_ranks(ranks, cut, {} if known is None else known.special)
    if name == "llama3":
        return spec.changed(prefix_ids=(128000,))
    return spec


def _config(path: Path) -> dict[str, Any]:
    if not is_file(path):
        return {}
    return obj(load_json(path, limit_bytes=_CONFIG_LIMIT_BYTES, error=TokenizerError), path.name)


def _token_text(value: object) -> str | None:
    """A special token of a config: a string, or an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _flags(entry: object) -> dict[str, bool]:
    if not isinstance(entry, dict):
        return {}
    known = ("special", "single_word", "lstrip", "rstrip", "normalized")
    return {name: entry[name] for name in known if isinstance(entry.get(name), bool)}


def _with_neighbours(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`config` with what older checkpoints have in special_tokens_map.json and added_tokens.json."""
    if config.get("added_tokens_decoder") is not None:
        return config
    config = {**_config(folder / "special_tokens_map.json"), **{k: v for k, v in config.items() if v is not None}}
    decoder = {
        str(_checked_id(at, "added_tokens.json")): {"content": name}
        for name, at in _config(folder / "added_tokens.json").items()
    }
    return {**config, "added_tokens_decoder": decoder}


def _decoder_tokens(config: dict[str, Any]) -> list[tuple[int, str, dict[str, bool]]]:
    """Id, content and flags of what `added_tokens_decoder` lists, in order of ids."""
    where = "added_tokens_decoder"
    decoder = config.get(where)
    found = [
        (_checked_id(int(key[:10]), where), content, _flags(entry))
        for key, entry in obj({} if decoder is None else decoder, where).items()
        if key.isdecimal() and (content := _token_text(entry))
    ]
    return sorted(found, key=lambda token: token[0])


def _named_special(config: dict[str, Any]) -> set[str]:
    """The tokens that transformers takes for special because of what they are for."""
    extra = config.get("extra_special_tokens")
    values = list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    named = (config.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
    return {text for value in (*named, *values) if (text := _token_text(value))}


def _with_config_tokens(root: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with the added tokens and the flags that `config` says, as transformers has them.

    A token gets the id after the last, whatever its key says. One that is merely named and in no vocabulary isn't
    added: the model has no row for it.
    """
    items, model = root.get("added_tokens") or [], root.get("model")
    decoder = _decoder_tokens(config)
    named = _named_special(config)
    if not (decoder or named) or not isinstance(items, list) or not isinstance(model, dict):
        return root
    entries = {e["content"]: e for e in items if isinstance(e, dict) and isinstance(e.get("content"), str)}
    ids = [e["id"] for e in entries.values() if type(e.get("id")) is int]
    if len(ids) != len(items):
        return root  # broken, as its reader will say
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # Unigram's
        vocab = {
            piece[0]: at for at, piece in enumerate(vocab) if isinstance(piece, list) and isinstance(piece[0], str)
        }
    if not isinstance(vocab, dict | _core.TokenList):
        return root
    flags = {content: told for _, content, told in decoder}
    for content in named:
        if content in flags or content in entries or vocab.get(content) is not None:
            flags[content] = {**flags.get(content, {}), "special": True}
    for content, told in flags.items():
        if content not in entries:
            at = vocab.get(content)
            at = max([len(vocab), *(id + 1 for id in ids)]) if at is None else at
            entries[content] = {"id": at, "content": content}
            ids.append(at)
        entries[content] = {**entries[content], **told}
    return {**root, "added_tokens": list(entries.values())}


def _add_config_tokens(spec: VocabSpec, config: dict[str, Any], folder: Path) -> VocabSpec:
    """The added tokens that stand beside a vocabulary which has no place for them itself."""
    wanted: dict[str, tuple[int, dict[str, bool]]] = {}
    for name, at in _config(folder / "added_tokens.json").items():
        wanted[name] = (_checked_id(at, "added_tokens.json"), {"special": False})
    for at, content, flags in _decoder_tokens(config):
        wanted[content] = (at, {"special": False, **flags})
    present = {t.content: t for t in spec.added}
    symbols = {t.id: t for t in spec.added if t.exact}
    tokens, kinds, names = list(spec.tokens), bytearray(spec.kinds), dict(spec.names)
    for content, (at, flags) in wanted.items():
        if not content or len(content) > 1024:
            raise LimitError(f"added token {shown(content)}: must have 1 to 1024 characters")
        if at >= len(tokens):
            if at > len(tokens) + (1 << 16):
                raise LimitError(f"added token {shown(content)}: id {at} is out of proportion to {len(tokens)} tokens")
            kinds += bytes(at + 1 - len(tokens))
            tokens += [b""] * (at + 1 - len(tokens))
        if kinds[at] != Kind.GAP and names.get(at, tokens[at].decode("utf-8", "replace")) != content:
            raise TokenizerError(f"added token {shown(content)}: id {at} is another token's")
        if at in symbols:  # of a tokenizer.model, which finds them in its own way and may spell them with spaces
            token = replace(symbols[at], special=flags["special"])
        else:
            token = AddedToken(content, at, **{"special": True, **flags})
        present[token.content] = token
        if token.control or kinds[at] == Kind.GAP:
            tokens[at], kinds[at], names[at] = content.encode(), Kind.ADDED, content
    return spec.changed(tokens=tokens, kinds=kinds, names=names, added=tuple(present.values()))


def _checked_id(value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 24:
        raise TokenizerError(f"{where}: an id must be an integer from 0 to 2^24 - 1, found {shown(value)}")
    return value


def _ids_by_name(spec: VocabSpec) -> dict[str, int]:
    return {t.content: t.id for t in spec.added} | {name: at for at, name in spec.names.items()}


def _guess_ids(spec: VocabSpec) -> tuple[int | None, list[int]]:
    """BOS and EOS of a file that stands alone: the template's first token, and the usual names."""
    by_name = _ids_by_name(spec)
    bos = next((by_name[name] for name in _BOS_NAMES if name in by_name), None)
    if spec.prefix_ids:
        bos = spec.prefix_ids[0]
    eos = next((by_name[name] for name in _EOS_NAMES if name in by_name), None)
    return bos, [] if eos is None else [eos]


def _configured_ids(spec: VocabSpec, config: dict[str, Any], folder: Path) -> tuple[int | None, list[int]]:
    """BOS from tokenizer_config.json, EOS from generation_config.json and then tokenizer_config.json."""
    by_name = _ids_by_name(spec)
    named = _special_map(config, folder)
    bos, eos = _guess_ids(spec)
    if "bos_token" in named:
        found = by_name.get(named["bos_token"])
        if spec.prefix_ids and found is not None and found not in spec.prefix_ids:
            _log.warning(
                "tokenizer_config.json says BOS is %d, but %d is what tokenizer.json puts before a text, and so do we",
                found,
                spec.prefix_ids[0],
            )
        bos = found if found is not None else bos
    elif "bos_token" in config and not spec.prefix_ids:
        bos = None
    if "eos_token" in named and named["eos_token"] in by_name:
        eos = [by_name[named["eos_token"]]]
    generation = _config(folder / "generation_config.json").get("eos_token_id")
    listed = generation if isinstance(generation, list) else [generation]
    ids = [at for at in listed if type(at) is int and 0 <= at < len(spec.tokens)]
    return bos, ids + [at for at in eos if at not in ids]


def _special_map(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Names of bos_token, eos_token and the like; tokenizer_config.json wins over special_tokens_map.json."""
    merged = {**_config(folder / "special_tokens_map.json"), **{k: v for k, v in config.items() if v is not None}}
    named = {key: _token_text(value) for key, value in merged.items() if key.endswith("_token")}
    return {key: value for key, value in named.items() if value is not None}


def _variables(config: dict[str, Any], folder: Path) -> dict[str, str]:
    return _special_map(config, folder)


__all__ = ["Parts", "StorageError", "load_parts"]
