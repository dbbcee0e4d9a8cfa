"""llmcore run: text from a model."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from llmcore.cli._arguments import (
    add_loading,
    add_model,
    add_sampling,
    as_utf8,
    integer,
    load_model,
    model_and_text,
    sampling_params,
)
from llmcore.cli._pieces import piece
from llmcore.cli._stream import streaming
from llmcore.cli._terminal import Output, note, print_json, print_table
from llmcore.errors import ArgumentError, TemplateError, TokenizerError

if TYPE_CHECKING:
    from llmcore.llm import LLM, CompletionOutput, RequestOutput
    from llmcore.sampling import SamplingParams
    from llmcore.tokenizer import Tokenizer

HELP = "Continue a text, or answer a prompt"

_EPILOG = """\
examples:
  llmcore run "The prince"                            the built-in model goes on
  llmcore run path/to/model "Once upon a time"        a checkpoint folder
  llmcore run path/to/model --chat "What is a fjord?" through the model's chat template
  llmcore run --temperature 0 --max-tokens 32 "One"   greedy, 32 tokens
  llmcore run --n 3 --seed random "It was"            three different continuations
  llmcore run --logprobs 3 --max-tokens 5 "To be"     one token a line, with the likeliest others
  cat letter.txt | llmcore run -m path/to/model       the prompt from standard input
  llmcore run --json "The prince" | jq .outputs[0].text

