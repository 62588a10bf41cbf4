"""Measures over the judged documents of a whole run at once, equal to trec_eval's to the last bit.

Sums run over the documents of a topic in rank order, in doubles, as trec_eval's do; logarithms are
those of the C library, as trec_eval's are. What is not here (`supported`) is for `measures.py`,
topic by topic; tests hold the two against each other and against pytrec_eval.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.judged import Hits, JudgedRun, Judgements
from pipeline.ties import Spread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.notation import Measure
    from pipeline.trec import Qrels

KINDS = frozenset({"AP", "Judged", "P", "R", "RR", "Success", "nDCG"})


def supported(measure: Measure) -> bool:
    """Whether a measure can be computed here."""
    if measure.kind not in KINDS or measure["judged_only"] or measure["gains"]:
        return False
    return measure.kind != "nDCG" or bool(measure["dcg"] == "log2")


class Measured:
    """Values of every judged topic that a run answers."""

    def __init__(
        self, run: JudgedRun, qrels: Qrels, measures: Sequence[Measure], ideals: Ideals
    ) -> None:
        import numpy as np

        self.unjudged = tuple(sorted(qid for qid in run.qids if qid not in qrels))
        self.depth = int(run.sizes.max())
        answered = np.array([qid in qrels for qid in run.qids], bool)
        self.qids = [qid for qid in run.qids if qid in qrels]
        self._measures = measures
        self._sizes = run.sizes[answered]
        self._rows = np.array([ideals.place[qid] for qid in self.qids], np.int64)
        self._ideals = ideals
        place = np.cumsum(answered) - 1
        self._hits = run.hits._replace(topic=place[run.hits.topic])
        self.values = {m.name: self._value(m, self._hits) for m in measures}

    def per_topic(self) -> dict[str, dict[str, float]]:
        """Values by topic and measure."""
        names = list(self.values)
        columns = zip(*(column.tolist() for column in self.values.values()), strict=True)
        return {
            qid: dict(zip(names, row, strict=True))
            for qid, row in zip(self.qids, columns, strict=True)
        }

    def judged(self, rank: int) -> float:
        """Judged@rank, added up over the topics, in the order of the run."""
        return _added(self._judged(rank, self._hits))

    def _judged(self, cutoff: int | None, hits: Hits) -> NDArray[np.float64]:
        import numpy as np

        inside = hits.topic if cutoff is None else hits.topic[hits.rank <= cutoff]
        seen = self._sizes if cutoff is None else np.minimum(self._sizes, cutoff)
        return _quotient(np.bincount(inside, minlength=len(self.qids)), seen)

    def spreads(self, mean: dict[str, float], topics: int) -> dict[str, Spread]:
        """Measures whose mean, over so many topics, can change by the order of tied documents."""
        spreads = {}
        orders = {True: self._extremes(judged=True), False: self._extremes(judged=False)}
        for measure in self._measures:
            found = orders[measure.kind == "Judged"]
            if found is None:
                continue
            worst, best = (self._value(measure, order) for order in found)
            value, differ = self.values[measure.name], worst != best
            if bool(differ.any()):
                below, above = (value - worst)[differ], (best - value)[differ]
                spreads[measure.name] = Spread(
                    mean[measure.name] - math.fsum(below.tolist()) / topics,
                    mean[measure.name] + math.fsum(above.tolist()) / topics,
                    len(below),
                )
        return spreads

    def unbounded(self) -> tuple[str, ...]:
        """None: the bounds of every measure here are known."""
        return ()

    def _extremes(self, *, judged: bool) -> tuple[Hits, Hits] | None:
        """Put tied documents of most gain last, and first.

        Gain is the grade, or, if `judged` is all that counts, one for every judged document.
        Unjudged and worthless ones fill the other places of a group: where these are, no measure
        sees. So equal documents need no order of their own.
        """
        import numpy as np

        hits = self._hits
        if not bool((hits.tied > 1).any()):
            return None
        if not judged:
            hits = Hits(*(column[hits.grade > 0] for column in hits))
        worth = np.ones_like(hits.grade) if judged else hits.grade
        order = np.lexsort((-worth, hits.first, hits.topic))
        hits = Hits(*(column[order] for column in hits))
        new = np.ones(len(order), bool)
        new[1:] = (hits.topic[1:] != hits.topic[:-1]) | (hits.first[1:] != hits.first[:-1])
        begins = np.flatnonzero(new)
        place = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
        best = hits._replace(rank=hits.first + place)
        worst = hits._replace(rank=hits.first + hits.tied - 1 - place)
        order = np.lexsort((worst.rank, worst.topic))
        return Hits(*(column[order] for column in worst)), best

    def _value(self, measure: Measure, hits: Hits) -> NDArray[np.float64]:
        """One value for each topic; hits stand by topic and rank."""
        import numpy as np

        cutoff, topics = measure["cutoff"], len(self.qids)
        topic, rank, grade = hits[:3]
        inside = np.ones(len(rank), bool) if cutoff is None else rank <= cutoff
        if measure.kind == "nDCG":
            inside &= grade > 0
            gains = grade[inside] / _logarithms(rank[inside])
            gained = np.bincount(topic[inside], gains, topics)
            return _quotient(gained, self._ideals.dcg(cutoff)[self._rows])
        if measure.kind == "Judged":
            return self._judged(cutoff, hits)
        inside &= grade >= (measure["rel"] or 1)
        topic, rank = topic[inside], rank[inside]
        found = np.bincount(topic, minlength=topics)
        match measure.kind:
            case "P":
                return found / float(cutoff or 1)
            case "R":
                return _quotient(found, self._relevant(measure))
            case "Success":
                return (found > 0).astype(np.float64)
        place = np.arange(1, len(topic) + 1) - np.repeat(np.cumsum(found) - found, found)
        if measure.kind == "RR":
            first = place == 1
            return np.bincount(topic[first], 1.0 / rank[first], topics)
        return _quotient(np.bincount(topic, place / rank, topics), self._relevant(measure))

    def _relevant(self, measure: Measure) -> NDArray[np.int64]:
        return self._ideals.relevant(measure["rel"] or 1)[self._rows]


class Ideals:
    """What can be had at best, for every judged topic: numbers of relevant documents, gains."""

    def __init__(self, qrels: Qrels) -> None:
        import numpy as np

        self.place = {qid: i for i, qid in enumerate(qrels)}
        counts = np.array([len(judged) for judged in qrels.values()], np.int64)
        topic = np.repeat(np.arange(len(counts)), counts)
        every = (grade for judged in qrels.values() for grade in judged.values())
        grade = np.fromiter(every, np.int64, int(counts.sum()))
        order = np.lexsort((-grade, topic))
        self._topic, self._grade = topic[order], grade[order]
        self._rank = np.arange(1, len(topic) + 1) - np.repeat(np.cumsum(counts) - counts, counts)

    def relevant(self, level: int) -> NDArray[np.int64]:
        """How many documents have at least this grade."""
        import numpy as np

        return np.bincount(self._topic[self._grade >= level], minlength=len(self.place))

    def dcg(self, cutoff: int | None) -> NDArray[np.float64]:
        """The largest discounted cumulative gain."""
        import numpy as np

        wanted = self._grade > 0
        if cutoff is not None:
            wanted &= self._rank <= cutoff
        gains = self._grade[wanted] / _logarithms(self._rank[wanted])
        return np.bincount(self._topic[wanted], gains, len(self.place))


class Vectorised:
    """Measures of run files against one qrels; made once for any number of runs."""

    def __init__(self, qrels: Qrels, measures: Sequence[Measure]) -> None:
        self._qrels, self._measures = qrels, measures
        self._judgements, self._ideals = Judgements(qrels), Ideals(qrels)

    def read(self, path: Path | str, *, identical: bool) -> Measured | None:
        """Measure a run; None for one that has to be read carefully, or answers no judged topic."""
        run = self._judgements.read(path, identical=identical)
        if run is None or not any(qid in self._qrels for qid in run.qids):
            return None
        return Measured(run, self._qrels, self._measures, self._ideals)


def _added(values: NDArray[np.float64]) -> float:
    """Add one after the other, as a loop does; numpy's own sum goes by pairs."""
    total = 0.0
    for value in values.tolist():
        total += value
    return total


def _logarithms(rank: NDArray[np.int64]) -> NDArray[np.float64]:
    """Discounts by rank; numpy's own logarithm may differ from C's in the last bit."""
    import numpy as np

    ranks, back = np.unique(rank, return_inverse=True)
    return np.array([math.log2(r + 1) for r in ranks.tolist()], np.float64)[back]


def _quotient(
    above: NDArray[np.float64] | NDArray[np.int64], below: NDArray[np.float64] | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Divide; zero where there is nothing to divide by."""
    import numpy as np

    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
