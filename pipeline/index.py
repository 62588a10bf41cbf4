"""Stage: a collection -> a Lucene index that holds its text, whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import collection, lucene, machine
from pipeline.errors import InputError, PipelineError, shown
from pipeline.formats import MAX_DOCUMENT
from pipeline.ingest import Added, Writer, docid_hash, most_threads, together
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, need_apart, places, producing
from pipeline.store import atomic_folder, digest_file, digest_json, new_folder, write_bytes
from pipeline.textfile import text_lines
from pipeline.threads import in_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


VERSION = 1
MOST_SHARDS = MOST_THREADS = 1024
MAX_DOCID = 512  # bytes
EMPTY_FILE = "empty-documents.txt"  # in the index folder; Lucene leaves it alone
EMPTY_SHOWN = 10
OTHERS_SHOWN = 3


@dataclass(frozen=True)
class IndexSettings:
    """What to index, where to, and how; the defaults are Anserini's."""

    collection: Path  # a file, a folder, or ir_datasets:ID
    output: Path
    language: str = "en"
    stemmer: Literal["porter", "krovetz", "none"] = "porter"
    stopwords: Literal["default", "keep"] | Path = "default"  # or a file with one word a line
    shards: int = 1  # folders with an index each, which are searched as one
    threads: int = 0  # 0: one for each processor
    force: bool = False


digest = lucene.files_digest
"""Digest of a finished index, for its sidecar."""


def recipe(settings: IndexSettings) -> Recipe:
    """Name all that determines what the index holds; reads the collection once."""
    words = settings.stopwords
    inputs = {"collection": collection.digest(settings.collection)}
    if isinstance(words, Path):
        inputs["stopwords"] = digest_file(words)
    values: dict[str, Any] = {
        "language": settings.language,
        "stemmer": settings.stemmer,
        "stopwords": "file" if isinstance(words, Path) else words,
    }
    if settings.shards != 1:
        values["shards"] = settings.shards
    return Recipe("index", VERSION, values, inputs)


def index(settings: IndexSettings, reporter: Reporter = SILENT) -> Outcome:
    """Build the index unless it is fresh.

    Counts in the outcome: `documents` in the collection, `indexed`, `empty` (and the first of these
    by id; all are in `empty-documents.txt` inside the index), and `content`, the digest of what the
    index holds, which is the same for every build.

    Raises:
        PipelineError: a malformed or repeated document (both places are named), an unknown
            language, or an index that does not hold what was put in.
    """
    analysis = check(settings)
    with producing(
        settings.output,
        lambda: recipe(settings),
        force=settings.force,
        digest=digest,
        reporter=reporter,
    ) as job:
        if job.fresh:
            return job.outcome
        if others := collection.not_documents(settings.collection):
            reporter.notice(
                f"{settings.collection}: {', '.join(path.name for path in others[:OTHERS_SHOWN])}"
                f"{', ...' if len(others) > OTHERS_SHOWN else ''} may hold topics or judgements, "
                "and are read as documents; if so, name the file of documents, not the folder"
            )
        with ExitStack() as stack:
            folder = stack.enter_context(atomic_folder(settings.output))
            counts = _build(settings, analysis, folder, reporter)
            where = places(settings.output, collection=settings.collection)
            with job.commit(counts, {"threads": _threads(settings), "places": where}):
                stack.pop_all().close()  # the folder takes its name
        if counts["empty"]:
            reporter.notice(
                f"{counts['empty']:,} empty documents are not in the index: "
                f"{', '.join(counts['empty_first'])}"
                f"{', ...' if counts['empty'] > EMPTY_SHOWN else ''}"
                f" (all in {settings.output / EMPTY_FILE})"
            )
        return job.outcome


def check(settings: IndexSettings) -> lucene.Analysis:
    """Say how text is analysed, or fail over settings that cannot be; the collection is not read.

    Raises:
        PipelineError: so it is.
    """
    words = settings.stopwords
    need_apart(settings.output, settings.collection, words if isinstance(words, Path) else None)
    if not 0 <= settings.threads <= MOST_THREADS:
        raise PipelineError(
            f"--threads {settings.threads} is out of range",
            f"choose a number from 0 to {MOST_THREADS}; 0 takes all CPUs",
        )
    if not 1 <= settings.shards <= MOST_SHARDS:
        raise PipelineError(
            f"--shards {settings.shards} is out of range",
            f"choose a number from 1 to {MOST_SHARDS}",
        )
    if settings.language not in lucene.LANGUAGES:
        raise PipelineError(
            f"no analysis for language {shown(settings.language)}",
            f"known: {', '.join(lucene.LANGUAGES)}",
        )
    if settings.language != "en" and (words != "default" or settings.stemmer != "porter"):
        raise PipelineError(
            f"stemmer and stop words are settings of English, not of {settings.language}",
            "leave them out, or use language en",
        )
    stopwords: tuple[str, ...] | None = None
    if words == "keep":
        stopwords = ()
    elif words != "default":
        stopwords = tuple(line.strip() for _, line in text_lines(words) if line.strip())
        if not stopwords:
            raise InputError(words, None, "there are no stop words", "write one word a line")
    return lucene.Analysis(settings.language, settings.stemmer, stopwords)


