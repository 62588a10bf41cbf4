"""Runs and qrels: the field's records, and the readers and writers of its text formats.

A ranking read from a file is ordered as trec_eval 9 orders it: score as float32 descending, ties by
docid descending (as bytes), the rank column and the order of the lines ignored. A ranking we write
keeps the order it is given and gets scores that are strictly decreasing as printed and as float32,
so that no evaluator can see another order.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pipeline.decimals import shortest
from pipeline.errors import InputError, PipelineError, shown
from pipeline.store import atomic_file
from pipeline.textfile import lines, to_utf8

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

BEIR_HEADER = [b"query-id", b"corpus-id", b"score"]
TAG = re.compile(r"[A-Za-z0-9_-]{1,20}")
MAX_DOCS = 1_000_000  # of one topic, the only thing held in memory
FLOAT32_LIMIT = 2.0**128 - 2.0**103  # from here on, a float32 rounds to infinity
FLOAT32_LOWEST = -0x7F7FFFFF  # the place of the lowest finite float32 in the order of all


class ScoredDoc(NamedTuple):
    """One document of a ranking."""

    docid: str
    score: float


class Ranking(NamedTuple):
    """The documents of one topic in rank order."""

    qid: str
    docs: tuple[ScoredDoc, ...]


Qrels = dict[str, dict[str, int]]
"""qid -> docid -> relevance grade (0 and below: judged not relevant)."""


# ---------------------------------------------------------------- runs


def ordered(qid: str, docs: Iterable[ScoredDoc]) -> Ranking:
    """Rank as trec_eval 9 does: score descending, ties by docid descending.

    Scores are taken as they are: the caller has rounded them to float32.
    """
    by_docid = sorted(docs, key=lambda d: d.docid.encode(), reverse=True)
    return Ranking(qid, tuple(sorted(by_docid, key=lambda d: d.score, reverse=True)))


def read_run(path: Path | str) -> Iterator[Ranking]:
    """Yield rankings in the order in which the topics appear, one topic in memory at a time.

    Raises:
        InputError: not six columns, a score that is no finite float32, a document twice in a topic,
            a topic in two places or of more than a million documents, or an empty file.
    """
    finished: set[bytes] = set()
    rows = _Rows(path, b"", 1, [], [])
    for number, line in lines(path):
        try:
            qid, _, docid, _, score, _ = line.split()
        except ValueError:
            rows.check()
            raise _malformed_run_line(path, number, line) from None
        if qid != rows.qid:
            if rows.docids:
                yield rows.ranking()
                finished.add(rows.qid)
            rows = _Rows(path, qid, number, [], [])
            if qid in finished:
                raise InputError(
                    path,
                    number,
                    f"topic {shown(_text(path, number, qid))} appears again after other topics",
                    "sort the run by topic: sort -s -k1,1 RUN",
                )
        if len(rows.docids) == MAX_DOCS:
            raise InputError(
                path,
                number,
                f"more than {MAX_DOCS:,} documents in topic {shown(_text(path, number, qid))}",
                "cut the run at a depth: evaluators and rerankers look at a thousand or so",
            )
        rows.docids.append(docid)
        rows.scores.append(score)
    if not rows.docids:
        raise InputError(path, None, "the run is empty", "check how it was written")
    yield rows.ranking()


class _Rows(NamedTuple):
    """The lines of one topic, as read; checked and converted by the column, which is faster."""

    path: Path | str
    qid: bytes
    first_line: int
    docids: list[bytes]
    scores: list[bytes]

    def ranking(self) -> Ranking:
        """Convert and order, or raise what the first bad line deserves."""
        import numpy as np

        try:
            qid = self.qid.decode()
            docids = b"\n".join(self.docids).decode().split("\n")  # no id has a white space
            scores = np.array(list(map(float, self.scores)))
        except ValueError:
            self.check()
            raise
        if b"_" in b"".join(self.scores) or not bool((np.abs(scores) < FLOAT32_LIMIT).all()):
            self.check()
        if len(set(docids)) != len(docids):
            raise self._duplicate(docids)
        single = scores.astype(np.float32)
        docs = tuple(map(ScoredDoc._make, zip(docids, single.tolist(), strict=True)))
        return Ranking(qid, docs) if bool((single[1:] < single[:-1]).all()) else ordered(qid, docs)

    def check(self) -> None:
        """Raise for the first line whose ids are not text or whose score is no number."""
        for number, (docid, score) in enumerate(
            zip(self.docids, self.scores, strict=True), self.first_line
        ):
            _text(self.path, number, self.qid)
            _text(self.path, number, docid)
            _check_score(self.path, number, score)

    def _duplicate(self, docids: list[str]) -> InputError:
        seen: dict[str, int] = {}
        for number, docid in enumerate(docids, self.first_line):
            if docid in seen:
                return InputError(
                    self.path,
                    number,
                    f"document {shown(docid)} twice in topic {shown(self.qid.decode())} "
                    f"(first on line {seen[docid]})",
                    "keep one line for each document of a topic",
                )
            seen[docid] = number
        raise AssertionError("called without a duplicate")


def _check_score(path: Path | str, number: int, column: bytes) -> None:
    try:
        score = float(column)
    except ValueError:
        score = float("nan")
    if abs(score) < FLOAT32_LIMIT and b"_" not in column:  # false for NaN too
        return
    raise InputError(
        path,
        number,
        f"score {shown(column.decode('utf-8', 'replace'))} is not a finite number",
        "evaluators compare scores as float32: write finite ones, or leave the document out",
    )


def _text(path: Path | str, number: int, column: bytes) -> str:
    try:
        return column.decode()
    except UnicodeDecodeError:
        raise InputError(
            path, number, f"id {shown(column)} is not UTF-8", to_utf8(number, column)
        ) from None


def _malformed_run_line(path: Path | str, number: int, line: bytes) -> InputError:
    count = len(line.split())
    text = line.decode("utf-8", "replace")
    if not text.strip():
        return InputError(path, number, "an empty line", r"delete it: grep -v '^\s*$' RUN")
    if text.lstrip().startswith("#"):
        return InputError(
            path,
            number,
            "a comment line, which trec_eval 9 refuses",
            "keep metadata in a file beside the run: grep -v '^#' RUN",
        )
    problem = f"{count} columns instead of 6 in {shown(text)}"
    if count == 3:
        return InputError(
            path, number, problem, "an MS MARCO run? write it as: qid Q0 docid rank score tag"
        )
    return InputError(path, number, problem, "a run line is: qid Q0 docid rank score tag")


def check_tag(tag: str) -> str:
    """Return `tag` if every venue accepts it: 1 to 20 of letters, digits, `_` and `-`.

    Raises:
        PipelineError: it is something else.
    """
    if not TAG.fullmatch(tag):
        raise PipelineError(
            f"{shown(tag)} is no legal run tag",
            "use 1 to 20 letters, digits, _ and -, as TREC's checkers ask",
        )
    return tag


def decreasing(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lower scores as little as makes them strictly decreasing in float32, in the order given.

    `written[i] = min(score[i], nextafter(written[i - 1], -inf))`, all at once: float32 values are
    numbered in their order, so the one below is the one before. Only where that would fall off the
    lowest finite value are the scores above it raised. Shape (documents,), finite.
    """
    import numpy as np

    if len(scores) < 2 or bool(np.all(scores[1:] < scores[:-1])):
        return scores
    bits = scores.view(np.int32).astype(np.int64)
    place = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # both zeros have place 0
    position = np.arange(len(scores))
    written = np.minimum.accumulate(place + position) - position
    written = np.maximum(written, FLOAT32_LOWEST + position[::-1])
    return np.where(written < 0, -written | 0x80000000, written).astype(np.uint32).view(np.float32)


