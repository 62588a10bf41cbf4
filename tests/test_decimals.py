"""Float32 as text: numpy's own, whatever the value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.decimals import shortest

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(FINITE, max_size=20))
def test_any_values_are_printed_as_numpy_prints_them(values: list[float]) -> None:
    """One odd value among plain ones changes none of the others."""
    single = np.array(values, np.float32)
    assert shortest(single) == single.astype(str).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "draw",
    [
        lambda r: r.normal(0, 4, 50_000),
        lambda r: np.exp(r.uniform(np.log(1e-5), np.log(1e7), 50_000)),
        lambda r: np.round(r.uniform(-60, 60, 50_000), r.integers(0, 6)),
        lambda r: r.integers(-1000, 1_000_000, 50_000) / 2 ** r.integers(0, 12, 50_000),
        lambda r: r.integers(-(2**31), 2**31, 50_000).astype(np.int32).view(np.float32),
    ],
    ids=["scores", "any size", "few places", "binary fractions", "any bits"],
)
def test_many_values_are_printed_as_numpy_prints_them(draw: object, seed: int) -> None:
    """Of all sizes, short and long, near decimals that stand halfway."""
    values: NDArray[np.float32] = draw(np.random.default_rng(seed)).astype(np.float32)  # type: ignore[operator]
    values = values[np.isfinite(values)]
    assert shortest(values) == values.astype(str).tolist()


def test_the_edges_of_what_is_plain() -> None:
    """Powers of two and of ten, zeros, the neighbours of each, the least and the most."""
    some = [0.0, 1e-3, 1e6, *(2.0**n for n in range(-12, 22)), *(10.0**n for n in range(-5, 9))]
    around = np.array(some, np.float32)
    values = np.concatenate(
        [
            side
            for one in (around, -around)
            for side in (one, np.nextafter(one, np.float32(9e9)), np.nextafter(one, np.float32(-9)))
        ]
    )
    assert shortest(values) == values.astype(str).tolist()
    limits = np.finfo(np.float32)
    extremes = np.array([limits.max, limits.min, limits.tiny, limits.smallest_subnormal])
    assert shortest(extremes) == extremes.astype(str).tolist()


def test_nothing_is_printed_of_nothing() -> None:
    """No value, no text."""
    assert shortest(np.zeros(0, np.float32)) == []
