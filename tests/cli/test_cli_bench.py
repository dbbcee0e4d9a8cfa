"""llmcore bench: its arithmetic, on an engine and a clock with known speeds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import Engine, FakeLLM

import llmcore
from llmcore.checkpoint.config import Config
from llmcore.cli import bench
from llmcore.cli._shapes import SHAPES
from llmcore.models.registry import describe

Run = Callable[..., Any]

PREFILL_SECONDS, STEP_SECONDS, BANDWIDTH = 0.001, 0.01, 200e6


@pytest.fixture
def clock(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time passes by 1 ms a prompt token and 10 ms a step of decoding after the first."""
    clock = SimpleNamespace(now=0.0, asked=[])

    def generate(self: FakeLLM, prompts: list[list[int]], params: Any, progress: bool = True) -> list[Any]:
        clock.asked.append((prompts, params))
        if params.max_tokens == 1:
            clock.now += PREFILL_SECONDS * sum(map(len, prompts))
        else:
            clock.now += STEP_SECONDS * params.max_tokens
        return []

    monkeypatch.setattr(FakeLLM, "generate", generate)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    runtime = SimpleNamespace(measure_read_bandwidth=lambda threads, seconds: BANDWIDTH)
    monkeypatch.setitem(sys.modules, "llmcore.runtime", runtime)
    monkeypatch.setitem(llmcore.__dict__, "isa", lambda: "avx512")
    return clock


def test_figures(run: Run, clock: SimpleNamespace) -> None:
    report = run("bench", "--json", "--batch-size", "4").json
    assert report["prefill_tokens_per_second"] == pytest.approx(1000)
    assert report["decode_tokens_per_second"] == pytest.approx(400)
    # 100 steps a second, each of which reads the weights (1 MB) once, whatever the batch
    assert report["decode_bytes_per_second"] == pytest.approx(100e6)
    assert report["bandwidth_share"] == pytest.approx(0.5)
    assert (report["bytes_per_token"], report["weight_bytes"]) == (1_000_000, 1_200_000)
    assert (report["isa"], report["threads"], report["model"], report["quantize"]) == ("avx512", 2, "tiny", None)


def test_rounds_alternate_and_the_first_does_not_count(run: Run, clock: SimpleNamespace) -> None:
    report = run("bench", "--json", "--rounds", "2", "--prompt-tokens", "7", "--decode-tokens", "3").json
    assert len(report["rounds"]) == 2
    assert [(len(prompts[0]), params.max_tokens) for prompts, params in clock.asked] == [(7, 1), (1, 3)] * 3


def test_default_prompt_is_half_of_a_short_context(run: Run, clock: SimpleNamespace, engine: Engine) -> None:
    engine.model.spec.max_position_embeddings = 512
    assert run("bench", "--json").json["prompt_tokens"] == 256


def test_prompts_are_never_the_same(run: Run, clock: SimpleNamespace) -> None:
    run("bench", "--rounds", "2", "--batch-size", "2", "--prompt-tokens", "50")
    prompts = [tuple(p) for asked, params in clock.asked if params.max_tokens == 1 for p in asked]
    assert len(set(prompts)) == len(prompts) == 6


def test_answers_have_their_full_length(run: Run, clock: SimpleNamespace) -> None:
    run("bench")
    assert all(params.ignore_eos and params.temperature == 0 for _, params in clock.asked)


def test_for_people(run: Run, clock: SimpleNamespace) -> None:
    lines = run("bench", "--quantize", "int8").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "model",
        "weights",
        "machine",
        "prefill 512",
        "decode 64",
        "bytes per token",
        "memory reads",
        "share of it",
    ]
    assert lines[3].endswith("1,000.0  (1,000.0 to 1,000.0) tokens/s")
    assert lines[1].endswith("int8, 1.20 MB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--batch-size", "-1"], "--batch-size must be at least 1"),
        (["--prompt-tokens", "2048"], "--prompt-tokens must be below this model's context of 2048"),
        (["--depth", "-1"], "--depth must be at least 0"),
        (["--depth", "2000"], "together must be below this model's context of 2048"),
        (["--random", "gpt-9"], "there are: tinyllama-1.1b, "),
        (["tiny", "--random", "gpt2"], "not both"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, run: Run, clock: SimpleNamespace) -> None:
    result = run("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


# --- named shapes ---

PARAMETERS = {
    "tinyllama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "gpt2": 124_439_808,
}
"""As the model cards and papers give them."""


def test_every_shape_has_its_known_size() -> None:
    assert PARAMETERS.keys() == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_shape_has_its_published_size(name: str) -> None:
    architecture, spec = describe(Config(SHAPES[name]))
    shapes = [shape for slot in architecture.slots(spec) if not slot.optional for shape in slot.shapes]
    assert sum(math.prod(shape) for shape in shapes) == PARAMETERS[name]
