"""Benches: `pytest bench`, or `nox -s bench` to keep the figures. They need the [bench] extra.

A bench says how many bytes and operations one call moves; `rates` turns its median time into rates and shares of what
the machine can do, measured in the same run (ceilings.py), and keeps them with pytest-benchmark's own figures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import ceilings
import llmcore

QUICK = {"min_rounds": 3, "max_time": 0.25, "warmup": True, "warmup_iterations": 1}
_reports: list[tuple[str, dict[str, Any]]] = []


@functools.cache
def machine_ceilings() -> ceilings.Ceilings:
    """Measured once a run, with the threads that llmcore uses."""
    return ceilings.measure(llmcore.get_num_threads())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A few rounds each, so that all benches take minutes; pytest-benchmark's options change that."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(**QUICK))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What the figures depend on."""
    found = machine_ceilings()
    machine_info["llmcore"] = {"isa": llmcore.isa(), "threads": found.threads, "version": llmcore.__version__}
    machine_info["ceilings"] = {
        "read_gb_per_s": _giga(found.read),
        "int8_gop_per_s": _giga(found.int8),
        "float32_gflop_per_s": _giga(found.float32),
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: object, output_json: dict[str, Any]) -> None:
    """Statistics are kept, not every single time: ten megabytes a run otherwise."""
    for bench in output_json["benchmarks"]:
        bench["stats"].pop("data", None)


def _giga(rate: float | None) -> float | None:
    return None if rate is None else rate / 1e9


@pytest.fixture
def rates(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """`rates(nbytes=, int8=, float32=, **facts)` after the benchmark has run: bytes and operations of one call.

    Sets extra_info: gb_per_s, gop_per_s and, where the machine's ceiling is known, the share of it.
    """

    def note(*, nbytes: float = 0, int8: float = 0, float32: float = 0, **facts: Any) -> None:
        info = benchmark.extra_info
        info.update(facts)
        if benchmark.disabled:
            return
        seconds, found = benchmark.stats.stats.median, machine_ceilings()
        for name, unit, amount, ceiling in (
            ("reads", "gb_per_s", nbytes, found.read),
            ("int8", "gop_per_s", int8, found.int8),
            ("float32", "gop_per_s", float32, found.float32),
        ):
            if amount:
                info[unit] = amount / seconds / 1e9
                if ceiling:
                    info[f"share_of_{name}"] = amount / seconds / ceiling
        _reports.append((request.node.nodeid.partition("::")[2], info))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The rates, which pytest-benchmark's own table doesn't show."""
    if not _reports:
        return
    terminalreporter.section("rates, and shares of this machine's ceilings")
    width = max(len(name) for name, _ in _reports)
    for name, info in _reports:
        parts = [
            f"{info[key]:,.{1 if info[key] >= 1 else 3}f} {unit}"
            for key, unit in (("gb_per_s", "GB/s"), ("gop_per_s", "GOP/s"), ("tokens_per_s", "tokens/s"))
            if key in info
        ]
        parts += [f"{value:.0%} of {key[9:]}" for key, value in info.items() if key.startswith("share_of_")]
        terminalreporter.write_line(f"{name:<{width}}  {', '.join(parts)}")
