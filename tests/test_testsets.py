"""Test sets known by their judgements, and the level of relevance they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.assumptions import of_table
from pipeline.errors import PipelineError
from pipeline.evaluate import Basis, evaluate_runs
from pipeline.notation import parse_measure
from pipeline.testsets import Level, level
from pipeline.trec import Qrels, read_qrels

DL19: Qrels = {
    qid: {"1234567": 3, "89": 2, "7": 1, "8": 0}
    for qid in ("19335", "47923", "87181", "1133167", "962179")
}


@pytest.mark.parametrize(
    ("qrels", "grade", "words"),
    [
        (DL19, 2, "TREC Deep Learning 2019"),
        ({"23849": {"5": 3}, "42255": {"6": 1}}, 2, "TREC Deep Learning 2020"),
        ({"2082": {"msmarco_passage_01_552803451": 3}}, 2, "from 2021 on"),
        ({"2082": {"msmarco_v2.1_passage_01_552803451": 3}}, 2, "from 2021 on"),
        ({"1964316": {"1234567_3": 4, "99_0": 1}}, 3, "ANTIQUE"),
        ({"19335": {"D1234567": 3}, "47923": {"D7": 0}}, 1, "default"),  # documents, not passages
        ({"19335": {"7": 1}}, 1, "default"),  # MS MARCO's own judgements
        ({"1": {"7": 3}, "2": {"8": 0}}, 1, "default"),
        ({"2082": {"msmarco_passage_01_552803451": 1}}, 1, "default"),
        ({"1": {"a": -1}}, 1, "default"),
    ],
)
def test_levels(qrels: Qrels, grade: int, words: str) -> None:
    """By topics, form of the document ids and grades; 1 for all others."""
    found = level(qrels)
    assert found.grade == grade
    assert words in found.why


def test_real_collections_keep_the_default(collections: Path) -> None:
    """None of the real ones here is taken for another."""
    for path in collections.glob("*/qrels*.txt"):
        assert level(read_qrels(path)) == Level(1, "the default")


@pytest.mark.parametrize(
    ("name", "at_level"),
    [
        ("AP", "AP(rel=2)"), ("RR@10", "RR(rel=2)@10"), ("R@1000", "R(rel=2)@1000"),
        ("AP(rel=3)", "AP(rel=3)"), ("AP(rel=1)", "AP"), ("nDCG@10", "nDCG@10"),
        ("NumRelRet", "NumRet(rel=2)"), ("NumRel", "NumRel(rel=2)"), ("NumRet", "NumRet"),
        ("Judged@10", "Judged@10"), ("ERR@20", "ERR@20"),
    ],
)  # fmt: skip
def test_only_measures_that_do_not_name_a_level_get_one(name: str, at_level: str) -> None:
    """What is asked for in words stays; graded measures have none."""
    assert parse_measure(name, 2).name == parse_measure(at_level).name


def test_an_evaluation_uses_the_level_and_says_why(tmp_path: Path) -> None:
    """The columns carry the level, the sentence above names its reason; --rel overrules it."""
    lines = [f"{q} 0 {d} {g}\n" for q, judged in DL19.items() for d, g in judged.items()]
    (tmp_path / "qrels").write_text("".join(lines))
    run = "".join(f"{q} Q0 {d} 1 {s} t\n" for q in DL19 for d, s in (("7", 2), ("89", 1)))
    (tmp_path / "a.run").write_text(run)
    table = evaluate_runs(
        tmp_path / "qrels", [tmp_path / "a.run"], ["RR@10", "nDCG@10", "P(rel=1)@1"]
    )
    assert table.cells()[0] == ["run", "RR(rel=2)@10", "nDCG@10", "P@1"]
    assert table.cells()[1][1] == "0.5000"
    assert list(of_table(table))[1] == (
        "relevant from grade 2 on in RR(rel=2)@10, as for the passages of TREC Deep Learning 2019; "
        "from grade 1 on in P@1, as asked; nDCG@10 by grade"
    )
    graded = evaluate_runs(tmp_path / "qrels", [tmp_path / "a.run"], ["nDCG@10"])
    assert list(of_table(graded))[1] == "nDCG@10 by grade"
    other = evaluate_runs(tmp_path / "qrels", [tmp_path / "a.run"], ["RR@10"], basis=Basis(rel=1))
    assert other.cells() == [["run", "RR@10"], ["a", "1.0000"]]
    with pytest.raises(PipelineError, match="no level of relevance is 0"):
        evaluate_runs(tmp_path / "qrels", [tmp_path / "a.run"], ["RR@10"], basis=Basis(rel=0))
