"""Measures over rankings and qrels, topic by topic, in the order trec_eval 9 would see.

trec_eval's own code computes whatever it has a measure for (treceval.py). Some that are widely
reported and that it lacks are computed here; ir_measures computes what remains.

Averages run over every judged topic, as `trec_eval -c`: a topic without an answer counts zero, and
so does one without a relevant document.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import PipelineError, shown
from pipeline.notation import DEFAULT_MEASURES, EXAMPLES, MAX_GRADE, Measure, parse_measures
from pipeline.ties import BOUNDED, UNMOVED, Spread, extremes, gain
from pipeline.treceval import RankedTopic, by_rank, groups, trec_eval_call
from pipeline.vectorised import Measured, Vectorised, supported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pipeline.trec import Qrels, Ranking


class Evaluation(NamedTuple):
    """One run against qrels: values by canonical name of measure."""

    per_topic: dict[str, dict[str, float]]
    """Every judged topic, in the order of the qrels."""

    mean: dict[str, float]
    """Over every judged topic; NumQ, NumRet, NumRel and NumRelRet are sums."""

    unanswered: tuple[str, ...]
    """Judged topics for which the run has no document."""

    unjudged: tuple[str, ...]
    """Topics of the run without judgements, ignored."""

    ties: dict[str, Spread]
    """Measures whose value depends on how ties are broken; what cannot change is not here."""

    unbounded: tuple[str, ...] = ()
    """Measures of which nobody here knows the bounds, if the run has ties in a judged topic."""


class Evaluator:
    """Measures against one qrels; holds no ranking longer than a call.

    Raises:
        PipelineError: an unknown measure, one that cannot be computed here, or an absurd grade.
    """

    def __init__(self, qrels: Qrels, measures: Iterable[str] = DEFAULT_MEASURES) -> None:
        self.measures = computable_measures(measures)
        self.names = tuple(measure.name for measure in self.measures)
        limited = any(m.kind == "ERR" or m["dcg"] == "exp-log2" for m in self.measures)
        _check_grades(qrels, GDEVAL_MAX_GRADE if limited else MAX_GRADE)
        self._qrels = qrels
        self._own = [measure for measure in self.measures if _is_own(measure)]
        self._groups = groups(self.measures)
        self._others = [m for m in self.measures if not _is_own(m) and not trec_eval_call(m)]
        self._vectorised: Vectorised | None = None

    def topic(self, ranking: Ranking) -> dict[str, float]:
        """Measure one ranking, in its order; its topic must be judged.

        Raises:
            PipelineError: a document twice, or a score that is not finite.
        """
        if not ranking.docs:
            return self.unanswered(ranking.qid)
        topic = by_rank(ranking, self._qrels[ranking.qid])
        values = {measure.name: _own_value(measure, topic) for measure in self._own}
        for group in self._groups:
            values |= group.values(topic)
        if self._others:
            values |= _by_ir_measures(ranking.qid, self._others, topic)
        return {name: values[name] for name in self.names}

    def unanswered(self, qid: str) -> dict[str, float]:
        """What a judged topic counts when the run has no document for it."""
        nothing = RankedTopic({}, [], self._qrels[qid])
        return {
            measure.name: _own_value(measure, nothing) if _is_own(measure) else 0.0
            for measure in self.measures
        }

    def evaluate(self, rankings: Iterable[Ranking]) -> Evaluation:
        """Measure a run, read one ranking at a time.

        Raises:
            PipelineError: a topic twice, no judged topic at all, and as `topic`.
        """
        answered: dict[str, dict[str, float]] = {}
        seen: set[str] = set()
        tied = _Tied(self._qrels, self.measures)
        for ranking in rankings:
            if ranking.qid in seen:
                raise PipelineError(
                    f"topic {shown(ranking.qid)} is ranked twice", "give one ranking per topic"
                )
            seen.add(ranking.qid)
            if ranking.docs and ranking.qid in self._qrels:
                answered[ranking.qid] = self.topic(ranking)
                tied.take(ranking, answered[ranking.qid])
        unjudged = tuple(sorted(qid for qid in seen if qid not in self._qrels))
        if not answered:
            raise PipelineError(
                f"nothing to evaluate: the run answers no judged topic{_some(unjudged)}",
                f"check that these are the right judgements{_some(self._qrels)}",
            )
        return self._averaged(answered, unjudged, tied)

    def evaluate_file(
        self, path: Path | str, *, identical: bool = True
    ) -> tuple[Evaluation, Measured] | None:
        """Measure a run file as arrays, many times as fast; with what else they tell of it.

        The values are those of `evaluate` over `trec.read_run`, to the last bit. None for measures
        or files that need that way: whatever is wrong with a file is said there.

        Args:
            identical: without it, None also for a run with documents that have their topic's id.
        """
        if not all(map(supported, self.measures)):
            return None
        if self._vectorised is None:
            self._vectorised = Vectorised(self._qrels, self.measures)
        found = self._vectorised.read(path, identical=identical)
        if found is None:
            return None
        return self._averaged(found.per_topic(), found.unjudged, found), found

    def _averaged(
        self,
        answered: dict[str, dict[str, float]],
        unjudged: tuple[str, ...],
        tied: _Tied | Measured,
    ) -> Evaluation:
        per_topic = {qid: answered.get(qid) or self.unanswered(qid) for qid in self._qrels}
        mean = {
            measure.name: _plain_sum(per_topic[qid][measure.name] for qid in sorted(per_topic))
            / (1 if measure.counts else len(per_topic))
            for measure in self.measures
        }
        missing = tuple(qid for qid in self._qrels if qid not in answered)
        return Evaluation(
            per_topic, mean, missing, unjudged, tied.spreads(mean, len(per_topic)), tied.unbounded()
        )


class _Tied:
    """What ties can do, added up topic by topic."""

    def __init__(self, qrels: Qrels, measures: tuple[Measure, ...]) -> None:
        self._qrels = qrels
        self._any = False
        self._below: dict[str, list[float]] = {}
        self._above: dict[str, list[float]] = {}
        self._families: dict[object, tuple[Callable[[int | None], float], list[Measure]]] = {}
        for measure in measures:
            if measure.kind in BOUNDED:
                key, worth = gain(measure)
                self._families.setdefault(key, (worth, []))[1].append(measure)
        self._evaluators: dict[object, Evaluator] = {}
        self._unbounded = [m.name for m in measures if m.kind not in BOUNDED | UNMOVED]

    def take(self, ranking: Ranking, values: dict[str, float]) -> None:
        """Measure both extremes of a topic, where there are any."""
        if len({score for _, score in ranking.docs}) == len(ranking.docs):
            return
        self._any = True
        for key, (worth, measures) in self._families.items():
            orders = extremes(ranking, self._qrels[ranking.qid], worth)
            if orders is None:
                continue
            if key not in self._evaluators:
                names = [measure.name for measure in measures]
                self._evaluators[key] = Evaluator(self._qrels, names)
            worst, best = map(self._evaluators[key].topic, orders)
            for name, value in values.items():
                if name in worst and worst[name] != best[name]:
                    self._below.setdefault(name, []).append(value - worst[name])
                    self._above.setdefault(name, []).append(best[name] - value)

    def spreads(self, mean: dict[str, float], topics: int) -> dict[str, Spread]:
        """The bounds of every mean that can change, in the order of the measures."""
        return {
            name: Spread(
                value - math.fsum(self._below[name]) / topics,
                value + math.fsum(self._above[name]) / topics,
                len(self._below[name]),
            )
            for name, value in mean.items()
            if name in self._below
        }

    def unbounded(self) -> tuple[str, ...]:
        """Measures that ties may change in a way that is not known here."""
        return tuple(self._unbounded) if self._any else ()


def evaluate_rankings(
    qrels: Qrels, rankings: Iterable[Ranking], measures: Iterable[str] = DEFAULT_MEASURES
) -> Evaluation:
    """Measure one run; an `Evaluator` measures several against the same qrels."""
    return Evaluator(qrels, measures).evaluate(rankings)


def computable_measures(names: Iterable[str], level: int | None = None) -> tuple[Measure, ...]:
    """Parse names of measures, and make sure that something here can compute each.

    A binary measure that names no level of relevance gets `level`.

    Raises:
        PipelineError: an unknown name, or a measure whose program is not installed.
    """
    measures = parse_measures(names, level)
    for measure in measures:
        if _is_own(measure) or trec_eval_call(measure):
            continue
        if measure.kind == "RBP":
            raise PipelineError(f"{measure.name} needs a level of relevance", "write RBP(rel=1)")
        from ir_measures import DefaultPipeline

        if not DefaultPipeline.supports(measure.source):
            able = [p for p in DefaultPipeline.providers if p.supports(measure.source)]
            advice = next((p.install_instructions() for p in able), None)
            raise PipelineError(
                f"{measure.name} cannot be computed here",
                f"what computes it is missing: {advice}"
                if advice
                else f"some that can: {EXAMPLES}",
            )
    return measures


def _plain_sum(values: Iterable[float]) -> float:
    """Add up as trec_eval does, whose means then agree to the last bit; `sum` compensates."""
    total = 0.0
    for value in values:
        total += value
    return total


def _some(qids: Iterable[str]) -> str:
    some = [shown(qid) for qid, _ in zip(qids, range(3), strict=False)]
    return f" ({', '.join(some)}, …)" if some else ""


def _check_grades(qrels: Qrels, limit: int) -> None:
    if not qrels:
        raise PipelineError("nothing to evaluate: there are no judgements", "check the qrels")
    for qid, judged in qrels.items():
        if judged and max(judged.values()) > limit:
            docid = max(judged, key=judged.__getitem__)
            raise PipelineError(
                f"topic {shown(qid)}, document {shown(docid)}: "
                f"grade {judged[docid]} is above {limit:,}",
                "grades are small whole numbers; ERR and nDCG(dcg='exp-log2') know 0 to 4",
            )


# ---------------------------------------------------------------- computed here

GDEVAL_MAX_GRADE = 4


def _is_own(measure: Measure) -> bool:
    """Whether it is computed here: widely reported, and not in trec_eval or not alike there."""
    match measure.kind:
        case "RBP":
            return measure["rel"] is not None
        case "nDCG":
            plain = not measure["judged_only"] and not measure["gains"]
            return bool(measure["dcg"] == "exp-log2" and plain)
    return measure.kind in ("Judged", "NumQ", "NumRel", "NumRet", "ERR")


def _own_value(measure: Measure, topic: RankedTopic) -> float:
    if measure.kind == "NumQ":
        return 1.0
    if measure.kind == "NumRel":
        return float(sum(grade >= measure["rel"] for grade in topic.judgements.values()))
    if measure.kind == "NumRet" and measure["rel"] is None:
        return float(len(topic.grades))
    top = topic.grades[: measure["cutoff"]]
    judged = [grade for grade in top if grade is not None]
    if measure.kind == "NumRet":
        return float(sum(grade >= measure["rel"] for grade in judged))
    if measure.kind == "Judged":
        return len(judged) / len(top) if top else 0.0
    if measure.kind == "RBP":
        relevant = (i for i, g in enumerate(top) if g is not None and g >= measure["rel"])
        return float((1 - measure["p"]) * sum(measure["p"] ** i for i in relevant))
    if measure.kind == "ERR":
        return _err(top)
    best = _dcg(sorted(topic.judgements.values(), reverse=True)[: measure["cutoff"]])
    return _dcg(top) / best if best else 0.0


def _dcg(grades: Sequence[int | None]) -> float:
    """Discounted cumulative gain with exponential gains, as gdeval has it."""
    ranked = [(rank, grade) for rank, grade in enumerate(grades, 1) if grade and grade > 0]
    return sum((2.0**grade - 1) / math.log2(rank + 1) for rank, grade in ranked)


def _err(grades: Sequence[int | None]) -> float:
    """Expected reciprocal rank as gdeval computes it: the highest grade is 4 whatever the qrels."""
    value, unsatisfied = 0.0, 1.0
    for rank, grade in enumerate(grades, 1):
        if grade and grade > 0:
            satisfied = (2.0**grade - 1) / 2.0**GDEVAL_MAX_GRADE
            value += unsatisfied * satisfied / rank
            unsatisfied *= 1 - satisfied
    return value


# ---------------------------------------------------------------- left to ir_measures


def _by_ir_measures(qid: str, measures: list[Measure], topic: RankedTopic) -> dict[str, float]:
    import ir_measures

    values = {measure.name: 0.0 for measure in measures}
    sources = [measure.source for measure in measures]
    try:
        for metric in ir_measures.iter_calc(sources, {"t": topic.judgements}, {"t": topic.scores}):
            values[str(metric.measure)] = float(metric.value)
        if not all(map(math.isfinite, values.values())):
            raise ValueError("not a finite number")
    except Exception as error:
        raise PipelineError(
            f"topic {shown(qid)}: {', '.join(values)}: {type(error).__name__}: {error}",
            "leave this measure out; what ir_measures computes it with has failed",
        ) from error
    return values
