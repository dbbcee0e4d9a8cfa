"""Every part of a tokenizer.json does what Hugging Face tokenizers' part of that name does, on hard random text."""

from __future__ import annotations

import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llmcore import _core
from llmcore.errors import ArgumentError, TokenizerError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab.hf_pipeline import read_pre_tokenizer
from llmcore.vocab.patterns import DEEPSEEK_REGEXES, REGEXES_OF_STAGE, Stage, split_part

tokenizers = pytest.importorskip("tokenizers", reason="needs Hugging Face tokenizers")

CASES = int(os.environ.get("LLMCORE_PROPERTY_CASES", "400"))
RANGES = [
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x300, 0x370),
    (0x370, 0x600),
    (0x900, 0xE00),
    (0x1100, 0x1200),
    (0x1E00, 0x2070),
    (0x3000, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4),
    (0xF900, 0x10000),
    (0x1F000, 0x1FA00),
]
ODD = [
    "\r\n",
    "\u200d",
    "\ufe0f",
    "\u0130",
    "\u00df",
    "\u1e9b\u0323",
    "\ufdfa",
    "\u2581",
    "  ",
    "'s",
    "n't",
    "don't",
    "#",
]
ODD += [
    "\x00",
    "\x07",
    "\x85",
    "\ufffd",
    "\ufeff",
    "12",
    "\u0661\u0662",
    "\u00bd",
    "a b",
    "\n\n",
    "e\u0301",
    "\u3042\u30a2",
]


def texts(count: int, seed: int) -> list[str]:
    """Words, odd characters, and anything at all."""
    rng = random.Random(seed)

    def char() -> str:
        kind = rng.random()
        if kind < 0.3:
            return rng.choice("abcdefghij KLMN .,!?-_'\u00e9\u00e4")
        if kind < 0.45:
            return rng.choice(ODD)
        if kind < 0.9:
            return chr(rng.randrange(*rng.choice(RANGES)))
        code = rng.randrange(0x110000)
        return chr(code) if not 0xD800 <= code < 0xE000 else "x"

    return ["".join(char() for _ in range(rng.randrange(1, 40))) for _ in range(count)]


def hugging_face(root: dict[str, Any]) -> Any:
    return tokenizers.Tokenizer.from_str(json.dumps(root))


def load(root: dict[str, Any], folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(root), encoding="utf-8")
    return Tokenizer.load(path)


def root_of(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
        **parts,
    }


WORDS = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
BYTES = {"type": "BPE", "vocab": {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}}
BYTES["merges"] = []


def sequence(key: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(parts)}


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def bert(clean: bool, chinese: bool, accents: bool | None, lower: bool) -> dict[str, Any]:
    return {
        "type": "BertNormalizer",
        "clean_text": clean,
        "handle_chinese_chars": chinese,
        "strip_accents": accents,
        "lowercase": lower,
    }


