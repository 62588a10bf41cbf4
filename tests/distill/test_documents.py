"""Training on windows of long documents, and measuring documents by them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refusal import refused
from trainings import WORDS, settings

from pipeline.distill.development import _first
from pipeline.distill.groups import Pool, Row, relevant_windows
from pipeline.distill.settings import DevSet
from pipeline.distill.stage import distill
from pipeline.measures import evaluate_rankings
from pipeline.rerank import RerankSettings, rerank
from pipeline.trec import read_qrels, read_run
from pipeline.windows import WindowsSettings, windows

RUN = Path("teacher.run")
CUT = {"window": 6, "stride": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 18 words in three windows; one of a relevant document has the topic's word."""
    rng = random.Random(5)
    folder = tmp_path_factory.mktemp("documents")
    texts = {f"d{n}": rng.choices(WORDS, k=18) for n in range(40)}
    collection = "".join(f"{docid}\t{' '.join(words)}\n" for docid, words in texts.items())
    (folder / "documents.tsv").write_text(collection)
    topics = {f"q{n}": WORDS[n % len(WORDS)] for n in range(20)}
    (folder / "topics.tsv").write_text("".join(f"{q}\t{text}\n" for q, text in topics.items()))
    first, teacher, qrels = [], [], []
    for qid, word in topics.items():
        drawn = rng.sample(sorted(texts), 10)
        first += [f"{qid} Q0 {d} {n} {100 - n} bm25\n" for n, d in enumerate(drawn, 1)]
        score = {
            f"{d}#{n}": texts[d][6 * n : 6 * n + 6].count(word) + rng.random() / 10
            for d in drawn
            for n in range(3)
        }
        ranked = sorted(score, key=score.__getitem__, reverse=True)
        teacher += [f"{qid} Q0 {w} {n} {score[w]:.6f} t\n" for n, w in enumerate(ranked, 1)]
        qrels += [f"{qid} 0 {d} 1\n" for d in drawn if word in texts[d]]
    for name, lines in (("first.run", first), ("teacher.run", teacher), ("qrels.txt", qrels)):
        (folder / name).write_text("".join(lines))
    cutting = WindowsSettings(
        folder / "first.run", folder / "cut", collection=folder / "documents.tsv", **CUT
    )
    assert windows(cutting).counts["windows"] == 120
    return folder


def dev(data: Path) -> DevSet:
    return DevSet(
        "documents",
        run=data / "cut/candidates.run",
        topics=data / "topics.tsv",
        collection=data / "cut",
        qrels=data / "qrels.txt",
        windows="maxp",
    )


def test_the_best_windows_of_a_document_inherit_its_label():
    """Of relevant documents alone are the others left out; an unjudged document stays whole."""
    docids = ["a#0", "a#1", "a#2", "b#0", "b#1", "c#0", "a#b#0"]
    row = Row(np.array([3, 1, 0, 4, 5, 2, 6], np.int32), np.arange(7, 0, -1).astype(np.float32))
    qrels = {"q": {"a": 1, "b": 0, "a#b": 2, "d": 1}, "other": {"c": 1}}
    pool, positives = relevant_windows(Pool(docids, {"q": row}), qrels, 1, RUN)
    assert [docids[place] for place in pool.rows["q"].docs] == ["b#0", "a#1", "b#1", "c#0", "a#b#0"]
    assert pool.rows["q"].scores.tolist() == [7, 6, 4, 3, 1]
    assert positives == {"q": {1, 6}}
    _, two = relevant_windows(Pool(docids, {"q": row}), qrels, 2, RUN)
    assert two == {"q": {0, 1, 6}}
    _, unjudged = relevant_windows(Pool(docids, {"q": row}), {}, 1, RUN)
    assert unjudged == {"q": set()}


