"""Training: the same ids as Hugging Face's BpeTrainer, whatever the number of threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import ArgumentError, StorageError, TokenizerError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab.patterns import REGEXES_OF_STAGE, STAGE_OF_NAME

SPECIAL = ["<|endoftext|>", "<|pad|>"]


def reference(sources: list[Any], pattern: str | None, size: int, min_frequency: int = 0) -> Any:
    """A vocabulary that `tokenizers` trained, on texts or on files."""
    hf = pytest.importorskip("tokenizers")
    tokenizer = hf.Tokenizer(hf.models.BPE())
    byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2")
    if pattern in (None, "gpt2"):
        tokenizer.pre_tokenizer = byte_level
    else:
        split = hf.pre_tokenizers.Split(hf.Regex(REGEXES_OF_STAGE[STAGE_OF_NAME[pattern]][0]), "isolated")
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([split, byte_level])
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=SPECIAL,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    if isinstance(sources[0], Path):
        tokenizer.train([str(path) for path in sources], trainer)
    else:
        tokenizer.train_from_iterator(sources, trainer)
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> dict[str | None, int]:
    return {tokenizer.id_to_token(i): i for i in range(tokenizer.vocab_size)}


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "o200k"])
def test_same_ids_as_hugging_face(data_dir: Path, pattern: str) -> None:
    files = [data_dir / "text/wizard_of_oz_excerpt.txt", data_dir / "text/exllamav3-cal/multilingual.utf8"]
    ours = Tokenizer.train(files, vocab_size=3000, pattern=pattern, special_tokens=SPECIAL)
    assert vocabulary(ours) == reference(files, pattern, 3000).get_vocab()


def test_texts_are_split_as_a_whole_and_files_by_line(data_dir: Path) -> None:
    path = data_dir / "text/tinystories_excerpt.txt"
    text = path.read_text()[:60000]
    ours = Tokenizer.train([text], vocab_size=1200, special_tokens=SPECIAL)
    assert vocabulary(ours) == reference([text], "gpt2", 1200).get_vocab()


def test_no_pattern_merges_over_spaces() -> None:
    texts = ["to be or not to be"] * 3 + ["that is the question"]
    ours = Tokenizer.train(texts, vocab_size=300, pattern=None, special_tokens=SPECIAL)
    assert vocabulary(ours) == reference(texts, None, 300).get_vocab()
    assert any(" " in (ours.decode([i]).strip()) for i in range(258, ours.vocab_size))


def test_min_frequency_stops_early() -> None:
    texts = ["aab aab aab cd"]
    ours = Tokenizer.train(texts, vocab_size=400, special_tokens=SPECIAL, min_frequency=2)
    assert vocabulary(ours) == reference(texts, "gpt2", 400, min_frequency=2).get_vocab()
    assert ours.token_to_id(b"cd") is None


def test_threads_do_not_change_the_result(data_dir: Path) -> None:
    files = [data_dir / "text/tinyshakespeare.txt"] * 2
    prints = {Tokenizer.train(files, vocab_size=1500, threads=n).fingerprint for n in (1, 2, 5)}
    assert len(prints) == 1


def test_saved_file_reads_back_equal_here_and_in_hugging_face(data_dir: Path, tmp_path: Path) -> None:
    hf = pytest.importorskip("tokenizers")
    text = (data_dir / "text/wizard_of_oz_excerpt.txt").read_text()
    ours = Tokenizer.train([text], vocab_size=2000, pattern="cl100k", special_tokens=SPECIAL)
    ours.save(tmp_path / "tokenizer.json")
    sample = text[:5000] + "  \n\n  \u6f22\u5b57 \U0001f469\u200d\U0001f467 caf\u00e9 it's IT'S x  "
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
    assert hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(sample).ids == ours.encode(sample)


def test_ties_by_text_give_the_reference_merges(data_dir: Path) -> None:
    folder = data_dir / "tokenizers/cs336-bpe"
    lines = (folder / "train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    expected = [tuple(line.rsplit(" ", 1)) for line in lines if line]
    vocab_size = len(json.loads((folder / "train-bpe-reference-vocab.json").read_text()))
    text = (folder / "corpus.en").read_text(encoding="utf-8")
    ours = Tokenizer.train([text], vocab_size=vocab_size, special_tokens=["<|endoftext|>"], ties="text")
    merged = [(ours.id_to_token(int(a)), ours.id_to_token(int(b))) for a, b, _ in ours._core.merges.reshape(-1, 3)]
    assert merged == expected


def test_no_merge_spells_a_special_token() -> None:
    ours = Tokenizer.train(["<s> <s> <s> <s>"], vocab_size=400, special_tokens=["<s>"])
    assert ours.token_to_id("<s>") == 0
    assert 0 not in ours.encode("<s><s> <s>")
    assert ours.encode("<s>", allow_special=True) == [0]


def test_progress_is_told_and_may_stop_the_training(data_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = data_dir / "text/tinyshakespeare.txt"
    Tokenizer.train([path], vocab_size=2000, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {2000}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tokenizer.train([path], vocab_size=2000, progress=stop)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"vocab_size": 255}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 300, "pattern": "gpt5"}, "pattern"),
        ({"vocab_size": 300, "special_tokens": ["a", "a"]}, "special_tokens"),
        ({"vocab_size": 300, "ties": "coin"}, "ties"),
        ({"vocab_size": 300, "threads": 0}, "threads"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Tokenizer.train(["text"], **arguments)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        Tokenizer.train([tmp_path / "missing"], vocab_size=300)
    (tmp_path / "latin1").write_bytes(b"line\ncaf\xe9\n")
    with pytest.raises(TokenizerError, match="byte 8"):
        Tokenizer.train([tmp_path / "latin1"], vocab_size=300)


SENTENCEPIECE = ["<unk>", "<s>", "</s>"]


def sentences(data_dir: Path) -> list[str]:
    names = ["wizard_of_oz_excerpt.txt", "exllamav3-cal/multilingual.utf8"]
    text = "\n".join((data_dir / "text" / name).read_text(encoding="utf-8") for name in names)
    return [line.strip("\r") for line in text.split("\n") if line.strip("\r")]


def test_characters_give_the_ids_of_hugging_face(data_dir: Path) -> None:
    hf = pytest.importorskip("tokenizers")
    texts = sentences(data_dir)
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ours = Tokenizer.train(texts, vocab_size=3500, model_type="bpe", character_coverage=1.0)
    theirs = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    theirs.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    trainer = hf.trainers.BpeTrainer(vocab_size=3500, special_tokens=SENTENCEPIECE + names, show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    assert vocabulary(ours) == theirs.get_vocab()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_saved_character_vocabularies_read_back(
    data_dir: Path, tmp_path: Path, model_type: str, byte_fallback: bool
) -> None:
    hf = pytest.importorskip("tokenizers")
    texts = sentences(data_dir)
    ours = Tokenizer.train(
        texts, vocab_size=4000, model_type=model_type, byte_fallback=byte_fallback, character_coverage=0.999
    )
    ours.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert (again.fingerprint, again.vocab_size) == (ours.fingerprint, 4000)
    text = (
        "\n".join(texts)[:50000] + "  two  spaces \u2581 \n\n\u6f22\u5b57 \U0001f469\u200d\U0001f467 caf\u00e9 \ufdfa"
    )
    ids = ours.encode(text, add_special_tokens=False)
    assert hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == ids
    if byte_fallback:
        assert ours.decode(ids) == text.replace("\u2581", " ")
    else:
        assert ours.token_to_id("<unk>") in ids


def test_unigram_cuts_text_as_short_as_hugging_face_does(data_dir: Path) -> None:
    hf = pytest.importorskip("tokenizers")
    texts = sentences(data_dir)
    ours = Tokenizer.train(texts, vocab_size=3000, model_type="unigram", byte_fallback=False, character_coverage=1.0)
    theirs = hf.Tokenizer(hf.models.Unigram())
    theirs.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    trainer = hf.trainers.UnigramTrainer(
        vocab_size=3000, special_tokens=SENTENCEPIECE, unk_token="<unk>", show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    lengths = [sum(len(ours.encode(t, add_special_tokens=False)) for t in texts)]
    lengths.append(sum(len(theirs.encode(t).ids) for t in texts))
    assert lengths[0] <= 1.01 * lengths[1]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_threads_and_order_do_not_change_character_vocabularies(data_dir: Path, model_type: str) -> None:
    texts = sentences(data_dir)
    prints = {
        Tokenizer.train(some, vocab_size=2500, model_type=model_type, threads=n).fingerprint
        for some, n in ((texts, 1), (texts, 2), (texts[::-1], 5))
    }
    assert len(prints) == 1


def test_lines_are_sentences_in_texts_and_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"to be or not\r\n\r\n\xe2\x96\x81to be\nto be\n")
    trained = [
        Tokenizer.train(source, vocab_size=300, model_type="bpe", character_coverage=1.0)
        for source in ([tmp_path / "text"], ["to be or not\n\n to be", "to be"])
    ]
    assert trained[0].fingerprint == trained[1].fingerprint
    assert trained[0].encode("to be", add_special_tokens=False) == [
        trained[0].token_to_id("\u2581to"),
        trained[0].token_to_id("\u2581be"),
    ]


def test_rare_characters_are_left_to_bytes() -> None:
    texts = ["aaab aab " * 1000, "\u6f22"]
    tokens = vocabulary(Tokenizer.train(texts, vocab_size=400, model_type="unigram", character_coverage=0.999))
    assert "\u6f22" not in tokens
    assert "a" in tokens
    tokens = vocabulary(Tokenizer.train(texts, vocab_size=400, model_type="bpe", character_coverage=1.0))
    assert "\u6f22" in tokens


def test_progress_of_unigram_grows_to_the_end(data_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    Tokenizer.train(
        sentences(data_dir),
        vocab_size=2500,
        model_type="unigram",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert seen[0][0] < seen[-1][0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"model_type": "wordpiece"}, "byte_bpe, bpe, unigram"),
        ({"special_tokens": ["<s>"]}, "<unk>"),
        ({"character_coverage": 0.0}, "character_coverage"),
        ({"vocab_size": 260}, "characters"),
        ({"special_tokens": ["<unk>", "t"]}, "single characters"),
    ],
)
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_bad_arguments_for_characters(arguments: dict[str, Any], match: str, model_type: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Tokenizer.train(["the text"], **{"vocab_size": 400, "model_type": model_type, **arguments})
