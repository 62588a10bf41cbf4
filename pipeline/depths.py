"""Effectiveness against depth: what a run would reach if fewer candidates had been reranked.

One reranking gives every depth: the first `depth` candidates of the first stage in the order of the
reranked run, then the others in the order of the first stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import PipelineError, shown, shown_path
from pipeline.measures import Evaluator
from pipeline.stage import read_sidecar
from pipeline.trec import Ranking, ScoredDoc, read_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.trec import Qrels

DEPTHS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Depths(NamedTuple):
    """Means over all judged topics, at each depth."""

    depths: tuple[int, ...]
    means: dict[str, tuple[float, ...]]  # measure -> one value for each depth
    exact: bool  # False where the run's sidecar says that first-stage scores were mixed in

    def cells(self) -> list[list[str]]:
        """Depths down, measures across."""
        rows = [["depth", *self.means]]
        for place, depth in enumerate(self.depths):
            rows.append([f"{depth}", *(f"{values[place]:.4f}" for values in self.means.values())])
        return rows


def by_depth(
    qrels: Qrels, first_stage: Path | str, reranked: Path | str, measures: Sequence[str]
) -> Depths:
    """Measure a reranking at every depth that was scored; 0 is the first stage.

    Exact where the reranked order owes nothing to the first stage's scores: mixing standardises
    them over the candidates that were scored. Memory holds the document ids of the first stage.

    Raises:
        PipelineError: a topic or document of the reranked run is not in the first stage's run.
    """
    candidates = _candidates(first_stage)
    settings = _settings(reranked)
    deepest = max(ids.count("\n") + 1 for ids in candidates.values())
    if isinstance(scored := settings.get("depth"), int) and 0 < scored < deepest:
        deepest = scored  # below, nothing was reranked
    depths = (*(d for d in DEPTHS if d < deepest), deepest)
    evaluator = Evaluator(qrels, measures)
    found = _measured(evaluator, qrels, (candidates, first_stage, reranked), depths)
    means = {
        measure.name: tuple(
            sum(found.values[depth][measure.name].values()) / (1 if measure.counts else len(qrels))
            for depth in depths
        )
        for measure in evaluator.measures
    }
    return Depths(depths, means, found.exact)


class AtDepths(NamedTuple):
    """Values of every judged topic at some depths, and how many pairs each depth scores."""

    values: dict[int, dict[str, dict[str, float]]]  # depth -> measure -> qid -> value
    pairs: dict[int, int]
    exact: bool


def values_at(
    qrels: Qrels,
    first_stage: Path | str,
    reranked: Path | str,
    measures: Sequence[str],
    depths: Sequence[int],
) -> AtDepths:
    """Measure a reranking at these depths, topic by topic.

    Raises:
        PipelineError: as `by_depth`.
    """
    files = _candidates(first_stage), first_stage, reranked
    return _measured(Evaluator(qrels, measures), qrels, files, depths)


def _measured(
    evaluator: Evaluator,
    qrels: Qrels,
    files: tuple[dict[str, str], Path | str, Path | str],
    depths: Sequence[int],
) -> AtDepths:
    """Measure every judged topic at ascending depths: candidates, their run, the reranked one."""
    missing = {qid: evaluator.unanswered(qid) for qid in qrels}
    found = {
        depth: {name: {qid: missing[qid][name] for qid in qrels} for name in evaluator.names}
        for depth in depths
    }
    pairs = dict.fromkeys(depths, 0)
    for qid, first, second in _both(*files):
        values: dict[str, float] = {}
        before = -1
        for depth in depths:
            pairs[depth] += min(depth, len(first))
            if qid not in qrels:
                continue
            if before < len(first):  # else nothing is left to reorder
                values = evaluator.topic(_at(qid, first, second, depth))
            before = depth
            for name, value in values.items():
                found[depth][name][qid] = value
    return AtDepths(found, pairs, not _is_mixed(_settings(files[2])))


def _candidates(first_stage: Path | str) -> dict[str, str]:
    """Document ids of each topic, as one text."""
    return {
        ranking.qid: "\n".join(doc.docid for doc in ranking.docs)
        for ranking in read_run(first_stage)
    }


def _settings(run: Path | str) -> dict[str, Any]:
    """Read from its sidecar how a run was reranked; nothing is known of a run of others."""
    recipe = (read_sidecar(Path(run)) or {}).get("recipe", {})
    settings = recipe.get("settings") if recipe.get("stage") == "rerank" else None
    return settings if isinstance(settings, dict) else {}


def _is_mixed(settings: dict[str, Any]) -> bool:
    """Whether the first stage's scores were mixed in."""
    weight = settings.get("interpolate")
    return isinstance(weight, int | float) and weight < 1


def _both(
    candidates: dict[str, str], first_stage: Path | str, reranked: Path | str
) -> Iterator[tuple[str, list[str], dict[str, int]]]:
    """Yield each topic: its candidates in first-stage order, and their places in the new one."""
    left = dict.fromkeys(candidates)
    for ranking in read_run(reranked):
        first = candidates[ranking.qid].split("\n") if ranking.qid in candidates else []
        known = set(first)
        place = {doc.docid: rank for rank, doc in enumerate(ranking.docs)}
        if strange := [docid for docid in place if docid not in known]:
            raise PipelineError(
                f"{shown_path(reranked)}: topic {shown(ranking.qid)}: document "
                f"{shown(strange[0])} is not among its candidates in {shown_path(first_stage)}",
                "name the run that was reranked first, and then what came of it",
            )
        left.pop(ranking.qid)
        yield ranking.qid, first, place
    for qid in left:
        yield qid, candidates[qid].split("\n"), {}


def _at(qid: str, first: list[str], place: dict[str, int], depth: int) -> Ranking:
    last = len(place)
    head = sorted(first[:depth], key=lambda docid: place.get(docid, last))
    docids = [*head, *first[depth:]]
    return Ranking(qid, tuple(ScoredDoc(docid, -rank) for rank, docid in enumerate(docids)))
