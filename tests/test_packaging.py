"""What is released: the sdist and the wheel, their contents, and the command they install.

Everything is built offline; wheels are installed without their dependencies, which they find in the
test environment. The installed demo runs in test_offline.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from building import ROOT, build_sdist, build_wheel, build_wheel_of_sdist, install, run

import pipeline
from pipeline.models.folder import SHIPPED


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tree."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_of_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    return build_wheel_of_sdist(sdist, tmp_path_factory.mktemp("wheel-of-sdist"))


@pytest.fixture(scope="module", params=["wheel", "wheel_of_sdist"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has a built wheel and sees the dependencies of ours."""
    built: Path = request.getfixturevalue(request.param)
    return install(built, tmp_path_factory.mktemp("installed"))


def names_in_sdist(sdist: Path) -> set[str]:
    """Files without the folder name-version that holds them all."""
    with tarfile.open(sdist) as archive:
        return {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}


def source_files() -> set[str]:
    """Every file of the package in the checkout."""
    files = (p for p in (ROOT / "pipeline").rglob("*") if p.is_file())
    return {
        p.relative_to(ROOT).as_posix()
        for p in files
        if "__pycache__" not in p.parts and not p.name.startswith(".")
    }


def test_both_wheels_hold_the_whole_package_and_nothing_else(
    wheel: Path, wheel_of_sdist: Path
) -> None:
    """A file that was added but not packaged is the commonest fault of a release."""
    for built in (wheel, wheel_of_sdist):
        assert built.name == f"trec_pipeline-{pipeline.__version__}-py3-none-any.whl"
        names = set(zipfile.ZipFile(built).namelist())
        info = {n for n in names if n.partition("/")[0].endswith(".dist-info")}
        assert names - info == source_files()
        assert "pipeline/py.typed" in names
        assert {Path(n).name for n in info} >= {"LICENSE", "LICENSE-WEIGHTS", "NOTICE", "METADATA"}


def test_the_demo_travels(wheel: Path) -> None:
    """Topics, judgements and the student with its card and terms work offline only if inside."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {f"pipeline/demo/{name}" for name in ("topics.tsv", "qrels.txt")}
    for model in SHIPPED:
        student = {n for n in names if n.startswith(f"pipeline/demo/{model}/")}
        assert {Path(n).name for n in student} >= {
            *("model.safetensors", "config.json", "tokenizer.json", "README.md")
        }


@pytest.mark.parametrize(("model", "most"), [("small", 36_000_000), ("tiny", 10_000_000)])
def test_the_shipped_students_are_small_enough(model: str, most: int) -> None:
    """They are part of every download, and of every clone for ever."""
    folder = ROOT / "pipeline" / "demo" / model
    assert sum(path.stat().st_size for path in folder.iterdir()) <= most


@pytest.mark.parametrize("model", SHIPPED)
def test_the_card_of_a_student_is_the_one_it_was_trained_with(model: str) -> None:
    """It is kept beside the experiment that makes it again."""
    card = ROOT / "pipeline" / "demo" / model / "README.md"
    assert card.read_text("utf-8") == (ROOT / "experiments" / f"{model}.md").read_text("utf-8")


def test_the_sdist_builds_and_carries_its_terms_but_no_tests_and_no_data(sdist: Path) -> None:
    """Test collections have terms of their own; tests cannot run without them."""
    names = names_in_sdist(sdist)
    assert names >= source_files()
    assert names >= {
        *("LICENSE", "LICENSE-WEIGHTS", "NOTICE", "README.md", "CHANGELOG.md", "pyproject.toml"),
        *("constraints.txt", "CITATION.cff", "SECURITY.md"),
    }
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"pipeline", "trec_pipeline.egg-info"}


def test_the_metadata_say_what_it_is(wheel: Path) -> None:
    """What an index shows, and what an installer decides by."""
    from email.parser import Parser

    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Name"] == "trec-pipeline"
    assert metadata["Version"] == pipeline.__version__
    assert metadata["Requires-Python"] == ">=3.12"
    assert metadata["License-Expression"] == "Apache-2.0"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(required) == len(declared)


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    """A release names one version."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{pipeline.__version__}] - 20" in changelog
    assert f"\nversion: {pipeline.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_constraints_pin_what_is_declared_within_its_range() -> None:
    """A pin outside its range would make every constrained installation fail."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = declared["dependency-groups"].values()
    wanted = declared["project"]["dependencies"] + [
        line for group in groups for line in group if isinstance(line, str)
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]}"


def test_the_installed_command_answers(installed: Path, tmp_path: Path) -> None:
    """From a folder that has nothing to do with the checkout, and from the installed files."""
    assert run([installed / "pipeline", "--version"], cwd=tmp_path).split() == [
        *("trec-pipeline", pipeline.__version__)
    ]
    usage = run([installed / "pipeline", "--help"], cwd=tmp_path)
    for command in ("index", "retrieve", "rerank", "evaluate", "run", "demo", "doctor"):
        assert f" {command} " in usage
    where = run([installed / "python", "-c", "import pipeline; print(pipeline.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


@pytest.mark.jvm
@pytest.mark.model
@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_the_installed_program_is_healthy(installed: Path, tmp_path: Path) -> None:
    """Its doctor finds the Java runtime, and the shipped student ranks right."""
    done = subprocess.run(
        [installed / "pipeline", "doctor", "--json"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=False,
    )
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    for name in ("packages", "java", "model", "demo"):
        assert findings[name]["ok"], findings[name]
