"""Which row of a table belongs to a name, for millions of rows: sorted numbers, no dictionary.

A dictionary of two million strings takes 300 MB and a second to fill. Here a row takes 24 bytes and
its name's own, and a thousand names are found in a third of a millisecond.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

KEY = 16  # bytes of a text's digest
_END = ord("\n")


class ByDocid:
    """Rows by docid.

    Args:
        text: all docids in the order of their rows, a line each, UTF-8.
    """

    def __init__(self, text: bytes) -> None:
        self._text = np.frombuffer(text, np.uint8)
        self._ends = np.flatnonzero(self._text == _END)  # a docid's bytes end with its line feed
        self.count = len(self._ends)
        # Python's own hash of a string: the fastest there is, and good for this process alone.
        self._numbers = _Numbers(_hashes(text.decode().split("\n")[:-1]))

    def find(self, docids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each docid, or -1."""
        if not docids or not len(self._ends):
            return np.full(len(docids), -1)
        wanted = np.frombuffer(("\n".join(docids) + "\n").encode(), np.uint8)
        ends = np.flatnonzero(wanted == _END)
        if len(ends) != len(docids):  # a docid with a line feed: nobody has such a one
            return np.array([-1 if "\n" in docid else self.find([docid])[0] for docid in docids])
        starts = np.concatenate([[0], ends[:-1] + 1])

        def same(places: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool]:
            lengths = ends[places] - starts[places]
            begins = np.where(rows > 0, self._ends[rows - 1] + 1, 0)
            equal = self._ends[rows] - begins == lengths
            some, lengths, begins = places[equal], lengths[equal] + 1, begins[equal]
            if len(some):
                firsts = np.cumsum(lengths) - lengths
                within = np.arange(lengths.sum()) - np.repeat(firsts, lengths)
                theirs = self._text[np.repeat(begins, lengths) + within]
                ours = wanted[np.repeat(starts[some], lengths) + within]
                equal[equal] = np.logical_and.reduceat(theirs == ours, firsts)
            return np.asarray(equal)

        return self._numbers.find(_hashes(docids), same)


class ByKey:
    """Rows by the digest of their text; of equal texts the first.

    Args:
        keys: 16 bytes of each row.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = np.frombuffer(keys, np.int64).reshape(-1, 2)
        self._numbers = _Numbers(self._keys[:, 0])

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Row of each digest, or -1."""
        wanted = np.frombuffer(b"".join(keys), np.int64).reshape(-1, 2)
        return self._numbers.find(
            wanted[:, 0], lambda places, rows: self._keys[rows, 1] == wanted[places, 1]
        )


class _Numbers:
    """Rows by numbers of 64 bits, which different names may share."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def find(
        self,
        numbers: NDArray[np.int64],
        same: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool]],
    ) -> NDArray[np.int64]:
        """Row of each number, the first that is the `same` as its place in `numbers`; or -1."""
        found = np.full(len(numbers), -1)
        at = np.searchsorted(self._sorted, numbers)
        looking = np.arange(len(numbers))
        while True:
            looking = looking[at[looking] < len(self._sorted)]
            looking = looking[self._sorted[at[looking]] == numbers[looking]]
            if not len(looking):
                return found
            rows = self._order[at[looking]]
            right = same(looking, rows)
            found[looking[right]] = rows[right]
            looking = looking[~right]
            at[looking] += 1


def _hashes(names: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names), np.int64, len(names))
