"""Windows over long documents, and the score of a document from its windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.passages import Aggregation, aggregate, blank, goes_on, windows


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


def test_a_short_text_is_its_own_window() -> None:
    """A text no longer than a window comes back unchanged, spaces and all; so does an empty one."""
    assert windows("  two\twords \n", size=2, stride=1) == ["  two\twords \n"]
    assert windows("", size=5, stride=2) == [""]


def test_windows_overlap_and_the_last_reaches_the_end() -> None:
    """Ten words in windows of four, every three: no window is made of words all seen before."""
    assert windows(words(10), size=4, stride=3) == [
        "w0 w1 w2 w3",
        "w3 w4 w5 w6",
        "w6 w7 w8 w9",
    ]
    assert windows(words(11), size=4, stride=3)[-1] == "w9 w10"


def test_default_windows_are_those_of_the_field() -> None:
    """150 words, every 75: a text of 300 words has three windows."""
    cut = windows(words(300))

    assert [len(w.split()) for w in cut] == [150, 150, 150]
    assert [w.split()[0] for w in cut] == ["w0", "w75", "w150"]


@pytest.mark.parametrize(
    ("text", "nothing"),
    [("", True), (" \n\t", True), ("\u200b\x01", True), ("a", False), ("\u200b.", False)],
)
def test_what_no_tokenizer_sees_is_blank(text: str, nothing: bool) -> None:
    """Spaces and control characters, whatever they are called."""
    assert blank(text) is nothing


@pytest.mark.parametrize(("size", "stride", "limit"), [(3, 2, 1), (10, 5, 4), (4, 4, 2)])
def test_a_text_goes_on_if_its_windows_leave_a_word_out(size: int, stride: int, limit: int) -> None:
    """However the words are set apart."""
    for count in range(40):
        text = "  ".join(words(count).split()) + "\n"
        cut = windows(text, size, stride, limit)
        assert goes_on(text, size, stride, limit) is (cut[-1].split()[-1:] != text.split()[-1:])


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_cuts_the_rest(limit: int) -> None:
    """With a limit, no more windows are made, and none holds more words than a window may."""
    cut = windows(words(1000), size=10, stride=5, limit=limit)

    assert len(cut) == limit
    assert all(len(w.split()) == 10 for w in cut)


@given(
    st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=60),
    st.integers(1, 12),
    st.data(),
)
def test_windows_cover_every_word_in_order(text: list[str], size: int, data: st.DataObject) -> None:
    """Whatever the text, size and stride: every word is in a window, and none is too long."""
    stride = data.draw(st.integers(1, size))

    cut = [w.split() for w in windows(" ".join(text), size, stride, limit=1000)]

    assert all(len(w) <= size for w in cut)
    rebuilt = cut[0] + [word for w in cut[1:] for word in w[size - stride :]]
    assert rebuilt == text


@pytest.mark.parametrize(("size", "stride", "limit"), [(0, 1, 1), (5, 6, 1), (5, 0, 1), (5, 5, 0)])
def test_impossible_windows_are_refused(size: int, stride: int, limit: int) -> None:
    """A stride longer than a window would leave words out."""
    with pytest.raises(ValueError, match="windows of"):
        windows("a b c", size, stride, limit)


SCORES = np.array([1.0, 3.0, 2.0, -4.0, 0.5, 0.5], np.float32)
COUNTS = [3, 1, 2]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("maxp", [3.0, -4.0, 0.5]),
        ("firstp", [1.0, -4.0, 0.5]),
        ("topk", [2.5, -4.0, 0.5]),
    ],
)
def test_aggregations_by_hand(how: str, expected: list[float]) -> None:
    """The best window, the first, and the mean of the two best, of three documents."""
    got = aggregate(SCORES, COUNTS, how, top=2)  # type: ignore[arg-type]

    assert got.tolist() == expected
    assert got.dtype == np.float32


def test_sum_of_probabilities_is_kept_as_a_logarithm() -> None:
    """SumP orders as the sum of sigmoids does, also where single sigmoids are all but 0."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    got = aggregate(SCORES, COUNTS, "sump")

    assert got[0] == pytest.approx(math.log(sigmoid(1) + sigmoid(3) + sigmoid(2)), rel=1e-6)
    low = aggregate(np.array([-900.0, -901.0], np.float32), [1, 1], "sump")
    assert low[0] > low[1]


def test_scores_must_fit_the_windows() -> None:
    """A count that does not add up is a mistake of the caller, not a score."""
    with pytest.raises(ValueError, match="6 scores for 5 windows"):
        aggregate(SCORES, [3, 2], "maxp")


@pytest.mark.parametrize("how", ["none", "maxp", "firstp", "topk"])
def test_one_window_each_keeps_every_bit(how: Aggregation) -> None:
    """Subnormal and infinite scores included, and what is returned is not what was given."""
    scores = np.array([1e-42, -0.0, np.inf, 3.3333333, -1e38], np.float32)
    result = aggregate(scores, [1] * len(scores), how)
    assert result.tobytes() == scores.tobytes()
    assert result is not scores
