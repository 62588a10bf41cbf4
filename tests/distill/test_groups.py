"""Groups: what is drawn, from which scores, and that it depends on nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from refusal import refused

from pipeline.distill.groups import (
    Row,
    Stratum,
    TeacherRun,
    Tokens,
    draw,
    epoch_order,
    group,
    read_pool,
    relevant,
    standardised,
)
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pathlib import Path

STRATA = [Stratum(1, 2, 1), Stratum(3, 6, 2), Stratum(7, 20, 2)]


def row(size: int) -> Row:
    return Row(np.arange(100, 100 + size, dtype=np.int32), -np.arange(size, dtype=np.float32))


def write_run(path: Path, scores: dict[str, dict[str, float]]) -> Path:
    lines = []
    for qid, docs in scores.items():
        ranked = sorted(docs.items(), key=lambda d: -d[1])
        lines += [f"{qid} Q0 {d} {n} {s} x\n" for n, (d, s) in enumerate(ranked, 1)]
    path.write_text("".join(lines))
    return path


def test_each_stratum_gives_its_share_without_repetition():
    """One of ranks 1 to 2, two of 3 to 6, two of 7 to 20, all different."""
    for seed in range(20):
        places = draw(row(20), set(), STRATA, np.random.default_rng(seed))
        assert len(set(places)) == 5
        assert places[0] in range(2)
        assert set(places[1:3]) <= set(range(2, 6))
        assert set(places[3:]) <= set(range(6, 20))


def test_a_known_relevant_candidate_takes_the_first_place():
    """However deep the teacher ranks it; the group keeps its size."""
    places = draw(row(20), {115}, STRATA, np.random.default_rng(0))
    assert places[0] == 15
    assert len(set(places)) == 5


def test_a_short_row_is_used_whole():
    """Five candidates and strata of five: every one of them once."""
    assert sorted(draw(row(5), set(), STRATA, np.random.default_rng(0))) == [0, 1, 2, 3, 4]


def test_a_group_depends_on_seed_epoch_and_qid_alone(training_data: Path):
    """Same three, same group, whatever was drawn before; another epoch, another group."""
    topics = {f"q{n}": "x" for n in range(24)}
    pool = read_pool([TeacherRun(training_data / "teacher.run")], topics)
    one = group("q3", pool, set(), STRATA, seed=1, epoch=0)
    group("q4", pool, set(), STRATA, seed=1, epoch=0)
    again = group("q3", pool, set(), STRATA, seed=1, epoch=0)
    assert np.array_equal(one.docs, again.docs)
    others = [
        group("q3", pool, set(), STRATA, seed=s, epoch=e) for s, e in ((1, 1), (2, 0), (1, 2))
    ]
    assert any(not np.array_equal(one.docs, other.docs) for other in others)


def test_labels_mark_what_is_relevant():
    """Labels follow the places of the drawn documents."""
    from pipeline.distill.groups import Pool

    pool = Pool([f"d{n}" for n in range(200)], {"q": row(20)})
    drawn = group("q", pool, {100, 104}, STRATA, seed=0, epoch=0)
    assert drawn.labels.tolist() == [float(doc in (100, 104)) for doc in drawn.docs]
    assert drawn.labels[0] == 1


def test_runs_are_averaged_on_standardised_scores(tmp_path: Path):
    """A run on a scale of thousands weighs no more than its weight; a missing document is last."""
    first = write_run(tmp_path / "a.run", {"q": {"x": 3.0, "y": 2.0, "z": 1.0}})
    second = write_run(tmp_path / "b.run", {"q": {"z": 9000.0, "x": 1000.0, "other": 2.0}})
    pool = read_pool([TeacherRun(first, 1.0), TeacherRun(second, 3.0)], {"q": "text"})
    a = standardised(np.array([3, 2, 1], np.float32))
    b = standardised(np.array([1000, 2, 9000], np.float32))
    expected = dict(zip("xyz", (a + 3 * b) / 4, strict=True))
    got = {
        pool.docids[d]: s for d, s in zip(pool.rows["q"].docs, pool.rows["q"].scores, strict=True)
    }
    assert got == pytest.approx(expected, rel=1e-5)
    assert [pool.docids[d] for d in pool.rows["q"].docs] == sorted(
        "xyz", key=expected.get, reverse=True
    )


def test_a_flat_topic_stays_flat(tmp_path: Path):
    """The spread of a topic in the first run survives standardising: 0.1 against 1.9 of mean 1."""
    run = write_run(
        tmp_path / "a.run", {"flat": {"x": 0.1, "y": 0.0}, "clear": {"x": 1.9, "y": 0.0}}
    )
    pool = read_pool([TeacherRun(run)], {"flat": "t", "clear": "t"})
    assert pool.rows["flat"].scores.tolist() == pytest.approx([0.1, -0.1], rel=1e-4)
    assert pool.rows["clear"].scores.tolist() == pytest.approx([1.9, -1.9], rel=1e-4)


def test_raw_scores_are_averaged_as_they_are(tmp_path: Path):
    """Logits stay logits: (1 * 3 + 3 * 1) / 4, whatever the topic's spread."""
    first = write_run(tmp_path / "a.run", {"q": {"x": 3.0, "y": -2.0}})
    second = write_run(tmp_path / "b.run", {"q": {"x": 1.0, "y": -6.0}})
    teachers = [TeacherRun(first, 1.0), TeacherRun(second, 3.0)]
    pool = read_pool(teachers, {"q": "text"}, raw=True)
    assert pool.rows["q"].scores.tolist() == [1.5, -5.0]


