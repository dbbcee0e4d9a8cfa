"""llmcore inspect: what is in a checkpoint."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmcore.cli._arguments import BUILT_IN, MODEL_HELP, integer
from llmcore.cli._terminal import print_facts, print_json, print_table
from llmcore.errors import ArgumentError, CheckpointError, LlmcoreError, UnsupportedModelError
from llmcore.progress import quantity

if TYPE_CHECKING:
    from llmcore.checkpoint.readers import Checkpoint
    from llmcore.checkpoint.safetensors import TensorInfo
    from llmcore.models.binding import Binding
    from llmcore.packed import PackedCheckpoint

HELP = "Show what is in a checkpoint, without loading its weights"

_EPILOG = """\
examples:
  llmcore inspect                                 the built-in model
  llmcore inspect path/to/model                   architecture, tensors, bytes, tokenizer
  llmcore inspect path/to/model --quantize int4   how much memory it would take so
  llmcore inspect path/to/model --tensors         every tensor, instead of one line for all layers
  llmcore inspect --json | jq .parameters
"""

DEFAULT_CONTEXT = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore inspect`."""
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", default=BUILT_IN, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--quantize", metavar="FORMAT", help="show the memory with the weights in this format")
    parser.add_argument(
        "--context", type=integer, metavar="N", help=f"... and one text of N tokens ({DEFAULT_CONTEXT})"
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every tensor")


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore inspect`."""
    from llmcore.checkpoint.readers import open_checkpoint

    checkpoint = open_checkpoint(args.model)
    try:
        report = _report(checkpoint, args)
        if args.json:
            print_json(report | {"tensors": _tensor_list(checkpoint.tensors)})
            return 0
        print_facts(_facts(report))
        print()
        rows = _tensor_rows(checkpoint.tensors) if args.tensors else group_rows(checkpoint.tensors)
        print_table([["tensor", "dtype", "shape", "bytes"], *rows], right="lllr")
        return 0
    finally:
        checkpoint.close()


def _report(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    tensors = checkpoint.tensors.values()
    by_dtype: dict[str, int] = {}
    for info in tensors:
        by_dtype[info.dtype] = by_dtype.get(info.dtype, 0) + info.nbytes
    bound = _bind(checkpoint)
    binding = None if isinstance(bound, str) else bound
    return {
        "path": str(checkpoint.path),
        "fingerprint": checkpoint.fingerprint,
        "supported": binding is not None,
        "unsupported_because": bound if isinstance(bound, str) else None,
        "spec": binding and asdict(binding.spec),
        "parameters": binding and _parameters(binding),
        "tensor_count": len(checkpoint.tensors),
        "tensor_bytes": sum(by_dtype.values()),
        "bytes_by_dtype": by_dtype,
        "memory": binding and _memory(args.model, args.quantize, _context(binding, args.context)),
        "tokenizer": _tokenizer(checkpoint),
    }


def _bind(checkpoint: Checkpoint) -> Binding | PackedCheckpoint | str:
    """What the decoder would be loaded from, or why llmcore can't run this: its tensors are shown all the same."""
    from llmcore.models.binding import bind
    from llmcore.packed import PackedCheckpoint, is_packed

    try:
        return PackedCheckpoint(checkpoint) if is_packed(checkpoint.config) else bind(checkpoint)
    except (UnsupportedModelError, CheckpointError) as error:
        return str(error)


def _parameters(binding: Binding | PackedCheckpoint) -> int:
    """Weights of the model: a tied matrix counts once, and so does a quantised one, without its scales."""
    from llmcore.packed import PackedCheckpoint

    if isinstance(binding, PackedCheckpoint):
        return binding.num_weights
    return sum(math.prod(shape) for bound in binding.slots.values() for shape in bound.slot.shapes)


def _context(binding: Binding | PackedCheckpoint, wanted: int | None) -> int:
    longest = binding.spec.max_position_embeddings
    if wanted is not None and not 1 <= wanted <= longest:
        raise ArgumentError(f"--context must be from 1 to this model's {longest} tokens, got {wanted}")
    return wanted or min(longest, DEFAULT_CONTEXT)


def _memory(name: str, quantize: str | None, context: int) -> dict[str, Any]:
    """Bytes once loaded, by kind, with room for one text of `context` tokens."""
    from llmcore import plan

    planned = plan(name, quantize, max_model_len=context)
    sizes = {kind: getattr(planned, kind) for kind in ("weights", "kv_cache", "activations", "total")}
    return {"quantize": quantize, "context": context, **sizes}


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any] | None:
    from llmcore import Tokenizer

    try:
        tokenizer = Tokenizer.load(checkpoint.path)
    except LlmcoreError as error:
        return {"error": str(error)}
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": dict(tokenizer.special_tokens),
        "bos_id": tokenizer.bos_id,
        "eos_ids": list(tokenizer.eos_ids),
        "chat_template": tokenizer.chat_template is not None,
    }


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report as lines for people."""
    stored = ", ".join(f"{dtype} {quantity(size, 'B')}" for dtype, size in sorted(report["bytes_by_dtype"].items()))
    facts = [("checkpoint", report["path"]), ("fingerprint", report["fingerprint"])]
    if report["spec"] is None:
        facts.append(("architecture", f"not supported: {report['unsupported_because']}"))
    else:
        facts += _architecture(report["spec"])
        facts.append(("parameters", f"{report['parameters']:,}"))
    facts.append(("stored", f"{quantity(report['tensor_bytes'], 'B')} in {report['tensor_count']:,} tensors: {stored}"))
    if memory := report["memory"]:
        sizes = {key: quantity(memory[key], "B") for key in ("total", "weights", "kv_cache", "activations")}
        parts = f"weights {sizes['weights']}, keys and values of {memory['context']:,} tokens {sizes['kv_cache']}"
        form = memory["quantize"] or "as stored"
        facts.append(("in memory", f"{sizes['total']} {form}: {parts}, activations {sizes['activations']}"))
    return facts + _tokenizer_facts(report["tokenizer"])


def _architecture(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    rope, window = spec["rope_inv_freq"], spec["sliding_window"]
    positions = "learned positions" if spec["learned_positions"] else "no positions"
    if rope is not None:
        positions = f"RoPE over {2 * len(rope)} of {spec['head_dim']}"
    extras = [positions]
    if spec["qk_norm"]:
        extras.append("normalised queries and keys")
    if window is not None:
        extras.append(f"window of {window:,} tokens")
    heads = f"{spec['num_heads']} heads of {spec['head_dim']}, {spec['num_kv_heads']} key/value heads"
    tied = "tied" if spec["tie_word_embeddings"] else "untied"
    gate = "gated " if spec["gated_mlp"] else ""
    return [
        ("architecture", spec["model_type"]),
        ("layers", f"{spec['num_layers']}, hidden size {spec['hidden_size']:,}"),
        ("attention", ", ".join([heads, *extras])),
        ("MLP", f"{gate}{spec['activation']}, {spec['intermediate_size']:,}"),
        ("norm", f"{spec['norm']}, epsilon {spec['norm_eps']:g}"),
        ("context", f"{spec['max_position_embeddings']:,} tokens"),
        ("vocabulary", f"{spec['vocab_size']:,}, {tied} embeddings"),
    ]


def _tokenizer_facts(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "error" in tokenizer:
        return [("tokenizer", f"none: {tokenizer['error']}")]
    special = tokenizer["special_tokens"]
    shown = ", ".join(f"{text} ({i})" for text, i in list(special.items())[:6])
    more = f", and {len(special) - 6:,} more" if len(special) > 6 else ""
    return [
        ("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"),
        ("special", shown + more if special else "none"),
        ("chat template", "yes" if tokenizer["chat_template"] else "no"),
    ]


@dataclass
class _Group:
    count: int = 0
    nbytes: int = 0


def group_rows(tensors: Mapping[str, TensorInfo]) -> list[list[str]]:
    """A row for each tensor, those that differ only in the numbers of their names in one row with their count."""
    groups: dict[tuple[str, str, tuple[int, ...]], _Group] = {}
    for name, info in sorted(tensors.items(), key=lambda item: _natural(item[0])):
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        group = groups.setdefault((pattern, info.dtype, info.shape), _Group())
        group.count += 1
        group.nbytes += info.nbytes
    return [
        [f"{pattern} ({group.count})" if "*" in pattern else pattern, dtype, _shape(shape), quantity(group.nbytes, "B")]
        for (pattern, dtype, shape), group in groups.items()
    ]


def _tensor_rows(tensors: Mapping[str, TensorInfo]) -> list[list[str]]:
    return [
        [name, info.dtype, _shape(info.shape), quantity(info.nbytes, "B")]
        for name, info in sorted(tensors.items(), key=lambda item: _natural(item[0]))
    ]


def _tensor_list(tensors: Mapping[str, TensorInfo]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": info.dtype, "shape": info.shape, "bytes": info.nbytes} for name, info in tensors.items()
    ]


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts layer 2 before layer 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)]


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
