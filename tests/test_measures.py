"""Measures: NIST's numbers, trec_eval's order, averages over every judged topic."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.measures import Evaluator, computable_measures, evaluate_rankings
from pipeline.notation import DEFAULT_MEASURES, parse_measure, parse_measures
from pipeline.trec import Qrels, Ranking, ScoredDoc, ordered, read_qrels, read_run

# trec_eval's name of a measure -> ours, at relevance level `L`
PLAIN = {
    "num_q": "NumQ", "num_ret": "NumRet", "num_rel": "NumRel(rel=L)",
    "num_rel_ret": "NumRet(rel=L)", "map": "AP(rel=L)", "Rprec": "Rprec(rel=L)",
    "bpref": "Bpref(rel=L)", "recip_rank": "RR(rel=L)", "infAP": "infAP(rel=L)", "ndcg": "nDCG",
    "set_P": "SetP(rel=L)", "set_relative_P": "SetP(rel=L,relative=True)",
    "set_recall": "SetR(rel=L)", "set_map": "SetAP(rel=L)", "set_F": "SetF(rel=L)",
    "rbp": "RBP(rel=L,p=0.9)",
}  # fmt: skip
CUT = {
    "P": "P(rel=L)", "recall": "R(rel=L)", "ndcg_cut": "nDCG", "map_cut": "AP(rel=L)",
    "success": "Success(rel=L)", "iprec_at_recall": "IPrec(rel=L)",
}  # fmt: skip
COUNTED = ("NumQ", "NumRet", "NumRel")


def ours(name: str, level: int) -> str | None:
    """Our name of a trec_eval measure, if we have it."""
    if name in PLAIN:
        return PLAIN[name].replace("L", str(level))
    match = re.fullmatch(r"(\w+?)_([0-9.]+)", name)
    if match and match[1] in CUT:
        cut = match[2].rstrip("0").rstrip(".") if "." in match[2] else match[2]
        return f"{CUT[match[1]].replace('L', str(level))}@{cut or 0}"
    return None


def nist(path: Path) -> dict[str, dict[str, str]]:
    """Read trec_eval's output: topic (or `all`) -> measure -> value as printed."""
    table: dict[str, dict[str, str]] = {}
    for line in path.read_text().splitlines():
        name, topic, value = line.split("\t")
        table.setdefault(topic, {})[name.strip()] = value
    return table


def printed(name: str, value: float) -> str:
    return f"{value:.0f}" if name.startswith("num_") else f"{value:.4f}"


def same_measure(name: str, level: int, topics: list[dict[str, int]]) -> bool:
    """Whether trec_eval 10, which printed the expected values, means the same as trec_eval 9.

    Interpolated precision: 10 rounds the number of relevant documents, 9 adds 0.9 and cuts.
    RBP: 10 scales graded gains in its own way; it is the common measure on binary judgements.
    """
    if name.startswith("iprec_at_recall_"):
        recall = float(name.rpartition("_")[2])
        relevant = [recall * sum(g >= level for g in judged.values()) for judged in topics]
        return all(math.floor(x + 0.5) == int(x + 0.9) for x in relevant)
    if name == "rbp":
        return all(g in (0, level) for judged in topics for g in judged.values())
    return True


def compare(
    expected: dict[str, dict[str, str]], qrels: Qrels, rankings: list[Ranking], level: int = 1
) -> int:
    """Check every shared measure of every topic in trec_eval's table; return their number."""
    names = {
        name: parse_measure(mine).name
        for name in dict.fromkeys(n for values in expected.values() for n in values)
        if (mine := ours(name, level))
    }
    result = evaluate_rankings(qrels, rankings, names.values())
    compared = 0
    for topic, values in expected.items():
        got = result.mean if topic == "all" else result.per_topic[topic]
        judged = list(qrels.values()) if topic == "all" else [qrels[topic]]
        for name, value in values.items():
            if name in names and same_measure(name, level, judged):
                assert printed(name, got[names[name]]) == value, (topic, name)
                compared += 1
    return compared


def test_results_trunc_lines_have_extra_columns_so_the_tests_cut_them(fixtures: Path) -> None:
    """NIST's truncated run carries junk columns, which our reader refuses and names."""
    with pytest.raises(PipelineError, match=r"results\.trunc:1: 9 columns"):
        list(read_run(fixtures / "trec_eval" / "results.trunc"))


