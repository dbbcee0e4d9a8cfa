"""llmcore's ternary beside ik_llama.cpp's IQ2_BN on a Llama-3.2-1B shape with random weights.

    git clone https://github.com/ikawrakow/ik_llama.cpp, then cmake -DGGML_NATIVE=ON, targets llama-bench llama-quantize
    pip install . llama-cpp-python gguf
    python bench/peers/ik_llama.py --programs ik_llama.cpp/build/bin

llama-bench loads the file at every call, which isn't counted. Everything runs in one go, interleaved; the table goes to
the terminal and all figures to bench/results/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(BENCH)

from peers import compare, random_gguf  # noqa: E402
from peers.compare import Row  # noqa: E402

SHAPE = "llama-3.2-1b"


def rows(folder: Path, programs: Path, threads: int) -> list[Row]:
    """IQ2_BN (its head in Q8_0 or like the rest), llama.cpp's TQ2_0, and the recipes that stand beside them."""
    from llmcore.cli._shapes import SHAPES

    sources = random_gguf.make(SHAPES[SHAPE], ["F16", "TQ2_0"], folder, threads=threads)
    result = [Row("llama.cpp TQ2_0", "llama.cpp", {"path": str(sources["TQ2_0"])})]
    for name, options, pure in (
        ("IQ2_BN", ["--output-tensor-type", "q8_0", "--token-embedding-type", "q8_0"], False),
        ("IQ2_BN, pure", ["--pure"], True),
    ):
        target = folder / f"{sources['F16'].stem.removesuffix('-F16')}-{name.replace(', ', '-')}.gguf"
        if not target.exists():
            command = [programs / "llama-quantize", *options, sources["F16"], target, "IQ2_BN", str(threads)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        peer = Row(
            f"ik_llama.cpp {name}", "llama-bench", {"program": str(programs / "llama-bench"), "path": str(target)}
        )
        result.append(peer)
        for format in ("ternary", "ternary_dense"):
            arguments = {"shape": SHAPE, "quantize": {"format": format, "pure": pure}}
            result.append(Row(f"llmcore {format}{', pure' if pure else ''}", "llmcore", arguments, peer.name))
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--programs", type=Path, required=True, help="folder of llama-bench and llama-quantize")


if __name__ == "__main__":
    compare.command(
        __doc__,
        "ik_llama",
        SHAPE,
        lambda args: rows(args.folder, args.programs, args.threads),
        add_arguments=add_arguments,
    )
