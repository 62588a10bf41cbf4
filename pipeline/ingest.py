"""Documents on their way into new Lucene indexes; the work is done by a Java class of ours.

Lines go to Java as they stand in a file. Python reads what Java does not know (`Writer.add` says
what that is), and hands it over as lines of JSON.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import java
from pipeline.errors import PipelineError
from pipeline.java import java_class, view
from pipeline.lucene import (
    ANALYZER,
    COMMIT_KEY,
    OBJECT,
    STRING,
    Analysis,
    directory,
    english_stopwords,
    failures,
    make_analyzer,
)
from pipeline.parts import bucket
from pipeline.program import OURS, Program
from pipeline.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

MIN_BUFFER, MAX_BUFFER = 4, 2047  # MB a writer holds before it writes a segment; Lucene's limit
THREAD = 12 << 20  # bytes of Java's heap that a thread may need: a block in all forms, its words

CONFIG = "org.apache.lucene.index.IndexWriterConfig"
INGEST = f"{OURS}Ingest"
LIST = "java.util.ArrayList"
WORDS = f"{OURS}EnglishWords"
WRITER = "org.apache.lucene.index.IndexWriter"


class Added(NamedTuple):
    """What went in."""

    ids: NDArray[np.uint64]  # `docid_hash` of all documents
    content: int  # the SHA-256 of (docid, 0, text) of those with text, added up
    empty: list[str]  # docids of those without: Java's blanks alone


def together(several: Iterable[Added]) -> Added:
    """All of it, at least one."""
    import numpy as np

    ids, contents, empty = zip(*several, strict=True)
    return Added(np.concatenate(ids), sum(contents), [docid for some in empty for docid in some])


def docid_hash(docid: str) -> int:
    """64 bits of a docid; with several indexes, what is left of them says which it goes to."""
    return bucket(docid, 1 << 64)


class Writer:
    """Writes new indexes into empty folders; `add` may be called from several threads.

    Args:
        folders: of several, a document's is a function of its id alone.
    """

    def __init__(self, folders: Sequence[Path], analysis: Analysis) -> None:
        java.start()
        self._folders = folders
        self._writers: list[Any] = []
        try:
            with failures(folders[0]), java.lock:
                for folder in folders:
                    config = _config(analysis, len(folders))
                    self._writers.append(java_class(WRITER)(directory(folder), config))
                    data = java_class("java.util.HashMap")()
                    data.put(COMMIT_KEY, java.java_text(json.dumps(analysis.record())))
                    self._writers[-1].setLiveCommitData(data.entrySet())
                self._add = _program(self._writers)
        except BaseException:
            self.give_up()
            raise

    def add(self, lines: bytes, *, tabbed: bool) -> Added | None:
        """Add the documents of whole lines of JSON, or of docid TAB text; ids must be new.

        None, and nothing is added, where Java does not know what a line is: it takes objects with
        `id` and `contents`, or `_id`, `text` and `title`, all of them strings, and whatever else is
        a string or an object of strings beside them; ids of 1 to 512 printable ASCII characters
        without a blank. What it leaves may be right or wrong.
        """
        return self._added(lines, "tabbed" if tabbed else "json")

    def add_records(self, documents: Iterable[tuple[str, str]]) -> Added:
        """Add (docid, text), whatever they are; ids must be new."""
        records = ({"id": docid, "contents": text} for docid, text in documents)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        added = self._added(lines.encode(errors="replace"), "known")
        if added is None:
            raise PipelineError(
                f"{self._folders[0]}: documents got lost on their way to Java", "report it"
            )
        return added

    def _added(self, lines: bytes, kind: str) -> Added | None:
        import numpy as np

        with failures(self._folders[0], self._writers):
            found = java.items(self._add(java.java_bytes(lines), kind))
            if not found:
                return None
            ids, sums, empty = (part.tostring() for part in found)
        columns = np.frombuffer(sums, ">u8")[::-1].tolist()
        return Added(
            np.frombuffer(ids, ">u8").astype(np.uint64),
            sum(column << 32 * place for place, column in enumerate(columns)),
            empty.decode().split("\n") if empty else [],
        )

    def finish(self, threads: int) -> int:
        """Write everything out, merge, close; return the number of documents in all."""
        return sum(map(_finished, self._folders, self._writers, [threads] * len(self._folders)))

    def give_up(self) -> None:
        """Stop merges and drop everything."""
        with ExitStack() as stack:  # the others too where one fails
            for folder, writer in zip(self._folders, self._writers, strict=False):
                stack.callback(_rolled_back, folder, writer)


def _rolled_back(folder: Path, writer: Any) -> None:
    with failures(folder), java.lock:
        writer.rollback()


def most_threads() -> int:
    """How many threads Java's heap has room for, half of it being theirs."""
    java.start()
    with java.lock:
        return max(1, _heap() // (2 * THREAD))


def _heap() -> int:
    return int(java_class("java.lang.Runtime").getRuntime().maxMemory())


def _config(analysis: Analysis, beside: int) -> Any:
    """What a writer needs; as many are at work at the same time."""
    if analysis.language == "en":
        words = Program.new(WORDS, STRING, "org.apache.lucene.analysis.CharArraySet")
        made = Program.new(CONFIG, ANALYZER).fed(words.returns(ANALYZER))
        config = made(analysis.stemmer, english_stopwords(analysis))
    else:
        config = java_class(CONFIG)(view(ANALYZER, make_analyzer(analysis)))
    buffer = min(MAX_BUFFER, _heap() // (4 * beside << 20))
    config.setRAMBufferSizeMB(float(max(MIN_BUFFER, buffer)))
    config.setUseCompoundFile(False)
    return config


def _program(writers: Iterable[Any]) -> Program:
    """(lines, what they are) -> what was added

    Python never sees the object that does it: Java would not find its class for us.
    """
    several, place = java_class(LIST)(), java_class(LIST)()
    for writer in writers:
        several.add(writer)
    keep = Program.method(LIST, "add", "boolean", OBJECT).bind(place)
    Program.new(INGEST, "java.util.List").returns(OBJECT).then(keep)(several)
    kept = Program.method(LIST, "get", OBJECT, "int").bind(place, 0).returns(INGEST)
    return Program.method(INGEST, "add", LIST, STRING, STRING).fed(kept)


def _finished(folder: Path, writer: Any, threads: int) -> int:
    """Write one index out; the number of its documents.

    Java works in other threads meanwhile, so that a signal is heard. A commit alone would write the
    buffers of all threads one after the other.
    """
    with failures(folder):
        flush = Program.method(WRITER, "flushNextBuffer", "boolean").bind(writer)
        commit = Program.method(WRITER, "commit", "long").bind(writer)
        list(in_threads(lambda work: work(), [flush] * threads, threads))
        list(in_threads(lambda work: work(), [commit], 1))
        while _merging(writer):
            time.sleep(0.01)
        with java.lock:
            count = int(writer.getDocStats().numDocs)
            writer.close()
    return count


def _merging(writer: Any) -> bool:
    with java.lock:
        return bool(writer.hasPendingMerges())
