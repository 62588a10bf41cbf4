"""Float32 values as text: the shortest decimals that read back the same, many at once.

The text is numpy's own (`values.astype(str)`), which makes one value after the other. Here all are
made by arithmetic that is exact where it decides: a value of at most 24 bits times 10**k, k up to
12, fits a double, so its nearest whole number is the nearest decimal of k places; the quotient by
10**k reads back as the value if, as float32, it is the value. Of values that are out of range, a
power of two (whose neighbours are not equally far) or near a decimal that stands halfway between
two float32, numpy is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST, MOST = 1e-3, 1e6  # absolute values between which nine digits are at most twelve places
PLACES = 12
WHOLE = 6  # digits before the point, below `MOST`
_HALFWAY = 1 << 28  # of the 29 bits that a double has and a float32 has not
_BELOW = (1 << 29) - 1


def shortest(values: NDArray[np.float32]) -> list[str]:
    """Print values, shape (n,), as `values.astype(str)` does.

    What is not finite is for the caller to refuse.
    """
    import numpy as np

    size = np.abs(values).astype(np.float64)
    plain = (size >= LEAST) & (size < MOST) & (values.view(np.int32) & 0x7FFFFF != 0)
    powers = 10.0 ** np.arange(1, PLACES + 1)[:, None]
    numbers = np.rint(np.where(plain, size, 0.0) * powers)  # a row for each number of places
    quotients = numbers / powers
    same = quotients.astype(np.float32) == size
    plain &= ~(quotients.view(np.int64) & _BELOW == _HALFWAY).any(axis=0) & same.any(axis=0)
    some = np.flatnonzero(plain)
    places = same.argmax(axis=0)[some]
    texts = _printed(numbers[places, some].astype(np.int64), places + 1, values[some] < 0)
    if len(some) == len(values):
        return texts
    made = iter(texts)
    others = iter(values[~plain].astype(str).tolist())
    return [next(made if one else others) for one in plain.tolist()]


def _printed(
    numbers: NDArray[np.int64], places: NDArray[np.int64], negative: NDArray[np.bool_]
) -> list[str]:
    """Print whole numbers with a point before their last `places` digits."""
    import numpy as np

    most = int(places.max(initial=1))
    # One width for all: a sign, the whole, a point, `most` places, a line feed.
    scaled = numbers * (10 ** np.arange(PLACES + 1))[most - places]
    whole = scaled // 10**most
    behind = scaled - whole * 10**most
    letters = np.empty((3 + WHOLE + most, len(numbers)), np.uint8)
    shown = np.ones(letters.shape, bool)
    letters[0], shown[0] = ord("-"), negative
    for row in range(1, WHOLE):
        shown[row] = whole >= 10 ** (WHOLE - row)
    _digits(whole, letters[1 : WHOLE + 1])
    letters[WHOLE + 1] = ord(".")
    _digits(behind, letters[WHOLE + 2 : -1])
    for row in range(int(places.min(initial=most)), most):
        shown[WHOLE + 2 + row] = row < places
    letters[-1] = ord("\n")
    return letters.T[shown.T].tobytes().decode().split("\n")[:-1]


def _digits(numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
    """Write the digits of whole numbers into rows, the last digit into the last."""
    import numpy as np

    left = numbers.astype(np.uint32) if len(rows) < 10 else numbers  # half as wide, twice as fast
    for row in rows[::-1]:
        rest = left // 10
        row[:] = left - rest * 10 + ord("0")
        left = rest
