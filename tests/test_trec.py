"""Runs and qrels: no evaluator can see another order, and every bad line is named."""

from __future__ import annotations

import io
import random
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytrec_eval
from folders import file_of
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from pipeline import trec
from pipeline.errors import InputError, PipelineError
from pipeline.trec import (
    Ranking,
    ScoredDoc,
    check_tag,
    decreasing,
    ordered,
    read_qrels,
    read_run,
    run_lines,
    write_run,
)

if TYPE_CHECKING:
    from pathlib import Path

FLOAT32_MAX = float(np.finfo(np.float32).max)
IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
    lambda s: s.split() == [s] and s.encode().split() == [s.encode()] and "\ufeff" not in s
)
C_IDS = IDS.filter(lambda s: "\0" not in s)  # where a string of C ends
ODD_SCORES = [
    0.0, -0.0, 1.0, 1e-45, -1e-45, 1.1754944e-38, 1e38, FLOAT32_MAX, -FLOAT32_MAX, 16777216.0,
    16777217.0, 0.1, 0.10000000149,
]  # fmt: skip
SCORES = st.one_of(
    st.sampled_from(ODD_SCORES), st.floats(width=32, allow_nan=False, allow_infinity=False)
)


def rank(scores: list[float], qid: str = "1") -> Ranking:
    return Ranking(qid, tuple(ScoredDoc(f"d{i}", score) for i, score in enumerate(scores)))


# ---------------------------------------------------------------- order


def test_a_run_is_ordered_as_trec_eval_orders_it(tmp_path: Path) -> None:
    """Score descending, ties by docid descending; ranks and the order of lines are ignored."""
    path = file_of(
        tmp_path,
        "2 Q0 low 1 1.5 t\n"
        "2 Q0 a 2 7 t\n"
        "2 Q0 b 3 7.0 t\n"
        "2 Q0 B 4 7e0 t\n"
        "2 Q0 ä 5 7 t\n"
        "1 Q0 x 1 0 t\n"
        "1 Q0 y 2 -0.0 t\n",
    )
    assert [(r.qid, [d.docid for d in r.docs]) for r in read_run(path)] == [
        ("2", ["ä", "b", "a", "B", "low"]),
        ("1", ["y", "x"]),
    ]


def test_scores_tie_as_float32(tmp_path: Path) -> None:
    """What trec_eval 9 stores in a float is equal there, and so here."""
    path = file_of(
        tmp_path,
        "1 Q0 a 1 0.99999995 t\n1 Q0 b 2 0.99999994 t\n2 Q0 a 1 16777217 t\n2 Q0 b 2 16777216 t\n",
    )
    assert [[d.docid for d in r.docs] for r in read_run(path)] == [["b", "a"], ["b", "a"]]


@given(st.lists(st.tuples(C_IDS, SCORES), min_size=1, max_size=12, unique_by=lambda p: p[0]))
def test_the_order_is_that_of_trec_eval(docs: list[tuple[str, float]]) -> None:
    """pytrec_eval, trec_eval's own code, finds each document at the rank where we have it."""
    ranking = ordered("1", [ScoredDoc(d, float(np.float32(s))) for d, s in docs])
    for at, doc in enumerate(ranking.docs, 1):
        qrel = {"1": {doc.docid: 1}}
        found = pytrec_eval.RelevanceEvaluator(qrel, {"recip_rank"}).evaluate({"1": dict(docs)})
        assert found["1"]["recip_rank"] == pytest.approx(1 / at)


def test_the_order_of_real_ties_is_that_of_trec_eval(fixtures: Path) -> None:
    """NIST's own test run, ranks compared by reciprocal rank for the documents of each topic."""
    path = fixtures / "trec_eval" / "results.test"
    if not path.is_file():
        pytest.skip("trec_eval's results.test is not among the fixtures")
    chance = random.Random(3)
    for ranking in read_run(path):
        scores = {ranking.qid: {d.docid: d.score for d in ranking.docs}}
        for at in chance.sample(range(len(ranking.docs)), min(10, len(ranking.docs))):
            qrel = {ranking.qid: {ranking.docs[at].docid: 1}}
            found = pytrec_eval.RelevanceEvaluator(qrel, {"recip_rank"}).evaluate(scores)
            assert found[ranking.qid]["recip_rank"] == pytest.approx(1 / (at + 1))


# ---------------------------------------------------------------- writing


def one_at_a_time(scores: list[float]) -> list[float]:
    """Lower scores by the definition, one after the other."""
    written = [np.float32(s) for s in scores]
    with np.errstate(over="ignore"):
        for i in range(1, len(written)):
            written[i] = min(written[i], np.nextafter(written[i - 1], np.float32(-np.inf)))
    return [float(s) for s in written]


