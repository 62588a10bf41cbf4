"""Killed at any moment and resumed, a run ends in the bytes of one that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from killing import Moment, contents, outcomes, run, watched

if TYPE_CHECKING:
    from collections.abc import Callable

SOAK = bool(os.environ.get("PIPELINE_SOAK"))
KILLS = (
    {"retrieve": 20, "rerank": 25, "commit": 25}
    if SOAK
    else {"retrieve": 2, "rerank": 3, "commit": 2}
)
SEED = 20
TOPICS = 30

pytestmark = [pytest.mark.jvm, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(1800)]

EXPERIMENT = """
name = "e"
[collection]
path = "collection.jsonl"
[topics]
path = "topics.tsv"
[index]
path = "index"
[retrieve]
hits = 20
[[rerank]]
name = "small"
model = "small"
depth = 15
[evaluate]
qrels = "qrels.txt"
"""
OUTPUTS = ("bm25.run", "small.run", "measures.json")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's collection, some of its topics, and a finished index."""
    from pipeline.demo import build

    folder = tmp_path_factory.mktemp("ready")
    build.lay_out(folder)
    topics = (folder / "topics.tsv").read_text().splitlines(keepends=True)[:TOPICS]
    (folder / "topics.tsv").write_text("".join(topics))
    kept = {line.split("\t")[0] for line in topics}
    qrels = (folder / "qrels.txt").read_text().splitlines(keepends=True)
    (folder / "qrels.txt").write_text("".join(q for q in qrels if q.split()[0] in kept))
    (folder / "experiment.toml").write_text(EXPERIMENT)
    assert run("run", "experiment.toml", "--until", "index", cwd=folder).returncode == 0
    return folder


def fresh_copy(ready: Path, target: Path) -> Path:
    shutil.copytree(ready, target, copy_function=shutil.copy2)
    return target


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "runs" / "e" / name).read_bytes() for name in OUTPUTS}


def parts(folder: Path) -> dict[str, tuple[int, int]]:
    """Finished parts with inode and time: a part that is made again gets new ones."""
    found = (folder / "runs").rglob("*.part")
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found if p.name[0] != "."}


