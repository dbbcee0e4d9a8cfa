"""llmcore bench: how fast a model runs, and how near that is to what the memory can deliver."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcore.cli._arguments import BUILT_IN, MODEL_HELP, add_loading, integer, load_model
from llmcore.cli._shapes import SHAPES
from llmcore.cli._terminal import note, print_facts, print_json
from llmcore.errors import ArgumentError, escape
from llmcore.progress import Progress, quantity

if TYPE_CHECKING:
    from llmcore.llm import LLM
    from llmcore.model import Model
    from llmcore.models.spec import DecoderSpec

HELP = "Measure tokens per second and the share of the memory's bandwidth"

_EPILOG = f"""\
examples:
  llmcore bench path/to/model                              as stored, all cores
  llmcore bench path/to/model --quantize int4 --threads 2
  llmcore bench --random llama-3.2-1b --quantize int8      random weights of that shape: no checkpoint needed
  llmcore bench --random qwen2.5-0.5b --batch-size 8 --json
  llmcore bench --random llama-3.2-1b --quantize int4 --depth 2048 --kv-dtype int8

shapes: {", ".join(SHAPES)}

prefill: the prompts go through the model in one call; tokens per second are those of the prompts.
decode: answers to prompts of one token, or of --depth tokens that are in the cache already; tokens per second are those
of all answers together.
Before and after each round it is measured how fast this many threads read memory, for on a shared machine that changes
from minute to minute; the share is of the mean of the two. Figures are medians over the rounds, after one that isn't
counted. A model that fits the processor's caches can be faster than its memory.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore bench`."""
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--random", metavar="SHAPE", help="random weights of a named shape, instead of a checkpoint")
    add_loading(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument("--prompt-tokens", type=integer, metavar="N", help="tokens of a prompt (512)")
    group.add_argument("--decode-tokens", type=integer, metavar="N", help="tokens of an answer (64)")
    group.add_argument(
        "--depth", type=integer, default=0, metavar="N", help="tokens before an answer, in the cache (0)"
    )
    group.add_argument(
        "--kv-dtype", default="auto", metavar="TYPE", help="of the KV cache: f32, f16, bf16, int12, int8, int4"
    )
    group.add_argument("--batch-size", type=integer, default=1, metavar="N", help="prompts at the same time (1)")
    group.add_argument("--rounds", type=integer, default=5, metavar="N", help="rounds that count (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with the figures of every round")


@dataclass(frozen=True)
class Round:
    """One round: tokens per second, and bytes per second of the probe beside it."""

    prefill: float
    decode: float
    bandwidth: float


@dataclass(frozen=True)
class Load:
    """What is measured: prompts of `prompt_tokens`, answers of `decode_tokens` behind `depth`, in a batch."""

    prompt_tokens: int
    decode_tokens: int
    batch_size: int
    depth: int


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore bench`."""
    for name in ("prompt_tokens", "decode_tokens", "batch_size", "rounds"):
        count = getattr(args, name)
        if count is not None and count < 1:
            raise ArgumentError(f"--{name.replace('_', '-')} must be at least 1, got {count}")
    if args.depth < 0:
        raise ArgumentError(f"--depth must be at least 0, got {args.depth}")
    import llmcore
    from llmcore.runtime import measure_read_bandwidth

    if args.threads is not None:
        llmcore.set_num_threads(args.threads)
    with _open(args) as model:
        context = model.spec.max_position_embeddings
        load = Load(
            _length("--prompt-tokens", args.prompt_tokens, 512, context),
            _length("--decode-tokens", args.decode_tokens, 64, context),
            args.batch_size,
            args.depth,
        )
        if load.depth + load.decode_tokens >= context:
            raise ArgumentError(
                f"--depth and --decode-tokens together must be below this model's context of {context} tokens, "
                f"got {load.depth} and {load.decode_tokens}"
            )
        length = max(load.prompt_tokens, load.depth + load.decode_tokens) + 2
        threads = model.threads
        with llmcore.LLM(
            model, max_model_len=length, max_batch_size=load.batch_size, kv_dtype=args.kv_dtype, progress=False
        ) as llm:
            rounds = measure(llm, load, args.rounds, lambda: measure_read_bandwidth(threads=threads, seconds=0.3))
        report = _report(model, args, load, threads, rounds)
    if args.json:
        print_json(report)
    else:
        print_facts(_facts(report))
    return 0


def _open(args: argparse.Namespace) -> Model:
    if args.random is None:
        return load_model(args.model or BUILT_IN, args)
    if args.model is not None:
        raise ArgumentError("give MODEL or --random SHAPE, not both")
    if args.random not in SHAPES:
        raise ArgumentError(f"no shape {escape(args.random)} for --random; there are: {', '.join(SHAPES)}")
    from llmcore.model import random_model

    note(f"making random weights of shape {args.random}")
    return random_model(named_spec(args.random), quantize=args.quantize)


def _length(option: str, wanted: int | None, default: int, context: int) -> int:
    """A length in tokens. The default gives way to a short context, down to half of it; what was asked for doesn't."""
    if wanted is None:
        return min(default, max(context // 2, 1))
    if wanted >= context:
        raise ArgumentError(f"{option} must be below this model's context of {context} tokens, got {wanted}")
    return wanted


def measure(llm: LLM, load: Load, rounds: int, probe: Callable[[], float]) -> list[Round]:
    """Runs `rounds` rounds after one that isn't counted; `probe` gives the bandwidth in bytes per second."""
    from llmcore.sampling import SamplingParams

    once = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    answer = SamplingParams(temperature=0, max_tokens=load.decode_tokens, ignore_eos=True)
    source = random.Random(0)
    results = []
    with Progress(rounds + 1, "measuring", "rounds") as progress:
        before = probe()
        for _ in range(rounds + 1):
            # New prompts each time, or the prefix cache would answer for the model.
            prefill = _seconds(llm, _prompts(llm, source, load.batch_size, load.prompt_tokens), once)
            before_answer = _prompts(llm, source, load.batch_size, load.depth or 1)
            if load.depth:
                llm.generate(before_answer, once, progress=False)
            decode = _seconds(llm, before_answer, answer)
            after = probe()
            results.append(
                Round(
                    load.batch_size * load.prompt_tokens / prefill,
                    load.batch_size * load.decode_tokens / decode,
                    (before + after) / 2,
                )
            )
            before = after
            progress.advance()
    return results[1:]


def _prompts(llm: LLM, source: random.Random, count: int, length: int) -> list[list[int]]:
    vocab_size = llm.model.spec.vocab_size
    return [[source.randrange(vocab_size) for _ in range(length)] for _ in range(count)]


def _seconds(llm: LLM, prompts: list[list[int]], params: Any) -> float:
    start = time.perf_counter()
    llm.generate(prompts, params, progress=False)
    return time.perf_counter() - start


def named_spec(shape: str) -> DecoderSpec:
    """The decoder of a named shape, as if its config.json had been read."""
    from llmcore.checkpoint.config import Config
    from llmcore.models.registry import describe

    return describe(Config(SHAPES[shape], file=shape))[1]


def _report(model: Model, args: argparse.Namespace, load: Load, threads: int, rounds: list[Round]) -> dict[str, Any]:
    import llmcore
    from llmcore.model import kv_bytes_per_page

    weights = model.bytes_per_token()
    kv = 0
    if load.depth:
        kv_dtype = model.kv_dtype if args.kv_dtype == "auto" else args.kv_dtype
        kv = load.batch_size * load.depth * kv_bytes_per_page(model.spec, kv_dtype) // 16
    # A step reads the weights once, whatever the batch.
    shares = [r.decode / load.batch_size * (weights + kv) / r.bandwidth for r in rounds]
    return {
        "model": args.random or args.model or BUILT_IN,
        "random": args.random is not None,
        "quantize": args.quantize,
        "isa": llmcore.isa(),
        "threads": threads,
        "prompt_tokens": load.prompt_tokens,
        "decode_tokens": load.decode_tokens,
        "batch_size": load.batch_size,
        "depth": load.depth,
        "kv_dtype": args.kv_dtype,
        "prefill_tokens_per_second": statistics.median(r.prefill for r in rounds),
        "decode_tokens_per_second": statistics.median(r.decode for r in rounds),
        "bytes_per_token": weights,
        "kv_bytes_per_step": kv,
        "weight_bytes": model.memory_usage()["weights"],
        "decode_bytes_per_second": statistics.median(r.decode / load.batch_size * (weights + kv) for r in rounds),
        "read_bandwidth_bytes_per_second": statistics.median(r.bandwidth for r in rounds),
        "bandwidth_share": statistics.median(shares),
        "rounds": [
            {
                "prefill_tokens_per_second": r.prefill,
                "decode_tokens_per_second": r.decode,
                "read_bandwidth_bytes_per_second": r.bandwidth,
                "bandwidth_share": share,
            }
            for r, share in zip(rounds, shares, strict=True)
        ],
    }


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people: each median with the range over the rounds."""

    def spread(key: str, show: Callable[[float], str]) -> str:
        values = [r[key] for r in report["rounds"]]
        middle = show(statistics.median(values))
        return middle if len(values) == 1 else f"{middle}  ({show(min(values))} to {show(max(values))})"

    def tokens(value: float) -> str:
        return f"{value:,.1f}"

    batch = f", batch of {report['batch_size']}" if report["batch_size"] > 1 else ""
    depth = f" behind {report['depth']}" if report["depth"] else ""
    kv = f" and {quantity(report['kv_bytes_per_step'], 'B')} of keys and values" if report["depth"] else ""
    rate = quantity(report["decode_bytes_per_second"], "B")
    return [
        ("model", f"{report['model']}{', random weights' if report['random'] else ''}"),
        ("weights", f"{report['quantize'] or 'as stored'}, {quantity(report['weight_bytes'], 'B')}"),
        ("machine", f"{report['isa']}, {report['threads']} thread{'' if report['threads'] == 1 else 's'}"),
        (f"prefill {report['prompt_tokens']}{batch}", f"{spread('prefill_tokens_per_second', tokens)} tokens/s"),
        (f"decode {report['decode_tokens']}{depth}{batch}", f"{spread('decode_tokens_per_second', tokens)} tokens/s"),
        ("bytes per token", f"{quantity(report['bytes_per_token'], 'B')} of weights{kv}, read at {rate}/s"),
        ("memory reads", spread("read_bandwidth_bytes_per_second", lambda v: f"{quantity(v, 'B')}/s")),
        ("share of it", spread("bandwidth_share", lambda v: f"{v:.0%}")),
    ]
