"""Interleaved rounds over several models, each in its own process, and what is made of the figures.

On a shared machine speed drifts by tens of per cent within minutes. So every round times every model, the memory's read
bandwidth is measured between any two of them, ratios are taken within a round, and what is reported are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from peers.runtimes import CONTEXT, MOST_SEQUENCES, Llmcore

BENCH = Path(__file__).resolve().parents[1]
MOST_TOKENS = CONTEXT - 24


@dataclass(frozen=True)
class Row:
    """A model to time: its name in the table, its runtime and what opens it, and the row it is compared to."""

    name: str
    runtime: str
    arguments: dict[str, Any]
    baseline: str | None = None
    weight_error: float | None = None
    """Relative root-mean-square error of normal weights in this format."""


@dataclass
class Figures:
    """What was measured of a row, one entry a round."""

    row: Row
    facts: dict[str, Any]
    prefill: list[float] = field(default_factory=list)
    """Tokens per second."""
    decode: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    """Bytes per second, the mean of the probes before and after."""

    batch: int = 1

    def shares(self) -> list[float]:
        """Of the probe's bandwidth, what decoding used for weights."""
        used = self.facts["bytes_per_token"] / self.batch
        return [rate * used / bandwidth for rate, bandwidth in zip(self.decode, self.bandwidth, strict=True)]


class Worker:
    """The other end of runtimes.serve."""

    def __init__(self, runtime: str, arguments: dict[str, Any], log: Any) -> None:
        self._log = log
        self._name = runtime
        # -P: the folder of the script named after its package is not to be searched for that package.
        command = [sys.executable, "-P", "-m", "peers.runtimes", runtime, json.dumps(arguments)]
        paths = [str(BENCH), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        self.facts: dict[str, Any] = self._answer()

    def call(self, name: str, *arguments: float) -> float:
        """Calls a method of the runtime. Raises RuntimeError with the process's last words when it died."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it said is in the log
            print(json.dumps({"call": name, "arguments": arguments}), file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        raise RuntimeError(f"{self._name} stopped:\n{self._log.read()[-2000:]}")


@contextmanager
def open_worker(runtime: str, arguments: dict[str, Any]) -> Iterator[Worker]:
    """A runtime in a process of its own."""
    with tempfile.TemporaryFile("w+") as log:
        worker = Worker(runtime, arguments, log)
        try:
            yield worker
        finally:
            worker.close()


def measure(
    rows: Sequence[Row],
    *,
    threads: int,
    rounds: int,
    prefill_tokens: int,
    decode_tokens: int,
    batch: int = 1,
    say: Callable[[str], None],
) -> list[Figures]:
    """Times every row in every round, after a round that isn't counted. Every second round runs in reverse order."""
    with ExitStack() as stack:
        probe = stack.enter_context(open_worker("probe", {"threads": threads}))
        workers: dict[str, Worker] = {}
        for row in rows:
            say(f"loading {row.name}")
            workers[row.name] = stack.enter_context(open_worker(row.runtime, row.arguments | {"threads": threads}))
        figures = {row.name: Figures(row, workers[row.name].facts, batch=batch) for row in rows}
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}" if number else "warming up")
            before = probe.call("bandwidth", 0.3)
            for row in rows if number % 2 else reversed(rows):
                worker, result = workers[row.name], figures[row.name]
                prefill = worker.call("prefill", prefill_tokens, 2 * number)
                decode = worker.call("decode", decode_tokens, 2 * number + 1, batch)
                after = probe.call("bandwidth", 0.3)
                if number:
                    result.prefill.append(prefill_tokens / prefill)
                    result.decode.append(batch * decode_tokens / decode)
                    result.bandwidth.append((before + after) / 2)
                before = after
    return list(figures.values())


