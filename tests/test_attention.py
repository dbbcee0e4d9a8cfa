"""Attention over pages of every type against float64 over what the pages hold, and against torch; and its bits.

E is the relative rounding of one float32 operation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import llmcore
import quantized_reference as reference
from llmcore import _core, ops
from llmcore.model import random_model
from llmcore.models.spec import DecoderSpec
from llmcore.quantization import KV_DTYPES

E = 2.0**-24
INTEGERS = ("int12", "int8", "int4")
Floats = npt.NDArray[np.float32]
SHAPES = [  # T, S, heads, kv_heads, head_dim, window
    (1, 1, 1, 1, 1, None),
    (3, 3, 4, 4, 16, None),
    (20, 20, 6, 2, 80, None),
    (5, 300, 4, 1, 40, None),
    (1, 700, 8, 2, 64, None),
    (37, 300, 3, 3, 17, 16),
    (300, 300, 6, 3, 24, 270),
    (9, 513, 16, 1, 32, 1),
    (3, 40, 71, 1, 64, None),
]
PATTERNS: dict[str, dict[str, Any]] = {
    "not causal": {"causal": False},
    "not causal, window": {"causal": False, "window": 40},
    "softcap": {"softcap": 1.5},
    "softcap and window": {"softcap": 30.0, "window": 100},
    "alibi": {"alibi_slopes": [2.0**-i for i in range(1, 7)]},
    "alibi, not causal": {"causal": False, "alibi_slopes": [0.01 * i for i in range(6)]},
    "sinks": {"sinks": [-3.0, -1.0, 0.0, 0.5, 2.0, 6.0]},
    "sinks and window": {"sinks": [0.5] * 6, "window": 128},
    "first tokens kept": {"window": 50, "keep_first": 4},
    "first tokens kept over a split": {"window": 30, "keep_first": 260},
    "all": {"softcap": 2.0, "window": 300, "keep_first": 20, "sinks": [1.0] * 6, "alibi_slopes": [0.01] * 6},
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = llmcore.get_num_threads()
    yield
    llmcore.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def stored(k: Floats, v: Floats, dtype: str) -> tuple[Floats, Floats]:
    """What pages of this type hold."""
    table = range(-(-len(k) // 16))
    pages = ops.KvPages(len(table), *k.shape[1:], dtype)
    pages.write(k, v, table)
    return pages.read(table, len(k))


def asked(q: Floats, dtype: str, scale: float) -> Floats:
    """The queries as scores take them: over integer keys mixed and rounded, with a scale for each token and head."""
    if dtype not in INTEGERS:
        return q
    mixing = hadamard(q.shape[-1])
    rows = ((q * np.float32(scale)).reshape(-1, q.shape[-1]) @ mixing).astype(np.float32)
    if dtype == "int12":
        codes, scales = reference.quantize_words(rows)
    else:
        codes, scales = reference.quantize_activations(rows, q.shape[-1])
    mixed_twice = codes * (scales / np.float64(scale)) @ mixing  # which multiplies by the neighbours that are mixed
    return (mixed_twice / mixing[0].sum()).reshape(q.shape).astype(np.float32)


def hadamard(dim: int) -> Floats:
    """Mixes as many neighbours as the largest power of two that divides `dim`."""
    run = dim & -dim
    ones = np.array([[(-1.0) ** (i & j).bit_count() for j in range(run)] for i in range(run)])
    return np.kron(np.eye(dim // run), ones)


def bound(q: Floats, k: Floats, v: Floats, dtype: str = "f32") -> float:
    """A score is off by dim E |q||k| / sqrt(dim), which moves a weight by as much; the sums over S follow. Weights of
    integer values are rounded, too, in steps of the largest weighted value / 8,128; those of int12 where many are
    equal in steps of it / 4,096, of which the bound, for one sign, has enough."""
    dim = q.shape[-1]
    reach = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max() * dim**-0.5
    rounding = (dtype in INTEGERS) * (len(k) ** 0.5) / 8128
    return float((2 * ((dim + 8) * reach + len(k) / 16 + 32) * E + rounding) * np.abs(v).max())


def norm_bound(dtype: str) -> float:
    """||got - exact|| / ||exact||; measured up to 6e-7, and 1.5e-4 with rounded weights."""
    return 4e-4 if dtype in INTEGERS else 2e-6


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize(("T", "S", "heads", "kv_heads", "dim", "window"), SHAPES)
def test_equals_float64(T: int, S: int, heads: int, kv_heads: int, dim: int, window: int | None, dtype: str) -> None:
    q, k, v = normal(T, heads, dim), normal(S, kv_heads, dim, seed=1), normal(S, kv_heads, dim, seed=2)
    got = ops.attention(q, k, v, window=window, kv_dtype=dtype)
    q, (k, v) = asked(q, dtype, dim**-0.5), stored(k, v, dtype)
    expected = reference.attention(q, k, v, dim**-0.5, window)
    assert np.abs(got - expected).max() <= bound(q, k, v, dtype)
    assert np.linalg.norm(got - expected) <= norm_bound(dtype) * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["f32", "int12", "int8"])
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_equal_float64(name: str, dtype: str) -> None:
    T, S = 290, 600
    q, k, v = normal(T, 6, 24), normal(S, 2, 24, seed=1), normal(S, 2, 24, seed=2)
    got = ops.attention(q, k, v, **PATTERNS[name], kv_dtype=dtype)
    q, (k, v) = asked(q, dtype, 24**-0.5), stored(k, v, dtype)
    expected = reference.attention(q, k, v, 24**-0.5, **PATTERNS[name])
    assert np.abs(got - expected).max() <= bound(q, k, v, dtype)
    plain = reference.attention(q, k, v, 24**-0.5)
    assert np.linalg.norm(expected - plain) > 1e-3 * np.linalg.norm(plain)


def test_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = normal(70, 6, 32), normal(70, 2, 32, seed=1), normal(70, 2, 32, seed=2)
    tensors = [torch.from_numpy(part).transpose(0, 1)[None] for part in (q, k, v)]
    age = torch.arange(70)[:, None] - torch.arange(70)
    masks = {"causal": age >= 0, "window": (age >= 0) & (age < 9), "full": age == age}
    options: dict[str, dict[str, Any]] = {"causal": {}, "window": {"window": 9}, "full": {"causal": False}}
    for name, mask in masks.items():
        theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True)
        ours = ops.attention(q, k, v, **options[name])
        np.testing.assert_allclose(ours, theirs[0].transpose(0, 1).numpy(), rtol=0, atol=bound(q, k, v))


def test_takes_its_own_scale() -> None:
    q, k, v = normal(2, 2, 16), normal(5, 2, 16, seed=1), normal(5, 2, 16, seed=2)
    expected = reference.attention(q, k, v, 1.0)
    np.testing.assert_allclose(ops.attention(q, k, v, scale=1.0), expected, rtol=0, atol=1e-5)


# Largest ||got - exact|| / ||exact|| of normal keys and values. Measured: 0, 4e-4, 3e-3, 6e-4, 0.01, 0.15.
STORAGE_ERROR = {"f32": 1e-6, "f16": 6e-4, "bf16": 5e-3, "int12": 9e-4, "int8": 1.6e-2, "int4": 0.22}


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_the_error_of_each_type_is_that_of_its_bits(dtype: str) -> None:
    q, k, v = normal(8, 8, 64), normal(500, 2, 64, seed=1), normal(500, 2, 64, seed=2)
    exact = reference.attention(q, k, v, 64**-0.5)
    error = np.linalg.norm(ops.attention(q, k, v, kv_dtype=dtype) - exact) / np.linalg.norm(exact)
    assert STORAGE_ERROR[dtype] / 20 <= error or dtype == "f32"
    assert error <= STORAGE_ERROR[dtype]


@pytest.mark.parametrize(("dtype", "limit"), [("int12", 1.2e-3), ("int8", 2.5e-2), ("int4", 0.27)])
@pytest.mark.parametrize("dim", [64, 96])
def test_elements_that_are_always_large_take_no_bits_of_the_others(dim: int, dtype: str, limit: float) -> None:
    """As some of Qwen2's keys. Measured: 7e-4, 0.017, 0.19; without the transform of keys 1.8e-3, 0.034, 0.49."""
    q, k, v = normal(8, 8, dim), normal(500, 2, dim, seed=1), normal(500, 2, dim, seed=2)
    k[..., [3, 3 + dim // 2]] *= 10
    q[..., [3, 3 + dim // 2]] /= 10
    exact = reference.attention(q, k, v, dim**-0.5)
    assert np.linalg.norm(ops.attention(q, k, v, kv_dtype=dtype) - exact) <= limit * np.linalg.norm(exact)


def test_bytes_are_those_of_the_bits_and_a_scale_for_each_token_and_head() -> None:
    sizes = {dtype: ops.KvPages(3, 2, 64, dtype).nbytes / (3 * 16 * 2 * 64 * 2) * 8 for dtype in KV_DTYPES}
    assert sizes == {"f32": 32, "f16": 16, "bf16": 16, "int12": 12.5, "int8": 8.5, "int4": 4.5}


@pytest.mark.parametrize("dim", [16, 64, 80, 256])
def test_sums_of_int12_reach_their_limit(dim: int) -> None:
    for length in (1, 200, 246, 256, 300, 511):  # 246 equal weights are rounded up the most
        for sign in (1, -1):
            ones = np.ones((length, 1, dim), np.float32)
            # A sink, which scores that were wrong in the same way would not be beside.
            got = ops.attention(ones[-1:], sign * ones, sign * ones, scale=1 / dim, sinks=[sign], kv_dtype="int12")
            np.testing.assert_allclose(got, sign * length / (length + 1), rtol=0.6 / 4096)


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_a_query_that_is_nan_gives_nan(dtype: str) -> None:
    k, v = normal(3, 1, 16), normal(3, 1, 16, seed=1)
    for bits in (0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF):
        q = normal(3, 1, 16, seed=2)
        q[1].view(np.uint32)[0, 4] = bits
        for options in ({}, {"softcap": 3.0}, {"alibi_slopes": [0.5]}):
            got = ops.attention(q, k, v, kv_dtype=dtype, **options)
            assert np.isnan(got[1]).all()
            assert np.isfinite(got[[0, 2]]).all()


# --- bits -------------------------------------------------------------------------------------------------------------


def batch(dtype: str) -> tuple[ops.KvPages, list[list[int]], list[int], list[int], list[Floats]]:
    """Six sequences, decoding and prefilling, on shuffled pages; their queries."""
    lengths, queries = [700, 1, 33, 300, 513, 16], [1, 1, 33, 40, 2, 16]
    order = np.random.default_rng(3).permutation(200).tolist()
    pages = ops.KvPages(200, 2, 24, dtype)
    tables, q = [], []
    for i, (length, count) in enumerate(zip(lengths, queries, strict=True)):
        tables.append([order.pop() for _ in range(-(-length // 16))])
        pages.write(normal(length, 2, 24, seed=10 + i), normal(length, 2, 24, seed=20 + i), tables[-1])
        q.append(normal(count, 6, 24, seed=30 + i))
    return pages, tables, lengths, queries, q


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("name", ["plain", "all", "first tokens kept over a split", "not causal, window"])
def test_no_cut_of_the_work_shows(dtype: str, name: str) -> None:
    pages, tables, lengths, queries, q = batch(dtype)
    pattern = PATTERNS.get(name, {})
    llmcore.set_num_threads(1)
    alone = [
        ops.paged_attention(q[i], pages, [tables[i]], [lengths[i]], query_lengths=[queries[i]], **pattern)
        for i in range(len(q))
    ]
    for threads in (1, 2, 4):
        llmcore.set_num_threads(threads)
        together = ops.paged_attention(np.concatenate(q), pages, tables, lengths, query_lengths=queries, **pattern)
        assert together.tobytes() == np.concatenate(alone).tobytes()
        for i in (0, 3, 4):  # by few threads a long sequence is one's, by many it is shared out
            one = ops.paged_attention(q[i], pages, [tables[i]], [lengths[i]], query_lengths=[queries[i]], **pattern)
            assert one.tobytes() == alone[i].tobytes()
    if pattern.get("causal", True):  # a query alone, as if it were decoded
        for i, row in ((2, 0), (2, 32), (3, 7), (5, 15)):
            length = lengths[i] - queries[i] + row + 1
            one = ops.paged_attention(q[i][row : row + 1], pages, [tables[i]], [length], **pattern)
            assert one[0].tobytes() == alone[i][row].tobytes()


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_a_batch_of_nothing_gives_nothing(dtype: str) -> None:
    assert ops.paged_attention(normal(0, 4, 16), ops.KvPages(1, 2, 16, dtype), [], []).shape == (0, 4, 16)


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_every_instruction_set_gives_the_same_bits(dtype: str) -> None:
    q, k, v = normal(70, 6, 40), normal(300, 2, 40, seed=1), normal(300, 2, 40, seed=2)
    table = np.arange(19, dtype=np.int32)
    found = set()
    for isa in _core.available_isas():
        pages = _core.KvPages(19, 2, 40, dtype)
        pages.write(k, v, table, 0, isa)
        for options in ({}, {"softcap": 3.0, "window": 90, "keep_first": 5, "sinks": np.ones(6, np.float32)}):
            attended = pages.attend(q, [table], [300], [70], 0.2, isa=isa, **options)  # type: ignore[arg-type]
            found.add((len(options), attended.tobytes()))
    assert len(found) == 2


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_writing_token_by_token_gives_the_same_pages(dtype: str) -> None:
    k, v = normal(40, 2, 20), normal(40, 2, 20, seed=1)
    whole, pieces = ops.KvPages(3, 2, 20, dtype), ops.KvPages(3, 2, 20, dtype)
    whole.write(k, v, [2, 0, 1])
    for i in range(40):
        pieces.write(k[i : i + 1], v[i : i + 1], [2, 0, 1], i)
    for a, b in zip(whole.read([2, 0, 1], 40), pieces.read([2, 0, 1], 40), strict=True):
        assert a.tobytes() == b.tobytes()


# --- in a model -------------------------------------------------------------------------------------------------------

SPEC = DecoderSpec(
    model_type="llama",
    hidden_size=48,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=64,
    vocab_size=97,
    max_position_embeddings=400,
    rope_inv_freq=(1.0, 0.5, 0.1),
)
SPECS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "windows by layer": ({"layer_windows": (7, None)}, [{"window": 7}, {}]),
    "kept tokens": ({"sliding_window": 9, "kept_tokens": 3}, [{"window": 9, "keep_first": 3}] * 2),
    "alibi": (
        {"alibi_slopes": (0.5, 0.25, 0.1, 0.05, 0.01, 0.0)},
        [{"alibi_slopes": [0.5, 0.25, 0.1, 0.05, 0.01, 0]}] * 2,
    ),
    "softcap": ({"attention_softcap": 0.05}, [{"softcap": 0.05}] * 2),
    "sinks": ({"attention_sinks": True}, [{"sinks": [1.0] * 6}] * 2),  # random_model's vectors are ones
    "interleaved rope": ({"rope_interleaved": True}, [{}] * 2),
}


@pytest.mark.parametrize("dtype", ["f32", "int12", "int8"])
@pytest.mark.parametrize("name", SPECS)
def test_a_model_attends_as_its_spec_says(name: str, dtype: str) -> None:
    changes, patterns = SPECS[name]
    ids = np.random.default_rng(0).integers(0, 97, 300).tolist()
    with random_model(dataclasses.replace(SPEC, **changes)) as model, model.capture("*") as acts:
        model.forward(ids, kv_dtype=dtype, chunk_size=37)
    for layer, pattern in enumerate(patterns):
        raw, turned = (acts[f"layers.{layer}.{which}"].reshape(300, 10, 16) for which in ("qkv", "rotated_qkv"))
        interleaved = bool(changes.get("rope_interleaved"))
        np.testing.assert_allclose(
            turned[:, 6:8],
            ops.rope(raw[:, 6:8], range(300), SPEC.rope_inv_freq or (), interleaved=interleaved),
            atol=1e-6,
        )
        q, (k, v) = asked(turned[:, :6], dtype, 1.0), stored(turned[:, 6:8], turned[:, 8:], dtype)
        expected = reference.attention(q, k, v, 1.0, **pattern).reshape(300, -1)
        got = acts[f"layers.{layer}.attention"]
        assert np.linalg.norm(got - expected) <= norm_bound(dtype) * np.linalg.norm(expected)


def test_the_kv_dtype_decides_the_bytes_of_an_engine_and_of_a_plan() -> None:
    params = llmcore.SamplingParams(temperature=0, max_tokens=8)
    found = {}
    with llmcore.load("tiny", progress=False) as model:
        assert model.kv_dtype == "int8"  # its weights are int8
        for dtype in KV_DTYPES:
            with llmcore.LLM(model, max_model_len=64, max_batch_size=2, kv_dtype=dtype) as llm:
                usage = model.memory_usage()["kv_cache"]
                assert len(llm.generate("The prince", params)[0].token_ids) == 8
            planned = llmcore.plan("tiny", max_model_len=64, max_batch_size=2, kv_dtype=dtype).kv_cache
            assert planned == usage
            found[dtype] = usage
    assert found["f32"] == 2 * found["f16"] == 2 * found["bf16"] > 2.4 * found["int12"]
    assert found["f32"] > 3.5 * found["int8"] > 6 * found["int4"]
    with pytest.raises(llmcore.ArgumentError, match="int3"):
        llmcore.plan("tiny", kv_dtype="int3")


# --- errors -----------------------------------------------------------------------------------------------------------

K3 = normal(2, 2, 8)
PAGES = ops.KvPages(2, 2, 8)
WRONG: dict[str, Callable[[], object]] = {
    "heads no multiple of kv_heads": lambda: ops.attention(normal(2, 3, 8), K3, K3),
    "more queries than keys": lambda: ops.attention(normal(3, 2, 8), K3, K3),
    "q of two dimensions": lambda: ops.attention(K3[0], K3, K3),
    "q of another head_dim": lambda: ops.attention(normal(2, 2, 9), K3, K3),
    "k of two dimensions": lambda: ops.attention(K3, K3[0], K3[0]),
    "v of another shape": lambda: ops.attention(K3, K3, normal(2, 2, 9)),
    "no keys": lambda: ops.attention(K3[:0], K3[:0], K3[:0]),
    "negative window": lambda: ops.attention(K3, K3, K3, window=-1),
    "window of 0": lambda: ops.attention(K3, K3, K3, window=0),
    "softcap of 0": lambda: ops.attention(K3, K3, K3, softcap=0),
    "infinite softcap": lambda: ops.attention(K3, K3, K3, softcap=float("inf")),
    "negative keep_first": lambda: ops.attention(K3, K3, K3, keep_first=-1),
    "slopes for other heads": lambda: ops.attention(K3, K3, K3, alibi_slopes=[1.0]),
    "sinks for other heads": lambda: ops.attention(K3, K3, K3, sinks=[1.0] * 3),
    "slopes with NaN": lambda: ops.attention(K3, K3, K3, alibi_slopes=[1.0, float("nan")]),
    "unknown kv_dtype": lambda: ops.attention(K3, K3, K3, kv_dtype="int3"),
    "no pages": lambda: ops.KvPages(0, 2, 8),
    "no heads": lambda: ops.KvPages(1, 0, 8),
    "heads of nothing": lambda: ops.KvPages(1, 1, 0),
    "a page that isn't there": lambda: PAGES.write(K3, K3, [2]),
    "a negative page": lambda: PAGES.write(K3, K3, [-1]),
    "a block table too short": lambda: PAGES.write(K3, K3, [0], 15),
    "a negative position": lambda: PAGES.write(K3, K3, [0], -1),
    "keys of other heads": lambda: PAGES.write(normal(2, 1, 8), normal(2, 1, 8), [0]),
    "reading beyond the table": lambda: PAGES.read([0], 17),
    "attending beyond the table": lambda: ops.paged_attention(K3, PAGES, [[0], [1]], [1, 17]),
    "lengths for other sequences": lambda: ops.paged_attention(K3, PAGES, [[0], [1]], [1]),
    "queries that don't add up": lambda: ops.paged_attention(K3, PAGES, [[0]], [2]),
    "a sequence without a query": lambda: ops.paged_attention(K3, PAGES, [[0], [1]], [2, 1], query_lengths=[2, 0]),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_argument_errors(call: Callable[[], object]) -> None:
    with pytest.raises(llmcore.ArgumentError):
        call()
