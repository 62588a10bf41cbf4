"""What a training reads, once: teacher runs, labels, and the tokens of topics and passages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.collection import load_texts
from pipeline.distill.groups import Pool, TeacherRun, Tokens, read_pool, relevant
from pipeline.errors import PipelineError
from pipeline.topics import read_topics
from pipeline.trec import read_qrels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.distill.settings import DistillConfig


@dataclass(frozen=True)
class Data:
    """All that is trained on; `passages` are in the order of `pool.docids`."""

    pool: Pool
    positives: dict[str, set[int]]
    qids: list[str]
    queries: dict[str, NDArray[Any]]
    passages: Tokens


def read_data(config: DistillConfig, tokenizer: Any) -> Data:
    """Read teacher runs, labels and texts, and tokenise every topic and passage once.

    Raises:
        PipelineError: no topic has enough candidates, or a candidate is not in the collection.
    """
    topics = read_topics(config.topics, config.field)
    shares = config.teacher_weights or (1.0,) * len(config.teacher_runs)
    pool = read_pool(list(map(TeacherRun, config.teacher_runs, shares)), topics)
    positives = relevant(pool, read_qrels(config.qrels)) if config.qrels else {}
    qids = [qid for qid, row in pool.rows.items() if len(row.docs) >= config.group_size]
    if len(qids) < config.topics_per_step:
        raise PipelineError(
            f"{config.teacher_runs[0]}: {len(qids)} topics have {config.group_size} candidates "
            f"or more, fewer than topics_per_step = {config.topics_per_step}",
            "retrieve more candidates, or use smaller groups or steps",
        )
    queries = Tokens(tokenizer, (topics[qid] for qid in qids), config.max_query_tokens)
    texts = load_texts(config.collection, pool.docids)
    passages = Tokens(tokenizer, (texts[docid] for docid in pool.docids), config.max_tokens)
    return Data(pool, positives, qids, dict(zip(qids, queries, strict=True)), passages)
