"""Development data: how well a student in training reranks candidates it never learns from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.collection import load_texts
from pipeline.distill.groups import window_of
from pipeline.errors import PipelineError
from pipeline.measures import evaluate_rankings
from pipeline.passages import aggregate, document_of
from pipeline.topics import read_topics
from pipeline.trec import Ranking, ScoredDoc, ordered, read_qrels, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.distill.data import Tokenise
    from pipeline.distill.forward import Limits
    from pipeline.distill.settings import DevSet
    from pipeline.passages import Aggregation
    from pipeline.trec import Qrels

    Score = Callable[[Sequence[NDArray[Any]], Sequence[NDArray[Any]]], Tensor]


class _Loaded(NamedTuple):
    name: str
    measure: str
    windows: Aggregation
    qrels: Qrels
    rankings: list[Ranking]
    queries: list[NDArray[Any]]
    passages: dict[str, NDArray[Any]]


class Development:
    """All development sets, read and tokenised once."""

    def __init__(self, sets: Sequence[DevSet], tokens: Tokenise, limits: Limits) -> None:
        self._sets = [_load(one, tokens, limits) for one in sets]

    def evaluate(self, score: Score) -> dict[str, float]:
        """Rerank every set's candidates; mean measure by name of set."""
        result = {}
        for one in self._sets:
            rankings = []
            for ranking, query in zip(one.rankings, one.queries, strict=True):
                passages = [one.passages[doc.docid] for doc in ranking.docs]
                scores = score([query] * len(passages), passages)
                docs: Iterable[ScoredDoc] = map(
                    ScoredDoc, (d.docid for d in ranking.docs), scores.tolist()
                )
                if one.windows != "none":
                    docs = _documents(docs, one.windows)
                rankings.append(ordered(ranking.qid, docs))
            (mean,) = evaluate_rankings(one.qrels, rankings, [one.measure]).mean.values()
            result[one.name] = mean
        return result


def _load(one: DevSet, tokens: Tokenise, limits: Limits) -> _Loaded:
    qrels, topics = read_qrels(one.qrels), read_topics(one.topics, one.field)
    rankings = [
        Ranking(ranking.qid, _first(ranking.docs, one))
        for ranking in read_run(one.run)
        if ranking.qid in qrels and ranking.qid in topics
    ]
    if not rankings:
        raise PipelineError(
            f"{one.run}: no topic of this run is judged in {one.qrels}", "check the development set"
        )
    if not any(
        document in qrels[ranking.qid] for ranking in rankings for document in _ids(ranking, one)
    ):
        raise PipelineError(
            f"{one.run}: no candidate of this run is judged in {one.qrels}",
            'check the development set; of windows of documents, say how: windows = "maxp"',
        )
    rankings.sort(key=lambda r: hashlib.sha256(r.qid.encode()).digest())
    rankings = rankings[: one.limit or None]
    qrels = {ranking.qid: qrels[ranking.qid] for ranking in rankings}
    texts = load_texts(one.collection, {d.docid for ranking in rankings for d in ranking.docs})
    passages = dict(zip(texts, tokens(texts.values(), limits.pair), strict=True))
    queries = list(tokens((topics[r.qid] for r in rankings), limits.query))
    return _Loaded(one.name, one.measure, one.windows, qrels, rankings, queries, passages)


def _ids(ranking: Ranking, one: DevSet) -> Iterator[str]:
    """What judgements know the candidates by."""
    for doc in ranking.docs:
        yield doc.docid if one.windows == "none" else document_of(doc.docid)[0]


def _first(docs: Sequence[ScoredDoc], one: DevSet) -> tuple[ScoredDoc, ...]:
    """Keep the candidates that are scored; of documents in windows, whole documents."""
    if one.windows == "none":
        return tuple(docs[: one.depth])
    of = [window_of(doc.docid, one.run)[0] for doc in docs]
    kept = set(list(dict.fromkeys(of))[: one.depth])
    return tuple(doc for doc, document in zip(docs, of, strict=True) if document in kept)


def _documents(windows: Iterable[ScoredDoc], how: Aggregation) -> list[ScoredDoc]:
    """Score documents by their windows, which `aggregate` takes from a document's beginning on."""
    scores: dict[str, dict[int, float]] = {}
    for window, score in windows:
        document, number = document_of(window)
        scores.setdefault(document, {})[number] = score
    flat = [some[number] for some in scores.values() for number in sorted(some)]
    made = aggregate(np.array(flat, np.float32), list(map(len, scores.values())), how)
    return list(map(ScoredDoc, scores, made.tolist()))
