"""Stage: several runs over the same topics -> one.

Reciprocal rank fusion looks at ranks alone (Cormack, Clarke and Büttcher, SIGIR 2009); the weighted
sum at scores, standardised within each topic of each run.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - settings are filled by their types at run time
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import PipelineError
from pipeline.report import SILENT, Reporter
from pipeline.rescore import standardised
from pipeline.stage import Outcome, Recipe, producing
from pipeline.store import digest_file, need_path, scratch_file
from pipeline.textfile import STREAM
from pipeline.trec import Ranking, ScoredDoc, check_tag, write_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.candidates import Candidates

VERSION = 1
Method = Literal["rrf", "weighted"]


@dataclass(frozen=True)
class FuseSettings:
    """What to fuse, and how."""

    runs: tuple[Path, ...]  # two or more; one may be `-`, standard input
    output: Path  # `-`: standard output, without sidecar
    method: Method = "rrf"
    weights: tuple[float, ...] = ()  # of the runs; none: all equal
    k: float = 60.0  # of reciprocal rank fusion: how little the first ranks stand out
    hits: int = 1000  # documents of a topic that are kept
    tag: str = "fuse"
    force: bool = False


def recipe(settings: FuseSettings, read: Sequence[Candidates] = ()) -> Recipe:
    """Name all that determines the run.

    Args:
        read: the runs, where they were read already from streams.

    Raises:
        PipelineError: a setting out of its range, or a run that is not there.
    """
    _check(settings)
    values: dict[str, Any] = {
        "method": settings.method,
        "weights": list(_weights(settings)),
        "hits": settings.hits,
        "tag": settings.tag,
    }
    if settings.method == "rrf":
        values["k"] = settings.k
    digests = [run.digest for run in read] or [digest_file(path) for path in settings.runs]
    inputs = {f"run {number}": digest for number, digest in enumerate(digests, 1)}
    return Recipe("fuse", VERSION, values, inputs)


def fuse(settings: FuseSettings, reporter: Reporter = SILENT) -> Outcome:
    """Fuse unless the run is fresh.

    Counts in the outcome: `topics`, and `incomplete`, the number of those that some run lacks.

    Raises:
        PipelineError: as `recipe` does; or a run that cannot be read.
    """
    _check(settings)
    with ExitStack() as stack:
        if STREAM in map(str, (*settings.runs, settings.output)):
            read = _read(settings, stack)
        else:
            read = []
        if str(settings.output) == STREAM:
            write_run(STREAM, _rankings(settings, read, reporter), settings.tag)
            return Outcome(STREAM, computed=True, counts=_counts(read, reporter))
        with producing(
            settings.output, lambda: recipe(settings, read), force=settings.force, reporter=reporter
        ) as job:
            if job.fresh:
                return job.outcome
            runs = read or _read(settings, stack)
            with job.commit(_counts(runs, reporter)):
                write_run(settings.output, _rankings(settings, runs, reporter), settings.tag)
            return job.outcome


def _read(settings: FuseSettings, stack: ExitStack) -> list[Candidates]:
    """Read runs into scratch files: their topics may come in any order."""
    from pipeline.candidates import Candidates

    return [
        Candidates(path, None, stack.enter_context(scratch_file(settings.output)))
        for path in settings.runs
    ]


def _rankings(
    settings: FuseSettings, runs: Sequence[Candidates], reporter: Reporter
) -> Iterator[Ranking]:
    weights = _weights(settings)
    qids = _qids(runs)
    for done, qid in enumerate(qids, 1):
        answering = [
            (run.ranking(qid), w) for run, w in zip(runs, weights, strict=True) if qid in run
        ]
        rankings, shares = zip(*answering, strict=True)
        if settings.method == "rrf":
            docs = reciprocal_ranks(rankings, shares, settings.k)
        else:
            docs = weighted_sum(rankings, shares)
        yield Ranking(qid, docs[: settings.hits])
        reporter.advance(done, len(qids), "topics")


def _qids(runs: Sequence[Candidates]) -> list[str]:
    """Topics of all runs: those of the first in its order, then what the others add."""
    return list(dict.fromkeys(qid for run in runs for qid in run.qids))


def _counts(runs: Sequence[Candidates], reporter: Reporter) -> dict[str, Any]:
    qids = _qids(runs)
    incomplete = sum(any(qid not in run for run in runs) for qid in qids)
    if incomplete:
        reporter.notice(
            f"{incomplete:,} of {len(qids):,} topics are not in every run; "
            "they are fused from those that answer them"
        )
    return {"topics": len(qids), "incomplete": incomplete}


# ---------------------------------------------------------------- one topic


def reciprocal_ranks(
    rankings: Sequence[Ranking], weights: Sequence[float], k: float = 60.0
) -> tuple[ScoredDoc, ...]:
    """Sum of weight / (k + rank), ranks from 1; a ranking without a document adds nothing to it.

    Equal sums stay in the order of the first ranking, then of the next.
    """
    sums: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, doc in enumerate(ranking.docs, 1):
            sums[doc.docid] = sums.get(doc.docid, 0.0) + weight / (k + rank)
    return _descending(sums)


def weighted_sum(rankings: Sequence[Ranking], weights: Sequence[float]) -> tuple[ScoredDoc, ...]:
    """Weighted mean of scores, each ranking's shifted and scaled to mean 0 and deviation 1.

    A document that a ranking lacks gets the lowest score there: all that is known is that it was
    not found among the better ones. Equal sums stay in the order of the first ranking.
    """
    import numpy as np

    sums = dict.fromkeys((doc.docid for ranking in rankings for doc in ranking.docs), 0.0)
    total = sum(weights) or 1.0
    for ranking, weight in zip(rankings, weights, strict=True):
        scores = standardised(np.array([doc.score for doc in ranking.docs], np.float32)).tolist()
        own = {doc.docid: score for doc, score in zip(ranking.docs, scores, strict=True)}
        lowest = min(scores)
        for docid in sums:
            sums[docid] += weight / total * own.get(docid, lowest)
    return _descending(sums)


def _descending(sums: dict[str, float]) -> tuple[ScoredDoc, ...]:
    ranked = sorted(sums.items(), key=lambda item: item[1], reverse=True)  # stable
    return tuple(ScoredDoc(docid, score) for docid, score in ranked)


# ---------------------------------------------------------------- settings


def _weights(settings: FuseSettings) -> tuple[float, ...]:
    return settings.weights or (1.0,) * len(settings.runs)


def _check(settings: FuseSettings) -> None:
    check_tag(settings.tag)
    if len(settings.runs) < 2:
        raise PipelineError(
            f"{len(settings.runs)} run to fuse",
            "name two or more: pipeline fuse RUN RUN --output RUN",
        )
    if [str(run) for run in settings.runs].count(STREAM) > 1:
        raise PipelineError(
            "standard input is named twice", "give one run as - and the others by name"
        )
    weights = _weights(settings)
    if len(weights) != len(settings.runs):
        raise PipelineError(
            f"{len(settings.runs)} runs and {len(weights)} weights",
            "give --weight once for each run, in their order",
        )
    if not all(w >= 0 and math.isfinite(w) for w in weights) or not sum(weights):
        raise PipelineError(
            f"weights {', '.join(f'{w:g}' for w in weights)}", "use 0 or more, not all of them 0"
        )
    if not 0 <= settings.k < math.inf:
        raise PipelineError(f"--k {settings.k:g} is out of range", "choose a number 0 or more")
    if settings.hits < 1:
        raise PipelineError(f"--hits {settings.hits} is out of range", "choose a number 1 or more")
    for run in settings.runs:
        need_path(run, "run")
        if str(run) != STREAM and run.resolve() == settings.output.resolve():
            raise PipelineError(
                f"{run}: is both read and written", "choose another name for --output"
            )
