"""llmcore beside OpenVINO GenAI on a Llama-3.2-1B shape with random weights: prefill 512, decode at any batch.

    pip install . openvino-genai "optimum-intel[openvino]" nncf torch
    optimum-cli export openvino -m MODEL --task text-generation-with-past --weight-format int8 build/peers/ov-int8
    optimum-cli export openvino -m MODEL --task text-generation-with-past --weight-format int4 --sym --group-size 128 \\
        --ratio 1.0 build/peers/ov-int4
    python bench/peers/openvino.py --batch 16

MODEL is any checkpoint of that shape; its folder needs a tokenizer of 128,256 tokens. Everything runs in one go,
interleaved, each model in its own process; the table goes to the terminal and all figures to bench/results/. OpenVINO
keeps keys and values in 8 bits by default, so llmcore does here.
"""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(BENCH)  # this file has the name of the package it measures

from peers import compare  # noqa: E402
from peers.compare import Row  # noqa: E402

SHAPE = "llama-3.2-1b"


def rows(folder: Path, wanted: str) -> list[Row]:
    """Each format of OpenVINO that is there, before the recipe that stands beside it."""
    result = []
    for format in ("int8", "int4"):
        if wanted in format and (folder / f"ov-{format}").is_dir():
            recipe = {"format": format}
            arguments = {"shape": SHAPE, "quantize": recipe, "kv_dtype": "int8"}
            result.append(Row(f"OpenVINO {format}", "openvino", {"folder": str(folder / f"ov-{format}")}))
            error = compare.weight_error(recipe)
            result.append(Row(f"llmcore {format}", "llmcore", arguments, f"OpenVINO {format}", error))
    return result


if __name__ == "__main__":
    compare.command(__doc__, "openvino", SHAPE, lambda args: rows(args.folder, args.only))
