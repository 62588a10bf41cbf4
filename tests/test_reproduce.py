"""The comparison's scripts: every arm is an experiment that can be run, on the same topics."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from pipeline.experiment import load

SCRIPTS = Path(__file__).parent.parent / "scripts"
SETS = ("msmarco", "nfcorpus", "cranfield", "scifact")


@pytest.fixture(scope="module")
def reproduce() -> ModuleType:
    """The script as a module."""
    return module_of("reproduce")


def module_of(name: str) -> ModuleType:
    loader = SourceFileLoader(f"{name}_script", str(SCRIPTS / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def script(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / name, *words]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=SCRIPTS.parent
    )


@pytest.mark.parametrize("teacher", ["towers", "cross"])
def test_every_arm_is_an_experiment(
    teacher: str, reproduce: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that exist and go together; equal steps, pairs, rates, data and draws for all."""
    made: dict[str, list[str]] = {}
    comparison = reproduce.Comparison(tmp_path, 6400, 64, 0, teacher)

    def checked(own: str, sets: list[str]) -> None:
        # Loading fills and types all settings; the checks are those that open no file.
        plan = load(tmp_path / f"{own}.toml", sets)
        assert [step.name for step in plan.steps][-1] == "distill"
        assert plan.until("distill")[0].name == "distill"  # no index, no first stage
        made[own] = sets

    monkeypatch.setattr(comparison, "distill", checked)
    monkeypatch.setattr(reproduce, "pipeline", lambda *_, **__: '{"runs": [{"mean": {}}]}')
    for name, arm in reproduce.TRAINED.items():
        comparison.train(name, arm, 1, comparison.steps, 3e-4)
    tag = "6400-cross" if teacher == "cross" else "6400"
    trained = {own: sets for own, sets in made.items() if not own.startswith("general")}
    assert f"margin-mse-{tag}-1" in trained
    assert {f"tinybert-{tag}-1.1", f"tinybert-{tag}-1"} <= set(trained)
    steps = {own: sets[1] for own, sets in trained.items()}
    assert steps.pop(f"tinybert-{tag}-1.1") == steps.pop(f"tinybert-{tag}-1")
    assert "distill.steps=100" in set(steps.values())
    labels = [{s for s in sets if "teacher_runs" in s or "qrels" in s} for sets in trained.values()]
    assert all(one == labels[0] for one in labels)
    # What is imitated reads pairs as the students do, and is trained before them.
    inside = "runs/teacher/teacher" if teacher == "cross" else f"runs/six-layers-{tag}-1/student"
    for own in (f"simplified-tinybert-{tag}-1", f"tinybert-{tag}-1.1", f"minilmv2-{tag}-1"):
        assert f'distill.intermediate.teacher="{inside}"' in made[own]
    # Labels come in with the scores: the step for the inside alone has none.
    with_labels = [made[f"tinybert-with-labels-{tag}-1{part}"] for part in (".1", "")]
    assert ["distill.bce=1.0" in sets for sets in with_labels] == [False, True]
    if teacher == "towers":
        assert list(made).index(f"six-layers-{tag}-1") < list(made).index(f"tinybert-{tag}-1.1")


def test_no_line_stands_for_one_that_was_made_otherwise(
    reproduce: ModuleType, tmp_path: Path
) -> None:
    """Pairs, tokens and the kind of teacher are in the names of runs, the teacher's own too."""
    made = [
        reproduce.Comparison(tmp_path, pairs, tokens, 0, teacher)
        for pairs in (6400, 64000) for tokens in (64, 112) for teacher in ("towers", "cross")
    ]  # fmt: skip
    assert len({one.label("margin-mse", 1) for one in made}) == 8
    assert {one.label("teacher", 1) for one in made} == {"teacher", "teacher-cross"}
    assert {one.label("bm25", 1) for one in made} == {"bm25"}