def test_a_student_learns_from_windows_and_ranks_documents(
    tiny_bert: Path, data: Path, tmp_path: Path
):
    """And its development figure is what `rerank --windows maxp` reaches on the documents."""
    config = settings(
        tiny_bert, data, tmp_path,
        collection=data / "cut", teacher_runs=(data / "teacher.run",), teacher_weights=(),
        positive_windows=1, lce=1.0, steps=150, evaluate_every=30, dev=(dev(data),), keep="last",
        precision="fp32",
    )  # fmt: skip
    done = distill(config)
    outcome = rerank(
        RerankSettings(
            run=data / "first.run",
            topics=data / "topics.tsv",
            model=str(config.output),
            output=tmp_path / "documents.run",
            collection=data / "documents.tsv",
            interpolate=1.0,
            aggregation="maxp",
            precision="fp32",
            **CUT,
        )
    )
    assert outcome.counts["pairs"] == 200
    qrels = read_qrels(data / "qrels.txt")
    (measured,) = evaluate_rankings(
        qrels, read_run(tmp_path / "documents.run"), ["nDCG@10"]
    ).mean.values()
    assert done.counts["dev"] == {"documents": pytest.approx(measured, abs=1e-4)}
    log = (tmp_path / "student.parts/metrics.jsonl").read_text().splitlines()
    figures = [row["dev"]["documents"] for row in map(json.loads, log) if "dev" in row]
    assert figures[-1] > figures[0] + 0.01, figures


def test_depth_counts_documents(data: Path):
    """However many windows they have."""
    (some, *_) = read_run(data / "teacher.run")
    kept = _first(some.docs, replace(dev(data), depth=2))
    order = list(dict.fromkeys(doc.docid.partition("#")[0] for doc in some.docs))
    assert [doc for doc in some.docs if doc.docid.partition("#")[0] in order[:2]] == list(kept)
    assert len(kept) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positive_windows": 1, "qrels": None, "lce": 0.0}, "positive_windows needs qrels"),
        ({"positive_windows": -1}, "positive_windows = -1"),
        ({"positive_windows": 1}, "is no window of a document"),
    ],
)
def test_settings_that_cannot_be(
    tiny_bert: Path, training_data: Path, tmp_path: Path, changes: dict[str, object], said: str
):
    with refused(said):
        distill(settings(tiny_bert, training_data, tmp_path, **changes))


def test_a_development_set_without_windows_is_refused(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    config = settings(tiny_bert, training_data, tmp_path)
    of_windows = replace(config.dev[0], windows="maxp")
    with refused(f"{config.dev[0].run}: 'd", "pipeline windows"):
        distill(replace(config, dev=(of_windows,)))


@pytest.mark.parametrize(
    "changes",
    [
        {"positive_windows": 0, "lce": 1.0},  # windows are not what the judgements know
        {"positive_windows": 1, "qrels": "of-windows.txt"},
        {"positive_windows": 1, "qrels": "of-others.txt"},
    ],
)
def test_labels_that_no_candidate_has(
    tiny_bert: Path, data: Path, tmp_path: Path, changes: dict[str, object]
):
    """Hours of learning nothing from them are refused."""
    (tmp_path / "of-windows.txt").write_text("q0 0 d1#0 1\n")
    (tmp_path / "of-others.txt").write_text("q0 0 nowhere 1\n")
    qrels = {"qrels": tmp_path / str(changes["qrels"])} if "qrels" in changes else {}
    config = settings(
        tiny_bert, data, tmp_path,
        collection=data / "cut", teacher_runs=(data / "teacher.run",), teacher_weights=(),
        dev=(), **changes | qrels,
    )  # fmt: skip
    with refused("no candidate of", "set positive_windows"):
        distill(config)


def test_development_sets_that_judge_no_candidate(tiny_bert: Path, data: Path, tmp_path: Path):
    """Its figure would be 0 for ever."""
    of_passages = replace(dev(data), windows="none")
    config = settings(
        tiny_bert, data, tmp_path,
        collection=data / "cut", teacher_runs=(data / "teacher.run",), teacher_weights=(),
        positive_windows=1, dev=(of_passages,),
    )  # fmt: skip
    with refused("no candidate of this run is judged", 'windows = "maxp"'):
        distill(config)


def test_teachers_of_other_passages(tiny_bert: Path, data: Path, tmp_path: Path):
    """Windows and whole documents have nothing in common."""
    config = settings(
        tiny_bert, data, tmp_path,
        collection=data / "cut", teacher_runs=(data / "teacher.run", data / "first.run"),
        positive_windows=1, dev=(),
    )  # fmt: skip
    with refused(f"{data / 'first.run'}: shares no candidate", "same passages"):
        distill(config)
