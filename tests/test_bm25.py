"""BM25 as Anserini's SimpleSearcher ranks: the same documents, the same order, every topic."""

from __future__ import annotations

import os
import random
from itertools import batched
from typing import TYPE_CHECKING

import anserini
import numpy as np
import pytest
from refusal import refused

from pipeline.bm25 import BM25, Searcher
from pipeline.collection import documents
from pipeline.index import IndexSettings, index
from pipeline.lucene import Index
from pipeline.topics import read_topics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.jvm]

SOAK = os.environ.get("PIPELINE_SOAK") == "1"
TOPICS = 25  # of each file, drawn by a seed; all of them in a soak
WORDS = (
    "water", "tomato", "plant", "lamp", "river", "stone", "cloud", "bread", "wheel", "light",
)  # fmt: skip


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of documents made of few words, so that many score the same."""
    chance = random.Random(7)
    texts = [
        (f"d{n:03}", " ".join(chance.choices(WORDS, k=chance.choice((3, 3, 3, 8)))))
        for n in range(400)
    ]
    chance.shuffle(texts)
    texts += [("emoji", "smile 😀 𒀀"), ("café", "café 漢字")]
    return anserini.build(tmp_path_factory.mktemp("bm25") / "index", texts)


def order(found: list[tuple]) -> list[list[str]]:
    return [[doc.docid for doc in docs] for docs in found]


# ---------------------------------------------------------------- behaviour


def test_equal_scores_are_ordered_by_docid_ascending(twins: Path) -> None:
    """As Anserini does, whatever order Lucene stored them in."""
    with Index(twins) as opened:
        (docs,) = Searcher(opened, BM25()).search(["water"])
    assert len({doc.score for doc in docs}) < len(docs) / 2
    assert list(docs) == sorted(docs, key=lambda doc: (-doc.score, doc.docid))


def test_ties_at_the_cut_are_decided_by_docid_too(twins: Path) -> None:
    """Asking for fewer hits gives a prefix."""
    with Index(twins) as opened:
        (all_of_them,) = Searcher(opened, BM25()).search(["water stone"])
        for hits in (1, 2, 7, 50):
            (some,) = Searcher(opened, BM25(hits=hits)).search(["water stone"])
            assert some == all_of_them[:hits]


def test_scores_are_float32_of_lucene(twins: Path) -> None:
    """Not rounded to four decimals, and exactly what a float32 holds."""
    with Index(twins) as opened:
        (docs,) = Searcher(opened, BM25()).search(["water lamp"])
    scores = np.array([doc.score for doc in docs])
    assert np.array_equal(scores, scores.astype(np.float32).astype(float))
    assert any(round(score, 4) != score for score in scores.tolist())


def test_a_topic_without_known_terms_has_no_hits(twins: Path) -> None:
    """Empty, stop words only, unknown words: an empty tuple in its place, not an error."""
    with Index(twins) as opened:
        for feedback in ("none", "rm3", "rocchio"):
            texts = ["", "the of and", "zzyzx", "water", " . ! "]
            found = Searcher(opened, BM25(hits=5, feedback=feedback)).search(texts)
            assert [len(docs) for docs in found] == [0, 0, 0, 5, 0]


def test_no_topics_are_no_rankings(twins: Path) -> None:
    with Index(twins) as opened:
        assert Searcher(opened, BM25()).search([]) == []


def test_topics_of_any_script_are_found(twins: Path) -> None:
    """Also where a character takes two of Java's."""
    with Index(twins) as opened:
        found = Searcher(opened, BM25()).search(["😀 smile", "漢字", "café"])
    assert order(found) == [["emoji"], ["café"], ["café"]]


def test_a_topic_of_more_terms_than_lucene_takes_by_default(twins: Path) -> None:
    """A whole document may be the query; Lucene stops at 1,024 terms unless told."""
    text = " ".join(f"term{n}" for n in range(3000)) + " river"
    with Index(twins) as opened:
        (docs,) = Searcher(opened, BM25()).search([text])
        (alone,) = Searcher(opened, BM25()).search(["river"])
    assert docs == alone


def test_k1_and_b_are_used(twins: Path) -> None:
    """Without term frequency and length, every document with the term scores the same."""
    with Index(twins) as opened:
        (flat,) = Searcher(opened, BM25(k1=0.0, b=0.0)).search(["water"])
        (usual,) = Searcher(opened, BM25()).search(["water"])
    assert len({doc.score for doc in flat}) == 1 < len({doc.score for doc in usual})


