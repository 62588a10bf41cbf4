"""Measures that trec_eval has, computed by trec_eval's own code (pytrec_eval).

It is given ranks, not documents: rank i gets a name and a score of its own, so that every measure
takes the order of a `Ranking` as it is, whatever the ids, the ties and the precision of the scores.
RR@10 too, which ir_measures leaves to a provider that breaks ties by docid ascending.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import PipelineError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.notation import Measure
    from pipeline.trec import Ranking

# ir_measures name -> trec_eval's name of the measure without and with a parameter
_TREC_EVAL = {
    "AP": ("map", "map_cut"),
    "Bpref": ("bpref", ""),
    "IPrec": ("", "iprec_at_recall"),
    "P": ("", "P"),
    "R": ("", "recall"),
    "RR": ("recip_rank", ""),
    "Rprec": ("Rprec", ""),
    "SetAP": ("set_map", ""),
    "SetF": ("set_F", "set_F"),
    "SetP": ("set_P", ""),
    "SetR": ("set_recall", ""),
    "Success": ("", "success"),
    "infAP": ("infAP", ""),
    "nDCG": ("ndcg", "ndcg_cut"),
}


class RankedTopic(NamedTuple):
    """A ranking and its judgements, with names of ranks in the place of documents."""

    scores: dict[str, float]  # name of rank -> score, best first
    grades: list[int | None]  # by rank; None: unjudged
    judgements: dict[str, int]  # name of rank, or another one when not retrieved -> grade


@lru_cache(maxsize=8)
def _ranks(documents: int) -> dict[str, float]:
    """Name and score that many ranks; both decrease, so that nothing could order otherwise."""
    return {f"{score:08d}": float(score) for score in range(documents, 0, -1)}


def by_rank(ranking: Ranking, judged: dict[str, int]) -> RankedTopic:
    """Put ranks in the place of documents: whatever reads the result sees the ranking's order.

    Raises:
        PipelineError: a document twice, or a score that is not finite.
    """
    docids, scores = zip(*ranking.docs, strict=True)
    retrieved = set(docids)
    if len(retrieved) != len(docids):
        raise PipelineError(
            f"topic {shown(ranking.qid)}: a document is ranked twice", "rank each document once"
        )
    if not math.isfinite(sum(scores)):
        raise PipelineError(
            f"topic {shown(ranking.qid)}: a score is not finite", "rank by finite scores"
        )
    ranks = _ranks(len(docids))
    grades = list(map(judged.get, docids))
    judgements = {
        rank: grade for rank, grade in zip(ranks, grades, strict=True) if grade is not None
    }
    if len(judgements) < len(judged):
        missing = (grade for docid, grade in judged.items() if docid not in retrieved)
        judgements |= {f"not retrieved {i}": grade for i, grade in enumerate(missing)}
    return RankedTopic(ranks, grades, judgements)


class Call(NamedTuple):
    """A measure as trec_eval knows it."""

    name: str
    parameter: str
    result: str  # the name it gives the value


def trec_eval_call(measure: Measure) -> Call | None:
    """Translate a measure, or None where trec_eval has no such one."""
    if measure.kind not in _TREC_EVAL or (measure.kind == "nDCG" and measure["dcg"] != "log2"):
        return None
    plain, with_parameter = _TREC_EVAL[measure.kind]
    match measure.kind:
        case "SetP" if measure["relative"]:
            return Call("set_relative_P", "", "set_relative_P")
        case "SetF" if measure["beta"] != 1:
            return Call(with_parameter, repr(measure["beta"]), plain)
        case "IPrec":
            recall = measure["recall"]
            return Call(with_parameter, f"{recall:.9f}", f"{with_parameter}_{recall:.2f}")
        case "RR":  # trec_eval knows no cutoff: Group.values applies it
            return Call(plain, "", plain)
    if measure["cutoff"] is None:
        return Call(plain, "", plain)
    cutoff = str(measure["cutoff"])
    return Call(with_parameter, cutoff, f"{with_parameter}_{cutoff}")


class Group:
    """Measures that one call of trec_eval can compute: the same options, no clash of names."""

    def __init__(self, level: int, judged_only: bool, gains: dict[int, int]) -> None:
        self.level, self.judged_only, self.gains = level, judged_only, gains
        self._members: list[tuple[Measure, Call]] = []

    def take(self, measure: Measure, call: Call) -> bool:
        """Add a measure, or refuse: two parameters whose values trec_eval gives one name."""
        for _, other in self._members:
            if other.result == call.result and other.parameter != call.parameter:
                return False
        self._members.append((measure, call))
        return True

    def values(self, topic: RankedTopic) -> dict[str, float]:
        """Values of the group's measures by canonical name."""
        # The class below pytrec_eval's own, which would parse the names anew for every topic.
        from pytrec_eval_ext import RelevanceEvaluator  # type: ignore[import-not-found]

        # trec_eval reads any negative grade as "in the pool, not judged". It must see one grade
        # that is not negative: with none it reads memory it has not written.
        grades = {key: max(self.gains.get(g, g), -1) for key, g in topic.judgements.items()}
        if max(grades.values(), default=-1) < 0:
            grades["no document"] = 0
        evaluator = RelevanceEvaluator(
            {"t": grades}, self._request(), self.level, int(self.judged_only)
        )
        results = evaluator.evaluate({"t": topic.scores})["t"]
        values = {measure.name: results[call.result] for measure, call in self._members}
        for measure, _ in self._members:
            value, cutoff = values[measure.name], measure["cutoff"]
            if measure.kind == "RR" and cutoff and value and round(1 / value) > cutoff:
                values[measure.name] = 0.0
        return values

    def _request(self) -> set[str]:
        """Name the measures as trec_eval's `-m` does: `map`, `ndcg_cut.10,20`."""
        parameters: dict[str, set[str]] = {}
        for _, call in self._members:
            parameters.setdefault(call.name, set()).update([call.parameter] * bool(call.parameter))
        return {
            f"{name}.{','.join(sorted(some, key=float))}" if some else name
            for name, some in parameters.items()
        }


def groups(measures: Iterable[Measure]) -> list[Group]:
    """Share out the measures that trec_eval has among as few calls as compute them all."""
    found: list[Group] = []
    # nDCG looks at no level of relevance, so it goes last, with any group that suits.
    for measure in sorted(measures, key=lambda m: m.kind == "nDCG"):
        call = trec_eval_call(measure)
        if call is None:
            continue
        level, options = measure["rel"], (bool(measure["judged_only"]), measure["gains"] or {})
        for group in found:
            suits = level in (None, group.level) and options == (group.judged_only, group.gains)
            if suits and group.take(measure, call):
                break
        else:
            found.append(Group(1 if level is None else level, *options))
            found[-1].take(measure, call)
    return found
