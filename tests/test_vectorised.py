"""Runs measured as arrays: trec_eval's numbers to the last bit, and nobody else's error."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import judged
from pipeline.errors import InputError
from pipeline.evaluate import Basis, evaluate_runs
from pipeline.judged import Judgements
from pipeline.measures import Evaluator, evaluate_rankings
from pipeline.notation import DEFAULT_MEASURES, parse_measures
from pipeline.trec import Qrels, read_qrels, read_run
from pipeline.vectorised import supported

MEASURES = (
    *DEFAULT_MEASURES,
    "nDCG", "nDCG@3", "RR", "RR(rel=2)@2", "AP@5", "AP(rel=2)", "R(rel=3)@5", "P@5", "P(rel=2)@2",
    "Success@1", "Judged@1", "Judged@100",
)  # fmt: skip
THEIRS = {
    "nDCG@10": "ndcg_cut_10", "nDCG": "ndcg", "nDCG@3": "ndcg_cut_3", "RR": "recip_rank",
    "AP": "map", "AP@5": "map_cut_5", "R@1000": "recall_1000", "P@5": "P_5",
    "Success@1": "success_1",
}  # fmt: skip
SCORES = ("1", "2.50", "-0.0", "0", "-1.5", "1e1", "3.4e38", "+7", ".5", "16777216", "16777217",
          "1.0000000000000002", "0.9999999999999999")  # fmt: skip
DOCIDS = ("a", "b", "B", "1", "12", "123", "doc-0000000001", "doc-0000000002", "ü", "z" * 40)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Qrels, list[str]]:
    """Judgements and the lines of a run: ties, gaps, negative grades, unjudged topics."""
    qids = draw(st.lists(st.sampled_from(("1", "2", "10", "q-000000001", "ß")), min_size=1,
                         max_size=5, unique=True))  # fmt: skip
    grades = st.dictionaries(st.sampled_from(DOCIDS), st.integers(-2, 4), min_size=1)
    qrels = {qid: draw(grades) for qid in qids}
    lines = []
    answered = draw(st.lists(st.sampled_from((*qids, "unjudged")), min_size=1, unique=True))
    for qid in answered:
        docids = draw(st.lists(st.sampled_from(DOCIDS), min_size=1, unique=True))
        lines += [f"{qid} Q0 {docid} 1 {draw(st.sampled_from(SCORES))} t" for docid in docids]
    return qrels, lines


def write(folder: Path, qrels: Qrels, lines: list[str]) -> tuple[Path, Path]:
    """A file of judgements and one of the run."""
    rows = (f"{q} 0 {d} {g}\n" for q, some in qrels.items() for d, g in some.items())
    (folder / "qrels.txt").write_text("".join(rows), encoding="utf-8")
    (folder / "some.run").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / "qrels.txt", folder / "some.run"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.sampled_from((40, 200, 1 << 20)))
def test_equal_to_the_careful_way(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Qrels, list[str]], block: int
) -> None:
    """Every value, mean, bound and name, bit for bit, however the file is cut into blocks."""
    qrels, lines = case
    qrels_path, run = write(tmp_path_factory.mktemp("case"), qrels, lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "BLOCK", block)
        found = Evaluator(qrels, MEASURES).evaluate_file(run)
    if not any(line.split()[0] in qrels for line in lines):
        assert found is None
        return
    assert found is not None
    slow = evaluate_rankings(qrels, read_run(run), MEASURES)
    assert found[0] == slow
    assert found[1].depth == max(len(ranking.docs) for ranking in read_run(run))
    table = evaluate_runs(qrels_path, [run], ["RR"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "evaluate_file", lambda *_, **__: None)
        assert evaluate_runs(qrels_path, [run], ["RR"]) == table


@settings(max_examples=100, deadline=None)
@given(cases())
def test_equal_to_pytrec_eval(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Qrels, list[str]]
) -> None:
    """Its own reading of both files, its own values of every answered topic, bit for bit."""
    qrels, lines = case
    lines = [line for line in lines if line.split()[4] not in ("1e1", "3.4e38", ".5", "+7")]
    judged_lines = [line for line in lines if line.split()[0] in qrels]
    if not judged_lines or any(max(some.values()) < 0 for some in qrels.values()):
        return  # with negative grades only, trec_eval reads memory it has not written
    qrels_path, run = write(tmp_path_factory.mktemp("case"), qrels, lines)
    with qrels_path.open(encoding="utf-8") as one, run.open(encoding="utf-8") as two:
        evaluator = pytrec_eval.RelevanceEvaluator(
            pytrec_eval.parse_qrel(one), set(THEIRS.values())
        )
        theirs = evaluator.evaluate(pytrec_eval.parse_run(two))
    found = Evaluator(read_qrels(qrels_path), tuple(THEIRS)).evaluate_file(run)
    assert found is not None
    for qid, values in theirs.items():
        assert found[0].per_topic[qid] == {name: values[THEIRS[name]] for name in THEIRS}


def test_long_runs_with_ties(tmp_path: Path) -> None:
    """Hundreds of documents with few scores, in no order, many judged: as the careful way."""
    chance = random.Random(5)
    qrels: Qrels = {}
    lines = []
    for topic in range(30):
        docids = [f"d{chance.randrange(10 ** chance.randrange(4, 12))}" for _ in range(300)]
        docids = list(dict.fromkeys(docids))
        qrels[str(topic)] = {d: chance.randrange(-1, 4) for d in chance.sample(docids, 90)}
        lines += [f"{topic} Q0 {d} 1 {chance.randrange(60) / 10} t" for d in docids]
    _, run = write(tmp_path, qrels, lines)
    found = Evaluator(qrels, MEASURES).evaluate_file(run)
    assert found is not None
    assert found[0] == evaluate_rankings(qrels, read_run(run), MEASURES)
    assert found[0].ties["nDCG@10"].topics > 10
    with gzip.open(tmp_path / "some.run.gz", "wt") as packed:
        packed.writelines(f"{line}\n" for line in lines)
    packed_run = Evaluator(qrels, MEASURES).evaluate_file(tmp_path / "some.run.gz")
    assert packed_run is not None
    assert packed_run[0] == found[0]


@pytest.mark.parametrize(
    "text",
    [
        "1 Q0 a 1 2\n",
        "1 Q0 a 1 2.0 t\n\n",
        "1 Q0 a 1 nan t\n",
        "1 Q0 a 1 1_0 t\n",
        "1 Q0 a 1 3.5e38 t\n",
        "1 Q0 a 1 2 t\n1 Q0 a 2 1 t\n",
        "1 Q0 a 1 2 t\n2 Q0 a 1 2 t\n1 Q0 b 2 1 t\n",
        "1 Q0 a 1 2 t\n# end\n",
        f"1 Q0 {'a' * (1 << 21)} 1 2 t\n",
        "",
    ],
)
def test_what_is_wrong_is_said_by_the_careful_reader(tmp_path: Path, text: str) -> None:
    """The arrays give no answer, and the error is that of every other command."""
    (tmp_path / "bad.run").write_text(text)
    qrels = {"1": {"a": 1}}
    assert Judgements(qrels).read(tmp_path / "bad.run") is None
    (tmp_path / "qrels.txt").write_text("1 0 a 1\n")
    with pytest.raises(InputError) as expected:
        list(read_run(tmp_path / "bad.run"))
    with pytest.raises(InputError) as error:
        evaluate_runs(tmp_path / "qrels.txt", [tmp_path / "bad.run"])
    assert str(error.value) == str(expected.value)


@pytest.mark.parametrize(
    "text", ["\ufeff1 Q0 a 1 2 t\n", "1 Q0  a 1 2 t\n", "1 Q0 a 1 2 t\r\n", "1\tQ0\ta\t1\t2\tt"]
)
def test_what_is_unusual_is_measured_all_the_same(tmp_path: Path, text: str) -> None:
    """A mark at the start, aligned columns, CRLF, tabs, no line feed at the end."""
    (tmp_path / "odd.run").write_text(text, newline="")
    (tmp_path / "qrels.txt").write_text("1 0 a 1\n")
    table = evaluate_runs(tmp_path / "qrels.txt", [tmp_path / "odd.run"], ["RR"])
    assert table.rows[0].evaluation.mean == {"RR": 1.0}


def test_documents_with_the_id_of_their_topic(tmp_path: Path) -> None:
    """Where they do not count, runs that hold any are read carefully, others are not."""
    write(tmp_path, {"1": {"a": 1, "1": 1}}, ["1 Q0 1 1 3 t", "1 Q0 a 2 2 t"])
    qrels, run = tmp_path / "qrels.txt", tmp_path / "some.run"
    table = evaluate_runs(qrels, [run], ["RR"], basis=Basis(identical=False))
    assert table.rows[0].identical == 1
    assert Judgements(read_qrels(qrels)).read(run, identical=False) is None
    run.write_text("1 Q0 b 1 3 t\n1 Q0 a 2 2 t\n")
    assert Judgements(read_qrels(qrels)).read(run, identical=False) is not None


def test_measures_beyond_these(tmp_path: Path) -> None:
    """Others are left to trec_eval's own code, and alter nothing."""
    names = ("Bpref", "nDCG(judged_only=True)@10", "nDCG(gains={1:3})@10", "nDCG(dcg='exp-log2')")
    assert not any(map(supported, parse_measures(names)))
    _, run = write(tmp_path, {"1": {"a": 1}}, ["1 Q0 a 1 2 t"])
    assert Evaluator({"1": {"a": 1}}, ["RR", "Bpref"]).evaluate_file(run) is None


def test_ids_that_share_their_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks judged is compared letter by letter; a collision is left to the careful reader."""
    _, run = write(tmp_path, {"1": {"a": 1}}, ["1 Q0 b 1 2 t"])
    judgements = Judgements({"1": {"a": 1}})
    assert judgements.read(run) is not None
    keys = judgements._keys
    monkeypatch.setattr(judged, "_keys", lambda *a: np.broadcast_to(keys, len(a[2])).copy())
    assert judgements.read(run) is None
