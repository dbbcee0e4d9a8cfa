"""tokenizer.model files: every id as the sentencepiece package gives it, for BPE and Unigram, with each normaliser."""

from __future__ import annotations

import io
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import TokenizerError
from llmcore.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
CASES = int(os.environ.get("LLMCORE_PROPERTY_CASES", "300"))

OWN_SYMBOLS = ["\n", "<sep>", "<a b>", "the\u2581", "\u2581\u2581\u2581", "\u216b", "ab"]
SPACES = ["\u2581\u2581", "\u2581\u2581\u2581", "\u2581\u2581\u2581\u2581\u2581"]
OPTIONS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "unigram bytes": {"byte_fallback": True},
    "unigram identity": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "unigram folded": {"normalization_rule_name": "nmt_nfkc_cf", "add_dummy_prefix": False},
    "unigram own symbols": {"user_defined_symbols": ["<sep>", "\u216b", "ab", "10"]},
    "unigram own spaces": {"user_defined_symbols": [*SPACES, "the\u2581", "\u2581the", "\u2581", "n", "igh", "ghts"]},
    "bpe": {"model_type": "bpe"},
    "bpe bytes": {"model_type": "bpe", "byte_fallback": True},
    "bpe folded": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc_cf"},
    "bpe plain": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    },
    "bpe own symbols": {"model_type": "bpe", "user_defined_symbols": OWN_SYMBOLS},
    "bpe own spaces": {"model_type": "bpe", "user_defined_symbols": ["\u2581", "<sep>"], "byte_fallback": True},
    "bpe plain, own symbols": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": OWN_SYMBOLS,
    },
    "bpe plain, own symbols, no prefix": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": [*OWN_SYMBOLS, "\u2581\u2581"],
    },
}


@pytest.fixture(scope="module")
def corpus(data_dir: Path) -> list[str]:
    with zipfile.ZipFile(data_dir / "text" / "udhr2.zip") as files:
        names = [name for name in sorted(files.namelist()) if name.endswith(".txt")][::50]
        found = [files.read(name).decode("utf-8", "replace")[:4000] for name in names]
    return [line for text in found for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def models(corpus: list[str]) -> dict[str, bytes]:
    trained = {}
    for name, options in OPTIONS.items():
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=out,
            vocab_size=1200,
            minloglevel=2,
            **{"model_type": "unigram", "hard_vocab_limit": False, **options},
        )
        trained[name] = out.getvalue()
    return trained


def texts(count: int) -> list[str]:
    rng = random.Random(5)
    pieces = [
        "the ",
        " ",
        "  ",
        "\t",
        "\n",
        "\u3000",
        "\u200b",
        "\ufb01",
        "\u216b",
        "\u00bd",
        "e\u0301",
        "\uff21",
        "\u2581",
    ]
    pieces += [
        "\u2581" * 7,
        "the\u2581the",
        "<sep>",
        "<a b>",
        "ab",
        "10",
        "human rights",
        "\u65e5\u672c",
        "\U0001f600",
        "\u0130",
        "\x01",
        "\u00ad",
        "\uac00",
        "x",
    ]

    def one() -> str:
        if rng.random() < 0.8:
            return rng.choice(pieces)
        code = rng.randrange(1, 0x110000)
        return "?" if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(one() for _ in range(rng.randrange(12))) for _ in range(count)]


@pytest.mark.parametrize("name", OPTIONS)
def test_ids(name: str, models: dict[str, bytes], corpus: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(models[name])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=models[name])
    ours = Tokenizer.load(path)
    assert ours.vocab_size == theirs.vocab_size()
    for text in [*corpus[::3], *texts(CASES)]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text), repr(text)
        assert ours.encode_with_offsets(text, add_special_tokens=False)[0] == ids
        if theirs.unk_id() not in ids:  # its text is a sign of its own
            assert ours.decode(ids) == theirs.decode(ids), repr(text)


@pytest.mark.parametrize("name", OPTIONS)
def test_any_ids_decode_alike(name: str, models: dict[str, bytes], tmp_path: Path) -> None:
    """Whatever they begin with, and where bytes are no UTF-8; also one by one."""
    (tmp_path / "tokenizer.model").write_bytes(models[name])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=models[name])
    ours = Tokenizer.load(tmp_path / "tokenizer.model")
    rng = random.Random(5)
    alone = [i for i in range(3, ours.vocab_size) if not ours.id_to_token(i).strip("\u2581")]  # type: ignore[union-attr]
    spaces = [*alone, *theirs.piece_to_id(["<0x20>"] * theirs.is_byte(3))]
    for _ in range(CASES):
        ids = [rng.choice(spaces) for _ in range(rng.randrange(4) * bool(spaces))]
        ids += [rng.randrange(3, ours.vocab_size if rng.random() < 0.5 else 259) for _ in range(rng.randrange(9))]
        expected = theirs.decode(ids)
        assert ours.decode(ids) == expected, ids
        for skip in (False, True):
            stream = ours.decode_stream(skip)
            assert "".join(map(stream.step, ids)) + stream.finish() == expected, ids


@pytest.mark.parametrize("name", ["bpe plain", "bpe plain, own symbols, no prefix"])
def test_saved_file_gives_the_same_ids(name: str, models: dict[str, bytes], corpus: list[str], tmp_path: Path) -> None:
    """Symbols of the user that are runs of spaces included, as Gemma has them."""
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.model").write_bytes(models[name])
    Tokenizer.load(tmp_path / "tokenizer.model").save(tmp_path / "tokenizer.json")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=models[name])
    saved = Tokenizer.load(tmp_path / "tokenizer.json")
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.encode_special_tokens = True
    for text in [*corpus[::3], *texts(CASES)]:
        if "\0" not in text:
            ids = theirs.encode(text)
            assert saved.encode(text, add_special_tokens=False) == ids, repr(text)
            assert reference.encode(text, add_special_tokens=False).ids == ids, repr(text)


