"""Models in .gguf files: the same bits as the checkpoint they were made from, in every type; broken files are refused.

The catalogue of broken files: section G.
"""

from __future__ import annotations

import json
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmcore
from llmcore import (
    CheckpointError,
    ConfigError,
    GGUFError,
    LlmcoreError,
    SamplingParams,
    TokenizerError,
    UnsupportedModelError,
    _core,
)
from llmcore.checkpoint.files import PlainFile
from llmcore.checkpoint.gguf import TENSOR_TYPES, read_header, read_metadata
from llmcore.checkpoint.readers import open_checkpoint
from llmcore.checkpoint.write import save_json, save_safetensors

sys.path.append(str(Path(__file__).resolve().parents[1]))
import gguf_files as g  # isort: skip

HIDDEN, HEADS, KV_HEADS, MLP, LAYERS, VOCAB = 256, 4, 2, 512, 2, 300
WIDTH = HIDDEN // HEADS
IDS = [3, 200, 17, 5, 5, 90, 299]
Q = "model.layers.0.self_attn.q_proj.weight"


def write_llama(folder: Path, **config: object) -> None:
    rng = np.random.default_rng(7)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    tensors = {"model.embed_tokens.weight": drawn(VOCAB, HIDDEN), "lm_head.weight": drawn(VOCAB, HIDDEN)}
    tensors["model.norm.weight"] = 1 + drawn(HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, rows, columns in (
            *(("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", KV_HEADS * WIDTH, HIDDEN)),
            *(("self_attn.v_proj", KV_HEADS * WIDTH, HIDDEN), ("self_attn.o_proj", HIDDEN, HIDDEN)),
            *(("mlp.gate_proj", MLP, HIDDEN), ("mlp.up_proj", MLP, HIDDEN), ("mlp.down_proj", HIDDEN, MLP)),
        ):
            tensors[f"{at}{name}.weight"] = drawn(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = 1 + drawn(HIDDEN)
    if config.get("tie_word_embeddings"):
        del tensors["lm_head.weight"]
    save_safetensors(folder / "model.safetensors", tensors)
    own = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "rms_norm_eps": 2.0**-17,
        "hidden_act": "silu",
        "bos_token_id": VOCAB - 2,
        "eos_token_id": VOCAB - 1,
    }
    save_json(folder / "config.json", own | config)


def write_gemma(folder: Path) -> None:
    """Of the same sizes; norms are multiples of 1/64 from -1/4 to 1/4."""
    write_llama(folder, tie_word_embeddings=True)
    own = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"}
    own |= {"head_dim": WIDTH, "query_pre_attn_scalar": WIDTH, "sliding_window": 16, "tie_word_embeddings": True}
    own |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_act"]
    save_json(folder / "config.json", config | own)
    rng = np.random.default_rng(8)
    with open_checkpoint(folder) as checkpoint:
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    for layer in range(LAYERS):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.empty(HIDDEN, np.float32)
    for name in [name for name in tensors if "norm" in name]:
        tensors[name] = (rng.integers(-16, 17, HIDDEN) / 64).astype(np.float32)
    save_safetensors(folder / "model.safetensors", tensors)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


def write(folder: Path, metadata: dict[str, g.Value], tensors: dict[str, g.Tensor], **options: Any) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(g.build(metadata, tensors, **options))
    return path


def logits(path: Path, **options: Any) -> np.ndarray:
    with llmcore.load(path, progress=False, **options) as model:
        return np.asarray(model.forward(IDS, kv_dtype="f32"))


def halves(kind: str) -> g.Encode:
    def encode(name: str, values: np.ndarray) -> tuple[str, bytes]:
        if kind == "F16":
            return "F16", values.astype(np.float16).tobytes()
        return "BF16", (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()

    return encode


@pytest.mark.parametrize(
    "config",
    [{}, {"tie_word_embeddings": True}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}],
    ids=["plain", "tied", "linear"],
)
def test_bits_are_those_of_the_checkpoint(config: dict[str, object], tmp_path: Path) -> None:
    write_llama(tmp_path, **config)
    path = write(tmp_path, *g.converted(tmp_path))
    assert (logits(path) == logits(tmp_path)).all()
    assert (logits(path, quantize="int4") == logits(tmp_path, quantize="int4")).all()
    with open_checkpoint(path) as ours, open_checkpoint(tmp_path) as theirs:
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, info in ours.tensors.items():
            assert (info.dtype, info.shape) == (theirs.tensors[name].dtype, theirs.tensors[name].shape)
            assert (ours.read(name) == theirs.read(name)).all()
            rows = info.shape[0]
            for start, stop in ((0, 0), (1, rows), (WIDTH - 3, WIDTH + 5), (rows - 1, rows)):
                assert (ours.read_rows(name, start, stop) == theirs.read_rows(name, start, stop)).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_norms_of_gemma_are_those_of_the_checkpoint(kind: str, tmp_path: Path) -> None:
    """The converter adds 1 to them; ours are such that no type of the file rounds the sums."""
    write_gemma(tmp_path)
    metadata, tensors = g.converted(tmp_path)
    for name, (_, shape, body) in tensors.items():
        if "norm" in name and kind != "F32":
            tensors[name] = (kind, shape, halves(kind)(name, np.frombuffer(body, np.float32))[1])
    path = write(tmp_path, metadata, tensors)
    assert (logits(path) == logits(tmp_path)).all()
    with open_checkpoint(path) as ours, open_checkpoint(tmp_path) as theirs:
        for name in [name for name in ours.tensors if "norm." in name]:
            assert ours.tensors[name].nbytes == theirs.tensors[name].nbytes
            assert (ours.read_rows(name, 1, 5) == theirs.read_rows(name, 1, 5)).all()


LINEAR: dict[str, tuple[dict[str, g.Value], float]] = {
    "no type": ({"rope.scaling.factor": ("f32", 4.0)}, 4.0),
    "linear": ({"rope.scaling.type": ("str", "linear"), "rope.scaling.factor": ("f64", 4.0)}, 4.0),
    "old name": ({"rope.scale_linear": ("f32", 4.0)}, 4.0),
    "both names": ({"rope.scaling.factor": ("f32", 4.0), "rope.scale_linear": ("f32", 8.0)}, 4.0),
    "none": ({"rope.scaling.type": ("str", "none"), "rope.scaling.factor": ("f32", 4.0)}, 1.0),
    "zero": ({"rope.scaling.type": ("str", "linear"), "rope.scaling.factor": ("f32", 0.0)}, 1.0),
    "one": ({"rope.scale_linear": ("f32", 1.0)}, 1.0),
}


@pytest.mark.parametrize("name", LINEAR)
def test_frequencies_are_scaled_as_llama_cpp_does(name: str, llama: Path, tmp_path: Path) -> None:
    fields, factor = LINEAR[name]
    metadata, tensors = g.converted(llama)
    path = write(tmp_path, metadata | {f"llama.{key}": value for key, value in fields.items()}, tensors)
    with open_checkpoint(path) as scaled, open_checkpoint(llama) as plain:
        got, wanted = (llmcore.models.binding.bind(each).spec.rope_inv_freq for each in (scaled, plain))
    assert np.array_equal(got, np.array(wanted, np.float32) / np.float32(factor))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_numbers_of_heads_may_be_said_for_each_layer(kind: str, tmp_path: Path) -> None:
    (write_gemma if kind == "gemma2" else write_llama)(tmp_path)
    metadata, tensors = g.converted(tmp_path)
    expected = logits(write(tmp_path, metadata, tensors))
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        metadata[f"{kind}.{key}"] = ("[u32]", [metadata[f"{kind}.{key}"][1]] * LAYERS)
    del metadata[f"{kind}.attention.key_length"], metadata[f"{kind}.attention.value_length"]
    assert (logits(write(tmp_path, metadata, tensors)) == expected).all()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_kept(kind: str, llama: Path, tmp_path: Path) -> None:
    metadata, tensors = g.converted(llama, halves(kind))
    path = write(tmp_path, metadata, tensors, version=2)
    with llmcore.load(path, progress=False) as model:
        matrices = sum(8 * len(body) // 8 for form, _, body in tensors.values() if form == kind)
        assert 0 <= model.memory_usage()["weights"] - matrices < 64 * HIDDEN
    same = {"dtype": "float16"} if kind == "F16" else {}
    if kind == "F16":
        assert (logits(path) == logits(llama, **same)).all()


def test_a_divisor_for_each_frequency(llama: Path, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    write_llama(tmp_path, rope_scaling=scaling | {"original_max_position_embeddings": 64})
    metadata, tensors = g.converted(tmp_path)
    plain = 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    wavelength = 2 * np.pi / plain
    smooth = (64 / wavelength - 1) / 3
    factors = np.where(wavelength < 16, 1, np.where(wavelength > 64, 8, 1 / ((1 - smooth) / 8 + smooth)))
    tensors["rope_freqs.weight"] = ("F32", (WIDTH // 2,), factors.astype(np.float32).tobytes())
    path = write(tmp_path, metadata, tensors)
    ours, theirs = logits(path), logits(tmp_path)
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    assert np.linalg.norm(logits(llama) - theirs) > 1e-3 * np.linalg.norm(theirs)
    for bad in (
        ("F32", (3,), bytes(12)),
        ("F16", (WIDTH // 2,), bytes(WIDTH)),
        ("F32", (WIDTH // 2,), bytes(2 * WIDTH)),
    ):
        with pytest.raises(ConfigError):
            llmcore.load(write(tmp_path, metadata, tensors | {"rope_freqs.weight": bad}), progress=False)


def quantised(
    llama: Path, kinds: Callable[[str], str]
) -> tuple[dict[str, g.Value], dict[str, g.Tensor], dict[str, np.ndarray]]:
    """A file whose matrices are blocks of random bits, and what they stand for, as native matrices have it."""
    rng = np.random.default_rng(3)
    truth: dict[str, np.ndarray] = {}

    def encode(name: str, values: np.ndarray) -> tuple[str, bytes]:
        kind = kinds(name)
        rows, columns = values.shape
        if kind == "F16":
            truth[name] = values.astype(np.float16).astype(np.float32)
            return kind, values.astype(np.float16).tobytes()
        body = g.random_blocks(kind, rows, columns, rng, columns**-0.5)
        weights, size, home = _core.block_types()[kind]
        matrix = _core.Matrix(N=rows, K=columns, **home)
        matrix.set_blocks(0, np.frombuffer(body, np.uint8).reshape(rows, columns // weights * size), kind)
        truth[name] = matrix.dequantize()
        return kind, body

    metadata, tensors = g.converted(llama, encode)
    for name in truth:
        if "q_proj" in name or "k_proj" in name:  # the file's rows are in the converter's order
            rows = truth[name].reshape(-1, WIDTH // 2, 2, HIDDEN).swapaxes(1, 2)
            truth[name] = rows.reshape(truth[name].shape)
    return metadata, tensors, truth


MIXES: dict[str, Callable[[str], str]] = {kind: (lambda name, kind=kind: kind) for kind in g.BLOCKS}  # type: ignore[misc]
MIXES["like Q4_K_M"] = lambda name: "Q6_K" if "v_proj" in name or "down" in name or "lm_head" in name else "Q4_K"
MIXES["with floats"] = lambda name: {"q_proj": "Q5_0", "k_proj": "F16", "v_proj": "Q8_0"}.get(
    name.split(".")[-2], "Q3_K"
)


@pytest.mark.parametrize("mix", MIXES)
def test_quantised_weights_keep_their_values(mix: str, llama: Path, tmp_path: Path) -> None:
    metadata, tensors, truth = quantised(llama, MIXES[mix])
    path = write(tmp_path, metadata, tensors)
    got = logits(path)
    with open_checkpoint(llama) as checkpoint:
        dense = {name: checkpoint.read(name) for name in checkpoint.tensors} | truth
    (tmp_path / "dense").mkdir()
    save_json(tmp_path / "dense" / "config.json", json.loads((llama / "config.json").read_text()))
    save_safetensors(tmp_path / "dense" / "model.safetensors", dense)
    wanted = logits(tmp_path / "dense")
    assert np.linalg.norm(got - wanted) < 0.03 * np.linalg.norm(wanted)  # activations are int8
    with llmcore.load(path, progress=False) as model:
        assert llmcore.plan(path, max_model_len=16).weights == model.memory_usage()["weights"]
        model.save(tmp_path / "packed")
    assert (logits(tmp_path / "packed") == got).all()


def test_text_goes_in_and_out_and_is_kept_by_packing(llama: Path, tmp_path: Path) -> None:
    metadata, tensors = g.converted(llama)
    more: dict[str, g.Value] = {"general.sampling.temp": ("f32", 0.5), "general.sampling.top_k": ("i32", 7)}
    path = write(tmp_path, metadata | g.vocabulary(VOCAB) | more, tensors)
    params = SamplingParams(seed=1, max_tokens=12)
    with llmcore.LLM(str(path), progress=False) as llm:
        expected = llm.generate("word", params)[0]
        assert llm.model.generation_config == {"temperature": 0.5, "top_k": 7, "do_sample": True}
        assert (llm.model.spec.bos_id, llm.model.spec.eos_ids) == (VOCAB - 2, (VOCAB - 1,))
        llm.model.save(tmp_path / "packed")
    with llmcore.LLM(str(tmp_path / "packed"), progress=False) as llm:
        assert llm.generate("word", params)[0].token_ids == expected.token_ids
        assert llm.model.require_tokenizer().encode("word") == [VOCAB - 2, *b"word"]


def test_without_a_vocabulary_token_ids_work(llama: Path, tmp_path: Path) -> None:
    with llmcore.load(write(tmp_path, *g.converted(llama)), progress=False) as model:
        assert model.tokenizer is None


def test_parts(llama: Path, tmp_path: Path) -> None:
    metadata, tensors = g.converted(llama)
    names = list(tensors)
    halves = ({n: tensors[n] for n in names[:9]}, {n: tensors[n] for n in names[9:]})

    def write_parts(first: dict[str, g.Value], second: dict[str, g.Value]) -> Path:
        both: dict[str, g.Value] = {"split.count": ("u16", 2), "split.tensors.count": ("i32", len(names))}
        for i, (own, part) in enumerate(zip((first, second), halves, strict=True)):
            head = (metadata if i == 0 else {}) | both | {"split.no": ("u16", i)} | own
            (tmp_path / f"m-{i + 1:05}-of-00002.gguf").write_bytes(g.build(head, part))
        return tmp_path / "m-00001-of-00002.gguf"

    path = write_parts({}, {})
    assert (logits(path) == logits(llama)).all()
    with pytest.raises(GGUFError, match="load the first"):
        llmcore.load(tmp_path / "m-00002-of-00002.gguf", progress=False)
    broken: list[tuple[dict[str, g.Value], dict[str, g.Value]]] = [
        ({}, {"split.no": ("u16", 0)}),
        ({}, {"split.count": ("u16", 3)}),
        ({"split.count": ("u16", 0)}, {}),
        ({"split.count": ("u16", 65535)}, {}),
        ({"split.no": ("u16", 2)}, {}),
        ({"split.tensors.count": ("i32", 1)}, {}),
        ({"split.count": ("str", "2")}, {}),
        ({}, {"split.no": ("[u16]", [1, 1])}),
        ({"split.tensors.count": ("[i32]", [1, 2])}, {}),
    ]
    for first, second in broken:
        with pytest.raises(GGUFError):
            llmcore.load(write_parts(first, second), progress=False)
    write_parts({}, {})
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(LlmcoreError, match="00002"):
        llmcore.load(path, progress=False)


def test_a_folder_of_one_model_is_that_model(llama: Path, tmp_path: Path) -> None:
    metadata, tensors = g.converted(llama)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = write(folder, metadata, tensors)
    assert (logits(folder) == logits(path)).all()
    path.rename(folder / "m-00001-of-00002.gguf")
    (folder / "m-00002-of-00002.gguf").write_bytes(b"")
    (folder / "other.gguf").write_bytes(b"")
    assert "m-00001-of-00002.gguf" in refused(folder, CheckpointError)


def test_header_is_the_gguf_packages(llama: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    kinds = iter([*g.BLOCKS] * 2)
    metadata, tensors, _ = quantised(llama, lambda name: next(kinds, "Q4_0"))
    path = write(tmp_path, metadata | {"general.alignment": ("u32", 64)}, tensors, alignment=64)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    with PlainFile(path) as file:
        ours = read_header(file).tensors
    assert ours.keys() == theirs.keys()
    for name, info in ours.items():
        other = theirs[name]
        assert (info.offset, info.nbytes, info.dtype) == (other.data_offset, other.n_bytes, other.tensor_type.name)
        assert list(reversed(info.shape)) == other.shape.tolist()
    for number, (name, weights, nbytes) in TENSOR_TYPES.items():
        known = {kind.value: kind for kind in gguf.GGMLQuantizationType}.get(number)
        if known is not None and name != "Q8_1":
            assert (known.name, gguf.GGML_QUANT_SIZES[known]) == (name, (weights, nbytes))
        if name in _core.block_types():
            assert _core.block_types()[name][:2] == (weights, nbytes)


# --- broken files -----------------------------------------------------------------------------------------------------


def refused(path: Path, *errors: type[Exception]) -> str:
    with pytest.raises(errors or LlmcoreError) as caught:
        llmcore.load(path, progress=False).close()
    assert isinstance(caught.value, LlmcoreError)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


WRONG: dict[str, tuple[dict[str, g.Value | None], type[LlmcoreError]]] = {
    "no architecture": ({"general.architecture": None}, GGUFError),
    "architecture is a number": ({"general.architecture": ("u32", 1)}, GGUFError),
    "architecture with a NUL": ({"general.architecture": ("str", "llama\0x")}, UnsupportedModelError),
    "unknown architecture": ({"general.architecture": ("str", "rwkv7")}, UnsupportedModelError),
    "adapter": ({"general.type": ("str", "adapter")}, UnsupportedModelError),
    "no layers": ({"llama.block_count": ("u32", 0)}, ConfigError),
    "more layers": ({"llama.block_count": ("u32", 513)}, ConfigError),
    "vast layers": ({"llama.block_count": ("u32", 2**32 - 1)}, ConfigError),
    "no heads": ({"llama.attention.head_count": ("u32", 0)}, ConfigError),
    "many kv heads": ({"llama.attention.head_count_kv": ("u32", 8)}, ConfigError),
    "kv heads that don't divide": ({"llama.attention.head_count_kv": ("u32", 3)}, ConfigError),
    "kv heads of three layers": ({"llama.attention.head_count_kv": ("[u32]", [2, 2, 2])}, ConfigError),
    "kv heads that differ": ({"llama.attention.head_count_kv": ("[u32]", [2, 1])}, UnsupportedModelError),
    "no width": ({"llama.embedding_length": ("u32", 0)}, ConfigError),
    "width of one": ({"llama.embedding_length": ("u32", 1)}, ConfigError),
    "another width": ({"llama.embedding_length": ("u32", 128)}, ConfigError),
    "missing width": ({"llama.embedding_length": None}, ConfigError),
    "odd rotation": ({"llama.rope.dimension_count": ("u32", 33)}, ConfigError),
    "no rotation": ({"llama.rope.dimension_count": ("u32", 0)}, ConfigError),
    "wide rotation": ({"llama.rope.dimension_count": ("u32", 128)}, ConfigError),
    "partial rotation": ({"llama.rope.dimension_count": ("u32", 32)}, UnsupportedModelError),
    "no frequency": ({"llama.rope.freq_base": ("f32", 0.0)}, ConfigError),
    "NaN frequency": ({"llama.rope.freq_base": ("f32", float("nan"))}, ConfigError),
    "negative frequency": ({"llama.rope.freq_base": ("f32", -1.0)}, ConfigError),
    "infinite frequency": ({"llama.rope.freq_base": ("f32", float("inf"))}, ConfigError),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": ("f32", 0.0)}, ConfigError),
    "NaN epsilon": ({"llama.attention.layer_norm_rms_epsilon": ("f32", float("nan"))}, ConfigError),
    "negative epsilon": ({"llama.attention.layer_norm_rms_epsilon": ("f32", -1.0)}, ConfigError),
    "vast epsilon": ({"llama.attention.layer_norm_rms_epsilon": ("f32", 1e30)}, ConfigError),
    "missing epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, ConfigError),
    "no context": ({"llama.context_length": ("u32", 0)}, ConfigError),
    "width as a float": ({"llama.embedding_length": ("f32", 256.0)}, ConfigError),
    "width as a text": ({"llama.embedding_length": ("str", "256")}, ConfigError),
    "negative width": ({"llama.embedding_length": ("i64", -256)}, ConfigError),
    "experts": ({"llama.expert_count": ("u32", 8)}, UnsupportedModelError),
    "scaling as a number": ({"llama.rope.scaling.type": ("u32", 1)}, ConfigError),
    "factor as a text": ({"llama.rope.scaling.factor": ("str", "4")}, ConfigError),
    "factors": ({"llama.rope.scaling.factor": ("[f32]", [4.0])}, ConfigError),
    "old factor as an integer": ({"llama.rope.scale_linear": ("u32", 4)}, ConfigError),
    "unused factor as a text": (
        {"llama.rope.scaling.factor": ("str", "4"), "llama.rope.scaling.type": ("str", "none")},
        ConfigError,
    ),
    "negative factor": ({"llama.rope.scaling.factor": ("f32", -4.0)}, ConfigError),
    "NaN factor": ({"llama.rope.scaling.factor": ("f32", float("nan"))}, ConfigError),
    "original context as a text": ({"llama.rope.scaling.original_context_length": ("str", "4")}, ConfigError),
    "experts of layers": ({"llama.expert_count": ("[u32]", [8, 8])}, UnsupportedModelError),
    "temperatures": ({"general.sampling.temp": ("[f32]", [1.0, 2.0])}, ConfigError),
    "heads that differ": ({"llama.attention.head_count": ("[u32]", [4, 2])}, UnsupportedModelError),
    "unknown scaling": ({"llama.rope.scaling.type": ("str", "yarn")}, UnsupportedModelError),
    "other values": ({"llama.attention.value_length": ("u32", 32)}, UnsupportedModelError),
    "alignment of 0": ({"general.alignment": ("u32", 0)}, GGUFError),
    "alignment of 3": ({"general.alignment": ("u32", 3)}, GGUFError),
    "alignment of 13": ({"general.alignment": ("u32", 13)}, GGUFError),
    "vast alignment": ({"general.alignment": ("u32", 2**31)}, GGUFError),
    "alignment of another type": ({"general.alignment": ("i32", 32)}, GGUFError),
    "alignment as a text": ({"general.alignment": ("str", "32")}, GGUFError),
    "alignment as a list": ({"general.alignment": ("[u32]", [32])}, GGUFError),
    "another vocabulary": ({"tokenizer.ggml.tokens": ("[str]", ["a", "b"])}, ConfigError),
    "vocabulary of numbers": ({"tokenizer.ggml.tokens": ("[u8]", [1] * VOCAB)}, TokenizerError),
    "no vocabulary": ({"tokenizer.ggml.tokens": None}, TokenizerError),
    "foreign bos": ({"tokenizer.ggml.bos_token_id": ("u32", VOCAB)}, TokenizerError),
    "negative bos": ({"tokenizer.ggml.bos_token_id": ("i32", -1)}, TokenizerError),
    "vast eos": ({"tokenizer.ggml.eos_token_id": ("u32", 2**32 - 1)}, TokenizerError),
    "temperature": ({"general.sampling.temp": ("f32", -1.0)}, ConfigError),
}


@pytest.mark.parametrize("name", WRONG)
def test_metadata_that_no_model_has(name: str, llama: Path, tmp_path: Path) -> None:
    change, error = WRONG[name]
    metadata, tensors = g.converted(llama)
    whole: dict[str, g.Value | None] = {**metadata, **g.vocabulary(VOCAB), **change}
    message = refused(write(tmp_path, {k: v for k, v in whole.items() if v is not None}, tensors), error)
    if error is ConfigError:
        assert any(word in message for word in (next(iter(change)), "embed_tokens", "token_embd", "temperature"))


SMALL = {"general.architecture": ("str", "llama")}


def record(name: bytes, sizes: tuple[int, ...], kind: int, offset: int, dimensions: int | None = None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return g.text(name) + struct.pack(f"<I{len(sizes)}QiQ", count, *sizes, kind, offset)


def raw(records: list[bytes], data: bytes = bytes(1024), count: int | None = None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(records) if count is None else count, 1)
    head += g.text("general.architecture") + g.value_bytes("str", "llama") + b"".join(records)
    return head + bytes(-len(head) % 32) + data


GOOD = record(b"a", (32,), 0, 0)
TENSORS: dict[str, tuple[bytes, type[LlmcoreError]]] = {
    "vast count": (raw([GOOD], count=2**64 - 1), GGUFError),
    "half of vast": (raw([GOOD], count=2**63), GGUFError),
    "one more": (raw([GOOD], bytes(8), count=2), GGUFError),
    "long name": (raw([record(b"a" * 64, (32,), 0, 0)]), GGUFError),
    "endless name": (raw([struct.pack("<Q", 2**64 - 1) + b"a"]), GGUFError),
    "no name": (raw([record(b"", (32,), 0, 0)]), GGUFError),
    "NUL in a name": (raw([record(b"a\0b", (32,), 0, 0)]), GGUFError),
    "name that is not ASCII": (raw([record("ä".encode(), (32,), 0, 0)]), GGUFError),
    "twice": (raw([GOOD, record(b"a", (32,), 0, 128)]), GGUFError),
    "no dimensions": (raw([record(b"a", (), 0, 0)]), GGUFError),
    "five dimensions": (raw([record(b"a", (1, 1, 1, 1, 32), 0, 0)]), GGUFError),
    "endless dimensions": (raw([record(b"a", (32,), 0, 0, 2**32 - 1)]), GGUFError),
    "empty": (raw([record(b"a", (32, 0), 0, 0)]), GGUFError),
    "negative": (raw([record(b"a", (2**63,), 0, 0)]), GGUFError),
    "overflow at once": (raw([record(b"a", (2**40, 2**40), 0, 0)]), GGUFError),
    "overflow at last": (raw([record(b"a", (2**20, 2**20, 2**20, 2**20), 0, 0)]), GGUFError),
    "overflow by the type": (raw([record(b"a", (2**62,), 0, 0)]), GGUFError),
    "overflow by padding": (raw([record(b"a", (2**63 - 1,), 24, 0)]), GGUFError),
    "sum overflows": (raw([record(b"a", (2**62,), 24, 0), record(b"b", (2**62,), 24, 2**62)]), GGUFError),
    "no whole blocks": (raw([record(b"a", (33,), 2, 0)]), GGUFError),
    "no whole long blocks": (raw([record(b"a", (255,), 12, 0)]), GGUFError),
    "unknown type": (raw([record(b"a", (32,), 43, 0)]), UnsupportedModelError),
    "removed type": (raw([record(b"a", (32,), 4, 0)]), UnsupportedModelError),
    "removed repacked type": (raw([record(b"a", (32,), 31, 0)]), UnsupportedModelError),
    "negative type": (raw([record(b"a", (32,), -1, 0)]), UnsupportedModelError),
    "misaligned": (raw([record(b"a", (32,), 0, 4)]), GGUFError),
    "hole": (raw([record(b"a", (32,), 0, 32)]), GGUFError),
    "overlap": (raw([GOOD, record(b"b", (32,), 0, 96)]), GGUFError),
    "out of order": (raw([record(b"a", (32,), 0, 128), record(b"b", (32,), 0, 0)]), GGUFError),
    "vast offset": (raw([record(b"a", (32,), 0, 2**64 - 32)]), GGUFError),
    "past the end": (raw([record(b"a", (512,), 0, 0)]), GGUFError),
    "one byte short": (raw([GOOD], bytes(127)), GGUFError),
    "no weights": (raw([GOOD]), ConfigError),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_cannot_be(name: str, tmp_path: Path) -> None:
    data, error = TENSORS[name]
    (tmp_path / "x.gguf").write_bytes(data)
    refused(tmp_path / "x.gguf", error)


def test_tensors_that_do_not_fit_the_model(llama: Path, tmp_path: Path) -> None:
    metadata, tensors = g.converted(llama)
    norm, q = tensors["blk.0.attn_norm.weight"], tensors["blk.0.attn_q.weight"]
    bad: dict[str, tuple[dict[str, g.Tensor], type[LlmcoreError]]] = {
        "matrix for a vector": ({"blk.0.attn_norm.weight": ("F32", (1, HIDDEN), norm[2])}, ConfigError),
        "transposed": ({"blk.0.ffn_up.weight": ("F32", (HIDDEN, MLP), tensors["blk.0.ffn_up.weight"][2])}, ConfigError),
        "blocks for a vector": (
            {"blk.0.attn_norm.weight": ("Q8_0", (HIDDEN,), bytes(HIDDEN // 32 * 34))},
            LlmcoreError,
        ),
        "a foreign tensor": ({"blk.0.ssm_a.weight": norm}, ConfigError),
        "biases of one": ({"blk.0.attn_q.bias": norm}, ConfigError),
    }
    for number in ("4294967295", "-1", "007", "99999999999999999999"):
        bad[number] = ({f"blk.{number}.attn_q.weight": q}, ConfigError)
    for change, error in bad.values():
        refused(write(tmp_path, metadata, tensors | change), error)
    del tensors["blk.1.ffn_down.weight"]
    assert "layers.1.mlp.down_proj" in refused(write(tmp_path, metadata, tensors), ConfigError)


def test_types_without_a_home_are_named(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(g.TYPES, "Q8_K", 15)
    metadata, tensors = g.converted(llama)
    rows, columns = tensors["blk.0.ffn_up.weight"][1]
    tensors["blk.0.ffn_up.weight"] = ("Q8_K", (rows, columns), bytes(rows * columns // 256 * 292))
    assert "Q8_K" in refused(write(tmp_path, metadata, tensors), UnsupportedModelError)


def test_scales_that_are_not_finite_load(llama: Path, tmp_path: Path) -> None:
    for kind in ("Q4_0", "Q4_K", "Q6_K"):
        for number in (float("nan"), float("inf"), 6e-8, 0.0):
            metadata, tensors, _ = quantised(llama, lambda name, kind=kind: kind)  # type: ignore[misc]
            form, shape, body = tensors["blk.0.ffn_up.weight"]
            at = g.BLOCKS[kind][2][0]
            data = bytearray(body)
            data[at : at + 2] = np.float16(number).tobytes()
            path = write(tmp_path, metadata, tensors | {"blk.0.ffn_up.weight": (form, shape, bytes(data))})
            assert np.isfinite(logits(path)).all() == np.isfinite(np.float16(number))
            if not np.isfinite(number):
                with pytest.raises(llmcore.NumericError):
                    llmcore.load(path, progress=False, check_finite=True)


def test_a_tensor_with_codes_that_cannot_be_is_named(llama: Path, tmp_path: Path) -> None:
    metadata, tensors, _ = quantised(llama, lambda name: "TQ2_0")
    form, shape, body = tensors["blk.0.ffn_up.weight"]
    path = write(tmp_path, metadata, tensors | {"blk.0.ffn_up.weight": (form, shape, b"\xff" * len(body))})
    with pytest.raises(llmcore.QuantError, match="TQ2_0") as caught:
        llmcore.load(path, progress=False)
    assert (caught.value.file, caught.value.field) == (str(path), "model.layers.0.mlp.up_proj.weight")


def test_arrays_take_the_memory_of_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, count = tmp_path / "x.gguf", 1 << 24
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + g.text("k") + struct.pack("<IIQ", 9, g.KINDS["bool"], count)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + count)
    tracemalloc.start()
    try:
        found = read_metadata(path)["k"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.kind == "[bool]"
    assert (len(found.value), found.value.any()) == (count, False)
    assert peak < 1.5 * count + (4 << 20)

    def short(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "frombuffer", short)
    with pytest.raises(llmcore.OutOfMemoryError, match=r"x\.gguf.*'k'"):
        read_metadata(path)


def test_every_truncation_is_refused(llama: Path, tmp_path: Path) -> None:
    metadata, tensors = g.converted(llama)
    data = g.build(metadata, tensors)
    with_header = len(data) - sum(-(-len(body) // 32) * 32 for _, _, body in tensors.values())
    path = tmp_path / "x.gguf"
    for length in [*range(0, with_header + 40, 3), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path)


def test_every_flipped_bit_of_the_header_is_refused_or_read(llama: Path, tmp_path: Path) -> None:
    metadata, tensors = g.converted(llama)
    data = bytearray(g.build(metadata, tensors))
    header = len(data) - sum(-(-len(body) // 32) * 32 for _, _, body in tensors.values())
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with path.open("r+b") as file:
        for bit in range(0, 8 * header, 13):
            file.seek(bit // 8)
            file.write(bytes([data[bit // 8] ^ (1 << bit % 8)]))
            file.flush()
            try:
                with open_checkpoint(path) as checkpoint:
                    llmcore.models.binding.bind(checkpoint)
            except LlmcoreError:
                pass
            file.seek(bit // 8)
            file.write(data[bit // 8 : bit // 8 + 1])
