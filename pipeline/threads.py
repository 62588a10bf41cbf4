"""Threads that work in Java: results in order, memory bounded, and an end to everything."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pipeline import java

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future


def in_threads[A, R](
    function: Callable[[A], R], items: Iterable[A], threads: int
) -> Generator[R, None, None]:
    """Yield `function(item)` in order, computed by threads; items are taken as they are needed.

    Close the iterator to stop early: what has not begun is dropped, what has is waited for.
    """
    from concurrent.futures import ThreadPoolExecutor

    def call(item: A) -> R:
        try:
            return function(item)
        finally:
            java.leave_thread()

    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(call, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
