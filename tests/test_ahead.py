"""Work done ahead: the same things, the same errors, an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.ahead import DEPTH, ahead


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