def test_each_kind_of_teacher_is_compared_with_its_own_students(tmp_path: Path) -> None:
    """In one folder both may lie; a table has the one that its arms learnt from."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "data").mkdir()
    for name in SETS:
        (tmp_path / "data" / f"dev-{name}.qrels").write_text("1 0 a 1\n")
    columns = {"bm25": 0.1, "teacher": 0.2, "teacher-cross": 0.3, "ranknet-6400-1": 0.4,
               "ranknet-6400-t112-cross-1": 0.5}  # fmt: skip
    lines = ["\t".join(["set", "topic", *columns])]
    lines += ["\t".join([name, "1", *map(str, columns.values())]) for name in SETS]
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n")

    done = script("reproduce_report.py", tmp_path)

    assert done.returncode == 0, done.stderr
    towers, cross = done.stdout.split("## 6400-t112-cross pairs an arm")
    assert "| teacher | 1 | 0.200" in towers
    assert "| teacher | 1 | 0.300" in cross
    assert "teacher-cross" not in done.stdout.replace("6400-t112-cross", "")


def test_report_tests_arms_and_names_ties(tmp_path: Path) -> None:
    """Arms better than BM25 on every topic are marked; arms within the spread of seeds tie."""
    topics = [f"q{number}" for number in range(40)]
    (tmp_path / "data").mkdir()
    (tmp_path / "dev").mkdir()

    def run(label: str, right: int) -> None:
        """Put the relevant document first for so many topics, else second; `far` leaves one out."""
        lines = [
            f"{qid} Q0 {docid} {rank} {9 - rank} t\n"
            for place, qid in enumerate(topics[label.startswith("far") :])
            for rank, docid in enumerate(("ab" if place < right else "ba"), 1)
        ]
        for name in SETS:
            (tmp_path / "dev" / f"{label}.{name}.run").write_text("".join(lines))

    for name in SETS:
        qrels = "".join(f"{qid} 0 a 1\n{qid} 0 b 0\n" for qid in topics)
        (tmp_path / "data" / f"dev-{name}.qrels").write_text(qrels)
    for label, right in {
        "bm25": 5, "teacher": 38, "one-640-1": 34, "one-640-2": 36, "two-640-1": 34, "far-640-1": 6,
        "six-layers-640-1": 35,
    }.items():  # fmt: skip
        run(label, right)
        student = tmp_path / "runs" / label / "student"
        student.mkdir(parents=True)
        save_file({"w": torch.zeros(1000, 100)}, student / "model.safetensors")
        config = {"num_hidden_layers": 3, "hidden_size": 384, "intermediate_size": 1536}
        (student / "config.json").write_text(json.dumps(config))
    done = script("reproduce_report.py", tmp_path)
    assert done.returncode == 0, done.stderr
    values, _, about = done.stdout.partition("Ties within it:")
    rows = {line.split(" | ")[0].strip("| "): line for line in values.splitlines()}
    assert rows["one"].count("b+") == rows["two"].count("b+") == len(SETS)
    assert "b+" not in rows["far"]
    assert rows["far"].count("t-") == len(SETS)
    assert about.startswith(" one, two; then far.")
    assert "| one | 0.1 M | 531 M |" in about
    assert (tmp_path / "report" / "arms-640.svg").read_text().count("six-layers") == 1
    # The values that were kept stand for the runs: another machine can go on from them.
    kept = (tmp_path / "dev.tsv").read_text()
    assert kept.splitlines()[0].split("\t")[:4] == ["set", "topic", "bm25", "far-640-1"]
    assert len(kept.splitlines()) == 1 + len(SETS) * len(topics)
    shutil.rmtree(tmp_path / "dev")
    shutil.rmtree(tmp_path / "runs")
    again = script("reproduce_report.py", tmp_path)
    assert again.returncode == 0, again.stderr
    tables = [each.stdout.partition("| arm | parameters")[0] for each in (done, again)]
    assert tables[0] == tables[1]
    assert (tmp_path / "dev.tsv").read_text() == kept


def test_lines_that_were_kept_are_left_out(
    reproduce: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another machine has measured is not measured again, unless it is asked for by name."""
    (tmp_path / "dev.tsv").write_text("set\ttopic\tbm25\ttinybert-6400-2\n")
    comparison = reproduce.Comparison(tmp_path, 6400, 64, 0, "towers")
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(comparison, "prepare", lambda: None)
    monkeypatch.setattr(comparison, "line", lambda name, seed: made.append((name, seed)))
    comparison.lines([("bm25", 1), ("tinybert", 1), ("tinybert", 2)])
    assert made == [("tinybert", 1)]


