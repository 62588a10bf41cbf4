"""Hold a run against a venue's rules, line by line, as the venue's own checker would."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pipeline.errors import one_line, shown
from pipeline.textfile import lines
from pipeline.trec import FLOAT32_LIMIT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.venues import Venue

NAMED = 25  # findings of one severity that are named; the others are counted

Severity = Literal["error", "warning"]


class Finding(NamedTuple):
    """One line, or the whole file, and what the venue says of it."""

    line: int | None
    severity: Severity
    message: str
    mend: str

    def text(self, path: Path | str) -> str:
        """On one safe line: place, severity, what is wrong, what to do."""
        where = f"{path}:{self.line}" if self.line else f"{path}"
        return one_line(f"{where}: {self.severity}: {self.message}; {self.mend}")


class Row(NamedTuple):
    """A line of a run; MS MARCO's have neither `Q0` nor score nor tag."""

    qid: str
    q0: str
    docid: str
    rank: str
    score: str
    tag: str


@dataclass(frozen=True)
class Mends:
    """What the user lets be changed; it is then no error."""

    tag: str | None = None  # in the place of those in the file
    cut: bool = False  # documents below the venue's depth are left out
    filler: str | None = None  # a document for topics without any


@dataclass
class Admission:
    """What was found in one run."""

    findings: list[Finding] = field(default_factory=list)
    errors: int = 0
    warnings: int = 0
    lines: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # qid -> its documents
    missing: tuple[str, ...] = ()  # topics without a document
    tag: str = ""
    columns: int = 6
    scattered: bool = False  # whether the lines of a topic lie apart

    def add(self, line: int | None, severity: Severity, message: str, mend: str) -> None:
        """Take a finding; the first 25 of a severity are named."""
        count = self.errors if severity == "error" else self.warnings
        if count < NAMED:
            self.findings.append(Finding(line, severity, message, mend))
        if severity == "error":
            self.errors += 1
        else:
            self.warnings += 1

    @property
    def admitted(self) -> bool:
        """Whether the venue would take it."""
        return not self.errors


def admit(
    path: Path, venue: Venue, topics: Collection[str] | None, mends: Mends | None = None
) -> Admission:
    """Check a run. Memory holds one topic, and 8 bytes for each document of the others.

    Args:
        topics: the venue's; None where they are not known, and then not asked for.

    Raises:
        PipelineError: the file cannot be read.
    """
    check = _Check(venue, topics, mends or Mends())
    for number, line in lines(path):
        if not check.line(number, line):
            break
    else:
        check.whole()
    return check.found


_NOTHING = np.empty(0, np.int64)