NORMALIZERS: dict[str, dict[str, Any]] = {
    **{
        name: {"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")
    },
    "strip": {"type": "Strip", "strip_left": True, "strip_right": True},
    "strip left": {"type": "Strip", "strip_left": True, "strip_right": False},
    "replace": replace("\u2581", String=" "),
    "replace regex": replace(" ", Regex=r"\s+"),
    "remove by regex": replace("", Regex=r"(?i)[aeiou]{2,}|\p{Mn}"),
    "prepend": {"type": "Prepend", "prepend": "\u2581"},
    "bert uncased": bert(True, True, None, True),
    "bert cased": bert(True, True, None, False),
    "bert accents": bert(False, False, True, False),
    "accents": sequence("normalizers", {"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}),
    "clip": sequence("normalizers", {"type": "NFC"}, replace(" ", Regex=r"\s+"), {"type": "Lowercase"}),
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizer(name: str, tmp_path: Path) -> None:
    root = root_of(WORDS, normalizer=NORMALIZERS[name])
    ours, theirs = load(root, tmp_path), hugging_face(root).normalizer
    for text in texts(CASES, 1):
        assert ours._core.normalized(text) == theirs.normalize_str(text), repr(text)


def split(behavior: str, invert: bool = False, **pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
REGEXES = {
    "clip": CLIP,
    "deepseek": DEEPSEEK_REGEXES[2],
    "cjk": DEEPSEEK_REGEXES[1],
    "three digits": r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)",
    "look behind": r"(?<=[a-z])(?=[A-Z])|(?<!\p{L})\d",
    "lazy": r"a.*?b|[[:alpha:]]+?\s",
    "possessive": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "ignoring case": "(?i:k|s|\u00e9|don't)+",
    "sets": r"[a-z&&[^aeiou]]+|[^[:space:][:punct:]]\h|[\w-]{2}|[\]a-]",
    "lines": "^.|.$|\\A.|.\\z",
    "scripts": r"\p{Han}+|\p{Hiragana}+|\p{Katakana}|\P{Latin}{2}|\p{^Lu}x",
    "atomic": r"(?>a+|\w)b?|\R|\x{e9}|\u3042",
    "counts": r"(?:ab?){2,3}|\s{2}|x{,2}y|[0-9]{2,}",
    "empty": r"x*",
    "many alternatives": "|".join([*(f"{chr(0x1000 + i)}x" for i in range(300)), "ab?", "(?:c|d)e", "[ef]"]),
}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    **{name: {"type": name} for name in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")},
    **{f"punctuation {b}": {"type": "Punctuation", "behavior": b} for b in BEHAVIORS},
    **{f"spaces {b}": split(b, String=" ") for b in BEHAVIORS},
    **{f"letters {b}": split(b, Regex=r"\p{L}+") for b in BEHAVIORS},
    **{f"not letters {b}": split(b, True, Regex=r"\p{L}") for b in BEHAVIORS},
    **{f"regex {name}": split("Isolated", Regex=regex) for name, regex in REGEXES.items()},
    "delimiter": {"type": "CharDelimiterSplit", "delimiter": "a"},
    "digits": {"type": "Digits", "individual_digits": False},
    "each digit": {"type": "Digits", "individual_digits": True},
    "metaspace": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
    "metaspace first": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True},
    "metaspace whole": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": False},
    "fixed length": {"type": "FixedLength", "length": 3},
    "byte level": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "bytes": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
}
PRE_TOKENIZERS |= {
    "t5": sequence("pretokenizers", PRE_TOKENIZERS["WhitespaceSplit"], PRE_TOKENIZERS["metaspace"]),
    "words first": sequence("pretokenizers", PRE_TOKENIZERS["WhitespaceSplit"], PRE_TOKENIZERS["metaspace first"]),
    "digits of bytes": sequence("pretokenizers", PRE_TOKENIZERS["byte level"], PRE_TOKENIZERS["each digit"]),
    "many": sequence(
        "pretokenizers",
        split("Removed", Regex=r"\s+"),
        PRE_TOKENIZERS["each digit"],
        PRE_TOKENIZERS["UnicodeScripts"],
        PRE_TOKENIZERS["bytes"],
    ),
}
# Oniguruma folds ß to ss and the like; an expression with such a pair would need more than single characters.
EXPANDING = (
    "\u00df\u1e9e\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06\u0149\u01f0\u0390\u03b0\u0587\u1e96\u1e97\u1e98\u1e99\u1e9a"
)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizer(name: str, tmp_path: Path) -> None:
    root = root_of(WORDS, pre_tokenizer=PRE_TOKENIZERS[name])
    ours, theirs = load(root, tmp_path), hugging_face(root).pre_tokenizer
    for text in texts(CASES, 2):
        assert ours._core.pieces(text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], repr(text)


@pytest.mark.parametrize("stage", REGEXES_OF_STAGE)
def test_known_expressions_have_scanners(stage: Stage, tmp_path: Path) -> None:
    splits = [split_part(regex) for regex in REGEXES_OF_STAGE[stage]]
    cuts = sequence("pretokenizers", *splits, PRE_TOKENIZERS["bytes"])
    root = root_of(BYTES, pre_tokenizer=cuts, decoder=PRE_TOKENIZERS["bytes"])
    assert read_pre_tokenizer(root["pre_tokenizer"]).stages == (stage,)
    ours, theirs = load(root, tmp_path), hugging_face(root).pre_tokenizer
    pieces = ("a", "Bc", "'ll", "'S", " ", "  ", "\n", "\t", "1", "\u00bd", "!", "/", "(", "\u3002", "\u30fb", "\u30ab")
    pieces += ("\u65e5", "\u9fa6", "\u0301", "\u200d", "\x01", "\u2019", "\u3000", "\u00e9")
    rng = random.Random(3)
    ours_too = ["".join(rng.choices(pieces, k=rng.randrange(1, 200))) for _ in range(CASES)]
    for text in [*texts(CASES, 5), *ours_too]:
        assert ours._core.pieces(text) == [text[a:b] for _, (a, b) in theirs.pre_tokenize_str(text)], repr(text)


MARK = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}
AFTER_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


@pytest.mark.parametrize("marks", ["unsplit", "Gemma", "normalizer"])
@pytest.mark.parametrize("known", [True, False])
def test_unknown_characters_beside_spaces(marks: str, known: bool, tmp_path: Path) -> None:
    """They are one unknown token where the space is unknown, too."""
    vocab = {token: at for at, token in enumerate(["<unk>", "a", "b", *(["\u2581"] * known)])}
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "vocab": vocab, "merges": []}
    normalizer = None if marks == "unsplit" else replace("\u2581", String=" ")
    cuts = {"unsplit": MARK, "Gemma": AFTER_SPACES, "normalizer": None}[marks]
    root = root_of(model, normalizer=normalizer, pre_tokenizer=cuts, decoder=MARK)
    ours, theirs = load(root, tmp_path), hugging_face(root)
    rng = random.Random(4)
    for text in ("a\u00e9 b", *("".join(rng.choices("ab  \u00e9\u00df", k=30)) for _ in range(CASES))):
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)


