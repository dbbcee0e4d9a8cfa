"""Models that follow their vocabulary: pruned, extended, or given another one. Checkpoint folder in, folder out.

The rows of the embedding and of the output head are chosen or made anew; every other tensor is copied as it is. A new
token's row is the mean of the rows of the old tokens that its text is made of, in float32, rounded to the type of the
matrix: the usual start for further training (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models",
2021, shows why a mean). The weights pass through memory once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore.chat import TOOL_USE_FILE
from llmcore.checkpoint.files import shown, storage_error
from llmcore.checkpoint.readers import Checkpoint, open_checkpoint
from llmcore.checkpoint.strict_json import load_json
from llmcore.checkpoint.write import RawTensor, save_json, save_safetensors
from llmcore.errors import ArgumentError, UnsupportedModelError
from llmcore.models.binding import Binding, DenseTensor, bind
from llmcore.packed import check_free
from llmcore.tokenizer import Tokenizer
from llmcore.vocab import edit
from llmcore.vocab.spec import Kind

Rows = list[list[int]]
"""For each new id the old ids whose rows its row is the mean of."""


def prune_model(
    model: str | os.PathLike[str], texts: Sequence[str], output: str | os.PathLike[str], keep: Iterable[int] = ()
) -> list[int]:
    """Writes the model with only the tokens that `texts` use (see `vocab.edit.prune`); returns their old ids.

    On those tokens its logits are the ones it had. Raises ArgumentError (`output` is there already), as `prune`, and as
    `llmcore.load`.
    """
    with open_checkpoint(model) as checkpoint:
        tokenizer = Tokenizer.load(checkpoint.path)
        pruned, kept = edit.prune(tokenizer, texts, keep)
        _write(checkpoint, output, pruned, [[id] for id in kept], {id: new for new, id in enumerate(kept)})
    return kept


def extend_model(
    model: str | os.PathLike[str], tokens: Sequence[str], output: str | os.PathLike[str], *, special: bool = False
) -> list[int]:
    """Writes the model with further tokens (see `vocab.edit.extend`); returns their ids. Raises as `prune_model`."""
    with open_checkpoint(model) as checkpoint:
        tokenizer = Tokenizer.load(checkpoint.path)
        extended = edit.extend(tokenizer, tokens, special=special)
        first = tokenizer.vocab_size
        rows: Rows = [[id] for id in range(first)]
        rows += [tokenizer.encode(token, add_special_tokens=False) for token in tokens]
        _write(checkpoint, output, extended, rows, {id: id for id in range(first)})
    return list(range(first, first + len(tokens)))


def transplant_model(
    model: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | Tokenizer, output: str | os.PathLike[str]
) -> int:
    """Writes the model with the vocabulary of another tokenizer; returns how many tokens kept their row.

    A token that the old vocabulary has with the same bytes (special tokens: the same text) keeps its row; the row of
    any other is the mean over the old tokens of its text. Raises as `prune_model`.
    """
    with open_checkpoint(model) as checkpoint:
        old = Tokenizer.load(checkpoint.path)
        new = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
        rows, same = _transplanted(old, new)
        special = {
            old.special_tokens[text]: id for text, id in new.special_tokens.items() if text in old.special_tokens
        }
        for before, after in ((old.bos_id, new.bos_id), *zip(old.eos_ids, new.eos_ids, strict=False)):
            if before is not None and after is not None:
                special.setdefault(before, after)
        _write(checkpoint, output, new, rows, special)
    return same


def _transplanted(old: Tokenizer, new: Tokenizer) -> tuple[Rows, int]:
    spec, before = new._spec, old._spec
    by_text = {
        text: id for id, (text, kind) in enumerate(zip(before.tokens, before.kinds, strict=True)) if kind != Kind.GAP
    }
    added = {token.content: token.id for token in before.added}
    names = {token.id: token.content for token in spec.added}
    rows: Rows = []
    same = 0
    for id in range(new.vocab_size):
        found = added.get(names[id]) if id in names else by_text.get(spec.tokens[id]) if id < len(spec.tokens) else None
        if found is not None:
            rows.append([found])
            same += 1
            continue
        text = new.decode_bytes([id]) or names.get(id, "").encode("utf-8")
        rows.append(_old_tokens(old, text))
    return rows, same


def _old_tokens(old: Tokenizer, text: bytes) -> list[int]:
    try:
        return old.encode(text.decode("utf-8"), add_special_tokens=False)
    except UnicodeDecodeError:  # a part of a character: its bytes
        return [id for byte in text if (id := old._spec.byte_ids[byte]) < old.vocab_size]


def _write(
    checkpoint: Checkpoint, output: str | os.PathLike[str], tokenizer: Tokenizer, rows: Rows, moved: Mapping[int, int]
) -> None:
    """The checkpoint with other rows. `moved`: new ids of the old tokens that configs may name."""
    check_free(output)
    binding = bind(checkpoint)
    matrices = {_dense(binding, name) for name in ("embedding", "lm_head") if name in binding.slots}
    target = Path(output)
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        tensors: dict[str, npt.NDArray[np.generic] | RawTensor] = {}
        for name, info in checkpoint.tensors.items():
            values = checkpoint.read(name)
            if name in matrices:
                values = _chosen(values, rows)
            tensors[name] = (info.dtype, values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        config = {**checkpoint.config.values, "vocab_size": len(rows)}
        save_json(temporary / "config.json", _with_moved_ids(config, moved))
        if checkpoint.generation_config:
            save_json(temporary / "generation_config.json", _with_moved_ids(checkpoint.generation_config, moved))
        save_safetensors(temporary / "model.safetensors", tensors, {"format": "pt"})
        tokenizer.save(temporary / "tokenizer.json")
        _copy_tokenizer_config(checkpoint.path, temporary)
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if type(error) in (OSError, PermissionError, FileNotFoundError, NotADirectoryError):
            raise storage_error("write", target, error) from None  # type: ignore[arg-type]
        raise


def _dense(binding: Binding, slot: str) -> str:
    (part,) = binding.slots[slot].parts
    if not isinstance(part, DenseTensor):
        raise UnsupportedModelError(f"the {slot} is quantised: change the vocabulary of the model it was made from")
    return part.name


def _chosen(matrix: npt.NDArray[np.generic], rows: Rows) -> npt.NDArray[np.generic]:
    """The matrix [len(rows), hidden] of chosen and averaged rows. BF16 comes and goes as its bits in uint16."""
    single = np.array([row[0] if len(row) == 1 else 0 for row in rows], np.int64)
    chosen = matrix[single]
    bits = matrix.dtype == np.uint16
    for at, row in enumerate(rows):
        if len(row) == 1:
            continue
        parts = matrix[row] if row else matrix
        floats = (parts.astype(np.uint32) << 16).view(np.float32) if bits else parts.astype(np.float32)
        mean = floats.mean(axis=0, dtype=np.float64).astype(np.float32)
        chosen[at] = _bfloat_bits(mean) if bits else mean.astype(matrix.dtype)
    return chosen


def _bfloat_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    raw = np.ascontiguousarray(values).view(np.uint32)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)


def _with_moved_ids(config: Mapping[str, Any], moved: Mapping[int, int]) -> dict[str, Any]:
    """Every `*_token_id` by its new id; one that is gone is left out."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if not key.endswith("_token_id") or value is None:
            changed[key] = value
        elif isinstance(value, list):
            changed[key] = [moved[id] for id in value if id in moved]
        elif value in moved:
            changed[key] = moved[value]
    return changed


def _copy_tokenizer_config(source: Path, target: Path) -> None:
    """What says names of special tokens and the template; ids stand in tokenizer.json alone."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            values = load_json(source / name, limit_bytes=16 << 20)
            if not isinstance(values, dict):
                raise ArgumentError(f"{shown(source / name)} is not a JSON object")
            values.pop("added_tokens_decoder", None)
            save_json(target / name, values)
    for name in ("chat_template.jinja", "chat_template.json", TOOL_USE_FILE):
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
