"""Vectors are computed once, kept whole, and found again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.models import vectors
from pipeline.models.vectors import Vectors
from pipeline.parts import Parts

SIZE = 6


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def rows(numbers: range | list[int]) -> np.ndarray:
    return np.array([np.full(SIZE, n) + np.arange(SIZE) / 8 for n in numbers], np.float32)


def fill(cache: Vectors, numbers: range) -> None:
    cut = np.array([n % 2 for n in numbers], np.uint8)
    cache.add([key(n) for n in numbers], rows(numbers), cut)


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_was_added_is_found(tmp_path: Path, on_disk: bool) -> None:
    """Vectors and flags come back in the order asked for, from any piece."""
    cache = Vectors(SIZE, "x", Parts(tmp_path) if on_disk else None)
    for start in range(0, 40, 10):
        fill(cache, range(start, start + 10))
    asked = [33, 2, 2, 19, 0]

    found, cut = cache.take([key(n) for n in asked])

    np.testing.assert_array_equal(found, rows(asked))
    assert cut.tolist() == [1, 0, 0, 1, 0]


def test_missing_names_each_text_once(tmp_path: Path) -> None:
    """The first place of every text without a vector."""
    cache = Vectors(SIZE, "x", Parts(tmp_path))
    fill(cache, range(3))

    assert cache.missing([key(n) for n in (7, 1, 8, 7, 2, 8)]) == [0, 2]


def test_a_later_process_finds_finished_pieces(tmp_path: Path) -> None:
    """What was kept before a kill is not computed again, bytes and all."""
    first = Vectors(SIZE, ["model", 1], Parts(tmp_path))
    fill(first, range(5))
    fill(first, range(5, 9))

    later = Vectors(SIZE, ["model", 1], Parts(tmp_path))

    assert later.missing([key(n) for n in range(11)]) == [9, 10]
    np.testing.assert_array_equal(later.take([key(n) for n in range(9)])[0], rows(range(9)))


def test_vectors_of_another_model_are_not_taken(tmp_path: Path) -> None:
    """Two models may share a folder; neither sees the other's vectors."""
    fill(Vectors(SIZE, "one", Parts(tmp_path)), range(5))

    assert Vectors(SIZE, "other", Parts(tmp_path)).missing([key(1)]) == [0]


def test_a_torn_piece_is_computed_again(tmp_path: Path) -> None:
    """A piece that lost its end is dropped; the others stay."""
    cache = Vectors(SIZE, "x", Parts(tmp_path))
    fill(cache, range(4))
    fill(cache, range(4, 8))
    torn = min(tmp_path.glob("*.part"))
    torn.write_bytes(torn.read_bytes()[:-3])

    later = Vectors(SIZE, "x", Parts(tmp_path))

    lost = later.missing([key(n) for n in range(8)])
    assert lost in ([0, 1, 2, 3], [4, 5, 6, 7])
    fill(later, range(lost[0], lost[0] + 4))
    np.testing.assert_array_equal(later.take([key(n) for n in range(8)])[0], rows(range(8)))
    assert not Vectors(SIZE, "x", Parts(tmp_path)).missing([key(n) for n in range(8)])


def test_a_kill_between_piece_and_count_costs_nothing_but_the_piece(tmp_path: Path) -> None:
    """A piece that was saved but not counted is made again, under the same name or beside it."""
    cache = Vectors(SIZE, "x", Parts(tmp_path))
    fill(cache, range(4))
    note = next(tmp_path.glob("*.json"))
    counted = note.read_bytes()
    fill(cache, range(4, 8))
    note.write_bytes(counted)

    later = Vectors(SIZE, "x", Parts(tmp_path))
    fill(later, range(6, 12))

    assert Vectors(SIZE, "x", Parts(tmp_path)).missing([key(n) for n in range(4)]) == []
    again = Vectors(SIZE, "x", Parts(tmp_path))
    wanted = [n for n in range(12) if n not in again.missing([key(n) for n in range(12)])]
    np.testing.assert_array_equal(again.take([key(n) for n in wanted])[0], rows(wanted))


def test_many_vectors_are_found_through_sorted_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past a number of keys these move from a dictionary to sorted arrays, several times over."""
    monkeypatch.setattr(vectors, "MERGE_AT", 50)
    cache = Vectors(SIZE, "x", Parts(tmp_path))
    for start in range(0, 600, 30):
        fill(cache, range(start, start + 30))
    assert len(cache._sorted) > 300

    everything = list(range(600))
    np.random.default_rng(1).shuffle(everything)

    np.testing.assert_array_equal(cache.take([key(n) for n in everything])[0], rows(everything))
    assert cache.missing([key(n) for n in range(590, 610)]) == list(range(10, 20))


def test_without_a_folder_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its size everything is forgotten, and may be computed again."""
    monkeypatch.setattr(vectors, "IN_MEMORY", 1000)
    cache = Vectors(SIZE, "x")
    for start in range(0, 600, 30):
        fill(cache, range(start, start + 30))

    assert len(cache._places) <= 60
    np.testing.assert_array_equal(cache.take([key(599)])[0], rows([599]))
