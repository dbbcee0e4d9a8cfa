"""Prove that an installed llmcore works: run inside a clean environment against the built wheel.

python wheels/smoke_test.py

Needs nothing but llmcore and its dependencies; exits with 1 and one line that says what is wrong.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

INSTALLED_LIMIT = 10_000_000  # bytes on disk, so that the compressed wheel is under 10 MB in any case
TEXT = 'The prince said: "Добрый день", and smiled. 🙂'


def check(ok: bool, message: str) -> None:
    if not ok:
        raise SystemExit(f"smoke test failed: {message}")


def check_installation() -> None:
    import llmcore

    source = Path(__file__).resolve().parents[1]
    check(
        source not in Path(llmcore.__file__).resolve().parents or "site-packages" in llmcore.__file__, "not installed"
    )
    version = metadata.version("llmcore")
    check(version == llmcore.__version__, f"metadata says {version}, the package {llmcore.__version__}")
    files = [f for f in metadata.files("llmcore") or [] if f.suffix != ".pyc"]
    check(any(f.name == "py.typed" for f in files), "py.typed is not in the wheel")
    check(any("assets/tiny" in f.as_posix() for f in files), "the built-in model is not in the wheel")
    size = sum(Path(str(f.locate())).stat().st_size for f in files)
    check(size <= INSTALLED_LIMIT, f"{size:,} bytes installed, limit {INSTALLED_LIMIT:,}")
    print(f"llmcore {version}: {len(files)} files, {size / 1e6:.2f} MB installed")


def check_tokenizer_and_generation() -> None:
    import llmcore

    check(isinstance(llmcore.isa(), str) and llmcore.isa() != "", "isa() is empty")
    print(f"isa {llmcore.isa()}, threads {llmcore.get_num_threads()}")
    llm = llmcore.LLM("tiny")
    tokenizer = llm.model.tokenizer
    check(tokenizer is not None, "the built-in model has no tokenizer")
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    check(tokenizer.decode(ids) == TEXT, f"decode(encode(text)) is {tokenizer.decode(ids)!r}")
    params = llmcore.SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    first = llm.generate(["The prince", "It was"], params, progress=False)
    again = llm.generate(["The prince"], params, progress=False)
    check(all(len(out.token_ids) == 16 for out in first), "16 tokens were asked for")
    check(first[0].token_ids == again[0].token_ids, "the same prompt gave other tokens in another batch")
    check(first[0].text.strip() != "", "the generated text is empty")
    print(f"The prince{first[0].text!r}")


def check_command_line() -> None:
    script = Path(sysconfig.get_path("scripts")) / ("llmcore.exe" if sys.platform == "win32" else "llmcore")
    check(script.is_file(), f"no command at {script}")
    command = [str(script), "run", "--max-tokens", "8", "The"]
    result = subprocess.run(command, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
    check(result.returncode == 0, f"`llmcore run` exited with {result.returncode}: {result.stderr.decode()[-500:]}")
    check(len(result.stdout.strip()) > 0, "`llmcore run` printed nothing")


def main() -> None:
    check_installation()
    check_tokenizer_and_generation()
    check_command_line()
    heavy = [name for name in ("torch", "transformers", "tokenizers") if name in sys.modules]
    check(heavy == [], f"imported {', '.join(heavy)}")
    print("smoke test passed")


if __name__ == "__main__":
    main()
