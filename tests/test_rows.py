"""Rows are found by docids and digests as a dictionary would find them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline import rows
from pipeline.rows import KEY, ByDocid, ByKey


def docids(count: int) -> list[str]:
    return [f"{'é' * (n % 3)}d{n}" for n in range(count)]


def test_docids_are_found_and_strangers_are_not() -> None:
    """In whatever order, as often as asked for, letters of several bytes included."""
    names = docids(1000)
    table = ByDocid("".join(f"{name}\n" for name in names).encode())
    asked = [*reversed(names), "nobody", "d", names[5], "d1\nd2", f"{names[7]}0000"]
    known = {name: row for row, name in enumerate(names)}
    assert table.count == 1000
    assert table.find(asked).tolist() == [known.get(name, -1) for name in asked]
    assert table.find([]).tolist() == []
    assert ByDocid(b"").find(["a"]).tolist() == [-1]


def test_names_that_share_a_number_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash is no identity: with 7 different ones among 1,000 names the same rows are found."""
    monkeypatch.setattr(
        rows, "_hashes", lambda names: np.array([len(n.encode()) for n in names], np.int64)
    )
    names = docids(1000)
    table = ByDocid("".join(f"{name}\n" for name in names).encode())
    assert table.find([*names, "x", "dx1"]).tolist() == [*range(1000), -1, -1]


def test_texts_are_found_by_their_digest() -> None:
    """Of equal texts the first row; half of a digest is not enough."""
    keys = [hashlib.blake2b(f"{n % 90}".encode(), digest_size=KEY).digest() for n in range(100)]
    table = ByKey(b"".join(keys))
    half = keys[3][: KEY // 2] + bytes(KEY // 2)
    assert table.find([keys[95], keys[3], half, bytes(KEY)]).tolist() == [5, 3, -1, -1]
    shared = ByKey(half + keys[3])
    assert shared.find([keys[3], half]).tolist() == [1, 0]
