"""Arguments that several commands share: which model, which text, how to sample."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, BinaryIO

from llmcore.errors import ArgumentError, StorageError, escape
from llmcore.progress import is_terminal

if TYPE_CHECKING:
    from llmcore.model import Model
    from llmcore.sampling import SamplingParams

BUILT_IN = "tiny"
MODEL_HELP = "checkpoint folder or .gguf file, a name in the local Hugging Face cache, or tiny (built in; the default)"
_TEXT_LIMIT = 64 << 20


def integer(text: str) -> int:
    """The type of an option that counts. Beyond 32 bits no count means anything, but sums of it may overflow."""
    number = int(text)
    if abs(number) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"must be an integer of 32 bits, got {escape(text, 24)}")
    return number


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the option --model, for commands whose other argument is a text."""
    parser.add_argument("-m", "--model", metavar="MODEL", help=MODEL_HELP)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds --quantize and --threads."""
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--quantize",
        metavar="FORMAT",
        help="int8 to int2, nf4, iq4, fp4, ternary or ternary_dense: pack the weights so at load (default: as stored)",
    )
    group.add_argument("--threads", type=integer, metavar="N", help="threads (default: the cores this process may use)")


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int | None) -> None:
    """Adds the sampling options. `max_tokens` is the default limit, None for the context's."""
    group = parser.add_argument_group(
        "sampling", "What isn't given comes from the checkpoint's generation_config.json, else from neutral values."
    )
    limit = "until the context is full" if max_tokens is None else str(max_tokens)
    group.add_argument(
        "--max-tokens", type=integer, default=max_tokens, metavar="N", help=f"at most N (default: {limit})"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; higher is more surprising")
    group.add_argument("--top-p", type=float, metavar="P", help="among the fewest tokens that hold probability P")
    group.add_argument("--top-k", type=integer, metavar="K", help="among the K likeliest tokens (0: all)")
    group.add_argument("--min-p", type=float, metavar="P", help="none less likely than P times the likeliest")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 repeats less")
    group.add_argument(
        "--seed", default="0", metavar="N", help="same seed, same text on any machine (default: 0); or random"
    )
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; can be repeated")
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-text token")


def sampling_params(args: argparse.Namespace, *, n: int = 1, logprobs: int | None = None) -> SamplingParams:
    """The SamplingParams of add_sampling's options. Raises ArgumentError for values out of range."""
    from llmcore.sampling import SamplingParams

    return SamplingParams(
        n=n,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=_seed(args.seed),
        stop=[as_utf8(text, "--stop") for text in args.stop],
        max_tokens=args.max_tokens,
        logprobs=logprobs,
        ignore_eos=args.ignore_eos,
    )


def _seed(text: str) -> int:
    if text == "random":
        import secrets

        return secrets.randbits(32)
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"--seed must be an integer from 0 to 2**64 - 1, or random, got {escape(text)}") from None


def load_model(name: str, args: argparse.Namespace) -> Model:
    """Loads a model with add_loading's options, with a progress bar."""
    import llmcore

    if args.threads is not None and args.threads < 1:
        raise ArgumentError(f"--threads must be at least 1, got {args.threads}")
    return llmcore.load(name, quantize=args.quantize, threads=args.threads, progress=True)


def model_and_text(words: list[str], model: str | None, verb: str) -> tuple[str, str]:
    """The model and the text that the positional arguments `[MODEL] [TEXT]` and --model mean.

    One word alone is the text, unless it is a checkpoint that exists: then the text comes from standard input, as it
    does for "-" or without any text if standard input is not a terminal. `verb` is for the message.

    Raises:
        ArgumentError: there is no text, too many words, or the text is not UTF-8.
    """
    if len(words) > (2 if model is None else 1):
        raise ArgumentError(
            f'too many words ({len(words)}): put the text in quotes, as in llmcore {verb} [MODEL] "some text"'
        )
    text: str | None = None
    if model is None and len(words) == 2:
        model, text = words
    elif words and (model is not None or not is_checkpoint(words[0])):
        text = words[0]
    elif words:
        model = words[0]
    if text is None and is_terminal(sys.stdin):
        raise ArgumentError(f'no text: write llmcore {verb} [MODEL] "some text", or give it on standard input')
    if text is None or text == "-":
        return model or BUILT_IN, read_stdin(required=text is None)
    return model or BUILT_IN, as_utf8(text, "the text")


def is_checkpoint(word: str) -> bool:
    """Whether a lone word is rather a model than a text: the built-in name, or a file or folder that looks like one."""
    if word == BUILT_IN:
        return True
    try:
        if os.path.isdir(word):
            return any(name in _MARKS or name.endswith(".gguf") for name in os.listdir(word))
        return word.endswith((".gguf", ".tiktoken", "tokenizer.json", "tokenizer.model")) and os.path.isfile(word)
    except (OSError, ValueError):  # not to be listed; a NUL in the text
        return False


_MARKS = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer.gguf")


def read_stdin(*, required: bool) -> str:
    """All of standard input, less one newline at its end."""
    text = decode(standard_input().read(_TEXT_LIMIT + 1), "standard input")
    if required and not text:
        raise ArgumentError("no text: standard input is empty")
    return text.removesuffix("\n").removesuffix("\r")


def read_line(source: BinaryIO) -> str:
    """The next line of `source`, without its end. Raises EOFError after the last, ArgumentError as `decode`."""
    line = source.readline(_TEXT_LIMIT + 1)
    if not line:
        raise EOFError
    return decode(line, "a line of standard input").removesuffix("\n").removesuffix("\r")


def standard_input() -> BinaryIO:
    """The bytes of standard input: what they mean must not depend on the locale. Raises ArgumentError if closed."""
    if sys.stdin is None:
        raise ArgumentError("no text: standard input is closed")
    return sys.stdin.buffer


def read_file(path: str) -> str:
    """A text file, as it is."""
    try:
        with open(path, "rb") as file:
            return decode(file.read(_TEXT_LIMIT + 1), path)
    except OSError as error:
        raise StorageError(f"can't read {escape(path, 200)}: {error.strerror}; check the path") from error


def as_utf8(text: str, name: str) -> str:
    """`text`, an argument or a typed line; where the locale had no characters for its bytes, as UTF-8 after all.

    Raises ArgumentError where they aren't.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates stand for those bytes
        return decode(os.fsencode(text), name)
    return text


def decode(data: bytes, name: str) -> str:
    """`data` as UTF-8 text. Raises ArgumentError where it is none, or is too long."""
    if len(data) > _TEXT_LIMIT:
        raise ArgumentError(f"{escape(name, 200)} is longer than {_TEXT_LIMIT >> 20} MiB; give it in parts")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{escape(name, 200)} is not UTF-8 (byte {error.start}); convert it, for instance with iconv -t UTF-8"
        ) from None