@pytest.mark.parametrize(
    ("output", "qrels", "run", "level", "depth", "compared"),
    [
        ("out.test", "qrels.test", "results.test", 1, None, 22),
        ("out.test.a", "qrels.test", "results.test", 1, None, 60),
        ("out.test.aq", "qrels.test", "results.test", 1, None, 248),
        ("out.test.aqc", "qrels.test", "results.trunc", 1, None, 248),
        ("out.test.aqcM", "qrels.test", "results.trunc", 1, 100, 248),
        ("out.test.aql", "qrels.rel_level", "results.test", 2, None, 238),
        ("out.test.meas_params", "qrels.test", "results.test", 1, None, 58),
        ("out.comment.test", "qrels.comment.test", "results.comment.test", 1, None, 20),
    ],
)
def test_equal_to_nist(
    fixtures: Path, tmp_path: Path, output: str, qrels: str, run: str, level: int,
    depth: int | None, compared: int,
) -> None:  # fmt: skip
    """Every shared measure, overall and per topic, prints as in NIST's expected outputs."""
    folder = fixtures / "trec_eval"
    six = tmp_path / "six.run"
    lines = (line.split()[:6] for line in (folder / run).read_text().splitlines())
    six.write_text("".join(" ".join(line) + "\n" for line in sorted(lines, key=lambda c: c[0])))
    rankings = [Ranking(r.qid, r.docs[:depth]) for r in read_run(six)]
    count = compare(nist(folder / output), read_qrels(folder / qrels), rankings, level)
    assert count == compared


