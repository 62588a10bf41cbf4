"""Paired tests over topics: is a difference between two runs more than luck?

All take differences, one for each topic. The randomisation test and the bootstrap take those of
several comparisons at once, shape (topics, comparisons), and draw the same samples for all of them.
Recommended reading: Smucker, Allan and Carterette (CIKM 2007) on the tests, Sakai (SIGIR 2006) on
the bootstrap, Holm (1979) on several comparisons.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

Test = Literal["randomisation", "t", "wilcoxon", "bootstrap"]
TESTS: tuple[Test, ...] = get_args(Test)
Correction = Literal["holm", "bonferroni", "none"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)

ALL_SIGNS = 16  # topics up to which every assignment of signs is looked at: 65,536
ALL_RANKS = 50  # topics up to which Wilcoxon's statistic has its exact distribution
CELLS = 1 << 21  # numbers of a block of samples held in memory
SAME = 1e-12  # statistics closer than this, relative to their size, are ties


class Interval(NamedTuple):
    """Two ends of a confidence interval."""

    low: float
    high: float


# ---------------------------------------------------------------- Student's t


def t_statistic(differences: Vector) -> float:
    """Mean over its standard error; infinite where all differences are the same and not zero."""
    mean, spread = float(differences.mean()), _spread(differences)
    if spread == 0.0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / (spread / math.sqrt(len(differences)))


def t_test(differences: Vector) -> float:
    """Two-sided p-value of the paired t-test."""
    if len(differences) < 2:
        return 1.0
    return student_t_p(t_statistic(differences), len(differences) - 1)


def t_interval(differences: Vector, level: float = 0.95) -> Interval:
    """Confidence interval of the mean difference by Student's t."""
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return Interval(-math.inf, math.inf)
    half = student_t_quantile(1 - level, count - 1) * _spread(differences) / math.sqrt(count)
    return Interval(mean - half, mean + half)


def effect_size(differences: Vector) -> float:
    """Cohen's d of paired differences: their mean in units of their own standard deviation."""
    spread = _spread(differences)
    if spread == 0.0:
        mean = float(differences.mean())
        return math.copysign(math.inf, mean) if mean else 0.0
    return float(differences.mean()) / spread


def detectable(differences: Vector, level: float = 0.05) -> float:
    """Say which true difference a t-test over so many topics of this spread finds 4 times in 5."""
    count = len(differences)
    if count < 2:
        return math.inf
    quantiles = student_t_quantile(level, count - 1) + student_t_quantile(0.4, count - 1)
    return quantiles * _spread(differences) / math.sqrt(count)


def student_t_p(t: float, freedom: float) -> float:
    """Probability that |T| is at least |t|, for Student's T of so many degrees of freedom."""
    if math.isinf(t):
        return 0.0
    square = t * t
    return _beta(freedom / (freedom + square), square / (freedom + square), freedom / 2, 0.5)


def student_t_quantile(p: float, freedom: float) -> float:
    """Return the t that |T| exceeds with probability `p`: the inverse of `student_t_p`."""
    low, high = 0.0, 1.0
    while student_t_p(high, freedom) > p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_t_p(middle, freedom) > p else (low, middle)
    return (low + high) / 2


def _spread(differences: Vector) -> float:
    """Sample standard deviation; rounding errors of equal differences are no spread."""
    if len(differences) < 2 or bool(np.all(differences == differences[0])):
        return 0.0
    return float(differences.std(ddof=1))


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b); `rest` is 1 - x, given for its digits."""
    if x <= 0.0 or rest <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta(rest, x, b, a)
    front = a * math.log(x) + b * math.log(rest)
    front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(front) / a / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz."""
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, 10_000):
        half, odd = divmod(step, 2)
        if odd:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        d = 1 / ((1 + term * d) or tiny)
        c = (1 + term / c) or tiny
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value


# ---------------------------------------------------------------- Wilcoxon


def wilcoxon(differences: Vector) -> float:
    """Two-sided p-value of the signed-rank test; topics without a difference are left out.

    Exact up to 50 topics, given the ties that there are; above, the normal approximation with the
    correction for ties and none for continuity, as SciPy has it.
    """
    changed = differences[differences != 0]
    count = len(changed)
    if count == 0:
        return 1.0
    doubled = _doubled_ranks(np.abs(changed))
    positive = int(doubled[changed > 0].sum())
    if count <= ALL_RANKS:
        return _exact_wilcoxon(doubled, positive)
    _, ties = np.unique(doubled, return_counts=True)
    variance = count * (count + 1) * (2 * count + 1) / 24 - float((ties**3 - ties).sum()) / 48
    z = (positive / 2 - count * (count + 1) / 4) / math.sqrt(variance)
    return math.erfc(abs(z) / math.sqrt(2))


def _doubled_ranks(sizes: Vector) -> NDArray[np.int64]:
    """Ranks from 1, equal sizes sharing their mean rank; times two, and so whole numbers."""
    _, places, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((2 * last - counts + 1)[places], np.int64)


