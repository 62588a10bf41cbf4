"""Work done ahead: while one thing is looked at, a thread makes the next."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

DEPTH = 2  # things made and not yet asked for


def ahead[T](items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the same, made by one other thread, at most two ahead; errors come in their place.

    It pays where both sides let go of Python's lock, as reading and numpy do. Close it to stop.
    """
    from concurrent.futures import ThreadPoolExecutor

    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(DEPTH))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc] # what is not the end is a T
