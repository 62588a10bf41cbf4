"""An experiment file becomes stages; status says what is stale and why; run does just that."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from killing import contents, outcomes, run

from pipeline import plots
from pipeline.errors import InputError, PipelineError
from pipeline.experiment import load

pytestmark = [pytest.mark.jvm]

EXPERIMENT = """
name = "e"
[collection]
path = "corpus.jsonl"
[topics]
path = "topics.tsv"
[index]
path = "index"
[retrieve]
hits = 10
[[rerank]]
name = "cheap"
model = "overlap"
depth = 5
[[rerank]]
name = "better"
model = "overlap"
depth = 3
[evaluate]
qrels = "qrels.txt"
measures = ["nDCG@10", "RR@10"]
"""


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    target = tmp_path / "tiny"
    shutil.copytree(tiny, target)
    (target / "e.toml").write_text(EXPERIMENT)
    return target


def reasons(folder: Path, *options: str) -> dict[str, list[str]]:
    done = run("status", "e.toml", "--json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {stage["name"]: stage["reasons"] for stage in json.loads(done.stdout)["stages"]}


def test_stages_stand_in_order_with_their_outputs(folder: Path) -> None:
    plan = load(folder / "e.toml")

    assert [step.name for step in plan.steps] == [
        "index",
        "retrieve",
        "cheap",
        "better",
        "evaluate",
    ]
    assert plan.step("retrieve").output == folder / "runs/e/bm25.run"
    assert plan.step("better").needs == ("cheap", "index")


def test_a_chain_runs_once_and_is_then_fresh(folder: Path) -> None:
    """Every stage is computed, the table printed; the second time nothing is touched."""
    assert reasons(folder)["retrieve"] == ["after index"]
    first = run("run", "e.toml", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0].split() == ["run", "nDCG@10", "RR@10"]
    assert [line.split()[0] for line in first.stdout.splitlines()[2:]] == [
        "bm25",
        "cheap",
        "better",
    ]
    assert not any(reasons(folder).values())

    again = outcomes(run("run", "e.toml", "--json", cwd=folder))

    assert not any(outcome["computed"] for outcome in again.values())


def test_a_change_makes_stale_what_follows_and_nothing_else(folder: Path) -> None:
    """A setting, named with its old and new value; what comes after it waits for it."""
    assert run("run", "e.toml", cwd=folder).returncode == 0

    changed = reasons(folder, "--set", "rerank.better.depth=2")

    assert changed == {
        "index": [],
        "retrieve": [],
        "cheap": [],
        "better": ["depth changed (3 -> 2)"],
        "evaluate": ["after better"],
    }


def test_inputs_count_by_content(folder: Path) -> None:
    """Touching a file changes nothing; editing it names the input."""
    assert run("run", "e.toml", cwd=folder).returncode == 0
    (folder / "topics.tsv").touch()
    assert not any(reasons(folder).values())
    topics = (folder / "topics.tsv").read_text()
    (folder / "topics.tsv").write_text(topics.replace("bake", "bake good"))

    assert reasons(folder)["retrieve"] == ["input topics changed"]


def test_runs_are_tagged_by_the_names_of_their_stages(folder: Path) -> None:
    """Unless a stage names a tag, or its own name cannot be one."""
    text = EXPERIMENT.replace('"better"', '"better.2"').replace("depth = 5", "depth = 5\ntag = 'x'")
    (folder / "e.toml").write_text(text)
    assert run("run", "e.toml", cwd=folder).returncode == 0
    tags = [
        (folder / "runs" / "e" / f"{name}.run").read_text().split()[5]
        for name in ("bm25", "cheap", "better.2")
    ]
    assert tags == ["bm25", "x", "rerank"]
    (folder / "e.toml").write_text(EXPERIMENT)
    assert run("run", "e.toml", cwd=folder).returncode == 0
    assert (folder / "runs" / "e" / "better.run").read_text().split()[5] == "better"


def test_until_force_and_dry_run(folder: Path) -> None:
    planned = run("run", "e.toml", "--until", "retrieve", "--dry-run", cwd=folder)
    assert planned.stdout.splitlines() == [
        "index: would run: never finished",
        "retrieve: would run: after index",
    ]
    assert not (folder / "index").exists()

    assert list(outcomes(run("run", "e.toml", "--until", "retrieve", "--json", cwd=folder))) == [
        "index",
        "retrieve",
    ]
    forced = outcomes(
        run("run", "e.toml", "--until", "retrieve", "--force", "retrieve", "--json", cwd=folder)
    )

    assert not forced["index"]["computed"]
    assert forced["retrieve"]["reasons"] == ["forced"]

    unreached = run("run", "e.toml", "--until", "retrieve", "--force", "cheap", cwd=folder)
    assert unreached.returncode == 1
    assert "--force cheap: this stage is not among those that would run" in unreached.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rerank.better.model=nowhere", "'nowhere': no such model"),
        ("rerank.better.depth=0", "--depth 0 is out of range"),
        ("rerank.better.tag='a b'", "'a b' is no legal run tag"),
        ("rerank.better.interpolate=2", "--interpolate 2.0 is out of range"),
        ("retrieve.b=2", "--b 2.0 is out of range"),
        ("topics.field=text", "no field 'text' in TREC topics"),
        ("index.language=xx", "no analysis for language 'xx'"),
        ("collection.path='.'", "and the input . overlap"),
    ],
)
def test_a_late_stage_that_cannot_run_stops_the_first(
    folder: Path, setting: str, message: str
) -> None:
    """Settings and models of every stage are looked at before anything is computed."""
    before = contents(folder)

    done = run("run", "e.toml", "--set", setting, cwd=folder)

    assert done.returncode == 1
    assert message in done.stderr
    assert contents(folder) == before


def test_explain_says_what_went_into_an_output(folder: Path) -> None:
    assert run("run", "e.toml", cwd=folder).returncode == 0

    said = run("explain", "e.toml", "better", cwd=folder).stdout

    assert "better.run: fresh" in said
    assert "depth                3" in said
    assert "command" in said


def test_clean_deletes_parts_and_keeps_outputs(folder: Path) -> None:
    """Those of shards as well, also of one that was never finished."""
    assert run("run", "e.toml", cwd=folder).returncode == 0
    made = folder / "runs" / "e"
    assert run("run", "e.toml", "--until", "cheap", "--shard", "1/2", cwd=folder).returncode == 0
    (made / "shard-2-of-2.cheap.run.parts").mkdir()
    assert (made / "cheap.run.parts").is_dir()

    said = run("clean", "e.toml", cwd=folder)

    assert said.returncode == 0, said.stderr
    assert not list(made.glob("*.parts"))
    assert (made / "shard-1-of-2.cheap.run").exists()
    assert not any(reasons(folder).values())
    assert run("clean", "e.toml", "--outputs", cwd=folder).returncode == 0
    assert list(made.iterdir()) == []


def test_status_can_answer_a_script(folder: Path) -> None:
    """`--exit-code` gives 3 while anything is stale."""
    assert run("status", "e.toml", "--exit-code", cwd=folder).returncode == 3
    assert run("run", "e.toml", cwd=folder).returncode == 0
    assert run("status", "e.toml", "--exit-code", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("name = \"cheap\"", "name = \"better\""), "[[rerank]] name 'better' cannot be used"),
        (("name = \"cheap\"", "name = \"../x\""), "cannot be used"),
        (("name = \"e\"", "name = \"../e\""), "cannot be a folder"),
        (("[topics]", "[topic]"), "unknown key 'topic' in the file"),
        (("hits = 10", "hit = 10"), "unknown key 'hit' in [retrieve]"),
        (("path = \"topics.tsv\"", ""), "[topics] lacks path"),
        (("name = \"e\"", "name = \"e\"\nschema = 9"), "schema 9 is not known"),
        (("name = \"e\"", "name = 5"), "name = 5 is not text in quotes"),
        (("name = \"e\"", "name = ''"), "the file lacks name"),
        (("path = \"topics.tsv\"", "path = 'topics.tsv'\nfield = 3"), "topics.field = 3 is not"),
        (("path = \"index\"", "path = [1]"), "index.path = [1] is not text in quotes"),
        (("[collection]\npath = \"corpus.jsonl\"\n[topics]\npath = \"topics.tsv\"\n[index]",
          "[topics]\npath = \"topics.tsv\"\n[index]\nstemmer = \"none\""),
         "unknown key 'stemmer' in [index]"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(
    folder: Path, edit: tuple[str, str], message: str
) -> None:
    (folder / "e.toml").write_text(EXPERIMENT.replace(*edit, 1))

    with pytest.raises(InputError) as error:
        load(folder / "e.toml")

    assert message in error.value.message


def test_an_unknown_stage_is_named_with_a_suggestion(folder: Path) -> None:
    with pytest.raises(PipelineError) as error:
        load(folder / "e.toml").step("retreive")

    assert error.value.hint == "did you mean 'retrieve'?"


def training(folder: Path, teacher_run: str) -> list[str]:
    """Name the stages that training a student of this teacher run takes."""
    (folder / "d.toml").write_text(
        EXPERIMENT + f'[distill]\nbase = "bert"\nteacher_runs = ["{teacher_run}"]\n'
    )
    return [step.name for step in load(folder / "d.toml").until("distill")]


def test_training_takes_the_stages_that_make_its_runs(folder: Path) -> None:
    """By the name of a stage or by the place of its run; none for runs from elsewhere."""
    assert training(folder, "bm25") == ["index", "retrieve", "distill"]
    assert training(folder, "cheap") == ["index", "retrieve", "cheap", "distill"]
    assert training(folder, "runs/e/bm25.run") == ["index", "retrieve", "distill"]
    assert training(folder, "bm25.run") == ["distill"]


def test_a_training_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, its terms and development figures, the same bytes each time; not without matplotlib."""
    pytest.importorskip("matplotlib")
    rows = [
        {"step": n, "epoch": 0, "loss": 3 / n, "kl": 2 / n, "lce": 1 / n, "learning_rate": 0.1}
        | ({"dev": {"cranfield": 0.1 * n, "a_$b": 0.2}} if n % 2 == 0 else {})
        for n in range(1, 5)
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert plots.loss_curve(metrics, tmp_path / "a.png")
    assert plots.loss_curve(metrics, tmp_path / "b.png")
    drawn = (tmp_path / "a.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 10_000
    assert drawn == (tmp_path / "b.png").read_bytes()
    metrics.write_text(json.dumps(rows[0]) + "\n")  # one step, no development data
    assert plots.loss_curve(metrics, tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.loss_curve(metrics, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
