"""llmcore beside llama.cpp on a Llama-3.2-1B shape with random weights: prefill 512 and decode at any batch.

    pip install . llama-cpp-python gguf
    python bench/peers/llama_cpp.py --batch 16

For figures that mean something build llama-cpp-python for this machine, not from a portable wheel:
    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python

The GGUF files (3 GB while they are made, 2.3 GB kept) go to --folder and are used again. Everything runs in one go,
interleaved, each model in its own process; the table goes to the terminal and all figures to bench/results/.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(BENCH)  # this file has the name of the package it measures

from peers import compare, random_gguf  # noqa: E402
from peers.compare import Row  # noqa: E402

SHAPE = "llama-3.2-1b"

# llmcore's rows: name, recipe, the llama.cpp format it stands beside. "pure": the head like the rest, as in the GGUF
# files; without it the head is llmcore's default.
RECIPES: list[tuple[str, dict[str, Any], str]] = [
    ("int8", {"format": "int8"}, "Q8_0"),
    ("int4", {"format": "int4"}, "Q4_0"),
    ("int4, pure", {"format": "int4", "pure": True}, "Q4_0"),
    ("int4, groups of 32, pure", {"format": "int4", "group_size": 32, "pure": True}, "Q4_0"),
    ("ternary", {"format": "ternary"}, "TQ2_0"),
    ("ternary, pure", {"format": "ternary", "pure": True}, "TQ2_0"),
    ("ternary_dense, pure", {"format": "ternary_dense", "pure": True}, "TQ2_0"),
]
# Formats whose file llmcore loads, too.
SAME_FILE = ("Q8_0", "Q4_0", "Q4_K_M", "Q6_K")


def rows(folder: Path, threads: int, wanted: str) -> list[Row]:
    """The rows whose llmcore name contains `wanted`, each peer before the rows that are compared with it."""
    from llmcore.cli._shapes import SHAPES

    recipes = [recipe for recipe in RECIPES if wanted in recipe[0]]
    same = [peer for peer in SAME_FILE if wanted in f"{peer}, the same file"]
    formats = list(dict.fromkeys([*(peer for _, _, peer in recipes), *same]))
    files = random_gguf.make(SHAPES[SHAPE], formats, folder, threads=threads)
    result = []
    for peer in formats:
        name = f"llama.cpp {peer}"
        result.append(Row(name, "llama.cpp", {"path": str(files[peer])}, None, random_gguf.weight_error(peer)))
        for title, quantize, beside in recipes:
            if beside == peer:
                arguments = {"shape": SHAPE, "quantize": quantize}
                result.append(Row(f"llmcore {title}", "llmcore", arguments, name, compare.weight_error(quantize)))
        if peer in same:
            result.append(Row(f"llmcore {peer}, the same file", "llmcore", {"path": str(files[peer])}, name))
    return result


def main() -> None:
    compare.command(__doc__, "llama_cpp", SHAPE, lambda args: rows(args.folder, args.threads, args.only))


if __name__ == "__main__":
    main()
