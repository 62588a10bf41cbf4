"""Work done ahead: the same things, the same errors, an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.ahead import BEHIND, DEPTH, Behind, ahead


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


@pytest.mark.parametrize("at_once", [False, True])
def test_calls_behind_come_back_in_order(at_once: bool) -> None:
    """From one other thread, or from this one; no more than a few are on their way."""
    begun: list[int] = []
    here = threading.current_thread()

    def double(number: int) -> int:
        assert (threading.current_thread() is here) == at_once
        begun.append(number)
        return 2 * number

    with Behind(double, at_once=at_once) as calls:
        for number in range(50):
            calls.give(number)
            assert len(begun) >= number - BEHIND
        assert calls.results() == [2 * number for number in range(50)]
    assert begun == list(range(50))


def test_a_call_that_fails_is_heard_of_and_others_are_finished() -> None:
    """At the next call or at the end; what was begun is done whatever happens here."""
    done: list[int] = []
    go = threading.Event()

    def work(number: int) -> None:
        go.wait(10)
        if number == 1:
            raise OSError("no space")
        done.append(number)

    with Behind(work) as calls:
        for number in range(4):
            calls.give(number)
        go.set()
        with pytest.raises(OSError, match="no space"):
            calls.results()
    assert done == [0, 2, 3]

    def interrupted() -> None:
        with Behind(work) as calls:
            calls.give(7)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert done == [0, 2, 3, 7]
