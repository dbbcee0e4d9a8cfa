"""llmcore doctor: is llmcore well here, and what does it use?"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from llmcore import machine
from llmcore.cli import _known_text as known_text
from llmcore.cli._terminal import print_facts, print_json
from llmcore.errors import LlmcoreError
from llmcore.progress import Progress, quantity

HELP = "Check the installation, and show what it uses of this machine"

_EPILOG = """\
examples:
  llmcore doctor
  llmcore doctor --json               for a bug report
  LLMCORE_ISA=scalar llmcore doctor   with another instruction set

Exit code 1 if a check fails.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `llmcore doctor`."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs `llmcore doctor`."""
    report = _report()
    if args.json:
        print_json(report)
    else:
        print_facts(_facts(report))
    return 0 if all(check["ok"] for check in report["checks"]) else 1


def _report() -> dict[str, Any]:
    with Progress(None, "measuring") as progress:
        cores, memory = machine.cores(), machine.memory()
        report: dict[str, Any] = {
            "versions": _versions(),
            "processor": machine.processor(),
            "cores": asdict(cores),
            "memory": asdict(memory),
        }
        checks: list[dict[str, Any]] = []
        report["checks"] = checks
        for name, check in (("native core", _native), ("built-in model", _built_in)):
            start = time.perf_counter()
            ok, message = check(report)
            checks.append({"name": name, "ok": ok, "message": message, "seconds": time.perf_counter() - start})
            progress.advance()
    return report


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    import llmcore

    versions = {"llmcore": llmcore.__version__, "python": platform.python_version(), "system": platform.platform()}
    for package in ("numpy", "safetensors", "sentencepiece", "jinja2"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def _native(report: dict[str, Any]) -> tuple[bool, str]:
    """Loads the native core and asks it what it uses."""
    try:
        from llmcore import runtime

        threads = runtime.get_num_threads()
        report["native"] = {
            "isa": runtime.isa(),
            "features": runtime.features(),
            "threads": threads,
            "threads_because": machine.cores().reason(threads, os.environ.get("LLMCORE_NUM_THREADS")),
            "read_bandwidth_bytes_per_second": runtime.measure_read_bandwidth(threads=threads, seconds=0.5),
        }
    except ImportError as error:
        return False, f"can't be loaded: {error}; install llmcore again with pip install --force-reinstall llmcore"
    except LlmcoreError as error:
        return False, str(error)
    return True, f"{report['native']['isa']}, {threads} thread{'' if threads == 1 else 's'}"


def _built_in(report: dict[str, Any]) -> tuple[bool, str]:
    """Has the built-in model write a text whose bits are known: they are the same on every machine."""
    try:
        known, written = known_text.read(), known_text.write()
    except (LlmcoreError, ImportError, OSError) as error:
        return False, str(error)
    except (ValueError, TypeError):
        return (
            False,
            f"{known_text.path()} is damaged; install llmcore again with pip install --force-reinstall llmcore",
        )
    report["built_in_model"] = asdict(written)
    if written.text != known.text:
        return False, f"wrote {written.text!r}, not {known.text!r}: please report this with llmcore doctor --json"
    if written.log_probability != known.log_probability:
        return False, (
            f"wrote its known text, but with log-probability {written.log_probability} instead of "
            f"{known.log_probability}: please report this with llmcore doctor --json"
        )
    return True, "writes its known text, to the bit"


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    cores, memory, versions = report["cores"], report["memory"], report["versions"]
    limits = [f"{cores['installed']} logical"]
    if cores["allowed"] != cores["installed"]:
        limits.append(f"{cores['allowed']} allowed by the affinity mask")
    if cores["quota"] is not None:
        limits.append(f"{cores['quota']:g} cores of time from the cgroup")
    room = [f"{quantity(memory[key], 'B')} {name}" for key, name in _MEMORY_NAMES if memory[key] is not None]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("llmcore", "system"))
    facts = [
        ("llmcore", f"{versions['llmcore']}, {sys.executable}"),
        ("versions", packages),
        ("system", versions["system"]),
        ("processor", report["processor"] or "unknown"),
        ("cores", ", ".join(limits)),
        ("memory", ", ".join(room) or "unknown"),
    ]
    if native := report.get("native"):
        bandwidth = quantity(native["read_bandwidth_bytes_per_second"], "B")
        facts += [
            ("instructions", native["isa"]),
            ("threads", f"{native['threads']}: {native['threads_because']}"),
            ("memory reads", f"{bandwidth}/s on {native['threads']} thread{'' if native['threads'] == 1 else 's'}"),
            *(
                (name.replace("_", " "), _shown(value))
                for name, value in native["features"].items()
                if name not in ("isa", "cores")
            ),
        ]
    for check in report["checks"]:
        facts.append((check["name"], f"{'ok' if check['ok'] else 'FAILED'}: {check['message']}"))
    return facts


_MEMORY_NAMES = (("total", "in all"), ("available", "free for use"), ("limit", "allowed by the cgroup"))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
