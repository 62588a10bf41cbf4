"""Run a few lines of Python in another process: unprivileged, or with a disk that is full."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}

# Ends in the two lines of the refusal, or in null where nothing was refused.
REFUSAL = """
import json, os, sys
from pathlib import Path
from pipeline import collection, errors, stage, store, textfile, topics, trec, windows
{before}
refusal = None
try:
{script}
except errors.PipelineError as error:
    refusal = [type(error).__name__, error.message, error.hint]
print(json.dumps(refusal))
"""
UNPRIVILEGED = """
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def start_python(script: str, folder: Path) -> subprocess.Popen[str]:
    """Start a script that talks through its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def refusal_unprivileged(script: str, folder: Path) -> list[str] | None:
    """Run a script as nobody (we may be root, whom nothing stops): [kind, message, hint]."""
    return _refusal([sys.executable, "-c"], script, folder, UNPRIVILEGED)


def refusal_on_small_disk(script: str, folder: Path, size: str) -> list[str] | None:
    """Run a script in a folder `disk` of a few kilobytes: [kind, message, hint]."""
    (folder / "disk").mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={size} none disk"
    for command in (["unshare", "-rm"], ["unshare", "-m"]):
        shell = [*command, "sh", "-c"]
        if (
            shutil.which("unshare")
            and not subprocess.run(
                [*shell, mount], cwd=folder, capture_output=True, check=False
            ).returncode
        ):
            run = [*shell, f'{mount} && exec "$0" -c "$1"', sys.executable]
            return _refusal(run, script, folder, "")
    pytest.skip("mount namespaces are forbidden here, so there is no small disk to fill")


def _refusal(command: list[str], script: str, folder: Path, before: str) -> list[str] | None:
    body = textwrap.indent(textwrap.dedent(script), "    ")
    done = subprocess.run(
        [*command, REFUSAL.format(before=before, script=body)],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: Any = json.loads(done.stdout.splitlines()[-1])
    return answer
