"""vocab.json + merges.txt, the form of GPT-2 and Qwen2 before tokenizer.json -> VocabSpec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcore.checkpoint.files import PlainFile
from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab.bpe_model import byte_level_fields
from llmcore.vocab.hf import read_merges, read_vocab
from llmcore.vocab.patterns import Stage
from llmcore.vocab.spec import VocabSpec

_LIMIT_BYTES = 1 << 26
_NAMES = ("merges.txt", "vocab.bpe")


def read_vocab_and_merges(root: dict[str, Any], path: Path) -> VocabSpec:
    """The vocabulary of the parsed vocab.json `root` and the merges beside `path`.

    These files don't say how text is split: it is GPT-2's way, and Qwen2's when the vocabulary is Qwen2's.
    Raises TokenizerError.
    """
    vocab = read_vocab(root)
    merges_path = next((path.parent / name for name in _NAMES if (path.parent / name).is_file()), None)
    if merges_path is None:
        raise TokenizerError(f"no {' or '.join(_NAMES)} beside it")
    merges = read_merges(_merge_lines(merges_path), vocab, set())
    fields = byte_level_fields(vocab, (), None)
    del fields["size"]
    stage = Stage.QWEN2 if len(vocab) == 151643 else Stage.GPT2
    return VocabSpec(**fields, merges=merges, stages=(stage,), nfc=stage == Stage.QWEN2)


def _merge_lines(path: Path) -> list[object]:
    with PlainFile(path) as file:
        if file.size > _LIMIT_BYTES:
            raise LimitError(f"{path.name}: {file.size} bytes; at most {_LIMIT_BYTES} are read")
        data = bytes(file.read(file.size, 0))
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name}: not UTF-8 at byte {error.start}") from None
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    return [line.removesuffix("\r") for line in lines if line.strip()]
