"""llmcore plan: how much memory a model will take, before anything is loaded."""

from __future__ import annotations

import argparse
from typing import Any

from llmcore.cli._arguments import BUILT_IN, MODEL_HELP, integer
from llmcore.cli._terminal import print_facts, print_json
from llmcore.errors import ArgumentError
from llmcore.progress import quantity

HELP = "Say how much memory a model will take, without loading it"

_EPILOG = """\
examples:
  llmcore plan path/to/model                            as stored, one text of the model's full context
  llmcore plan path/to/model --quantize int4 --context 2048 --batch-size 8 --kv-dtype int8
  llmcore plan --json | jq .total
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore plan`."""
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", default=BUILT_IN, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--quantize", metavar="FORMAT", help="as in llmcore quantize (default: as stored)")
    parser.add_argument(
        "--context", type=integer, metavar="N", help="tokens of a text (default: the model's own maximum)"
    )
    parser.add_argument("--batch-size", type=integer, default=1, metavar="N", help="texts at the same time (1)")
    parser.add_argument(
        "--kv-dtype", default="auto", metavar="TYPE", help="of the KV cache: f32, f16, bf16, int12, int8, int4"
    )
    parser.add_argument("--threads", type=integer, metavar="N", help="each has its own memory (default: all cores)")
    parser.add_argument("--json", action="store_true", help="one JSON object, in bytes")


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore plan`."""
    import llmcore

    try:
        planned = llmcore.plan(
            args.model,
            args.quantize,
            max_model_len=args.context,
            max_batch_size=args.batch_size,
            kv_dtype=args.kv_dtype,
            threads=args.threads,
        )
    except ArgumentError as error:
        message = str(error).replace("max_model_len", "--context").replace("max_batch_size", "--batch-size")
        raise ArgumentError(message.replace("threads must", "--threads must")) from None
    sizes: dict[str, Any] = {kind: getattr(planned, kind) for kind in ("weights", "kv_cache", "activations", "total")}
    if args.json:
        print_json({"model": args.model, "quantize": args.quantize, **sizes})
    else:
        print_facts([(kind.replace("kv_cache", "KV cache"), quantity(size, "B")) for kind, size in sizes.items()])
    return 0
