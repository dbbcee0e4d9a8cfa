"""Shares of the machine's ceilings that matrix products reach, each time beside a probe of the ceiling.

    python bench/matmul_shares.py [--rounds 9] [--formats int8,int4] [--json OUT]

One row: bytes per second of the weights over the read bandwidth, on matrices that no cache holds. More rows: operations
per second over the integer peak, and the bandwidth where that may bind. On a shared machine both ceilings drift within
seconds, so a probe is taken before and after each product's round, and medians of the rounds' shares are reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ceilings
import llmcore
from llmcore import ops
from llmcore.runtime import measure_read_bandwidth

FORMATS: dict[str, tuple[str, int | None]] = {
    "int8": ("int8", None),
    "int4": ("int4", None),
    "int4-32": ("int4", 32),
    "int6": ("int6", None),
    "ternary": ("ternary", None),
    "ternary_dense": ("ternary_dense", None),
    "nf4": ("nf4", None),
}
VECTORS = {"llama-3.1-8b gate_up": (28672, 4096), "llama-3.1-8b down": (4096, 14336)}
BATCHES = {"llama-3.2-1b gate_up": (16384, 2048), "llama-3.2-1b down": (2048, 8192)}
COLD_BYTES = 200 << 20


def copies(format: str, group_size: int | None, N: int, K: int, nbytes: int) -> list[ops.QuantizedTensor]:
    """The matrix, as often as it takes to have so many bytes."""
    weight = np.random.default_rng(0).standard_normal((N, K), np.float32)
    made = [ops.quantize(weight, format, group_size=group_size)]
    while len(made) * made[0].nbytes < nbytes:
        made.append(ops.quantize(weight, format, group_size=group_size))
    return made


def shares_of(work: Callable[[], float], probe: Callable[[], float], rounds: int) -> tuple[float, list[float]]:
    """The median of work's rates, and of each round its rate over the mean of the probes around it."""
    rates, shares = [], []
    before = probe()
    for _ in range(rounds):
        rate = work()
        after = probe()
        rates.append(rate)
        shares.append(2 * rate / (before + after))
        before = after
    return statistics.median(rates), sorted(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--rows", default="1,16,512", help="rows of activations (1,16,512)")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    args = parser.parse_args()
    threads = llmcore.get_num_threads()
    records: list[dict[str, Any]] = []

    def bandwidth() -> float:
        return measure_read_bandwidth(threads=threads, seconds=0.05)

    def peak() -> float:
        found = integer()
        if found is None:
            parser.error("no C++ compiler to build the probe of the integer peak with")
        return found

    with ceilings.integer_probe(threads) as integer:
        for rows in map(int, args.rows.split(",")):
            for name in args.formats.split(","):
                for shape, (N, K) in (VECTORS if rows == 1 else BATCHES).items():
                    matrices = copies(*FORMATS[name], N, K, COLD_BYTES if rows < 64 else 1)
                    x = np.random.default_rng(1).standard_normal((rows, K), np.float32)
                    y = np.zeros((rows, N), np.float32)
                    amount = len(matrices) * (matrices[0].nbytes if rows == 1 else 2 * rows * N * K)

                    def work() -> float:
                        start = time.perf_counter()
                        for matrix in matrices:  # noqa: B023 - called before the next
                            ops.matmul(x, matrix, out=y)  # noqa: B023
                        return amount / (time.perf_counter() - start)  # noqa: B023

                    work()
                    rate, shares = shares_of(work, bandwidth if rows == 1 else peak, args.rounds)
                    record = {"rows": rows, "format": name, "shape": shape, "rate": rate, "shares": shares}
                    text = f"{statistics.median(shares):4.0%} ({shares[0]:.0%} to {shares[-1]:.0%})"
                    unit, ceiling = ("GB/s", "reads") if rows == 1 else ("GOP/s", "int8")
                    if 1 < rows < 64:
                        per_operation = matrices[0].nbytes / (2 * rows * N * K)
                        _, of_reads = shares_of(lambda: work() * per_operation, bandwidth, args.rounds)  # noqa: B023
                        record["shares_of_reads"] = of_reads
                        text += f", {statistics.median(of_reads):.0%} of reads"
                    records.append(record)
                    print(
                        f"M = {rows:3} {name:14} {shape:22} {rate / 1e9:8.1f} {unit:5} {text} of {ceiling}", flush=True
                    )
    if args.json:
        machine = {"isa": llmcore.isa(), "threads": threads}
        args.json.write_text(json.dumps({"machine": machine, "rows": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
