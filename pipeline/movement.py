"""One topic in two runs: which documents entered, left or moved, and how alike the rankings are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.correlation import kendall, rbo
from pipeline.errors import PipelineError, one_line, shown
from pipeline.trec import Ranking, read_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SNIPPET = 160  # characters
_WORD = re.compile(r"\w+")


class Place(NamedTuple):
    """Where a document stands in a ranking."""

    rank: int
    score: float


class Moved(NamedTuple):
    """One document that is among the first of either ranking; None where a ranking lacks it."""

    docid: str
    grade: int | None
    base: Place | None
    run: Place | None
    change: str


@dataclass(frozen=True)
class Movement:
    """One topic in two runs, down to a depth."""

    qid: str
    depth: int
    documents: tuple[Moved, ...]  # in the order of the second run, what it dropped last
    common: int  # documents that both rankings hold, whole
    sizes: tuple[int, int]
    kendall: float | None
    rbo: float

    @property
    def cause(self) -> str:
        """Say whether documents or only their order changed."""
        first, second = self.sizes
        if not first or not second:
            return f"the {'first' if not first else 'second'} run does not answer this topic"
        if self.common == first == second:
            return f"the same {first:,} documents" + (
                " in the same order" if self.kendall in (1.0, None) else " in another order"
            )
        return f"{self.common:,} documents in common, of {first:,} and {second:,}"


def find_ranking(path: Path | str, qid: str) -> Ranking:
    """Read the ranking of one topic; empty where the run does not answer it."""
    for ranking in read_run(path):
        if ranking.qid == qid:
            return ranking
    return Ranking(qid, ())


def movement(base: Ranking, run: Ranking, depth: int, judged: Mapping[str, int]) -> Movement:
    """Compare two rankings of one topic down to a depth.

    Raises:
        PipelineError: neither run answers the topic, or the depth is not positive.
    """
    if depth < 1:
        raise PipelineError(f"--top {depth} is out of range", "choose 1 or more")
    if not base.docs and not run.docs:
        raise PipelineError(
            f"no run answers topic {shown(base.qid)}", "name one of the topics of these runs"
        )
    places = [
        {doc.docid: Place(rank, doc.score) for rank, doc in enumerate(ranking.docs, 1)}
        for ranking in (base, run)
    ]
    shown_ids = [doc.docid for doc in run.docs[:depth]]
    seen = set(shown_ids)
    shown_ids += [doc.docid for doc in base.docs[:depth] if doc.docid not in seen]
    first, second = ([doc.docid for doc in ranking.docs] for ranking in (base, run))
    documents = []
    for docid in shown_ids:
        before, after = places[0].get(docid), places[1].get(docid)
        documents.append(
            Moved(docid, judged.get(docid), before, after, _change(before, after, depth))
        )
    return Movement(
        base.qid, depth, tuple(documents), len(places[0].keys() & places[1].keys()),
        (len(first), len(second)), kendall(first, second), rbo(first, second),
    )  # fmt: skip


def _change(before: Place | None, after: Place | None, depth: int) -> str:
    if before is None or before.rank > depth:
        return "entered"
    if after is None or after.rank > depth:
        return "left"
    rise = before.rank - after.rank
    return f"up {rise}" if rise > 0 else f"down {-rise}" if rise else "same"


def cells(
    found: Movement, names: Sequence[str], texts: Mapping[str, str], query: str
) -> list[list[str]]:
    """Set the documents in rows: rank and score in both runs, grade, and a piece of their text."""
    base, run = map(one_line, names)
    rows = [["document", "grade", "change", base, "score", run, "score"]]
    if texts:
        rows[0].append("text")
    for each in found.documents:
        row = [one_line(each.docid), "-" if each.grade is None else f"{each.grade}", each.change]
        for place in (each.base, each.run):
            row += ["-", "-"] if place is None else [f"{place.rank}", f"{place.score:.4f}"]
        if texts:
            row.append(snippet(texts.get(each.docid, ""), query))
        rows.append(row)
    return rows


def snippet(text: str, query: str, size: int = SNIPPET) -> str:
    """Cut out the piece of a text that holds most words of the query, on one safe line."""
    text = one_line(" ".join(text.split()))
    if len(text) <= size:
        return text
    wanted = {word.lower() for word in _WORD.findall(query)}
    words = [(m.start(), m[0].lower()) for m in _WORD.finditer(text)]
    best, start = 0, 0
    hits = [place for place, word in words if word in wanted]
    for place in hits:
        count = len({w for p, w in words if place <= p < place + size and w in wanted})
        if count > best:
            best, start = count, place
    start = min(start, len(text) - size)
    if start > 0 and not text[start - 1].isspace():
        start = text.find(" ", start) + 1 or start
    piece = text[start : start + size].strip()
    return ("… " if start else "") + piece + (" …" if start + size < len(text) else "")


def as_json(
    found: Movement, names: Sequence[str], texts: Mapping[str, str], query: str
) -> dict[str, Any]:
    """Everything for machines."""
    return {
        "qid": found.qid,
        "base": names[0],
        "run": names[1],
        "depth": found.depth,
        "cause": found.cause,
        "kendall": found.kendall,
        "rbo": found.rbo,
        "documents": [
            {
                "docid": each.docid,
                "grade": each.grade,
                "change": each.change,
                "base": each.base and each.base._asdict(),
                "run": each.run and each.run._asdict(),
                **({"text": snippet(texts.get(each.docid, ""), query)} if texts else {}),
            }
            for each in found.documents
        ],
    }
