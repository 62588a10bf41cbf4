"""How much of the machine this process may use: limits of containers and batch jobs count."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def cpus(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Count the CPUs this process may use: its affinity, and the quota of its control groups."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        usable = os.cpu_count() or 1
    for group in _groups(proc, cgroup):
        quota = read(group / "cpu.max").split()  # microseconds of work, microseconds of time
        if len(quota) == 2 and quota[0].isdecimal():
            usable = min(usable, max(1, round(int(quota[0]) / int(quota[1]))))
    return usable


def name(proc: Path = PROC) -> str:
    """What the processor calls itself."""
    for line in read(proc / "cpuinfo").splitlines():
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def memory(proc: Path = PROC, cgroup: Path = CGROUP) -> tuple[int, int]:
    """Return the bytes of memory this process may use: in all, and now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total  # macOS does not say without a program of its own
    for line in read(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            total = int(value.split()[0]) * 1024
        if name == "MemAvailable":
            available = int(value.split()[0]) * 1024
    for group in _groups(proc, cgroup):
        limit = read(group / "memory.max").strip()
        if limit.isdecimal():
            used = int(read(group / "memory.current").strip() or 0) - _given_back(group)
            total = min(total, int(limit))
            available = min(available, max(int(limit) - used, 0))
    return total, available


def _groups(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Walk from this process's control group (version 2) up to the root; a limit holds below it."""
    for line in read(proc / "self" / "cgroup").splitlines():
        if line.startswith("0::/"):
            group = cgroup / line.removeprefix("0::/")
            while group != cgroup:
                yield group
                group = group.parent
    yield cgroup


def _given_back(group: Path) -> int:
    """Bytes of cached files, which count as used but are given back when needed."""
    for line in read(group / "memory.stat").splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def read(path: Path) -> str:
    """Read what the system says; nothing where it says nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