def run_lines(ranking: Ranking, tag: str) -> bytes:
    """Print one topic as TREC run lines; the order is kept and every score stays below the last.

    Raises:
        PipelineError: a score is not finite as float32, a document is there twice, or an id is not
            one word.
    """
    import numpy as np

    with np.errstate(over="ignore"):  # what overflows is infinite then, and refused below
        scores = np.array([doc.score for doc in ranking.docs], dtype=np.float32)
    return scored_lines(ranking.qid, [doc.docid for doc in ranking.docs], scores, tag)


def scored_lines(qid: str, docids: Sequence[str], scores: NDArray[np.float32], tag: str) -> bytes:
    """Print one topic, as `run_lines` does, from columns: documents in rank order.

    Raises:
        PipelineError: as `run_lines` does.
    """
    import numpy as np

    _check_ids(qid, docids)
    if not bool(np.isfinite(scores).all()):
        at = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise PipelineError(
            f"topic {shown(qid)}, document {shown(docids[at])}: the score is {scores[at]}",
            "the model or its precision is at fault: try --precision fp32",
        )
    # Words between constant ones, joined at once: twice as fast as a line after the other.
    words = [f" {tag}\n{qid} Q0 "] * (4 * len(docids) + 1)
    words[1::4], words[2::4], words[3::4] = (
        docids,
        _ranks(len(docids)),
        shortest(decreasing(scores)),
    )
    words[0], words[-1] = f"{qid} Q0 ", f" {tag}\n"
    return "".join(words).encode() if docids else b""


