"""Kill a piece of work before each of its changes on the disk, and look at what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
OPERATIONS = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

DRIVER = """
from crashing import at_every_step
{script}
at_every_step(start, work, look)
"""


def killed_everywhere(script: str, folder: Path) -> list[Any]:
    """Run `work()` once for each change it makes on the disk, killed before it, and once whole.

    The script defines `start()`, which makes the ground ready, `work()`, and `look()`, which says
    as a JSON value what a later process finds. Returned is what it said each time.
    """
    code = DRIVER.format(script=textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder, env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def at_every_step(start: Any, work: Any, look: Any) -> None:
    """Be the driver: fork, kill the child before its n-th change, look, for n = 0, 1, 2, ..."""
    killed, steps = True, 0
    while killed:
        start()
        pid = os.fork()
        if pid == 0:
            _kill_before(steps)
            work()
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0
        sys.stdout.write(json.dumps(look()) + "\n")
        sys.stdout.flush()
        steps += 1


def _kill_before(step: int) -> None:
    left = step

    def hook(event: str, arguments: Any) -> None:
        nonlocal left
        if event in OPERATIONS or (event == "open" and arguments[2] & WRITING):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)
