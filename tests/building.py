"""Build what is released, offline, and install it where nothing of the checkout is seen."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_COPIED = {"build", "dist", "runs", "indexes", "demo", "docs", "experiments"}


def run(command: list[str | Path], cwd: Path) -> str:
    """Run a command outside the checkout; its output is shown where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


def copy_tree(place: Path) -> Path:
    """Copy the checkout, tests included: leftovers of earlier builds must not get in."""

    def skip(folder: str, names: list[str]) -> set[str]:
        if Path(folder) != ROOT:
            return {name for name in names if name == "__pycache__"}
        hidden = {n for n in names if n.startswith(".") or n.endswith(".egg-info")}
        return hidden | NOT_COPIED

    shutil.copytree(ROOT, place / "copy", ignore=skip)
    return place / "copy"


def build_sdist(place: Path) -> Path:
    """Build the source distribution from a copy of the checkout."""
    return _build(copy_tree(place), place / "sdist", "sdist")


def build_wheel(place: Path) -> Path:
    """Build the wheel from a copy of the checkout."""
    return _build(copy_tree(place), place / "wheel", "wheel")


def build_wheel_of_sdist(sdist: Path, place: Path) -> Path:
    """Build the wheel from the sdist, as an installer does where it gets no wheel."""
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (source,) = (place / "unpacked").iterdir()
    return _build(source, place / "wheel", "wheel")


def _build(source: Path, target: Path, kind: str) -> Path:
    """Without isolation, and so without a network: by the back end of the test environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", target]
    run([*command, source], cwd=target.parent)
    (built,) = target.iterdir()
    return built


def install(wheel: Path, place: Path) -> Path:
    """Install a wheel in an environment that sees our dependencies; return its `bin`."""
    environment = place / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    own = run([python, "-c", "import site; print(site.getsitepackages()[0])"], cwd=place).strip()
    # A path file inside a folder that a path file adds is not read: our own editable install,
    # which is one, stays out.
    Path(own, "test-environment.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], cwd=place)
    return environment / "bin"
