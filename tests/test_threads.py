"""Threads that work in Java: in order, as far as needed, and never with each other's objects."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from pipeline import java
from pipeline.java import java_text
from pipeline.program import Program
from pipeline.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [pytest.mark.jvm]

STRING = "java.lang.String"


def test_threads_work_in_order_and_only_as_far_as_needed() -> None:
    """Items are drawn as results are taken, so a collection is never read into memory."""
    java.start()
    drawn = []

    def items() -> Iterable[int]:
        for n in range(1000):
            drawn.append(n)
            yield n

    results = in_threads(lambda n: n * n, items(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    results.close()
    assert len(drawn) < 12


def test_what_goes_wrong_comes_in_its_order() -> None:
    """A fault of an earlier item before one of the items themselves, met while it was at work."""
    java.start()

    def items() -> Iterable[int]:
        yield from (1, 0, 1)
        raise OSError("later")

    results = in_threads(lambda n: 1 // n, items(), 4)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    results = in_threads(lambda n: 1 // (n + 1), items(), 4)
    with pytest.raises(OSError, match="later"):
        list(results)


def test_a_thread_stays_for_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Java keeps for it is used again; Java forgets it in the end."""
    java.start()
    left = []
    monkeypatch.setattr(java, "leave_thread", lambda: left.append(threading.get_ident()))
    used = set(in_threads(lambda _: threading.get_ident(), range(100), 3))
    assert used <= set(left)
    assert len(left) == 3


def test_a_failure_in_a_thread_is_raised_and_ends_the_work() -> None:
    """The first one in order; the rest is dropped."""
    java.start()
    done = []

    def work(n: int) -> int:
        done.append(n)
        return 1 // (n - 3)

    with pytest.raises(ZeroDivisionError):
        list(in_threads(work, range(1000), 2))
    assert len(done) < 20


def test_no_thread_gets_the_objects_of_another() -> None:
    """pyjnius alone mixes them up within seconds; each answer here names its question."""
    java.start()
    with java.lock:
        repeat = Program.method(STRING, "repeat", STRING, "int").bind(3, at=1)
        to_bytes = Program.method(STRING, "getBytes", "byte[]", STRING).bind("UTF-8", at=1)
        program = repeat.then(to_bytes).for_each_line()

    def ask(n: int) -> bool:
        found = java.items(program(java_text(f"{n}a\n{n}b\n")))
        return [item.tostring().decode() for item in found] == [f"{n}a" * 3, f"{n}b" * 3]

    assert all(in_threads(ask, range(3000), 8))


def test_programs_of_several_threads_run_at_the_same_time() -> None:
    """Python's lock and ours are free while Java works."""
    java.start()
    with java.lock:
        sleep = Program.static(
            "java.util.concurrent.locks.LockSupport", "parkNanos", "void", "long"
        )
    inside, most = 0, 0
    guard = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        sleep(200_000_000)
        with guard:
            inside -= 1

    list(in_threads(work, range(4), 4))
    assert most == 4