def test_equal_scores_are_no_nan():
    """A topic whose scores are all equal says nothing."""
    assert standardised(np.full(3, 7, np.float32)).tolist() == [0, 0, 0]


def test_unknown_and_missing_topics_are_errors(tmp_path: Path):
    """A scored topic without text, and a second run without a topic of the first."""
    first = write_run(tmp_path / "a.run", {"q": {"x": 1.0}, "r": {"x": 1.0}})
    second = write_run(tmp_path / "b.run", {"q": {"x": 1.0}})
    with pytest.raises(PipelineError, match="'r' is not among the topics"):
        read_pool([TeacherRun(first)], {"q": "text"})
    with pytest.raises(PipelineError, match="1 topics of the first teacher run are missing"):
        read_pool([TeacherRun(first), TeacherRun(second)], {"q": "text", "r": "text"})


def test_relevant_finds_the_judged_candidates(tmp_path: Path):
    """Grades below the least and documents outside the pool are left out."""
    pool = read_pool(
        [TeacherRun(write_run(tmp_path / "a.run", {"q": {"x": 1.0, "y": 0.5}}))], {"q": "t"}
    )
    places = {docid: place for place, docid in enumerate(pool.docids)}
    assert relevant(pool, {"q": {"x": 0, "y": 1, "far": 2}}) == {"q": {places["y"]}}


def test_epochs_shuffle_differently_and_repeatably():
    """A permutation, a function of seed and epoch, not of the order of the topics."""
    qids = [f"q{n}" for n in range(50)]
    assert sorted(epoch_order(qids, 1, 0)) == sorted(qids)
    assert epoch_order(qids, 1, 0) == epoch_order(qids[::-1], 1, 0)
    assert epoch_order(qids, 1, 0) != epoch_order(qids, 1, 1)


def test_tokens_are_those_of_the_tokenizer_and_markup_is_unknown(tiny_bert: Path):
    """Texts cut at the limit, in order; a literal [SEP] must not end a segment."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    texts = ["apple pear plum", "", "moon [SEP] star", "sea " * 30]
    tokens = Tokens(tokenizer, texts, 10, block=2)
    assert len(tokens) == 4
    assert tokenizer.convert_ids_to_tokens(tokens[0].tolist()) == ["apple", "pear", "plum"]
    assert len(tokens[1]) == 0
    assert tokenizer.convert_ids_to_tokens(tokens[2].tolist()) == ["moon", "[UNK]", "star"]
    assert [len(t) for t in tokens] == [3, 0, 3, 10]


def test_a_tokenizer_without_an_unknown_token_is_refused(tiny_bert: Path):
    """Markup in texts would have nothing to become."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.unk_token = None
    with refused("no unknown token"):
        Tokens(tokenizer, ["apple"], 10)
