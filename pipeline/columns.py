"""Whole lines of columns as arrays: where each word begins and ends, what can be asked at once.

A block knows only lines with the same number of columns and one separator between them;
`lint/lines.py` brings any file into that form. Nothing here makes a Python object for a line.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

PADDING = 32  # bytes after the text, so that a load of eight never leaves the buffer
MAX_DIGITS = 15  # of a number whose quotient by a power of ten is correctly rounded
WIDEST_NUMBER = 20
_MIX = 0x9E3779B97F4A7C15
_STIR = 0xBF58476D1CE4E5B9
_LOW = 0x7FFFFFFF  # all bits of a float32 but its sign


def count(text: bytes, byte: bytes) -> int:
    """How often one byte occurs; where that is often, ten times as fast as `bytes.count`."""
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == byte[0]))


def separators(text: bytes, columns: int) -> NDArray[np.int64] | None:
    """Places of white space, shape (lines, columns), or None without such an order.

    In order: so many words, a blank or a tab after each, after the last a line feed.
    """
    import numpy as np

    array = np.frombuffer(text, np.uint8)
    white = array <= 32
    places = np.flatnonzero(white)
    if len(places) % columns or not len(places) or len(text) != places[-1] + 1:
        return None
    if white[0] or bool((white[1:] & white[:-1]).any()):
        return None  # an empty word
    ordered = places.reshape(-1, columns)
    if not bool((array[ordered[:, -1]] == 10).all()):
        return None
    # With a line feed at every end, all others are between words if there are as many as that.
    between = np.count_nonzero(array == 32)
    if between != (columns - 1) * len(ordered):
        between += np.count_nonzero(array == 9)
    return ordered if between == (columns - 1) * len(ordered) else None


def in_columns(text: bytes, columns: int, numbers: NDArray[np.int64]) -> Block:
    """Take lines that are known to be in order."""
    import numpy as np

    places = np.flatnonzero(np.frombuffer(text, np.uint8) <= 32).reshape(-1, columns)
    return Block(text, np.ascontiguousarray(places.T), numbers)


def word_hashes(words: Sequence[bytes]) -> NDArray[np.uint64]:
    """64 bits of each word, as `Block.hashes` has them; words hold no white space."""
    import numpy as np

    return in_columns(b"\n".join([*words, b""]), 1, np.arange(len(words))).hashes(0)


def repeated(hashes: NDArray[np.uint64], topic: NDArray[np.int64]) -> bool:
    """Whether one occurs twice in a topic; half of the bits tell nearly always, in half the time.

    Args:
        hashes: of what differs with the topic.
        topic: ordered numbers.
    """
    import numpy as np

    ordered = np.sort(_rows((hashes >> np.uint64(32)).astype(np.uint32), topic))
    if not bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        return False
    whole = np.sort(hashes)
    return bool((whole[1:] == whole[:-1]).any())


def distinct(ordered: NDArray[np.int64]) -> int:
    """How many values there are among ordered ones."""
    import numpy as np

    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + bool(len(ordered))


def heights(single: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of each value in the order of all float32; both zeros have place 0."""
    import numpy as np

    bits = single.view(np.int32).astype(np.int64)
    return bits if not len(bits) or bits.min() >= 0 else np.where(bits < 0, -(bits & _LOW), bits)


