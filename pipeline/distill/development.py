"""Development data: how well a student in training reranks candidates it never learns from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pipeline.collection import load_texts
from pipeline.distill.groups import Tokens
from pipeline.distill.student import Limits, pair_logits
from pipeline.errors import PipelineError
from pipeline.measures import evaluate_rankings
from pipeline.topics import read_topics
from pipeline.trec import Ranking, ScoredDoc, ordered, read_qrels, read_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.distill.settings import DevSet
    from pipeline.trec import Qrels


class _Loaded(NamedTuple):
    name: str
    measure: str
    qrels: Qrels
    rankings: list[Ranking]
    queries: list[NDArray[Any]]
    passages: dict[str, NDArray[Any]]


class Development:
    """All development sets, read and tokenised once; false if there are none."""

    def __init__(self, sets: Sequence[DevSet], tokenizer: Any, limits: Limits) -> None:
        self._limits = limits
        self._sets = [_load(one, tokenizer, limits) for one in sets]

    def __bool__(self) -> bool:
        return bool(self._sets)

    def evaluate(
        self, student: Any, special: tuple[int, int, int], budget: int, precision: str
    ) -> dict[str, float]:
        """Rerank every set's candidates; mean measure by name of set."""
        device = next(student.parameters()).device.type
        result = {}
        for one in self._sets:
            rankings = []
            for ranking, query in zip(one.rankings, one.queries, strict=True):
                bf16 = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
                with torch.inference_mode(), bf16:
                    passages = [one.passages[doc.docid] for doc in ranking.docs]
                    queries = [query] * len(passages)
                    scores = pair_logits(student, queries, passages, special, self._limits, budget)
                docs = map(ScoredDoc, (d.docid for d in ranking.docs), scores.tolist())
                rankings.append(ordered(ranking.qid, docs))
            result[one.name] = evaluate_rankings(one.qrels, rankings, [one.measure]).mean[
                one.measure
            ]
        return result


def _load(one: DevSet, tokenizer: Any, limits: Limits) -> _Loaded:
    qrels, topics = read_qrels(one.qrels), read_topics(one.topics)
    rankings = [
        Ranking(ranking.qid, ranking.docs[: one.depth])
        for ranking in read_run(one.run)
        if ranking.qid in qrels and ranking.qid in topics
    ]
    if not rankings:
        raise PipelineError(
            f"{one.run}: no topic of this run is judged in {one.qrels}", "check the development set"
        )
    rankings.sort(key=lambda r: hashlib.sha256(r.qid.encode()).digest())
    rankings = rankings[: one.limit or None]
    qrels = {ranking.qid: qrels[ranking.qid] for ranking in rankings}
    texts = load_texts(one.collection, {d.docid for ranking in rankings for d in ranking.docs})
    passages = dict(zip(texts, Tokens(tokenizer, texts.values(), limits.pair), strict=True))
    queries = list(Tokens(tokenizer, (topics[r.qid] for r in rankings), limits.query))
    return _Loaded(one.name, one.measure, qrels, rankings, queries, passages)
