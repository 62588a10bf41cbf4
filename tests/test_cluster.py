"""A real Ray cluster of three nodes; workers, nodes and drivers are killed in the middle of it."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import NODES, Nodes

SOAK = bool(os.environ.get("PIPELINE_SOAK"))
KILLS = {"worker": 8, "node": 6, "driver": 6} if SOAK else {"worker": 1, "node": 1, "driver": 1}
TOPICS = 160

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="workers are looked for in /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(3600 if SOAK else 900),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of which each topic has many candidates, and the run of one process."""
    folder = tmp_path_factory.mktemp("ready")
    choose = random.Random(3)
    words = [f"w{number}" for number in range(500)]
    with (folder / "corpus.jsonl").open("w") as out:
        for number in range(3000):
            text = " ".join(choose.choices(words, k=120))
            out.write(json.dumps({"id": f"d{number}", "contents": text}) + "\n")
    with (folder / "topics.tsv").open("w") as out, (folder / "bm25.run").open("w") as run:
        for number in range(TOPICS):
            out.write(f"{number}\t{' '.join(choose.choices(words, k=6))}\n")
            for rank, docid in enumerate(choose.sample(range(3000), 600), 1):
                run.write(f"{number} Q0 d{docid} {rank} {1000 - rank} bm25\n")
    done = start(folder, "one.run")
    assert done.wait() == 0
    return folder


WRAPPED = "import sys; sys.argv[0] = 'pipeline'\n{}\nfrom pipeline.cli.main import main; main()"


