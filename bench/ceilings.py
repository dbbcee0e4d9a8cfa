"""The machine's ceilings, measured: `python bench/ceilings.py` prints them, the benches divide by them."""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("ceilings.cpp")


@dataclass(frozen=True)
class Ceilings:
    """Rates per second of all threads together; None where this machine's can't be measured."""

    threads: int
    read: float | None
    """Bytes from main memory."""
    int8: float | None
    """Operations (two a multiply-add) on int8, from registers."""
    float32: float | None


@contextmanager
def _library() -> Iterator[ctypes.CDLL | None]:
    """The probes, built with a C++ compiler ($CXX, c++, g++ or clang++); None without one."""
    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "ceilings.so")
        options = ["-O2", "-march=native", "-std=c++20", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *options, str(SOURCE), "-o", str(library)], check=True)
        yield ctypes.CDLL(str(library))


def _call(native: ctypes.CDLL, name: str, *arguments: int) -> float | None:
    function = native[f"llmcore_bench_{name}_rate"]
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_int, *([ctypes.c_int64] if name == "read" else []), ctypes.c_int]
    return function(*arguments) or None


def measure(threads: int, *, passes: int = 5) -> Ceilings:
    """Builds the probes and runs them; without a compiler nothing is known."""
    with _library() as native:
        if native is None:
            return Ceilings(threads, None, None, None)
        rates = [
            _call(native, name, threads, *arguments)
            for name, arguments in (("read", (1 << 29, passes)), ("int8", (passes,)), ("float", (passes,)))
        ]
    return Ceilings(threads, *rates)


@contextmanager
def integer_probe(threads: int) -> Iterator[Callable[[], float | None]]:
    """A function that measures the rate of int8 operations now, in some 50 ms; None where it is unknown."""
    with _library() as native:
        yield lambda: None if native is None else _call(native, "int8", threads, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, action="append", help="may be given several times (1 and all cores)")
    for threads in parser.parse_args().threads or sorted({1, os.cpu_count() or 1}):
        found = measure(threads)
        rates = {"reads, GB/s": found.read, "int8, GOP/s": found.int8, "float32, GFLOP/s": found.float32}
        for name, rate in rates.items():
            print(f"{threads} threads, {name}: {'unknown' if rate is None else f'{rate / 1e9:,.1f}'}")


if __name__ == "__main__":
    main()
