"""Work done ahead: the same things, the same errors, an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from pipeline.ahead import DEPTH, Behind, ahead


def test_everything_comes_in_order_from_another_thread() -> None:
    """And no more than two are made before they are asked for."""
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(20):
            assert threading.current_thread() is not threading.main_thread()
            made.append(i)
            yield i

    source = ahead(numbers())
    for wanted in range(20):
        assert next(source) == wanted
        assert len(made) <= wanted + 1 + DEPTH
    assert list(source) == []


def test_an_error_comes_in_its_place() -> None:
    """What was made before it is not lost."""

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    source = ahead(failing())
    assert next(source) == 1
    with pytest.raises(ValueError, match="broken"):
        next(source)


def test_closing_it_ends_the_thread() -> None:
    """Though there is more to make."""
    before = threading.active_count()
    source = ahead(iter(range(1000)))
    assert next(source) == 0
    source.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("taken", [2, 99])
def test_the_last_act_of_the_thread(taken: int) -> None:
    """Whether it came to the end or was stopped."""
    acts: list[threading.Thread] = []

    def numbers() -> Iterator[threading.Thread]:
        for _ in range(9):
            yield threading.current_thread()

    source = ahead(numbers(), leave=lambda: acts.append(threading.current_thread()))
    seen = [thread for thread, _ in zip(source, range(taken), strict=False)]
    source.close()
    assert acts == [seen[0]]
    assert acts[0] is not threading.main_thread()


def test_one_ahead_where_one_is_asked_for() -> None:
    """Things may be large."""
    made: list[int] = []

    def number(of: int) -> int:
        made.append(of)
        return of

    source = ahead(map(number, range(9)), 1)
    for wanted in range(9):
        assert next(source) == wanted
        assert len(made) <= wanted + 2


def test_what_is_handed_over_is_done_elsewhere_and_comes_back_in_order() -> None:
    """However long each takes."""

    def work(number: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.02 if number % 2 else 0)
        return number

    with Behind[int]() as behind:
        for number in range(20):
            behind.hand(partial(work, number))
        assert behind.results() == list(range(20))


def test_little_waits() -> None:
    """Who hands over faster than the work is done waits for it."""
    go = threading.Event()
    handed: list[int] = []

    def hand_over() -> None:
        with Behind[bool](1) as behind:
            for number in range(6):
                behind.hand(go.wait)
                handed.append(number)

    thread = threading.Thread(target=hand_over)
    thread.start()
    time.sleep(0.1)
    assert handed == [0, 1]
    go.set()
    thread.join()
    assert handed == list(range(6))


def test_what_fails_is_heard_with_what_is_handed_over_next() -> None:
    """And not only at the end of everything."""

    def broken() -> None:
        raise ValueError("broken")

    def hand_over() -> None:
        with Behind[None](1) as behind:
            for _ in range(9):
                behind.hand(broken)
            raise AssertionError("nothing was heard")

    with pytest.raises(ValueError, match="broken"):
        hand_over()


def test_what_fails_last_is_heard_at_the_end() -> None:
    """Asking for the results raises it."""

    def broken() -> None:
        time.sleep(0.05)
        raise ValueError("broken")

    def hand_over() -> None:
        with Behind[None]() as behind:
            behind.hand(broken)
            behind.results()

    with pytest.raises(ValueError, match="broken"):
        hand_over()


def test_a_block_that_fails_waits_for_what_it_handed_over() -> None:
    """So that a finished part is kept, and nothing half-written left."""
    done: list[int] = []

    def work() -> None:
        time.sleep(0.05)
        done.append(1)

    def interrupted() -> None:
        with Behind[None]() as behind:
            behind.hand(work)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1]
