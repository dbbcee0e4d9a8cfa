"""Trained GPT-2 models with a known truth: every activation of minGPT's sorter, plans of a published checkpoint."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

import llmcore
from llmcore.checkpoint.write import save_json, save_safetensors

Arrays = dict[str, np.ndarray]

# --- gpt-nano-sort: weights and all intermediate results of one batch, stored by minGPT -------------------------------

HEADS = 3


def read_arrays(path: Path) -> tuple[dict[str, int], Arrays]:
    stored = json.loads(path.read_text("utf-8"))
    config = stored.pop("config")
    return config, {
        name: np.frombuffer(base64.b64decode(value["data"]), np.float32).reshape(value["shape"])
        for name, value in stored.items()
    }


@pytest.fixture(scope="module")
def sorter(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> llmcore.Model:
    """minGPT's weights as a Hugging Face folder: matrices turned to [in, out], the causal masks left out."""
    config, weights = read_arrays(data_dir / "models" / "gpt-nano-sort" / "gpt-nano-sort-model.json")
    folder = tmp_path_factory.mktemp("gpt-nano-sort")
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    tensors = {
        name: np.ascontiguousarray(value.T) if name.endswith(turned) else value
        for name, value in weights.items()
        if not name.endswith(".attn.bias")
    }
    save_safetensors(folder / "model.safetensors", tensors)
    settings = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",  # minGPT's NewGELU is the tanh form
        "n_positions": config["block_size"],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    sizes = {name: config[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    save_json(folder / "config.json", settings | sizes)
    return llmcore.load(folder, threads=1, progress=False)


@pytest.fixture(scope="module")
def expected(data_dir: Path) -> Arrays:
    return read_arrays(data_dir / "models" / "gpt-nano-sort" / "gpt-nano-sort-t0-partials.json")[1]


@pytest.fixture(scope="module")
def computed(sorter: llmcore.Model, expected: Arrays) -> Arrays:
    """The same results by minGPT's names; what the kernels never form (scores, terms of sums) follows from the rest."""
    ids = expected["idx"].astype(np.int64)
    with sorter.capture("*") as seen:
        logits = np.asarray(sorter.forward(ids))
    of = {name: np.stack(value) for name, value in seen.items()}
    layer = {name.removeprefix("layers.0."): value for name, value in of.items() if name.startswith("layers.0.")}

    def heads(part: np.ndarray) -> np.ndarray:  # [B, T, 48] -> [B, heads, T, 16]
        return part.reshape(*part.shape[:2], HEADS, -1).swapaxes(1, 2)

    q, k, v = (heads(part) for part in np.split(layer["qkv"], 3, axis=-1))
    scaled, keys, _ = (heads(part) for part in np.split(layer["rotated_qkv"], 3, axis=-1))
    masked = np.triu(np.ones((ids.shape[1],) * 2, bool), 1)
    scores = np.where(masked, np.float32(-np.inf), scaled @ keys.swapaxes(-1, -2))
    return {
        "idx": ids,
        "tok_emb": of["token_embeddings"],
        "pos_emb": (of["embeddings"] - of["token_embeddings"])[:1],
        "x": of["embeddings"],
        "ln1": layer["attention_norm"],
        "qkv": layer["qkv"],
        "q": q,
        "k": k,
        "v": v,
        "att": scores,
        "attSm": llmcore.ops.softmax(scores),
        "y": layer["attention"],
        "yProj": layer["attention_residual"] - of["embeddings"],
        "attnResid": layer["attention_residual"],
        "ln2": layer["mlp_norm"],
        "fc": layer["up"],
        "gelu": layer["activation"],
        "mlp": layer["output"] - layer["attention_residual"],
        "mlpResid": layer["output"],
        "block0": of["layers.0.output"],
        "block1": of["layers.1.output"],
        "block2": of["layers.2.output"],
        "ln_f": of["final_norm"],
        "lm_head": logits,
        "probs": llmcore.ops.softmax(logits),
    }


def test_every_stored_activation_is_compared(expected: Arrays, computed: Arrays) -> None:
    assert set(computed) == set(expected) == set(STORED)


STORED = (
    *("idx", "tok_emb", "pos_emb", "x", "ln1", "qkv", "q", "k", "v", "att", "attSm", "y", "yProj", "attnResid"),
    *("ln2", "fc", "gelu", "mlp", "mlpResid", "block0", "block1", "block2", "ln_f", "lm_head", "probs"),
)


@pytest.mark.parametrize("name", STORED)
def test_activation_equals_mingpt(name: str, expected: Arrays, computed: Arrays) -> None:
    np.testing.assert_allclose(computed[name], expected[name], rtol=0, atol=1e-5)


def test_it_sorts(sorter: llmcore.Model) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 3, 6).tolist() for _ in range(20)]
    with llmcore.LLM(sorter, max_batch_size=8) as llm:
        answers = llm.generate(prompts, llmcore.SamplingParams(temperature=0, max_tokens=5))
    # Eleven positions hold the six digits and the first five of the answer.
    assert [answer.token_ids for answer in answers] == [sorted(prompt)[:5] for prompt in prompts]