@lru_cache(maxsize=4)
def _ranks(count: int) -> tuple[str, ...]:
    """The ranks from 1, each between blanks."""
    return tuple(f" {rank} " for rank in range(1, count + 1))


def not_a_word(ids: Sequence[str]) -> int | None:
    """Place of the first id that is no single word, by any white space of Unicode; None: all are.

    Columns end at ASCII's white space, as trec_eval has it, so a run may hold an id with another;
    but who reads runs as text, and pytrec_eval does, would see two columns.
    """
    if " ".join(ids).split() == list(ids):
        return None
    return next(place for place, word in enumerate(ids) if word.split() != [word])


def _check_ids(qid: str, docids: Sequence[str]) -> None:
    ids = [qid, *docids]
    if (at := not_a_word(ids)) is not None:
        raise PipelineError(
            f"topic {shown(qid)}: the id {shown(ids[at])} is not one word",
            "run files separate columns by white space: give it an id without any",
        )
    if len(set(docids)) != len(docids):
        twice = next(word for word in docids if docids.count(word) > 1)
        raise PipelineError(
            f"topic {shown(qid)}: document {shown(twice)} is ranked twice",
            "keep one score for each document of a topic",
        )


def write_run(path: Path | str, rankings: Iterable[Ranking], tag: str) -> None:
    """Write a whole run, or nothing; `.gz` names are compressed. Scores are lowered as needed.

    Raises:
        PipelineError: an illegal tag, a topic or document twice, an id with white space, a score
            that is not finite.
    """
    check_tag(tag)
    written: set[str] = set()
    with atomic_file(path) as out:
        for ranking in rankings:
            if ranking.qid in written:
                raise PipelineError(
                    f"topic {shown(ranking.qid)} twice in one run", "give each topic one ranking"
                )
            written.add(ranking.qid)
            out.write(run_lines(ranking, tag))


# ---------------------------------------------------------------- qrels


def read_qrels(path: Path | str) -> Qrels:
    """Read judgements: `qid iteration docid grade`, or BEIR's three columns under their header.

    Raises:
        InputError: a malformed line, a grade that is no whole number, a pair judged twice, or an
            empty file.
    """
    qrels: Qrels = {}
    columns_expected = 4
    for number, line in lines(path):
        columns = line.split()  # as in runs, white space is that of ASCII
        if number == 1 and columns == BEIR_HEADER:
            columns_expected = 3
            continue
        if len(columns) != columns_expected:
            raise _malformed_qrels_line(path, number, line, len(columns), columns_expected)
        qid, docid = _text(path, number, columns[0]), _text(path, number, columns[-2])
        if not re.fullmatch(rb"[+-]?[0-9]{1,9}", columns[-1]):
            grade = shown(columns[-1].decode("utf-8", "replace"))
            raise InputError(
                path, number, f"grade {grade} is no whole number", "grades are 0, 1, 2, ..."
            )
        judged = qrels.setdefault(qid, {})
        if docid in judged:
            raise InputError(
                path,
                number,
                f"document {shown(docid)} judged twice for topic {shown(qid)}",
                "keep one judgement for each document of a topic",
            )
        judged[docid] = int(columns[-1])
    if not qrels:
        raise InputError(path, None, "there are no judgements", "check how the file was written")
    return qrels


def _malformed_qrels_line(
    path: Path | str, number: int, line: bytes, count: int, expected: int
) -> InputError:
    text = line.decode("utf-8", "replace")
    if not text.strip():
        return InputError(path, number, "an empty line", r"delete it: grep -v '^\s*$' QRELS")
    hint = "a qrels line is: qid 0 docid grade"
    if count == 3:
        hint += "; BEIR's three columns need their header: query-id corpus-id score"
    return InputError(path, number, f"{count} columns instead of {expected} in {shown(text)}", hint)
