"""Beam search: against a plain search over the model's logits, and against transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmcore
from llmcore import BeamSearchParams, ContextLengthError, LlmcoreError

import bits_hash  # isort: skip

PROMPT = [3, 200, 17, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("beam")
    bits_hash.write_model(path)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> llmcore.LLM:
    return llmcore.LLM(bits_hash.load(folder, "f32", threads=1), max_batch_size=8)


def plain_search(
    llm: llmcore.LLM, prompt: list[int], width: int, steps: int, ends: set[int], penalty: float
) -> list[Any]:
    """All continuations of each beam, not only the likeliest ones."""
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    found = []
    for _ in range(steps):
        grown = []
        for ids, logprob in beams:
            logits = np.asarray(llm.model.forward(prompt + ids))[-1].astype(np.float64)
            logs = logits - logits.max()
            logs -= np.log(np.exp(logs).sum())
            for token in range(len(logs)):
                longer = ([*ids, token], logprob + logs[token])
                if token not in ends:
                    grown.append(longer)
                elif (logs > logs[token]).sum() < 2 * width:
                    found.append(longer)
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    found += beams
    return sorted(found, key=lambda one: -one[1] / len(one[0]) ** penalty)[:width]


@pytest.mark.parametrize(("width", "penalty"), [(1, 1.0), (2, 0.0), (4, 1.0), (5, -0.5)])
@pytest.mark.parametrize("with_ends", [False, True])
def test_equal_to_a_plain_search(
    llm: llmcore.LLM, monkeypatch: pytest.MonkeyPatch, width: int, penalty: float, with_ends: bool
) -> None:
    from dataclasses import replace

    ends = set(range(0, 257, 9)) if with_ends else set()
    monkeypatch.setattr(llm.model, "spec", replace(llm.model.spec, eos_ids=tuple(sorted(ends))))
    params = BeamSearchParams(beam_width=width, max_tokens=6, length_penalty=penalty, include_stop_str_in_output=True)
    (out,) = llm.beam_search([PROMPT], params)
    expected = plain_search(llm, PROMPT, width, 6, ends, penalty)
    assert [one.token_ids for one in out.sequences] == [ids for ids, _ in expected]
    for one, (ids, logprob) in zip(out.sequences, expected, strict=True):
        assert one.cumulative_logprob == pytest.approx(logprob, abs=1e-4)
        assert one.score == pytest.approx(logprob / len(ids) ** penalty, abs=1e-4)
        assert one.finish_reason == ("stop" if ids[-1] in ends else "length")


def test_equal_to_transformers(folder: Path, llm: llmcore.LLM) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor([PROMPT]),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
        )
    (out,) = llm.beam_search([PROMPT], BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True))
    assert [one.token_ids for one in out.sequences] == theirs[:, len(PROMPT) :].tolist()


def test_a_batch_has_the_bits_of_each_alone() -> None:
    with llmcore.LLM("tiny", progress=False) as llm:
        params = BeamSearchParams(beam_width=3, max_tokens=10)
        prompts = ["The prince", "Napoleon said", "It was in"]
        together = llm.beam_search(prompts, params)
        assert [llm.beam_search(prompt, params)[0] for prompt in prompts] == together
        best = together[0].sequences[0]
        assert best.text is not None
        assert llm.tokenizer.encode(best.text, add_special_tokens=False)
        greedy = llm.generate(prompts[0], llmcore.SamplingParams(temperature=0, max_tokens=10, logprobs=0))[0]
        assert best.cumulative_logprob >= (greedy.outputs[0].cumulative_logprob or 0) - 1e-6
        with pytest.raises(ContextLengthError):
            llm.beam_search("x", BeamSearchParams(beam_width=2, max_tokens=600))


@pytest.mark.parametrize(
    "options",
    [
        {"beam_width": 0},
        {"beam_width": 65},
        {"beam_width": 2.0},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"length_penalty": float("nan")},
        {"length_penalty": "x"},
        {"length_penalty": 99},
    ],
)
def test_bad_parameters(options: dict[str, Any]) -> None:
    with pytest.raises(LlmcoreError):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 3, **options})


def test_a_step_computes_one_token_of_each_beam(folder: Path) -> None:
    """What a beam shares with the one it came from is copied, and not computed again."""
    with llmcore.LLM(bits_hash.load(folder, "f32", threads=1), max_batch_size=8) as llm:
        llm.beam_search([PROMPT], BeamSearchParams(beam_width=4, max_tokens=24, ignore_eos=True))
        again = sum(4 * (len(PROMPT) + step - 1) for step in range(1, 24))
        assert llm.stats()["prefix_hit_tokens"] == again