def _exact_wilcoxon(doubled: NDArray[np.int64], positive: int) -> float:
    """Probability of a sum of positive ranks at least as far from its mean, over all signs."""
    chance = np.zeros(int(doubled.sum()) + 1)
    chance[0] = 1.0
    for rank in doubled.tolist():
        moved = np.zeros_like(chance)
        moved[rank:] = chance[:-rank]
        chance = (chance + moved) / 2
    below, above = float(chance[: positive + 1].sum()), float(chance[positive:].sum())
    return min(1.0, 2 * min(below, above))


# ---------------------------------------------------------------- randomisation


def randomisation(differences: Vector, samples: int, seed: int) -> Vector:
    """Two-sided p-values of Fisher's randomisation test of the mean, shape (comparisons,).

    Up to 16 topics that differ, every assignment of signs is counted, and the value is exact.
    Above, `samples` random ones; the observed one is counted among them, so that p is never zero.
    """
    p = np.ones(differences.shape[1])
    many = []
    for column in range(differences.shape[1]):
        changed = differences[differences[:, column] != 0, column]
        if len(changed) > ALL_SIGNS:
            many.append(column)
        elif len(changed):
            p[column] = _all_signs(changed)
    if not many:
        return p
    some = np.ascontiguousarray(differences[:, many])
    total = some.sum(axis=0)
    least = np.abs(total) - SAME * np.abs(some).sum(axis=0)
    reached = np.ones(len(many))
    for signs in _signs(len(some), samples, seed):
        reached += (np.abs(2 * (signs @ some) - total) >= least).sum(axis=0)
    p[many] = reached / (samples + 1)
    return p


def _all_signs(changed: Vector) -> float:
    sums = np.zeros(1)
    for difference in changed.tolist():
        sums = np.concatenate([sums + difference, sums - difference])
    least = abs(float(changed.sum())) - SAME * float(np.abs(changed).sum())
    return float((np.abs(sums) >= least).mean())


def _signs(topics: int, samples: int, seed: int) -> Iterator[Vector]:
    """Draw blocks of zeros and ones, shape (samples of the block, topics)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    width = (topics + 7) // 8
    for size in _blocks(samples, topics):
        octets = np.frombuffer(generator.bytes(size * width), np.uint8).reshape(size, width)
        yield np.unpackbits(octets, axis=1, count=topics).astype(np.float64)


def _blocks(samples: int, topics: int) -> Iterator[int]:
    most = max(1, CELLS // topics)
    for start in range(0, samples, most):
        yield min(most, samples - start)


# ---------------------------------------------------------------- bootstrap


class Bootstrapped(NamedTuple):
    """What resampled topics say about each comparison."""

    p: Vector  # shape (comparisons,)
    intervals: list[Interval]


def bootstrap(differences: Vector, samples: int, seed: int, level: float = 0.95) -> Bootstrapped:
    """Resample topics: Sakai's paired bootstrap test, and percentile intervals of the mean.

    The test compares the t statistic of the differences with those of resampled topics whose
    differences were shifted to mean zero. The observed one is counted too, so p is never zero.
    """
    count, comparisons = differences.shape
    mean = differences.mean(axis=0)
    shifted = differences - mean
    squares = shifted**2
    same = np.all(differences == differences[0], axis=0)
    observed = np.array([abs(t_statistic(column)) for column in differences.T])
    reached, means = np.ones(comparisons), []
    for counts in _resamples(count, samples, seed):
        drawn = counts @ shifted / count
        variance = (counts @ squares / count - drawn**2) * count / max(count - 1, 1)
        error = np.sqrt(np.maximum(variance, 0) / count)
        # A sample of a single topic, again and again, has no spread: what it says is certain.
        flat = error <= SAME * np.abs(shifted).max(axis=0)
        t = np.abs(drawn) / np.where(flat, 1.0, error)
        t = np.where(flat, np.where(np.abs(drawn) > 0, np.inf, 0.0), t)
        reached += (t >= observed * (1 - SAME)).sum(axis=0)
        means.append(drawn + mean)
    p = np.where(same, np.where(mean == 0, 1.0, 1 / (samples + 1)), reached / (samples + 1))
    tail = (1 - level) / 2
    ends = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return Bootstrapped(p, [Interval(float(low), float(high)) for low, high in ends.T])


def _resamples(topics: int, samples: int, seed: int) -> Iterator[Vector]:
    """Draw topics with replacement: how often each was drawn, shape (samples, topics)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for size in _blocks(samples, topics):
        drawn = generator.integers(0, topics, (size, topics))
        drawn += np.arange(size)[:, None] * topics
        counts = np.bincount(drawn.ravel(), minlength=size * topics)
        yield counts.reshape(size, topics).astype(np.float64)


# ---------------------------------------------------------------- several comparisons


def adjusted(p_values: Sequence[float], correction: Correction) -> list[float]:
    """Raise p-values so that the chance of any false alarm among all of them stays at the level.

    Holm's step-down procedure, or Bonferroni's, which is never more powerful.
    """
    count = len(p_values)
    if correction == "none":
        return list(p_values)
    if correction == "bonferroni":
        return [min(1.0, count * p) for p in p_values]
    raised, highest = [0.0] * count, 0.0
    for done, place in enumerate(sorted(range(count), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (count - done) * p_values[place]))
        raised[place] = highest
    return raised
