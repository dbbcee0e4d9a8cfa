"""What stands beside a tokenizer.json or tokenizer.model counts as it does for transformers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from llmcore import LlmcoreError, Tokenizer

tokenizers = pytest.importorskip("tokenizers")

ALPHABET = {char: i for i, char in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TURNS = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"content": content, **plain, **flags}


TURN = token("<turn>")


def folder_of(folder: Path, added: list[dict[str, Any]], config: dict[str, Any], **others: Any) -> Path:
    """A checkpoint's tokenizer: the bytes, "ab", and `added` behind them."""
    model = {"type": "BPE", "vocab": {**ALPHABET, "ab": 256}, "merges": ["a b"]}
    values = {
        "version": "1.0",
        "added_tokens": [{"id": 257 + i, **entry} for i, entry in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": model,
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    files = {"tokenizer": values, "tokenizer_config": config, **others}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "one more": ([], {"added_tokens_decoder": {"257": token("<new>", special=True)}}, {}),
    "an id of its own": ([], {"added_tokens_decoder": {"300": token("<new>", rstrip=True)}}, {}),
    "one of the vocabulary": ([], {"added_tokens_decoder": {"256": token("ab", special=True)}}, {}),
    "flags": ([TURN], {"added_tokens_decoder": {"257": token("<turn>", special=True, lstrip=True)}}, {}),
    "older": ([TURN], {}, {"added_tokens": {"<new>": 258, "<turn>": 257}}),
    "older special": ([token("<s>", special=True)], {}, {"added_tokens": {"<s>": 257, "<new>": 258}}),
    "eos": ([TURN], {"eos_token": "<turn>"}, {}),
    "eos of the vocabulary": ([], {"eos_token": "ab"}, {}),
    "pad": ([TURN], {"pad_token": "<turn>", "added_tokens_decoder": {"257": TURN}}, {}),
    "eos beside it": ([TURN], {}, {"special_tokens_map": {"eos_token": "<turn>"}}),
    "extra": ([TURN], {"extra_special_tokens": {"turn": "<turn>"}}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_added_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    added, config, others = CASES[case]
    folder = folder_of(tmp_path, added, config, **others)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    text = "x <new> y<turn> abab<s>"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text, False, allow_special=True) == ids
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == len(theirs)


def test_what_is_only_named_needs_no_row_of_the_model(tmp_path: Path) -> None:
    assert Tokenizer.load(folder_of(tmp_path, [TURN], {"pad_token": "<pad>"})).vocab_size == 258


@pytest.mark.parametrize(
    ("config", "others"),
    [
        ({"eos_token": "<turn>"}, {}),
        (
            {"added_tokens_decoder": {"257": token("<turn>", special=True)}},
            {"generation_config": {"eos_token_id": 257}},
        ),
        ({}, {"generation_config": {"eos_token_id": 257}}),
    ],
)
def test_users_forge_no_end_of_an_answer(config: dict[str, Any], others: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [TURN], {"eos_token": "<turn>", "chat_template": TURNS, **config}, **others)
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a<turn>b"}])
    assert tokenizer.eos_ids == [257]
    assert list(ids).count(257) == 1


def test_the_end_that_generation_config_names_is_not_forged(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, [TURN], {"chat_template": "{{ messages[0].content }}"}, generation_config={"eos_token_id": 257}
    )
    assert 257 not in Tokenizer.load(folder).apply_chat_template([{"role": "user", "content": "a<turn>b"}])


def test_symbols_of_spaces_are_added_once(tmp_path: Path) -> None:
    """Gemma's tokenizer_config.json lists those of tokenizer.model, with marks for spaces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    symbols = ["\u2581\u2581", "\u2581\u2581\u2581", "\n\n", "<table>"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a man, a plan, a canal"] * 3),
        model_writer=out,
        minloglevel=2,
        model_type="bpe",
        user_defined_symbols=symbols,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
    )
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    decoder = {str(theirs.piece_to_id(symbol)): token(symbol) for symbol in symbols}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert len({t.id for t in tokenizer.added_tokens}) == len(tokenizer.added_tokens)
    tokenizer.save(tmp_path / "saved.json")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "saved.json"))
    again = Tokenizer.load(tmp_path / "saved.json")
    for text in ("a  man", "  a", "a   \n\nn", "  <table>  \u2581\u2581<table>  <table>  a   "):
        ids = theirs.encode(text)
        assert tokenizer.encode(text, False) == again.encode(text, False) == ids
        assert saved.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize(
    ("decoder", "message"),
    [([], "must be an object"), ({"9" * 5000: TURN}, "from 0 to"), ({"257": token("x" * 2000)}, "at most 1024")],
)
def test_broken_lists_of_added_tokens(decoder: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match=message):
        Tokenizer.load(folder_of(tmp_path, [], {"added_tokens_decoder": decoder}))


def test_no_list_of_added_tokens(tmp_path: Path) -> None:
    assert Tokenizer.load(folder_of(tmp_path, [TURN], {"added_tokens_decoder": None})).vocab_size == 258
