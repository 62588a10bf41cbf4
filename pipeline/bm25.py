"""BM25 over an index, as Anserini's SimpleSearcher ranks, many times faster.

Scores are Lucene's own float32, and the order is Anserini's (score descending, ties by docid
ascending), as both are before SimpleSearcher rounds scores to four decimals. SimpleSearcher also
fetches the stored record of every hit, which is where its time goes; here a hit's docid comes from
the values it is sorted by.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pipeline import java
from pipeline.errors import PipelineError
from pipeline.java import java_class, view
from pipeline.lucene import (
    ANALYZER,
    OBJECT,
    STRING,
    failures,
    lines,
    make_analyzer,
    to_bytes,
)  # fmt: skip
from pipeline.program import Program
from pipeline.trec import ScoredDoc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.lucene import Index

MAX_CLAUSES = 1 << 20  # distinct terms of a topic; Lucene's own limit is 1,024

ARRAYS = "java.util.Arrays"
BUILDER = "java.lang.StringBuilder"
DOCUMENTS = "io.anserini.search.ScoredDocs"
GENERATOR = "io.anserini.search.query.BagOfWordsQueryGenerator"
HIT = "org.apache.lucene.search.ScoreDoc"
HITS = "org.apache.lucene.search.TopDocs"
QUERY = "org.apache.lucene.search.Query"
SEARCHER = "org.apache.lucene.search.IndexSearcher"


@dataclass(frozen=True)
class BM25:
    """First-stage settings: Anserini's defaults."""

    hits: int = 1000
    k1: float = 0.9
    b: float = 0.4
    feedback: Literal["none", "rm3", "rocchio"] = "none"  # with the defaults of Anserini


class Searcher:
    """BM25 over one index, alone or with pseudo-relevance feedback; safe for several threads."""

    def __init__(self, index: Index, bm25: BM25) -> None:
        self._path = index.path
        self._bm25 = bm25
        with failures(index.path), java.lock:
            searcher = java_class(SEARCHER)(index.reader)
            similarity = java_class("org.apache.lucene.search.similarities.BM25Similarity")
            searcher.setSimilarity(similarity(bm25.k1, bm25.b))
            java_class(SEARCHER).setMaxClauseCount(MAX_CLAUSES)
            analyzer = make_analyzer(index.analysis)
            if bm25.feedback == "none":
                topic = self._plain(searcher, analyzer)
            else:
                topic = self._with_feedback(searcher, analyzer)
            self._program = topic.for_each_line()

    def search(self, texts: Sequence[str]) -> list[tuple[ScoredDoc, ...]]:
        """Search for some topics in one call; nothing for a topic without terms the index has."""
        with failures(self._path):
            found = java.items(self._program(lines(texts)))
            blocks = [block.tostring().decode() for block in found]
        parse = _parse_hits if self._bm25.feedback == "none" else _parse_documents
        return [parse(self._path, block) for block in blocks]

    def _plain(self, searcher: Any, analyzer: Any) -> Program:
        """(topic) -> a line `docid TAB bits of its score` for each hit"""
        append = Program.method(BUILDER, "append", BUILDER, STRING)
        fields = Program.field("org.apache.lucene.search.FieldDoc", "fields", f"{OBJECT}[]")
        sorted_by = fields.then(Program.element(f"{OBJECT}[]", 1))  # 0: score, 1: docid
        docid = sorted_by.then(
            Program.method("org.apache.lucene.util.BytesRef", "utf8ToString", STRING)
        ).takes(HIT)
        bits = Program.static("java.lang.Float", "floatToRawIntBits", "int", "float")
        score = Program.field(HIT, "score", "float").then(bits)
        line = append.fed(docid, at=1).then(append.bind("\t", at=1))
        line = Program.method(BUILDER, "append", BUILDER, "int").fed(score, at=1).fed(line)
        line = line.then(append.bind("\n", at=1)).reordered([BUILDER, HIT], [0, 1, 1])
        hits = Program.field(HITS, "scoreDocs", f"{HIT}[]")
        listed = hits.then(Program.static(ARRAYS, "asList", "java.util.List", f"{OBJECT}[]"))
        printed = listed.then(line.over_all(Program.new(BUILDER)))
        printed = printed.then(Program.method(BUILDER, "toString", STRING)).then(to_bytes())
        return _query(analyzer).then(_search(searcher, self._bm25.hits)).then(printed)

    def _with_feedback(self, searcher: Any, analyzer: Any) -> Program:
        """(topic) -> a line of scores, and one of docids"""
        context = "io.anserini.rerank.RerankerContext"
        arguments = java_class("io.anserini.search.SearchCollection$Args")()
        arguments.hits = self._bm25.hits
        reranker, first = _feedback(self._bm25, arguments, analyzer)
        new_context = Program.new(
            context, SEARCHER, OBJECT, QUERY, STRING, STRING, "java.util.List", QUERY,
            "io.anserini.search.SearchCollection$Args",
        )  # fmt: skip
        new_context = new_context.bind(None, arguments, at=6).bind(None, at=3).bind(searcher, None)
        analyze = "io.anserini.analysis.AnalyzerUtils"
        terms = Program.static(analyze, "analyze", "java.util.List", ANALYZER, STRING)
        query = _query(analyzer)
        new_context = new_context.fed(terms.bind(analyzer), at=2).fed(query)
        collect = Program.static(DOCUMENTS, "fromTopDocs", DOCUMENTS, HITS, SEARCHER)
        found = query.then(_search(searcher, first)).then(collect.bind(searcher, at=1))
        rerank = Program.method(reranker[0], "rerank", DOCUMENTS, DOCUMENTS, context)
        again = rerank.bind(reranker[1]).fed(new_context, at=1).fed(found)
        again = again.reordered([STRING], [0, 0, 0, 0])
        docids = Program.static(
            STRING, "join", STRING, "java.lang.CharSequence", "java.lang.CharSequence[]"
        )
        docids = Program.field(DOCUMENTS, "docids", f"{STRING}[]").then(docids.bind("\t"))
        scores = Program.static(ARRAYS, "toString", STRING, "float[]")
        scores = Program.field(DOCUMENTS, "scores", "float[]").then(scores)
        concat = Program.method(STRING, "concat", STRING, STRING)
        both = concat.fed(docids, at=1).fed(scores.then(concat.bind("\n", at=1)))
        return again.then(both.reordered([DOCUMENTS], [0, 0])).then(to_bytes())


