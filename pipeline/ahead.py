"""Work done ahead or behind: a thread makes the next thing, or ends the last one."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from concurrent.futures import Future

DEPTH = 2  # things made and not yet asked for
BEHIND = 8  # calls on their way


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


class Behind[A, R]:
    """Calls that one other thread makes, in their order, a few at most on their way.

    Used as a context, at whose end what was begun is finished, whatever happens.

    Args:
        function: what is called.
        at_once: call it in this thread, and at once.
    """

    def __init__(self, function: Callable[[A], R], *, at_once: bool = False) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._function = function
        self._pool = None if at_once else ThreadPoolExecutor(1)
        self._waiting: deque[Future[R]] = deque()
        self._results: list[R] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def give(self, argument: A) -> None:
        """Have a call made, and wait for an earlier one where too many are on their way.

        Raises:
            Exception: what an earlier call raised.
        """
        if self._pool is None:
            self._results.append(self._function(argument))
            return
        self._waiting.append(self._pool.submit(self._function, argument))
        while len(self._waiting) > BEHIND or (self._waiting and self._waiting[0].done()):
            self._results.append(self._waiting.popleft().result())

    def results(self) -> list[R]:
        """Wait for all calls; what they returned, in their order.

        Raises:
            Exception: what one of them raised.
        """
        while self._waiting:
            self._results.append(self._waiting.popleft().result())
        return self._results
