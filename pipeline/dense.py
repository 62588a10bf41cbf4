"""Stage: topics, a two-tower model and its vectors -> a first-stage run.

By exact search, unless an approximate one is asked for: then a graph proposes, and the scores of
what it proposes are the exact ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - settings are filled by their types at run time
from typing import TYPE_CHECKING, Any

from pipeline import neighbours
from pipeline.errors import PipelineError, shown
from pipeline.models.reranker import load_towers, model_digest
from pipeline.models.scorer import Device, Limits, Precision, Wishes
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, producing
from pipeline.store import digest_json, need_path
from pipeline.textfile import STREAM
from pipeline.topics import Topics, read_topics
from pipeline.trec import Ranking, ScoredDoc, check_tag, write_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.towers import Towers
    from pipeline.vectors import PassageVectors

VERSION = 1
BLOCK = 1 << 15  # vectors in memory at a time
TOGETHER = 64  # queries that are compared with them in one multiplication


@dataclass(frozen=True)
class DenseSettings:
    """What to search, for what, and with which model."""

    vectors: Path
    topics: Path  # `-`: standard input
    model: str  # that made the vectors
    output: Path  # `-`: standard output, without sidecar
    field: str = "title"  # of TREC topic files
    hits: int = 1000
    ann: bool = False  # by a graph of neighbours, which may miss some
    tag: str = "dense"
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0
    force: bool = False


def recipe(settings: DenseSettings, topics: Topics | None = None) -> Recipe:
    """Name all that determines the run, but for last bits.

    Raises:
        PipelineError: no usable topics, vectors or model, or a setting out of its range.
    """
    from pipeline import vectors

    _check(settings)
    if topics is None:
        topics = read_topics(settings.topics, settings.field)
    inputs = {
        "vectors": vectors.digest(settings.vectors),
        "model": model_digest(settings.model),
        "topics": digest_json(list(topics.items())),
    }
    values: dict[str, Any] = {
        "hits": settings.hits,
        "tag": settings.tag,
        "precision": settings.precision,
    }
    if settings.ann:
        values["ann"] = neighbours.SETTINGS
    return Recipe("dense", VERSION, values, inputs)


def retrieve(settings: DenseSettings, reporter: Reporter = SILENT) -> Outcome:
    """Search every topic unless the run is fresh.

    Counts in the outcome: `topics`, and `passages` searched.

    Raises:
        PipelineError: as `recipe` does; another model than the vectors'; a crossing that is no
            dot product.
    """
    _check(settings)
    given = None
    if STREAM in (str(settings.topics), str(settings.output)):
        given = read_topics(settings.topics, settings.field)
    if str(settings.output) == STREAM:
        found, model = _open(settings)
        assert given is not None  # noqa: S101 - read just above
        write_run(STREAM, _rankings(settings, given, found, model, reporter), settings.tag)
        counts = {"topics": len(given), "passages": found.count}
        return Outcome(STREAM, computed=True, counts=counts)
    with producing(
        settings.output,
        lambda: recipe(settings, given),
        force=settings.force,
        reporter=reporter,
    ) as job:
        if job.fresh:
            return job.outcome
        topics = given or read_topics(settings.topics, settings.field)
        found, model = _open(settings)
        counts = {"topics": len(topics), "passages": found.count}
        rankings = list(_rankings(settings, topics, found, model, reporter))
        with job.commit(counts, {"signature": dict(model.signature)}):
            write_run(settings.output, rankings, settings.tag)
        return job.outcome


def _open(settings: DenseSettings) -> tuple[PassageVectors, Towers]:
    from pipeline.vectors import PassageVectors

    found = PassageVectors(settings.vectors)
    found.need_model(model_digest(settings.model), settings.model)
    if not found.count:
        raise PipelineError(f"{settings.vectors}: holds no vectors", "encode some passages")
    found.need_whole()
    wishes = Wishes(settings.device, settings.precision, settings.threads)
    model = load_towers(settings.model, wishes, Limits())
    if not model.searchable:
        raise PipelineError(
            f"{shown(settings.model)}: its crossing is no dot product, so it cannot be searched by",
            "rerank with it, or use a model whose crossing is the cosine",
        )
    return found, model


def _rankings(
    settings: DenseSettings,
    topics: Topics,
    found: PassageVectors,
    model: Towers,
    reporter: Reporter,
) -> Iterator[Ranking]:
    """Find passages for every topic, and score and order what is found."""
    import numpy as np

    from pipeline.vectors import best

    docids = found.docids()
    queries = model.encode(list(topics.values()), queries=True)
    if settings.ann:
        proposed = neighbours.Graph(found, reporter).nearest(queries, settings.hits)
    else:
        proposed = iter(_exact(found, queries, settings.hits, reporter))
    for qid, query, rows in zip(topics, queries, proposed, strict=True):
        # Products of matrices differ in last bits with a row's place, and between machines: what
        # is written is summed up again row by row, as a reranker does, so that equal texts tie.
        scores = (found[rows] * query).sum(axis=1, dtype=np.float32)
        scores, rows = best(scores, rows, docids, settings.hits)
        names = [docids[row] for row in rows.tolist()]
        yield Ranking(qid, tuple(map(ScoredDoc, names, scores.tolist())))


def _exact(
    found: PassageVectors,
    queries: NDArray[np.float32],
    hits: int,
    reporter: Reporter,
) -> list[NDArray[np.int64]]:
    """Compare every query with every passage, a block of each at a time; rows of the best.

    So many, and those that rounding alone keeps from them: equal texts must be found together, and
    a topic's hits must not depend on the topics beside it, whatever the product of matrices makes
    of their rows.
    """
    import numpy as np

    kept = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    lowest = np.full(len(queries), -np.inf)  # of the best that were found so far
    # Two sums of `size` products of unit vectors differ by less. Twice: the one that is kept and
    # the one that is left may both have been rounded the wrong way.
    rounding = 2 * found.size * float(np.finfo(np.float32).eps) * np.linalg.norm(queries, axis=1)
    longest = 0.0
    for start in range(0, found.count, BLOCK):
        block = found[slice(start, start + BLOCK)]
        longest = max(longest, float(np.linalg.norm(block, axis=1).max()))
        for first in range(0, len(queries), TOGETHER):
            products = queries[first : first + TOGETHER] @ block.T
            for place, product in enumerate(products, first):
                margin = rounding[place] * longest
                fresh = np.flatnonzero(product >= lowest[place] - margin)
                scores, rows = kept[place]
                scores = np.concatenate([scores, product[fresh]])
                rows = np.concatenate([rows, fresh + start])
                if len(scores) > hits:
                    lowest[place] = np.partition(scores, len(scores) - hits)[len(scores) - hits]
                    among = np.flatnonzero(scores >= lowest[place] - margin)
                    scores, rows = scores[among], rows[among]
                kept[place] = scores, rows
        reporter.advance(start + len(block), found.count, "passages searched")
    return [rows for _, rows in kept]


def _check(settings: DenseSettings) -> None:
    if settings.ann:
        neighbours.need_faiss()
    check_tag(settings.tag)
    if settings.hits < 1:
        raise PipelineError(f"--hits {settings.hits} is out of range", "choose a number 1 or more")
    need_path(settings.topics, "file of topics")
    need_path(settings.vectors / "about.json", "folder of vectors")