@pytest.fixture(scope="module")
def undisturbed(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Moment]]:
    """A run that nobody disturbed, and the moments at which it changed the disk."""
    folder = fresh_copy(ready, tmp_path_factory.mktemp("whole") / "w")
    done, moments = watched("run", "experiment.toml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, moments


def phase(moment: Moment) -> str:
    if "bm25.run.parts" in moment.target:
        return "retrieve"
    return "rerank" if "small.run.parts" in moment.target else "commit"


def test_killed_at_random_moments_and_resumed(
    ready: Path,
    undisturbed: tuple[Path, list[Moment]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """SIGKILL around random changes of the disk, in each phase: same bytes, nothing done twice."""
    record_property("kills", ", ".join(f"{count} in {name}" for name, count in KILLS.items()))
    whole, moments = undisturbed
    expected = outputs(whole)
    lucenes = {name for name in contents(whole) if name.endswith("write.lock")}  # stay for good
    choose = random.Random(SEED)
    for name, kills in KILLS.items():
        candidates = [moment for moment in moments if phase(moment) == name]
        assert candidates, name
        for trial in range(kills):
            moment, when = choose.choice(candidates), choose.choice(("before", "after"))
            folder = fresh_copy(ready, tmp_path / f"{name}{trial}")
            killed, _ = watched(
                "run", "experiment.toml", cwd=folder, fatal=moment.number, when=when
            )
            assert killed.returncode == -signal.SIGKILL, (name, moment, when)
            kept = parts(folder)

            resumed = run("run", "experiment.toml", "--json", cwd=folder)

            assert resumed.returncode == 0, (moment, when, resumed.stderr)
            assert outputs(folder) == expected, (moment, when)
            now = parts(folder)
            assert {part: now[part] for part in kept} == kept, (moment, when)
            leftovers = [f for f in contents(folder) if f.endswith((".tmp", ".lock"))]
            assert set(leftovers) <= lucenes, (moment, when)
            shutil.rmtree(folder)


def test_killed_by_the_clock_and_resumed(
    ready: Path, undisturbed: tuple[Path, list[Moment]], tmp_path: Path
) -> None:
    """SIGKILL whenever the clock says, again and again, until the run gets through."""
    expected = outputs(undisturbed[0])
    choose = random.Random(SEED + 1)
    folder = fresh_copy(ready, tmp_path / "clock")
    for _ in range(12 if SOAK else 3):
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", "experiment.toml"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(choose.uniform(0.5, 8.0))
        process.kill()
        process.wait()
    assert run("run", "experiment.toml", cwd=folder).returncode == 0

    assert outputs(folder) == expected


def test_scored_pairs_of_finished_parts_are_not_scored_again(
    ready: Path, undisturbed: tuple[Path, list[Moment]], tmp_path: Path
) -> None:
    """Pairs scored before the kill and after it add up to the pairs there are."""
    _, moments = undisturbed
    saves = [m for m in moments if phase(m) == "rerank" and m.call == "replace"]
    middle = saves[len(saves) // 2]
    folder = fresh_copy(ready, tmp_path / "half")
    watched("run", "experiment.toml", cwd=folder, fatal=middle.number, when="after")
    finished = sum(
        path.read_bytes().count(b"\n")
        for path in (folder / "runs/e/small.run.parts").glob("*.part")
    )
    assert finished > 0

    details = outcomes(run("run", "experiment.toml", "--json", cwd=folder))["small"]["details"]

    assert isinstance(details, dict)
    assert details["pairs_reused"] > 0
    assert details["pairs_scored"] + details["pairs_reused"] == TOPICS * 15


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", ["bm25", "small"])
def test_interrupted_says_how_to_go_on(
    ready: Path,
    undisturbed: tuple[Path, list[Moment]],
    tmp_path: Path,
    number: int,
    code: int,
    stage: str,
) -> None:
    """Ctrl-C and SIGTERM, the Java machine alive, exit 130 and 143, and the run can be resumed."""
    folder = fresh_copy(ready, tmp_path / "stopped")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", "experiment.toml"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_part(folder / f"runs/e/{stage}.run.parts", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)

    assert process.returncode == code, said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    assert run("run", "experiment.toml", cwd=folder).returncode == 0
    assert outputs(folder) == outputs(undisturbed[0])


def wait_for_part(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.part")):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("damage", ["torn part", "edited part", "edited output", "torn sidecar"])
def test_damage_is_noticed_named_and_mended(
    undisturbed: tuple[Path, list[Moment]], tmp_path: Path, damage: str
) -> None:
    """Whatever is torn or edited is named, and the bytes are those of the undisturbed run."""
    folder = fresh_copy(undisturbed[0], tmp_path / "damaged")
    made = folder / "runs" / "e"
    expected = outputs(folder)
    if damage.endswith("part"):
        part = min((made / "small.run.parts").glob("*.part"))
        data = part.read_bytes()
        part.write_bytes(data[: len(data) // 2] if damage == "torn part" else data.swapcase())
        (made / "small.run.json").unlink()
        (made / "small.run").unlink()
        named = part.name
    elif damage == "edited output":
        (made / "small.run").write_bytes(expected["small.run"][:-40])
        named = "output edited"
    else:
        (made / "small.run.json").write_text('{"schema": 1, "rec')
        named = "sidecar damaged"
    said = run("status", "experiment.toml", cwd=folder).stdout
    mended = run("run", "experiment.toml", cwd=folder)

    assert mended.returncode == 0, mended.stderr
    assert named in said + mended.stderr
    assert outputs(folder) == expected


def test_a_second_process_on_one_output_is_refused(ready: Path, tmp_path: Path) -> None:
    """Two processes on one output: the second is told who has it; on two outputs both work."""
    folder = fresh_copy(ready, tmp_path / "two")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys,time; from pathlib import Path; from pipeline.store import locked\n"
            "with locked(Path('runs/e/bm25.run')): print('held', flush=True); time.sleep(60)",
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    holder.stdout.readline()
    search = ("retrieve", "--index", "index", "--topics", "topics.tsv", "--hits", "5")
    refused = run(*search, "--output", "runs/e/bm25.run", cwd=folder)
    other = run(*search, "--output", "runs/e/other.run", cwd=folder)
    holder.kill()
    holder.communicate()

    assert refused.returncode == 1
    assert f"pid {holder.pid}" in refused.stderr
    assert other.returncode == 0, other.stderr
    assert run(*search, "--output", "runs/e/bm25.run", cwd=folder).returncode == 0


def test_one_edited_topic_costs_one_part(
    undisturbed: tuple[Path, list[Moment]], tmp_path: Path
) -> None:
    """Editing one topic re-scores the part that contains it, and no other."""
    folder = fresh_copy(undisturbed[0], tmp_path / "edited")
    topics = (folder / "topics.tsv").read_text()
    qid = topics.split("\t", 1)[0]
    (folder / "topics.tsv").write_text(topics.replace(f"{qid}\t", f"{qid}\tplease ", 1))
    kept = parts(folder)

    details = outcomes(run("run", "experiment.toml", "--json", cwd=folder))["small"]["details"]

    assert isinstance(details, dict)
    assert 0 < details["pairs_scored"] <= 4 * 15
    now = parts(folder)
    assert {part: now[part] for part in kept} == kept
    assert len(now) == len(kept) + 2
