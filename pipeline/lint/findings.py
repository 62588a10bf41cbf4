"""What a checker says: kinds of findings, what each does to an evaluation, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.errors import one_line, shown_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Severity = Literal["error", "warning"]
SHOWN = 3  # findings of one kind that are named; the others are counted
FIX = "--fix OUT"


class Kind(NamedTuple):
    """One kind of finding."""

    severity: Severity
    effect: str  # what it does to an evaluation
    mend: str
    fixed: bool = False  # whether --fix takes it away
    by_hand: str = ""  # how to mend what is no run, which --fix does not

    def advice(self, *, run: bool) -> str:
        """How to mend it, in a run or in another file."""
        return self.mend if run or not self.by_hand else self.by_hand


KINDS: dict[str, Kind] = {
    # any file
    "empty": Kind("error", "there is nothing to evaluate", "check how it was written"),
    "unreadable": Kind("error", "nothing after this can be read", "fetch or write the file again"),
    "bom": Kind(
        "error",
        "the byte order mark becomes part of the first id, which then matches nothing",
        "write UTF-8 without a mark",
        True,
    ),
    "encoding": Kind(
        "error",
        "readers in Python stop here, and no such id matches a file in UTF-8",
        "convert the file: iconv -f latin1 -t utf-8",
    ),
    "control": Kind(
        "error",
        "control characters end a line for one reader and belong to an id for another",
        "check how the file was written",
    ),
    "return": Kind(
        "error",
        "readers in Python end the line there, trec_eval takes it for a blank",
        "write line feeds alone: tr '\\r' '\\n'",
    ),
    "unicode-space": Kind(
        "error",
        "readers in Python see more columns here, trec_eval does not",
        "give ids without any white space",
    ),
    "long-id": Kind("error", "no id is that long", "check how the file was written"),
    "crlf": Kind(
        "warning",
        "trec_eval accepts it; others take the return for a part of the last column",
        f"{FIX}, or dos2unix",
        True,
        "dos2unix",
    ),
    "separators": Kind(
        "warning",
        "trec_eval accepts any white space; scripts that split at one blank do not",
        f"{FIX}, or one blank between columns",
        True,
        "one blank, or one tab, between columns",
    ),
    "last-line": Kind(
        "warning",
        "the file may be torn, its last number cut short, and cat would glue the next file on",
        f"compare it with its source; {FIX} ends the line",
        True,
        "compare it with its source",
    ),
    "blank": Kind(
        "error",
        "trec_eval refuses the file",
        rf"{FIX}, or grep -v '^\s*$'",
        True,
        r"grep -v '^\s*$'",
    ),
    "columns": Kind(
        "error",
        "trec_eval refuses the file, or takes the wrong column for the score",
        "write: qid Q0 docid rank score tag",
    ),
    "pandas-id": Kind(
        "warning",
        "pandas reads NA, null and nan as missing, and 007 as 7: readers built on it lose the id",
        "read ids as strings: dtype=str, keep_default_na=False",
    ),
    # runs
    "header": Kind(
        "error",
        "trec_eval takes it for a topic, and other readers stop",
        f"{FIX}, or tail -n +2",
        True,
    ),
    "comment": Kind(
        "error",
        "trec_eval 9, pytrec_eval and ir_measures refuse the file; only trec_eval 10 skips it",
        f"{FIX}; keep metadata in a file beside the run",
        True,
        "grep -v '^#'",
    ),
    "q0": Kind(
        "warning", "trec_eval ignores it; TREC's checkers reject the run", f"{FIX}, or Q0", True
    ),
    "rank-number": Kind(
        "warning", "trec_eval ignores it; TREC's and TIRA's checkers reject the run", FIX, True
    ),
    "ranks": Kind(
        "warning", "trec_eval ignores it; checkers and tools that go by rank do not", FIX, True
    ),
    "rank-order": Kind(
        "warning",
        "trec_eval goes by score, MS MARCO's tools by rank: two orders, two results",
        f"decide which is meant; {FIX} goes by score",
        True,
    ),
    "order": Kind(
        "warning",
        "trec_eval sorts by score; tools that keep the order of lines see another ranking",
        FIX,
        True,
    ),
    "ties": Kind(
        "warning",
        "trec_eval puts the last docid first, others the first docid or line: results differ",
        f"write more digits, or {FIX} to keep trec_eval's order",
        True,
    ),
    "float32": Kind(
        "warning",
        "trec_eval 9 and pytrec_eval see a tie and go by docid, trec_eval 10 does not",
        f"spread the scores, or {FIX} to keep trec_eval 9's order",
        True,
    ),
    "score": Kind(
        "error",
        "trec_eval reads what it can, or 0, and says nothing; others refuse the file",
        "write a decimal number",
    ),
    "non-finite": Kind(
        "error",
        "NaN has no place in any order, and what float32 cannot hold becomes infinite: the "
        "ranking is accidental",
        "find out why the model gave it; write a finite score or leave the document out",
    ),
    "duplicate": Kind(
        "error",
        "trec_eval stops; others count the document twice or keep either score",
        f"keep one line; {FIX} keeps the best",
        True,
    ),
    "scattered": Kind(
        "warning",
        "trec_eval collects the lines; tools that stream, pipeline evaluate too, refuse it or take "
        "it for a second topic",
        f"{FIX}, or sort -s -k1,1",
        True,
    ),
    "huge": Kind(
        "error",
        "no evaluator looks that deep, and readers hold a topic in memory",
        "cut the run at a depth",
    ),
    "depth": Kind(
        "warning",
        "tracks and trec_eval's habit stop there: recall and AP of the rest differ by reader",
        "cut the run, or say what you mean with --depth",
    ),
    "tags": Kind(
        "warning", "trec_eval ignores it; TREC's checkers reject a run of two tags", FIX, True
    ),
    "tag": Kind(
        "warning",
        "trec_eval ignores it; TREC's checkers reject the run",
        "1 to 20 letters, digits, _ and -: --fix OUT --tag NAME",
        True,
    ),
    "missing-topic": Kind(
        "error",
        "it counts 0; trec_eval 9 without -c leaves it out of the average, 10 stops",
        "retrieve something for it, and evaluate with trec_eval -c or pipeline evaluate",
    ),
    "unknown-topic": Kind("error", "no evaluator counts it", "use the topics of the run"),
    "unjudged-topic": Kind("warning", "evaluators ignore it", "nothing, if that is intended"),
    "no-topic": Kind("error", "there is nothing to evaluate", "use the files that belong together"),
    "unknown-document": Kind(
        "error",
        "it can never be relevant and takes the place of one that could",
        "use the ids of this collection",
    ),
    # MS MARCO runs
    "rank-limit": Kind(
        "error",
        "MS MARCO's evaluator stops: ranks go from 1 to 1000",
        "number from 1 and cut the run",
    ),
    "rank-twice": Kind(
        "error",
        "MS MARCO's evaluator keeps the last document of a rank and drops the others silently",
        f"number the documents of a topic 1, 2, 3, ...; {FIX} does, in the order of lines",
        True,
    ),
    "not-integer": Kind(
        "error", "MS MARCO's evaluator stops: it reads whole numbers", "qid TAB pid TAB rank"
    ),
    "tabs": Kind(
        "error", "MS MARCO's evaluator stops: it splits lines at tabs", f"{FIX}, or tabs", True
    ),
    "rank-gaps": Kind(
        "warning", "MS MARCO's evaluator puts document 0 in the ranks that are left out", FIX, True
    ),
    "pid-twice": Kind(
        "error", "MS MARCO's evaluator warns; the ranks of both lines count", FIX, True
    ),
    "shallow": Kind(
        "warning",
        "MS MARCO's scripts expect the full depth, and submissions were sent back for less",
        "retrieve deeper, unless you only evaluate",
    ),
    # judgements
    "qrels-columns": Kind("error", "trec_eval refuses the file", "write: qid 0 docid grade"),
    "grade": Kind("error", "readers stop, or read 0", "grades are whole numbers: 0, 1, 2, ..."),
    "negative": Kind(
        "warning",
        "not relevant; bpref, infAP and judged-only measures take it for never judged",
        "nothing, if that is intended",
    ),
    "judged-twice": Kind(
        "error", "trec_eval stops; others keep either grade", "keep one judgement of a document"
    ),
    "no-relevant": Kind(
        "warning", "every run scores 0 in it, and it counts in every average", "know it, or drop it"
    ),
    # topics
    "topic": Kind("error", "the topic cannot be searched", "a topic line is: qid TAB text"),
    "blank-topic": Kind("error", "readers stop, or search for nothing", r"grep -v '^\s*$'"),
    "topic-twice": Kind(
        "error", "one of the two texts is lost, by reader", "give each topic an id of its own"
    ),
}


@dataclass(frozen=True)
class Finding:
    """One place, and what is wrong there."""

    kind: str
    line: int | None
    message: str
    run: bool = True  # whether it is in a run, which --fix mends

    @property
    def severity(self) -> Severity:
        """Error: somebody refuses the file or computes another number; else warning."""
        return KINDS[self.kind].severity

    def text(self, path: Path | str) -> str:
        """Print it: place, severity, kind, message; effect; how to mend it. One line."""
        where = f"{shown_path(path)}:{self.line}" if self.line else shown_path(path)
        kind = KINDS[self.kind]
        return one_line(
            f"{where}: {kind.severity} [{self.kind}]: {self.message}; {kind.effect}; "
            f"{kind.advice(run=self.run)}"
        )


@dataclass
class Findings:
    """Findings of one file: the first few of each kind, and how many there are."""

    shown: int = SHOWN
    run: bool = True  # whether the file is one
    found: dict[str, list[Finding]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # what a kind says about the whole file

    def add(
        self, kind: str, line: int | None, message: str | Callable[[], str], count: int = 1
    ) -> None:
        """Take a finding, or `count` alike of which this is the first.

        A message that takes time is a function, called only where it will be shown.
        """
        some = self.found.setdefault(kind, [])
        if len(some) < self.shown:
            text = message if isinstance(message, str) else message()
            some.append(Finding(kind, line, text, self.run))
        self.counts[kind] = self.counts.get(kind, 0) + count

    def full(self, kind: str) -> bool:
        """Whether more of this kind would only be counted."""
        return len(self.found.get(kind, ())) >= self.shown

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity, those not shown too."""
        return sum(n for kind, n in self.counts.items() if KINDS[kind].severity == severity)

    def __iter__(self) -> Iterator[Finding]:
        """All that are named: errors first, then by line."""
        every = [finding for some in self.found.values() for finding in some]
        return iter(sorted(every, key=lambda f: (f.severity, f.line or 0)))

    def lines(self, path: Path | str) -> Iterator[str]:
        """Print them, each kind closed by its count where not all are named."""
        named = [finding.kind for finding in self]
        for place, finding in enumerate(self):
            yield finding.text(path)
            if finding.kind not in named[place + 1 :]:
                yield from self._closing(path, finding)

    def _closing(self, path: Path | str, last: Finding) -> Iterator[str]:
        more = self.counts[last.kind] - len(self.found[last.kind])
        said = [f"{more:,} more, {self.counts[last.kind]:,} in all"] * (more > 0)
        said += [self.notes[last.kind]] if last.kind in self.notes else []
        if said:
            text = f"{shown_path(path)}: {last.severity} [{last.kind}]: {'; '.join(said)}"
            yield one_line(text)


