"""Tests over topics: the numbers SciPy gives, values by hand, and no false alarms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline import statistics
from pipeline.statistics import (
    adjusted,
    bootstrap,
    detectable,
    effect_size,
    randomisation,
    student_t_p,
    student_t_quantile,
    t_interval,
    t_test,
    wilcoxon,
)

SIZES = (2, 3, 5, 10, 25, 50, 51, 225, 1000, 6980)
FEW = st.lists(st.integers(-100, 100), min_size=2, max_size=60).filter(lambda d: len(set(d)) > 1)


def differences(topics: int, seed: int, decimals: int = 12) -> np.ndarray:
    return np.round(np.random.default_rng(seed).normal(0.03, 0.2, topics), decimals)


@pytest.mark.parametrize("topics", SIZES)
def test_the_t_test_is_scipys(topics: int) -> None:
    """p-value and interval, for two topics as for MS MARCO's 6,980."""
    for seed in range(20):
        given_ = differences(topics, seed)
        theirs = stats.ttest_1samp(given_, 0.0)
        assert t_test(given_) == pytest.approx(theirs.pvalue, rel=1e-9)
        for level in (0.9, 0.95, 0.99):
            interval = theirs.confidence_interval(level)
            mine = t_interval(given_, level)
            assert mine == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-12)


@given(FEW)
def test_the_t_test_is_scipys_on_any_differences(numbers: list[int]) -> None:
    values = np.array(numbers) / 100
    assert t_test(values) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3.5, 30, 1e5])
@pytest.mark.parametrize("t", [0.0, 1e-9, 0.3, 1.96, 12.0, 80.0])
def test_students_distribution(freedom: float, t: float) -> None:
    """Both tails, from the middle to where almost nothing is left."""
    assert student_t_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-8)


def test_students_quantile_is_the_one_of_every_table() -> None:
    assert student_t_quantile(0.05, 49) == pytest.approx(2.00957524, abs=1e-8)
    assert student_t_quantile(0.01, 1) == pytest.approx(63.65674116, abs=1e-7)


@pytest.mark.parametrize("topics", SIZES)
def test_wilcoxon_is_scipys(topics: int) -> None:
    """Exact up to 50 topics, the normal approximation above."""
    for seed in range(20):
        given_ = differences(topics, seed)
        method = "exact" if topics <= 50 else "asymptotic"
        theirs = stats.wilcoxon(given_, method=method).pvalue
        assert wilcoxon(given_) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("topics", [60, 225, 1000])