def _threads(settings: IndexSettings) -> int:
    return settings.threads or machine.cpus()


def _build(
    settings: IndexSettings, analysis: lucene.Analysis, folder: Path, reporter: Reporter
) -> dict[str, Any]:
    account = _Account(settings.collection)
    writer = Writer(_folders(folder, settings.shards), analysis)
    try:
        pieces = collection.pieces(settings.collection)
        add = partial(_added, writer)
        threads = min(_threads(settings), most_threads())
        with closing(in_threads(add, pieces, threads)) as finished:
            for added in finished:
                account.take(added)
                reporter.advance(account.count, 0, "documents")
        found = writer.finish(threads)
    except BaseException:
        writer.give_up()
        raise
    if not found:
        raise PipelineError(
            f"{settings.collection}: every document is empty", "check the format of the collection"
        )
    if found != account.count - len(account.empty):
        raise PipelineError(
            f"{settings.output}: {found:,} documents in the index, but "
            f"{account.count - len(account.empty):,} in the collection",
            "run the same command again, and report it if it fails again",
        )
    if account.empty:
        write_bytes(folder / EMPTY_FILE, "".join(f"{d}\n" for d in account.empty).encode())
    return {
        "documents": account.count,
        "indexed": found,
        "empty": len(account.empty),
        "empty_first": account.empty[:EMPTY_SHOWN],
        "content": digest_json([f"{account.content:x}", analysis.record()]),
    }


def _folders(folder: Path, count: int) -> list[Path]:
    """One index, or several side by side, each in a folder of its own."""
    if count == 1:
        return [folder]
    return [new_folder(folder / str(number)) for number in range(1, count + 1)]


def _added(writer: Writer, piece: collection.Batch | collection.Lines) -> Added:
    """Add some documents; in a thread of its own, so that Java parses lines in all of them."""
    if isinstance(piece, collection.Batch):
        return _added_batch(writer, piece)
    block, added = piece.unread.block, None
    if len(block) <= MAX_DOCUMENT:  # or a line may be too long, which others find out
        added = writer.add(block, tabbed=piece.unread.tabbed)
    if added is None:
        added = together(_added_batch(writer, batch) for batch in piece.batches())
    return added


def _added_batch(writer: Writer, batch: collection.Batch) -> Added:
    if max(len(docid) for docid, _ in batch.records) > MAX_DOCID // 4:
        _check_lengths(batch)
    return writer.add_records(batch.records)


class _Account:
    """What was added so far."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self.empty: list[str] = []
        # The digests of all (docid, text) pairs, added up: whatever their order, in no memory.
        self.content = 0
        self._path = path
        self._ids = _Ids()

    def take(self, added: Added) -> None:
        """Take in what was added next, in the order of the collection.

        Raises:
            InputError: a document id appears again.
        """
        self.count += len(added.ids)
        self.content = (self.content + added.content) % (1 << 256)
        self.empty += added.empty
        suspects = self._ids.add(added.ids)
        if suspects:
            self._follow_up(suspects)

    def _follow_up(self, suspects: set[int]) -> None:
        """Read the collection again: two ids may have one hash."""
        first: dict[str, tuple[str, int]] = {}
        for document in islice(collection.documents(self._path), self.count):
            if docid_hash(document.docid) in suspects:
                if document.docid in first:
                    raise collection.duplicate(document, first[document.docid])
                first[document.docid] = (document.path, document.line)


class _Ids:
    """Hashes of all ids so far, in sorted runs that grow like a log-structured tree.

    Takes 8 bytes for each document, 16 while runs are merged: a dictionary of ids takes 20 times
    that, and a billion documents would not fit in any machine.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, hashes: NDArray[np.uint64]) -> set[int]:
        """Take in more and return those that were there already."""
        import numpy as np

        new = np.sort(hashes)
        again = new[1:][new[1:] == new[:-1]].tolist()
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, new), len(run) - 1)
            again += new[run[at] == new].tolist()
        if len(new):
            self._runs.append(new)
        while len(self._runs) > 1 and len(self._runs[-2]) <= len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        return set(again)


def _check_lengths(batch: collection.Batch) -> None:
    for line, (docid, _) in zip(batch.lines, batch.records, strict=True):
        if len(docid.encode()) > MAX_DOCID:
            raise InputError(
                batch.path,
                line,
                f"document id {shown(docid)} is longer than {MAX_DOCID} bytes",
                "give the document a shorter id",
            )