The text goes to standard output, a line of figures to standard error. The same command prints the same text on every
machine; --seed random makes it differ.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore run`."""
    parser.epilog = _EPILOG
    parser.usage = 'llmcore run [MODEL] "prompt" [options]'
    parser.add_argument("words", nargs="*", metavar='[MODEL] "prompt"', help="the prompt; - is standard input")
    add_model(parser)
    add_loading(parser)
    add_sampling(parser, max_tokens=256)
    parser.add_argument("--n", type=integer, default=1, metavar="N", help="N different answers (default: 1)")
    parser.add_argument("--logprobs", type=integer, metavar="K", help="log-probabilities, and the K likeliest tokens")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message: use the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system message")
    parser.add_argument(
        "--echo",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show the prompt before the text (default: on a terminal, without --chat)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no line of figures")
    parser.add_argument("--json", action="store_true", help="one JSON object with text, token ids and figures")


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore run`."""
    params = sampling_params(args, n=args.n, logprobs=args.logprobs)  # before the model is loaded: it may be wrong
    if args.system is not None and not args.chat:
        raise ArgumentError("--system needs --chat, for only a chat template has a place for it")
    system = args.system and as_utf8(args.system, "--system")
    name, text = model_and_text(args.words, args.model, "run")
    import llmcore

    start = time.perf_counter()
    model = load_model(name, args)
    with llmcore.LLM(model) as llm:
        loaded = time.perf_counter() - start
        prompt = _chat_prompt(model.tokenizer, text, system) if args.chat else text
        if args.json:
            output = llm.generate(prompt, params, progress=False)[0]
            print_json(_as_json(name, text, params, output, loaded))
            return 0
        if args.echo or (args.echo is None and not args.chat and args.logprobs is None):
            _echo(text, always=bool(args.echo))
        if args.n > 1 or args.logprobs is not None:
            return _show_finished(llm, prompt, params, quiet=args.quiet)
        return _stream(llm, prompt, params, quiet=args.quiet)


def _chat_prompt(tokenizer: Tokenizer | None, text: str, system: str | None) -> list[int]:
    if tokenizer is None:
        raise TokenizerError("--chat needs a tokenizer, and this checkpoint has none; put its files beside the weights")
    if tokenizer.chat_template is None:
        raise TemplateError(
            "--chat needs a chat template, and this model has none: leave it out to continue the text, or choose one "
            "with llmcore chat MODEL --template NAME"
        )
    messages = [] if system is None else [{"role": "system", "content": system}]
    return cast("list[int]", tokenizer.apply_chat_template([*messages, {"role": "user", "content": text}]))


def _echo(text: str, *, always: bool) -> None:
    output = Output()
    if output.terminal:
        output.write_styled(text, "2")
    elif always:
        output.write(text)


def _stream(llm: LLM, prompt: str | list[int], params: SamplingParams, *, quiet: bool) -> int:
    output = Output()
    count, reason = 0, None
    start = first = time.perf_counter()
    try:
        with streaming(llm, prompt, params) as chunks:
            for chunk in chunks:
                count += 1
                first = time.perf_counter() if count == 1 else first
                output.write(chunk.text)
                reason = chunk.finish_reason or reason
    finally:
        output.end_line()
    if not quiet:
        note(_figures(count, first - start, time.perf_counter() - first, reason))
    return 1 if reason == "abort" else 0


def _figures(count: int, to_first: float, rest: float, reason: str | None) -> str:
    """For instance "64 tokens (length) in 1.32 s: first after 0.05 s, then 49.6 tokens/s"."""
    speed = f", then {(count - 1) / rest:,.1f} tokens/s" if count > 1 and rest > 0 else ""
    tokens = f"{count} token{'' if count == 1 else 's'}{f' ({reason})' if reason else ''}"
    return f"{tokens} in {to_first + rest:.2f} s: first after {to_first:.3f} s{speed}"


def _show_finished(llm: LLM, prompt: str | list[int], params: SamplingParams, *, quiet: bool) -> int:
    """Several answers, or one with log-probabilities: shown when they are complete."""
    start = time.perf_counter()
    result = llm.generate(prompt, params, progress=True)[0]
    seconds = time.perf_counter() - start
    output = Output()
    for i, answer in enumerate(result.outputs):
        output.end_line()
        if len(result.outputs) > 1:
            output.write_styled(f"--- {i + 1} of {len(result.outputs)} ({answer.finish_reason})\n", "1")
        if params.logprobs is None:
            output.write(answer.text)
        else:
            print_table(_logprob_rows(llm.model.tokenizer, answer), right="r")
    output.end_line()
    if not quiet:
        count = sum(len(answer.token_ids) for answer in result.outputs)
        note(f"{count} tokens in {seconds:.2f} s: {count / seconds:,.1f} tokens/s")
    return 1 if any(answer.finish_reason == "abort" for answer in result.outputs) else 0


def _logprob_rows(tokenizer: Tokenizer | None, answer: CompletionOutput) -> list[list[str]]:
    """A row for each token: its log-probability, the token, and the likeliest tokens of its place."""
    rows = []
    for token, entries in zip(answer.token_ids, answer.logprobs or [], strict=True):
        ranked = [(entry.rank, other, entry.logprob) for other, entry in entries.items() if entry.rank is not None]
        others = "  ".join(f"{_piece(tokenizer, other)} {value:.3f}" for _, other, value in sorted(ranked))
        rows.append([f"{entries[token].logprob:.4f}", _piece(tokenizer, token), others])
    return rows


def _piece(tokenizer: Tokenizer | None, token: int) -> str:
    known = tokenizer is not None and token < tokenizer.vocab_size
    return repr(piece(tokenizer, token)) if tokenizer is not None and known else str(token)


def _as_json(name: str, text: str, params: SamplingParams, result: RequestOutput, loaded: float) -> dict[str, Any]:
    metrics = result.metrics
    return {
        "model": name,
        "prompt": text,
        "prompt_token_ids": list(result.prompt_token_ids),
        "outputs": [
            {
                "text": answer.text,
                "token_ids": list(answer.token_ids),
                "finish_reason": answer.finish_reason,
                "logprobs": answer.logprobs
                and [
                    [{"token_id": token, **asdict(entry)} for token, entry in entries.items()]
                    for entries in answer.logprobs
                ],
            }
            for answer in result.outputs
        ],
        "seed": params.seed,
        "seconds": {
            "load": loaded,
            "queue": metrics.queue_time,
            "to_first_token": metrics.time_to_first_token,
            "per_token": metrics.time_per_token,
        },
        "digest": result.digest,
    }