def cases(fixtures: Path) -> list[dict[str, Any]]:
    with gzip.open(fixtures / "trec_eval10" / "cases.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def read_case(case: dict[str, Any], folder: Path) -> tuple[Qrels, list[Ranking]]:
    """Write a case's files, the run grouped by topic, and read them with our readers."""
    (folder / "case.qrels").write_text(case["qrels"])
    lines = sorted(case["run"].splitlines(), key=lambda line: line.split()[0])
    (folder / "case.run").write_text("\n".join(lines) + "\n")
    return read_qrels(folder / "case.qrels"), list(read_run(folder / "case.run"))


def test_equal_to_trec_eval_10_on_generated_cases(fixtures: Path, tmp_path: Path) -> None:
    """Ties, missing and extra topics, graded and negative judgements, odd ids: `-c -q -l LEVEL`."""
    compared = 0
    for case in cases(fixtures):
        if case["exit"] == 0:
            qrels, rankings = read_case(case, tmp_path)
            # With -c, trec_eval's sum of num_rel forgets -l; its values per topic do not.
            topics = [values for qid, values in case["expected"].items() if qid != "all"]
            total = sum(int(values["num_rel"]) for values in topics)
            case["expected"]["all"]["num_rel"] = str(total)
            compared += compare(case["expected"], qrels, rankings, case["level"])
            reciprocal = f"RR(rel={case['level']})@10"
            got = evaluate_rankings(qrels, rankings, [reciprocal]).mean
            assert f"{next(iter(got.values())):.4f}" == case["recip_rank@10"]
    assert compared > 50_000


def test_judged_is_what_trec_eval_10_does_not_call_unjudged(fixtures: Path, tmp_path: Path) -> None:
    """Judged@k + unj_k = 1 for every topic with at least k documents."""
    compared = 0
    for case in cases(fixtures):
        if case["exit"] == 0 and case["kind"] != "negative":
            qrels, rankings = read_case(case, tmp_path)
            evaluator = Evaluator(qrels, ["Judged@5", "Judged@10", "Judged@20"])
            for ranking in rankings:
                for k in (5, 10, 20):
                    if ranking.qid in qrels and len(ranking.docs) >= k:
                        got = 1 - evaluator.topic(ranking)[f"Judged@{k}"]
                        assert f"{got:.4f}" == case["expected"][ranking.qid][f"unj_{k}"]
                        compared += 1
    assert compared > 1_000


def test_answers_where_trec_eval_10_crashes(fixtures: Path, tmp_path: Path) -> None:
    """Topics with nothing but negative judgements crash trec_eval; they count zero here."""
    crashed = [case for case in cases(fixtures) if case["exit"] != 0]
    assert len(crashed) == 3
    for case in crashed:
        qrels, rankings = read_case(case, tmp_path)
        result = evaluate_rankings(qrels, rankings, [*DEFAULT_MEASURES, "Bpref", "infAP", "NumRel"])
        for qid, judged in qrels.items():
            if all(grade < 1 for grade in judged.values()):
                values = result.per_topic[qid]
                assert all(v == 0 for name, v in values.items() if name != "Judged@10")


# ---------------------------------------------------------------- against pytrec_eval

IDS = [f"d{i}" for i in range(12)] + ["NA", "null", "007", "é", "\U0001d4b3"]
SCORES = [0.0, -0.0, 1.0, 1.0000001, 1.00000001, -3.5, 16777216.0, 16777217.0, 1e-45, 3e38]


@st.composite
def topics(draw: st.DrawFn) -> tuple[Qrels, list[Ranking]]:
    """A few topics with ties, float32 ties, unjudged documents, negative and high grades."""
    qrels: Qrels = {}
    rankings = []
    for qid in draw(st.lists(st.sampled_from(["1", "q2", "no_query", "003"]), unique=True)):
        grades = st.dictionaries(st.sampled_from(IDS), st.integers(-2, 4), min_size=1)
        qrels[qid] = draw(grades)
        scores = draw(st.dictionaries(st.sampled_from(IDS), st.sampled_from(SCORES), min_size=1))
        if draw(st.integers(0, 3)):
            rounded = (ScoredDoc(d, float(np.float32(s))) for d, s in scores.items())
            rankings.append(ordered(qid, rounded))
    return qrels, rankings


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(topics(), st.integers(1, 3))
def test_agrees_with_pytrec_eval_and_counts_missing_topics_zero(
    drawn: tuple[Qrels, list[Ranking]], level: int
) -> None:
    """On the same documents and scores, to the last bit; unanswered topics are in the average."""
    qrels, rankings = drawn
    if not rankings:
        return
    theirs_by_ours = {
        parse_measure(ours(name, level) or "").name: name
        for name in [
            "num_ret", "num_rel", "num_rel_ret", "map", "Rprec", "bpref", "recip_rank", "infAP",
            "ndcg", "set_P", "set_relative_P", "set_recall", "set_map", "set_F", "P_5",
            "recall_3", "ndcg_cut_5", "map_cut_4", "success_1", "iprec_at_recall_0.50",
        ]
    }  # fmt: skip
    result = evaluate_rankings(qrels, rankings, [*theirs_by_ours, f"RR(rel={level})@3"])
    # Without one grade >= 0 trec_eval reads memory of its own that it has not written.
    answerable = {qid: judged for qid, judged in qrels.items() if max(judged.values()) >= 0}
    evaluator = pytrec_eval.RelevanceEvaluator(
        answerable, set(theirs_by_ours.values()), relevance_level=level
    )
    theirs = evaluator.evaluate({f"{r.qid}": dict(r.docs) for r in rankings if r.qid != "no_query"})
    for qid, values in theirs.items():
        for mine, name in theirs_by_ours.items():
            assert result.per_topic[qid][mine] == values[name], (qid, mine)
        first = values["recip_rank"]
        cut = first if first > 0.3 else 0.0
        assert result.per_topic[qid][parse_measure(f"RR(rel={level})@3").name] == cut
    average = sum(
        result.per_topic[qid][f"AP(rel={level})" if level != 1 else "AP"] for qid in qrels
    )
    got = result.mean[f"AP(rel={level})" if level != 1 else "AP"]
    assert got == pytest.approx(average / len(qrels), abs=1e-12)
    assert set(result.unanswered) == set(qrels) - {r.qid for r in rankings}


# ---------------------------------------------------------------- order, averages, bounds

QRELS: Qrels = {"1": {"a": 1, "b": 0}, "2": {"x": 2, "y": 1}, "3": {"n": 0}}


def ranking(qid: str, *docids: str) -> Ranking:
    """Documents in this order, scores strictly decreasing."""
    return Ranking(qid, tuple(ScoredDoc(d, float(-i)) for i, d in enumerate(docids)))


def test_tie_gives_one_answer_in_every_measure() -> None:
    """a, b, c tied and only a relevant: trec_eval ranks c, b, a, so every measure says 3."""
    tied = ordered("1", [ScoredDoc(d, 1.0) for d in "abc"])
    mean = evaluate_rankings(
        {"1": {"a": 1}}, [tied], ["RR", "RR@10", "RR@2", "P@2", "nDCG@10"]
    ).mean
    assert mean == {"RR": 1 / 3, "RR@10": 1 / 3, "RR@2": 0.0, "P@2": 0.0, "nDCG@10": 0.5}


def test_engine_order_is_kept_though_scores_tie() -> None:
    """A ranking's own order counts, not what an evaluator would make of equal scores."""
    kept = Ranking("1", (ScoredDoc("a", 1.0), ScoredDoc("b", 1.0)))
    assert evaluate_rankings({"1": {"a": 1}}, [kept], ["RR", "RR@10"]).mean == {"RR": 1, "RR@10": 1}


def test_averages_run_over_every_judged_topic() -> None:
    """Topic 2 is not answered, topic 3 has nothing relevant: both are judged and count zero."""
    result = evaluate_rankings(QRELS, [ranking("1", "a"), ranking("3", "n"), ranking("9", "a")])
    assert result.unanswered == ("2",)
    assert result.unjudged == ("9",)
    assert list(result.per_topic) == ["1", "2", "3"]
    assert result.per_topic["2"] == dict.fromkeys(DEFAULT_MEASURES, 0.0)
    assert result.mean["nDCG@10"] == result.mean["AP"] == pytest.approx(1 / 3)
    assert result.mean["Judged@10"] == pytest.approx(2 / 3)


def test_a_topic_without_documents_is_unanswered() -> None:
    """An empty ranking is no answer, and never a division by zero."""
    result = evaluate_rankings(QRELS, [ranking("1", "a"), ranking("2")], ["IPrec@0.0", "SetP"])
    assert result.unanswered == ("2", "3")
    assert result.per_topic["2"] == {"IPrec@0.0": 0.0, "SetP": 0.0}


def test_counts_are_added_up() -> None:
    """NumQ, NumRel, NumRet and NumRelRet are sums, over unanswered topics too."""
    names = ["NumQ", "NumRel", "NumRet", "NumRelRet", "NumRel(rel=2)"]
    result = evaluate_rankings(QRELS, [ranking("1", "b", "a", "u")], names)
    assert result.mean == {
        "NumQ": 3, "NumRel": 3, "NumRet": 3, "NumRet(rel=1)": 1, "NumRel(rel=2)": 1,
    }  # fmt: skip


def test_judged_and_rank_biased_precision_by_hand() -> None:
    """Two of the top three are judged; RBP adds (1 - p) p^i for relevant ranks."""
    values = Evaluator(QRELS, ["Judged@3", "Judged@10", "Judged", "RBP(rel=1,p=0.5)"]).topic(
        ranking("1", "b", "u", "a", "v")
    )
    assert list(values.values()) == [2 / 3, 0.5, 0.5, 0.5 * 0.25]


def test_judged_only_leaves_unjudged_documents_out() -> None:
    """`judged_only=True` condenses the ranking before it is measured."""
    names = ["RR", "RR(judged_only=True)", "RR(judged_only=True)@1", "P(judged_only=True)@1"]
    values = Evaluator(QRELS, names).topic(ranking("1", "u", "a"))
    assert list(values.values()) == [0.5, 1.0, 1.0, 1.0]


def test_graded_gains_can_be_mapped() -> None:
    """`gains` puts other gains in the place of grades, for nDCG alone."""
    names = ["nDCG", "nDCG(gains={1:0})", "nDCG(gains={1:2})"]
    values = Evaluator(QRELS, names).topic(ranking("2", "y", "x"))
    assert list(values.values()) == pytest.approx(
        [(1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)), 1 / math.log2(3), 1.0]
    )