def best_first(topic: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order lines by topic, the highest place first; equal lines stay as they are.

    Args:
        topic: numbers from 0.
        place: of each line's score, as `heights` has it.
    """
    import numpy as np

    bits = len(topic).bit_length()
    key = topic * (1 << 33) - place
    if (int(topic.max(initial=0)) + 1).bit_length() + 33 + bits > 63:
        return np.argsort(key, kind="stable")
    # Numbers are sorted faster than their places: they carry them along.
    carried = np.sort(_rows((key << bits) + np.arange(len(topic)), topic))
    return carried.ravel() & ((1 << bits) - 1)


def _rows[T: np.generic](values: NDArray[T], topic: NDArray[np.int64]) -> NDArray[T]:
    """A row for each topic where all have as many lines: short rows are sorted in half the time."""
    import numpy as np

    size = int(np.searchsorted(topic, topic[:1], "right")[0]) if len(topic) else 0
    if not size or len(topic) % size:
        return values
    begins, ends = topic[::size], topic[size - 1 :: size]
    even = bool((begins == ends).all()) and bool((begins[1:] > begins[:-1]).all())
    return values.reshape(-1, size) if even else values


@lru_cache(maxsize=4)
def _spelled(last: int) -> NDArray[np.uint64]:
    """The numbers from 0 to `last` in letters, as a block has the first eight bytes of a word."""
    import numpy as np

    text = "".join(f"{n}\n" for n in range(last + 1)).encode()
    return next(in_columns(text, 1, np.arange(last + 1)).words(0))[0]


class Block:
    """Lines in order, `numbers[i]` the number of line `i` in its file.

    `ends[c, i]` is the place behind the word of column `c`; the next one begins behind that.
    """

    def __init__(
        self, text: bytes, ends: NDArray[np.int64], numbers: NDArray[np.int64], start: int = 0
    ) -> None:
        self.text, self.ends, self.numbers, self.start = text, ends, numbers, start
        self.changed: dict[int, NDArray[np.bool_]] = {}  # what `changes` found

    @cached_property
    def _padded(self) -> bytes:
        return self.text + bytes(PADDING)

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        import numpy as np

        return np.frombuffer(self._padded, np.uint8)

    @cached_property
    def _words(self) -> NDArray[np.uint64]:
        """The eight bytes that begin at each."""
        import numpy as np

        return np.ndarray((len(self.text) + PADDING - 8,), "<u8", self._padded, 0, (1,))

    def __len__(self) -> int:
        return len(self.numbers)

    def token(self, line: int, column: int) -> bytes:
        """One word."""
        start = self.ends[column - 1, line] + 1 if column else self._line_start(line)
        return self.text[start : self.ends[column, line]]

    def _line_start(self, line: int) -> int:
        return int(self.ends[-1, line - 1]) + 1 if line else self.start

    def starts(self, column: int) -> NDArray[np.int64]:
        """Where the words of a column begin."""
        import numpy as np

        found: NDArray[np.int64]
        if column:
            found = self.ends[column - 1] + 1
        else:
            found = np.empty_like(self.ends[0])
            found[:1] = self.start
            found[1:] = self.ends[-1, :-1] + 1
        return found

    def tokens(self, column: int, begin: int = 0, end: int | None = None) -> list[bytes]:
        """The words of a column, of lines `begin` to `end`."""
        text = self.text
        starts = self.starts(column)[begin:end].tolist()
        ends = self.ends[column, begin:end].tolist()
        return [text[a:b] for a, b in zip(starts, ends, strict=True)]

    def words_of(self, lines: NDArray[np.int64], column: int) -> list[bytes]:
        """The words of some lines."""
        text = self.text
        starts = self.starts(column)[lines].tolist()
        ends = self.ends[column, lines].tolist()
        return [text[a:b] for a, b in zip(starts, ends, strict=True)]

    def widths(self, column: int) -> NDArray[np.int64]:
        """Lengths of a column's words in bytes."""
        found: NDArray[np.int64] = self.ends[column] - self.starts(column)
        return found

    def words(self, column: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Eight bytes of every word at a time, zeros behind its end; with what is left of it."""
        import numpy as np

        starts = self.starts(column)
        rest = self.ends[column] - starts
        masks = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
        longest = int(rest.max(initial=0))
        if longest <= 8:
            yield self._words[starts] & masks[rest], rest
            return
        for offset in range(0, longest, 8):
            at = np.minimum(starts + offset, len(self._words) - 1)
            yield self._words[at] & masks[np.minimum(np.maximum(rest, 0), 8)], rest
            rest = rest - 8

    def changes(self, column: int) -> NDArray[np.bool_]:
        """Where a word is not that of the line before; the first line always."""
        import numpy as np

        if column in self.changed:
            return self.changed[column]
        widths = self.widths(column)
        other = np.ones(len(self), bool)
        other[1:] = widths[1:] != widths[:-1]
        for word, _ in self.words(column):
            other[1:] |= word[1:] != word[:-1]
        self.changed[column] = other
        return other

    def differs(self, column: int, expected: bytes) -> NDArray[np.bool_]:
        """Where a word is not `expected`."""
        import numpy as np

        starts = self.starts(column)
        other: NDArray[np.bool_] = self.ends[column] - starts != len(expected)
        for offset in range(0, len(expected), 8):
            some = expected[offset : offset + 8]
            wanted, mask = int.from_bytes(some, "little"), (1 << 8 * len(some)) - 1
            at = np.minimum(starts + offset, len(self._words) - 1) if offset else starts
            other |= self._words[at] & np.uint64(mask) != np.uint64(wanted)
        return other

    def hashes(self, column: int) -> NDArray[np.uint64]:
        """64 bits of each word, equal for equal words of any block."""
        import numpy as np

        found = self.widths(column).astype(np.uint64)
        with np.errstate(over="ignore"):
            for word, left in self.words(column):
                mixed = (found ^ word) * np.uint64(_MIX)
                mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(_STIR)
                found = np.where(left > 0, mixed ^ (mixed >> np.uint64(29)), found)
        return found

    def decimals(self, column: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Numbers as Python's float() reads them, and the lines whose words are none.

        Up to fifteen digits and a point are one exact division; other spellings go one by one.
        """
        import numpy as np

        mantissa, scale, signed, plain = self._digits(column)
        values = mantissa / np.power(10.0, np.arange(WIDEST_NUMBER + 1))[scale]
        values = np.where(signed == 45, -values, values)
        others, none = np.flatnonzero(~plain), []
        for line, token in zip(others.tolist(), self.words_of(others, column), strict=True):
            try:
                if b"_" in token:  # Python's own spelling of thousands
                    raise ValueError
                values[line] = float(token)
            except ValueError:
                values[line] = np.nan
                none.append(line)
        return values, np.array(none, np.int64)

    def counts_up(self, column: int, expected: NDArray[np.int64]) -> bool:
        """Whether every word is the expected number from 1, without parsing one."""
        if int(self.widths(column).max()) > 8 or int(expected.max()) >= 10**8:
            return False
        word, _ = next(self.words(column))
        return bool((word == _spelled(int(expected.max()))[expected]).all())

    def integers(self, column: int) -> NDArray[np.int64]:
        """Whole numbers without a sign, and -1 for any other word."""
        import numpy as np

        mantissa, scale, signed, plain = self._digits(column, points=False)
        return np.where(plain & (signed == 0) & (scale == 0), mantissa, -1)

    def _digits(
        self, column: int, *, points: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.bool_]]:
        """Digits as one whole number, how many follow the point, the sign, whether that is all."""
        import numpy as np

        starts = self.starts(column)
        widths = self.ends[column] - starts
        first = self._bytes[starts]
        sign = np.where((first == 43) | (first == 45), first, 0).astype(np.uint8)
        mantissa = np.zeros(len(self), np.int64)
        digits = np.zeros(len(self), np.uint8)
        scale = np.zeros(len(self), np.uint8)
        dots = np.zeros(len(self), np.uint8)
        for offset in range(min(int(widths.max(initial=0)), WIDEST_NUMBER)):
            character = self._bytes[starts + offset]
            inside = offset < widths
            value = character - np.uint8(48)  # what is below '0' wraps around to far above 9
            digit = (value <= 9) & inside
            mantissa = np.where(digit, mantissa * 10 + value, mantissa)
            digits += digit
            if points:
                scale += digit & (dots > 0)
                dots += (character == 46) & inside
        all_of_it = (digits + dots.astype(np.int64) + (sign > 0)) == widths
        plain = all_of_it & (digits >= 1) & (digits <= MAX_DIGITS) & (dots <= 1)
        return mantissa, scale.astype(np.int64), sign, plain

    def part(self, begin: int, end: int) -> Block:
        """Lines `begin` to `end` as a block of its own over the same bytes."""
        if begin == 0 and end == len(self):
            return self
        other = copy(self)
        other.numbers, other.ends = self.numbers[begin:end], self.ends[:, begin:end]
        other.start = self._line_start(begin)
        other.changed = {}
        for column, changes in self.changed.items():
            other.changed[column] = changes[begin:end].copy()
            other.changed[column][:1] = True
        return other

    def bytes(self) -> bytes:
        """The lines themselves."""
        if not len(self):
            return b""
        return self.text[self.start : int(self.ends[-1, -1]) + 1]
