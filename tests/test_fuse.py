"""Fusing runs: the sums by hand, the order of ties, runs that lack things, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline.fuse import FuseSettings, fuse, reciprocal_ranks, weighted_sum
from pipeline.trec import Ranking, ScoredDoc, read_run


def ranking(**scores: float) -> Ranking:
    return Ranking("q", tuple(ScoredDoc(docid, score) for docid, score in scores.items()))


def write(path: Path, topics: dict[str, dict[str, float]]) -> Path:
    path.write_text(
        "".join(
            f"{qid} Q0 {docid} {rank} {score} x\n"
            for qid, docs in topics.items()
            for rank, (docid, score) in enumerate(docs.items(), 1)
        )
    )
    return path


@pytest.fixture
def bm25(tmp_path: Path) -> Path:
    return write(tmp_path / "bm25.run", {"1": {"a": 9.0, "b": 5.0}, "2": {"c": 3.0, "a": 1.0}})


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return write(tmp_path / "dense.run", {"3": {"z": 0.2}, "1": {"b": 0.9, "d": 0.7, "a": 0.1}})


def test_reciprocal_ranks_add_up_as_by_hand() -> None:
    """1 / (60 + rank), summed over the rankings that have the document; scores do not matter."""
    found = reciprocal_ranks([ranking(a=9, b=5), ranking(b=700, d=3, a=-1)], [1, 1])

    assert [doc.docid for doc in found] == ["b", "a", "d"]
    assert [doc.score for doc in found] == pytest.approx(
        [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62], rel=1e-12
    )


def test_weights_and_the_constant_act_on_reciprocal_ranks() -> None:
    """weight / (k + rank)."""
    (first, second) = reciprocal_ranks([ranking(a=1), ranking(b=1)], [1, 3], k=1)

    assert (first.docid, first.score) == ("b", 1.5)
    assert (second.docid, second.score) == ("a", 0.5)


def test_scores_are_standardised_before_they_are_weighed() -> None:
    """(3, 1) and (700, 100) both become (1, -1); what a ranking lacks gets its lowest, -1."""
    found = {d.docid: d.score for d in weighted_sum([ranking(a=3, b=1), ranking(b=7, c=1)], [1, 3])}

    assert found == pytest.approx({"a": 0.25 - 0.75, "b": -0.25 + 0.75, "c": -0.25 - 0.75})


def test_a_ranking_of_equal_scores_says_nothing() -> None:
    """Its standardised scores are 0, not a division by zero."""
    found = weighted_sum([ranking(a=3, b=1), ranking(b=2, a=2)], [1, 1])

    assert [(d.docid, d.score) for d in found] == [("a", 0.5), ("b", -0.5)]


@pytest.mark.parametrize("method", ["rrf", "weighted"])
def test_equal_sums_stay_in_the_order_of_the_first_run(method: str) -> None:
    """Two rankings that contradict each other end in the order of the first."""
    rankings = [ranking(m=2, a=1), ranking(a=2, m=1)]
    fused = reciprocal_ranks if method == "rrf" else weighted_sum

    assert [doc.docid for doc in fused(rankings, [1, 1])] == ["m", "a"]


def test_topics_need_not_come_in_one_order(bm25: Path, dense: Path, tmp_path: Path) -> None:
    """Topics of the first run in its order, then what the others add; all of them answered."""
    outcome = fuse(FuseSettings((bm25, dense), tmp_path / "both.run"))

    found = {one.qid: [doc.docid for doc in one.docs] for one in read_run(tmp_path / "both.run")}
    assert list(found) == ["1", "2", "3"]
    assert found == {"1": ["b", "a", "d"], "2": ["c", "a"], "3": ["z"]}
    assert outcome.counts == {"topics": 3, "incomplete": 2}


def test_what_is_written_is_strictly_decreasing(tmp_path: Path) -> None:
    """Ties of the sums must not be left to an evaluator."""
    one = write(tmp_path / "one.run", {"1": {"a": 1.0}})
    two = write(tmp_path / "two.run", {"1": {"z": 1.0}})
    fuse(FuseSettings((one, two), tmp_path / "both.run"))

    (found,) = read_run(tmp_path / "both.run")
    assert [doc.docid for doc in found.docs] == ["a", "z"]
    assert found.docs[0].score > found.docs[1].score
    assert math.isclose(found.docs[0].score, found.docs[1].score, rel_tol=1e-6)


def test_a_fused_run_is_fresh_until_something_changes(
    bm25: Path, dense: Path, tmp_path: Path
) -> None:
    """Runs count by content; method, weights and depth by value."""
    settings = FuseSettings((bm25, dense), tmp_path / "both.run")
    assert fuse(settings).computed
    assert not fuse(settings).computed
    other = FuseSettings((bm25, dense), tmp_path / "both.run", method="weighted")
    assert [reason.split()[0] for reason in fuse(other).reasons] == ["method", "k"]
    bm25.write_text(bm25.read_text().replace("9.0", "8.0"))
    assert fuse(other).reasons == ("input run 1 changed",)


def test_the_command_reads_and_writes_streams(bm25: Path, dense: Path, tmp_path: Path) -> None:
    """A run from standard input, the fused one to standard output, the same bytes as by name."""
    named = run("fuse", bm25, dense, "--output", "both.run", "--hits", "1", cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    piped = run("fuse", "-", dense, "-o", "-", "--hits", "1", cwd=tmp_path, input=bm25.read_text())

    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == (tmp_path / "both.run").read_text()
    assert len(piped.stdout.splitlines()) == 3


def test_weights_reach_the_command(bm25: Path, dense: Path, tmp_path: Path) -> None:
    """A run with weight 0 has no say but in what is found at all."""
    options = ("--method", "weighted", "--weight", "0", "--weight", "1")
    done = run("fuse", bm25, dense, "-o", "-", *options, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    docids = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("1 ")]
    assert docids == ["b", "d", "a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (1.0,)}, "2 runs and 1 weights"),
        ({"weights": (1.0, -1.0)}, "weights 1, -1"),
        ({"weights": (0.0, 0.0)}, "weights 0, 0"),
        ({"weights": (1.0, float("nan"))}, "weights 1, nan"),
        ({"k": -1.0}, "--k -1 is out of range"),
        ({"hits": 0}, "--hits 0 is out of range"),
        ({"tag": "no tag"}, "is no legal run tag"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    changes: dict[str, object], message: str, bm25: Path, dense: Path, tmp_path: Path
) -> None:
    """In two lines, with nothing written."""
    output = tmp_path / "both.run"
    with refused(message):
        fuse(FuseSettings((bm25, dense), output, **changes))  # type: ignore[arg-type]
    assert not output.exists()


def test_one_run_a_missing_one_and_the_output_itself_are_refused(
    bm25: Path, dense: Path, tmp_path: Path
) -> None:
    """Before anything is read."""
    output = tmp_path / "both.run"
    with refused("1 run to fuse"):
        fuse(FuseSettings((bm25,), output))
    with refused("no such run"):
        fuse(FuseSettings((bm25, tmp_path / "nothing.run"), output))
    with refused("is both read and written"):
        fuse(FuseSettings((bm25, dense), dense))
    with refused("standard input is named twice"):
        fuse(FuseSettings((Path("-"), Path("-")), output))


def test_a_malformed_run_is_named_with_its_line(bm25: Path, tmp_path: Path) -> None:
    """And leaves no run behind."""
    bad = tmp_path / "bad.run"
    bad.write_text("1 Q0 a 1 2.0 x\n1 Q0 b 2 x\n")
    done = run("fuse", bm25, bad, "--output", "both.run", cwd=tmp_path)

    assert done.returncode == 1
    assert "bad.run:2: 5 columns instead of 6" in done.stderr
    assert not (tmp_path / "both.run").exists()
