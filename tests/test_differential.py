"""Thousands of generated runs and qrels, as files: ours against pytrec_eval (trec_eval 9)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import pytrec_eval

from pipeline.errors import PipelineError
from pipeline.evaluate import Basis, evaluate_runs
from pipeline.notation import parse_measure

CASES = 30_000 if os.environ.get("PIPELINE_SOAK") else 3_000
QIDS = ("1", "2", "03", "NA", "null", "007", "q_7", "é")
DOCIDS = (*(f"d{i}" for i in range(25)), "NA", "null", "007", "None", "é", "1e5")
OURS = {
    "map": "AP", "map_cut_5": "AP@5", "ndcg": "nDCG", "ndcg_cut_10": "nDCG@10", "P_5": "P@5",
    "recall_10": "R@10", "recip_rank": "RR", "Rprec": "Rprec", "bpref": "Bpref", "infAP": "infAP",
    "success_1": "Success@1", "set_P": "SetP", "set_recall": "SetR", "set_F": "SetF",
    "iprec_at_recall_0.50": "IPrec@0.5", "num_ret": "NumRet", "num_rel": "NumRel",
    "num_rel_ret": "NumRelRet",
}  # fmt: skip
COUNTS = {"num_ret", "num_rel", "num_rel_ret"}


def scores(chance: random.Random, size: int) -> list[str]:
    """Falling, tied, rounded, tied in float32 alone, tiny, negative, all the same."""
    kind = chance.randrange(6)
    if kind == 0:
        return [f"{100 - i}" for i in range(size)]
    if kind == 1:
        return [f"{chance.randrange(4)}" for _ in range(size)]
    if kind == 2:
        return [f"{16777200 + chance.randrange(40)}" for _ in range(size)]
    if kind == 3:
        return [f"{chance.uniform(-1, 1):.1e}" for _ in range(size)]
    if kind == 4:
        return ["1.0"] * size
    return [repr(chance.gauss(0, 10)) for _ in range(size)]


def case(chance: random.Random) -> tuple[str, str]:
    """Qrels and a run: gaps on both sides, negative grades, unjudged and unretrieved documents."""
    qrels, run = [], []
    lowest = chance.choice((0, 0, 1, -2))
    for qid in chance.sample(QIDS, chance.randint(1, 7)):
        judged = chance.sample(DOCIDS, chance.randint(1, 15))
        qrels += [f"{qid} 0 {d} {chance.randint(lowest, chance.randint(1, 4))}\n" for d in judged]
    for qid in chance.sample(QIDS, chance.randint(1, 7)):
        docids = chance.sample(DOCIDS, chance.randint(1, len(DOCIDS)))
        ranked = zip(docids, scores(chance, len(docids)), strict=True)
        run += [f"{qid} Q0 {d} {chance.randrange(9)} {s} t\n" for d, s in ranked]
    chance.shuffle(qrels)
    return "".join(qrels), "".join(run)


def theirs(qrels: Path, run: Path, level: int) -> dict[str, dict[str, float]]:
    """pytrec_eval on the files, every judged topic there, with zeros where it has none."""
    with qrels.open(encoding="utf-8") as judgements, run.open(encoding="utf-8") as lines:
        judged, ranked = pytrec_eval.parse_qrel(judgements), pytrec_eval.parse_run(lines)
    # Without one grade of 0 or more trec_eval reads memory that it has not written.
    sound = {qid: some for qid, some in judged.items() if max(some.values()) >= 0}
    evaluator = pytrec_eval.RelevanceEvaluator(sound, set(OURS), relevance_level=level)
    found = evaluator.evaluate(ranked) if sound else {}
    zeros: dict[str, float] = dict.fromkeys(OURS, 0.0)
    table = {}
    for qid, some in judged.items():
        relevant = float(sum(grade >= level for grade in some.values()))
        table[qid] = found.get(qid, zeros | {"num_rel": relevant})
        if qid in ranked and qid not in found:
            table[qid] = zeros | {"num_ret": float(len(ranked[qid]))}
    return table


@pytest.mark.slow
def test_thousands_of_generated_runs(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every measure of every topic to the last bit, every mean to the digit printed."""
    chance = random.Random(20261121)
    qrels, run = tmp_path / "qrels", tmp_path / "run"
    compared = nothing_shared = 0
    for number in range(CASES):
        texts = case(chance)
        qrels.write_text(texts[0], encoding="utf-8")
        run.write_text(texts[1], encoding="utf-8")
        level = chance.randint(1, 3)
        expected = theirs(qrels, run, level)
        if not any(values["num_ret"] for values in expected.values()):
            with pytest.raises(PipelineError, match="the run answers no judged topic"):
                evaluate_runs(qrels, [run], OURS.values(), basis=Basis(rel=level))
            nothing_shared += 1
            continue
        table = evaluate_runs(qrels, [run], OURS.values(), basis=Basis(rel=level))
        evaluation = table.rows[0].evaluation
        assert evaluation.per_topic.keys() == expected.keys()
        for theirs_name, name in OURS.items():
            mine = parse_measure(name, level).name
            for qid, values in expected.items():
                got = evaluation.per_topic[qid][mine]
                assert got == values[theirs_name], (number, qid, mine, texts)
                compared += 1
            total = 0.0  # not sum(), which compensates: trec_eval adds up plainly
            for qid in sorted(expected):
                total += expected[qid][theirs_name]
            mean = total if theirs_name in COUNTS else total / len(expected)
            assert f"{evaluation.mean[mine]:.4f}" == f"{mean:.4f}", (number, mine, texts)
    assert nothing_shared < CASES / 4
    assert compared > 30 * CASES
    record_property("compared", f"{compared:,} values of {CASES - nothing_shared:,} runs")


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_run_is_refused_as_trec_eval_does(tmp_path: Path, text: str) -> None:
    """trec_eval exits with 2; here the file and the reason are named."""
    (tmp_path / "qrels").write_text("1 0 a 1\n")
    (tmp_path / "run").write_text(text)
    with pytest.raises(PipelineError, match=r"run(:1)?: (the run is empty|an empty line)"):
        evaluate_runs(tmp_path / "qrels", [tmp_path / "run"])
