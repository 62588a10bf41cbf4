"""Stage: a collection -> a Lucene index that holds its text, whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import collection, lucene, machine
from pipeline.errors import InputError, PipelineError, shown
from pipeline.parts import bucket
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, need_apart, places, producing
from pipeline.store import atomic_folder, digest_file, digest_json, new_folder, write_bytes
from pipeline.textfile import text_lines
from pipeline.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray


VERSION = 1
MOST_SHARDS = MOST_THREADS = 1024
MAX_DOCID = 512  # bytes
EMPTY_FILE = "empty-documents.txt"  # in the index folder; Lucene leaves it alone
EMPTY_SHOWN = 10
OTHERS_SHOWN = 3
JAVA_BLANK = "".join(map(chr, range(33)))  # what Java trims; a document of nothing else is empty


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
    source = _Source(settings.collection)
    writer = _Writers(folder, analysis, settings.shards)
    try:
        batches = source.batches()
        with closing(in_threads(writer.add, batches, _threads(settings))) as added:
            done = 0
            for size in added:
                done += size
                reporter.advance(done, 0, "documents")
        found = writer.finish(_threads(settings))
    except BaseException:
        writer.give_up()
        raise
    if not found:
        raise PipelineError(
            f"{settings.collection}: every document is empty", "check the format of the collection"
        )
    if found != source.count - len(source.empty):
        raise PipelineError(
            f"{settings.output}: {found:,} documents in the index, but "
            f"{source.count - len(source.empty):,} in the collection",
            "run the same command again, and report it if it fails again",
        )
    if source.empty:
        write_bytes(folder / EMPTY_FILE, "".join(f"{d}\n" for d in source.empty).encode())
    return {
        "documents": source.count,
        "indexed": found,
        "empty": len(source.empty),
        "empty_first": source.empty[:EMPTY_SHOWN],
        "content": digest_json([f"{source.content:x}", analysis.record()]),
    }


class _Writers:
    """One index, or several side by side, each in a folder of its own."""

    def __init__(self, folder: Path, analysis: lucene.Analysis, count: int) -> None:
        self._writers: list[lucene.Writer] = []
        try:
            for number in range(1, count + 1):
                place = folder if count == 1 else new_folder(folder / str(number))
                self._writers.append(lucene.Writer(place, analysis, count))
        except BaseException:
            self.give_up()
            raise

    def add(self, documents: list[tuple[str, str]]) -> int:
        """Add a batch; which index a document goes to is a function of its id alone."""
        writers = self._writers
        if len(writers) == 1:
            return writers[0].add(documents)
        groups: dict[int, list[tuple[str, str]]] = {}
        for document in documents:
            groups.setdefault(bucket(document[0], len(writers)), []).append(document)
        return sum(writers[number].add(group) for number, group in groups.items())

    def finish(self, threads: int) -> int:
        """Finish one after the other; the number of documents in all."""
        return sum(writer.finish(threads) for writer in self._writers)

    def give_up(self) -> None:
        """Drop everything."""
        for writer in self._writers:
            writer.give_up()


class _Source:
    """Reads a collection once, in batches, and keeps account of it."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self.empty: list[str] = []
        # The digests of all (docid, text) pairs, added up: whatever their order, in no memory.
        self.content = 0
        self._path = path
        self._ids = _Ids()

    def batches(self) -> Iterator[list[tuple[str, str]]]:
        """Yield (docid, text) of the documents that are not empty.

        Raises:
            InputError: a document id appears again, or is too long for Lucene.
        """
        for batch in collection.batches(self._path):
            self.count += len(batch.records)
            docids = [docid for docid, _ in batch.records]
            if max(map(len, docids)) > MAX_DOCID // 4:
                _check_lengths(batch)
            full = [record for record in batch.records if record[1].strip(JAVA_BLANK)]
            if len(full) < len(docids):
                self.empty += [docid for docid, text in batch.records if not text.strip(JAVA_BLANK)]
            self._check(docids)
            self._add_up([sha256(f"{docid}\0{text}".encode()).digest() for docid, text in full])
            yield full

    def _add_up(self, digests: list[bytes]) -> None:
        """Add digests to `content`, by columns of 32 bits, which takes half the time."""
        import numpy as np

        columns = np.frombuffer(b"".join(digests), ">u4").reshape(-1, 8).sum(axis=0, dtype="u8")
        total = sum(int(column) << 32 * place for place, column in enumerate(columns[::-1]))
        self.content = (self.content + total) % (1 << 256)

    def _check(self, docids: list[str]) -> None:
        """Look for repeated ids; a suspicion is followed up by reading the collection again."""
        suspects = self._ids.add(docids)
        if not suspects:
            return
        first: dict[str, tuple[str, int]] = {}
        for document in islice(collection.documents(self._path), self.count):
            if hash(document.docid) in suspects:
                if document.docid in first:
                    raise collection.duplicate(document, first[document.docid])
                first[document.docid] = (document.path, document.line)


class _Ids:
    """Hashes of all ids so far, in sorted runs that grow like a log-structured tree.

    Takes 8 bytes for each document, 16 while runs are merged: a dictionary of ids takes 20 times
    that, and a billion documents would not fit in any machine.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def add(self, docids: list[str]) -> set[int]:
        """Take in more ids and return the hashes that were there already."""
        import numpy as np

        new = np.sort(np.fromiter(map(hash, docids), np.int64, len(docids)))
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
