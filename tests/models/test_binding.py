"""Binding tensors to slots: every tensor in its place, and what is done where config and file differ."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model

import llmcore
from llmcore.checkpoint.compressed_tensors import PackedTensor
from llmcore.checkpoint.readers import open_checkpoint
from llmcore.checkpoint.write import save_json, save_safetensors
from llmcore.errors import ArgumentError, ConfigError, QuantError, UnsupportedModelError
from llmcore.models.binding import bind, num_parameters
from llmcore.packing import Packer
from llmcore.quantization import GROUP_SIZES

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
QUANTIZABLE = sorted(name for name, value in tiny_model.tensors().items() if value.ndim == 2 and "layers" in name)


def changed(**changes: Any) -> dict[str, Any]:
    """The tiny tensors with some replaced (None removes one); `__` stands for a dot."""
    made = tiny_model.tensors() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in made.items() if value is not None}


def test_real_checkpoint_binds(data_dir: Path) -> None:
    with open_checkpoint(data_dir / "models" / "capp-gpt2-hf") as checkpoint:
        binding = bind(checkpoint)
    assert (binding.spec.bos_id, binding.spec.eos_ids, binding.spec.pad_id) == (None, (51,), 52)
    assert num_parameters(binding) == 53 * 64 + 512 * 64 + 4 * (12 * 64 * 64 + 13 * 64) + 2 * 64


@pytest.mark.parametrize("name", sorted(tiny_model.tensors()))
@pytest.mark.parametrize("by", [-1, 1])
def test_c31_shape_off_by_one(name: str, by: int, tmp_path: Path) -> None:
    weights = tiny_model.tensors()
    shape = weights[name].shape
    wrong = (*shape[:-1], shape[-1] + by)
    weights[name] = np.zeros(wrong, np.float32)
    with pytest.raises(ConfigError) as caught:
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))
    assert caught.value.field == name
    assert str(list(wrong)) in str(caught.value)
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize("shape", [(), (0,), (16, 1), (1, 16)])
def test_s39_weights_of_no_or_more_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    weights = changed(model__norm__weight=np.zeros(shape, np.float32))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))


@pytest.mark.parametrize("name", [name for name in sorted(tiny_model.tensors()) if name != HEAD])
def test_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    weights = tiny_model.tensors()
    del weights[name]
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))


def test_left_over_tensor_is_named(tmp_path: Path) -> None:
    weights = changed(model__layers__0__extra__weight=np.zeros(1, np.float32))
    with pytest.raises(ConfigError, match=r"have no place .*: 'model\.layers\.0\.extra\.weight'"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))


def test_buffers_of_old_versions_are_ignored(tmp_path: Path) -> None:
    weights = changed(model__layers__0__self_attn__rotary_emb__inv_freq=np.zeros(2, np.float32))
    assert len(tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights)).slots) == 15


@pytest.mark.parametrize("extra", ["2", "x", "01", "999999999999999999999999", ""])
def test_c11_layer_numbers(extra: str, tmp_path: Path) -> None:
    weights = tiny_model.tensors() | {f"model.layers.{extra}.input_layernorm.weight": np.zeros(16, np.float32)}
    with pytest.raises(ConfigError, match="layer"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))


def test_c13_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="embed_tokens"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", config={"vocab_size": 20}))


def test_c13_padding_rows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    padded = {
        name: np.concatenate([tiny_model.tensors()[name], np.ones((5, 16), np.float32)]) for name in (HEAD, EMBEDDING)
    }
    folder = tiny_model.save(tmp_path / "m", weights=tiny_model.tensors() | padded)
    with caplog.at_level(logging.WARNING, "llmcore"), open_checkpoint(folder) as checkpoint:
        part = bind(checkpoint).slots["embedding"].parts[0]
        assert part.shape == (19, 16)
        assert not isinstance(part, PackedTensor)
        assert np.array_equal(part.read(), tiny_model.tensors()[EMBEDDING])
        with pytest.raises(ArgumentError):
            part.read(0, 20)
    assert "24 rows for a vocabulary of 19" in caplog.text


def test_c14_tied_without_head(tmp_path: Path) -> None:
    folder = tiny_model.save(
        tmp_path / "m", config={"tie_word_embeddings": True}, weights=changed(lm_head__weight=None)
    )
    binding = tiny_model.bound(folder)
    assert binding.spec.tie_word_embeddings
    assert "lm_head" not in binding.slots


def test_c14_tied_with_an_equal_head(tmp_path: Path) -> None:
    weights = changed(lm_head__weight=tiny_model.tensors()[EMBEDDING])
    binding = tiny_model.bound(tiny_model.save(tmp_path / "m", config={"tie_word_embeddings": True}, weights=weights))
    assert binding.spec.tie_word_embeddings
    assert "lm_head" not in binding.slots


def test_c14_tied_with_a_different_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_model.save(tmp_path / "m", config={"tie_word_embeddings": True})
    with caplog.at_level(logging.WARNING, "llmcore"):
        binding = tiny_model.bound(folder)
    assert "used untied" in caplog.text
    assert not binding.spec.tie_word_embeddings
    assert binding.slots["lm_head"].parts[0].shape == (19, 16)


def test_c14_tied_with_the_head_alone(tmp_path: Path) -> None:
    weights = changed(model__embed_tokens__weight=None)
    folder = tiny_model.save(tmp_path / "m", config={"tie_word_embeddings": True}, weights=weights)
    with open_checkpoint(folder) as checkpoint:
        part = bind(checkpoint).slots["embedding"].parts[0]
        assert not isinstance(part, PackedTensor)
        assert np.array_equal(part.read(), weights[HEAD])


def test_c14_untied_without_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing: 'lm_head\.weight'"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=changed(lm_head__weight=None)))


BIASES = {
    f"model.layers.{i}.self_attn.{name}_proj.bias": np.zeros(n, np.float32)
    for i in range(2)
    for name, n in (("q", 16), ("k", 8), ("v", 8), ("o", 16))
}


def test_c30_biases(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 tensors are missing: .*bias"):
        tiny_model.bound(tiny_model.save(tmp_path / "a", config={"attention_bias": True}))
    with pytest.raises(ConfigError, match=r"8 tensors have no place .*bias"):
        tiny_model.bound(tiny_model.save(tmp_path / "b", weights=tiny_model.tensors() | BIASES))
    both = tiny_model.save(tmp_path / "c", config={"attention_bias": True}, weights=tiny_model.tensors() | BIASES)
    assert [part.shape for part in tiny_model.bound(both).slots["layers.1.qkv_bias"].parts] == [(16,), (8,), (8,)]


def test_names_without_the_base_prefix(tmp_path: Path) -> None:
    weights = {name.removeprefix("model."): value for name, value in tiny_model.tensors().items()}
    binding = tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))
    assert binding.slots["layers.0.qkv"].parts[0].shape == (16, 16)


def test_names_with_and_without_the_prefix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no place .*'norm\.weight'"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=changed(norm__weight=np.zeros(16, np.float32))))


def test_c23_tensors_win_over_the_declared_dtype(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_model.save(tmp_path / "m", config={"torch_dtype": "bfloat16"})
    with caplog.at_level(logging.WARNING, "llmcore"):
        assert tiny_model.bound(folder).slots["final_norm"].parts[0].dtype == "F32"
    assert "torch_dtype says BF16, the tensors are ['F32']" in caplog.text


@pytest.mark.parametrize("kind", ["<f8", "i1", "<i4", "?"])
def test_weights_of_other_types(kind: str, tmp_path: Path) -> None:
    weights = changed(model__norm__weight=np.zeros(16, kind))
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))


def test_bfloat16_comes_as_bits(tmp_path: Path) -> None:
    bits = np.arange(16, dtype=np.uint16)
    folder = tiny_model.save(tmp_path / "m", weights=changed(model__norm__weight=("BF16", (16,), bits.tobytes())))
    with open_checkpoint(folder) as checkpoint:
        part = bind(checkpoint).slots["final_norm"].parts[0]
        assert not isinstance(part, PackedTensor)
        assert part.dtype == "BF16"
        assert np.array_equal(part.read(), bits)


# compressed-tensors


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32 words [N, ceil(K * bits / 32)] of the codes as one stream of bits per row, by integer arithmetic."""
    rows = []
    words = -(-codes.shape[1] * bits // 32)
    for row in codes.tolist():
        stream = sum((code + (1 << (bits - 1))) << (bits * k) for k, code in enumerate(row))
        rows.append([(stream >> (32 * word)) & 0xFFFFFFFF for word in range(words)])
    return np.array(rows, np.uint32).view(np.int32)


@pytest.fixture(autouse=True)
def _groups_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's rows are too short for several groups of those that can be run."""
    monkeypatch.setattr("llmcore.models.binding.GROUP_SIZES", (*GROUP_SIZES, 8))


def quantized(
    folder: Path, *, bits: int, group_size: int | None, form: str, scale: str = "<f4", symmetric: bool = True
) -> dict[str, Any]:
    """Saves the tiny model with its layers quantised; gives codes, scales and zero points by module."""
    random = np.random.default_rng(3)
    weights: dict[str, Any] = tiny_model.tensors()
    truth: dict[str, Any] = {}
    for name in QUANTIZABLE:
        rows, columns = weights.pop(name).shape
        module = name.removesuffix(".weight")
        codes = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, columns)).astype(np.int8)
        scales = random.standard_normal((rows, columns // (group_size or columns))).astype(scale)
        zeros = np.zeros(scales.shape, np.int8)
        if not symmetric:
            zeros = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), scales.shape).astype(np.int8)
            packed = form == "pack-quantized"
            weights[module + ".weight_zero_point"] = pack(zeros.T, bits).T.copy() if packed else zeros
        truth[module] = codes, scales, zeros
        weights[module + ".weight_scale"] = scales
        if form == "int-quantized":
            weights[module + ".weight"] = codes
        else:
            weights[module + ".weight_packed"] = pack(codes, bits)
            weights[module + ".weight_shape"] = np.array([rows, columns])
    strategy: dict[str, Any] = (
        {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    )
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, **strategy},
        "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        if form == "int-quantized"
        else None,
    }
    section = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    tiny_model.save(folder, config={"quantization_config": section}, weights=weights)
    save_json(folder / "section.json", section)
    return truth


