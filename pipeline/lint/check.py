"""One file checked: told apart by its first line, read once (twice where topics lie apart)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.ahead import ahead
from pipeline.errors import InputError, PipelineError, shown_path
from pipeline.lint.findings import KINDS, SHOWN, Findings, Report
from pipeline.lint.judgements import GRADE, check_qrels, check_topics
from pipeline.lint.lines import rereadable
from pipeline.lint.mend import Mended, mend, need_mendable
from pipeline.lint.references import Documents, References
from pipeline.lint.runs import TREC, MarcoCheck, TrecCheck
from pipeline.lint.stream import collected_topics, topic_blocks
from pipeline.textfile import MAX_LINE, UTF8_MARK
from pipeline.topics import read_topics
from pipeline.trec import BEIR_HEADER, read_qrels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

    from pipeline.columns import Block
    from pipeline.lint.lines import Layout

Format = Literal["trec", "msmarco", "qrels", "topics"]
NAMES: dict[Format, str] = {
    "trec": "TREC run",
    "msmarco": "MS MARCO run",
    "qrels": "judgements",
    "topics": "topics",
}


@dataclass(frozen=True)
class LintSettings:
    """What files are held against, and how much is said."""

    topics: Path | None = None
    qrels: Path | None = None
    index: Path | None = None
    collection: str | None = None
    format: Format | None = None  # None: told by the first line
    depth: int = 1000
    shown: int = SHOWN  # findings of one kind
    fix: Path | None = None
    tag: str | None = None


def lint(
    paths: list[Path], settings: LintSettings, heard: Callable[[Mended], None] | None = None
) -> Iterator[Report]:
    """Check files one after the other; write the canonical copy if asked to.

    Raises:
        PipelineError: a file cannot be opened, or what it is held against cannot be read.
        CheckFailedError: after the report, if it holds what no program can mend.
    """
    references = _references(settings)
    try:
        for path in paths:
            with rereadable(path) as again:
                found = settings.format or told(again)
                report = _checked(path, again, found, references, settings.shown)
                yield report
                if settings.fix is None:
                    continue
                if found not in ("trec", "msmarco"):
                    raise PipelineError(
                        f"{shown_path(path)}: only runs are mended, and these are {NAMES[found]}",
                        "leave --fix out",
                    )
                need_mendable(path, report.findings)
                mended = mend(
                    path,
                    again,
                    settings.fix,
                    report.findings,
                    marco=found == "msmarco",
                    tag=settings.tag,
                )
                if heard:
                    heard(mended)
    finally:
        if references.documents is not None:
            references.documents.close()


def _references(settings: LintSettings) -> References:
    documents = None
    names = {"topics": str(settings.topics), "qrels": str(settings.qrels)}
    topics = None if settings.topics is None else tuple(read_topics(settings.topics))
    qrels = None if settings.qrels is None else read_qrels(settings.qrels)
    if settings.collection is not None:
        documents = Documents.of_collection(settings.collection)
        names["documents"] = settings.collection
    elif settings.index is not None:
        documents = Documents.of_index(settings.index)
        names["documents"] = str(settings.index)
    return References(topics, qrels, documents, settings.depth, names)


def _checked(
    path: Path | str,
    again: Callable[[], AbstractContextManager[BinaryIO]],
    found: Format,
    references: References,
    shown: int,
) -> Report:
    findings = Findings(shown)
    if found in ("qrels", "topics"):
        findings.run = False
        with again() as stream:
            check = check_qrels if found == "qrels" else check_topics
            return Report(str(path), NAMES[found], findings, check(stream, path, findings))
    kind, layout = (TrecCheck, TREC) if found == "trec" else (MarcoCheck, MarcoCheck.layout)
    with again() as stream:
        run = kind(findings, references)
        _feed(run, topic_blocks, stream, path, layout, findings)
    if run.scattered:
        # What was said about topics was said about pieces of them: say it again of the whole.
        first, findings = findings, Findings(shown)
        with again() as stream:
            run = kind(findings, references)
            _feed(run, collected_topics, stream, path, layout, findings)
        findings.found["scattered"] = first.found["scattered"]
        findings.counts["scattered"] = first.counts["scattered"]
    if run.lines:
        run.finish()
    elif all(KINDS[kind].fixed for kind in findings.counts):
        # Nothing but empty lines and comments: mended, it would be no run at all.
        findings.add("empty", None, "the run is empty")
    return Report(str(path), NAMES[found], findings, run.facts())


class _Notes(Findings):
    """Findings of the thread that reads, held until their block is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Any, ...]] = []

    def add(
        self, kind: str, line: int | None, message: str | Callable[[], str], count: int = 1
    ) -> None:
        """Hold a finding."""
        self.held.append((kind, line, message, count))

    def taken(self) -> list[tuple[Any, ...]]:
        """What was held, which is forgotten here."""
        held, self.held = self.held, []
        return held


def _feed(
    run: TrecCheck | MarcoCheck,
    blocks: Callable[[BinaryIO, Path | str, Layout, Findings], Iterator[Block]],
    stream: BinaryIO,
    path: Path | str,
    layout: Layout,
    findings: Findings,
) -> None:
    """Look at one block while a thread makes the next; findings come as if there was none."""
    notes = _Notes()

    def noted() -> Iterator[tuple[Block | None, list[tuple[Any, ...]]]]:
        for block in blocks(stream, path, layout, notes):
            yield block, notes.taken()
        yield None, notes.taken()

    with closing(ahead(noted(), 1)) as coming:
        for block, held in coming:
            for note in held:
                findings.add(*note)
            if block is not None:
                run.feed(block)


def told(again: Callable[[], AbstractContextManager[BinaryIO]]) -> Format:
    """Tell what a file is by its first line that is neither blank nor a comment.

    Raises:
        StorageError: it cannot be opened.
    """
    try:
        with again() as stream:
            start = stream.read(MAX_LINE)
    except InputError:
        return "trec"  # damaged; the checker says so
    for line in start.removeprefix(UTF8_MARK).splitlines():
        words = line.split()
        if not words or (words[0].startswith(b"#") and b"\t" not in line):
            continue
        return _told_by(line, words)
    return "trec"


def _told_by(line: bytes, words: list[bytes]) -> Format:
    if line.lstrip()[:1] in (b"{", b"<"):
        return "topics"
    if words == BEIR_HEADER:
        return "qrels"
    if len(words) == 6 and (words[1].upper() == b"Q0" or _is_number(words[4])):
        return "trec"
    tabs = line.count(b"\t")
    if words[1:2] == [b"Q0"]:
        return "trec"  # with too few columns, or too many
    if len(words) == 4 and GRADE.fullmatch(words[3]) and tabs != 1:
        return "qrels"
    if len(words) == 3 and words[2].isdigit() and tabs != 1:
        return "msmarco"
    if tabs > 1 and tabs == len(words) - 1 and len(words) in _TABLES:
        return _TABLES[len(words)]  # a header, or a broken line: a query is no single word
    return "topics" if tabs else "trec"


_TABLES: dict[int, Format] = {3: "msmarco", 4: "qrels", 6: "trec"}


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
