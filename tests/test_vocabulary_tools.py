"""Pruned, extended and transplanted vocabularies: the same tokens where they should be, and models that follow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmcore
from llmcore import ArgumentError, LlmcoreError, Tokenizer, TokenizerError
from llmcore.checkpoint.write import save_json, save_safetensors
from llmcore.vocab import edit, models

import bits_hash  # isort: skip

TINY = Path(llmcore.__file__).parent / "assets" / "tiny"
TEXTS = ["The prince went to Moscow, and the old count with him.", "Napoleon's army\nwas 30,000 men – naïve.", ""]
LOADED = ["gpt2", "llama2", "llama3", "qwen2.5", "tiktoken/cl100k_base.tiktoken", "falcon-tokenizer"]


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer.load(TINY)


@pytest.fixture(scope="module")
def checkpoint(tiny: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random dense model with the built-in tokenizer."""
    folder: Path = tmp_path_factory.mktemp("model")
    bits_hash.write_model(folder)
    config: dict[str, Any] = dict(llmcore.checkpoint.strict_json.load_json(folder / "config.json", limit_bytes=1 << 20))  # type: ignore[attr-defined,call-overload]
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(5)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            rows = tiny.vocab_size + 3  # padded, as vocabularies often are
            tensors[name] = rng.standard_normal((rows, tensors[name].shape[1])).astype(np.float32)
    config |= {"vocab_size": tiny.vocab_size + 3, "bos_token_id": 0, "eos_token_id": [1]}
    save_json(folder / "config.json", config)
    save_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
    save_safetensors(folder / "model.safetensors", tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


@pytest.mark.parametrize("name", LOADED)
def test_pruned_vocabularies_cut_their_texts_as_before(data_dir: Path, name: str, tmp_path: Path) -> None:
    path = data_dir / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"no {name} among the test data")
    tokenizer = Tokenizer.load(path)
    pruned, kept = edit.prune(tokenizer, TEXTS, keep=[300])
    assert pruned.vocab_size == len(kept) < tokenizer.vocab_size / 10
    assert 300 in kept
    for text in TEXTS:
        ids = pruned.encode(text)
        assert [kept[id] for id in ids] == tokenizer.encode(text)
        assert pruned.decode(ids) == tokenizer.decode(tokenizer.encode(text))
    other = "Something else: zebra, 日本 and 👋"
    assert pruned.decode(pruned.encode(other, add_special_tokens=False)).strip() == other
    assert {text: kept[id] for text, id in pruned.special_tokens.items()} == dict(tokenizer.special_tokens)
    pruned.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert [again.encode(text) for text in TEXTS] == [pruned.encode(text) for text in TEXTS]
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [theirs.encode(text).ids for text in TEXTS] == [pruned.encode(text) for text in TEXTS]


def test_a_pruned_model_has_the_logits_it_had(checkpoint: Path, tmp_path: Path, tiny: Tokenizer) -> None:
    kept = models.prune_model(checkpoint, TEXTS, tmp_path / "pruned")
    with llmcore.load(checkpoint, progress=False) as old, llmcore.load(tmp_path / "pruned", progress=False) as new:
        assert new.spec.vocab_size == len(kept) < old.spec.vocab_size
        before, after = old.require_tokenizer().encode(TEXTS[0]), new.require_tokenizer().encode(TEXTS[0])
        assert [kept[id] for id in after] == before
        assert (np.asarray(new.forward(after)) == np.asarray(old.forward(before))[:, kept]).all()
        assert [kept[id] for id in new.spec.eos_ids] == list(old.spec.eos_ids)
        assert kept[new.generation_config["pad_token_id"]] == 1  # type: ignore[index]
    with pytest.raises(ArgumentError, match="is there already"):
        models.prune_model(checkpoint, TEXTS, tmp_path / "pruned")


