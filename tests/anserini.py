"""Anserini's own indexer and searcher, driven the way Pyserini drives them, to compare with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline import java
from pipeline.java import java_class
from pipeline.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

BUILDER = "java.lang.StringBuilder"
SEARCHER = "io.anserini.search.SimpleSearcher"
STRING = "java.lang.String"


def build(
    folder: Path, documents: Iterable[tuple[str, str]], *, raw: bool = True, **options: Any
) -> Path:
    """Write an index as Pyserini's LuceneIndexer does, by SimpleIndexer; options: its arguments."""
    java.start()
    arguments = java_class("io.anserini.index.IndexCollection$Args")()
    arguments.index = str(folder)
    arguments.storeRaw = raw
    arguments.threads = 1
    for name, value in options.items():
        setattr(arguments, name, value)
    indexer = java_class("io.anserini.index.SimpleIndexer")(arguments)
    for docid, text in documents:
        record = json.dumps({"id": docid, "contents": text})
        assert indexer.addRawDocument(java.java_text(record))
    indexer.close()
    return folder


class SimpleSearcher:
    """io.anserini.search.SimpleSearcher, its hits brought over in one piece."""

    def __init__(self, index: Path, feedback: str = "none") -> None:
        java.start()
        self._searcher = java_class(SEARCHER)(str(index))
        self._searcher.set_bm25(0.9, 0.4)
        if feedback != "none":
            # The collection's name lets it analyse stored records where there are no vectors.
            set_feedback = getattr(self._searcher, f"set_{feedback}")
            set_feedback(java.java_text("JsonCollection"))

    def search(self, texts: Sequence[str], hits: int) -> list[list[str]]:
        """Docids in rank order, for each text."""
        found = "io.anserini.search.ScoredDoc"
        append = Program.method(BUILDER, "append", BUILDER, STRING)
        line = append.fed(Program.field(found, "docid", STRING), at=1).then(append.bind("\n", at=1))
        listed = Program.static(
            "java.util.Arrays", "asList", "java.util.List", "java.lang.Object[]"
        )
        search = Program.method(SEARCHER, "search", f"{found}[]", STRING, "int")
        program = search.bind(hits, at=2).bind(self._searcher).then(listed)
        program = program.then(line.over_all(Program.new(BUILDER)))
        program = program.then(Program.method(BUILDER, "toString", STRING))
        program = program.then(
            Program.method(STRING, "getBytes", "byte[]", STRING).bind("UTF-8", at=1)
        )
        text = java.java_text("".join(f"{text}\n" for text in texts))
        blocks = program.for_each_line()(text).toArray()
        return [block.tostring().decode().splitlines() for block in blocks]
