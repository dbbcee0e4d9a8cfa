"""llmcore tokenize: how a model's tokenizer cuts a text."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from llmcore.cli._arguments import BUILT_IN, add_model, model_and_text, read_file
from llmcore.cli._pieces import piece
from llmcore.cli._terminal import print_json, print_table
from llmcore.errors import ArgumentError, escape

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

HELP = "Show the tokens of a text"

_EPILOG = """\
examples:
  llmcore tokenize "Hello world"                      with the built-in model's tokenizer
  llmcore tokenize path/to/model "Hello world"        a folder, tokenizer.json, tokenizer.model or .tiktoken file
  llmcore tokenize -m path/to/model --file book.txt --count
  llmcore tokenize --ids "Hello" | llmcore tokenize --decode -
  git diff | llmcore tokenize -m path/to/model --count

A text is ordinary text: what looks like a special token in it stays text, unless --allow-special.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore tokenize`."""
    parser.epilog = _EPILOG
    parser.usage = 'llmcore tokenize [MODEL] "text" [options]'
    parser.add_argument("words", nargs="*", metavar='[MODEL] "text"', help="the text; - is standard input")
    add_model(parser)
    parser.add_argument("--file", metavar="PATH", help="take the text from a file")
    parser.add_argument("--no-special-tokens", action="store_true", help="without those a text begins with")
    parser.add_argument("--allow-special", action="store_true", help="special tokens may be written in the text")
    parser.add_argument("--decode", action="store_true", help="the text is token ids: print the text they stand for")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ids", action="store_true", help="print the ids alone, on one line")
    form.add_argument("--count", action="store_true", help="print the number of tokens alone")
    form.add_argument("--json", action="store_true", help="one JSON object with ids, pieces and counts")


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore tokenize`."""
    name, text = _model_and_text(args)
    tokenizer = _load(name)
    if args.decode:
        return _decode(tokenizer, text, as_json=args.json)
    options = {"add_special_tokens": not args.no_special_tokens, "allow_special": args.allow_special}
    ids = tokenizer.encode(text, **options)
    if args.count:
        print(len(ids))
    elif args.ids:
        print(*ids)
    else:
        pieces = [piece(tokenizer, i) for i in ids]
        size = len(text.encode("utf-8", "surrogatepass"))
        if args.json:
            print_json({"ids": ids, "pieces": pieces, "tokens": len(ids), "characters": len(text), "bytes": size})
        else:
            print_table(([str(i), repr(shown)] for i, shown in zip(ids, pieces, strict=True)), right="r")
            ratio = f", {size / len(ids):.2f} bytes a token" if ids else ""
            print(f"{len(ids)} tokens, {len(text)} characters, {size} bytes{ratio}", file=sys.stderr)
    return 0


def _model_and_text(args: argparse.Namespace) -> tuple[str, str]:
    if args.file is None:
        return model_and_text(args.words, args.model, "tokenize")
    if len(args.words) > (1 if args.model is None else 0):
        raise ArgumentError("--file takes the place of the text: give one of them")
    return args.model or (args.words[0] if args.words else BUILT_IN), read_file(args.file)


def _load(name: str) -> Tokenizer:
    from llmcore import Tokenizer
    from llmcore.checkpoint.readers import resolve_path

    return Tokenizer.load(resolve_path(name))


def _decode(tokenizer: Tokenizer, text: str, *, as_json: bool) -> int:
    ids = []
    for word in text.replace(",", " ").strip("[] \n\t").split():
        if not word.isascii() or not word.isdecimal() or len(word) > 10 or int(word) >= tokenizer.vocab_size:
            raise ArgumentError(f"--decode takes token ids from 0 to {tokenizer.vocab_size - 1}, got {escape(word)}")
        ids.append(int(word))
    decoded = tokenizer.decode(ids)
    if as_json:
        print_json({"ids": ids, "text": decoded})
    else:
        print(decoded)
    return 0