# --- capp-gpt2-hf: a checkpoint without a tokenizer, as it was published ----------------------------------------------

PARTS = [
    "<SOS> geometry_prismatic holes_normal external_threads_no surface_finish_normal tolerance_medium batch_size_small",
    "<SOS> geometry_freeform holes_none external_threads_no surface_finish_very_good tolerance_tight "
    "batch_size_prototype",
]


@pytest.fixture(scope="module")
def token_ids(data_dir: Path) -> dict[str, int]:
    path = data_dir / "models" / "capp-gpt2-hf" / "token_mappings.json"
    return json.loads(path.read_text("utf-8"))["token2id"]


@pytest.fixture(scope="module")
def planner(data_dir: Path) -> llmcore.Model:
    return llmcore.load(data_dir / "models" / "capp-gpt2-hf", threads=1, progress=False)


def prompt(part: str, token_ids: dict[str, int]) -> list[int]:
    return [token_ids[word] for word in (part + " <EOC>").split()]


@pytest.mark.parametrize("part", PARTS)
def test_greedy_plans_are_sure_and_well_formed(part: str, planner: llmcore.Model, token_ids: dict[str, int]) -> None:
    with llmcore.LLM(planner, max_batch_size=1) as llm:
        params = llmcore.SamplingParams(temperature=0, max_tokens=40, logprobs=0)
        (answer,) = llm.generate(prompt(part, token_ids), params)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == token_ids["<EOS>"]
    steps = range(token_ids["Turning"], token_ids["Special Finishing"] + 1)
    assert answer.token_ids[0] in steps
    assert all(token in steps or token == token_ids["<EOC>"] for token in answer.token_ids[:-1])
    assert answer.logprobs is not None
    chances = [np.exp(each[token].logprob) for each, token in zip(answer.logprobs, answer.token_ids, strict=True)]
    assert min(chances) > 0.8


def test_a_freeform_prototype_is_printed_and_finished(planner: llmcore.Model, token_ids: dict[str, int]) -> None:
    with llmcore.LLM(planner, max_batch_size=1) as llm:
        (answer,) = llm.generate(prompt(PARTS[1], token_ids), llmcore.SamplingParams(temperature=0, max_tokens=5))
    names = {token: name for name, token in token_ids.items()}
    plan = ["SLM", "5-axis Milling Secondary", "Grinding", "Superfinishing", "<EOC>"]
    assert [names[token] for token in answer.token_ids] == plan


def test_text_without_a_tokenizer_is_an_error_of_its_own(planner: llmcore.Model) -> None:
    assert planner.tokenizer is None
    with llmcore.LLM(planner, max_batch_size=1) as llm, pytest.raises(llmcore.TokenizerError, match="token ids"):
        llm.generate("a bracket with four holes")