def _query(analyzer: Any) -> Program:
    """(topic) -> Anserini's bag of words"""
    build = Program.method(GENERATOR, "buildQuery", QUERY, STRING, ANALYZER, STRING)
    return build.bind(java_class(GENERATOR)(), "contents", analyzer)


def _search(searcher: Any, hits: int) -> Program:
    """(query) -> hits"""
    found = "org.apache.lucene.search.TopFieldDocs"
    sort = "org.apache.lucene.search.Sort"
    run = Program.method(SEARCHER, "search", found, QUERY, "int", sort, "boolean")
    order = java_class("io.anserini.search.SearchCollection").BREAK_SCORE_TIES_BY_DOCID
    return run.bind(hits, order, True, at=2).bind(searcher)


def _feedback(bm25: BM25, arguments: Any, analyzer: Any) -> tuple[tuple[str, Any], int]:
    """Make Anserini's reranker with its defaults, and say how many hits it is given first."""
    # Where an index has no term vectors, the text is taken from its stored records.
    parser = java_class("java.lang.Class").forName("io.anserini.collection.JsonCollection")
    analyzer = view(ANALYZER, analyzer)
    if bm25.feedback == "rm3":
        name = "io.anserini.rerank.lib.Rm3Reranker"
        reranker = java_class(name)(
            analyzer, parser, "contents",
            int(arguments.rm3_fbTerms[0]), int(arguments.rm3_fbDocs[0]),
            float(arguments.rm3_originalQueryWeight[0]), False, True,
        )  # fmt: skip
        return (name, reranker), int(arguments.rerankcutoff)
    name = "io.anserini.rerank.lib.RocchioReranker"
    reranker = java_class(name)(
        analyzer, parser, "contents",
        int(arguments.rocchio_topFbTerms[0]), int(arguments.rocchio_topFbDocs[0]),
        int(arguments.rocchio_bottomFbTerms[0]), int(arguments.rocchio_bottomFbDocs[0]),
        float(arguments.rocchio_alpha[0]), float(arguments.rocchio_beta[0]),
        float(arguments.rocchio_gamma[0]), False, False,
    )  # fmt: skip
    return (name, reranker), bm25.hits


def _parse_hits(path: Path, block: str) -> tuple[ScoredDoc, ...]:
    import numpy as np

    words = block.split()
    if 2 * block.count("\n") != len(words):
        raise _white_space(path)
    scores = np.array(list(map(int, words[1::2])), dtype=np.int32).view(np.float32)
    # What ScoredDoc() does, without its detour through Python: a fifth of all this time.
    make = partial(tuple.__new__, ScoredDoc)
    return tuple(map(make, zip(words[::2], scores.tolist(), strict=True)))


def _parse_documents(path: Path, block: str) -> tuple[ScoredDoc, ...]:
    import numpy as np

    scores, docids = block.split("\n")
    numbers = [float(score) for score in scores[1:-1].split(", ") if score]
    words = docids.split()
    if len(words) != len(numbers):
        raise _white_space(path)
    return tuple(map(ScoredDoc, words, np.array(numbers, dtype=np.float32).tolist()))


def _white_space(path: Path) -> PipelineError:
    return PipelineError(
        f"{path}: document ids of this index hold white space, which no run can carry",
        "index the collection again under ids without any",
    )