@given(st.lists(SCORES, max_size=40))
def test_scores_are_lowered_as_little_as_possible(scores: list[float]) -> None:
    """`written[i] = min(score[i], nextafter(written[i - 1], -inf))`, wherever that is finite."""
    expected = one_at_a_time(scores)
    got = decreasing(np.array(scores, dtype=np.float32))
    assert got.dtype == np.float32
    if all(np.isfinite(expected)):
        assert got.tolist() == expected


@given(st.lists(SCORES, min_size=1, max_size=40))
def test_written_scores_decrease_strictly(scores: list[float]) -> None:
    """As printed, as double and as float32, whatever came in; finite, and at the same documents."""
    text = run_lines(rank(scores), "tag").decode()
    rows = [line.split(" ") for line in text.splitlines()]
    assert [row[2] for row in rows] == [f"d{i}" for i in range(len(scores))]
    assert [row[3] for row in rows] == [str(i) for i in range(1, len(scores) + 1)]
    assert all((row[0], row[1], row[5]) == ("1", "Q0", "tag") for row in rows)
    for numbers in (
        np.array([float(row[4]) for row in rows]),
        np.array([np.float32(row[4]) for row in rows], dtype=np.float32),
    ):
        assert np.isfinite(numbers).all()
        assert (numbers[1:] < numbers[:-1]).all()


@pytest.mark.parametrize(
    ("scores", "printed"),
    [
        ([], []),
        ([2.5], ["2.5"]),
        ([3, 2, 1], ["3.0", "2.0", "1.0"]),
        ([1, 1, 1], ["1.0", "0.99999994", "0.9999999"]),
        ([1, 2, 3], ["1.0", "0.99999994", "0.9999999"]),
        ([0.0, -0.0, 0.0], ["0.0", "-1e-45", "-3e-45"]),
        ([1e-45, 0.0, 0.0], ["1e-45", "0.0", "-1e-45"]),
        ([16777217.0, 16777216.0], ["1.6777216e+07", "1.6777215e+07"]),
        ([FLOAT32_MAX, FLOAT32_MAX], ["3.4028235e+38", "3.4028233e+38"]),
        ([5, -FLOAT32_MAX, 1], ["5.0", "-3.4028233e+38", "-3.4028235e+38"]),
    ],
)
def test_adversarial_scores(scores: list[float], printed: list[str]) -> None:
    """Equal, increasing, both zeros, denormal, huge; at the lowest of all there is still room."""
    lines = run_lines(rank(scores), "t").decode().splitlines()
    assert [line.split()[4] for line in lines] == printed


def test_a_thousand_equal_scores(tmp_path: Path) -> None:
    """A topic of ties is read back in the order in which it was written."""
    docs = [f"d{i}" for i in range(1000)]
    random.Random(5).shuffle(docs)
    ranking = Ranking("1", tuple(ScoredDoc(d, 17.25) for d in docs))
    path = file_of(tmp_path, run_lines(ranking, "t"))
    (read,) = read_run(path)
    assert [d.docid for d in read.docs] == docs
    assert read.docs[0].score - read.docs[-1].score < 0.002


@given(
    st.dictionaries(
        IDS, st.lists(IDS, min_size=1, max_size=6, unique=True), min_size=1, max_size=4
    ),
    st.data(),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, topics: dict[str, list[str]], data: st.DataObject
) -> None:
    """Ids of any script come back, in the order written, with the scores printed."""
    rankings = []
    for qid, docids in topics.items():
        scores = sorted((data.draw(SCORES) for _ in docids), reverse=True)
        docs = (ScoredDoc(d, float(np.float32(s))) for d, s in zip(docids, scores, strict=True))
        rankings.append(Ranking(qid, tuple(docs)))
    text = b"".join(run_lines(ranking, "t") for ranking in rankings)
    folder = tmp_path_factory.getbasetemp()
    for name in ("round.run", "round.run.gz"):
        read = list(read_run(file_of(folder, text, name)))
        assert [(r.qid, [d.docid for d in r.docs]) for r in read] == [
            (r.qid, [d.docid for d in r.docs]) for r in rankings
        ]
        assert b"".join(run_lines(r, "t") for r in read) == text


