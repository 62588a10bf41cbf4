"""Ties of a ranking: the orders of tied documents that serve a measure best and worst.

Wherever a measure never falls when, of two neighbours, the one of more gain goes first, the best
order puts every tied group by gain, the worst the other way round. That holds for the measures in
`BOUNDED`: nDCG, ERR and RBP by exchanging neighbours, the binary ones because a relevant document
that moves up lowers no precision.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

from pipeline.trec import Ranking, ScoredDoc

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.notation import Measure

BOUNDED = frozenset(
    {"AP", "Bpref", "ERR", "IPrec", "Judged", "P", "R", "RBP", "RR", "Rprec", "Success", "nDCG"}
)
UNMOVED = frozenset({"NumQ", "NumRel", "NumRet", "SetAP", "SetF", "SetP", "SetR"})
"""Measures of a set: order is nothing to them."""


class Spread(NamedTuple):
    """What ties can do to one measure of one run."""

    worst: float  # the mean, were every tie broken against the run
    best: float
    topics: int  # in how many the value can change


def gain(measure: Measure) -> tuple[object, Callable[[int | None], float]]:
    """What tied documents are to be ordered by for a measure, and a key that tells such apart."""
    if measure.kind == "Judged":
        return "judged", lambda grade: float(grade is not None)
    gains = dict(measure["gains"] or {})
    return tuple(sorted(gains.items())), lambda grade: max(gains.get(grade or 0, grade or 0), 0)


def extremes(
    ranking: Ranking, judged: dict[str, int], worth: Callable[[int | None], float]
) -> tuple[Ranking, Ranking] | None:
    """The worst and the best order of tied documents, or None where no order matters."""
    if len({score for _, score in ranking.docs}) == len(ranking.docs):
        return None
    worst: list[ScoredDoc] = []
    best: list[ScoredDoc] = []
    for _, tied in groupby(ranking.docs, key=lambda doc: doc.score):
        group = sorted(tied, key=lambda doc: worth(judged.get(doc.docid)))
        worst += group
        best += reversed(group)
    gains = [worth(judged.get(doc.docid)) for doc in worst]
    scores = [doc.score for doc in worst]
    if all(
        a == b or s != t for (a, b), (s, t) in zip(pairwise(gains), pairwise(scores), strict=True)
    ):
        return None
    return Ranking(ranking.qid, tuple(worst)), Ranking(ranking.qid, tuple(best))