def test_arms_and_seeds_are_listed(tmp_path: Path) -> None:
    """With what is there; an arm that is not is refused as usage."""
    done = script("reproduce", "list", "--work", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["tinybert", "3", "-"] in lines
    assert ["minilmv2", "1", "-"] in lines
    wrong = script("reproduce", "tinybird", "--work", tmp_path)
    assert wrong.returncode == 2
    assert "no arm tinybird" in wrong.stderr


def test_a_sample_spreads_over_collections_and_grows(tmp_path: Path) -> None:
    """Of topics with a relevant candidate, each collection in turn; a larger one has a smaller."""
    run, qrels = tmp_path / "a.run", tmp_path / "qrels"
    topics = [f"{name}:{number}" for name in ("x", "y") for number in range(10)]
    run.write_text("".join(f"{q} Q0 {q}-{d} {d} {9 - d} t\n" for q in topics for d in (1, 2)))
    qrels.write_text("".join(f"{q} 0 {q}-2 {int(q != 'x:3')}\n" for q in topics))
    found = {}
    for wanted in (4, 8):
        output = tmp_path / f"{wanted}.run"
        done = script("prepare-training", "--sample", wanted, qrels, run, output)
        assert done.returncode == 0, done.stderr
        lines = output.read_text().splitlines()
        found[wanted] = {line.split()[0] for line in lines}
        assert len(lines) == 2 * wanted
        assert sum(q.startswith("x") for q in found[wanted]) == wanted // 2
    assert found[4] < found[8]
    assert "x:3" not in found[8]
    many = script("prepare-training", "--sample", 30, qrels, run, tmp_path / "x.run")
    assert many.returncode == 1
    assert "19 topics" in many.stderr


def test_a_part_has_some_topics_and_some_passages(tmp_path: Path) -> None:
    """By digests of their ids: a topic's lines stand as they were; too short ones go."""
    run, output = tmp_path / "a.run", tmp_path / "b.run"
    topics = [f"{kind}:{n}" for n in range(40) for kind in ("scifact", "made-t", "selqa-passage")]
    lines = [f"{q} Q0 wikiqa-sent:{d} {d} {99 - d} t\n" for q in topics for d in range(1, 60)]
    lines += [f"scifact:40 Q0 wikiqa-sent:{d} {d} {99 - d} t\n" for d in range(1, 15)]
    run.write_text("".join(lines))

    done = script("prepare-training", "--part", run, output)

    assert done.returncode == 0, done.stderr
    left = output.read_text().splitlines(keepends=True)
    assert [line for line in lines if line in set(left)] == left
    kinds = [qid.split(":")[0] for qid in {line.split()[0] for line in left}]
    assert kinds.count("scifact") == 40
    assert 0 < kinds.count("made-t") < kinds.count("selqa-passage") < 40
    passages = {line.split()[2] for line in left}
    assert 20 < len(passages) < 50


def test_joined_candidates_are_those_of_all_runs(tmp_path: Path) -> None:
    """Once each, in the order of the runs; topics are those of the first."""
    one, two, output = (tmp_path / name for name in ("1.run", "2.run", "out.run"))
    one.write_text("a Q0 x:1 1 9 t\na Q0 x:2 2 8 t\n")
    two.write_text("a Q0 x:3 1 9 t\na Q0 x:1 2 8 t\nb Q0 x:1 1 9 t\n")

    done = script("prepare-training", "--join", one, two, output)

    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in output.read_text().splitlines()]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("a", "x:1", "1"), ("a", "x:2", "2"), ("a", "x:3", "3"),
    ]  # fmt: skip
    scores = [int(row[4]) for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_joined_candidates_lack_what_a_topic_was_copied_from(tmp_path: Path) -> None:
    """Of half of the topics made from passages, whichever run has it."""
    one, two, output = (tmp_path / name for name in ("1.run", "2.run", "out.run"))
    topics = [f"made-q:x:{n}/0" for n in range(60)]
    one.write_text("".join(f"{q} Q0 x:other 1 9 t\n" for q in topics))
    two.write_text("".join(f"{q} Q0 x:{n} 1 9 t\n" for n, q in enumerate(topics)))

    done = script("prepare-training", "--join", one, two, output)

    assert done.returncode == 0, done.stderr
    assert 75 < len(output.read_text().splitlines()) < 105


def test_questions_that_stand_in_passages_become_topics() -> None:
    """Whole, and without their first words; none like a topic that develops a student."""
    module = module_of("prepare-training")
    training = object.__new__(module.Training)
    contents = {
        "x:1": "Chairs.\nHow do I adjust my chair? It is easy. Is there more? What is a b c?",
        "x:2": "When did Alma write this letter? In May.",
        "x:3": "What foods are rich in iron? Spinach. Where do sharks live?",
        "y:1": "What is left out as another collection's?",
    }
    training.docs = {docid: {"contents": text} for docid, text in contents.items()}

    made = list(training.questions("x", ["foods rich in iron"], {"x:2"}))

    assert [text for _, text in made] == [
        "how do i adjust my chair", "adjust my chair", "is there more", "there more",
        "what is a b c", "b c", "where do sharks live", "sharks live",
    ]  # fmt: skip
    assert all(qid.startswith(("made-q:x:1/", "made-q:x:3/")) for qid, _ in made)
    assert len({qid for qid, _ in made}) == len(made)