@pytest.mark.parametrize("part", [AFTER_SPACES, split_part(DEEPSEEK_REGEXES[0])])
def test_a_flag_is_no_number(part: dict[str, Any], tmp_path: Path) -> None:
    normalizer = replace("\u2581", String=" ")
    with pytest.raises(TokenizerError, match="invert"):
        load(root_of(BYTES, normalizer=normalizer, pre_tokenizer={**part, "invert": 0}, decoder=MARK), tmp_path)


def test_dropout(corpus: list[str], data_dir: Path) -> None:
    """Fewer merges as the rate goes up, the same bytes, the same for a seed; half as many tokens more as theirs."""
    path = data_dir / "tokenizers" / "gpt2" / "tokenizer.json"
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    text = corpus[0]
    plain = ours.encode(text)
    assert ours.encode(text, dropout=1.0) == [ours.token_to_id(bytes([byte])) for byte in text.encode()]
    for rate in (0.1, 0.5):
        some = ours.encode(text, dropout=rate, seed=3)
        assert some == ours.encode(text, dropout=rate, seed=3) != ours.encode(text, dropout=rate, seed=4)
        assert len(some) > len(plain)
        assert ours.decode(some) == text
        theirs.model.dropout = rate
        expected = sum(len(theirs.encode(t).ids) for t in corpus)
        found = sum(len(ours.encode(t, dropout=rate, seed=i)) for i, t in enumerate(corpus))
        assert abs(found / expected - 1) < 0.02
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ArgumentError, match="dropout"):
            ours.encode(text, dropout=bad)


def test_regex_matches_and_refuses() -> None:
    text = "aab a\u00e9\U0001f600"
    assert _core.Regex("a+", 0).find_all(text) == [(0, 2), (4, 5)]
    assert _core.Regex(r"\P{L}", 0).replace(text, "_") == "aab_a\u00e9_"
    assert _core.Regex(r"^b|b$", 1).find_all("b\nb\nb") == [(0, 1), (4, 5)]
    assert _core.Regex(r"(?m)^b", 1).find_all("b\nb") == [(0, 1), (2, 3)]
    assert _core.Regex("a{2}+a", 1).find_all("aaa") == [(0, 3)]
    for pattern in (r"(a)\1", r"\k<a>", "(?(1)a)", r"\G", "(?P=a)", "a{3,2}", "[b-a]", "(", ")", r"\x{110000}"):
        with pytest.raises(TokenizerError, match="regular expression"):
            _core.Regex(pattern, 0)


@pytest.fixture(scope="module")
def corpus(data_dir: Path) -> list[str]:
    with zipfile.ZipFile(data_dir / "text" / "udhr2.zip") as files:
        names = sorted(files.namelist())[::40]
        return [files.read(name).decode("utf-8", "replace")[:4000] for name in names if name.endswith(".txt")]


