"""Work done beside other work: made ahead of its use, or handed over and not waited for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from concurrent.futures import Future
    from typing import Self

DEPTH = 2  # things made and not yet asked for
HANDS = 2  # threads that take work


def ahead[T](
    items: Iterator[T], depth: int = DEPTH, leave: Callable[[], None] | None = None
) -> Generator[T, None, None]:
    """Yield the same, made by one other thread, at most `depth` ahead; errors come in their place.

    It pays where both sides let go of Python's lock, as reading and numpy do. Close it to stop.

    Args:
        leave: the last act of that thread.
    """
    from concurrent.futures import ThreadPoolExecutor

    end = object()
    with ThreadPoolExecutor(1) as pool:
        try:
            coming = deque(pool.submit(next, items, end) for _ in range(depth))
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc] # what is not the end is a T
        finally:
            if leave is not None:
                pool.submit(leave)


class Behind[T]:
    """Takes work and does it in threads; a block that ends, however it ends, waits for all of it.

    What fails is raised when more is handed over, or asked for: little waits at a time.
    """

    def __init__(self, threads: int = HANDS) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(threads)
        self._most = 2 * threads
        self._waiting: deque[Future[T]] = deque()
        self._done: list[T] = []

    def __enter__(self) -> Self:
        """Nothing begins before something is handed over."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait."""
        self._pool.shutdown(wait=True)

    def hand(self, work: Callable[[], T]) -> None:
        """Have something done."""
        self._waiting.append(self._pool.submit(work))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0].done()):
            self._done.append(self._waiting.popleft().result())

    def results(self) -> list[T]:
        """Everything that was made, in the order in which it was handed over."""
        while self._waiting:
            self._done.append(self._waiting.popleft().result())
        return self._done
