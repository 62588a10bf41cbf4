"""Kill a real `pipeline` process at a chosen system call, or when we choose, with SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Runs the command line in a process that notes every fsync and rename, and kills itself, the hard
# way, around the one it was told to: these are the moments at which the disk changes for good.
WRAPPER = """
import os, signal, sys
log, fatal, when = open(sys.argv[1], "a", buffering=1), int(sys.argv[2]), sys.argv[3]
count = 0
def watch(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global count
        count += 1
        target = args[-1] if name != "fsync" else os.readlink(f"/proc/self/fd/{args[0]}")
        log.write(f"{count}\\t{name}\\t{os.fspath(target)}\\n")
        if count == fatal and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(os, name, call)
for name in ("fsync", "rename", "replace"):
    watch(name)
sys.argv = ["pipeline", *sys.argv[4:]]
from pipeline.cli.main import main
main()
"""


@dataclass(frozen=True)
class Moment:
    """A system call that changes the disk: its number in the process, its name, its target."""

    number: int
    call: str
    target: str


def run(*arguments: str | Path, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the installed command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def watched(
    *arguments: str | Path, cwd: Path, fatal: int = 0, when: str = "before"
) -> tuple[subprocess.CompletedProcess[str], list[Moment]]:
    """Run the command; kill it around its `fatal`-th call that changes the disk (0: never)."""
    log = cwd / f".moments-{os.getpid()}"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", WRAPPER, str(log), str(fatal), when, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    log.unlink()
    if fatal:
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    return done, [Moment(int(number), call, target) for number, call, target in rows]


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    """What `run --json` says of each stage."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
