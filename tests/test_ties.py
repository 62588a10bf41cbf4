"""Ties: their best and worst case against every order there is, and who is told."""

from __future__ import annotations

from itertools import groupby, permutations, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.assumptions import of_run
from pipeline.evaluate import evaluate_runs
from pipeline.measures import Evaluator, evaluate_rankings
from pipeline.tables import read_table, write_per_topic
from pipeline.ties import BOUNDED, UNMOVED, Spread
from pipeline.trec import Ranking, ScoredDoc, ordered

MEASURES = (
    "AP", "AP(rel=2)", "AP(judged_only=True)", "AP@2", "Bpref", "ERR", "ERR@2", "IPrec@0.5",
    "Judged@1", "Judged@3", "P@2", "R@3", "RBP(rel=1,p=0.7)", "RR", "RR(rel=2)@2", "Rprec",
    "Success@1", "nDCG", "nDCG@2", "nDCG(dcg='exp-log2')@3", "nDCG(gains={1:5,2:1})@2",
    "nDCG(judged_only=True)@2", "P(rel=2,judged_only=True)@1", "SetF", "NumRet",
)  # fmt: skip
DOCIDS = "abcdef"


def every_order(ranking: Ranking) -> list[Ranking]:
    """All rankings that the scores allow."""
    groups = [list(permutations(g)) for _, g in groupby(ranking.docs, key=lambda doc: doc.score)]
    return [
        Ranking(ranking.qid, tuple(doc for group in choice for doc in group))
        for choice in product(*groups)
    ]


@given(
    st.dictionaries(st.sampled_from(DOCIDS), st.integers(0, 2), min_size=1),
    st.dictionaries(st.sampled_from(DOCIDS), st.integers(-1, 3), min_size=1),
)
def test_bounds_are_those_of_all_orders(scores: dict[str, int], judged: dict[str, int]) -> None:
    """For every bounded measure: the worst and the best of every order of tied documents."""
    ranking = ordered("1", [ScoredDoc(d, float(s)) for d, s in scores.items()])
    qrels = {"1": judged}
    result = evaluate_rankings(qrels, [ranking], MEASURES)
    evaluator = Evaluator(qrels, MEASURES)
    values = [evaluator.topic(order) for order in every_order(ranking)]
    for name in evaluator.names:
        low, high = (best([each[name] for each in values]) for best in (min, max))
        if name in result.ties:
            spread = result.ties[name]
            assert spread.worst == pytest.approx(low, abs=1e-12), name
            assert spread.best == pytest.approx(high, abs=1e-12), name
            assert spread.topics == 1
        else:
            assert low == high == result.mean[name], name


def test_bounds_of_a_mean_are_means_of_bounds() -> None:
    """Topics are tied independently; those without a tie keep their value."""
    tied = [ScoredDoc("a", 1.0), ScoredDoc("b", 1.0)]
    qrels = {"1": {"a": 1}, "2": {"b": 1}, "3": {"a": 1}, "4": {"a": 1, "b": 1}}
    rankings = [ordered(qid, tied) for qid in ("1", "2", "4")]
    rankings.append(Ranking("3", (ScoredDoc("a", 2.0), ScoredDoc("b", 1.0))))
    result = evaluate_rankings(qrels, rankings, ["RR", "P@2"])
    assert result.mean["RR"] == (0.5 + 1 + 1 + 1) / 4
    assert result.ties == {"RR": Spread((0.5 + 0.5 + 1 + 1) / 4, 1.0, 2)}


def test_measures_without_known_bounds_say_so() -> None:
    """infAP and what ir_measures computes are named where there are ties, and only there."""
    tied = ordered("1", [ScoredDoc("a", 1.0), ScoredDoc("b", 1.0)])
    result = evaluate_rankings({"1": {"a": 1}}, [tied], ["infAP", "AP"])
    assert result.unbounded == ("infAP",)
    apart = Ranking("1", (ScoredDoc("a", 2.0), ScoredDoc("b", 1.0)))
    assert evaluate_rankings({"1": {"a": 1}}, [apart], ["infAP"]).unbounded == ()
    assert not BOUNDED & UNMOVED


def test_ties_in_float32_are_ties(tmp_path: Path) -> None:
    """Scores that differ in double precision alone: trec_eval 9 goes by docid."""
    (tmp_path / "qrels").write_text("1 0 a 1\n")
    (tmp_path / "t.run").write_text("1 Q0 a 1 16777217 t\n1 Q0 b 2 16777216 t\n")
    table = evaluate_runs(tmp_path / "qrels", [tmp_path / "t.run"], ["RR"])
    assert table.cells(tie_bounds=True) == [
        ["run", "RR"],
        ["t", "0.5000"],
        ["t, ties at worst", "0.5000"],
        ["t, ties at best", "1.0000"],
    ]
    assert list(of_run(table.rows[0])) == [
        "t: Judged@10 is 0.5000",
        "t: ties can change RR in 1 of 1 topics (--tie-bounds)",
    ]
    write_per_topic(table, tmp_path / "t.json")
    assert read_table(tmp_path / "t.json") == table
