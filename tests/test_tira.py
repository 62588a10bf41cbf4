"""TIRA's sandbox: `rerank.jsonl.gz` in, `run.txt` out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from killing import run
from refusal import refused

from pipeline.collection import load_texts
from pipeline.submit import SubmitSettings, submit
from pipeline.tira import opened
from pipeline.topics import read_topics
from pipeline.trec import read_run
from pipeline.venues import venue_of

LINES: list[dict[str, Any]] = [
    {"qid": "1", "query": "a lock file", "docno": "d1", "text": "bread and butter", "rank": 1,
     "score": 3.5, "original_query": {}},
    {"qid": 2, "query": "bread", "docno": "d1", "text": "bread and butter", "rank": 2, "score": 1},
    {"qid": "1", "query": "a lock file", "docno": "d2", "text": "A lock file keeps", "rank": 2,
     "score": 3.5},
    {"qid": 2, "query": "bread", "docno": "d3", "text": "näive \ud800 text", "rank": 1, "score": 2},
    {"qid": "3", "query": "x", "docno": "d3", "text": "näive \ud800 text", "rank": 1},
]  # fmt: skip


def dataset(folder: Path, lines: list[dict[str, Any]], packed: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if packed:
        with gzip.open(folder / "rerank.jsonl.gz", "wt") as out:
            out.write(text)
    else:
        (folder / "rerank.jsonl").write_text(text)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_candidates_topics_and_texts(tmp_path: Path, packed: bool) -> None:
    """Topics put together, ordered by score and then by rank; each text once."""
    with opened(dataset(tmp_path / "in", LINES, packed)) as given:
        rankings = {r.qid: [doc.docid for doc in r.docs] for r in read_run(given.run)}
        assert rankings == {"1": ["d1", "d2"], "2": ["d3", "d1"], "3": ["d3"]}
        assert read_topics(given.topics) == {"1": "a lock file", "2": "bread", "3": "x"}
        assert load_texts(given.collection, ["d1", "d2"])["d2"] == "A lock file keeps"
    assert not given.run.exists()


def test_the_sandbox(tmp_path: Path) -> None:
    """One command writes the run that TIRA asks for, and goes on or leaves it alone later."""
    lines = LINES[:4] + [
        {**LINES[1], "docno": f"e{n}", "text": f"text {n}", "score": -n} for n in range(3)
    ]
    dataset(tmp_path / "in", lines)
    (tmp_path / "out").mkdir()
    words = ["rerank", "--tira", "in", "--model", "overlap", "--output", "out/run.txt"]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rankings = {r.qid: [doc.docid for doc in r.docs] for r in read_run(tmp_path / "out/run.txt")}
    assert rankings["1"] == ["d2", "d1"]
    assert len(rankings["2"]) == 5
    assert "fresh, left alone" in run(*words, cwd=tmp_path).stderr
    more = {**LINES[4], "score": 1.0}
    dataset(tmp_path / "in", [*lines, more])
    again = json.loads(run(*words, "--json", cwd=tmp_path).stdout)
    assert again["computed"]
    assert again["details"]["pairs_reused"] == 7
    packed = submit(SubmitSettings(venue_of("tira"), tmp_path / "out/run.txt", tmp_path / "up"))
    assert packed.files == ("run.txt",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": "a b"}, ":6: qid 'a b' is no id"),
        ({"docno": None}, ":6: docno None is no id"),
        ({"docno": True}, ":6: docno True is no id"),
        ({"query": " "}, ":6: no query in this line"),
        ({"text": None}, ":6: no text in this line"),
        ({"query": "other"}, ":6: topic '1' has another query than before"),
        ({"docno": "d3"}, ":6: document 'd3' has another text than before"),
        ({"docno": "d1"}, ":6: document 'd1' twice in topic '1'"),
        ({"score": None, "rank": "1"}, ":6: neither a score nor a rank"),
        ({"score": float("nan"), "rank": None}, ":6: neither a score nor a rank"),
        ({"score": 10**400, "rank": True}, ":6: neither a score nor a rank"),
    ],
)
def test_lines_that_cannot_be_reranked(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """File and line, and nothing left behind."""
    line = {**LINES[0], "docno": "d9", "text": "new"} | change
    folder = dataset(tmp_path / "in", [*LINES, line])
    with refused(f"rerank.jsonl.gz{message}"), opened(folder):
        pass


def test_what_is_no_data_set(tmp_path: Path) -> None:
    """An empty folder, an empty file, a line of something else, and two sources at once."""
    with refused("no rerank.jsonl.gz there", "$inputDataset"), opened(tmp_path):
        pass
    (tmp_path / "rerank.jsonl").write_text("")
    with refused("there are no candidates"), opened(tmp_path):
        pass
    (tmp_path / "rerank.jsonl").write_text("[1]\n")
    with refused("rerank.jsonl:1: not a JSON object"), opened(tmp_path):
        pass
    words = ["rerank", "--model", "overlap", "--output", "o.run"]
    done = run(*words, "--tira", ".", "--run", "a.run", cwd=tmp_path)
    assert done.returncode == 1
    assert "--tira brings candidates, topics and texts itself" in done.stderr
    done = run(*words, "--run", "a.run", cwd=tmp_path)
    assert done.returncode == 2
    assert "Missing option --topics" in done.stderr