def test_ids_are_never_taken_for_something_else(tmp_path: Path) -> None:
    """`NA`, `null` and `nan` are documents, `007` and `1` are two topics of two spellings."""
    docids = ["NA", "null", "nan", "None", "1e5", "#", "True"]
    text = b"".join(
        run_lines(Ranking(qid, tuple(ScoredDoc(d, -i) for i, d in enumerate(docids))), "t")
        for qid in ("007", "7", "NA")
    )
    read = list(read_run(file_of(tmp_path, text)))
    assert [r.qid for r in read] == ["007", "7", "NA"]
    assert all([d.docid for d in r.docs] == docids for r in read)
    qrels = read_qrels(file_of(tmp_path, "007 0 NA 1\n7 0 null 2\nNA 0 007 0\n", "qrels.txt"))
    assert qrels == {"007": {"NA": 1}, "7": {"null": 2}, "NA": {"007": 0}}


@pytest.mark.parametrize(
    ("ranking", "message", "hint"),
    [
        (rank([1, float("nan")]), "topic '1', document 'd1': the score is nan", "precision"),
        (rank([float("inf")]), "document 'd0': the score is inf", "--precision fp32"),
        (rank([1e39]), "document 'd0': the score is inf", "--precision fp32"),
        (rank([1], "a b"), "the id 'a b' is not one word", "without any"),
        (rank([1], ""), "the id '' is not one word", "without any"),
        (Ranking("1", (ScoredDoc("a\n", 1.0),)), r"the id 'a\n' is not one word", "without any"),
        (Ranking("1", (ScoredDoc("", 1.0),)), "topic '1': the id ''", "without any"),
        (
            Ranking("1", (ScoredDoc("a", 2.0), ScoredDoc("b", 1.5), ScoredDoc("a", 1.0))),
            "topic '1': document 'a' is ranked twice",
            "keep one score",
        ),
    ],
)
def test_what_no_run_may_hold_is_not_written(ranking: Ranking, message: str, hint: str) -> None:
    """Not finite, not one word, twice: refused when it is written, not when it is evaluated."""
    with refused(message, hint):
        run_lines(ranking, "t")


@pytest.mark.parametrize("tag", ["a", "BM25_k1-0-9", "x" * 20])
def test_a_legal_tag(tag: str) -> None:
    """What the checkers of every venue take."""
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "x" * 21, "a b", "a.b", "naïve", "a\n", "٣"])
def test_an_illegal_tag(tag: str) -> None:
    """Refused before the work begins."""
    with refused("is no legal run tag", "1 to 20 letters, digits"):
        check_tag(tag)


# ---------------------------------------------------------------- reading runs

GOOD = "1 Q0 a 1 2.0 t\n1 Q0 b 2 1.0 t\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace(" ", "\t"),
        "  " + GOOD.replace(" ", "  "),
        GOOD.removesuffix("\n"),
        GOOD.replace("Q0", "0").replace(" 1 2.0", " x +2.0E0"),
    ],
)
@pytest.mark.parametrize("name", ["a.run", "a.run.gz", "-"])
def test_runs_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    """Tabs, CRLF, a byte order mark, a missing last line end; packed or from standard input."""
    source: Path | str = name
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    else:
        source = file_of(tmp_path, text, name)
    assert list(read_run(source)) == [Ranking("1", (ScoredDoc("a", 2.0), ScoredDoc("b", 1.0)))]


