"""What quantising costs a model: error of its logits, change of its predictions, and its loss on a text, by format.

    python bench/quantization_error.py MODEL [--text FILE] [--chunks 8] [--tokens 200] [--calibrate OTHER] [--json OUT]

MODEL is a folder with float weights and a tokenizer. Every format is compared with the weights as they are stored:
  error    ||logits - stored|| / ||stored|| over all positions
  KL       mean Kullback-Leibler divergence of the next token's distribution from the stored model's, in nats
  top-1    share of positions where the likeliest token is the same
  loss     nats per token
With --calibrate, formats are rounded by GPTQ and scaled as AWQ and SmoothQuant do on that text, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

import llmcore

Doubles = npt.NDArray[np.float64]

RECIPES: tuple[tuple[str, llmcore.QuantConfig | None], ...] = (
    ("as stored", None),
    *((f"int8, {group or 'row'}", llmcore.QuantConfig(format="int8", group_size=group)) for group in (0, 128, 32)),
    *((f"int4, {group or 'row'}", llmcore.QuantConfig(format="int4", group_size=group)) for group in (0, 128, 64, 32)),
    *(
        (f"int4, {group}, mse", llmcore.QuantConfig(format="int4", group_size=group, scale="mse"))
        for group in (128, 32)
    ),
    *(
        (f"int4, {group}, zero", llmcore.QuantConfig(format="int4", group_size=group, symmetric=False))
        for group in (128, 32)
    ),
    *(
        (
            f"int4, {group}, minima",
            llmcore.QuantConfig(format="int4", group_size=group, symmetric=False, double_quant=True),
        )
        for group in (64, 32)
    ),
    (
        "int4, 32, minima mse",
        llmcore.QuantConfig(format="int4", group_size=32, symmetric=False, double_quant=True, scale="mse"),
    ),
    ("nf4, 64, double", llmcore.QuantConfig(format="nf4", group_size=64, double_quant=True)),
    *((f"nf4, {group}", llmcore.QuantConfig(format="nf4", group_size=group)) for group in (128, 64, 32)),
    ("nf4, 64, mse", llmcore.QuantConfig(format="nf4", group_size=64, scale="mse")),
    *((f"ternary, {group or 'row'}", llmcore.QuantConfig(format="ternary", group_size=group)) for group in (0, 64)),
)


CALIBRATED: tuple[tuple[str, llmcore.QuantConfig], ...] = (
    *(
        (f"int4, {group}, gptq", llmcore.QuantConfig(format="int4", group_size=group, rounding="gptq"))
        for group in (128, 32)
    ),
    ("int4, 128, mse gptq", llmcore.QuantConfig(format="int4", group_size=128, scale="mse", rounding="gptq")),
    ("int4, 128, zero gptq", llmcore.QuantConfig(format="int4", symmetric=False, rounding="gptq")),
    ("int4, 128, awq", llmcore.QuantConfig(format="int4", smoothing="awq")),
    ("int4, 128, awq gptq", llmcore.QuantConfig(format="int4", smoothing="awq", rounding="gptq")),
    ("int8, row, smooth", llmcore.QuantConfig(format="int8", smoothing="smoothquant")),
    ("nf4, 64, gptq", llmcore.QuantConfig(format="nf4", rounding="gptq")),
    ("ternary, 64, gptq", llmcore.QuantConfig(format="ternary", group_size=64, rounding="gptq")),
)


def log_softmax(logits: Doubles) -> Doubles:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def chunks_of(model: llmcore.Model, text: str, count: int, tokens: int) -> Iterator[list[int]]:
    """The beginnings of `count` equal parts of the text."""
    size = len(text) // count
    for start in range(0, count * size, size):
        yield model.require_tokenizer().encode(text[start : start + size])[:tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder with float weights")
    parser.add_argument("--text", type=Path, help="UTF-8 text; without one ids are random and the loss means little")
    parser.add_argument("--chunks", type=int, default=8, help="parts of the text to look at (default 8)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each part (default 200)")
    parser.add_argument("--calibrate", type=Path, help="UTF-8 text for GPTQ, another than --text")
    parser.add_argument("--json", type=Path, help="keep the table in this file, too")
    args = parser.parse_args()
    calibration = [args.calibrate.read_text("utf-8")[:200_000]] if args.calibrate else None
    records = []

    stored: list[Doubles] = []
    ids: list[list[int]] = []
    print(f"{'format':20} {'MB':>8} {'error':>9} {'KL':>9} {'top-1':>7} {'loss':>8}")
    for name, recipe in (*RECIPES, *(CALIBRATED if calibration else ())):
        texts = calibration if recipe is not None and recipe.needs_calibration() else None
        with llmcore.load(args.model, recipe, progress=False, calibration=texts) as model:
            if not ids and args.text:
                ids = list(chunks_of(model, args.text.read_text("utf-8"), args.chunks, args.tokens))
            elif not ids:
                rng = np.random.default_rng(0)
                ids = rng.integers(0, model.spec.vocab_size, (args.chunks, args.tokens)).tolist()
            logits = [np.asarray(model.forward(each, kv_dtype="f32"), np.float64) for each in ids]
            size = model.memory_usage()["weights"] / 1e6
        stored = stored or logits
        a, b = np.concatenate(logits), np.concatenate(stored)
        p, q = log_softmax(a), log_softmax(b)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        divergence = (np.exp(q) * (q - p)).sum(1).mean()
        same = (a.argmax(1) == b.argmax(1)).mean()
        losses = [-log_softmax(x[:-1])[np.arange(len(i) - 1), i[1:]] for x, i in zip(logits, ids, strict=True)]
        loss = np.concatenate(losses).mean()
        print(f"{name:20} {size:8.2f} {error:9.5f} {divergence:9.5f} {same:7.3f} {loss:8.4f}")
        figures = {"megabytes": size, "error": error, "kl": divergence, "top_1": same, "loss": loss}
        records.append({"format": name} | {key: float(value) for key, value in figures.items()})
    if args.json:
        args.json.write_text(json.dumps({"model": Path(args.model).name, "rows": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
