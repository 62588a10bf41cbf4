"""Tri-letters: what a text becomes, and that every one has a number of its own."""

from __future__ import annotations

from itertools import product

import pytest

from pipeline.models.letters import ALPHABET, COUNT, PER_WORD, number, tri_letters


def grams(text: str, words: int = 12) -> list[list[int]]:
    return [[int(n) for n in row if n] for row in tri_letters(text, words)]


def test_every_tri_letter_has_a_number_of_its_own() -> None:
    """1 to 49,284, none twice; 0 stays free."""
    pairs = ["".join(two) for two in product(ALPHABET, repeat=2)]
    every = [f"#{one}#" for one in ALPHABET] + [f"#{two}" for two in pairs]
    every += [f"{two}#" for two in pairs]
    every += ["".join(three) for three in product(ALPHABET, repeat=3)]

    assert sorted(map(number, every)) == list(range(1, COUNT + 1))
    assert COUNT == 49284


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [["#ca", "cat", "at#"]]),
        ("A b", [["#a#"], ["#b#"]]),
        ("Don't  UP\t42", [["#do", "don", "ont", "nt#"], ["#up", "up#"], ["#42", "42#"]]),
    ],
)
def test_words_become_their_three_grams(text: str, expected: list[list[str]]) -> None:
    """Lower-cased, other characters deleted, white space of any kind between words."""
    assert grams(text) == [[number(gram) for gram in word] for word in expected]


@pytest.mark.parametrize("text", ["", "  ", "日本", "?!"])
def test_a_text_without_words_is_one_word_of_nothing(text: str) -> None:
    """There is always a position to look at."""
    assert grams(text) == [[]]
    assert tri_letters(text, 5).shape == (1, PER_WORD)


def test_words_and_texts_are_cut() -> None:
    """Twenty tri-letters of a word, as many words as asked for."""
    assert [len(word) for word in grams("x" * 5000 + " b c d", 3)] == [20, 1, 1]
