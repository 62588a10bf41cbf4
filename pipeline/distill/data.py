"""What a training reads, once: teacher runs, labels, and the tokens of topics and passages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.collection import documents, load_texts
from pipeline.distill.groups import TeacherRun, read_pool, relevant, relevant_windows, with_relevant
from pipeline.distill.settings import NEED_LABELS, TeachConfig
from pipeline.errors import PipelineError
from pipeline.report import SILENT, Reporter
from pipeline.topics import read_topics
from pipeline.trec import read_qrels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from pipeline.distill.groups import Pool, Rows
    from pipeline.distill.settings import DistillConfig

    Tokenise = Callable[[Iterable[str], int], Rows]


@dataclass(frozen=True)
class Data:
    """All that is trained on; `passages` are in the order of `pool.docids`."""

    pool: Pool
    positives: dict[str, set[int]]
    qids: list[str]
    queries: dict[str, NDArray[Any]]
    passages: Rows


def read_data(
    config: DistillConfig | TeachConfig, tokens: Tokenise, reporter: Reporter = SILENT
) -> Data:
    """Read candidates, scores, labels and texts, and tokenise every topic and passage once.

    Args:
        tokens: of the model that is trained: texts and a limit -> token ids.

    Raises:
        PipelineError: no topic has enough candidates, or a candidate is not in the collection.
    """
    assert config.topics is not None  # noqa: S101 - the settings were checked
    topics = read_topics(config.topics, config.field)
    qrels = read_qrels(config.qrels) if config.qrels else {}
    if isinstance(config, TeachConfig):
        run = config.candidates
        pool = read_pool([TeacherRun(run)], topics)
        if not config.positive_windows:
            pool = with_relevant(pool, qrels)
    else:
        run = config.teacher_runs[0]
        shares = config.teacher_weights or (1.0,) * len(config.teacher_runs)
        teachers = list(map(TeacherRun, config.teacher_runs, shares))
        pool = read_pool(teachers, topics, raw=config.raw_scores)
    if config.positive_windows:
        pool, positives = relevant_windows(pool, qrels, config.positive_windows, run)
    else:
        positives = relevant(pool, qrels)
    labelled = config.positive_windows > 0 or any(name in config.losses for name in NEED_LABELS)
    if labelled and not any(positives.values()):
        raise PipelineError(
            f"{config.qrels}: no candidate of {run} is relevant",
            "check that both are of the same topics and passages; for windows of documents, with "
            "judgements of the documents, set positive_windows",
        )
    qids = [
        qid
        for qid, row in pool.rows.items()
        if len(row.docs) >= config.group_size
        and (positives.get(qid) or not isinstance(config, TeachConfig))
    ]
    if len(qids) < config.topics_per_step:
        raise PipelineError(
            f"{run}: {len(qids)} topics have {config.group_size} candidates "
            f"or more, fewer than topics_per_step = {config.topics_per_step}",
            "retrieve more candidates, or use smaller groups or steps",
        )
    if left_out := len(pool.rows) - len(qids):
        label = " or no relevant one" if isinstance(config, TeachConfig) else ""
        reporter.notice(
            f"{left_out:,} of {len(pool.rows):,} topics have fewer than {config.group_size} "
            f"candidates{label}, and are left out"
        )
    queries = tokens((topics[qid] for qid in qids), config.max_query_tokens)
    asked = "run, or the qrels," if isinstance(config, TeachConfig) else "run"
    texts = load_texts(config.collection, pool.docids, asked)
    passages = tokens((texts[docid] for docid in pool.docids), config.max_tokens)
    return Data(pool, positives, qids, dict(zip(qids, queries, strict=True)), passages)


def read_texts(config: DistillConfig, tokens: Tokenise) -> Rows:
    """Tokenise every text of a collection, with room for two special tokens.

    Raises:
        PipelineError: fewer texts than one step takes.
    """
    texts = (document.text for document in documents(config.collection))
    found = tokens(texts, config.max_tokens - 2)
    if len(found) < config.topics_per_step:
        raise PipelineError(
            f"{config.collection}: {len(found)} texts, fewer than topics_per_step = "
            f"{config.topics_per_step}",
            "use smaller steps, or more text",
        )
    return found