def test_several_parameters_of_one_measure_do_not_mix() -> None:
    """trec_eval gives all betas of set_F and all recalls near 0.33 one name; they stay apart."""
    names = ["SetF", "SetF(beta=0.5)", "SetF(beta=2.0)", "IPrec@0.334", "IPrec@0.33", "IPrec@0.9"]
    together = Evaluator(QRELS, names).topic(ranking("2", "u", "x", "v", "w"))
    alone = {n: Evaluator(QRELS, [n]).topic(ranking("2", "u", "x", "v", "w"))[n] for n in names}
    assert together == alone
    assert len({together["SetF"], together["SetF(beta=0.5)"], together["SetF(beta=2.0)"]}) == 3


def test_gdeval_measures_equal_gdeval(tmp_path: Path) -> None:
    """ERR and nDCG with exponential gains equal the Perl program that defines them."""
    if shutil.which("perl") is None:
        pytest.skip("gdeval needs perl")
    rng = random.Random(5)
    qrels = {str(q): {f"d{i}": rng.randint(-1, 4) for i in range(30)} for q in range(1, 9)}
    rankings = [ranking(q, *rng.sample([f"d{i}" for i in range(60)], 25)) for q in qrels]
    result = evaluate_rankings(qrels, rankings, ["ERR@10", "nDCG(dcg='exp-log2')@10"])
    (tmp_path / "qrels").write_text(
        "".join(f"{q} 0 {d} {g}\n" for q, judged in qrels.items() for d, g in judged.items())
    )
    (tmp_path / "run").write_text(
        "".join(f"{r.qid} Q0 {d} 1 {s} t\n" for r in rankings for d, s in r.docs)
    )
    script = Path(ir_measures.__file__).parent / "bin" / "gdeval.pl"
    command = ["perl", str(script), str(tmp_path / "qrels"), str(tmp_path / "run"), "10"]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1:]
    assert len(rows) == 8
    for row in rows:
        _, qid, ndcg, err = row.split(",")
        assert result.per_topic[qid]["ERR@10"] == pytest.approx(float(err), abs=6e-6)
        got = result.per_topic[qid]["nDCG(dcg='exp-log2')@10"]
        assert got == pytest.approx(float(ndcg), abs=6e-6)