class _Check:
    def __init__(self, venue: Venue, topics: Collection[str] | None, mends: Mends) -> None:
        self._venue, self._mends = venue, mends
        self._topics = None if topics is None else set(topics)
        self._order = [] if topics is None else list(topics)
        self._is_tag = re.compile(venue.tag).fullmatch
        self._is_docno = re.compile(venue.docno).fullmatch
        self._is_rank = re.compile(venue.rank).fullmatch
        self._is_qid = re.compile(venue.qid).fullmatch
        # Of what of these the venue's own checker says nothing is only worth a warning.
        self._severity: Severity = "error" if venue.needs_topics else "warning"
        # Hashes of the documents and ranks of topics that were left.
        self._seen: dict[str, tuple[NDArray[np.int64], ...]] = {}
        self._now = ""
        self._docids: set[int] = set()
        self._ranks: set[int] = set()
        self.found = Admission()

    def line(self, number: int, line: bytes) -> bool:
        """Check a line; False where nothing after it can be told."""
        words = line.split()
        add = self.found.add
        if number == 1:
            self.found.columns = 3 if self._venue.kind == "msmarco" and len(words) == 3 else 6
        if len(words) != self.found.columns:
            what = f"{len(words)} columns instead of {self.found.columns}"
            add(number, "error", what, "a run line is: qid Q0 docid rank score tag")
            return False
        try:
            text = [word.decode() for word in words]
        except UnicodeDecodeError:
            add(number, "error", "not UTF-8", "convert the file: iconv -f latin1 -t utf-8")
            return False
        row = Row(*text) if len(text) == 6 else Row(text[0], "Q0", text[1], text[2], "0", "")
        self.found.lines += 1
        self._columns(number, row)
        self._documents(number, row)
        return True

    def _columns(self, number: int, row: Row) -> None:
        """Look at the columns one by one."""
        add, venue = self.found.add, self._venue
        if not self.found.tag:
            self.found.tag = row.tag
            if row.tag and self._mends.tag is None and not self._is_tag(row.tag):
                rule = f"it must match {venue.tag}"
                add(number, "error", f"tag {shown(row.tag)}: {rule}", "choose one: --tag NAME")
        elif row.tag != self.found.tag and venue.one_tag and self._mends.tag is None:
            what = f"tag {shown(row.tag)} after {shown(self.found.tag)}"
            add(number, "error", what, "a run has one tag: --tag NAME")
        if venue.q0 and row.q0 != "Q0":
            add(number, "error", f"{shown(row.q0)} instead of Q0", "pipeline lint --fix")
        if not self._is_rank(row.rank):
            add(number, "error", f"rank {shown(row.rank)}", "ranks are whole numbers")
        if not self._is_docno(row.docid):
            what = f"document {shown(row.docid)} is none of {venue.title}"
            add(number, "error", what, f"its ids match {venue.docno}")
        try:
            finite = abs(float(row.score)) < FLOAT32_LIMIT
        except ValueError:
            finite = False
        if not finite:
            what = f"score {shown(row.score)} is not a finite number"
            add(number, "error", what, "write finite scores")

    def _documents(self, number: int, row: Row) -> None:
        """Look at the topic: known, each document once, not too many."""
        add, found = self.found.add, self.found
        if row.qid != self._now:
            self._turn(number, row.qid)
        key = hash(row.docid)
        if key in self._docids:
            what = f"document {shown(row.docid)} twice in topic {shown(row.qid)}"
            add(number, "error", what, "pipeline lint --fix keeps the best")
        self._docids.add(key)
        found.counts[row.qid] = found.counts.get(row.qid, 0) + 1
        if found.counts[row.qid] == self._venue.depth + 1 and not self._mends.cut:
            what = f"topic {shown(row.qid)} has more than {self._venue.depth:,} documents"
            add(number, self._severity, what, "leave out what lies below: --cut")
        if found.columns == 3:
            if hash(row.rank) in self._ranks:
                what = f"rank {shown(row.rank)} twice in topic {shown(row.qid)}"
                add(number, "error", what, "MS MARCO's evaluator keeps one of the documents")
            self._ranks.add(hash(row.rank))
            if self._is_rank(row.rank) and not 1 <= int(row.rank[:9]) <= 1000:
                add(number, "error", f"rank {shown(row.rank)}", "ranks go from 1 to 1000")

    def _turn(self, number: int, qid: str) -> None:
        """Begin a topic, or go on with one."""
        found = self.found
        if self._now:
            self._seen[self._now] = tuple(
                np.fromiter(some, np.int64, len(some)) for some in (self._docids, self._ranks)
            )
        self._now = qid
        before = self._seen.get(qid, (_NOTHING, _NOTHING))
        self._docids, self._ranks = (set(some.tolist()) for some in before)
        if qid in found.counts:
            found.scattered = True
        elif not self._is_qid(qid):
            what = f"topic {shown(qid)} is none of {self._venue.title}"
            found.add(number, "error", what, f"its ids match {self._venue.qid}")
        elif self._topics is not None and qid not in self._topics:
            what = f"topic {shown(qid)} is not among the topics"
            found.add(number, self._severity, what, "give the topics the run was made for")

    def whole(self) -> None:
        """Look at the file as a whole."""
        venue, found = self._venue, self.found
        if not found.lines:
            found.add(None, "error", "the run is empty", "check how it was written")
            return
        found.missing = tuple(qid for qid in self._order if qid not in found.counts)
        if self._mends.filler is None:
            for qid in found.missing:
                what = f"topic {shown(qid)} has no document"
                found.add(None, self._severity, what, "name one to stand in: --filler DOCID")
        for count, least, what in (
            (found.lines, venue.least_lines, "lines"),
            (len(found.counts), venue.least_topics, "topics"),
        ):
            if count < least:
                text = f"{count} {what} where {least} are the least"
                found.add(None, "error", text, "is this the whole run?")
        short = [qid for qid, count in found.counts.items() if count < venue.depth]
        if venue.full and short:
            what = f"{len(short):,} topics have fewer than {venue.depth:,} documents"
            mend = f"{venue.title} expects so many; the first is {shown(short[0])}"
            found.add(None, "warning", what, mend)
        if found.scattered:
            what = "the lines of a topic lie apart"
            found.add(None, "warning", what, "they are written together")


# ---------------------------------------------------------------- reading what was admitted


def rows(path: Path, columns: int) -> Iterator[tuple[str, str, float]]:
    """Yield topic, document and score of the lines of an admitted run; minus the rank, where a
    run has no scores."""
    for _, line in lines(path):
        words = line.decode().split()
        if columns == 3:
            yield words[0], words[1], -float(words[2])
        else:
            yield words[0], words[2], float(np.float32(words[4]))
