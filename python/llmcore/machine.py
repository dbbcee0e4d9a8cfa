"""What this machine gives this process: cores, memory, limits set by the system."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True)
class Cores:
    """Logical cores, and what bounds the number of threads."""

    installed: int
    allowed: int
    """By the process's affinity mask (taskset, cpusets)."""
    quota: float | None
    """Cores' worth of time by the cgroup; None: no limit."""

    def reason(self, threads: int, requested: str | None) -> str:
        """Why `threads` threads are used; `requested` is LLMCORE_NUM_THREADS."""
        if requested:
            return f"LLMCORE_NUM_THREADS={requested}"
        if self.quota is not None and self.quota < self.allowed:
            return f"the cgroup gives {self.quota:g} cores of time"
        if self.allowed < self.installed:
            return f"the affinity mask allows {self.allowed} of {self.installed} cores"
        return "all cores" if threads == self.installed else f"one thread a physical core of {self.installed} logical"


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory; None where the system doesn't say."""

    total: int | None
    available: int | None
    """What can be had without swapping, and within the cgroup's limit."""
    limit: int | None
    """By the cgroup; None: no limit."""


def cores(root: Path = _ROOT) -> Cores:
    """The cores; `root` stands for / in tests."""
    installed = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else installed
    return Cores(installed, allowed, cpu_quota(root))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """The cgroup's CPU time in cores, the smallest on the way up to the root group."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        if (text := _read(folder / "cpu.max")) is not None:  # version 2: "max 100000" or "50000 100000"
            amount, _, period = text.partition(" ")
        else:
            amount = _read(folder / "cpu.cfs_quota_us") or ""
            period = _read(folder / "cpu.cfs_period_us") or ""
        if amount.isdecimal() and period.isdecimal() and int(period) > 0:
            quotas.append(int(amount) / int(period))
    return min(quotas, default=None)


def memory(root: Path = _ROOT) -> Memory:
    """Main memory; `root` stands for / in tests."""
    text = _read(root / "proc/meminfo") or ""
    fields = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total, available, limit = fields.get("MemTotal"), fields.get("MemAvailable"), None
    for folder in _cgroup_folders(root, "memory"):
        bound = _bytes(folder, "memory.max", "memory.limit_in_bytes")
        if bound is None or (total is not None and bound >= total):
            continue  # version 1 writes a huge number for no limit
        limit = bound if limit is None else min(limit, bound)
        used = (_bytes(folder, "memory.current", "memory.usage_in_bytes") or 0) - _reclaimable(folder)
        left = max(bound - max(used, 0), 0)
        available = left if available is None else min(available, left)
    return Memory(total, available, limit)


def _bytes(folder: Path, *names: str) -> int | None:
    """The number in the first of these files that is there."""
    text = next((text for name in names if (text := _read(folder / name)) is not None), "")
    return int(text) if text.isdecimal() else None


def _reclaimable(folder: Path) -> int:
    """Bytes of files that a cgroup counts, and the system lets go of when memory is short."""
    found = re.findall(r"^(\w+) (\d+)$", _read(folder / "memory.stat") or "", re.MULTILINE)
    fields = {name: int(size) for name, size in found}
    return sum(fields.get(f"total_{name}", fields.get(name, 0)) for name in ("active_file", "inactive_file"))


def processor(root: Path = _ROOT) -> str | None:
    """The processor's name, where the system says it."""
    text = _read(root / "proc/cpuinfo") or ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    if found:
        return found[1].strip()
    import platform

    return platform.processor() or None


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The process's control group and those above it, in version 2's tree or version 1's for `controller`."""
    folders = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = base.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        while group != base:
            folders.append(group)
            group = group.parent
        folders.append(base)
    return folders


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
