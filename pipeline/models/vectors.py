"""Vectors of texts, each computed once: pieces on the disk, read through memory maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.parts import counted
from pipeline.store import digest_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.parts import Parts
    from pipeline.vectors import PassageVectors

KEY = 16  # bytes of a text's digest
IN_MEMORY = 1 << 29  # bytes kept where there is no folder; past that everything is forgotten
MERGE_AT = 1 << 16  # keys that are looked for one by one before they join the sorted ones
GIVEN = 1 << 30  # the piece that was given


class Vectors:
    """Vectors by the digest of their text, with one flag each (the text was cut).

    A piece on the disk is: a number of rows n (8 bytes), n digests of 16 bytes, n x `size` float32,
    n flags of one byte. Pieces are whole or absent, and which texts share one makes no difference.

    Args:
        size: numbers in a vector.
        made_by: everything beside its text that decides a vector.
        parts: where pieces are kept; without it they live in memory.
    """

    def __init__(self, size: int, made_by: object, parts: Parts | None = None) -> None:
        self._size = size
        self._parts = parts
        self._name = digest_json(made_by)
        self._pieces: list[tuple[NDArray[np.float32], NDArray[np.uint8]]] = []
        self._given: PassageVectors | None = None
        self._places: dict[bytes, int] = {}  # piece << 32 | row
        self._sorted = np.empty(0, f"S{KEY}")
        self._sorted_places = np.empty(0, np.int64)
        self._bytes = 0
        self._next = 0
        if parts is not None:
            self._next = counted(parts.note(self._name[:32]), "pieces")
            for number in range(self._next):
                path = parts.find(self._key(number))
                if path is not None:
                    self._open(path)

    def use(self, found: PassageVectors) -> None:
        """Take what was encoded before, at whatever precision it is kept."""
        self._given = found

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Places in `keys` of those that have no vector yet; of equal keys the first."""
        places = self.find(keys)
        seen: set[bytes] = set()
        missing = []
        for place in np.flatnonzero(places < 0).tolist():
            if keys[place] not in seen:
                missing.append(place)
                seen.add(keys[place])
        return missing

    def add(
        self, keys: Sequence[bytes], vectors: NDArray[np.float32], cut: NDArray[np.uint8]
    ) -> None:
        """Keep vectors of shape (keys, size), which a kill does not cost once this returns."""
        if self._parts is None:
            if self._bytes > IN_MEMORY:
                self._pieces.clear()
                self._places.clear()
                self._bytes = 0
            self._bytes += vectors.nbytes
            self._enter(keys, vectors, cut)
            return
        data = b"".join([len(keys).to_bytes(8, "little"), *keys, vectors.tobytes(), cut.tobytes()])
        path = self._parts.save(self._key(self._next), data)
        self._next += 1
        self._parts.keep_note(self._name[:32], {"pieces": self._next})
        self._open(path)

    def take(self, keys: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Vectors of known texts, shape (keys, size), and their flags."""
        return self.at(self.find(keys))

    def at(self, places: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Vectors at places that were found, shape (places, size), and their flags."""
        pieces, rows = places >> 32, places & 0xFFFFFFFF
        if self._given is not None and (pieces == GIVEN).all():
            return read(self._given, rows), np.zeros(len(rows), np.uint8)
        vectors = np.empty((len(places), self._size), np.float32)
        cut = np.empty(len(places), np.uint8)
        for piece in np.unique(pieces):
            mine = np.flatnonzero(pieces == piece)
            if piece == GIVEN and self._given is not None:
                vectors[mine], cut[mine] = read(self._given, rows[mine]), 0
                continue
            vectors[mine] = self._pieces[piece][0][rows[mine]]
            cut[mine] = self._pieces[piece][1][rows[mine]]
        return vectors, cut

    def _key(self, number: int) -> str:
        return digest_json([self._name, number])

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            count = int.from_bytes(file.read(8), "little")
            keys = file.read(count * KEY)
        start = 8 + count * KEY
        vectors = np.memmap(path, np.float32, "r", start, (count, self._size))
        cut = np.fromfile(path, np.uint8, count, offset=start + count * self._size * 4)
        self._enter([keys[i : i + KEY] for i in range(0, len(keys), KEY)], vectors, cut)

    def _enter(
        self,
        keys: Sequence[bytes],
        vectors: NDArray[np.float32],
        cut: NDArray[np.uint8],
    ) -> None:
        piece = len(self._pieces) << 32
        self._pieces.append((vectors, cut))
        self._places.update((key, piece | row) for row, key in enumerate(keys))
        # A dictionary of a million digests takes 150 MB, sorted arrays 24.
        if len(self._places) > MERGE_AT + len(self._sorted) // 4 and self._parts is not None:
            fresh = np.array(list(self._places), f"S{KEY}")
            keys_now = np.concatenate([self._sorted, fresh])
            places = np.concatenate(
                [self._sorted_places, np.fromiter(self._places.values(), np.int64, len(fresh))]
            )
            order = np.argsort(keys_now, kind="stable")
            self._sorted, self._sorted_places = keys_now[order], places[order]
            self._places.clear()

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Place of each key, or -1; good until vectors are added."""
        places = np.full(len(keys), -1)
        if self._places:
            places = np.array([self._places.get(key, -1) for key in keys], np.int64)
        if len(self._sorted):
            wanted = np.array(keys, f"S{KEY}")
            at = np.searchsorted(self._sorted, wanted)
            at[at == len(self._sorted)] = 0
            known = (self._sorted[at] == wanted) & (places < 0)
            places[known] = self._sorted_places[at[known]]
        if self._given is not None and len(unknown := np.flatnonzero(places < 0)):
            found = self._given.rows_of_keys([keys[place] for place in unknown.tolist()])
            places[unknown] = np.where(found < 0, -1, GIVEN << 32 | found)
        return places


def read(given: PassageVectors, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vectors as float32, as `given[rows]`, but of float16 in a tenth of numpy's time."""
    numbers, scales = given.kept(rows)
    found: NDArray[np.float32] = torch.from_numpy(numbers).float().numpy()
    return found if scales is None else found * scales
