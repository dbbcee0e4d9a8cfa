"""The engine's own goals: time to first token behind a shared prefix, decoding and prefill at depth, flat memory.

    python bench/engine.py [--rounds 5] [--depths 2048 8192] [--sequences 1] [--requests 100000] [--weights int4]
                           [--json bench/results/DATE-engine.json]

A model of Llama-3.2-1B's shape with random weights; what is compared is measured in turns, and what is printed are
medians of ratios within a round. Prefill: four prompts of 512 tokens around each of 2,048. Depths: tokens a second
while so many tokens of each of `--sequences` are in the cache, beside the same with none. Memory: the resident set
while the built-in model answers `--requests` short requests, one after another in batches of 64, against that after
the first tenth of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import llmcore
from llmcore import SamplingParams
from llmcore.checkpoint.config import Config
from llmcore.cli._shapes import SHAPES
from llmcore.model import random_model
from llmcore.models.registry import resolve

PREFIX = 1000
SHARERS = 8
ANSWER = 24
KV_DTYPES = ("f16", "int12", "int8")


def one_billion(weights: str) -> llmcore.Model:
    config = Config(SHAPES["llama-3.2-1b"], file="llama-3.2-1b")
    return random_model(resolve(config).spec(config), quantize=weights)


def tokens(model: llmcore.Model, count: int) -> list[int]:
    return random.choices(range(model.spec.vocab_size), k=count)


def greedy(count: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


def first_tokens(model: llmcore.Model, rounds: int) -> dict[str, float]:
    """Times to first token, of the second to the last of those who share a prefix, as shares of a cold one's."""
    one_by_one, at_once = [], []
    with llmcore.LLM(model, max_model_len=PREFIX + 64, max_batch_size=SHARERS) as llm:
        for _ in range(rounds):
            for times, together in ((one_by_one, False), (at_once, True)):
                prefix = tokens(model, PREFIX)
                prompts = [prefix + tokens(model, 20) for _ in range(SHARERS)]
                cold = llm.generate(tokens(model, PREFIX + 20), greedy(1), progress=False)[0].metrics
                if together:  # the first has begun
                    llm.generate(prompts[0], greedy(1), progress=False)
                    outputs = llm.generate(prompts[1:], greedy(1), progress=False)
                else:
                    outputs = [llm.generate(prompt, greedy(1), progress=False)[0] for prompt in prompts][1:]
                warm = [output.metrics.time_to_first_token for output in outputs]
                times.append(statistics.median(warm) / cold.time_to_first_token)
    return {"one after another": statistics.median(one_by_one), "seven at once": statistics.median(at_once)}


def depths(model: llmcore.Model, at: list[int], rounds: int, sequences: int) -> dict[str, Any]:
    """Decoded tokens a second at depths, of all sequences together, by type of the keys and values."""
    found: dict[str, Any] = {}
    rates: dict[tuple[str, int], list[float]] = {}
    prompts = [tokens(model, max(at)) for _ in range(sequences)]
    room = max(at) + (2 * len(at) + 3) * ANSWER  # of a sequence: answers stay in the cache, too
    engines = {kv: llmcore.LLM(model, max_model_len=room, max_batch_size=sequences, kv_dtype=kv) for kv in KV_DTYPES}
    for llm in engines.values():
        llm.generate(prompts, greedy(1), progress=False)  # from here on, prompts come from the cache
    for _ in range(rounds):
        for depth in (1, *at):
            for kv, llm in engines.items():
                outputs = llm.generate([prompt[:depth] for prompt in prompts], greedy(ANSWER), progress=False)
                assert all(output.metrics.cached_tokens == depth - 1 for output in outputs), "prefill would be timed"
                each = statistics.median(output.metrics.time_per_token for output in outputs)
                rates.setdefault((kv, depth), []).append(sequences / each)
    for llm in engines.values():
        llm.close()
    for kv in engines:
        for depth in (1, *at):
            ratios = [a / b for a, b in zip(rates[kv, depth], rates[kv, 1], strict=True)]
            found[f"{kv}, depth {depth}"] = {
                "tokens/s": statistics.median(rates[kv, depth]),
                "of depth 1": statistics.median(ratios),
            }
    for depth in at:
        for kv in KV_DTYPES[1:]:
            ratios = [a / b for a, b in zip(rates[kv, depth], rates["f16", depth], strict=True)]
            found[f"{kv} over f16, depth {depth}"] = statistics.median(ratios)
    return found


def prefill(model: llmcore.Model, rounds: int) -> dict[str, float]:
    """Tokens a second of prompts of 512 and 2,048 tokens, by type of the keys and values."""

    def seconds(llm: llmcore.LLM, length: int) -> float:
        metrics = llm.generate(tokens(model, length), greedy(1), progress=False)[0].metrics
        return metrics.time_to_first_token - metrics.queue_time

    rates: dict[tuple[str, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        engines = {
            kv: stack.enter_context(
                llmcore.LLM(model, max_model_len=2056, max_batch_size=1, kv_dtype=kv, enable_prefix_caching=False)
            )
            for kv in KV_DTYPES
        }
        for kv, llm in list(engines.items()) * rounds:
            short = [seconds(llm, 512) for _ in range(2)]
            long = seconds(llm, 2048)
            short += [seconds(llm, 512) for _ in range(2)]
            rates.setdefault((kv, 512), []).append(2048 / sum(short))
            rates.setdefault((kv, 2048), []).append(2048 / long)
    found = {f"{kv}, {length} tokens, tokens/s": statistics.median(times) for (kv, length), times in rates.items()}
    for kv in KV_DTYPES:
        ratios = [a / b for a, b in zip(rates[kv, 2048], rates[kv, 512], strict=True)]
        found[f"{kv}, 2048 of 512"] = statistics.median(ratios)
    return found


def resident() -> int:
    """Bytes of the process in memory."""
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024


def memory(requests: int) -> dict[str, float]:
    """The resident set over many requests, as a share of that after the first tenth."""
    with llmcore.LLM("tiny", max_batch_size=64) as llm:
        vocab = llm.model.spec.vocab_size
        begin = 0
        highest = 0
        for done in range(0, requests, 64):
            if done >= requests // 10 and not begin:
                begin = resident()
            prompts = [random.choices(range(vocab), k=random.randrange(1, 40)) for _ in range(64)]
            llm.generate(prompts, SamplingParams(max_tokens=4, seed=done), progress=False)
            highest = max(highest, resident()) if begin else 0
        return {"after a tenth, MB": begin / 1e6, "at the end": resident() / begin, "highest": highest / begin}


def main() -> int:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--sequences", type=int, default=1, help="that are decoded at once at depths")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--weights", default="int4", help="format of the weights")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    random.seed(0)
    report: dict[str, Any] = {"isa": llmcore.isa(), "threads": llmcore.get_num_threads(), "weights": options.weights}
    report["sequences"] = options.sequences
    if options.requests:
        report["memory"] = memory(options.requests)
    with one_billion(options.weights) as model:
        report["first token behind a shared prefix, of a cold one"] = first_tokens(model, options.rounds)
        report["prefill"] = prefill(model, options.rounds)
        report["decoding"] = depths(model, sorted(options.depths), options.rounds, options.sequences)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
