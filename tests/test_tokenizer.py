"""Ids equal to those of the published encoders, on their own test cases and on hard text."""

from __future__ import annotations

import ast
import json
import pickle
import random
import re
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcore import ArgumentError
from llmcore.errors import TokenizerError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab.patterns import GPT2_REGEX, O200K_REGEX
from llmcore.vocab.tiktoken import read_ranks

FILES = {
    "gpt2": "gpt2/tokenizer.json",
    "llama3": "llama3/tokenizer.model",
    "llama2": "llama2/tokenizer.model",
    "mistral-v1": "mistral/tokenizer.model.v1",
    "mistral-v3": "mistral/mistral_instruct_tokenizer_240323.model.v3",
    "phi-3": "phi-3/tokenizer.json",
    "falcon": "falcon-tokenizer/tokenizer.json",
    "neox": "gpt-neox-20b/20B_tokenizer.json",
    "qwen2.5": "qwen2.5/vocab.json",
    "r50k": "tiktoken/r50k_base.tiktoken",
    "cl100k": "tiktoken/cl100k_base.tiktoken",
    "o200k": "tiktoken/o200k_base.tiktoken",
}
Load = Callable[[str], Tokenizer]


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    return data_dir / "tokenizers"


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    loaded: dict[str, Tokenizer] = {}

    def one(name: str) -> Tokenizer:
        if name not in loaded:
            loaded[name] = Tokenizer.load(folder / FILES[name])
        return loaded[name]

    return one


SNIPPETS = ["'s", "'LL", "'\u017f", "'re", "'VE", "'d", "'", "\u017f", "/", "//\n", "\r\n", "  ", "   \n", "\u01c5"]
SNIPPETS += [
    "\u02b0",
    "\u65e5",
    "\u0301",
    "A",
    "b",
    "\u00c9",
    "\u00e9",
    "1",
    "\u0661",
    "\u00b2",
    "\u2167",
    "_",
    "\u200d",
]


def random_text(rng: random.Random) -> str:
    """Characters of every kind, with the turns that pre-tokenisers stumble over."""
    text = []
    for _ in range(rng.randrange(1, 40)):
        kind = rng.random()
        if kind < 0.3:
            text.append(chr(rng.randrange(32, 127)))
        elif kind < 0.45:
            text.append(rng.choice(" \t\n\r\u00a0\u2003\u3000\x85\u2028\ufeff\x00"))
        elif kind < 0.65:
            text.append(rng.choice(SNIPPETS))
        elif kind < 0.85:
            text.append(chr(rng.randrange(0x80, 0x3000)))
        else:
            code = rng.randrange(0x110000)
            text.append(chr(code) if not 0xD800 <= code < 0xE000 else "\u4e00")
    return "".join(text)


@pytest.fixture(scope="module")
def texts(data_dir: Path) -> list[str]:
    """Every language of the Universal Declaration, emoji, and random text."""
    rng = random.Random(20)
    documents = []
    with zipfile.ZipFile(data_dir / "text/udhr2.zip") as archive:
        for name in archive.namelist():
            if name.endswith((".xml", ".txt")):
                documents.append(re.sub(r"<[^>]+>", "", archive.read(name).decode("utf-8", "replace"))[:700])
    documents.append((data_dir / "text/emoji-input.txt").read_text(encoding="utf-8")[:20000])
    documents += [random_text(rng) for _ in range(700)]
    documents += ["".join(rng.choices(" \n\ra1'sS.", k=rng.randrange(1, 14))) for _ in range(700)]
    documents += ["".join(rng.choices("aA\u65e5\u0301\u02b0 'sb1.", k=rng.randrange(1, 14))) for _ in range(500)]
    documents += [rng.randbytes(40).decode("utf-8", "replace") for _ in range(100)]
    assert len(documents) > 2300
    return documents


# tiktoken 0.14's own expression.
CL100K_REGEX = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def assert_equal(texts: list[str], ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]]) -> None:
    for text in texts:
        assert ours(text) == theirs(text), ascii(text[:200])


