"""Stage: a run over long documents -> the windows of its candidates, as a collection and a run.

What is scored and learnt from window by window is then a passage like any other: for teachers,
for trainings (`positive_windows`), for whoever wants the scores of single windows.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import collection, lucene, passages
from pipeline.errors import PipelineError, shown
from pipeline.indexes import Place, paths, shown_place
from pipeline.report import SILENT, Reporter
from pipeline.rescore import How, task
from pipeline.stage import Outcome, Recipe, need_apart, places, producing
from pipeline.store import (
    atomic_file,
    atomic_folder,
    digest_file,
    digest_json,
    need_path,
    scratch_file,
)
from pipeline.textfile import STREAM
from pipeline.trec import MAX_DOCS, Ranking, ScoredDoc, check_tag, write_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from pipeline.candidates import Candidates, Texts

VERSION = 1
MOST = 1 << 31
COLLECTION, RUN = "collection.jsonl", "candidates.run"  # in the folder that is made


@dataclass(frozen=True)
class WindowsSettings:
    """Which documents to cut, and how."""

    run: Path  # candidates: any TREC run; `-`: standard input
    output: Path  # a folder
    index: Place | None = None  # where texts are: an index, or several,
    collection: Path | None = None  # or a collection
    depth: int = 100  # candidates of a topic that are cut
    window: int = passages.SIZE  # words
    stride: int = passages.STRIDE
    windows: int = passages.LIMIT  # of one document, at most
    tag: str = "windows"
    force: bool = False


def digest(output: Path) -> str:
    """Digest of a finished folder: of its two files, whatever else lies there."""
    files = [output / name for name in (COLLECTION, RUN)]
    return digest_json([digest_file(file) if file.is_file() else "missing" for file in files])


def windows(settings: WindowsSettings, reporter: Reporter = SILENT) -> Outcome:
    """Cut documents unless the folder is fresh.

    The run keeps the order of topics and documents; a document's windows follow each other from
    its beginning, with its score, lowered from one to the next by as little as float32 has.

    Counts in the outcome: `topics`; `documents` and `windows`, each once however many topics have
    it; `deepest`, the most windows of a topic; `documents_cut`, documents that go on behind their
    last window.

    Raises:
        PipelineError: a setting out of its range, a run or source of texts that is not there, or
            a document that the source lacks.
    """
    _check(settings)
    with ExitStack() as stack:
        streamed = str(settings.run) == STREAM
        candidates = _candidates(settings, stack) if streamed else None

        def recipe() -> Recipe:
            inputs = {"run": candidates.digest if candidates else digest_file(settings.run)}
            if settings.index is not None:
                inputs["index"] = lucene.index_digest(settings.index)
            else:
                inputs["collection"] = collection.digest(str(settings.collection))
            names = ("depth", "window", "stride", "windows", "tag")
            values = {name: getattr(settings, name) for name in names}
            return Recipe("windows", VERSION, values, inputs)

        with producing(
            settings.output, recipe, force=settings.force, digest=digest, reporter=reporter
        ) as job:
            if job.fresh:
                return job.outcome
            _need_ours(settings)
            cutter = _Cutter(settings, candidates or _candidates(settings, stack), stack)
            with ExitStack() as making:
                new = making.enter_context(atomic_folder(settings.output))
                with atomic_file(new / COLLECTION) as out:
                    write_run(new / RUN, cutter.rankings(out, reporter), settings.tag)
                counts = cutter.counts
                with job.commit(counts, {"places": _places(settings)}):
                    making.pop_all().close()  # the folder takes its name
            reporter.notice(
                f"a topic has up to {counts['deepest']:,} windows: to score all of them, "
                f"rerank --depth {counts['deepest']}"
            )
            if counts["documents_cut"]:
                reporter.notice(
                    f"{counts['documents_cut']:,} documents go on behind their last window "
                    "(--max-windows)"
                )
            return job.outcome


class _Cutter:
    """Cuts the candidates of topic after topic; a document that came before is not cut again."""

    def __init__(self, settings: WindowsSettings, candidates: Candidates, stack: ExitStack) -> None:
        self._settings, self._candidates = settings, candidates
        self._how = How(
            depth=settings.depth,
            keep_tail=False,
            weight=1.0,
            aggregation="none",
            window=settings.window,
            stride=settings.stride,
            windows=settings.windows,
            top=1,
            tag=settings.tag,
        )
        self._texts = _texts(settings, candidates, stack)
        self._windows: dict[str, int] = {}  # of each document
        self._unread = self._deepest = 0

    def rankings(self, out: BinaryIO, reporter: Reporter) -> Iterator[Ranking]:
        """Cut the documents of each topic; write new windows to `out`, return the topic's."""
        settings, qids = self._settings, self._candidates.qids
        where = settings.collection if settings.index is None else shown_place(settings.index)
        for done, qid in enumerate(qids, 1):
            found = task(
                self._candidates.ranking(qid), "", self._how, self._texts, settings.run, where
            )
            for doc, text in zip(found.scored, found.texts, strict=True):
                if doc.docid not in self._windows:
                    self._windows[doc.docid] = self._cut(doc.docid, text, out)
            docs = (
                ScoredDoc(passages.window_id(doc.docid, number), doc.score)
                for doc in found.scored
                for number in range(self._windows[doc.docid])
            )
            ranking = Ranking(qid, tuple(docs))
            self._deepest = max(self._deepest, len(ranking.docs))
            yield ranking
            reporter.advance(done, len(qids), "topics")

    def _cut(self, docid: str, text: str, out: BinaryIO) -> int:
        """Write the windows of a document; how many there are."""
        how = (self._settings.window, self._settings.stride, self._settings.windows)
        cut = passages.windows(text, *how)
        for number, one in enumerate(cut):
            row = {"id": passages.window_id(docid, number), "contents": one}
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._unread += passages.goes_on(text, *how)
        return len(cut)

    @property
    def counts(self) -> dict[str, int]:
        """Count what was cut."""
        return {
            "topics": len(self._candidates.qids),
            "documents": len(self._windows),
            "windows": sum(self._windows.values()),
            "deepest": self._deepest,
            "documents_cut": self._unread,
        }


