"""Threads that work in Java: results in order, memory bounded, and an end to everything."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pipeline import java

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future
    from queue import SimpleQueue

type Tasks[A, R] = SimpleQueue[tuple[Future[R], A] | None]


def in_threads[A, R](
    function: Callable[[A], R], items: Iterable[A], threads: int
) -> Generator[R, None, None]:
    """Yield `function(item)` in order, computed by threads; items are taken as they are needed.

    What goes wrong comes in its order too: results of earlier items, or their errors, come before
    an error of `items`. Close the iterator to stop early: what has not begun is dropped, what has
    is waited for.
    """
    from concurrent.futures import Future
    from queue import SimpleQueue
    from threading import Thread

    tasks: Tasks[A, R] = SimpleQueue()
    workers: list[Thread] = []
    pending: deque[Future[R]] = deque()
    failure: Exception | None = None
    source = iter(items)
    try:
        while failure is None:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            pending.append(Future())
            tasks.put((pending[-1], item))
            if len(workers) < threads:
                worker = Thread(target=_work, args=(function, tasks))
                worker.start()
                workers.append(worker)
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    finally:
        for future in pending:
            future.cancel()
        for _ in workers:
            tasks.put(None)
        for worker in workers:
            worker.join()


def _work[A, R](function: Callable[[A], R], tasks: Tasks[A, R]) -> None:
    """Do one task after the other: what Java keeps for a thread is used again."""
    try:
        while (task := tasks.get()) is not None:
            future, item = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(item))
                except BaseException as error:
                    future.set_exception(error)
            del task, future, item
    finally:
        java.leave_thread()
