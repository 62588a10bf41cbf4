"""TIRA's sandbox: its `rerank.jsonl.gz` turned into the three files that a reranking reads.

A line holds `qid`, `query`, `docno`, `text`, and `score` or `rank` of the first stage.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import InputError, PipelineError, shown
from pipeline.formats import MAX_DOCUMENT
from pipeline.store import atomic_file, digest_bytes, scratch_folder
from pipeline.textfile import text_lines
from pipeline.trec import FLOAT32_LIMIT, Ranking, ScoredDoc, run_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

NAMES = ("rerank.jsonl.gz", "rerank.jsonl")
TAG = "first-stage"


class Given(NamedTuple):
    """What a reranking reads."""

    run: Path
    topics: Path
    collection: Path


@contextmanager
def opened(dataset: Path) -> Iterator[Given]:
    """Turn `$inputDataset`, or its file itself, into candidates, topics and texts.

    They lie among the system's temporary files until the block ends. The same data give the same
    files, so that a reranking that was killed goes on where it was.

    Raises:
        PipelineError: there is no such file.
        InputError: a line without one of the five, a topic with two queries, a document with two
            texts, or a document twice in a topic.
    """
    path = _file(dataset)
    with scratch_folder("tira") as folder:
        given = Given(
            *(folder / name for name in ("candidates.run", "topics.jsonl", "texts.jsonl"))
        )
        with atomic_file(given.collection) as texts:
            topics = _Topics(path)
            for number, line in text_lines(path, MAX_DOCUMENT):
                topics.take(number, _record(path, number, line), texts)
        if not topics.queries:
            raise InputError(path, None, "there are no candidates", "check how it was written")
        with atomic_file(given.run) as run:
            for ranking in topics.rankings():
                run.write(run_lines(ranking, TAG))
        with atomic_file(given.topics) as out:
            for qid, query in topics.queries.items():
                out.write(_line({"qid": qid, "text": query}))
        yield given


def _file(dataset: Path) -> Path:
    if dataset.is_file():
        return dataset
    for name in NAMES:
        if (dataset / name).is_file():
            return dataset / name
    raise PipelineError(
        f"{dataset}: no {NAMES[0]} there", "name TIRA's $inputDataset of a task that reranks"
    )


class _Topics:
    """What was read of each topic; texts are written away as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.queries: dict[str, str] = {}
        self._docs: dict[str, dict[str, tuple[float, float]]] = {}  # (score down, rank up)
        self._texts: dict[str, str] = {}  # docid -> digest of its text

    def take(self, number: int, record: dict[str, Any], texts: BinaryIO) -> None:
        qid, docid = (_word(self._path, number, record, key) for key in ("qid", "docno"))
        query, text = (_text(self._path, number, record, key) for key in ("query", "text"))
        if self.queries.setdefault(qid, query) != query:
            raise self._error(number, f"topic {shown(qid)} has another query than before")
        docs = self._docs.setdefault(qid, {})
        if docid in docs:
            raise self._error(number, f"document {shown(docid)} twice in topic {shown(qid)}")
        docs[docid] = _place(self._path, number, record)
        digest = digest_bytes(text.encode("utf-8", "surrogatepass"))
        if docid not in self._texts:
            texts.write(_line({"id": docid, "contents": text}))
        if self._texts.setdefault(docid, digest) != digest:
            raise self._error(number, f"document {shown(docid)} has another text than before")

    def rankings(self) -> Iterator[Ranking]:
        """Order each topic by score, equal ones by rank."""
        for qid, docs in self._docs.items():
            order = sorted(docs, key=docs.__getitem__)
            yield Ranking(qid, tuple(ScoredDoc(docid, -docs[docid][0]) for docid in order))

    def _error(self, number: int, problem: str) -> InputError:
        return InputError(self._path, number, problem, "fetch or make the data set again")


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InputError(path, number, f"not a JSON object: {shown(line)}", "one object a line")
    return record


def _word(path: Path, number: int, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    word = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if len(word.split()) != 1 or not word.isprintable():
        raise InputError(path, number, f"{key} {shown(value)} is no id", "ids are single words")
    return word


def _text(path: Path, number: int, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or (key == "query" and not value.strip()):
        raise InputError(
            path, number, f"no {key} in this line", "it needs qid, query, docno, text and score"
        )
    return value


def _place(path: Path, number: int, record: dict[str, Any]) -> tuple[float, float]:
    """Return minus the score and the rank, whichever there are."""
    score, rank = (_number(record.get(key)) for key in ("score", "rank"))
    if score is None and rank is None:
        raise InputError(
            path, number, "neither a score nor a rank", "it needs one of them, a finite number"
        )
    if score is None:
        score = -(rank or 0.0)
    return -score, rank or 0.0


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if abs(value) < FLOAT32_LIMIT else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _line(record: dict[str, str]) -> bytes:
    return (json.dumps(record, ensure_ascii=True) + "\n").encode()
