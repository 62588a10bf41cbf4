"""Evaluation of BEIR folders and of several collections at once, through the command too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline.assumptions import of_run
from pipeline.evaluate import BEIR_MEASURES, Basis, evaluate_runs
from pipeline.tables import common_name


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A BEIR folder as of ArguAna: topics are documents too."""
    folder = tmp_path / "arguana"
    (folder / "qrels").mkdir(parents=True)
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "test.tsv").write_text(header + "q1\ta\t1\nq2\tb\t1\n")
    (folder / "qrels" / "dev.tsv").write_text(header + "q1\tb\t1\n")
    lines = "q1 Q0 q1 1 9 t\nq1 Q0 a 2 8 t\nq2 Q0 x 1 9 t\nq2 Q0 q2 2 8 t\nq2 Q0 b 3 7 t\n"
    (tmp_path / "bm25.run").write_text(lines)
    return folder


def test_a_beir_folder_has_its_own_conventions(beir: Path, tmp_path: Path) -> None:
    """Its test split, its measures, and no document with the id of its topic."""
    table = evaluate_runs(beir, [tmp_path / "bm25.run"])
    assert table.qrels == "arguana"
    assert table.measures == BEIR_MEASURES
    assert evaluate_runs(beir, [tmp_path / "bm25.run"], ["RR"]).cells()[1] == ["bm25", "0.7500"]
    assert list(of_run(table.rows[0])) == [
        "bm25: 2 documents with the id of their topic are left out",
        "bm25: at most 3 documents a topic, fewer than nDCG@10, R@100, Judged@10 look at",
    ]


def test_the_conventions_can_be_had_apart(beir: Path, tmp_path: Path) -> None:
    """Identical ids kept in a folder or left out for a file; another split."""
    path = tmp_path / "bm25.run"
    kept = evaluate_runs(beir, [path], ["RR"], basis=Basis(identical=True))
    assert kept.cells()[1] == ["bm25", "0.4167"]
    file = beir / "qrels" / "test.tsv"
    assert evaluate_runs(file, [path], ["RR"]).cells() == kept.cells()
    assert (
        evaluate_runs(file, [path], ["RR"], basis=Basis(identical=False)).cells()[1][1] == "0.7500"
    )
    assert evaluate_runs(beir, [path], ["NumQ"], basis=Basis(split="dev")).cells()[1][1] == "1"


def test_folders_that_are_none_of_beir(beir: Path, tmp_path: Path) -> None:
    """The hint says what a folder must hold, or which splits there are."""
    with refused("a folder without qrels/*.tsv", "a BEIR folder"):
        evaluate_runs(tmp_path, [tmp_path / "bm25.run"])
    with refused("no judgements for the split 'tset'", "did you mean 'test'"):
        evaluate_runs(beir, [tmp_path / "bm25.run"], basis=Basis(split="tset"))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two collections, two systems."""
    for name, relevant in (("nf", "a"), ("sf", "b")):
        (tmp_path / f"{name}.qrels").write_text(f"007 0 {relevant} 1\nNA 0 {relevant} 1\n")
        for system, first in (("bm25", "a"), ("small", "b")):
            second = {"a": "b", "b": "a"}[first]
            lines = f"NA Q0 {first} 1 2 t\nNA Q0 {second} 2 1 t\n"
            (tmp_path / f"{system}.{name}.run").write_text(lines)
    return tmp_path


WORDS = (
    "evaluate", "nf.qrels", "bm25.nf.run", "small.nf.run", "+", "sf.qrels", "bm25.sf.run",
    "small.sf.run", "-m", "RR", "-m", "NumQ",
)  # fmt: skip


def test_several_collections_and_their_average(two: Path) -> None:
    """A table for each, and one of the means of their means; counts are added up."""
    done = run(*WORDS, cwd=two)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "bm25.nf: 1 of 2 judged topics have no answer and count zero: '007'" in lines
    place = lines.index("mean over 2 collections")
    assert [line.split() for line in lines[place + 2 :]] == [
        ["run", "RR", "NumQ"], ["-----", "------", "----"],
        ["bm25", "0.3750", "4"], ["small", "0.3750", "4"],
    ]  # fmt: skip
    value = json.loads(run(*WORDS, "--json", cwd=two).stdout)
    assert [table["qrels"] for table in value["collections"]] == ["nf.qrels", "sf.qrels"]
    assert value["mean"][0] == {"name": "bm25", "values": {"RR": 0.375, "NumQ": 4}}
    for form in ("--markdown", "--latex"):
        shown = run(*WORDS, form, cwd=two)
        assert "mean over 2 collections" in shown.stdout
        assert "count zero: '007'" in shown.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nf.qrels", "bm25.nf.run", "+", "sf.qrels"), "without judgements or without a run"),
        (("nf.qrels", "bm25.nf.run", "+"), "without judgements or without a run"),
        (("nf.qrels", "bm25.nf.run", "small.nf.run", "+", "sf.qrels", "bm25.sf.run"),
         "2 runs for nf.qrels, 1 for sf.qrels"),
        (("-", "bm25.nf.run", "+", "sf.qrels", "-"), "standard input is named twice"),
        (("nf.qrels", "bm25.nf.run", "+", "sf.qrels", "bm25.sf.run", "--per-topic", "x.csv"),
         "--per-topic with several collections"),
    ],
)  # fmt: skip
def test_collections_that_do_not_match(two: Path, words: tuple[str, ...], message: str) -> None:
    """Nothing is averaged over different systems, and nothing is written."""
    done = run("evaluate", *words, cwd=two)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (two / "x.csv").exists()


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["bm25.nf", "bm25.sf"], "bm25"),
        (["nf/bm25", "sf/bm25"], "bm25"),
        (["bm25", "bm25"], "bm25"),
        (["run_small-3_nf", "run_small-3_sf"], "run.small.3"),
        (["a", "b"], "a"),
    ],
)
def test_a_system_is_named_by_what_its_runs_share(names: list[str], common: str) -> None:
    """Words between dots, strokes and slashes that are in all names."""
    assert common_name(names) == common
