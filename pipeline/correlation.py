"""How alike two rankings of one topic are, whatever was judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PERSISTENCE = 0.9  # of rank-biased overlap: its first ten ranks carry 86 % of the weight


def kendall(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Kendall's tau of the documents that both rankings hold; None for fewer than two.

    Rankings have no ties, so tau-a, tau-b and the rank correlation of the ranks are one.
    """
    place = {docid: rank for rank, docid in enumerate(second)}
    common = [place[docid] for docid in first if docid in place]
    count = len(common)
    if count < 2:
        return None
    return 1 - 4 * _inversions(common)[0] / (count * (count - 1))


def _inversions(ranks: list[int]) -> tuple[int, list[int]]:
    """Count pairs in the wrong order while sorting by merging."""
    if len(ranks) < 2:
        return 0, ranks
    middle = len(ranks) // 2
    left_count, left = _inversions(ranks[:middle])
    right_count, right = _inversions(ranks[middle:])
    merged, at, count = [], 0, left_count + right_count
    for rank in right:
        while at < len(left) and left[at] < rank:
            merged.append(left[at])
            at += 1
        count += len(left) - at
        merged.append(rank)
    return count, merged + left[at:]


def rbo(first: Sequence[str], second: Sequence[str], persistence: float = PERSISTENCE) -> float:
    """Rank-biased overlap, extrapolated beyond the end of both lists.

    Webber, Moffat and Zobel (TOIS 2010), equation 32: 1 for the same ranking, 0 for two without a
    document in common. Lists of different lengths are fine; one that is empty shares nothing.
    """
    if not first or not second:
        return 1.0 if not first and not second else 0.0
    short, long = sorted((first, second), key=len)
    depth_short, depth_long = len(short), len(long)
    seen_short: set[str] = set()
    seen_long: set[str] = set()
    overlap, at_short, total, weight = 0, 0, 0.0, 1.0
    for depth, docid in enumerate(long, 1):
        weight *= persistence
        overlap += docid in seen_short
        seen_long.add(docid)
        if depth <= depth_short:
            other = short[depth - 1]
            overlap += other in seen_long
            seen_short.add(other)
        if depth == depth_short:
            at_short = overlap
        total += weight * overlap / depth
        if depth > depth_short:
            total += weight * at_short * (depth - depth_short) / (depth_short * depth)
    beyond = (overlap - at_short) / depth_long + at_short / depth_short
    return min(1.0, (1 - persistence) / persistence * total + beyond * weight)