def test_ir_measures_computes_what_trec_eval_lacks() -> None:
    """Compat and Accuracy come from ir_measures' own code, on the order given."""
    names = ["Compat(p=0.8)", "Accuracy", "nDCG"]
    values = Evaluator({"1": {"a": 1, "b": 0}}, names).topic(ranking("1", "a", "b"))
    assert values["Accuracy"] == 1.0
    assert values["Compat(p=0.8)"] > 0.5
    assert list(values) == names


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("nDCG@10", "nDCG@10"), ("NDCG@10", "nDCG@10"), ("MRR@10", "RR@10"), ("MAP", "AP"),
        (" AP( rel = 2 ) ", "AP(rel=2)"), ("AP(rel=1)", "AP"), ("Recall@5", "R@5"),
        ("P(judged_only=True, rel=2)@5", "P(judged_only=True,rel=2)@5"),
        ("NumRelRet", "NumRet(rel=1)"), ("IPrec@1", "IPrec@1.0"), ("nDCG(cutoff=10)", "nDCG@10"),
        ("SetF(beta=2)", "SetF(beta=2.0)"),
    ],
)  # fmt: skip
def test_names_are_those_of_ir_measures(name: str, canonical: str) -> None:
    """Aliases, defaults and spaces lead to ir_measures' canonical spelling."""
    assert parse_measure(name).name == canonical


