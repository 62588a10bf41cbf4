"""Long documents: windows of words, and the score of a document from those of its windows.

Cross-encoders read a few hundred tokens, so a long document is cut into overlapping windows, each
is scored, and the scores are put together (Dai and Callan 2019: MaxP, FirstP, SumP).
"""

from __future__ import annotations

import re
import unicodedata
from itertools import islice
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

Aggregation = Literal["none", "maxp", "firstp", "topk", "sump"]

SIZE = 150  # words; about 200 tokens
STRIDE = 75
TOP = 3
LIMIT = 32  # windows of one document; 32 windows of 150 words at stride 75 reach word 2,475

_WORD = re.compile(r"\S+")


def windows(text: str, size: int = SIZE, stride: int = STRIDE, limit: int = LIMIT) -> list[str]:
    """Cut a text into windows of `size` words that start every `stride` words.

    The last window is the first one that reaches the end of the text. A text of up to `size` words
    is its own only window, unchanged; an empty one too.

    Args:
        limit: the most windows to make; what lies behind them is not read.
    """
    if not 1 <= stride <= size or limit < 1:
        raise ValueError(f"windows of {size} words every {stride}, at most {limit}")
    starts: list[int] = []
    ends: list[int] = []
    # One word past the last window tells whether the text ends there.
    for word in islice(_WORD.finditer(text), size + (limit - 1) * stride + 1):
        starts.append(word.start())
        ends.append(word.end())
    if len(starts) <= size:
        return [text]
    cut: list[str] = []
    for number in range(limit):
        first = number * stride
        last = min(first + size, len(starts)) - 1
        cut.append(text[starts[first] : ends[last]])
        if last == len(starts) - 1:
            break
    return cut


def window_id(docid: str, number: int) -> str:
    """Name a window, counted from 0: `D17#3`."""
    return f"{docid}#{number}"


def document_of(window: str) -> tuple[str, int]:
    """Return the document of a `window_id`, and the window's number.

    Raises:
        ValueError: it is none.
    """
    docid, mark, number = window.rpartition("#")
    if not (mark and docid and number.isascii() and number.isdigit()):
        raise ValueError(f"{window!r} names no window")
    return docid, int(number)


def blank(text: str) -> bool:
    """Whether a text has nothing but spaces and control characters, which no tokenizer sees."""
    return all(unicodedata.category(character)[0] in "CZ" for character in text)


def goes_on(text: str, size: int, stride: int, limit: int) -> bool:
    """Whether a text goes on behind the last of its `windows`."""
    reach = size + (limit - 1) * stride
    return next(islice(_WORD.finditer(text), reach, None), None) is not None


def aggregate(
    scores: NDArray[np.float32], counts: Sequence[int], how: Aggregation, top: int = TOP
) -> NDArray[np.float32]:
    """Put the scores of windows together into one for each document.

    Args:
        scores: of all windows, document after document; raw scores, shape (sum of counts,).
        counts: windows of each document, at least 1.
        how: `maxp` the best window; `firstp` the first; `topk` the mean of the `top` best (of all,
            where there are fewer); `sump` the logarithm of the sum of the windows' probabilities,
            which orders as the sum does and, as that, favours long documents.

    Returns:
        float32, shape (documents,).
    """
    import numpy as np

    if sum(counts) != len(scores) or min(counts, default=1) < 1:
        raise ValueError(f"{len(scores)} scores for {sum(counts)} windows")
    if len(counts) == len(scores) and how != "sump":
        return scores.astype(np.float32)  # one window each: its score, to the bit
    result = np.empty(len(counts), np.float32)
    start = 0
    for place, count in enumerate(counts):
        mine = scores[start : start + count].astype(np.float64)
        start += count
        if how == "maxp":
            result[place] = mine.max()
        elif how == "topk":
            result[place] = np.sort(mine)[::-1][:top].mean()
        elif how == "sump":
            # log sigmoid(x) = -log(1 + exp(-x)), added up without leaving the logarithm.
            result[place] = np.logaddexp.reduce(-np.logaddexp(0.0, -mine))
        else:
            result[place] = mine[0]
    return result