def test_an_extended_model_knows_the_old_and_has_means_for_the_new(
    checkpoint: Path, tmp_path: Path, tiny: Tokenizer
) -> None:
    words = ["<|tool|>", "Bolkonsky", "naïveté"]
    ids = models.extend_model(checkpoint, words, tmp_path / "extended")
    assert ids == [2048, 2049, 2050]
    with llmcore.load(checkpoint, progress=False) as old, llmcore.load(tmp_path / "extended", progress=False) as new:
        tokenizer = new.require_tokenizer()
        assert tokenizer.encode("Prince Bolkonsky!", add_special_tokens=False)[-2:][0] == 2049
        assert 2048 not in tokenizer.encode("<|tool|>")  # written like a control token: only where it is allowed
        assert tokenizer.encode("<|tool|>", allow_special=True)[-1] == 2048
        plain = tiny.encode(TEXTS[0])
        assert tokenizer.encode(TEXTS[0]) == plain
        assert (np.asarray(new.forward(plain))[:, :2048] == np.asarray(old.forward(plain))[:, :2048]).all()
        with old.capture("token_embeddings") as before:
            old.forward(tiny.encode("Bolkonsky", add_special_tokens=False))
        with new.capture("token_embeddings") as after:
            new.forward([2049])
        np.testing.assert_allclose(after["token_embeddings"][0], before["token_embeddings"].mean(0), atol=1e-6)


def test_a_transplanted_model_keeps_the_rows_of_common_tokens(
    checkpoint: Path, tmp_path: Path, tiny: Tokenizer
) -> None:
    other = Tokenizer.train(
        TEXTS * 5 + ["xylophone zebra " * 9], vocab_size=330, pattern="gpt2", special_tokens=["<|end_of_text|>"]
    )
    same = models.transplant_model(checkpoint, other, tmp_path / "moved")
    assert 257 <= same < other.vocab_size
    with llmcore.load(checkpoint, progress=False) as old, llmcore.load(tmp_path / "moved", progress=False) as new:
        assert new.spec.vocab_size == other.vocab_size
        found = new.require_tokenizer()
        assert found.encode(TEXTS[0]) == other.encode(TEXTS[0])
        for token in ("the", " pr", "x", "<|end_of_text|>"):
            here, there = found.token_to_id(token), tiny.token_to_id(token)
            if here is None or there is None:
                continue
            with new.capture("token_embeddings") as a:
                new.forward([here])
            with old.capture("token_embeddings") as b:
                old.forward([there])
            assert (a["token_embeddings"] == b["token_embeddings"]).all()
        new_token = found.encode(" zebra", add_special_tokens=False)
        assert len(new_token) < len(tiny.encode(" zebra", add_special_tokens=False))
        assert np.isfinite(np.asarray(new.forward(new_token))).all()


def test_bfloat16_rows_are_averaged_as_numbers() -> None:
    floats = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)
    bits = (floats.view(np.uint32) >> 16).astype(np.uint16)
    (row,) = models._chosen(bits, [[0, 1]])
    assert ((row.astype(np.uint32) << 16).view(np.float32) == [2.0, -0.75]).all()


@pytest.mark.parametrize(
    "tokens", ["text", [], [""], ["  "], ["a", "a"], ["<|end_of_text|>"], ["the"], ["a\ud800"], [3], ["x"] * 70_000]
)
def test_bad_new_tokens(tiny: Tokenizer, tokens: Any) -> None:
    with pytest.raises(LlmcoreError):
        edit.extend(tiny, tokens)


def test_bad_ids_to_keep(tiny: Tokenizer) -> None:
    for id in (-1, 99_999, 1.5, "a"):
        with pytest.raises(ArgumentError):
            edit.prune(tiny, TEXTS, keep=[id])  # type: ignore[list-item]


def test_other_models_are_refused(data_dir: Path) -> None:
    tokenizer = Tokenizer.load(data_dir / "tokenizers" / "t5-small" / "tokenizer.json")
    with pytest.raises(TokenizerError, match="Unigram"):
        edit.prune(tokenizer, ["hello"])
    with pytest.raises(TokenizerError, match="Unigram"):
        edit.extend(tokenizer, ["new"])
