"""llmcore beside llama.cpp on a Llama-3.2-1B shape with random weights: prefill 512 and decode at batch 1.

    pip install . llama-cpp-python gguf
    python bench/peers/llama_cpp.py

For figures that mean something build llama-cpp-python for this machine, not from a portable wheel:
    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python

The GGUF files (3 GB while they are made, 2.3 GB kept) go to --folder and are used again. Everything runs in one go,
interleaved, each model in its own process; the table goes to the terminal and all figures to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(BENCH)  # this file has the name of the package it measures

from peers import compare, random_gguf  # noqa: E402
from peers.compare import Row  # noqa: E402
from peers.runtimes import CONTEXT, Llmcore  # noqa: E402

SHAPE = "llama-3.2-1b"
MOST_TOKENS = CONTEXT - 24

# llmcore's rows: name, recipe, the llama.cpp format it stands beside. "pure": the head like the rest, as in the GGUF
# files; without it the head is int8, llmcore's default.
RECIPES: list[tuple[str, dict[str, Any], str]] = [
    ("int8", {"format": "int8"}, "Q8_0"),
    ("int4", {"format": "int4"}, "Q4_0"),
    ("int4, groups of 32, pure", {"format": "int4", "group_size": 32, "pure": True}, "Q4_0"),
    ("ternary", {"format": "ternary"}, "TQ2_0"),
    ("ternary, pure", {"format": "ternary", "pure": True}, "TQ2_0"),
]


def rows(folder: Path, threads: int, wanted: str) -> list[Row]:
    """The rows whose llmcore name contains `wanted`, each peer before the rows that are compared with it."""
    from llmcore.cli._shapes import SHAPES

    recipes = [recipe for recipe in RECIPES if wanted in recipe[0]]
    formats = list(dict.fromkeys(peer for _, _, peer in recipes))
    files = random_gguf.make(SHAPES[SHAPE], formats, folder, threads=threads)
    result = []
    for peer in formats:
        name = f"llama.cpp {peer}"
        result.append(Row(name, "llama.cpp", {"path": str(files[peer])}, None, random_gguf.weight_error(peer)))
        for title, quantize, beside in recipes:
            if beside == peer:
                arguments = {"shape": SHAPE, "quantize": quantize}
                result.append(Row(f"llmcore {title}", "llmcore", arguments, name, weight_error(quantize)))
    return result


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
    from llmcore.cli._machine import processor

    return {
        "processor": processor(),
        "isa": llmcore.isa(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=BENCH.parent / "build" / "peers", help="where GGUF files are kept"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every runtime (2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="tokens of a prompt (512)")
    parser.add_argument("--decode-tokens", type=int, default=64, metavar="N", help="tokens of an answer (64)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only llmcore's rows whose name contains TEXT")
    parser.add_argument("--results", type=Path, default=BENCH / "results", help="folder of the JSON file")
    args = parser.parse_args()
    if min(args.threads, args.rounds) < 1:
        parser.error("--threads and --rounds must be at least 1")
    if not (1 <= args.prompt_tokens <= MOST_TOKENS and 1 <= args.decode_tokens <= MOST_TOKENS):
        parser.error(f"tokens must be within [1, {MOST_TOKENS}]")
    wanted = rows(args.folder, args.threads, args.only)
    if not wanted:
        parser.error(f"no row's name contains {args.only!r}")
    figures = compare.measure(
        wanted,
        threads=args.threads,
        rounds=args.rounds,
        prefill_tokens=args.prompt_tokens,
        decode_tokens=args.decode_tokens,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    records = compare.summary(figures)
    now = datetime.now().astimezone()
    report = {
        "time": now.isoformat(timespec="seconds"),
        "shape": SHAPE,
        "prompt_tokens": args.prompt_tokens,
        "decode_tokens": args.decode_tokens,
        "machine": machine(args.threads),
        "rows": records,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{now:%Y-%m-%d}-llama_cpp.json"
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(compare.table(records))
    print(f"\nfigures of every round: {target}")


if __name__ == "__main__":
    main()