FORMS = [
    pytest.param(8, None, "int-quantized", id="w8a8"),
    pytest.param(8, None, "pack-quantized", id="packed8"),
    pytest.param(8, 8, "pack-quantized", id="packed8-groups"),
    pytest.param(4, 8, "pack-quantized", id="packed4-groups"),
    pytest.param(4, None, "pack-quantized", id="packed4"),
]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size", "form"), FORMS)
def test_quantised_weights_are_read_without_loss(
    bits: int, group_size: int | None, form: str, symmetric: bool, tmp_path: Path
) -> None:
    truth = quantized(tmp_path / "m", bits=bits, group_size=group_size, form=form, symmetric=symmetric)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        binding = bind(checkpoint)
        seen = set()
        for slot in binding.slots.values():
            for part in slot.parts:
                if isinstance(part, PackedTensor):
                    codes, scales, zeros = truth[part.module]
                    assert part.has_zero_points == (not symmetric)
                    assert np.array_equal(part.zero_points(), zeros)
                    assert np.array_equal(part.zero_points(3, 5), zeros[3:5])
                    assert np.array_equal(part.codes(), codes)
                    assert part.codes().dtype == np.int8
                    assert np.array_equal(part.scales(), scales)
                    assert np.array_equal(part.codes(3, 5), codes[3:5])
                    assert part.num_groups == scales.shape[1]
                    assert part.dynamic_activations == (form == "int-quantized")
                    seen.add(part.module)
        assert seen == set(truth)