def _need_ours(settings: WindowsSettings) -> None:
    """Refuse to replace a folder together with what others put there.

    Raises:
        PipelineError: so it would be.
    """
    if settings.force or not settings.output.is_dir():
        return
    others = sorted({path.name for path in settings.output.iterdir()} - {COLLECTION, RUN})
    if others:
        raise PipelineError(
            f"{settings.output}: {shown(others[0])} lies there, and would be lost",
            "move it away, choose another output, or add --force",
        )


def _candidates(settings: WindowsSettings, stack: ExitStack) -> Candidates:
    from pipeline.candidates import Candidates

    return Candidates(settings.run, None, stack.enter_context(scratch_file(settings.output)))


def _texts(settings: WindowsSettings, candidates: Candidates, stack: ExitStack) -> Texts:
    from pipeline.candidates import Spool

    if settings.index is not None:
        return stack.enter_context(lucene.Index(settings.index))
    wanted = (
        doc.docid
        for qid in candidates.qids
        for doc in candidates.ranking(qid).docs[: settings.depth]
    )
    scratch = stack.enter_context(scratch_file(settings.output))
    return Spool(str(settings.collection), wanted, scratch)


def _places(settings: WindowsSettings) -> dict[str, str]:
    return places(
        settings.output,
        run=settings.run,
        index=settings.index if isinstance(settings.index, Path) else None,
        collection=settings.collection,
    )


def _check(settings: WindowsSettings) -> None:
    check_tag(settings.tag)
    collection.need_one_source(settings.index, settings.collection)
    most = MAX_DOCS // max(settings.depth, 1)  # windows of a document: a topic has to be readable
    for name, value, low, high in (
        ("depth", settings.depth, 1, MAX_DOCS),
        ("window", settings.window, 1, MOST),
        ("stride", settings.stride, 1, settings.window),
        ("max-windows", settings.windows, 1, most),
    ):
        if not low <= value <= high:
            why = f": a run has at most {MAX_DOCS:,} lines a topic" if name == "max-windows" else ""
            raise PipelineError(
                f"--{name} {value} is out of range", f"choose from {low:,} to {high:,}{why}"
            )
    need_path(settings.run, "run")
    indexes = () if settings.index is None else paths(settings.index)
    need_apart(settings.output, settings.run, settings.collection, *indexes)
    if settings.output.is_file() or str(settings.output) == STREAM:
        raise PipelineError(f"{shown(str(settings.output))}: is no folder", "name a folder")
