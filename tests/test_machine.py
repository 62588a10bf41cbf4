"""What a process may use, under the limits of a control group."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline import machine

if TYPE_CHECKING:
    from pathlib import Path

GB = 1_000_000_000


def system(tmp_path: Path, *, path: str, groups: dict[str, dict[str, str]]) -> tuple[Path, Path]:
    """Lay out /proc and /sys/fs/cgroup of a machine with 64 GB, 40 GB of them available."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        f"MemTotal: {64 * GB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {40 * GB // 1024} kB\n"
    )
    (proc / "self" / "cgroup").write_text(f"0::{path}\n")
    for name, files in groups.items():
        (cgroup / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (cgroup / name / file).write_text(text)
    return proc, cgroup


def test_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    """`max` is no limit."""
    proc, cgroup = system(tmp_path, path="/", groups={"": {"memory.max": "max\n"}})
    total, available = machine.memory(proc, cgroup)
    assert abs(total - 64 * GB) < 1024
    assert abs(available - 40 * GB) < 1024


def test_memory_of_a_container_is_its_limit_less_what_it_cannot_give_back(tmp_path: Path) -> None:
    """Cached files count as used but are given back."""
    files = {
        "memory.max": f"{4 * GB}\n",
        "memory.current": f"{3 * GB}\n",
        "memory.stat": f"anon 5\ninactive_file {2 * GB}\nslab 7\n",
    }
    proc, cgroup = system(tmp_path, path="/", groups={"": files})
    assert machine.memory(proc, cgroup) == (4 * GB, 3 * GB)


def test_a_limit_further_up_holds_below(tmp_path: Path) -> None:
    """A batch system limits the job, the process lives in a step of it."""
    groups = {
        "batch/job_7": {
            "memory.max": f"{8 * GB}",
            "memory.current": f"{GB}",
            "cpu.max": "100000 100000",
        },
        "batch/job_7/step_0": {"memory.max": "max", "cpu.max": "max 100000"},
    }
    proc, cgroup = system(tmp_path, path="/batch/job_7/step_0", groups=groups)
    assert machine.memory(proc, cgroup) == (8 * GB, 7 * GB)
    assert machine.cpus(proc, cgroup) == 1


def test_a_quota_below_one_cpu_still_leaves_one(tmp_path: Path) -> None:
    """Thread counts must not become zero."""
    proc, cgroup = system(tmp_path, path="/", groups={"": {"cpu.max": "20000 100000\n"}})
    assert machine.cpus(proc, cgroup) == 1


def test_a_system_that_says_nothing_is_believed_to_have_what_it_reports(tmp_path: Path) -> None:
    """macOS has neither folder."""
    total, available = machine.memory(tmp_path, tmp_path)
    assert total == available > GB // 4
    assert 1 <= machine.cpus(tmp_path, tmp_path) <= (os.cpu_count() or 1)
