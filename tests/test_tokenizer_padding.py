"""Batches of one length: the ids and masks of Hugging Face tokenizers with truncation and padding on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmcore
from llmcore import ArgumentError, LimitError, Tokenizer

TEXTS = ["The prince", "", "A longer sentence, with naïve words and 日本 in it.", "x", "Hello world again"]


@pytest.mark.parametrize("name", ["gpt2", "phi-3", "falcon-tokenizer"])
def test_equal_to_tokenizers(data_dir: Path, name: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = data_dir / "tokenizers" / name / "tokenizer.json"
    ours = Tokenizer.load(path)
    for length, padding, side, cut in itertools.product(
        (None, 3, 6, 40), ("longest", "max_length"), ("left", "right"), ("left", "right")
    ):
        if length is None and padding == "max_length":
            continue
        theirs = tokenizers.Tokenizer.from_file(str(path))
        theirs.no_truncation()
        fixed = length if padding == "max_length" else None
        theirs.enable_padding(direction=side, pad_id=5, pad_token="x", length=fixed)
        if length is not None:
            theirs.enable_truncation(length, direction=cut)
        expected = theirs.encode_batch(TEXTS)
        ids, mask = ours.encode_batch_padded(
            TEXTS, max_length=length, padding=padding, padding_side=side, truncation_side=cut, pad_id=5
        )
        assert ids.tolist() == [one.ids for one in expected]
        assert mask.tolist() == [one.attention_mask for one in expected]
        assert ids.dtype == mask.dtype == np.int64


def test_tokens_around_a_text_stay(data_dir: Path) -> None:
    llama = Tokenizer.load(data_dir / "tokenizers" / "llama3")
    ids, mask = llama.encode_batch_padded(TEXTS, max_length=4, padding="max_length")
    assert (ids[:, 0] == 128000).all()
    assert ids.shape == (5, 4)
    assert (ids[mask == 0] == llama.token_to_id("<|finetune_right_pad_id|>")).all()
    bare, _ = llama.encode_batch_padded(TEXTS, add_special_tokens=False)
    assert 128000 not in bare


def test_an_empty_batch() -> None:
    tokenizer = Tokenizer.load(Path(llmcore.__file__).parent / "assets" / "tiny")
    ids, mask = tokenizer.encode_batch_padded([])
    assert ids.shape == mask.shape == (0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "x"},
        {"padding": "max_length"},
        {"max_length": 0},
        {"max_length": -3},
        {"padding_side": "up"},
        {"truncation_side": None},
        {"pad_id": 99_999},
        {"pad_id": -1},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    tokenizer = Tokenizer.load(Path(llmcore.__file__).parent / "assets" / "tiny")
    with pytest.raises(ArgumentError):
        tokenizer.encode_batch_padded(TEXTS, **options)


@pytest.mark.parametrize("length", [1 << 60, 10**9, 1 << 27])
def test_what_no_memory_holds(length: int) -> None:
    tokenizer = Tokenizer.load(Path(llmcore.__file__).parent / "assets" / "tiny")
    with pytest.raises(LimitError):
        tokenizer.encode_batch_padded(TEXTS, max_length=length, padding="max_length")
    assert tokenizer.encode_batch_padded(TEXTS, max_length=length)[0].shape[0] == len(TEXTS)