def trained(kind: str, corpus: list[str]) -> Any:
    """A small tokenizer of Hugging Face's, trained on `corpus`."""
    models, pre, trainers = tokenizers.models, tokenizers.pre_tokenizers, tokenizers.trainers
    special = ["<unk>", "<s>", "</s>"]
    if kind.startswith("unigram"):
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.normalizer = tokenizers.normalizers.NFKC()
        tokenizer.pre_tokenizer = pre.Metaspace()
        tokenizer.decoder = tokenizers.decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=800, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind == "wordpiece":
        tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre.BertPreTokenizer()
        tokenizer.decoder = tokenizers.decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    elif kind == "wordlevel":
        tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    elif kind == "clip":
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=True))
        tokenizer.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre.Sequence(
            [pre.Split(tokenizers.Regex(CLIP), "removed", True), pre.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = tokenizers.decoders.BPEDecoder()
        trainer = trainers.BpeTrainer(
            vocab_size=800, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
        )
    elif kind == "prefixed":
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
        tokenizer.pre_tokenizer = pre.Whitespace()
        tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
        trainer = trainers.BpeTrainer(
            vocab_size=800, special_tokens=special, continuing_subword_prefix="##", show_progress=False
        )
    elif kind == "deepseek":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre.Sequence(
            [
                *(pre.Split(tokenizers.Regex(regex), "isolated") for regex in DEEPSEEK_REGEXES),
                pre.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        alphabet = pre.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        assert kind == "gemma"
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
        d = tokenizers.decoders
        tokenizer.decoder = d.Sequence([d.Replace("\u2581", " "), d.ByteFallback(), d.Fuse()])
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special + names, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@pytest.mark.parametrize(
    "kind", ["unigram", "unigram bytes", "wordpiece", "wordlevel", "clip", "prefixed", "deepseek", "gemma"]
)
def test_model(kind: str, corpus: list[str], tmp_path: Path) -> None:
    theirs = trained(kind, corpus)
    if kind == "gemma":  # the byte tokens are ordinary ones
        root = json.loads(theirs.to_str())
        root["added_tokens"] = [token for token in root["added_tokens"] if not token["content"].startswith("<0x")]
        theirs = tokenizers.Tokenizer.from_str(json.dumps(root))
    if kind == "unigram bytes":
        root = json.loads(theirs.to_str())
        root["model"]["byte_fallback"] = True
        root["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
        theirs = tokenizers.Tokenizer.from_str(json.dumps(root))
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    again = tmp_path / "again.json"
    ours.save(again)
    reread = tokenizers.Tokenizer.from_file(str(again))
    for text in [*corpus, *texts(CASES, 3), "", " ", "<s>", "a</s>b", "a<0x41>b"]:
        expected = theirs.encode(text)
        ids = ours.encode(text, allow_special=True)
        assert ids == expected.ids, repr(text)
        assert ours.encode_with_offsets(text, allow_special=True)[0] == ids
        assert reread.encode(text).ids == ids
        decoded = ours.decode(ids)
        assert decoded == theirs.decode(ids, skip_special_tokens=False), repr(text)
        stream = ours.decode_stream()
        assert "".join([stream.step(i) for i in ids]) + stream.finish() == decoded, repr(text)


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "gemma"])
def test_text_never_becomes_a_control_token(kind: str, corpus: list[str], tmp_path: Path) -> None:
    theirs = trained(kind, corpus)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in ("<s>", "a <s></s> b", "</s>"):
        assert not {1, 2} & set(ours.encode(text)), text


@pytest.mark.parametrize(
    "file", ["bert-base-uncased/tokenizer.json", "all-minilm-l6-v2/tokenizer.json", "t5-small/tokenizer.json"]
)
def test_real_vocabulary(file: str, corpus: list[str], data_dir: Path) -> None:
    path = data_dir / "tokenizers" / file
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.no_truncation()
    theirs.no_padding()
    ours = Tokenizer.load(path)
    runs = [character * n for character in "-_=" for n in range(1, 60)]  # of which many cuts are as good
    for text in [*corpus, *texts(CASES, 4), *runs]:
        expected = theirs.encode(text)
        ids, offsets = ours.encode_with_offsets(text, allow_special=True)
        assert ids == expected.ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        if text.isascii() and text.isprintable():  # where no character is taken away
            assert offsets == expected.offsets


def test_scores_are_those_that_hugging_face_reads(tmp_path: Path) -> None:
    """Which aren't the nearest floats to the file's decimals."""
    rng = random.Random(5)
    scores = [-rng.uniform(0, 20) for _ in range(3000)] + [-rng.random() * 10.0**e for e in range(-320, 308)]
    scores += [0.0, -1.0, -1e22, -5e-324, -1.7976931348623157e308, -9007199254740993.0, -0.1, -0.3]
    model = {"type": "Unigram", "unk_id": 0, "vocab": [[f"t{at}", score] for at, score in enumerate(scores)]}
    root = root_of(model)
    read = [score for _, score in json.loads(hugging_face(root).to_str())["model"]["vocab"]]
    assert read != scores
    ours = load(root, tmp_path)
    assert ours._spec.model is not None
    assert ours._spec.model.scores is not None
    assert ours._spec.model.scores.tolist() == read


def test_a_stream_decodes_few_tokens_again(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a token is shown otherwise at the beginning of a text than within: a word's parts in BERT."""
    tokenizer = Tokenizer.load(data_dir / "tokenizers/bert-base-uncased/tokenizer.json")
    ids = tokenizer.encode("antidisestablishmentarianism " * 50 + "x" * 95 + " 1,5 it's" * 50, False)
    longest, decode = 0, Tokenizer.decode

    def noted(self: Tokenizer, ids: list[int], *rest: bool) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(self, ids, *rest)

    text = tokenizer.decode(ids)
    monkeypatch.setattr(Tokenizer, "decode", noted)
    stream = tokenizer.decode_stream()
    assert "".join(map(stream.step, ids)) + stream.finish() == text
    assert longest <= 16


def test_special_tokens_are_skipped_by_their_flag(tmp_path: Path) -> None:
    """Neither the unknown token nor what is written like a control token is left out unless the file says so."""
    added = [
        {"id": id, "content": content, "special": special, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for id, (content, special) in enumerate({"<|end|>": True, "<|fim|>": False, "<tool>": False}.items(), start=2)
    ]
    root = root_of(WORDS, added_tokens=added)
    theirs, ours = hugging_face(root), load(root, tmp_path)
    ids = [0, 1, 3, 2, 4, 1, 2]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids) == "[UNK] a <|fim|> <tool> a"
    stream = ours.decode_stream(skip_special_tokens=True)
    assert "".join(map(stream.step, ids)) + stream.finish() == theirs.decode(ids)
    assert 3 not in ours.encode("<|fim|>"), "no text becomes what is written like a control token"


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"a": {"id": "a", "ids": [1], "tokens": ["a"]}},
}
ENDS_OF_WORDS = {"type": "BPE", "vocab": {"a": 0, "a</w>": 1}, "merges": [], "end_of_word_suffix": "</w>"}
INNER_MARKS = {"type": "BPE", "vocab": {"a": 0, "##a": 1}, "merges": [], "continuing_subword_prefix": "##"}
BLANK = {"id": 2, "content": "\n", "special": False, "normalized": False, "single_word": False, "lstrip": True}
BERT = {"type": "BertProcessing", "sep": ["a", 1], "cls": ["a", 1]}
INEXACT = {
    "ignore_merges": root_of(ENDS_OF_WORDS | {"ignore_merges": True}),
    "byte_fallback": root_of(INNER_MARKS | {"byte_fallback": True}),
    "behind another": root_of(WORDS, post_processor=sequence("processors", TEMPLATE, TEMPLATE)),
    "BertProcessing": root_of(
        WORDS,
        post_processor=sequence("processors", TEMPLATE, {"type": "BertProcessing", "sep": ["a", 1], "cls": ["a", 1]}),
    ),
    "lstrip": root_of(WORDS, added_tokens=[BLANK | {"rstrip": True}]),
}


@pytest.mark.parametrize("named", INEXACT)
def test_what_cannot_be_exact_is_refused_by_name(named: str, tmp_path: Path) -> None:
    hugging_face(INEXACT[named])  # which takes it
    with pytest.raises(TokenizerError, match=named):
        load(INEXACT[named], tmp_path)


def test_a_template_beside_what_adds_nothing(tmp_path: Path) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    for parts in ((byte_level, TEMPLATE), (TEMPLATE, byte_level)):
        root = root_of(WORDS, post_processor=sequence("processors", *parts))
        assert load(root, tmp_path).encode("a") == hugging_face(root).encode("a").ids == [1, 1]
