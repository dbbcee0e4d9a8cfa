"""llmcore quantize: a checkpoint packed once, so that later loads only read."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from llmcore.cli._arguments import MODEL_HELP, integer
from llmcore.cli._terminal import print_facts, print_json
from llmcore.progress import quantity
from llmcore.quantization import SMOOTHINGS

HELP = "Pack a checkpoint's weights into a folder that loads at once"

_EPILOG = """\
examples:
  llmcore quantize path/to/model -o model-int4 --format int4
  llmcore quantize path/to/model -o model-int8                          int8, the default
  llmcore quantize path/to/model -o mixed --format int4 --group-size 64 --skip "model.layers.0.*"
  llmcore quantize path/to/model -o better --format int4 --calibrate text.txt
  llmcore quantize path/to/model -o packed --format none                as stored, only laid out for this program
  llmcore run model-int4 "Once upon a time"

The folder holds config.json, the tokenizer's files and the weights as they lie in memory. It runs on every machine with
the same bits as `--quantize` of the checkpoint itself.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore quantize`."""
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--format",
        default="int8",
        metavar="FORMAT",
        help="int8 (default) to int2, nf4, iq4, fp4, ternary, ternary_dense, or none: as stored",
    )
    parser.add_argument(
        "--group-size", type=integer, metavar="N", help="weights of a row that share a scale: 16, 32, 64, 128"
    )
    parser.add_argument(
        "--head", metavar="FORMAT", help="format of embedding and head (default: int8, below 8 bits int6)"
    )
    parser.add_argument("--asymmetric", action="store_true", help="a zero point for each scale (int2 to int8)")
    parser.add_argument("--double-quant", action="store_true", help="int8 scales; with --asymmetric minima, as in Q4_K")
    parser.add_argument("--scale", choices=["max", "mse"], default="max", help="mse: search scales for less error")
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="UTF-8 text like what the model will see: round by GPTQ on it",
    )
    parser.add_argument(
        "--smoothing", choices=SMOOTHINGS, default="none", help="scale columns as AWQ or SmoothQuant do, on that text"
    )
    parser.add_argument(
        "--calibration-tokens", type=integer, default=16384, metavar="N", help="tokens of it that are looked at (16384)"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="MODULE", help="as stored; * matches any text")
    parser.add_argument("--json", action="store_true", help="one JSON object")


_OF_A_FORMAT: dict[str, object] = {
    "group_size": None,
    "head": None,
    "asymmetric": False,
    "double_quant": False,
    "scale": "max",
    "calibrate": None,
    "skip": [],
}
"""The options that say how to quantise, and what they are when not given."""


def _beginning(args: argparse.Namespace) -> list[int]:
    """The first tokens of the calibration text."""
    import llmcore
    from llmcore.checkpoint.readers import open_checkpoint
    from llmcore.errors import ArgumentError, escape

    if args.calibration_tokens < 1:
        raise ArgumentError("--calibration-tokens must be at least 1")
    try:
        with open(args.calibrate, encoding="utf-8") as file:
            text = file.read(64 * args.calibration_tokens)  # characters; no token is that long on the average
    except OSError as error:
        raise ArgumentError(f"can't read {escape(args.calibrate)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ArgumentError(f"{escape(args.calibrate)} is not UTF-8 text") from None
    if not text.strip():
        raise ArgumentError(f"{escape(args.calibrate)} holds no text")
    with open_checkpoint(args.model) as checkpoint:
        tokenizer = llmcore.Tokenizer.load(checkpoint.path)
    return tokenizer.encode(text)[: args.calibration_tokens]


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore quantize`."""
    import llmcore
    from llmcore.packed import check_free

    check_free(args.output)
    recipe = None
    if args.format != "none":
        recipe = llmcore.QuantConfig(
            format=args.format,
            group_size=args.group_size,
            head=args.head,
            skip=args.skip,
            scale=args.scale,
            symmetric=not args.asymmetric,
            double_quant=args.double_quant,
            rounding="gptq" if args.calibrate else "nearest",
            smoothing=args.smoothing,
        )
    else:
        for name, default in _OF_A_FORMAT.items():
            if getattr(args, name) != default:
                option = name.replace("_", "-")
                raise llmcore.ArgumentError(
                    f"--{option} needs a format to quantise to: leave it out with --format none"
                )
    if args.smoothing != "none" and not args.calibrate:
        raise llmcore.ArgumentError("--smoothing needs --calibrate FILE")
    texts = [_beginning(args)] if args.calibrate else None
    start = time.perf_counter()
    with llmcore.load(args.model, recipe, calibration=texts) as model:
        loaded = time.perf_counter()
        model.save(args.output)
        report = {
            "model": args.model,
            "output": args.output,
            "format": args.format,
            "weight_bytes": model.memory_usage()["weights"],
            "file_bytes": sum(file.stat().st_size for file in Path(args.output).iterdir()),
            "pack_seconds": loaded - start,
            "write_seconds": time.perf_counter() - loaded,
        }
    if args.json:
        print_json(report)
        return 0
    times = f"packed in {report['pack_seconds']:.1f} s, written in {report['write_seconds']:.1f} s"
    print_facts(
        [
            ("written", args.output),
            ("weights", f"{args.format}, {quantity(report['weight_bytes'], 'B')}"),
            ("files", quantity(report["file_bytes"], "B")),
            ("time", times),
        ]
    )
    return 0
