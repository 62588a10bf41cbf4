"""Tri-letters, the input of TwinBERT's (2002.06275) small vocabulary: words as sets of 3-grams.

A text is lower-cased, what is neither a Latin letter nor a digit nor a space is deleted, and each
word becomes the 3-grams of `#word#`. There are 49,284 of them over 26 letters and 10 digits, so
they are numbered by a formula and no vocabulary has to be kept; 0 is nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PER_WORD = 20  # tri-letters of a word, at most
ALPHABET = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")}
SIZE = len(ALPHABET)
COUNT = SIZE + 2 * SIZE**2 + SIZE**3  # #a#, #ab and ab#, abc
_DELETED = re.compile("[^a-z0-9 ]")
_SPACE = re.compile(r"\s+")


def number(gram: str) -> int:
    """Number of one tri-letter, from 1: `#ab`, then `abc`, then `ab#`, then `#a#`."""
    inner = [ALPHABET[letter] for letter in gram if letter != "#"]
    value = 0
    for letter in inner:
        value = value * SIZE + letter
    if len(inner) == 3:
        return 1 + SIZE**2 + value
    if len(inner) == 1:
        return 1 + 2 * SIZE**2 + SIZE**3 + value
    return 1 + value if gram[0] == "#" else 1 + SIZE**2 + SIZE**3 + value


def tri_letters(text: str, words: int) -> NDArray[np.uint16]:
    """Tri-letters of a text's first words, shape (words, PER_WORD), filled up with 0.

    A text without any word is one word of nothing.
    """
    tidy = _DELETED.sub("", _SPACE.sub(" ", text.lower()))
    found = tidy.split()[:words]
    ids = np.zeros((max(len(found), 1), PER_WORD), np.uint16)
    for row, word in enumerate(found):
        marked = f"#{word}#"[: PER_WORD + 2]
        grams = [marked[at : at + 3] for at in range(len(marked) - 2)]
        ids[row, : len(grams)] = [number(gram) for gram in grams]
    return ids