def test_ids_that_no_run_can_carry_are_refused(tmp_path: Path) -> None:
    """An index of others may hold ids with white space."""
    folder = anserini.build(tmp_path / "index", [("a b", "water"), ("c", "water")])
    with Index(folder) as opened:
        for feedback in ("none", "rm3"):
            searcher = Searcher(opened, BM25(feedback=feedback))
            with refused("white space", "ids without any"):
                searcher.search(["water"])


# ---------------------------------------------------------------- equal to Anserini


@pytest.mark.parametrize("feedback", ["none", "rm3", "rocchio"])
@pytest.mark.parametrize("vectors", [False, True])
def test_order_of_ties_equals_simple_searchers(
    feedback: str, vectors: bool, twins: Path, tmp_path: Path
) -> None:
    """With feedback from term vectors where there are any, else from stored records."""
    folder = twins
    if vectors:
        with Index(twins) as opened:
            docids = [f"d{n:03}" for n in range(400)]
            texts = [text or "" for text in opened.texts(docids)]
        folder = anserini.build(
            tmp_path / "index", zip(docids, texts, strict=True), storeDocvectors=True
        )
    chance = random.Random(1)
    topics = [" ".join(chance.choices(WORDS, k=chance.randint(1, 5))) for _ in range(40)]
    theirs = anserini.SimpleSearcher(folder, feedback).search(topics, 100)
    with Index(folder) as opened:
        ours = Searcher(opened, BM25(hits=100, feedback=feedback)).search(topics)
    assert order(ours) == theirs


def collections_with_topics() -> list[str]:
    return [
        "checkthat2020-task2", "cranfield", "medquad-qa", "msmarco-pool", "msmarco-v2-pool",
        "nfcorpus", "nq-oracle", "scifact", "selqa-passage", "squad1.1-dev", "wikiqa-sent",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", collections_with_topics())
def test_order_equals_simple_searchers_on_real_collections(
    name: str,
    collections: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """1000 hits, each topic (a seeded few of each file, or all of them in a soak)."""
    folder = collections / name
    index(IndexSettings(folder / "corpus.jsonl.gz", tmp_path / "index"))
    theirs = anserini.SimpleSearcher(tmp_path / "index")
    compared = 0
    with Index(tmp_path / "index") as opened:
        searcher = Searcher(opened, BM25())
        for file in sorted(folder.glob("topics.*.tsv")):
            texts = list(read_topics(file).values())
            if not SOAK:
                texts = random.Random(name).sample(texts, min(TOPICS, len(texts)))
            for some in batched(texts, 64):
                assert order(searcher.search(some)) == theirs.search(some, 1000)
                compared += len(some)
    record_property("topics compared", compared)
    assert compared


@pytest.mark.slow
@pytest.mark.parametrize("feedback", ["rm3", "rocchio"])
def test_feedback_equals_simple_searchers_on_a_real_collection(
    feedback: str, collections: Path, tmp_path: Path
) -> None:
    """Cranfield: short texts, many terms in common."""
    folder = collections / "cranfield"
    index(IndexSettings(folder / "corpus.jsonl.gz", tmp_path / "index"))
    texts = list(read_topics(folder / "topics.all.tsv").values())
    texts = texts if SOAK else texts[:TOPICS]
    theirs = anserini.SimpleSearcher(tmp_path / "index", feedback).search(texts, 1000)
    with Index(tmp_path / "index") as opened:
        ours = Searcher(opened, BM25(feedback=feedback)).search(texts)
    assert order(ours) == theirs


@pytest.mark.slow
def test_our_index_equals_anserinis(collections: Path, tmp_path: Path) -> None:
    """The default index is Anserini's: the same hits with the same scores, to the last bit."""
    folder = collections / "nfcorpus"
    index(IndexSettings(folder / "corpus.jsonl.gz", tmp_path / "ours"))
    records = [(d.docid, d.text) for d in documents(folder / "corpus.jsonl.gz")]
    anserini.build(tmp_path / "theirs", records)
    texts = list(read_topics(folder / "topics.test.tsv").values())
    found = []
    for place in ("ours", "theirs"):
        with Index(tmp_path / place) as opened:
            found.append(Searcher(opened, BM25()).search(texts))
    assert found[0] == found[1]
