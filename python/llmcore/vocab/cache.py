"""Built vocabularies kept in the user's cache folder, so that a tokenizer that was loaded before loads in milliseconds.

An entry belongs to a path. It counts only for the files it was made from (names, sizes, times and inodes of all that
loading may read) and for this build of llmcore on this kind of machine; else it is ignored and written anew. Every
failure to read or write one is silent: a cache is never needed. `LLMCORE_CACHE_DIR` says where (default:
`$XDG_CACHE_HOME/llmcore` or `~/.cache/llmcore`); empty, there is none.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore import _core
from llmcore.checkpoint.write import write_atomically
from llmcore.errors import TokenizerError
from llmcore.vocab.patterns import Stage
from llmcore.vocab.spec import AddedToken, BrokenBytes, FirstSpace, LazyTokens, SpacePrefix, VocabSpec

if TYPE_CHECKING:
    from llmcore.vocab.loading import Parts

_MAGIC = b"llmcore vocabulary 4\n"
_KEPT = 16
_SMALLEST = 1 << 14  # ids; smaller vocabularies are built faster than a file is opened
_READ = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".gguf")


class StoredTokens(LazyTokens):
    """The texts of a built vocabulary."""

    def __init__(self, core: _core.Tokenizer) -> None:
        self._core = core

    def __len__(self) -> int:
        return self._core.size

    def _at(self, at: int) -> bytes:
        return self._core.token(at) or b""

    def __reduce__(self) -> Any:
        return list, (list(self),)


def _folder() -> Path | None:
    named = os.environ.get("LLMCORE_CACHE_DIR")
    if named is not None:
        return Path(named) / "tokenizers" if named else None
    base = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):
        return (Path(base) if base else Path.home() / ".cache") / "llmcore" / "tokenizers"
    return None


def signature(path: Path, pattern: str | None) -> list[Any] | None:
    """What an entry must have been made from; None when that can't be told. Taken before anything is read."""
    from llmcore import __version__
    from llmcore.chat import TOOL_USE_FILE

    folder = path if os.path.isdir(path) else path.parent
    files = []
    try:
        core = Path(_core.__file__).stat()  # two builds of one version may keep their tables differently
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == path.name or entry.name.endswith(_READ):
                    stat = entry.stat()
                    files.append([entry.name, stat.st_size, stat.st_mtime_ns, stat.st_ino])
        if (folder / TOOL_USE_FILE).exists():
            stat = (folder / TOOL_USE_FILE).stat()
            files.append([TOOL_USE_FILE, stat.st_size, stat.st_mtime_ns, stat.st_ino])
    except OSError:
        return None
    built = [f"{__version__} {core.st_size} {core.st_mtime_ns}", _core.compiler, platform.machine(), sys.byteorder]
    return [*built, str(path.resolve()), pattern, sorted(files)]


def _entry(signature: list[Any]) -> Path | None:
    folder = _folder()
    name = hashlib.sha256(repr(signature[4:6]).encode()).hexdigest()[:32]
    return None if folder is None else folder / f"{name}.vocab"


def read(signature: list[Any] | None) -> Parts | None:
    """The tokenizer of this signature as it was built before, or None."""
    entry = None if signature is None else _entry(signature)
    if entry is None:
        return None
    try:
        with entry.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    try:
        begin = len(_MAGIC) + 40
        size = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 8], "little")
        text = data[begin : begin + size]
        if data[:begin] != _before(text):
            return None
        head = json.loads(text)
        if head["signature"] != json.loads(json.dumps(signature)):
            return None
        with memoryview(data) as view:
            return _restore(head, view[begin + size + -(begin + size) % 64 :])
    except (ValueError, KeyError, TypeError, TokenizerError):
        return None


def _before(text: bytes) -> bytes:
    """What stands in a file before the description `text`."""
    return _MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest()


def _restore(head: dict[str, Any], archive: memoryview) -> Parts:
    from llmcore.chat import ChatTemplate
    from llmcore.vocab.loading import Parts

    fields = head["spec"]
    fields["stages"] = tuple(map(Stage, fields["stages"]))
    fields["added"] = tuple(AddedToken(**token) for token in fields["added"])
    fields["names"] = {int(at): name for at, name in fields["names"].items()}
    for name, kind in (("space_prefix", SpacePrefix), ("first_space", FirstSpace), ("broken_bytes", BrokenBytes)):
        fields[name] = kind(fields[name])
    for name in ("prefix_ids", "suffix_ids", "trims"):
        fields[name] = tuple(fields[name])
    fields["pair"] = None if fields["pair"] is None else tuple(map(tuple, fields["pair"]))
    spec = VocabSpec(tokens=(), kinds=bytearray(), byte_ids=[], **fields)
    core = _core.Tokenizer(spec.pipeline_fields(), archive)
    merges, ranks = (None, core.ranks) if head["ranks"] else (core.merges.reshape(-1, 3), None)
    spec = spec.changed(
        tokens=StoredTokens(core), kinds=bytearray(core.kinds), byte_ids=core.byte_ids, merges=merges, ranks=ranks
    )
    template = head["template"]
    return Parts(
        spec,
        head["bos_id"],
        head["eos_ids"],
        None if template is None else ChatTemplate(*template),
        core=core,
        fingerprint=head["fingerprint"],
    )


# What an entry holds of a VocabSpec beside the arrays of the core.
_FIELDS = (
    *("byte_level", "whole_words", "unk_id", "fuse_unk", "stages", "names", "nfc", "space_prefix", "first_space"),
    *("prefix_even_if_space", "prefix_before_added", "metaspace", "prefix_ids", "suffix_ids", "skips_unk"),
    *("broken_bytes", "pair", "trims"),
)


def write(signature: list[Any] | None, parts: Parts, core: _core.Tokenizer) -> None:
    """Keeps a tokenizer that was built from what `signature` says, if it is of a kind that takes long to build."""
    spec = parts.spec
    entry = None if signature is None else _entry(signature)
    if entry is None:
        return
    plain = spec.matched is None and spec.model is None and spec.source is None
    if not plain or spec.normalizers or spec.pre_tokenizers or spec.decoders or core.size < _SMALLEST:
        return
    with suppress(OSError):
        template = parts.chat_template
        head = {
            "signature": signature,
            "spec": {**{name: getattr(spec, name) for name in _FIELDS}, "added": [asdict(t) for t in spec.added]},
            "ranks": spec.ranks is not None,
            "bos_id": parts.bos_id,
            "eos_ids": list(parts.eos_ids),
            "template": None if template is None else [template.source, template.variables, template.with_tools],
            "fingerprint": spec.fingerprint(),
        }
        text = json.dumps(head).encode()
        before = _before(text) + text
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(entry, [before, bytes(-len(before) % 64), core.save_vocabulary()])
        _forget(entry.parent)


def _forget(folder: Path) -> None:
    """Removes all but the newest entries."""
    entries = sorted(folder.glob("*.vocab"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for old in entries[_KEPT:]:
        old.unlink(missing_ok=True)
