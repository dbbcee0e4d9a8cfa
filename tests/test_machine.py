"""What the system allows a process: read from a made-up /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmcore import machine
from llmcore.machine import Cores


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_quota_of_cgroup_version_2(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"})
    assert machine.cpu_quota(root) == 1.5


def test_smallest_quota_on_the_way_up(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
    }
    assert machine.cpu_quota(tree(tmp_path, files)) == 0.5


def test_quota_of_cgroup_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
    }
    assert machine.cpu_quota(tree(tmp_path, files)) == 2.0


@pytest.mark.parametrize("text", ["max 100000", "-1 100000", "x", "", "100 0"])
def test_no_quota(text: str, tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text})
    assert machine.cpu_quota(root) is None


def test_nothing_there(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory(tmp_path) == machine.Memory(None, None, None)


def test_path_of_the_group_stays_in_the_tree(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/../../etc\n", "etc/cpu.max": "1 1"})
    assert machine.cpu_quota(root) is None


def test_memory(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   5000 kB\n",
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/memory.max": "4096000\n",
    }
    assert machine.memory(tree(tmp_path, files)) == machine.Memory(8_192_000, 4_096_000, 4_096_000)


@pytest.mark.parametrize(
    ("group", "usage", "cache"),
    [
        ({"memory.max": "4096000"}, "memory.current", "anon 5\ninactive_file 600\nactive_file 400\n"),
        (
            {"memory.limit_in_bytes": "4096000"},
            "memory.usage_in_bytes",
            "active_file 7\ntotal_active_file 1000\n",
        ),
    ],
)
def test_memory_within_the_group(tmp_path: Path, group: dict[str, str], usage: str, cache: str) -> None:
    version = "5:memory:/a/b" if "usage" in usage else "0::/a/b"
    base = "sys/fs/cgroup/" + ("memory/" if "usage" in usage else "")
    files = {
        "proc/meminfo": "MemTotal:       8000 kB\nMemAvailable:   5000 kB\n",
        "proc/self/cgroup": version + "\n",
        **{f"{base}a/{name}": text for name, text in group.items()},
        f"{base}a/{usage}": "3096000",
        f"{base}a/memory.stat": cache,
        f"{base}a/b/memory.max": "max",
    }
    assert machine.memory(tree(tmp_path, files)).available == 1_001_000


def test_memory_limit_above_the_memory_is_none(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 8000 kB\n",
        "proc/self/cgroup": "5:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert machine.memory(tree(tmp_path, files)).limit is None


@pytest.mark.parametrize(
    ("cores", "threads", "requested", "reason"),
    [
        (Cores(8, 8, None), 3, "3", "LLMCORE_NUM_THREADS=3"),
        (Cores(8, 8, 1.5), 1, None, "the cgroup gives 1.5 cores of time"),
        (Cores(8, 2, None), 2, None, "the affinity mask allows 2 of 8 cores"),
        (Cores(8, 8, None), 8, None, "all cores"),
        (Cores(8, 8, None), 4, None, "one thread a physical core of 8 logical"),
    ],
)
def test_reason_for_the_number_of_threads(cores: Cores, threads: int, requested: str | None, reason: str) -> None:
    assert cores.reason(threads, requested) == reason


def test_this_machine() -> None:
    cores = machine.cores()
    assert 1 <= cores.allowed <= cores.installed == os.cpu_count()