@pytest.mark.parametrize(("name", "regex"), [("r50k", GPT2_REGEX), ("cl100k", CL100K_REGEX), ("o200k", O200K_REGEX)])
def test_equal_to_tiktoken(load: Load, folder: Path, texts: list[str], name: str, regex: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = read_ranks((folder / FILES[name]).read_bytes())
    reference = tiktoken.Encoding(name, pat_str=regex, mergeable_ranks=ranks, special_tokens={})
    assert_equal(texts, load(name).encode, reference.encode_ordinary)


@pytest.mark.parametrize("name", ["gpt2", "neox", "phi-3"])
def test_equal_to_tokenizers(load: Load, folder: Path, texts: list[str], name: str) -> None:
    reference = pytest.importorskip("tokenizers").Tokenizer.from_file(str(folder / FILES[name]))
    added = [t.content for t in load(name).added_tokens]
    rng = random.Random(5)
    mixed = ["".join(rng.choices([*added, " ", "\n", "x", "<", "  "], k=6)) for _ in range(200)]
    texts = texts + mixed
    assert_equal(texts, lambda t: load(name).encode(t, allow_special=True), lambda t: reference.encode(t).ids)
    reference.encode_special_tokens = True
    assert_equal(texts, load(name).encode, lambda t: reference.encode(t).ids)


def test_equal_to_tokenizers_for_falcon(load: Load, folder: Path, texts: list[str]) -> None:
    reference = pytest.importorskip("tokenizers").Tokenizer.from_file(str(folder / FILES["falcon"]))
    usable = [
        t for t in texts if not re.search("[\x00-\x08\x0b-\x1f\U00040000-\U0010ffff]", t)
    ]  # bytes it has no token for
    assert len(usable) > 1200
    # Its Punctuation and Digits know other versions of Unicode than its pattern.
    odd = [
        chr(c)
        for c in range(0x40000)
        if unicodedata.category(chr(c)) == "Cn" or unicodedata.category(chr(c))[0] in "PN"
    ]
    usable += [f"a  {c}" for c in odd]
    assert_equal(usable, load("falcon").encode, lambda t: reference.encode(t).ids)


@pytest.mark.parametrize("name", ["llama2", "mistral-v1", "mistral-v3"])
def test_equal_to_sentencepiece(load: Load, folder: Path, texts: list[str], name: str) -> None:
    library = pytest.importorskip("sentencepiece")
    reference = library.SentencePieceProcessor(model_file=str(folder / FILES[name]))
    tokenizer = load(name)
    assert_equal(texts, lambda t: tokenizer.encode(t, add_special_tokens=False), reference.encode)
    for text in texts[:400]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("name", ["llama2", "mistral-v1", "cl100k", "falcon", "neox", "phi-3", "qwen2.5"])
def test_saved_file_gives_the_same_ids_in_tokenizers(load: Load, texts: list[str], tmp_path: Path, name: str) -> None:
    library = pytest.importorskip("tokenizers")
    tokenizer = load(name)
    tokenizer.save(tmp_path / "tokenizer.json")
    reference = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.encode_special_tokens = True
    some = [t for t in texts[::4] if name != "falcon" or (t.isascii() and t.isprintable())]
    assert len(some) > 50
    assert_equal(some, tokenizer.encode, lambda t: reference.encode(t).ids)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert_equal(some, tokenizer.encode, again.encode)


def test_every_vocabulary_is_saved_with_the_same_ids_or_refused(folder: Path, texts: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    known = {".gguf", ".model", ".tiktoken", ".v3"}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in known]
    saved, refused = set(), set()
    for path in paths:
        try:
            tokenizer = Tokenizer.load(path)
        except TokenizerError:
            continue
        target = tmp_path / "tokenizer.json"
        try:
            tokenizer.save(target)
        except TokenizerError as error:
            refused.add((path.stem, str(error).startswith("a tokenizer.json can't have ")))
            continue
        saved.add(path.stem)
        again, reference = Tokenizer.load(target), library.Tokenizer.from_file(str(target))
        reference.encode_special_tokens = True
        some = [t for t in texts[::25] if t.isascii() and t.isprintable()]
        assert len(some) > 10
        assert_equal(some, tokenizer.encode, again.encode)
        assert_equal(some, tokenizer.encode, lambda t, r=reference: r.encode(t).ids)
        assert [again.decode(tokenizer.encode(t)) for t in some] == [
            tokenizer.decode(tokenizer.encode(t)) for t in some
        ]
    assert {"ggml-vocab-bert-bge", "ggml-vocab-llama-bpe", "r50k_base"} <= saved
    assert ("test_model", True) in refused  # Unigram
    assert ("mistral_instruct_tokenizer_240323.model", True) in refused  # symbols of the user
    assert all(named for _, named in refused), refused


def test_a_pattern_of_ones_own_is_saved(folder: Path, texts: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.load(folder / FILES["r50k"], pattern=r"\w\w|\s+|.")
    tokenizer.save(tmp_path / "tokenizer.json")
    reference = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert_equal(texts[::4], tokenizer.encode, lambda t: reference.encode(t).ids)
    assert_equal(texts[::4], tokenizer.encode, Tokenizer.load(tmp_path / "tokenizer.json").encode)


# By tiktoken's dialect: what is said otherwise in a tokenizer.json, and what isn't there at all.
PATTERNS = [
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"(?s).{1,3}",
    r"(?:(?:a|b){1,2}+){2}b|^\pL+|.|\s",
    r"(?:ab|a){1,2}+b|b$|(?<!a)1|\x{61}2|(?s:.){2}",
]
UNSAVED = [
    r"(?x) a b | . | \s",
    r"a{2}?|.|\s",
    r"a(?i)b|.|\s",
    r"(?i)sst|.|\s",
    r"(?i)s(?:st)|.|\s",
    r"a{,2}|.",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_saved_in_the_dialect_of_the_file(folder: Path, tmp_path: Path, pattern: str) -> None:
    library = pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.load(folder / FILES["r50k"], pattern=pattern)
    tokenizer.save(tmp_path / "tokenizer.json")
    reference = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rng = random.Random(7)
    some = ["".join(rng.choice("ab12 \n.'s") for _ in range(rng.randrange(1, 16))) for _ in range(500)]
    assert_equal(some, tokenizer.encode, lambda t: reference.encode(t).ids)
    assert_equal(some, tokenizer.encode, Tokenizer.load(tmp_path / "tokenizer.json").encode)


@pytest.mark.parametrize("pattern", UNSAVED)
def test_a_pattern_that_a_file_reads_otherwise_is_refused(folder: Path, tmp_path: Path, pattern: str) -> None:
    tokenizer = Tokenizer.load(folder / FILES["r50k"], pattern=pattern)
    with pytest.raises(TokenizerError, match=r"a tokenizer\.json can't have the expression"):
        tokenizer.save(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("pattern", [r"[\w--b]+|.|\s", r"[a-c~~b-d]+|.|\s"])
def test_differences_of_sets_are_refused(folder: Path, pattern: str) -> None:
    """tiktoken has them; they were read as ranges and characters."""
    with pytest.raises(TokenizerError, match="difference of sets"):
        Tokenizer.load(folder / FILES["r50k"], pattern=pattern)


def cases(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's cases: inputs, and ids a line each."""
    path = folder / "llama.cpp-vocabs" / f"ggml-vocab-{name}.gguf.inp"
    inputs = path.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".out").read_text().split("\n")
    return [(text, [int(i) for i in line.split()]) for text, line in zip(inputs, lines, strict=False)]


@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [
        ("gpt-2", "gpt2"),
        ("llama-bpe", "llama3"),
        ("llama-spm", "llama2"),
        ("qwen2", "qwen2.5"),
        ("phi-3", "phi-3"),
        ("falcon", "falcon"),
    ],
)
def test_llama_cpp_cases(load: Load, folder: Path, vocabulary: str, name: str) -> None:
    found = cases(folder, vocabulary)
    assert len(found) >= 40
    for text, expected in found:
        if expected or not text:
            assert load(name).encode(text, add_special_tokens=False) == expected, ascii(text)


def test_tiktoken_test_plans(load: Load, folder: Path) -> None:
    plans = (folder / "tiktoken/testplans/TestPlans.txt").read_text(encoding="utf-8")
    found = re.findall(r"EncodingName: (\w+)\nSample: (.*?)\nEncoded: (\[[^\]]*\])", plans, re.DOTALL)
    names = {"r50k_base": "r50k", "cl100k_base": "cl100k", "o200k_base": "o200k"}
    checked = 0
    for encoding, sample, expected in found:
        if encoding in names:
            ids = ast.literal_eval(expected)
            assert load(names[encoding]).encode(sample, allow_special=True) == ids, ascii(sample[:100])
            checked += 1
    assert checked >= 100


@pytest.mark.parametrize(("file", "name"), [("llama", "llama2"), ("llama_3.2", "llama3"), ("falcon", "falcon")])
def test_swift_transformers_cases(load: Load, folder: Path, file: str, name: str) -> None:
    case = json.loads((folder / f"swift-transformers-expected/{file}_encoded.json").read_text(encoding="utf-8"))
    ids = load(name).encode(case["text"])
    assert ids == case["token_ids"]


def test_ignore_merges_takes_whole_words(load: Load) -> None:
    """A word of Llama-3 that is a token, though merging never makes it."""
    tokenizer = load("llama3")
    ids = tokenizer.encode("C\u1eeda Vi\u1ec7t", add_special_tokens=False)
    assert tokenizer.decode(ids) == "C\u1eeda Vi\u1ec7t"
    assert len(ids) == 3


def test_round_trip_of_every_text(load: Load, texts: list[str]) -> None:
    for name in ("gpt2", "llama3", "o200k", "phi-3", "mistral-v3"):
        tokenizer = load(name)
        for text in texts[::3]:
            if "\u2581" not in text:
                ids = tokenizer.encode(text, add_special_tokens=False)
                assert tokenizer.decode(ids) == text, name


def test_tokens_round_trip_through_their_names(load: Load) -> None:
    for name in ("gpt2", "llama2", "cl100k"):
        tokenizer = load(name)
        for i in range(0, tokenizer.vocab_size, 37):
            token = tokenizer.id_to_token(i)
            assert token is None or tokenizer.token_to_id(token) == i


def test_known_special_ids(load: Load, folder: Path) -> None:
    assert (load("llama2").bos_id, load("llama2").eos_ids) == (1, [2])
    assert load("llama3").special_tokens["<|eot_id|>"] == 128009
    assert load("cl100k").special_tokens["<|endofprompt|>"] == 100276
    qwen = Tokenizer.load(folder / "qwen2.5")
    assert qwen.special_tokens["<|im_end|>"] == 151645
    assert qwen.bos_id is None
    assert 151645 in qwen.eos_ids


@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral-v3", "phi-3", "llama3", "falcon", "qwen2.5"])
def test_text_never_becomes_a_control_token(load: Load, name: str) -> None:
    tokenizer = load(name)
    control = set(tokenizer.special_tokens.values())
    for token, at in tokenizer.special_tokens.items():
        for text in (token, f"a{token}b", f" {token}{token} "):
            assert not control & set(tokenizer.encode(text, add_special_tokens=False)), token
        assert at in tokenizer.encode(token, allow_special=True)


def offsets_cover(text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    ids, places = tokenizer.encode_with_offsets(text, add_special_tokens=False)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert all(0 <= start <= end <= len(text) for start, end in places)
    covered = {at for start, end in places for at in range(start, end)}
    assert covered == set(range(len(text)))
    return places


@pytest.mark.parametrize("name", ["gpt2", "llama2", "phi-3", "qwen2.5", "o200k"])
def test_offsets_cover_the_text(load: Load, texts: list[str], name: str) -> None:
    for text in texts[::5]:
        offsets_cover(text, load(name))


def test_offsets_equal_to_tokenizers(load: Load, folder: Path, texts: list[str]) -> None:
    library = pytest.importorskip("tokenizers")
    reference = library.Tokenizer.from_file(str(folder / FILES["gpt2"]))
    reference.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    reference.post_processor = library.processors.ByteLevel(trim_offsets=False)
    for text in texts[::4]:
        assert load("gpt2").encode_with_offsets(text)[1] == reference.encode(text).offsets, ascii(text)


def test_streaming_equals_decoding_and_never_gives_half_a_character(load: Load, texts: list[str]) -> None:
    rng = random.Random(9)
    for name in ("gpt2", "llama2", "mistral-v3", "o200k"):
        tokenizer = load(name)
        streams = [tokenizer.encode(t) for t in texts[:500:5]]
        streams += [[rng.randrange(1000) for _ in range(30)] for _ in range(50)]
        for ids in streams:
            stream = tokenizer.decode_stream()
            pieces = [stream.step(i) for i in ids]
            assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
            if "\ufffd" not in tokenizer.decode(ids):
                assert not any("\ufffd" in piece for piece in pieces)


def test_batches_and_arrays_equal_single_calls(load: Load, texts: list[str]) -> None:
    for name in ("gpt2", "qwen2.5"):
        tokenizer = load(name)
        single: list[Any] = [tokenizer.encode(t) for t in texts[::3]]
        for threads in (1, 2, 5):
            assert tokenizer.encode_batch(texts[::3], threads) == single
            ids, ends = tokenizer.encode_batch_to_numpy(texts[::3], threads)
            assert (ids.dtype, ends.dtype) == (np.uint32, np.int64)
            assert [each.tolist() for each in np.split(ids, ends[:-1])] == single
        assert [tokenizer.encode_to_numpy(t).tolist() for t in texts[::3]] == single


def test_a_batch_as_arrays_has_the_marks_and_empty_texts_of_one_as_lists(load: Load) -> None:
    tokenizer = load("llama2")
    for texts in ([], [""], ["", "a", ""], ["</s>", "a</s>b"]):
        for options in ({}, {"add_special_tokens": False}, {"allow_special": True}):
            ids, ends = tokenizer.encode_batch_to_numpy(texts, **options)
            assert [ids[a:b].tolist() for a, b in zip([0, *ends], ends, strict=False)] == tokenizer.encode_batch(
                texts, **options
            )
    with pytest.raises(ArgumentError, match="single string"):
        tokenizer.encode_batch_to_numpy("text")
    with pytest.raises(ArgumentError, match="threads"):
        tokenizer.encode_batch_to_numpy(["text"], 0)


@pytest.mark.parametrize("name", ["gpt2", "llama2", "phi-3", "qwen2.5", "o200k", "llama3", "mistral-v3"])
def test_threads_share_a_long_text(load: Load, texts: list[str], data_dir: Path, name: str) -> None:
    """Cut at places that change nothing: in prose, between texts of all kinds, around an added token."""
    tokenizer = load(name)
    english = (data_dir / "text" / "war-and-peace.txt").read_text(encoding="utf-8")[:700_000]
    random.Random(3).shuffle(texts := [*texts])
    mixed = " and so on ".join((texts * 20)[:20_000])
    one_word = "x" * 300_000 + " and " + "y" * 300_000
    for text in (english, mixed, one_word, english[:300_000] + "<|endoftext|>" + english[300_000:]):
        ids = tokenizer.encode_to_numpy(text)
        for threads in (2, 3, 7):
            np.testing.assert_array_equal(tokenizer.encode_batch_to_numpy([text], threads)[0], ids)


@pytest.mark.parametrize("name", ["gpt2", "llama2", "phi-3", "qwen2.5"])
def test_a_tokenizer_goes_to_other_processes(load: Load, name: str) -> None:
    mine = load(name)
    other = pickle.loads(pickle.dumps(mine))
    text = "Hello, w\u00f6rld  \u65e5\u672c\U0001f642 <|endoftext|></s>"
    assert other.encode(text, allow_special=True) == mine.encode(text, allow_special=True)
    assert (other.fingerprint, other.eos_ids, other.bos_id) == (mine.fingerprint, mine.eos_ids, mine.bos_id)


def test_wrong_guards_and_dropouts(load: Load) -> None:
    tokenizer = load("gpt2")
    for guarded in ([(-3, -1)], [(2, 1)], [(0, 9)], [(2, 3), (0, 1)], [(None, 2)]):
        with pytest.raises(ArgumentError, match="guarded"):
            tokenizer.encode_rendered("abcd", guarded)  # type: ignore[arg-type]
    for dropout in ("x", float("nan"), 1.5):
        with pytest.raises(ArgumentError, match="dropout"):
            tokenizer.encode("abcd", dropout=dropout)  # type: ignore[arg-type]
    for path in ("a\0b", 5):
        with pytest.raises(ArgumentError, match="path"):
            tokenizer.save(path)  # type: ignore[arg-type]
