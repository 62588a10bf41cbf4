"""Two towers: query and passage are encoded apart; each passage once, whatever asks for it.

A passage's vector must not depend on what happens to be encoded with it: sequences are computed in
batches whose shape is a function of the sequence's own length, filled up where there are too few.
Each row of such a batch is then the same whatever the other rows hold.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pipeline.models.engine import within_memory
from pipeline.models.scorer import Scored
from pipeline.models.vectors import Vectors, read
from pipeline.store import digest_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.models.engine import Engine
    from pipeline.parts import Parts
    from pipeline.vectors import PassageVectors

WIDTHS = 16  # sequences are padded to a multiple of this
MOST_ROWS = 256
QUERY_ROWS = 4  # a topic has one query; a batch of many rows would be spent on filling
QUERIES_AHEAD = 32  # encoded together where it is known which come next
QUERIES_KEPT = 1 << 12
PIECE = 4096  # passages encoded and kept at a time


class Towers(ABC):
    """What all two-tower models share: batches of fixed shape, and vectors kept by their text.

    Attributes:
        searchable: whether the best passages are those with the largest dot products.
        spent: seconds, by what they were spent on: `queries` and `passages` encoded, `crossing`.
    """

    folder: Path
    digest: str
    engine: Engine
    size: int
    searchable: bool
    pad = 0
    positions: int | None = None  # that a sequence can have, padding included; None: any number
    _given: PassageVectors | None = None
    _forward_kind = ""  # the model's own forward pass, or which other

    def _begin(self) -> None:
        """Start without any vectors; called when the model is loaded."""
        self._budget = self.engine.token_budget
        self._waiting: dict[bytes, str] = {}
        self._vectors = Vectors(self.size, self._made_by())
        self._coming: list[str] = []  # queries that will be asked, in their order,
        self._places: dict[str, int] = {}  # and where each stands
        self._queries: dict[str, tuple[NDArray[np.float32], bool]] = {}
        self.spent = dict.fromkeys(("queries", "passages", "crossing"), 0.0)

    def use_vectors(self, found: PassageVectors) -> None:
        """Take passages' vectors from a folder, where it has them."""
        self._given = found
        self.keep_vectors(None)

    # ------------------------------------------------------------ what a model is

    @property
    @abstractmethod
    def limits(self) -> Mapping[str, int]:
        """Tokens of a query and of a passage."""

    @abstractmethod
    def _made_by(self) -> list[Any]:
        """Everything beside its text that decides a passage's vector."""

    @abstractmethod
    def _ids(
        self, texts: Sequence[str], queries: bool
    ) -> tuple[list[NDArray[Any]], NDArray[np.uint8]]:
        """Input of texts, (positions) or (positions, parts) each, and 1 where a text was cut."""

    @abstractmethod
    def _forward(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], queries: bool
    ) -> NDArray[np.float32]:
        """Vectors of padded sequences."""

    def _cross(self, vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[Any]:
        """Scores of passages of shape (passages, size) for a query of shape (1, size)."""
        # Not a product of matrices, whose last bits depend on the number of rows.
        return (vectors * query).sum(axis=1, dtype=np.float32)

    @property
    def signature(self) -> Mapping[str, Any]:
        """The numeric signature, with the way the forward pass is computed."""
        kind = f", {self._forward_kind}" if self._forward_kind else ""
        how = {**self.engine.signature(), "forward": f"rows of {WIDTHS}{kind}"}
        return how if self._given is None else how | {"vectors": self._given.content}

    # ------------------------------------------------------------ scoring

    def score(self, query: str, passages: Sequence[str]) -> Scored:
        """Score the passages of one topic; those without a vector are encoded first."""
        return self.score_rows(query, np.full(len(passages), -1), passages)

    def score_rows(self, query: str, rows: NDArray[np.int64], passages: Sequence[str]) -> Scored:
        """Score passages by their rows in the vectors that were given; those of row -1 by text."""
        if not len(rows):
            return Scored(np.empty(0, np.float32))
        wanted, query_cut = self._query(query)
        with self._spending("crossing"):
            vectors, cut = self._of(rows, passages)
            scores = self._cross(vectors, wanted)
        lowered = self._budget if self._budget != self.engine.token_budget else None
        return Scored(scores, query_cut, cut, lowered)

    def _of(
        self, rows: NDArray[np.int64], passages: Sequence[str]
    ) -> tuple[NDArray[np.float32], int]:
        """Vectors by row or text, shape (rows, size), and the number of texts that were cut."""
        known = rows >= 0
        if self._given is not None and known.all():
            return read(self._given, rows), 0
        unknown = np.flatnonzero(~known)
        found, cut = self._vectors.at(
            self._encoded([passages[place] for place in unknown.tolist()])
        )
        if self._given is None or len(unknown) == len(rows):
            return found, int(cut.sum())
        vectors = np.empty((len(rows), self.size), np.float32)
        vectors[unknown], vectors[known] = found, read(self._given, rows[known])
        return vectors, int(cut.sum())

    @contextmanager
    def _spending(self, on: str) -> Iterator[None]:
        """Add up time; what is spent on something else meanwhile counts there alone."""
        began, before = time.perf_counter(), sum(self.spent.values())
        yield
        others = sum(self.spent.values()) - before
        self.spent[on] += time.perf_counter() - began - others

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """Vectors of texts, shape (texts, size); of passages they are kept for later calls."""
        if queries:
            return self._encode(texts, True)[0]
        return self._vectors.at(self._encoded(texts))[0]

    def encode_anew(self, passages: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Vectors of passages, not kept, and 1 where a passage was cut."""
        return self._encode(passages, False)

    def foresee_queries(self, queries: Sequence[str]) -> None:
        """Take queries that will be asked, in their order: several are encoded in one batch."""
        self._coming = list(dict.fromkeys(queries))
        self._places = {query: place for place, query in enumerate(self._coming)}

    def _query(self, query: str) -> tuple[NDArray[np.float32], bool]:
        """Vector of a query, shape (1, size), and whether it was cut."""
        with self._spending("queries"):
            if query not in self._queries:
                if len(self._queries) > QUERIES_KEPT:
                    self._queries.clear()
                place = self._places.get(query)
                some = self._coming[place : place + QUERIES_AHEAD] if place is not None else [query]
                some = [one for one in some if one not in self._queries]
                vectors, cut = self._encode(some, True)
                for row, one in enumerate(some):
                    self._queries[one] = vectors[row : row + 1], bool(cut[row])
            return self._queries[query]

    def _encoded(self, passages: Sequence[str]) -> NDArray[np.int64]:
        """Places of the passages' vectors; those that have none are encoded."""
        keys = [digest_text(passage) for passage in passages]
        places = self._vectors.find(keys)
        while (places < 0).any():  # more than once where memory was full, and all forgotten
            missing = self._vectors.missing(keys)
            self._store({keys[place]: passages[place] for place in missing})
            places = self._vectors.find(keys)
        return places

    # ------------------------------------------------------------ ahead of scoring

    def keep_vectors(self, parts: Parts | None) -> None:
        """Keep vectors of passages in a folder, and use those that lie there already."""
        self._vectors = Vectors(self.size, self._made_by(), parts)
        if self._given is not None:
            self._vectors.use(self._given)

    def foresee(self, passages: Sequence[str]) -> None:
        """Take passages that will be scored; they are encoded when enough have come together."""
        keys = [digest_text(passage) for passage in passages]
        for place in self._vectors.missing(keys):
            self._waiting[keys[place]] = passages[place]
        while len(self._waiting) >= PIECE:
            some = list(self._waiting)[:PIECE]
            self._store({key: self._waiting.pop(key) for key in some})

    def settle(self) -> None:
        """Encode what has been foreseen and not been encoded yet."""
        if self._waiting:
            self._store(self._waiting)
            self._waiting = {}

    def _store(self, passages: Mapping[bytes, str]) -> None:
        with self._spending("passages"):
            vectors, cut = self._encode(list(passages.values()), False)
            self._vectors.add(list(passages), vectors, cut)

    # ------------------------------------------------------------ batches

    def _encode(
        self, texts: Sequence[str], queries: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Encode texts in batches of fixed shapes: vectors, and 1 where a text was cut."""
        rows, cut = self._ids(texts, queries)
        lengths = np.array([len(row) for row in rows], np.int64)
        # One more, so that something is always masked: without a mask other kernels run.
        widths = lengths // WIDTHS * WIDTHS + WIDTHS
        if self.positions is not None:
            widths = np.minimum(widths, self.positions)
        vectors = np.empty((len(texts), self.size), np.float32)
        for width in np.unique(widths)[::-1]:
            places = np.flatnonzero(widths == width)
            ids = np.full((len(places), width, *rows[0].shape[1:]), self.pad, np.int64)
            for row, place in enumerate(places):
                ids[row, : lengths[place]] = rows[place]
            self._fill(vectors, places, ids, lengths[places], queries)
        return vectors, cut

    def _fill(
        self,
        vectors: NDArray[np.float32],
        places: NDArray[np.int64],
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        queries: bool,
    ) -> None:
        """Compute the vectors of sequences of one width."""
        # Where there is no room for one more, a row of one token is what is masked.
        spare = int(ids.shape[1] == self.positions)

        def compute(budget: int) -> NDArray[np.float32]:
            rows = min(QUERY_ROWS, budget) if queries else _rows(ids.shape[1], budget)
            rows = max(rows - spare, 1)

            def some(start: int) -> NDArray[np.float32]:
                chosen = np.minimum(np.arange(start, start + rows + spare), len(places) - 1)
                those, tokens = ids[chosen], lengths[chosen]
                if spare:
                    those[-1, 1:], tokens[-1] = self.pad, 1
                return self._forward(those, tokens, queries)[:rows]

            return np.concatenate(self.engine.each(some, range(0, len(places), rows)))

        made, self._budget = within_memory(self._budget, compute)
        vectors[places] = made[: len(places)]


def _rows(width: int, budget: int) -> int:
    return max(1, min(MOST_ROWS, budget // width))
