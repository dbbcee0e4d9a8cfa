"""Checkpoints whose numbers are broken: they load, and say so, for the request that meets them alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import llmcore
from llmcore.checkpoint.readers import open_checkpoint, resolve_path
from llmcore.checkpoint.write import save_safetensors

GREEDY = llmcore.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, repetition_penalty=1.0)


def changed(folder: Path, **changes: object) -> Path:
    """A copy of the built-in model with some tensors replaced by what a function makes of them."""
    source = resolve_path("tiny")
    with open_checkpoint("tiny") as checkpoint:
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    for name, change in changes.items():
        tensors[name] = change(tensors[name].copy())  # type: ignore[operator]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    save_safetensors(folder / "model.safetensors", tensors)
    return folder


def poison(value: float, row: int | None = None):
    def change(tensor: np.ndarray) -> np.ndarray:
        tensor[0 if row is None else row] = value
        return tensor

    return change


SCALE = "model.layers.0.mlp.down_proj.weight_scale"


@pytest.mark.parametrize(
    ("name", "value"), [("model.norm.weight", np.nan), (SCALE, np.nan), (SCALE, np.inf), (SCALE, -np.inf)]
)
def test_a_weight_that_is_no_number_is_an_error_of_the_request(tmp_path: Path, name: str, value: float) -> None:
    folder = changed(tmp_path / "model", **{name: poison(value)})
    with llmcore.LLM(folder) as llm:
        for call in (lambda: llm.generate("The prince", GREEDY), lambda: llm.embed("The prince")):
            with pytest.raises(llmcore.NumericError, match="NaN or infinity"):
                call()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", SCALE])
def test_check_finite_names_the_tensor(tmp_path: Path, name: str, value: float) -> None:
    folder = changed(tmp_path / "model", **{name: poison(value)})
    with pytest.raises(llmcore.NumericError, match=name.replace(".weight_scale", "")):
        llmcore.load(folder, check_finite=True)


def test_a_broken_embedding_row_stops_just_the_request_that_uses_it(tmp_path: Path) -> None:
    tokenizer = llmcore.Tokenizer.load(resolve_path("tiny"))
    broken = tokenizer.encode(" emperor", add_special_tokens=False)[0]
    # An infinite element breaks the row's own embedding; as an output row its logit is infinite or NaN for everybody,
    # so it is taken out of the head here.
    folder = changed(tmp_path / "model", **{"model.embed_tokens.weight": lambda t: t})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with open_checkpoint("tiny") as checkpoint:
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][broken] = np.nan
    save_safetensors(folder / "model.safetensors", tensors)
    with llmcore.LLM("tiny") as sound:
        wanted = sound.generate("The prince", GREEDY)[0].token_ids
    with llmcore.LLM(folder) as llm:
        with pytest.raises(llmcore.NumericError):
            llm.generate([[broken], tokenizer.encode("The prince")], GREEDY)
        assert llm.generate("The prince", GREEDY)[0].token_ids == wanted
        stats = llm.stats()
        assert stats["kv_pages_free"] == stats["kv_pages_total"]


def test_a_norm_of_zeros_runs(tmp_path: Path) -> None:
    folder = changed(tmp_path / "model", **{"model.norm.weight": np.zeros_like})
    with llmcore.load(folder) as model:
        logits = model.forward([0, 5, 9])
    assert not np.asarray(logits).any()


def test_subnormal_weights_run(tmp_path: Path) -> None:
    folder = changed(tmp_path / "model", **{"model.norm.weight": lambda t: np.full_like(t, 1e-41)})
    with llmcore.load(folder) as model:
        assert np.isfinite(model.forward([0, 5, 9])).all()


def test_ids_beyond_the_tokenizer_are_never_drawn(tmp_path: Path) -> None:
    """The model's vocabulary may be padded beyond the tokenizer's; such an id has logits, but no text."""

    def pad(tensor: np.ndarray) -> np.ndarray:
        return np.concatenate([tensor, 4 * tensor[:64]])

    folder = changed(tmp_path / "model", **{"model.embed_tokens.weight": pad})
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += 64
    (folder / "config.json").write_text(json.dumps(config))
    params = llmcore.SamplingParams(temperature=5.0, top_p=1.0, max_tokens=200, ignore_eos=True, seed=3)
    with llmcore.LLM(folder) as llm:
        size = llm.tokenizer.vocab_size
        ids = llm.generate("The prince", params)[0].token_ids
        with llm.model.capture("logits") as seen:
            llm.model.forward([0, *ids[:20]])
    assert seen["logits"].shape[1] == size + 64
    assert (seen["logits"].argmax(axis=1) >= size).any(), "the padding must tempt the sampler"
    assert max(ids) < size


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path / "model", **{"model.embed_tokens.weight": lambda t: t[:-8]})
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] -= 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(llmcore.TokenizerError, match="vocabulary"):
        llmcore.load(folder)