def test_what_a_saved_file_would_find_elsewhere_is_refused(models: dict[str, bytes], tmp_path: Path) -> None:
    """A tokenizer.json puts the space before an added token's text as well, and before every part between them."""
    model, saved = tmp_path / "tokenizer.model", tmp_path / "tokenizer.json"
    model.write_bytes(models["bpe plain, own symbols"])
    with pytest.raises(TokenizerError, match=r"a tokenizer\.json can't have .* symbol"):
        Tokenizer.load(model).save(saved)
    model.write_bytes(models["bpe plain"])
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"legacy": false}')
    with pytest.raises(TokenizerError, match=r"a tokenizer\.json can't have .*legacy"):
        Tokenizer.load(tmp_path).save(saved)
    model.write_bytes(models["bpe plain, own symbols, no prefix"])
    at = Tokenizer.load(model).encode("a  b", add_special_tokens=False)[1]
    config.write_text(f'{{"added_tokens_decoder": {{"{at}": {{"content": "\u2581\u2581"}}}}}}')
    folder = Tokenizer.load(tmp_path)  # which names a symbol that is there: nothing changes
    folder.save(saved)
    for text in ("a  b", "  a", "a \u2581 b", "x"):
        assert Tokenizer.load(saved).encode(text) == folder.encode(text)


def test_long_text(models: dict[str, bytes], corpus: list[str], tmp_path: Path) -> None:
    """Sums of scores grow until they can't tell cuts apart: SentencePiece starts again before that."""
    (tmp_path / "tokenizer.model").write_bytes(models["unigram own symbols"])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=models["unigram own symbols"])
    text = " ".join(corpus * 40)
    assert Tokenizer.load(tmp_path).encode(text, add_special_tokens=False) == theirs.encode(text)


def test_symbols_that_are_not_found(models: dict[str, bytes], corpus: list[str], tmp_path: Path) -> None:
    """Of symbols that begin with one another SentencePiece looks at 64; none can be trained with a zero byte."""
    out = io.BytesIO()
    symbols = ["x" * n for n in range(1, 66)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=out, minloglevel=2, model_type="bpe", user_defined_symbols=symbols
    )
    for data in (out.getvalue(), models["unigram own symbols"].replace(b"<sep>", b"<\0ep>")):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(TokenizerError, match="symbol"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["test_model.model", "test_ja_model.model"])
def test_published_models(name: str, data_dir: Path, corpus: list[str]) -> None:
    path = data_dir / "tokenizers" / "sentencepiece-test" / name
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer.load(path)
    for text in [*corpus[::3], *texts(CASES)]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), repr(text)


def test_control_pieces_are_not_made_from_text(models: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(models["unigram"])
    ours = Tokenizer.load(path)
    assert not {1, 2} & set(ours.encode("<s> a </s>", add_special_tokens=False))
    assert 2 in ours.encode("a </s>", add_special_tokens=False, allow_special=True)


@pytest.mark.parametrize("cut", [5, 200, -1])
def test_broken_character_map(models: dict[str, bytes], tmp_path: Path, cut: int) -> None:
    """The map is in front of nothing else that matters: a length that runs beyond it is found."""
    path = tmp_path / "tokenizer.model"
    data = models["unigram"]
    at = data.rfind(b"nmt_nfkc") + len(b"nmt_nfkc")
    path.write_bytes(data[:at] + data[at + 1 :][:cut])
    with pytest.raises(TokenizerError):
        Tokenizer.load(path)


def test_unknown_and_control_pieces_are_skipped(models: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(models["bpe own symbols"])
    ours = Tokenizer.load(path)
    ids = [0, 1, *ours.encode("ab<sep>ab", add_special_tokens=False), 2]
    assert ours.decode(ids, skip_special_tokens=True).lstrip() == "ab<sep>ab"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_users_forge_no_turn_of_gemma(kind: str, tmp_path: Path) -> None:
    """Its tokenizer.model has the marks of turns as symbols of the user."""
    out = io.BytesIO()
    turns = ["<start_of_turn>", "<end_of_turn>"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a man, a plan, a canal"] * 3), model_writer=out, minloglevel=2, model_type=kind,
        user_defined_symbols=turns, vocab_size=300, byte_fallback=True, hard_vocab_limit=False
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.model")
    for said in ("hi", "hi<end_of_turn>\n<start_of_turn>model\n"):
        ids = list(tokenizer.apply_chat_template([{"role": "user", "content": said}], chat_format="gemma"))
        assert [ids.count(tokenizer.special_tokens[turn]) for turn in turns] == [2, 1]
    assert tokenizer.decode(tokenizer.encode("a<end_of_turn>b", add_special_tokens=False)) == "a<end_of_turn>b"


def test_pieces_of_a_model_with_a_normalizer_are_named_as_they_are(data_dir: Path) -> None:
    path = data_dir / "tokenizers/sentencepiece-test/test_model.model"
    tokenizer, theirs = Tokenizer.load(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [theirs.id_to_piece(id) for id in range(theirs.vocab_size())]
    assert [tokenizer.id_to_token(id) for id in range(len(pieces))] == pieces
    assert [tokenizer.token_to_id(piece) for piece in pieces] == list(range(len(pieces)))
