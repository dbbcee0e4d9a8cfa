"""The built-in model's folder: small, complete, a normal Hugging Face checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcore

FOLDER = Path(llmcore.__file__).parent / "assets" / "tiny"
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def read(name: str) -> dict[str, Any]:
    content = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return load_file(FOLDER / "model.safetensors")


@pytest.fixture(scope="module")
def tokenizer() -> llmcore.Tokenizer:
    return llmcore.Tokenizer.load(FOLDER)


def test_folder_holds_a_checkpoint_its_card_and_its_known_text() -> None:
    assert {p.name for p in FOLDER.iterdir()} == FILES | {"README.md", "known_text.json"}


def test_folder_costs_at_most_3_mb() -> None:
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 3_000_000


def test_tensors_are_those_of_the_config(tensors: dict[str, np.ndarray]) -> None:
    c = read("config.json")
    hidden, mlp, heads = c["hidden_size"], c["intermediate_size"], c["head_dim"] * c["num_attention_heads"]
    kv = c["head_dim"] * c["num_key_value_heads"]
    linears = {"self_attn.q_proj": (heads, hidden), "self_attn.o_proj": (hidden, heads)}
    linears |= dict.fromkeys(["self_attn.k_proj", "self_attn.v_proj"], (kv, hidden))
    linears |= dict.fromkeys(["mlp.gate_proj", "mlp.up_proj"], (mlp, hidden)) | {"mlp.down_proj": (hidden, mlp)}
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "model.embed_tokens.weight": ((c["vocab_size"], hidden), "float16"),
        "model.norm.weight": ((hidden,), "float32"),
    }
    for i in range(c["num_hidden_layers"]):
        for name, (n, k) in linears.items():
            expected[f"model.layers.{i}.{name}.weight"] = ((n, k), "int8")
            expected[f"model.layers.{i}.{name}.weight_scale"] = ((n, 1), "float32")
        for name in ("input_layernorm", "post_attention_layernorm"):
            expected[f"model.layers.{i}.{name}.weight"] = ((hidden,), "float32")
    assert {name: (t.shape, t.dtype.name) for name, t in tensors.items()} == expected


def test_int8_rows_use_their_whole_symmetric_range(tensors: dict[str, np.ndarray]) -> None:
    peaks = [np.abs(t.astype(np.int16)).max(axis=1) for t in tensors.values() if t.dtype == np.int8]
    assert {int(p) for rows in peaks for p in rows} == {127}


def test_scales_and_floats_are_finite_and_scales_positive(tensors: dict[str, np.ndarray]) -> None:
    assert all(np.isfinite(t).all() for t in tensors.values())
    assert all((t > 0).all() for name, t in tensors.items() if name.endswith("_scale"))


def test_quantization_scheme_is_int8_per_output_channel() -> None:
    scheme = read("config.json")["quantization_config"]
    weights = scheme["config_groups"]["group_0"]["weights"]
    assert (scheme["quant_method"], scheme["format"]) == ("compressed-tensors", "int-quantized")
    assert (weights["num_bits"], weights["strategy"], weights["symmetric"]) == (8, "channel", True)


def test_generation_defaults_are_valid_sampling_params() -> None:
    defaults = read("generation_config.json")
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    params = llmcore.SamplingParams(**{n: defaults[n] for n in names if n in defaults})
    assert 0 < params.temperature < 1


def test_special_tokens_agree_between_the_files() -> None:
    added = {t["content"]: t["id"] for t in read("tokenizer.json")["added_tokens"]}
    names, config = read("tokenizer_config.json"), read("config.json")
    assert added == {names["bos_token"]: config["bos_token_id"], names["eos_token"]: config["eos_token_id"]}


def test_vocabulary_fills_the_embedding() -> None:
    tokenizer = read("tokenizer.json")
    ids = {*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])}
    assert ids == set(range(read("config.json")["vocab_size"]))


@pytest.mark.parametrize(
    "text",
    ["The prince", "Привет, мир! 你好 🙂", "  two  spaces\n\n\ttab\r\nend ", "\x00\x7f", "", "<|end_of_text|>"],
    ids=["english", "unicode", "whitespace", "control", "empty", "special"],
)
def test_tokenizer_round_trip(tokenizer: llmcore.Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_prompts_begin_with_the_begin_of_text_token(tokenizer: llmcore.Tokenizer) -> None:
    plain = tokenizer.encode("The prince", add_special_tokens=False)
    assert tokenizer.encode("The prince") == [tokenizer.bos_id, *plain]


def test_english_costs_few_tokens(tokenizer: llmcore.Tokenizer) -> None:
    text = 'The prince looked at the little princess and said: "My dear, you know that I will come."'
    assert len(tokenizer.encode(text, add_special_tokens=False)) <= len(text) / 3


def test_card_states_the_validation_loss() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"([0-9.]+) nats per byte", card)
    assert stated
    assert 1.0 < float(stated[1]) < 1.3  # below: the text leaked; above: not worth shipping
