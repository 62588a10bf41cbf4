"""How alike two rankings are: Kendall's tau and rank-biased overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.correlation import kendall, rbo

RANKING = st.lists(st.integers(0, 30).map(str), max_size=25, unique=True)


def test_kendall_by_hand() -> None:
    """Two of ten pairs are the other way round: (8 - 2) / 10."""
    assert kendall("abcde", "badce") == pytest.approx(0.6)
    assert kendall("abc", "abc") == 1.0
    assert kendall("abc", "cba") == -1.0


@given(RANKING, RANKING)
def test_kendall_is_scipys(first: list[str], second: list[str]) -> None:
    """Of the documents that both hold; nothing to say about fewer than two."""
    common = [docid for docid in first if docid in second]
    if len(common) < 2:
        assert kendall(first, second) is None
        return
    theirs = stats.kendalltau(range(len(common)), [second.index(docid) for docid in common])
    assert kendall(first, second) == pytest.approx(theirs.statistic)


def test_rbo_by_hand() -> None:
    """Equation 30 of Webber, Moffat and Zobel: overlaps 0, 1, 2 at depths 1, 2, 3; p = 0.9."""
    expected = (0.1 / 0.9) * (0.9**2 * 1 / 2 + 0.9**3 * 2 / 3) + 0.9**3 * 2 / 3
    assert rbo("abc", "bax"[1:] + "b", 0.9) == pytest.approx(
        (0.1 / 0.9) * (0.9 * 1 + 0.9**2 / 2 + 0.9**3 * 2 / 3) + 0.9**3 * 2 / 3
    )
    assert rbo("xab", "ayb", 0.9) == pytest.approx(expected)


@given(RANKING, RANKING, st.floats(0.5, 0.99))
def test_rbo_of_lists_of_one_length_is_equation_30(
    first: list[str], second: list[str], p: float
) -> None:
    depth = min(len(first), len(second))
    first, second = first[:depth], second[:depth]
    if not depth:
        return
    overlaps = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, depth + 1)]
    series = sum(overlap * p**d for d, overlap in enumerate(overlaps, 1))
    expected = overlaps[-1] * p**depth + (1 - p) / p * series
    assert rbo(first, second, p) == pytest.approx(expected)


@given(RANKING, RANKING)
def test_rbo_has_its_bounds(first: list[str], second: list[str]) -> None:
    """0 for nothing in common, 1 for the same, and it does not matter which comes first."""
    assert rbo(first, second) == pytest.approx(rbo(second, first))
    assert 0.0 <= rbo(first, second) <= 1.0
    assert rbo(first, first) == pytest.approx(1.0)
    if not set(first) & set(second) and first and second:
        assert rbo(first, second) == 0.0


def test_rbo_of_a_prefix_expects_more_of_the_same() -> None:
    """A list cut short agrees in all that is known of it; one without documents in nothing."""
    assert rbo("ab", "abcdef") == pytest.approx(1.0)
    assert rbo("", "abc") == 0.0
    assert rbo("", "") == 1.0