GROUPS = np.arange(16) // 8


def test_groups_of_columns_that_are_not_side_by_side(tmp_path: Path) -> None:
    """actorder: a g_idx names each column's group; all -1 stand for none. Parts of the same order are one matrix."""
    truth = quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    index = np.random.default_rng(5).permutation(np.arange(16) // 8).astype(np.int32)
    for value, order in ((index, np.argsort(index, kind="stable")), (np.full(16, -1), None), (GROUPS, None)):
        spoil(tmp_path / "m", Q + ".weight_g_idx", value.astype(np.int32))
        with open_checkpoint(tmp_path / "m") as checkpoint:
            part = bind(checkpoint).slots["layers.0.qkv"].parts[0]
            assert isinstance(part, PackedTensor)
            assert np.array_equal(part.order(), order) if order is not None else part.order() is None
            assert np.array_equal(part.codes(3, 5), truth[Q][0][3:5, order if order is not None else slice(None)])
    uneven = np.where(np.arange(16) < 9, 0, 1).astype(np.int32)
    for value, matrices in ((index, 2), (np.arange(16) // 8, 1), (uneven, 0)):
        spoil(tmp_path / "m", Q + ".weight_g_idx", value.astype(np.int32))
        with open_checkpoint(tmp_path / "m") as checkpoint:
            packer = Packer(bind(checkpoint), None, None, True)
            slot = packer.binding.slots["layers.0.qkv"]
            if matrices:
                assert len(packer.formats(slot)) == matrices
                continue
            with pytest.raises(QuantError, match="sizes"):
                packer.formats(slot)


@pytest.mark.parametrize("index", [np.where(GROUPS == 1, -1, 0), np.where(np.arange(16) == 3, -1, GROUPS), GROUPS + 1])
def test_an_order_that_names_no_group_is_refused(index: np.ndarray, tmp_path: Path) -> None:
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    spoil(tmp_path / "m", Q + ".weight_g_idx", index.astype(np.int32))
    with open_checkpoint(tmp_path / "m") as checkpoint:
        packer = Packer(bind(checkpoint), None, None, True)
        with pytest.raises(QuantError, match="not there") as caught:
            packer.formats(packer.binding.slots["layers.0.qkv"])
    assert (caught.value.file, caught.value.field) == (str(tmp_path / "m"), Q + ".weight_g_idx")


@pytest.mark.parametrize("actorder", ["group", True, "static", "weight", None])
def test_an_order_that_is_declared_must_be_there(actorder: str | bool | None, tmp_path: Path) -> None:
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    weights = {"num_bits": 4, "strategy": "group", "group_size": 8, "actorder": actorder}
    spoil(tmp_path / "m", "x", None, config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})
    if actorder not in ("group", True):
        assert tiny_model.bound(tmp_path / "m").scheme is not None
        return
    with pytest.raises(QuantError, match=r"missing.*q_proj\.weight_g_idx"):
        tiny_model.bound(tmp_path / "m")


def test_groups_that_no_kernel_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    for use in (lambda: llmcore.load(tmp_path / "m", progress=False), lambda: llmcore.plan(tmp_path / "m")):
        with pytest.raises(UnsupportedModelError, match=r"/m: groups of 8 in .*supported: 16, 32, 64, 128"):
            use()


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 33])
def test_rows_that_do_not_fill_their_words(columns: int, tmp_path: Path) -> None:
    from llmcore.checkpoint.compressed_tensors import Scheme, packed_tensor
    from llmcore.checkpoint.safetensors import SafetensorsFile

    codes = np.random.default_rng(columns).integers(-8, 8, (3, columns)).astype(np.int8)
    scales = np.ones((3, 1), np.float32)
    tensors = {"x.weight_packed": pack(codes, 4), "x.weight_scale": scales, "x.weight_shape": np.array([3, columns])}
    save_safetensors(tmp_path / "x.safetensors", tensors)
    scheme = Scheme(format="pack-quantized", bits=4, group_size=None, dynamic_activations=False, ignore=())
    with SafetensorsFile.open(tmp_path / "x.safetensors") as file:
        assert np.array_equal(packed_tensor("x", (3, columns), scheme, file).codes(), codes)