def test_a_measure_asked_for_twice_is_computed_once() -> None:
    """The same measure in two spellings makes one column."""
    assert [m.name for m in parse_measures(["RR@10", "MRR@10", "AP", "AP(rel=1)"])] == [
        "RR@10",
        "AP",
    ]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("ndcg@10", "no measure is called 'ndcg@10'", "did you mean 'nDCG@10'?"),
        ("nDGC@10", "no measure is called 'nDGC@10'", "did you mean 'nDCG'?"),
        ("ndcg_cut_10", "no measure is called", "that is trec_eval's name; here it is 'nDCG@10'"),
        ("recip_rank", "no measure is called", "that is trec_eval's name; here it is 'RR'"),
        ("ndcg_cut.10", "is no measure", "that is trec_eval's name; here it is 'nDCG@10'"),
        ("gm_map", "no measure is called 'gm_map'", "known: AP, "),
        ("AP(rle=2)", "'AP(rle=2)': AP has no 'rle'", "did you mean 'rel'?"),
        ("R", "'R' needs its cutoff", "write R@10"),
        ("IPrec", "'IPrec' needs its recall", "write IPrec@0.1"),
        ("Bpref@10", "Bpref has no cutoff", "write Bpref"),
        ("nDCG@0", "cutoff cannot be 0", "cutoff: "),
        ("nDCG@True", "cutoff cannot be True", "cutoff: "),
        ("nDCG@1.5", "cutoff cannot be 1.5", "cutoff: "),
        ("P(rel=0)@5", "rel cannot be 0", "rel: "),
        ("IPrec@1.5", "recall cannot be 1.5", "recall: "),
        ("nDCG(gains={1:0.5})", "gains cannot be", "gains: "),
        ("nDCG@", "'nDCG@' is no measure", "write it as ir_measures does: nDCG@10"),
        ("", "'' is no measure", "write it as"),
        ("f(1)", "'f(1)' is no measure", "write it as"),
        ("alpha_nDCG@10", "needs judgements for each subtopic", "ask for another"),
        ("RBP", "RBP needs a level of relevance", "write RBP(rel=1)"),
    ],
)
def test_bad_names_say_what_to_write(name: str, message: str, hint: str) -> None:
    """One line of what is wrong, one line of what to write instead."""
    with pytest.raises(PipelineError) as caught:
        computable_measures([name])
    assert message in caught.value.message
    assert caught.value.hint.startswith(hint)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=30), st.from_regex(r"[A-Za-z]+\([a-z]+=[^)]*\)@[0-9.]*")))
def test_any_text_is_a_measure_or_a_pipeline_error(name: str) -> None:
    """Nothing but a PipelineError comes out of a name somebody typed."""
    with contextlib.suppress(PipelineError):
        computable_measures([name])


# ---------------------------------------------------------------- what cannot be evaluated


@pytest.mark.parametrize(
    ("qrels", "rankings", "message"),
    [
        (QRELS, [], "nothing to evaluate: the run answers no judged topic"),
        (QRELS, [ranking("9", "a")], "the run answers no judged topic ('9', …)"),
        (QRELS, [ranking("1")], "the run answers no judged topic"),
        ({}, [ranking("1", "a")], "there are no judgements"),
        (QRELS, [ranking("1", "a"), ranking("1", "b")], "topic '1' is ranked twice"),
        (QRELS, [ranking("1", "a", "a")], "topic '1': a document is ranked twice"),
        (QRELS, [Ranking("1", (ScoredDoc("a", math.nan),))], "topic '1': a score is not finite"),
        ({"1": {"a": 10**8}}, [ranking("1", "a")], "grade 100000000 is above 1,000,000"),
    ],
)
def test_what_cannot_be_evaluated_says_why(
    qrels: Qrels, rankings: list[Ranking], message: str
) -> None:
    """No number comes out of nothing in common, of NaN, or of a document counted twice."""
    with pytest.raises(PipelineError) as caught:
        evaluate_rankings(qrels, rankings)
    assert message in caught.value.message


def test_err_refuses_grades_it_cannot_place() -> None:
    """gdeval's ERR and exponential gains know grades up to 4."""
    with pytest.raises(PipelineError, match="grade 5 is above 4"):
        evaluate_rankings({"1": {"a": 5}}, [ranking("1", "a")], ["ERR@10"])


GROWTH = """
import resource, sys
from pipeline.measures import evaluate_rankings
from pipeline.trec import Ranking, ScoredDoc

docids = [f"d{i}" for i in range(1000)]


def peak(topics):
    qrels = {str(q): {f"d{i}": i % 2 for i in range(20)} for q in range(topics)}
    rankings = (
        Ranking(q, tuple(ScoredDoc(docid, -float(i)) for i, docid in enumerate(docids)))
        for q in qrels
    )
    evaluate_rankings(qrels, rankings)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


first = peak(40)
print(peak(400) - first)
"""


def test_memory_does_not_grow_with_the_number_of_topics() -> None:
    """A run streams through: 400 topics of 1,000 documents take 4 MB more than 40 at most.

    Held as rankings, 360 topics more would take about 40 MB.
    """
    command = [sys.executable, "-c", GROWTH]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(output) < 4_000_000


def test_nothing_heavy_loads_before_it_is_needed() -> None:
    """Importing the measures loads neither pytrec_eval nor ir_measures nor pandas."""
    code = (
        "import sys, pipeline.measures; "
        "assert not {'pytrec_eval', 'pytrec_eval_ext', 'ir_measures', 'pandas', 'numpy'} "
        "& set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
