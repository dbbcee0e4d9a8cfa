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

_SHOWN_CHARACTERS = 2000  # longer texts are compared by their figures alone

_EPILOG = """\
examples:
  llmcore tokenize "Hello world"                      with the built-in model's tokenizer
  llmcore tokenize path/to/model "Hello world"        a folder, tokenizer.json, tokenizer.model or .tiktoken file
  llmcore tokenize -m path/to/model --file book.txt --count
  llmcore tokenize --ids "Hello" | llmcore tokenize --decode -
  git diff | llmcore tokenize -m path/to/model --count
  llmcore tokenize "Guten Tag, 你好" --compare model-a model-b --html out.html

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
    parser.add_argument("--compare", nargs="+", metavar="MODEL", help="cut the text with each of these tokenizers")
    parser.add_argument("--html", metavar="PATH", help="with --compare: a page with the tokens in colours")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ids", action="store_true", help="print the ids alone, on one line")
    form.add_argument("--count", action="store_true", help="print the number of tokens alone")
    form.add_argument("--json", action="store_true", help="one JSON object with ids, pieces and counts")


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore tokenize`."""
    if args.html is not None and args.compare is None:
        raise ArgumentError("--html needs --compare MODEL ...")
    if args.compare is not None:
        return _compare(args)
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
        size = len(text.encode())
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


def _compare(args: argparse.Namespace) -> int:
    from llmcore.checkpoint.write import write_atomically
    from llmcore.vocab.compare import compare, to_html

    if args.decode or args.ids or args.count:
        raise ArgumentError("--compare goes with --json and --html, not with --decode, --ids or --count")
    if args.model is not None or len(args.words) > 1:
        raise ArgumentError("with --compare the only other word is the text: the tokenizers follow --compare")
    _, text = _model_and_text(args)
    results = compare({name: _load(name) for name in args.compare}, text)
    if args.html is not None:
        write_atomically(args.html, [to_html(results, text).encode("utf-8")])
    if args.json:
        print_json(
            [
                {
                    "tokenizer": one.name,
                    "tokens": len(one.ids),
                    "characters_per_token": one.characters_per_token,
                    "bytes_per_token": one.bytes_per_token,
                    "ids": one.ids,
                    "spans": [[segment.start, segment.end] for segment in one.segments],
                }
                for one in results
            ]
        )
        return 0
    rows = [
        [one.name, f"{len(one.ids):,}", f"{one.characters_per_token:.2f}", f"{one.bytes_per_token:.2f}"]
        for one in results
    ]
    print_table([["tokenizer", "tokens", "characters a token", "bytes a token"], *rows], right="lrrr")
    if len(text) <= _SHOWN_CHARACTERS:
        for one in results:
            print(f"\n{one.name}")
            print("|".join(repr(text[segment.start : segment.end])[1:-1] for segment in one.segments))
    return 0


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