@pytest.mark.parametrize("scale", ["F16", "BF16"])
def test_scales_are_widened_exactly(scale: str, tmp_path: Path) -> None:
    from llmcore.checkpoint.compressed_tensors import Scheme, packed_tensor
    from llmcore.checkpoint.safetensors import SafetensorsFile

    bits = np.random.default_rng(0).integers(0, 0x7C00, (300, 1)).astype(np.uint16)
    tensors: dict[str, Any] = {
        "x.weight": np.zeros((300, 4), np.int8),
        "x.weight_scale": (scale, (300, 1), bits.tobytes()),
    }
    save_safetensors(tmp_path / "x.safetensors", tensors)
    expected = bits.view(np.float16).astype(np.float32)
    if scale == "BF16":
        expected = np.stack([np.zeros_like(bits), bits], -1).view(np.float32)[..., 0]
    scheme = Scheme(format="int-quantized", bits=8, group_size=None, dynamic_activations=True, ignore=())
    with SafetensorsFile.open(tmp_path / "x.safetensors") as file:
        assert np.array_equal(packed_tensor("x", (300, 4), scheme, file).scales(), expected)


def spoil(folder: Path, name: str, value: Any, **section: Any) -> None:
    """Replaces a tensor of a saved model (None removes it) and keys of its quantization_config."""
    import json

    with open_checkpoint(folder) as checkpoint:
        weights: dict[str, Any] = {key: checkpoint.read(key) for key in checkpoint.tensors}
        config = dict(checkpoint.config.values)
    weights[name] = value
    made = json.loads((folder / "section.json").read_text()) | section
    kept = {key: kept for key, kept in weights.items() if kept is not None}
    tiny_model.save(folder, config=config | {"quantization_config": made}, weights=kept)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        pytest.param(Q + ".weight_packed", np.zeros((16, 3), np.int32), "wrong shape", id="width"),
        pytest.param(Q + ".weight_packed", np.zeros((15, 2), np.int32), "wrong shape", id="rows"),
        pytest.param(Q + ".weight_packed", np.zeros((16, 2), np.uint32), "wrong dtype", id="dtype"),
        pytest.param(Q + ".weight_packed", None, "missing", id="no codes"),
        pytest.param(Q + ".weight_scale", np.zeros((16, 1), np.float32), "wrong shape", id="groups"),
        pytest.param(Q + ".weight_scale", np.zeros((16, 2), np.int8), "wrong dtype", id="scale dtype"),
        pytest.param(Q + ".weight_scale", None, "missing", id="no scales"),
        pytest.param(Q + ".weight_g_idx", np.zeros(15, np.int32), "wrong shape", id="order"),
        pytest.param(Q + ".weight_shape", np.array([16, 15]), "does not fit", id="shape"),
        pytest.param(Q + ".weight_shape", None, "missing", id="no shape"),
    ],
)
def test_q01_quantised_tensors_that_do_not_fit(name: str, value: Any, match: str, tmp_path: Path) -> None:
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    spoil(tmp_path / "m", name, value)
    with pytest.raises(QuantError, match=match):
        tiny_model.bound(tmp_path / "m")