def start(
    folder: Path, output: str, *words: str, before: str = "", said: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a driver; `before` is what it executes first."""
    command = ["rerank", "--run", "bm25.run", "--topics", "topics.tsv", "--model", "overlap",
               "--collection", "corpus.jsonl", "--output", output, *words]  # fmt: skip
    errors = (said or folder / "said").open("wb")
    with errors:
        return subprocess.Popen(
            [sys.executable, "-c", WRAPPED.format(before), *command],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=errors,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip


def on(nodes: Nodes) -> tuple[str, ...]:
    return ("--executor", f"ray:{nodes.address}")


def parts(folder: Path, output: str) -> dict[str, tuple[int, int]]:
    """Finished parts; one that is made again would get another inode and time."""
    found = (folder / f"{output}.parts").glob("[!.]*.part")
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def details(folder: Path, output: str) -> dict:
    return json.loads((folder / f"{output}.json").read_text())["details"]


def wait_for_parts(folder: Path, output: str, count: int, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while len(parts(folder, output)) < count:
        assert driver.poll() is None, (folder / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_cluster_writes_the_bytes_of_one_process(nodes: Nodes, ready: Path) -> None:
    """By workers on all nodes, two parts on their way to each at most, rates in the sidecar."""
    driver = start(ready, "three.run", *on(nodes))
    assert driver.wait() == 0, (ready / "said").read_text()
    assert (ready / "three.run").read_bytes() == (ready / "one.run").read_bytes()
    told = details(ready, "three.run")["executor"]
    assert told["shared_folder"] is True
    assert len(told["workers"]) == NODES
    assert sum(one["pairs"] for one in told["workers"]) == TOPICS * 600
    assert told["slowest"]["part"].startswith("of topic")
    assert "slowest part: of topic" in (ready / "said").read_text()
    one, three = (json.loads((ready / f"{name}.run.json").read_text()) for name in ("one", "three"))
    assert one["recipe"] == three["recipe"]
    assert one["counts"] == three["counts"]


def test_without_a_shared_folder_parts_come_through_the_object_store(
    nodes: Nodes, ready: Path
) -> None:
    """The workers do not know the driver's folder when they see it."""
    apart = "import pipeline.cluster as c; c.TOKEN = 'elsewhere'"
    driver = start(ready, "apart.run", *on(nodes), "--workers", "2", before=apart)
    assert driver.wait() == 0, (ready / "said").read_text()
    assert (ready / "apart.run").read_bytes() == (ready / "one.run").read_bytes()
    told = details(ready, "apart.run")["executor"]
    assert told["shared_folder"] is False
    assert len(told["workers"]) == 2


def test_killed_in_the_middle_a_run_ends_in_the_same_bytes(
    nodes: Nodes, ready: Path, record_property: pytest.RecordProperty
) -> None:
    """Workers, nodes, drivers: only what was not finished is made again."""
    choose = random.Random(20)
    for kind, count in KILLS.items():
        for trial in range(count):
            output = f"{kind}{trial}.run"
            driver = start(ready, output, *on(nodes))
            wait_for_parts(ready, output, choose.randint(1, TOPICS // 3), driver)
            if kind == "worker":
                os.kill(choose.choice(nodes.workers()), signal.SIGKILL)
            elif kind == "node":
                nodes.lose(choose.randint(1, NODES - 1))
            else:
                driver.kill()
            kept = parts(ready, output)
            assert 0 < len(kept) < TOPICS, (kind, trial)
            if kind == "node":
                nodes.add()
            if kind == "driver":
                driver.wait()
                driver = start(ready, output, *on(nodes))
            assert driver.wait() == 0, (kind, trial, (ready / "said").read_text())
            assert (ready / output).read_bytes() == (ready / "one.run").read_bytes(), (kind, trial)
            now = parts(ready, output)
            assert {part: now.get(part) for part in kept} == kept, (kind, trial)
            assert not list(ready.glob(f".{output}*"))
            if kind != "driver":
                assert details(ready, output)["executor"]["lost"] >= 1
            else:
                assert details(ready, output)["pairs_reused"] >= 600
            shutil.rmtree(ready / f"{output}.parts")
    record_property("kills", sum(KILLS.values()))


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (
            "import pipeline.makers as m; from dataclasses import replace\n"
            "m.Load.from_anywhere = lambda self: replace(self, model='/nowhere/model')",
            "no such model",
        ),
        (
            "import pipeline.rerank as r\nreal = r.RerankMaker\n"
            "r.RerankMaker = lambda *words: real(*words[:3], 'of another model')",
            "is another model here",
        ),
    ],
    ids=["missing", "another"],
)
def test_a_worker_without_the_model_gives_one_clear_error(
    before: str, said: str, nodes: Nodes, ready: Path, tmp_path: Path
) -> None:
    """Which worker, what it lacks, what to do; nothing is written."""
    driver = start(ready, "no.run", *on(nodes), before=before, said=tmp_path / "said")
    assert driver.wait() == 1
    text = (tmp_path / "said").read_text()
    assert "pipeline: worker" in text
    assert said in text
    assert "Traceback" not in text
    assert not (ready / "no.run").exists()


def test_workers_that_die_at_their_start_end_the_run(
    nodes: Nodes, ready: Path, tmp_path: Path
) -> None:
    """As where a model does not fit into memory: not one after another for ever."""
    before = (
        "import os; import pipeline.rerank as r\n"
        "class Dying(r.RerankMaker):\n    def open(self): os._exit(9)\n"
        "r.RerankMaker = Dying"
    )
    words = (*on(nodes), "--workers", "1")
    driver = start(ready, "no.run", *words, before=before, said=tmp_path / "said")
    assert driver.wait() == 1
    text = (tmp_path / "said").read_text()
    assert "5 workers one after another were lost at their start" in text
    assert "Traceback" not in text
    assert not (ready / "no.run").exists()


def test_a_cluster_that_is_not_there_or_too_small_is_named(
    nodes: Nodes, ready: Path, tmp_path: Path
) -> None:
    """With what there is room for."""
    driver = start(ready, "no.run", *on(nodes), "--workers", "99", said=tmp_path / "said")
    assert driver.wait() == 1
    assert "has room for 3 workers" in (tmp_path / "said").read_text()


def test_a_sweep_is_scored_by_workers(nodes: Nodes, ready: Path, tmp_path: Path) -> None:
    """The runs, and so the values, of one process; times are those of a worker."""
    (tmp_path / "my.qrels").write_text("".join(f"{n} 0 d{n} 1\n" for n in range(TOPICS)))
    found = {}
    for name, more in (("one", ()), ("three", on(nodes))):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "sweep", tmp_path / "my.qrels", "--run", "bm25.run",
             "--topics", "topics.tsv", "--collection", "corpus.jsonl", "--model", "overlap",
             "--depth", "10", "--depth", "100", "--plot-format", "none", "--json",
             "--output", tmp_path / name, *more],
            cwd=ready, capture_output=True, text=True, check=False,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    runs = [(tmp_path / name / "overlap.run").read_bytes() for name in found]
    assert runs[0] == runs[1]
    sidecar = json.loads((tmp_path / "three" / "overlap.run.json").read_text())
    assert len(sidecar["details"]["executor"]["workers"]) == NODES
    assert sidecar["pace"]["topics"] == TOPICS
    one, three = (found[name]["points"] for name in ("one", "three"))
    assert [p["means"] for p in one] == [p["means"] for p in three]
    assert all(point["ms"] > 0 for point in three[1:])
    assert any("one worker" in note for note in found["three"]["notes"])


def test_first_stage_and_vectors_come_from_workers_too(
    nodes: Nodes, ready: Path, tmp_path: Path
) -> None:
    """The same bytes as one process writes."""
    from tiny_models import make_twin

    from pipeline.index import IndexSettings, index

    some = (ready / "corpus.jsonl").read_text().splitlines(keepends=True)[:300]
    (tmp_path / "corpus.jsonl").write_text("".join(some))
    index(IndexSettings(tmp_path / "corpus.jsonl", tmp_path / "i", shards=2))
    make_twin(tmp_path / "model")
    commands = {
        "a.run": ("retrieve", "--index", "i", "--topics", ready / "topics.tsv"),
        "v": ("encode", "--model", "model", "--index", "i", "--threads", "1"),
    }
    for output, words in commands.items():
        for name, more in (("one", ()), ("three", (*on(nodes), "--workers", "2"))):
            done = subprocess.run(
                [sys.executable, "-m", "pipeline", *map(str, words), "--output",
                 f"{name}.{output}", *more],
                cwd=tmp_path, capture_output=True, text=True, check=False,
                env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        told = details(tmp_path, f"three.{output}")["executor"]
        assert told["slowest"]["part"].startswith("of ")
    assert (tmp_path / "one.a.run").read_bytes() == (tmp_path / "three.a.run").read_bytes()
    for path in (tmp_path / "one.v").iterdir():
        assert path.read_bytes() == (tmp_path / "three.v" / path.name).read_bytes()
