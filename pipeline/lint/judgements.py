"""Checking judgements and topics, which are small: line by line, all of their ids in memory."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, shown
from pipeline.lint.lines import Layout, chunks, in_order
from pipeline.lint.references import trapped
from pipeline.notation import MAX_GRADE
from pipeline.topics import jsonl_topic, tidied, trec_topics, tsv_topic
from pipeline.trec import BEIR_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from pipeline.lint.findings import Findings

GRADE = re.compile(rb"[+-]?[0-9]{1,9}")
QRELS = Layout(4, "qrels-columns")
TABBED = Layout(4, "qrels-columns", b"\t")  # as MS MARCO has them
BEIR = Layout(3, "qrels-columns", b"\t")


def _text(word: bytes) -> str:
    return shown(word.decode("utf-8", "replace"))


class _Judged:
    """Judgements as they are read."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.lines: dict[bytes, dict[bytes, int]] = {}  # topic -> document -> line
        self.relevant: set[bytes] = set()
        self.grades: set[int] = set()

    def take(self, number: int, qid: bytes, docid: bytes, grade: bytes) -> None:
        """Check one judgement."""
        if not GRADE.fullmatch(grade) or int(grade) > MAX_GRADE:
            self.findings.add("grade", number, f"grade {_text(grade)}")
            return
        if qid not in self.lines and trapped(qid.decode("utf-8", "replace")):
            self.findings.add("pandas-id", number, f"topic id {_text(qid)}")
        places = self.lines.setdefault(qid, {})
        if docid in places:
            message = (
                f"document {_text(docid)} judged again for topic {_text(qid)} "
                f"(first on line {places[docid]})"
            )
            self.findings.add("judged-twice", number, message)
        places.setdefault(docid, number)
        self.grades.add(int(grade))
        if int(grade) > 0:
            self.relevant.add(qid)
        elif int(grade) < 0:
            self.findings.add("negative", number, f"grade {_text(grade)}")

    def finish(self) -> dict[str, Any]:
        """Look for topics that no run can answer; return what the judgements hold."""
        for qid, places in self.lines.items():
            if qid not in self.relevant:
                message = f"topic {_text(qid)} has no relevant document"
                self.findings.add("no-relevant", min(places.values()), message)
        if not self.lines and not self.findings.counts:
            self.findings.add("empty", None, "there are no judgements")
        return {
            "topics": len(self.lines),
            "judgements": sum(map(len, self.lines.values())),
            "grades": ", ".join(map(str, sorted(self.grades)[:10])),
        }


def check_qrels(stream: BinaryIO, path: Path | str, findings: Findings) -> dict[str, Any]:
    """Check judgements; return what they hold."""
    judged = _Judged(findings)
    layout = QRELS
    for first, chunk in chunks(stream, path, findings):
        start = chunk.split(b"\n", 1)[0]
        if first == 1 and start.split() == BEIR_HEADER:
            layout = BEIR
            chunk, first = chunk.split(b"\n", 1)[1], 2
        elif first == 1 and start.count(b"\t") == TABBED.columns - 1:
            layout = TABBED
        clean, numbers = in_order(chunk, first, layout, findings)
        for number, line in zip(numbers, clean.split(b"\n"), strict=False):
            words = line.split()
            judged.take(number, words[0], words[-2], words[-1])
    return judged.finish()


def check_topics(stream: BinaryIO, path: Path | str, findings: Findings) -> dict[str, Any]:
    """Check topics; return what they hold. Of TREC topics, the first fault alone is found."""
    places: dict[str, int] = {}
    for number, qid, text in _topics(_numbered(stream, path, findings), path, findings):
        try:
            tidied(path, number, qid, text)
        except InputError as error:
            findings.add("topic", number, _bare(error))
            continue
        if qid in places:
            message = f"topic {shown(qid)} again (first on line {places[qid]})"
            findings.add("topic-twice", number, message)
        elif trapped(qid):
            findings.add("pandas-id", number, f"topic id {shown(qid)}")
        places.setdefault(qid, number)
    if not places and not findings.counts:
        findings.add("empty", None, "there are no topics")
    return {"topics": len(places)}


def _numbered(stream: BinaryIO, path: Path | str, findings: Findings) -> Iterator[tuple[int, str]]:
    for first, chunk in chunks(stream, path, findings):
        for number, line in enumerate(chunk.split(b"\n")[:-1], first):
            yield number, line.decode("utf-8", "replace")


def _topics(
    lines: Iterator[tuple[int, str]], path: Path | str, findings: Findings
) -> Iterator[tuple[int, str, str]]:
    for number, line in lines:
        try:
            if line.lstrip().startswith("<"):
                yield from trec_topics(path, chain([(number, line)], lines), ["title"])
            elif line.lstrip().startswith("{"):
                yield number, *jsonl_topic(path, number, line)
            elif line.strip() or "\t" in line:
                yield number, *tsv_topic(path, number, line)
            else:
                findings.add("blank-topic", number, "an empty line")
        except InputError as error:
            findings.add("topic", error.line, _bare(error))


def _bare(error: InputError) -> str:
    """The message without its place."""
    return error.message.split(": ", 1)[-1]
