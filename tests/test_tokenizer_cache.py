"""The cache of built vocabularies: the same tokenizer as without it, and never one of other files."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from llmcore import _core
from llmcore.errors import TokenizerError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab import cache

FILES = ["gpt2/tokenizer.json", "llama2/tokenizer.model", "llama3/tokenizer.model", "phi-3/tokenizer.json", "qwen2.5"]
TEXT = "Hello w\u00f6rld, 12345 's\u017f  \n\n\u65e5\u672c\u8a9e \U0001f600 <|endoftext|> </s> e\u0301 " * 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMCORE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenizers"


@pytest.mark.parametrize("name", FILES)
def test_cached_tokenizer_is_the_same(name: str, data_dir: Path, folder: Path, tmp_path: Path) -> None:
    path = data_dir / "tokenizers" / name
    built = Tokenizer.load(path)
    assert len(list(folder.glob("*.vocab"))) == 1
    assert cache.read(cache.signature(path, None)) is not None
    cached = Tokenizer.load(path)
    assert cached.fingerprint == built.fingerprint == cached._spec.fingerprint()
    assert (cached.bos_id, cached.eos_ids, cached.vocab_size) == (built.bos_id, built.eos_ids, built.vocab_size)
    assert cached.special_tokens == built.special_tokens
    assert cached.chat_template == built.chat_template
    assert list(cached._spec.tokens) == list(built._spec.tokens)
    for allow in (False, True):
        ids = built.encode(TEXT, allow_special=allow)
        assert cached.encode_with_offsets(TEXT, allow_special=allow) == built.encode_with_offsets(
            TEXT, allow_special=allow
        )
        assert cached.encode(TEXT, allow_special=allow) == ids
        assert cached.decode(ids) == built.decode(ids)
    for at in (0, 5, 300, built.vocab_size - 1):
        assert cached.id_to_token(at) == built.id_to_token(at)
    assert pickle.loads(pickle.dumps(cached)).encode(TEXT) == built.encode(TEXT)
    cached.save(tmp_path / "cached.json")
    built.save(tmp_path / "built.json")
    assert (tmp_path / "cached.json").read_bytes() == (tmp_path / "built.json").read_bytes()


def test_changed_file_makes_an_entry_stale(data_dir: Path, folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "checkpoint"
    shutil.copytree(data_dir / "tokenizers" / "qwen2.5", model, ignore=shutil.ignore_patterns("ortx"))
    Tokenizer.load(model)
    assert cache.read(cache.signature(model, None)) is not None
    assert cache.read(cache.signature(model / "vocab.json", None)) is None
    merges = model / "merges.txt"
    stat = merges.stat()
    os.utime(merges, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert cache.read(cache.signature(model, None)) is None
    Tokenizer.load(model)
    assert cache.read(cache.signature(model, None)) is not None
    (model / "added_tokens.json").unlink()
    assert cache.read(cache.signature(model, None)) is None


def test_pattern_belongs_to_the_entry(data_dir: Path, folder: Path) -> None:
    path = data_dir / "tokenizers" / "tiktoken" / "cl100k_base.tiktoken"
    ids = {pattern: Tokenizer.load(path, pattern).encode("a1234 b") for pattern in (None, "gpt2", "qwen2")}
    assert len(set(map(tuple, ids.values()))) == 3
    for pattern, expected in ids.items():
        assert cache.read(cache.signature(path, pattern)) is not None
        assert Tokenizer.load(path, pattern).encode("a1234 b") == expected


def test_damaged_entry_is_ignored(data_dir: Path, folder: Path) -> None:
    path = data_dir / "tokenizers" / "gpt2" / "tokenizer.json"
    expected = Tokenizer.load(path).encode(TEXT)
    (entry,) = folder.glob("*.vocab")
    whole = entry.read_bytes()
    for at in (0, 25, 200, len(whole) // 2, len(whole) - 1):
        entry.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert Tokenizer.load(path).encode(TEXT) == expected
    for cut in (0, 10, 30, 1000, len(whole) - 1):
        entry.write_bytes(whole[:cut])
        assert cache.read(cache.signature(path, None)) is None
        assert Tokenizer.load(path).encode(TEXT) == expected
    assert cache.read(cache.signature(path, None)) is not None


def test_nowhere_to_write(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_dir / "tokenizers" / "gpt2" / "tokenizer.json"
    in_the_way = tmp_path / "file"
    in_the_way.write_text("x")
    for value in (str(in_the_way), ""):
        monkeypatch.setenv("LLMCORE_CACHE_DIR", value)
        assert Tokenizer.load(path).encode("Hello") == [15496]
    assert in_the_way.read_text() == "x"


def test_entries_do_not_pile_up(data_dir: Path, folder: Path, tmp_path: Path) -> None:
    source = data_dir / "tokenizers" / "gpt2" / "tokenizer.json"
    for i in range(18):
        (tmp_path / str(i)).mkdir()
        shutil.copy(source, tmp_path / str(i) / "tokenizer.json")
        Tokenizer.load(tmp_path / str(i))
    assert len(list(folder.iterdir())) == 16


def test_damaged_archive_is_refused() -> None:
    fields = {"normalizers": [], "pre_tokenizers": [], "stages": [], "added": [], "prefix_ids": [], "suffix_ids": []}
    fields |= {
        "space_prefix": 0,
        "first_space": 0,
        "prefix_even_if_space": False,
        "prefix_before_added": False,
        "metaspace": False,
    }
    for data in (b"", b"x" * 64, bytes(128)):
        with pytest.raises(TokenizerError, match="archive"):
            _core.Tokenizer(fields, data)
