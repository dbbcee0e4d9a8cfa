"""Encoding, decoding, loading and training beside tiktoken, tokenizers, sentencepiece and gigatoken, in one run.

    python bench/tokenizer.py [--rounds 5] [--json bench/results/DATE-tokenizer.json]

Texts are cut into documents of about 4,000 characters; every library encodes the same ones with the same vocabulary on
one thread (the process keeps to one processor), in turns, and what is printed are medians over the rounds of ratios
within a round. "first" is a tokenizer that has seen one word so far, "again" the same text a second time. A library
that isn't installed is left out. Ids are compared before anything is timed. Needs the folder of test data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import llmcore

DATA = Path(os.environ.get("LLMCORE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
DOCUMENT = 4000
CJK = ("cmn_hans", "cmn_hant", "jpn", "kor")
OTHERS = (
    "arb hin rus deu fra spa por_BR tha vie tur pol ukr ell_monotonic heb pes_1 ben tam mar ita nld swe fin hun ces"
)


def documents(text: str) -> list[str]:
    return [text[at : at + DOCUMENT] for at in range(0, len(text), DOCUMENT)]


def corpora() -> dict[str, list[str]]:
    """Texts by what they are."""
    english = (DATA / "text" / "war-and-peace.txt").read_text(encoding="utf-8")
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    code = "".join(path.read_text(encoding="utf-8", errors="replace") for path in sources)[:3_000_000]
    with zipfile.ZipFile(DATA / "text" / "udhr2.zip") as files:
        named = {Path(n).stem.removeprefix("udhr_"): n for n in files.namelist() if n.endswith(".txt")}

        def all_of(names: Sequence[str]) -> str:
            return "".join(files.read(named[n]).decode("utf-8", "replace") for n in names)

        return {
            "English": documents(english),
            "code": documents(code),
            "24 languages": documents(all_of(OTHERS.split())),
            "CJK": documents(all_of(CJK)),
        }


Encode = Callable[[str], Any]
Make = Callable[[], Encode]


def optional(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        print(f"{name} is not installed and left out", file=sys.stderr)
        return None


def hugging_face(path: Path) -> dict[str, Make]:
    tokenizers = optional("tokenizers")

    def make() -> Encode:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        return lambda text: tokenizer.encode(text).ids

    return {"tokenizers": make} if tokenizers else {}


def makers_of_cl100k(folder: Path) -> dict[str, Make]:
    """What makes a fresh encoder of each library, all with cl100k."""
    path = DATA / "tokenizers" / "tiktoken" / "cl100k_base.tiktoken"
    ours = llmcore.Tokenizer.load(path)
    saved = folder / "tokenizer.json"
    ours.save(saved)
    found: dict[str, Make] = {"llmcore": lambda: llmcore.Tokenizer.load(path).encode_to_numpy}
    found |= hugging_face(saved)
    if tiktoken := optional("tiktoken"):
        from llmcore.vocab.tiktoken import ENCODINGS, read_ranks

        ranks = read_ranks(path.read_bytes())
        pattern = (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
            r"|\s+(?!\S)|\s"
        )
        special = ENCODINGS["cl100k"].special
        found["tiktoken"] = lambda: (
            tiktoken.Encoding("c", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special).encode_ordinary
        )
    if gigatoken := optional("gigatoken"):
        found["gigatoken"] = lambda: gigatoken.Tokenizer.from_tiktoken(path).encode
    return found


def makers_of_llama2() -> dict[str, Make]:
    path = DATA / "tokenizers" / "llama2" / "tokenizer.model"
    found: dict[str, Make] = {
        "llmcore": lambda: partial(llmcore.Tokenizer.load(path).encode_to_numpy, add_special_tokens=False)
    }
    if sentencepiece := optional("sentencepiece"):
        found["sentencepiece"] = lambda: sentencepiece.SentencePieceProcessor(model_file=str(path)).encode
    if gigatoken := optional("gigatoken"):
        found["gigatoken"] = lambda: gigatoken.Tokenizer.from_sentencepiece(path).encode
    return found


def seconds(encode: Encode, texts: list[str]) -> float:
    begin = time.perf_counter()
    for text in texts:
        encode(text)
    return time.perf_counter() - begin


def race(makers: dict[str, Make], texts: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """MB/s of every library, first and again, and llmcore's ratios to it."""
    nbytes = sum(len(text.encode()) for text in texts)
    expected: list[Any] | None = None
    for name, make in makers.items():
        encode = make()
        ids = [[int(i) for i in encode(text)] for text in texts]
        if expected is None:
            expected = ids
        elif ids != expected:
            different = sum(a != b for a, b in zip(ids, expected, strict=True))
            print(f"{name}: other ids in {different} of {len(texts)} documents", file=sys.stderr)
    figures: dict[str, dict[str, list[float]]] = {name: {"first": [], "again": []} for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            encode = make()
            encode("Hello")  # its memory is there
            for which in ("first", "again"):
                figures[name][which].append(nbytes / 1e6 / seconds(encode, texts))
            del encode  # or the next one's tables, just made, would leave the caches while this one's are freed
    ours = figures["llmcore"]
    return {
        name: {
            which: {
                "MB/s": statistics.median(rates),
                "llmcore is": statistics.median(a / b for a, b in zip(ours[which], rates, strict=True)),
            }
            for which, rates in own.items()
        }
        for name, own in figures.items()
    }


def families(folder: Path) -> dict[str, Path]:
    """A tokenizer.json for each way to cut text, some made of another's vocabulary."""
    known = DATA / "tokenizers"
    found = {
        "BERT": known / "bert-base-uncased" / "tokenizer.json",
        "Falcon": known / "falcon-tokenizer" / "tokenizer.json",
        "GPT-NeoX": known / "gpt-neox-20b" / "20B_tokenizer.json",
        "Phi-3": known / "phi-3" / "tokenizer.json",
        "T5": known / "t5-small" / "tokenizer.json",
    }

    def edited(name: str, base: str, **parts: Any) -> None:
        found[name] = folder / f"{name}.json"
        root = json.loads((known / base / "tokenizer.json").read_text(encoding="utf-8"))
        found[name].write_text(json.dumps({**root, **parts}), encoding="utf-8")

    from llmcore.vocab.patterns import REGEXES_OF_STAGE, Stage, split_part

    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    for name, stage in (("Mistral", Stage.TEKKEN), ("Qwen3.5", Stage.QWEN35), ("DeepSeek-V3", Stage.DEEPSEEK)):
        cuts = [*(split_part(regex) for regex in REGEXES_OF_STAGE[stage]), to_bytes]
        edited(name, "gpt2", normalizer={"type": "NFC"}, pre_tokenizer={"type": "Sequence", "pretokenizers": cuts})
    digits = {"type": "Digits", "individual_digits": True}
    cuts = [digits, {**to_bytes, "use_regex": True}]
    edited("StarCoder", "gpt2", pre_tokenizer={"type": "Sequence", "pretokenizers": cuts})
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    after_spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    undone = [{**marks, "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoder = {"type": "Sequence", "decoders": undone}
    edited("Gemma", "phi-3", normalizer=marks, pre_tokenizer=after_spaces, decoder=decoder)
    return found


def makers_of(path: Path) -> dict[str, Make]:
    return {"llmcore": lambda: llmcore.Tokenizer.load(path).encode_to_numpy, **hugging_face(path)}


def best(action: Callable[[], Any], rounds: int) -> float:
    """Milliseconds, the median of several."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def worst_cases(rounds: int) -> dict[str, float]:
    """MB/s over inputs that make other encoders slow; and a prompt of 8 KB in microseconds."""
    import random

    tokenizer = llmcore.Tokenizer.load(DATA / "tokenizers" / "tiktoken" / "cl100k_base.tiktoken")
    rng = random.Random(1)
    inputs = {
        "a million times a": "a" * 1_000_000,
        "a million spaces": " " * 1_000_000,
        "random letters": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)),
        "digits": "".join(rng.choices("0123456789", k=1_000_000)),
    }
    found = {
        name: 1e3 * len(text) / 1e6 / best(lambda t=text: tokenizer.encode_to_numpy(t), rounds)
        for name, text in inputs.items()
    }  # type: ignore[misc]
    prompt = (DATA / "text" / "war-and-peace.txt").read_text(encoding="utf-8")[100_000:108_192]
    tokenizer.encode_to_numpy(prompt)
    found["prompt of 8 KB again, us"] = 1e3 * best(lambda: tokenizer.encode_to_numpy(prompt), 20 * rounds)
    ids = tokenizer.encode(prompt)
    stream = tokenizer.decode_stream()
    for name, given in (
        ("decode_stream.step, ns", ids),
        ("the call alone (nothing shown), ns", [tokenizer.eos_ids[0]] * len(ids)),
    ):
        found[name] = 1e6 / len(ids) * best(lambda g=given: [stream.step(i) for i in g], 20 * rounds)  # type: ignore[misc]
    return found


def threads(rounds: int) -> dict[str, float]:
    """War and Peace as an array of ids: milliseconds on one thread and on two, as documents and as one text."""
    tokenizer = llmcore.Tokenizer.load(DATA / "tokenizers" / "tiktoken" / "cl100k_base.tiktoken")
    texts = corpora()["English"]
    found = {}
    for name, batch in (("documents", texts), ("one text", ["".join(texts)])):
        for count in (1, 2):
            found[f"{name}, {count}"] = best(lambda b=batch, n=count: tokenizer.encode_batch_to_numpy(b, n), 3 * rounds)  # type: ignore[misc]
    return found


def loading(rounds: int) -> dict[str, float]:
    """Milliseconds to load Llama-3's vocabulary: built anew, and from the cache."""
    path = DATA / "tokenizers" / "llama3" / "tokenizer.model"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "tokenizer.json"
        llmcore.Tokenizer.load(path).save(saved)
        for name, source in (("rank file", path), ("tokenizer.json", saved)):
            os.environ["LLMCORE_CACHE_DIR"] = ""
            found[f"{name}, built"] = best(lambda s=source: llmcore.Tokenizer.load(s), rounds)  # type: ignore[misc]
            os.environ["LLMCORE_CACHE_DIR"] = folder
            llmcore.Tokenizer.load(source)
            found[f"{name}, cached"] = best(lambda s=source: llmcore.Tokenizer.load(s), 3 * rounds)  # type: ignore[misc]
        if tokenizers := optional("tokenizers"):
            found["tokenizers"] = best(lambda: tokenizers.Tokenizer.from_file(str(saved)), rounds)
    return found


def training(rounds: int) -> dict[str, float]:
    """Seconds to train 32,000 ids on 56 MB (War and Peace and Shakespeare, 13 times), on one thread."""
    files = [DATA / "text" / name for name in ("war-and-peace.txt", "tinyshakespeare.txt")] * 13
    found = {"llmcore": best(lambda: llmcore.Tokenizer.train(files, vocab_size=32000, threads=1), rounds) / 1e3}
    if tokenizers := optional("tokenizers"):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

        def hugging_face() -> None:
            tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
            tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=32000,
                initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            tokenizer.train([str(path) for path in files], trainer)

        found["tokenizers"] = best(hugging_face, min(rounds, 2)) / 1e3
    return found


def main() -> int:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    results: dict[str, Any] = {"encode": {}, "threads to an array, ms": threads(options.rounds)}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLMCORE_CACHE_DIR"] = folder
        makers = makers_of_cl100k(Path(folder))
        for name, texts in corpora().items():
            results["encode"][f"{name}, cl100k"] = race(makers, texts, options.rounds)
        results["encode"]["English, Llama-2"] = race(makers_of_llama2(), corpora()["English"][:250], options.rounds)
        for name, path in families(Path(folder)).items():
            results["encode"][f"English, {name}"] = race(makers_of(path), corpora()["English"][:100], 1)
        results["worst cases"] = worst_cases(options.rounds)
        results["loading, ms"] = loading(options.rounds)
        results["training, s"] = training(max(1, options.rounds // 2))
    for name, libraries in results["encode"].items():
        for library, figures in libraries.items():
            cells = (f"{which} {f['MB/s']:8.1f} MB/s {f['llmcore is']:6.2f}x" for which, f in figures.items())
            print(f"{name:24} {library:14} {'   '.join(cells)}")
    for group in ("threads to an array, ms", "worst cases", "loading, ms", "training, s"):
        for name, value in results[group].items():
            print(f"{group:16} {name:28} {value:10.2f}")
    if options.json:
        options.json.write_text(json.dumps({"llmcore": llmcore.__version__, **results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