BAD_RUNS = {
    "empty": (b"", "", "the run is empty", "how it was written"),
    "five columns": (b"1 Q0 a 1 2.0\n", ":1", "5 columns instead of 6 in '1 Q0 a 1 2.0'", "qid Q0"),
    "seven columns": (b"1 Q0 a b 1 2.0 t\n", ":1", "7 columns instead of 6", "qid Q0 docid rank"),
    "MS MARCO": (b"1\t2\t1\n", ":1", "3 columns instead of 6", "an MS MARCO run?"),
    "empty line": (GOOD.encode() + b"\n", ":3", "an empty line", "grep -v"),
    "blank line": (b" \r\n" + GOOD.encode(), ":1", "an empty line", "grep -v"),
    "comment": (b"# ir_metadata.start\n", ":1", "a comment line", "grep -v '^#' RUN"),
    "NaN": (b"1 Q0 a 1 nan t\n", ":1", "score 'nan' is not a finite number", "float32"),
    "infinity": (b"1 Q0 a 1 -inf t\n", ":1", "score '-inf' is not a finite", "float32"),
    "beyond float32": (b"1 Q0 a 1 3.40282357e38 t\n", ":1", "is not a finite number", "float32"),
    "word": (b"1 Q0 a 1 high t\n", ":1", "score 'high' is not a finite number", "float32"),
    "underscore": (b"1 Q0 a 1 1_0 t\n", ":1", "score '1_0' is not a finite number", "float32"),
    "hexadecimal": (b"1 Q0 a 1 0x1p3 t\n", ":1", "score '0x1p3' is not a finite", "float32"),
    "twice": (
        GOOD.encode() + b"1 Q0 c 3 0 t\n1 Q0 a 4 0 t\n",
        ":4",
        "document 'a' twice in topic '1' (first on line 1)",
        "keep one line",
    ),
    "topic again": (
        GOOD.encode() + b"2 Q0 a 1 1 t\n1 Q0 c 1 1 t\n",
        ":4",
        "topic '1' appears again after other topics",
        "sort -s -k1,1",
    ),
    "docid not UTF-8": (b"1 Q0 caf\xe9 1 1 t\n", ":1", r"id b'caf\xe9' is not UTF-8", "iconv"),
    "qid not UTF-8": (b"\xe9 Q0 a 1 1 t\n", ":1", r"id b'\xe9' is not UTF-8", "iconv"),
    "UTF-16": (GOOD.encode("utf-16"), ":1", "is not UTF-8", "iconv -f utf-16 -t utf-8"),
    "escape": (b"1 Q0 a 1 \x1b[31m t\n", ":1", r"score '\x1b[31m' is not", "float32"),
    "binary": (bytes(range(256)), ":1", "columns instead of 6", "qid Q0 docid"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
@pytest.mark.parametrize("name", ["a.run", "a.run.gz"])
def test_a_bad_run_is_refused_by_its_line(tmp_path: Path, name: str, case: str) -> None:
    """path:line: what is wrong; and what to do."""
    data, place, problem, hint = BAD_RUNS[case]
    path = file_of(tmp_path, data, name)
    with refused(f"{path}{place}: ", hint, InputError):
        list(read_run(path))
    with refused(problem, hint, InputError):
        list(read_run(path))


def test_topics_before_a_bad_line_are_there(tmp_path: Path) -> None:
    """A run is read topic by topic: what comes late is found late."""
    path = file_of(tmp_path, GOOD + "2 Q0 a 1 1 t\n2 Q0 b\n")
    rankings = read_run(path)
    assert next(rankings).qid == "1"
    with refused(f"{path}:4: 3 columns", kind=InputError):
        next(rankings)


def test_a_topic_is_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One topic is held in memory, so one topic may not go on for ever."""
    path = file_of(tmp_path, "".join(f"7 Q0 d{i} 1 1 t\n" for i in range(11)))
    monkeypatch.setattr(trec, "MAX_DOCS", 11)
    assert sum(len(ranking.docs) for ranking in read_run(path)) == 11
    monkeypatch.setattr(trec, "MAX_DOCS", 10)
    with refused(f"{path}:11: more than 10 documents in topic '7'", "cut the run at a depth"):
        list(read_run(path))


def test_the_largest_float32_is_read_as_it_is_printed(tmp_path: Path) -> None:
    """`3.4028235e+38` is a little above the largest float32, and rounds to it."""
    path = file_of(tmp_path, "1 Q0 a 1 3.4028235e+38 t\n1 Q0 b 2 -3.4028235677973364e38 t\n")
    (ranking,) = read_run(path)
    assert [d.score for d in ranking.docs] == [FLOAT32_MAX, -FLOAT32_MAX]


def test_the_tiny_run(tiny: Path) -> None:
    """The run beside the tiny collection is one we would write: reading and writing change nothing.

    It was made with Anserini's own classes; BM25 by hand gives the same order and scores.
    """
    rankings = list(read_run(tiny / "bm25.run"))
    assert [r.qid for r in rankings] == ["1", "2", "3", "007", "4", "5"]
    assert b"".join(run_lines(r, "bm25") for r in rankings) == (tiny / "bm25.run").read_bytes()
    assert [d.docid for d in rankings[3].docs] == ["007", "spy2"]
    # Topic 4: 2 of 20 documents hold both words, each is of 4 words; the mean, without stop words,
    # is 119 / 20.
    words = 4 / (119 / 20)
    idf = np.log(1 + (20 - 2 + 0.5) / (2 + 0.5))
    expected = 2 * idf / (1 + 0.9 * (1 - 0.4 + 0.4 * words))
    assert rankings[4].docs[0].score == pytest.approx(expected, rel=1e-6)


def test_a_written_run_reads_back_and_a_bad_one_leaves_nothing(tmp_path: Path) -> None:
    """`write_run` is whole or nothing: a topic given twice leaves no file."""
    path = tmp_path / "a.run.gz"
    one, two = ordered("1", [ScoredDoc("a", 2.0), ScoredDoc("b", 1.0)]), ordered("2", [])
    write_run(path, [one, two], "mine")
    assert list(read_run(path)) == [one]

    with pytest.raises(PipelineError, match="twice in one run"):
        write_run(tmp_path / "b.run", [one, one], "mine")

    assert [p.name for p in tmp_path.iterdir()] == ["a.run.gz"]