@dataclass
class Report:
    """One file: what it is, what it holds and what was found."""

    path: str
    kind: str
    findings: Findings
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Number of errors."""
        return self.findings.count("error")

    @property
    def unmended(self) -> int:
        """Number of errors that --fix leaves."""
        return sum(
            count
            for kind, count in self.findings.counts.items()
            if KINDS[kind].severity == "error" and not KINDS[kind].fixed
        )

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return self.findings.count("warning")

    def summary(self) -> str:
        """One line: what was read and how much was found."""
        facts = [
            f"{value:,} {name}" if isinstance(value, int) else f"{name} {value}"
            for name, value in self.facts.items()
            if value != ""
        ]
        found = [
            f"{count:,} {name}{'s' * (count != 1)}"
            for name, count in (("error", self.errors), ("warning", self.warnings))
            if count
        ]
        what = ", ".join([self.kind, *facts])
        return one_line(f"{shown_path(self.path)}: {what}: {', '.join(found) or 'all well'}")

    def record(self) -> dict[str, Any]:
        """For machines: everything, with effect and mend of each kind found."""
        return {
            "path": self.path,
            "kind": self.kind,
            **self.facts,
            "errors": self.errors,
            "warnings": self.warnings,
            "kinds": {
                kind: {
                    "severity": KINDS[kind].severity,
                    "count": count,
                    "effect": KINDS[kind].effect,
                    "mend": KINDS[kind].advice(run=self.findings.run),
                    "fixed": KINDS[kind].fixed and self.findings.run,
                    "note": self.findings.notes.get(kind),
                }
                for kind, count in self.findings.counts.items()
            },
            "findings": [
                {"kind": f.kind, "severity": f.severity, "line": f.line, "message": f.message}
                for f in self.findings
            ],
        }
