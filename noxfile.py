"""The developers' tasks: `nox` runs lint and test, `nox -s NAME` one of them, `nox -l` lists them.

Each session has its own environment under .nox; versions of tools stand in pyproject.toml's dependency groups.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "test"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
CPP_FILES = ("*.cpp", "*.h", "*.cu", "*.cuh")

# Tests that exercise native code without a reference implementation beside it: torch is neither built for the
# sanitizers nor quick under them; the readers of files and the chat templates, with their time limits, are Python.
SANITIZED_TESTS = [
    "tests/test_llm.py",
    "tests/test_model.py",
    "tests/test_ops.py",
    "tests/test_quantized_arithmetic.py",
    "tests/test_sampling_native.py",
    "tests/test_tokenizer_bad_inputs.py",
    "tests/test_tokenizer_training.py",
]
ASAN_OPTIONS = "detect_leaks=0:allocator_may_return_null=1"
CHECKED_FLAGS = "-O1 -DNDEBUG"  # instrumented code takes twice as long to compile at -O2, and runs as long
UBSAN_OPTIONS = "halt_on_error=1:print_stacktrace=1"
CTEST = ("--output-on-failure", "--parallel", str(os.cpu_count() or 1))


def group(*names: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(PYPROJECT, *names)


def tracked(*patterns: str) -> list[str]:
    """The files of the repository that match; a source archive has no git and is searched instead."""
    listed = subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True)
    if listed.returncode == 0:
        return listed.stdout.split()
    return [str(p) for folder in ("csrc", "tests") for pattern in patterns for p in Path(folder).rglob(pattern)]


def cmake_build(session: nox.Session, folder: str, *options: str) -> None:
    """Configure and build the C++ tests, without Python, in build/`folder`."""
    session.install(*group("build"))
    generator = ["-G", "Ninja"]
    if shutil.which("ccache"):
        generator += ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
    fixed = ["-DLLMCORE_BUILD_PYTHON=OFF", "-DLLMCORE_BUILD_TESTS=ON"]
    session.run("cmake", "-S", ".", "-B", f"build/{folder}", *generator, *fixed, *options, silent=True)
    session.run("cmake", "--build", f"build/{folder}", "--parallel", str(os.cpu_count() or 1), silent=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of Python and C++, spelling, and types."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("clang-format", "--dry-run", "-Werror", *tracked(*CPP_FILES))
    session.run("codespell")
    session.run("mypy")


@nox.session
def test(session: nox.Session) -> None:
    """The README's test command, with the references that some tests compare with."""
    session.install(*group("reference"))
    session.install(".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def cpp(session: nox.Session) -> None:
    """The C++ unit tests on this machine."""
    cmake_build(session, "cpp")
    session.run("ctest", "--test-dir", "build/cpp", *CTEST)


@nox.session
def isa(session: nox.Session) -> None:
    """The C++ tests on emulated CPUs, old x86 ones and 64-bit ARM, and one hash of logits and tokens for them all."""
    session.install(*group("build"), "pytest")
    session.run("pytest", "tests/test_emulated_cpus.py", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The native code under AddressSanitizer and UndefinedBehaviorSanitizer: C++ tests, then the Python ones."""
    session.install(*group("build"), "pytest", "pytest-benchmark", *PYPROJECT["project"]["dependencies"])
    session.run(
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        ".",
        "-Cbuild-dir=build/sanitize",
        "-Ccmake.build-type=RelWithDebInfo",
        f"-Ccmake.define.CMAKE_CXX_FLAGS_RELWITHDEBINFO={CHECKED_FLAGS}",
        "-Cinstall.strip=false",
        "-Ccmake.define.LLMCORE_SANITIZE=address,undefined",
        "-Ccmake.define.LLMCORE_BUILD_TESTS=ON",
        *(["-Ccmake.define.CMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []),
    )
    options = {"ASAN_OPTIONS": ASAN_OPTIONS, "UBSAN_OPTIONS": UBSAN_OPTIONS}
    session.run("ctest", "--test-dir", "build/sanitize", *CTEST, env=options)
    # The interpreter isn't instrumented, so the run-time is preloaded; libstdc++ with it, for its exceptions are
    # intercepted at start-up and the first throw would stop the process otherwise.
    libraries = ["libasan.so", "libstdc++.so.6"]
    preload = " ".join(
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in libraries
    )
    python = str(Path(session.bin, "python"))
    arguments = session.posargs or [*SANITIZED_TESTS, "-m", "not slow and not isa"]
    session.run(
        *("env", f"LD_PRELOAD={preload}", "PYTHONMALLOC=malloc", python, "-m", "pytest", "-q", *arguments),
        env=options,
        external=True,
    )


@nox.session
def races(session: nox.Session) -> None:
    """The C++ tests of what runs on several threads, under ThreadSanitizer."""
    flags = f"-DCMAKE_CXX_FLAGS_RELWITHDEBINFO={CHECKED_FLAGS}"
    cmake_build(session, "races", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", flags, "-DLLMCORE_SANITIZE=thread")
    program = "build/races/tests/cpp/llmcore_tests"
    session.run(program, "--quick", "threading", "kvcache", "tokenizer", "engine", "hash", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks; the figures go to bench/results/DATE.json."""
    session.install(".[bench]")
    target = f"bench/results/{date.today().isoformat()}.json"
    session.run("pytest", "bench", "--benchmark-only", f"--benchmark-json={target}", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Source archive and wheel, repaired to a manylinux tag on Linux, then the smoke test in a clean environment."""
    session.install(*group("wheel"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", silent=True)
    (built,) = Path("dist").glob("*.whl")
    if sys.platform.startswith("linux"):
        session.run("auditwheel", "repair", "--wheel-dir", "dist/repaired", str(built))
        (built,) = Path("dist", "repaired").glob("*.whl")
    size = built.stat().st_size
    session.log(f"{built.name}: {size / 1e6:.2f} MB")
    if size >= 10_000_000:
        session.error("the wheel must stay under 10 MB")
    for system in ("linux", "macos", "windows"):
        matrix = ("--print-build-identifiers", "--config-file", "wheels/cpu.toml", "--platform", system)
        session.run("cibuildwheel", *matrix)
    clean = Path(session.create_tmp(), "clean")
    session.run("python", "-m", "venv", "--clear", str(clean))
    python = str(clean / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    session.run(python, "-m", "pip", "install", "-q", str(built), external=True)
    session.run(python, "wheels/smoke_test.py", external=True)