def summary(figures: Sequence[Figures]) -> list[dict[str, Any]]:
    """A record a row: medians, the figures of every round, and ratios to the baseline within each round."""
    by_name = {f.row.name: f for f in figures}
    records = []
    for f in figures:
        record: dict[str, Any] = {
            "name": f.row.name,
            "runtime": f.row.runtime,
            **f.facts,
            "weight_error": f.row.weight_error,
            "prefill_tokens_per_second": statistics.median(f.prefill),
            "decode_tokens_per_second": statistics.median(f.decode),
            "decode_bandwidth_share": statistics.median(f.shares()),
            "rounds": {
                "prefill_tokens_per_second": f.prefill,
                "decode_tokens_per_second": f.decode,
                "read_bandwidth_bytes_per_second": f.bandwidth,
            },
        }
        if f.row.baseline in by_name:
            base = by_name[f.row.baseline]
            record["baseline"] = f.row.baseline
            for name, mine, theirs in (("prefill", f.prefill, base.prefill), ("decode", f.decode, base.decode)):
                ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
                record[f"{name}_ratio"] = statistics.median(ratios)
                record["rounds"][f"{name}_ratio"] = ratios
        records.append(record)
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records for people, in Markdown."""
    head = (
        "",
        "MB per token",
        "weight error",
        "prefill, tokens/s",
        "ratio",
        "decode, tokens/s",
        "ratio",
        "of reads",
    )
    lines = [head, ("---", *("---:" for _ in head[1:]))]
    for r in records:
        rounds = r["rounds"]

        def ratio(name: str, r: dict[str, Any] = r, rounds: dict[str, Any] = rounds) -> str:
            if f"{name}_ratio" not in r:
                return ""
            each = rounds[f"{name}_ratio"]
            return f"{r[f'{name}_ratio']:.2f} ({min(each):.2f} to {max(each):.2f})"

        error = r["weight_error"]
        lines.append(
            (
                r["name"],
                f"{r['bytes_per_token'] / 1e6:.0f}",
                "" if error is None else f"{error:.1%}",
                f"{r['prefill_tokens_per_second']:.1f}",
                ratio("prefill"),
                f"{r['decode_tokens_per_second']:.1f}",
                ratio("decode"),
                f"{r['decode_bandwidth_share']:.0%}",
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def weight_error(quantize: dict[str, Any]) -> float:
    """Relative root-mean-square error of normal weights in a recipe's layers."""
    import numpy as np

    from llmcore import ops

    weights = np.random.default_rng(0).standard_normal((64, 2048), np.float32) * np.float32(0.02)
    own = Llmcore.recipe(quantize).own()
    decoded = ops.quantize(weights, own.format, group_size=own.group_size).dequantize()
    return float(np.sqrt(np.mean((decoded - weights) ** 2) / np.mean(weights**2)))


def machine(threads: int) -> dict[str, Any]:
    """What the figures belong to."""
    import llmcore
    from llmcore.machine import processor

    return {
        "processor": processor(),
        "isa": llmcore.isa(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def command(
    description: str | None,
    name: str,
    shape: str,
    make_rows: Callable[[argparse.Namespace], Sequence[Row]],
    *,
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """The command line of a peer's script: all rows in one go, a table to the terminal, all figures to a JSON file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=BENCH.parent / "build" / "peers", help="where models are kept (build/peers)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every runtime (2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="tokens of a prompt (512)")
    parser.add_argument("--decode-tokens", type=int, default=64, metavar="N", help="tokens of an answer (64)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences that decode at once (1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only llmcore's rows whose name contains TEXT")
    parser.add_argument("--results", type=Path, default=BENCH / "results", help="folder of the JSON file")
    add_arguments(parser)
    args = parser.parse_args()
    if min(args.threads, args.rounds) < 1:
        parser.error("--threads and --rounds must be at least 1")
    if not (1 <= args.prompt_tokens <= MOST_TOKENS and 1 <= args.decode_tokens <= MOST_TOKENS):
        parser.error(f"tokens must be within [1, {MOST_TOKENS}]")
    if not 1 <= args.batch <= MOST_SEQUENCES:
        parser.error(f"--batch must be within [1, {MOST_SEQUENCES}]")
    wanted = make_rows(args)
    if not wanted:
        parser.error(f"no row's name contains {args.only!r}")
    figures = measure(
        wanted,
        threads=args.threads,
        rounds=args.rounds,
        prefill_tokens=args.prompt_tokens,
        decode_tokens=args.decode_tokens,
        batch=args.batch,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    records = summary(figures)
    now = datetime.now().astimezone()
    report = {
        "time": now.isoformat(timespec="seconds"),
        "shape": shape,
        "prompt_tokens": args.prompt_tokens,
        "decode_tokens": args.decode_tokens,
        "batch": args.batch,
        "machine": machine(args.threads),
        "rows": records,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{now:%Y-%m-%d}-{name}{'' if args.batch == 1 else f'-batch{args.batch}'}.json"
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(table(records))
    print(f"\nfigures of every round: {target}")