def test_wilcoxon_with_ties_and_zeros_is_scipys(topics: int) -> None:
    """Measures of few values (RR@10, P@5) make both."""
    for seed in range(20):
        given_ = differences(topics, seed, decimals=1)
        theirs = stats.wilcoxon(given_, zero_method="wilcox", method="asymptotic").pvalue
        if np.count_nonzero(given_) > 50:
            assert wilcoxon(given_) == pytest.approx(theirs, rel=1e-9)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_wilcoxon_is_exact_with_ties(numbers: list[int]) -> None:
    """As if every assignment of signs to the tied ranks had been written down."""
    values = np.array(numbers, float)
    changed = values[values != 0]
    if not len(changed):
        assert wilcoxon(values) == 1.0
        return
    ranks = stats.rankdata(np.abs(changed))
    sums = [ranks @ signs for signs in itertools.product((0, 1), repeat=len(ranks))]
    observed = ranks @ (changed > 0)
    below = np.mean([s <= observed for s in sums])
    above = np.mean([s >= observed for s in sums])
    assert wilcoxon(values) == pytest.approx(min(1.0, 2 * min(below, above)))


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=10))
def test_randomisation_of_few_topics_is_exact(numbers: list[int]) -> None:
    """Every assignment of signs counted, by SciPy as well."""
    values = np.array(numbers) / 20
    p = randomisation(values[:, None], 100, 1)[0]
    sums = [
        abs(float(values @ np.array(signs)))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    assert p == pytest.approx(np.mean([s >= abs(values.sum()) - 1e-9 for s in sums]))


def test_randomisation_is_scipys() -> None:
    """Exactly where all signs are counted, within the error of sampling where they are drawn."""
    for topics, seed in ((12, 1), (12, 2), (60, 3), (60, 4)):
        given_ = differences(topics, seed)
        theirs = stats.permutation_test(
            (given_,), np.mean, permutation_type="samples", n_resamples=20_000, vectorized=True,
            rng=np.random.default_rng(1), axis=0,
        ).pvalue  # fmt: skip
        mine = randomisation(given_[:, None], 50_000, 7)[0]
        assert mine == pytest.approx(theirs, abs=1e-12 if topics == 12 else 0.012)


def test_samples_are_those_of_the_seed() -> None:
    """The same call prints the same p-value, whatever stands beside a comparison."""
    some = np.stack([differences(60, 1), differences(60, 2)], axis=1)
    assert randomisation(some, 1000, 3).tolist() == randomisation(some, 1000, 3).tolist()
    assert randomisation(some, 1000, 3)[1] == randomisation(some[:, 1:], 1000, 3)[0]
    assert randomisation(some, 1000, 3).tolist() != randomisation(some, 1000, 4).tolist()
    assert bootstrap(some, 1000, 3).p.tolist() == bootstrap(some, 1000, 3).p.tolist()


def test_blocks_of_samples_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little memory is taken, every sample is drawn."""
    some = differences(40, 5)[:, None]
    monkeypatch.setattr(statistics, "CELLS", 40 * 7)
    assert 0.001 < randomisation(some, 1000, 3)[0] < 1
    assert len(list(statistics._blocks(1000, 40))) == 143
    assert sum(statistics._blocks(1000, 40)) == 1000


def test_bootstrap_interval_is_scipys() -> None:
    """Percentiles of the means of resampled topics."""
    given_ = differences(80, 9)
    theirs = stats.bootstrap(
        (given_,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    mine = bootstrap(given_[:, None], 20_000, 7).intervals[0]
    assert mine == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_bootstrap_test_agrees_with_students() -> None:
    """On differences as normal as these, all tests say the same."""
    some = np.stack([differences(200, seed) for seed in range(8)], axis=1)
    expected = [t_test(column) for column in some.T]
    assert bootstrap(some, 20_000, 7).p.tolist() == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("shape", ["normal", "skewed", "reciprocal"])
def test_a_true_null_is_rejected_in_five_of_a_hundred(shape: str) -> None:
    """Two systems that are equally good: 4,000 pairs over 30 topics, each test at level 0.05."""
    generator = np.random.default_rng(11)
    if shape == "normal":
        first, second = generator.normal(0.4, 0.2, (2, 30, 4000))
    elif shape == "skewed":
        first, second = generator.beta(0.5, 1.5, (2, 30, 4000))
    else:
        first, second = 1 / generator.integers(1, 11, (2, 30, 4000))
    some = second - first
    alarms = {
        "t": np.array([t_test(column) for column in some.T]),
        "wilcoxon": np.array([wilcoxon(column) for column in np.round(some, 12).T]),
        "randomisation": randomisation(some, 2000, 1),
        "bootstrap": bootstrap(some, 2000, 1).p,
    }
    # Three standard errors of a share of 0.05 over 4,000 are 0.010.
    for test, p in alarms.items():
        assert 0.03 < float((p <= 0.05).mean()) < 0.061, test


def test_holm_keeps_the_rate_of_any_false_alarm() -> None:
    """Six comparisons in a call, all null: some alarm in at most five calls of a hundred."""
    some = np.random.default_rng(5).normal(0, 0.2, (40, 3000))
    p = np.array([t_test(column) for column in some.T]).reshape(500, 6)
    naive = np.mean([min(calls) <= 0.05 for calls in p])
    holm = np.mean([min(adjusted(calls.tolist(), "holm")) <= 0.05 for calls in p])
    assert naive > 0.2
    assert holm < 0.08


def test_corrections_by_hand() -> None:
    """Holm's own stepping down, and Bonferroni's."""
    p = [0.01, 0.04, 0.03, 0.005]
    assert adjusted(p, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted(p, "bonferroni") == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert adjusted(p, "none") == p
    assert adjusted([0.6, 0.9], "holm") == [1.0, 1.0]
    assert adjusted([], "holm") == []


@settings(max_examples=25)  # theirs takes a twentieth of a second
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_are_those_of_statsmodels(p: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for correction in ("holm", "bonferroni"):
        theirs = multitest.multipletests(p, method=correction)[1]
        assert adjusted(p, correction) == pytest.approx(list(theirs))


@pytest.mark.parametrize("topics", [5, 50, 1000])
def test_the_t_test_is_that_of_statsmodels(topics: int) -> None:
    """p-value and interval, by a second library."""
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    for seed in range(5):
        given_ = differences(topics, seed)
        theirs = weightstats.DescrStatsW(given_)
        assert t_test(given_) == pytest.approx(theirs.ttest_mean(0.0)[1], rel=1e-9)
        low, high = theirs.tconfint_mean(0.05)
        assert t_interval(given_) == pytest.approx((low, high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("topics", [10, 25, 50, 225])
def test_what_could_be_found_is_that_of_statsmodels(topics: int) -> None:
    """The effect that a paired t-test finds four times in five."""
    power = pytest.importorskip("statsmodels.stats.power")
    values = differences(topics, 3)
    theirs = power.TTestPower().solve_power(nobs=topics, alpha=0.05, power=0.8)
    # Ours adds two quantiles, theirs integrates: closer than anybody reads such a number.
    assert detectable(values) / values.std(ddof=1) == pytest.approx(theirs, rel=0.04)


def test_effect_size_by_hand() -> None:
    """Mean 0.2, deviation 0.1."""
    assert effect_size(np.array([0.1, 0.2, 0.3])) == pytest.approx(2.0)


@pytest.mark.parametrize("topics", [20, 50, 200])
def test_what_could_be_found(topics: int) -> None:
    """The power of a t-test at that difference is 80 %, by the non-central t distribution."""
    values = np.array([1.0, -1.0] * (topics // 2))
    shift = detectable(values) / values.std(ddof=1) * math.sqrt(topics)
    limit = student_t_quantile(0.05, topics - 1)
    assert stats.nct.sf(limit, topics - 1, shift) == pytest.approx(0.8, abs=0.01)


def test_runs_that_do_not_differ() -> None:
    """Nothing divides by zero: no difference is no evidence, a constant one is certain."""
    nothing, same = np.zeros(30), np.full(30, 0.1)
    for test in (t_test, wilcoxon):
        assert test(nothing) == 1.0
    assert randomisation(nothing[:, None], 100, 1)[0] == 1.0
    assert bootstrap(nothing[:, None], 100, 1).p[0] == 1.0
    assert effect_size(nothing) == 0.0
    assert t_interval(nothing) == (0.0, 0.0)
    assert t_test(same) == 0.0
    assert effect_size(same) == math.inf
    assert bootstrap(same[:, None], 100, 1).p[0] == pytest.approx(1 / 101)
    assert randomisation(same[:, None], 100, 1)[0] == pytest.approx(1 / 101)


def test_one_topic_says_nothing() -> None:
    """A single topic has no spread to compare with."""
    one = np.array([0.3])
    assert t_test(one) == 1.0
    assert t_interval(one) == (-math.inf, math.inf)
    assert detectable(one) == math.inf
    assert wilcoxon(one) == 1.0
    assert randomisation(one[:, None], 100, 1)[0] == 1.0
    assert bootstrap(one[:, None], 100, 1).p[0] == pytest.approx(1 / 101, abs=1)


def test_rounding_errors_are_no_evidence() -> None:
    """0.1 + 0.2 and 0.3 differ in the last bit, and tie in every test of ranks or signs."""
    values = np.round(np.array([0.1 + 0.2, -0.3, 0.3, -0.3]), 12)
    assert wilcoxon(values) == 1.0
    assert randomisation(values[:, None], 100, 1)[0] == 1.0
