"""Configs that can't be: each key missing, of the wrong type or out of range gets an error that names it."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_model

from llmcore.checkpoint.config import Config
from llmcore.errors import CheckpointError, ConfigError, LimitError, LlmcoreError, QuantError, UnsupportedModelError
from llmcore.models.registry import describe, supported

INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
NUMBERS = ("rms_norm_eps", "rope_theta")
REQUIRED = (*(key for key in INTEGERS if key != "num_key_value_heads"), "rms_norm_eps", "hidden_act", "model_type")
WRONG: dict[str, object] = {"string": "8", "list": [8], "bool": True, "null": None, "float": 8.0, "object": {"a": 8}}
FLOAT_TOO_LARGE = "1" + "0" * 309


def describe_text(text: str) -> Any:
    """The spec of a config given as JSON text."""
    from llmcore.checkpoint.strict_json import parse_json

    return describe(Config.of(parse_json(text.encode(), file="config.json"), file="config.json"))[1]


def spec(base: dict[str, Any] = tiny_model.CONFIG, **changes: Any) -> Any:
    """The spec of the tiny config with `changes`; ... removes a key."""
    made = {key: value for key, value in (base | changes).items() if value is not ...}
    return describe_text(json.dumps(made))


def refused(key: str | None = None, error: type[LlmcoreError] = ConfigError, **changes: Any) -> LlmcoreError:
    with pytest.raises(LlmcoreError) as caught:
        spec(**changes)
    assert type(caught.value) is error
    message = str(caught.value)
    assert len(message.encode()) <= 1024
    assert message.isprintable()
    assert message.startswith("config.json: ")
    assert (key or next(iter(changes))) in message
    return caught.value


def test_the_tiny_config_is_good() -> None:
    assert spec().head_dim == 4


@pytest.mark.parametrize("key", [*REQUIRED, "architectures"])
def test_c04_required_key(key: str) -> None:
    caught = refused(**{key: ...})
    assert "required" in str(caught)
    assert isinstance(caught, ConfigError)
    assert caught.field == key


RIGHT = {*((key, "float") for key in NUMBERS), ("num_key_value_heads", "null"), ("tie_word_embeddings", "bool")}
TYPED = (*INTEGERS, *NUMBERS, "hidden_act", "tie_word_embeddings", "model_type")


@pytest.mark.parametrize(("key", "kind"), [(k, w) for k in TYPED for w in WRONG if (k, w) not in RIGHT])
def test_c05_wrong_type(key: str, kind: str) -> None:
    if kind == "string" and key in ("hidden_act", "model_type"):
        refused(error=UnsupportedModelError, **{key: "8"})
    else:
        refused(**{key: WRONG[kind]})


@pytest.mark.parametrize("key", ["head_dim", "attention_bias", "mlp_bias", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("kind", ["string", "list", "float", "object"])
def test_c05_wrong_type_of_optional_keys(key: str, kind: str) -> None:
    refused(**{key: WRONG[kind]})


def test_true_is_not_one() -> None:
    assert "boolean true" in str(refused(num_hidden_layers=True))


@pytest.mark.parametrize("value", [0, -1, 1 << 31, 1 << 63, 10**309])
def test_c06_hidden_size(value: int) -> None:
    refused(hidden_size=value)


def test_c06_number_too_large_for_a_float() -> None:
    with pytest.raises(ConfigError, match="hidden_size"):
        describe_text(json.dumps(tiny_model.CONFIG).replace('"hidden_size": 16', '"hidden_size": 1e309'))
    with pytest.raises(ConfigError, match="rope_theta"):
        describe_text(json.dumps(tiny_model.CONFIG).replace("10000.0", FLOAT_TOO_LARGE))


def test_c07_hidden_size_that_heads_do_not_divide() -> None:
    refused(hidden_size=18)


@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_c08_heads(value: int) -> None:
    refused(num_attention_heads=value)


@pytest.mark.parametrize("value", [0, 5, 3])
def test_c09_kv_heads(value: int) -> None:
    refused(num_key_value_heads=value)


@pytest.mark.parametrize("value", [0, 7, 1, 10**6])
def test_c10_head_dim(value: int) -> None:
    refused(head_dim=value)


def test_c10_odd_head_dim_from_hidden_size() -> None:
    refused("hidden_size", hidden_size=12)


def test_heads_that_are_too_large_by_their_number() -> None:
    refused("hidden_size", hidden_size=4 * 8194)
    refused("n_embd", **{**GPT2, "n_embd": 4 * 8193})


@pytest.mark.parametrize("value", [0, 1, 3, 10_000])
def test_c11_layers_that_the_file_does_not_hold(value: int, tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "m", config={"num_hidden_layers": value})
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        tiny_model.bound(folder)


def test_c11_too_many_layers() -> None:
    refused(num_hidden_layers=10**9)


@pytest.mark.parametrize("value", [0, 1 << 40])
def test_c12_intermediate_size(value: int) -> None:
    refused(intermediate_size=value)


@pytest.mark.parametrize("value", [0, 1 << 31])
def test_c13_vocab_size(value: int) -> None:
    refused(vocab_size=value)


@pytest.mark.parametrize("text", ["0", "-1", "NaN", "1e400", '"10000"'])
def test_c15_rope_theta(text: str) -> None:
    with pytest.raises(ConfigError, match=r"theta|NaN"):
        describe_text(json.dumps(tiny_model.CONFIG).replace("10000.0", text))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("scaling", "error"),
    [
        pytest.param({"rope_type": "evil"}, UnsupportedModelError, id="unknown"),
        pytest.param({"rope_type": "yarn", "factor": 4.0}, UnsupportedModelError, id="yarn"),
        pytest.param({"type": "dynamic", "factor": 4.0}, UnsupportedModelError, id="dynamic"),
        pytest.param({"type": "longrope", "short_factor": [1.0]}, UnsupportedModelError, id="longrope"),
        pytest.param({"rope_type": 3}, ConfigError, id="kind"),
        pytest.param({"rope_type": "linear", "type": "llama3", "factor": 2.0}, ConfigError, id="two types"),
        pytest.param({"rope_type": "linear"}, ConfigError, id="no factor"),
        pytest.param({"rope_type": "linear", "factor": 0}, ConfigError, id="factor 0"),
        pytest.param({"rope_type": "linear", "factor": -1.0}, ConfigError, id="factor -1"),
        pytest.param({"rope_type": "linear", "factor": "2"}, ConfigError, id="factor string"),
        pytest.param(LLAMA3 | {"low_freq_factor": 4.0}, ConfigError, id="low = high"),
        pytest.param(LLAMA3 | {"low_freq_factor": 5.0}, ConfigError, id="low > high"),
        pytest.param({k: v for k, v in LLAMA3.items() if k != "high_freq_factor"}, ConfigError, id="no high"),
        pytest.param(
            {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}, ConfigError, id="no context"
        ),
        pytest.param("linear", ConfigError, id="string"),
        pytest.param([], ConfigError, id="list"),
    ],
)
def test_c16_rope_scaling(place: str, scaling: Any, error: type[LlmcoreError]) -> None:
    refused(error=error, **{place: scaling})


def test_c16_nan_factor() -> None:
    with pytest.raises(ConfigError, match="NaN"):
        describe_text(json.dumps(tiny_model.CONFIG | {"rope_scaling": {"type": "linear", "factor": float("nan")}}))


def test_both_ways_to_write_rope_scaling_agree() -> None:
    old = spec(rope_theta=500000.0, rope_scaling=LLAMA3)
    new = spec(rope_theta=..., rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    legacy = spec(rope_theta=500000.0, rope_scaling={("type" if k == "rope_type" else k): v for k, v in LLAMA3.items()})
    assert old.rope_inv_freq == new.rope_inv_freq == legacy.rope_inv_freq
    assert old.rope_inv_freq != spec(rope_theta=500000.0).rope_inv_freq


def test_rope_written_twice_and_differently() -> None:
    refused("rope_theta", rope_parameters={"rope_theta": 5.0})
    refused("rope_scaling", rope_parameters={"rope_type": "linear", "factor": 2.0}, rope_scaling=LLAMA3)


@pytest.mark.parametrize("value", [0, -1e-5, 1, 1e-60])
def test_c17_norm_eps(value: float) -> None:
    refused(rms_norm_eps=value)


def test_c17_nan_norm_eps() -> None:
    with pytest.raises(ConfigError, match="NaN"):
        describe_text(json.dumps(tiny_model.CONFIG).replace("1e-05", "NaN"))


@pytest.mark.parametrize("value", [0, -1, 10**12])
def test_c18_max_position_embeddings(value: int) -> None:
    refused(max_position_embeddings=value)


MISTRAL = tiny_model.CONFIG | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
QWEN2 = tiny_model.CONFIG | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 32,
    "vocab_size": 19,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
}


@pytest.mark.parametrize("value", [0, -1, 33, "8", True])
def test_c19_sliding_window(value: object) -> None:
    refused("sliding_window", **MISTRAL, sliding_window=value)
    refused("sliding_window", **QWEN2, sliding_window=value, use_sliding_window=True, max_window_layers=0)


def test_mistral_window_when_absent_is_the_class_default() -> None:
    assert spec(MISTRAL).sliding_window is None  # 4096 would be longer than the context
    assert spec(MISTRAL, max_position_embeddings=8192).sliding_window == 4096
    assert spec(MISTRAL, max_position_embeddings=8192, sliding_window=None).sliding_window is None


def test_qwen_window_needs_its_switch() -> None:
    assert spec(QWEN2, sliding_window=8).sliding_window is None
    assert spec(QWEN2, sliding_window=8, use_sliding_window=True).sliding_window is None  # starts at layer 28
    assert spec(QWEN2, sliding_window=8, use_sliding_window=True, max_window_layers=0).sliding_window == 8
    types = ["sliding_attention"] * 2
    assert spec(QWEN2, sliding_window=8, use_sliding_window=True, layer_types=types).sliding_window == 8


def test_c19_layer_types() -> None:
    refused("layer_types", **QWEN2, layer_types=["full_attention"])
    refused("layer_types", **QWEN2, layer_types="full_attention")
    refused("layer_types", UnsupportedModelError, **QWEN2, layer_types=["full_attention", "linear_attention"])
    mixed = ["full_attention", "sliding_attention"]
    found = spec(QWEN2, sliding_window=8, use_sliding_window=True, layer_types=mixed)
    assert (found.sliding_window, found.layer_windows) == (None, (None, 8))


@pytest.mark.parametrize("value", ["tanhshrink", "__import__", "os.system", "transformers.activations.ACT2FN", ""])
def test_c20_hidden_act(value: str) -> None:
    refused(error=UnsupportedModelError, hidden_act=value)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, id="auto_map"),
        pytest.param({"trust_remote_code": True, "auto_map": {"AutoConfig": "evil.Config"}}, id="trust"),
        pytest.param({"_attn_implementation_internal": "evil/repo"}, id="attention"),
        pytest.param({"vision": {"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"}}, id="nested"),
    ],
)
def test_c21_no_code_from_a_model(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "m", config=changes)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    before = set(sys.modules)
    assert len(tiny_model.bound(folder).slots) == 15
    assert not {name for name in set(sys.modules) - before if "evil" in name}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os", "spec", "blocks", "registry", "binding", "../llama", "llama.py", "", "LLAMA"])
def test_model_type_is_only_looked_up(name: str) -> None:
    before = set(sys.modules)
    caught = refused(error=UnsupportedModelError, model_type=name)
    assert "supported: gemma2, gpt2, llama, mistral, phi3, qwen2, qwen3" in str(caught)
    assert set(sys.modules) == before


def test_supported_types() -> None:
    assert supported() == ("gemma2", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3")


@pytest.mark.parametrize("value", [[], ["EvilForCausalLM"], ["LlamaForCausalLM"] * 2, "LlamaForCausalLM", [1], {}])
def test_c22_architectures(value: object) -> None:
    refused(error=UnsupportedModelError, architectures=value)


def test_c22_architecture_of_another_type() -> None:
    refused(error=UnsupportedModelError, architectures=["MistralForCausalLM"])


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("value", ["float33", "", 32])
def test_c23_unknown_dtype(key: str, value: object) -> None:
    refused(**{key: value})


@pytest.mark.parametrize("value", [[2, 19], -1, [-1], [[2]], 19, "2", 2.0, True, [True]])
def test_c24_eos(value: object) -> None:
    refused(eos_token_id=value)


def test_c24_too_many_eos_ids() -> None:
    refused(error=LimitError, eos_token_id=[2] * 100_000)


def test_eos_list_keeps_its_order_without_doubles() -> None:
    assert spec(eos_token_id=[4, 2, 4]).eos_ids == (4, 2)


@pytest.mark.parametrize("key", ["bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [19, 1 << 40, -2])
def test_c25_bos_and_pad(key: str, value: int) -> None:
    refused(**{key: value})


def test_padding_of_minus_one_is_none() -> None:
    assert spec(pad_token_id=-1).pad_id is None


def test_gpt2_default_token_outside_a_small_vocabulary_is_not_set(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llmcore"):
        made = spec(GPT2, bos_token_id=50256, eos_token_id=50256)
    assert (made.bos_id, made.eos_ids) == (None, ())
    assert "bos_token_id is 50256, outside the vocabulary of 19" in caplog.text
    refused("bos_token_id", **GPT2, bos_token_id=50255)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
        {"activation_function": "evil"},
        {"is_encoder_decoder": True},
    ],
)
def test_gpt2_keys_that_change_the_maths(changes: dict[str, Any]) -> None:
    refused(None, UnsupportedModelError, **changes, **{k: v for k, v in GPT2.items() if k not in changes})


def test_gpt2_scores_without_scaling() -> None:
    assert spec(GPT2, scale_attn_weights=False, reorder_and_upcast_attn=True).attention_scale == 1.0
    assert spec(GPT2).attention_scale is None


@pytest.mark.parametrize("key", ["n_embd", "n_head", "n_layer", "n_positions", "vocab_size", "layer_norm_epsilon"])
def test_gpt2_required_keys(key: str) -> None:
    refused(key, **{k: (v if k != key else ...) for k, v in GPT2.items()})


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"num_experts": 0}, ConfigError), ({"num_experts_per_tok": 9, "num_experts": 8}, ConfigError)],
)
def test_c27_experts(changes: dict[str, Any], error: type[LlmcoreError]) -> None:
    refused(error=error, **changes)


def test_experts_in_a_dense_architecture() -> None:
    refused(error=UnsupportedModelError, num_local_experts=8)


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ConfigError), (2, ConfigError), (0.75, ConfigError), (0.5, UnsupportedModelError), ("1", ConfigError)],
)
def test_c29_partial_rotary_factor(value: object, error: type[LlmcoreError]) -> None:
    refused(error=error, partial_rotary_factor=value)


@pytest.mark.parametrize(
    "changes",
    [{"attn_logit_softcapping": 30.0}, {"logit_scale": 0.1}, {"text_config": {}}, {"residual_multiplier": 0.2}],
)
def test_keys_of_other_architectures(changes: dict[str, Any]) -> None:
    refused(error=UnsupportedModelError, **changes)


def test_unknown_keys_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llmcore"):
        spec(attention_dropout=0.1, use_cache=True, brand_new_idea=1)
    assert "brand_new_idea" in caplog.text
    assert "dropout" not in caplog.text


TEXTS: dict[str, tuple[str | bytes, type[LlmcoreError]]] = {
    "empty": ("", ConfigError),
    "not json": ("hidden_size: 4", ConfigError),
    "comment": ('{"a": 1} // x', ConfigError),
    "trailing comma": ('{"a": 1,}', ConfigError),
    "nan": ('{"a": NaN}', ConfigError),
    "bom": (b"\xef\xbb\xbf{}", ConfigError),
    "list": ("[]", ConfigError),
    "depth": ("[" * 100_000, LimitError),
    "keys": ("{" + ",".join(f'"{i}":1' for i in range(300_000)) + "}", LimitError),
    "size": (" " * ((4 << 20) + 1), LimitError),
    "doubled key": ('{"hidden_size": 16, "hidden_size": 32}', ConfigError),
}


@pytest.mark.parametrize("name", TEXTS)
def test_c01_to_c03_text(name: str, tmp_path: Path) -> None:
    text, error = TEXTS[name]
    folder = tiny_model.save(tmp_path / "m", config_text=text)
    with pytest.raises(LlmcoreError) as caught:
        tiny_model.bound(folder)
    assert type(caught.value) is error
    assert "config.json" in str(caught.value)


GENERATION: list[dict[str, Any]] = [
    {"temperature": -1},
    {"temperature": "0.7"},
    {"temperature": True},
    {"top_p": 2},
    {"top_p": -0.1},
    {"min_p": 1.5},
    {"top_k": 1.5},
    {"top_k": -2},
    {"max_length": 10**18},
    {"max_new_tokens": -1},
    {"repetition_penalty": 0},
    {"do_sample": "yes"},
    {"eos_token_id": 19},
    {"eos_token_id": [2, -1]},
    {"bos_token_id": [1]},
    {"pad_token_id": 1 << 40},
]


@pytest.mark.parametrize("values", GENERATION, ids=str)
def test_c28_generation_config(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json: .*" + next(iter(values))):
        tiny_model.bound(tiny_model.save(tmp_path / "m", generation=values))


def test_c28_nan_temperature(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"temperature": NaN}')
    with pytest.raises(ConfigError, match="NaN"):
        tiny_model.bound(folder)


def test_generation_config_ids_go_first(tmp_path: Path) -> None:
    values = {"eos_token_id": [5, 6], "temperature": 0.7, "top_k": None}
    binding = tiny_model.bound(tiny_model.save(tmp_path / "m", generation=values))
    assert binding.spec.eos_ids == (5, 6)
    assert binding.spec.bos_id == 1


W4: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8}


def quantization(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": W4 | weights}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("section", "error"),
    [
        pytest.param(quantization(num_bits=0), QuantError, id="bits 0"),
        pytest.param(quantization(num_bits=3), UnsupportedModelError, id="bits 3"),
        pytest.param(quantization(num_bits=9), QuantError, id="bits 9"),
        pytest.param(quantization(num_bits=64), QuantError, id="bits 64"),
        pytest.param(quantization(group_size=0), QuantError, id="group 0"),
        pytest.param(quantization(group_size=-2), QuantError, id="group -2"),
        pytest.param(quantization(symmetric="true"), QuantError, id="sym string"),
        pytest.param(quantization(type="float"), UnsupportedModelError, id="float"),
        pytest.param(quantization(strategy="block"), UnsupportedModelError, id="block"),
        pytest.param(quantization(actorder="rows"), UnsupportedModelError, id="actorder"),
        pytest.param({"quant_method": "evil"}, UnsupportedModelError, id="unknown method"),
        pytest.param({"quant_method": "gptq", "bits": 5}, UnsupportedModelError, id="gptq"),
        pytest.param({"bits": 4}, QuantError, id="no method"),
        pytest.param(quantization() | {"format": "evil"}, UnsupportedModelError, id="format"),
        pytest.param(quantization() | {"transform_config": {"a": 1}}, UnsupportedModelError, id="transform"),
        pytest.param(quantization() | {"config_groups": {}}, QuantError, id="no groups"),
        pytest.param(quantization() | {"config_groups": []}, QuantError, id="groups list"),
        pytest.param([4], QuantError, id="list"),
        pytest.param("int4", QuantError, id="string"),
    ],
)
def test_c26_quantization_config(section: object, error: type[LlmcoreError], tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "m", config={"quantization_config": section})
    with pytest.raises(LlmcoreError, match="quantization_config") as caught:
        tiny_model.bound(folder)
    assert type(caught.value) is error


def test_error_classes_are_checkpoint_errors() -> None:
    assert issubclass(ConfigError, CheckpointError)
    assert issubclass(QuantError, CheckpointError)
