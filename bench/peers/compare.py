"""Interleaved rounds over several models, each in its own process, and what is made of the figures.

On a shared machine speed drifts by tens of per cent within minutes. So every round times every model, the memory's read
bandwidth is measured between any two of them, ratios are taken within a round, and what is reported are medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]


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

    def shares(self) -> list[float]:
        """Of the probe's bandwidth, what decoding used for weights."""
        used = self.facts["bytes_per_token"]
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
    say: Callable[[str], None],
) -> list[Figures]:
    """Times every row in every round, after a round that isn't counted. Every second round runs in reverse order."""
    with ExitStack() as stack:
        probe = stack.enter_context(open_worker("probe", {"threads": threads}))
        workers: dict[str, Worker] = {}
        for row in rows:
            say(f"loading {row.name}")
            workers[row.name] = stack.enter_context(open_worker(row.runtime, row.arguments | {"threads": threads}))
        figures = {row.name: Figures(row, workers[row.name].facts) for row in rows}
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}" if number else "warming up")
            before = probe.call("bandwidth", 0.3)
            for row in rows if number % 2 else reversed(rows):
                worker, result = workers[row.name], figures[row.name]
                prefill = worker.call("prefill", prefill_tokens, 2 * number)
                decode = worker.call("decode", decode_tokens, 2 * number + 1)
                after = probe.call("bandwidth", 0.3)
                if number:
                    result.prefill.append(prefill_tokens / prefill)
                    result.decode.append(decode_tokens / decode)
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
