"""Post-processors: pairs of texts, their type ids, and offsets without white space, as Hugging Face has them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import ArgumentError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab.edit import prune

tokenizers = pytest.importorskip("tokenizers", reason="needs Hugging Face tokenizers")

PIECES = [" ", "  ", "\n", "\t", "\u3000", "\u00a0", "a", " the", "Hello", "\u00e9", " \U0001f642", "'s", "12", "<|e|>"]


def byte_level(trim: bool, prefix: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": True}


def roberta(trim: bool, prefix: bool) -> dict[str, Any]:
    ends = {"sep": ["</s>", 1], "cls": ["<s>", 0]}
    return {"type": "RobertaProcessing", **ends, "trim_offsets": trim, "add_prefix_space": prefix}


def template(single: str, pair: str) -> dict[str, Any]:
    special = [("<s>", 0), ("</s>", 1), ("\u2423", 2)]
    return json.loads(tokenizers.processors.TemplateProcessing(single, pair, special).__getstate__())


BERT = {"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}
ODD = template("<s>:2 $A:3 </s>:1", "<s>:2 $B:4 </s>:1 $A:3 \u2423:5 </s>:0")
PROCESSORS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "untrimmed": byte_level(False, True),
    "trimmed": byte_level(True, False),
    "trimmed behind the first": byte_level(True, True),
    "roberta": roberta(True, False),
    "roberta prefix": roberta(True, True),
    "roberta untrimmed": roberta(False, True),
    "bert": BERT,
    "template": ODD,
    "sequence": {"type": "Sequence", "processors": [byte_level(True, True), ODD]},
    "trimmed behind a template": {"type": "Sequence", "processors": [ODD, byte_level(True, False)]},
}


def file_of(processor: dict[str, Any] | None, prefix: bool) -> str:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>", "\u2423"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the Hello  the hello"] * 3, trainer)
    made.add_tokens([tokenizers.AddedToken(" <|e|>", normalized=False), "\n\n"])
    return json.dumps({**json.loads(made.to_str()), "post_processor": processor})


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pairs_and_offsets(name: str, prefix: bool, tmp_path: Path) -> None:
    text = file_of(PROCESSORS[name], prefix)
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    theirs = tokenizers.Tokenizer.from_str(text)
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    ours.save(tmp_path / "again.json")
    again = Tokenizer.load(tmp_path / "again.json")
    rng = random.Random(3)
    for _ in range(150):
        one, other = ("".join(rng.choices(PIECES, k=rng.randrange(6))) for _ in range(2))
        special = rng.random() < 0.7
        single, pair = (
            theirs.encode(one, add_special_tokens=special),
            theirs.encode(one, other, add_special_tokens=special),
        )
        for tokenizer in (ours, again):
            assert tokenizer.encode_with_offsets(one, special, True) == (single.ids, single.offsets), repr(one)
            assert tokenizer.encode_pair(one, other, special, True) == (pair.ids, pair.type_ids), repr((one, other))
            assert tokenizer.encode(one, special, True, text_pair=other) == pair.ids


def test_a_pair_of_real_vocabularies(data_dir: Path) -> None:
    for name in ("bert-base-uncased", "phi-3", "t5-small"):
        path = data_dir / "tokenizers" / name / "tokenizer.json"
        pair = tokenizers.Tokenizer.from_file(str(path)).encode("How are you?", "I am well.")
        assert Tokenizer.load(path).encode_pair("How are you?", "I am well.") == (pair.ids, pair.type_ids)


def test_a_pair_of_a_gguf(data_dir: Path) -> None:
    tokenizer = Tokenizer.load(data_dir / "tokenizers" / "llama.cpp-vocabs" / "ggml-vocab-bert-bge.gguf")
    one, other = (tokenizer.encode(text, add_special_tokens=False) for text in ("one", "other"))
    start, end = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    types = [0] * (len(one) + 2) + [1] * (len(other) + 1)
    assert tokenizer.encode_pair("one", "other") == ([start, *one, end, *other, end], types)


def test_without_a_template_each_text_is_as_it_is_alone(data_dir: Path) -> None:
    tokenizer = Tokenizer.load(data_dir / "tokenizers" / "llama2" / "tokenizer.model")
    one, other = tokenizer.encode("one"), tokenizer.encode("other")
    assert tokenizer.encode_pair("one", "other") == (one + other, [0] * len(one) + [1] * len(other))
    with pytest.raises(ArgumentError, match="text_pair"):
        tokenizer.encode("one", text_pair="other", dropout=0.1)


def test_pruning_keeps_what_goes_around_a_pair(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(file_of(ODD, False), "utf-8")
    whole = Tokenizer.load(tmp_path / "tokenizer.json")
    pruned, kept = prune(whole, ["a"])
    ids, types = pruned.encode_pair("a", "b")
    assert ([kept[id] for id in ids], types) == whole.encode_pair("a", "b")


def test_offsets_of_what_takes_spaces_along(tmp_path: Path) -> None:
    """An added token that strips is trimmed by the text it covers, as RoBERTa's `<mask>`; so is unknown text."""
    made = tokenizers.Tokenizer.from_str(file_of(roberta(True, False), False))
    made.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, normalized=False)])
    made.save(str(tmp_path / "mask.json"))
    unigram = {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1]], "byte_fallback": False},
        "post_processor": byte_level(True, False),
        "decoder": {"type": "Fuse"},
    }
    (tmp_path / "unknown.json").write_text(json.dumps(unigram), encoding="utf-8")
    for name, texts in (
        ("mask.json", ["Hello <mask>.", "a   <mask>b", "<mask> a"]),
        ("unknown.json", ["a\u3000a", "a  a", " a"]),
    ):
        theirs, mine = tokenizers.Tokenizer.from_file(str(tmp_path / name)), Tokenizer.load(tmp_path / name)
        for text in texts:
            encoded = theirs.encode(text)
            assert mine.encode_with_offsets(text, allow_special=True) == (encoded.ids, encoded.offsets), text