@pytest.mark.parametrize("group_size", [7, 32])
def test_c26_group_size_that_does_not_divide(group_size: int, tmp_path: Path) -> None:
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    spoil(tmp_path / "m", "x", None, config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})
    with pytest.raises(QuantError, match="divide"):
        tiny_model.bound(tmp_path / "m")


def test_ignored_module_that_is_quantised(tmp_path: Path) -> None:
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    spoil(tmp_path / "m", "x", None, ignore=[Q])
    with pytest.raises(QuantError, match="ignore"):
        tiny_model.bound(tmp_path / "m")


def test_quantised_tensors_without_a_declaration(tmp_path: Path) -> None:
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        weights = {key: checkpoint.read(key) for key in checkpoint.tensors}
    with pytest.raises(QuantError, match="no quantization_config"):
        tiny_model.bound(tiny_model.save(tmp_path / "m", weights=weights))


def test_part_of_a_slot_quantised(tmp_path: Path) -> None:
    truth = quantized(tmp_path / "m", bits=8, group_size=None, form="int-quantized")
    spoil(tmp_path / "m", Q + ".weight_scale", None)
    assert Q in truth
    with pytest.raises(ConfigError, match="not quantised, other parts"):
        tiny_model.bound(tmp_path / "m")


def test_groups_that_differ(tmp_path: Path) -> None:
    quantized(tmp_path / "m", bits=4, group_size=8, form="pack-quantized")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        section: Any = checkpoint.config.get("quantization_config")
    group = section["config_groups"]["group_0"]
    other = group | {"weights": group["weights"] | {"num_bits": 8}}
    spoil(tmp_path / "m", "x", None, config_groups={"group_0": group, "group_1": other})
    with pytest.raises(UnsupportedModelError, match="groups that differ"):
        tiny_model.bound(tmp_path / "m")
