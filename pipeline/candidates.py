"""What a reranker receives: the rankings of a run and the texts of their documents.

Both may be far larger than memory, so both lie in scratch files; memory holds a few numbers for
each topic, and 16 bytes for each document of a raw collection.
"""

from __future__ import annotations

import hashlib
from itertools import batched
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

import numpy as np

from pipeline.collection import documents, duplicate
from pipeline.errors import InputError, shown
from pipeline.parts import bucket
from pipeline.textfile import STREAM, lines
from pipeline.trec import Ranking, ScoredDoc, not_a_word, read_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.shards import Shard
    from pipeline.topics import Topics

SOME = 4096  # documents of a collection looked at together
COMPACT_AT = 1 << 20  # hashes of document ids, before doubles among them are dropped


class Texts(Protocol):
    """Where texts come from: an open index, or a collection's spool."""

    def texts(self, docids: Iterable[str]) -> list[str | None]:
        """Texts in the order asked for; None for a document that is not there."""


class Nothing:
    """No texts at all, where none is needed."""

    def texts(self, docids: Iterable[str]) -> list[str | None]:
        """None for each."""
        return [None for _ in docids]


class _Place(NamedTuple):
    start: int
    length: int  # of the docids, in bytes; a float32 for each document follows
    documents: int


class Candidates:
    """The rankings of a run, in the order in which their topics appear; read once."""

    def __init__(
        self,
        run: Path | str,
        topics: Topics | None,
        scratch: BinaryIO,
        shard: Shard | None = None,
    ) -> None:
        """Read a run to its end.

        Args:
            topics: those that the run may have; None allows any.
            shard: keep its topics alone; `places` says where they stand among all.

        Raises:
            PipelineError: as `read_run` does; a topic of the run that is not among the topics; or
                an id that `need_words` refuses.
        """
        self._scratch = scratch
        self._places: dict[str, _Place] = {}
        digest = hashlib.sha256()
        position = scratch.seek(0, 2)
        self.total = 0  # topics of the run, other shards' included
        self.places: list[int] = []
        for ranking in read_run(run):
            if topics is not None:
                need_topic(run, ranking.qid, topics)
            docids = [doc.docid for doc in ranking.docs]
            need_words(run, ranking.qid, docids)
            ids = "\n".join(docids).encode()
            scores = np.array([doc.score for doc in ranking.docs], np.float32).tobytes()
            digest.update(f"{ranking.qid} {len(ids)} {len(scores)} ".encode() + ids + scores)
            self.total += 1
            if shard is not None and not shard.holds(ranking.qid):
                continue
            self.places.append(self.total - 1)
            scratch.write(ids)
            scratch.write(scores)
            self._places[ranking.qid] = _Place(position, len(ids), len(ranking.docs))
            position += len(ids) + len(scores)
        self.digest = digest.hexdigest()
        self.bytes = position

    @property
    def qids(self) -> list[str]:
        """Topics of the run, in its order."""
        return list(self._places)

    def __contains__(self, qid: str) -> bool:
        return qid in self._places

    def count(self, qid: str) -> int:
        """Number of a topic's candidates."""
        return self._places[qid].documents

    def ranking(self, qid: str) -> Ranking:
        """Candidates of one topic, in trec_eval's order, scores as float32."""
        place = self._places[qid]
        self._scratch.seek(place.start)
        ids = self._scratch.read(place.length).decode().split("\n")
        scores = np.frombuffer(self._scratch.read(4 * place.documents), np.float32).tolist()
        return Ranking(qid, tuple(map(ScoredDoc, ids, scores)))

    def docids(self, qid: str, depth: int) -> bytes:
        """Candidates of one topic down to a depth, one docid a line."""
        place = self._places[qid]
        self._scratch.seek(place.start)
        ids = self._scratch.read(place.length)
        return ids if place.documents <= depth else b"\n".join(ids.split(b"\n", depth)[:depth])

    def groups(self, count: int) -> list[tuple[str, ...]]:
        """Cut the topics into at most `count` parts by their ids alone."""
        groups: dict[int, list[str]] = {}
        for qid in self._places:
            groups.setdefault(bucket(qid, count), []).append(qid)
        return [tuple(group) for group in groups.values()]


def need_topic(run: Path | str, qid: str, topics: Topics) -> None:
    """Refuse a run of other topics.

    Raises:
        PipelineError: `qid` is not among the topics.
    """
    if qid not in topics:
        raise InputError(
            run,
            line_of(run, qid),
            f"topic {shown(qid)} is not among the topics",
            "give the topics that the run was made for",
        )


def need_words(run: Path | str, qid: str, docids: Sequence[str]) -> None:
    """Refuse ids that no run can be written with, before anything is scored.

    Raises:
        InputError: an id is `not_a_word`.
    """
    ids = [qid, *docids]
    if (at := not_a_word(ids)) is None:
        return
    raise InputError(
        run,
        line_of(run, qid, ids[at] if at else None),
        f"the id {shown(ids[at])} is not one word to those who read runs as text",
        "give it an id without white space, no-break spaces and control characters included",
    )


def line_of(run: Path | str, qid: str, docid: str | None = None) -> int | None:
    """Find the line of a topic in a run, or of one of its documents; None on standard input."""
    if str(run) == STREAM:
        return None
    wanted = [qid.encode()] if docid is None else [qid.encode(), docid.encode()]
    for number, line in lines(run):
        if line.split()[:3:2][: len(wanted)] == wanted:
            return number
    return None


class Spool:
    """Texts of a raw collection, read in one pass; only those of wanted documents are kept.

    Documents are found by 8 bytes of a hash of their id, which stands before each text: of two ids
    that share a hash one would be reported as missing, but no text is ever another document's.
    """

    def __init__(self, collection: Path | str, wanted: Iterable[str], scratch: BinaryIO) -> None:
        """Read a collection to its end.

        Raises:
            PipelineError: as `documents` does; or a wanted document is there twice.
        """
        self._scratch = scratch
        self._hashes = _distinct(wanted)
        self._starts = np.full(len(self._hashes), -1, np.int64)
        self._lengths = np.zeros(len(self._hashes), np.int64)
        position = scratch.seek(0, 2)
        for some in batched(documents(collection), SOME):
            places = self._find([document.docid for document in some])
            for document, place in zip(some, places.tolist(), strict=True):
                if place < 0:
                    continue
                if self._starts[place] >= 0 and self._docid(place) == document.docid:
                    first = next(d for d in documents(collection) if d.docid == document.docid)
                    raise duplicate(document, (first.path, first.line))
                data = f"{document.docid}\n{document.text}".encode()
                scratch.write(data)
                self._starts[place], self._lengths[place] = position, len(data)
                position += len(data)
        self.complete = bool((self._starts >= 0).all())

    def texts(self, docids: Iterable[str]) -> list[str | None]:
        """Texts in the order asked for; None for a document that is not there."""
        asked = list(docids)
        return [self._text(*pair) for pair in zip(asked, self._find(asked).tolist(), strict=True)]

    def _text(self, docid: str, place: int) -> str | None:
        if place < 0 or self._starts[place] < 0:
            return None
        self._scratch.seek(int(self._starts[place]))
        found, _, text = self._scratch.read(int(self._lengths[place])).decode().partition("\n")
        return text if found == docid else None

    def _docid(self, place: int) -> str:
        self._scratch.seek(int(self._starts[place]))
        line = self._scratch.read(int(self._lengths[place])).decode().partition("\n")[0]
        self._scratch.seek(0, 2)
        return line

    def _find(self, docids: Sequence[str]) -> NDArray[np.int64]:
        """Place of each document among the wanted ones, or -1."""
        hashes = _hashes(docids)
        if not len(self._hashes):
            return np.full(len(hashes), -1, np.int64)
        at = np.searchsorted(self._hashes, hashes)
        at[at == len(self._hashes)] = 0
        return np.where(self._hashes[at] == hashes, at, -1)


def _distinct(docids: Iterable[str]) -> NDArray[np.uint64]:
    distinct = np.empty(0, np.uint64)
    for some in batched(docids, COMPACT_AT):
        distinct = np.union1d(distinct, _hashes(some))
    return distinct


def _hashes(docids: Sequence[str]) -> NDArray[np.uint64]:
    digests: Iterator[bytes] = (
        hashlib.blake2b(docid.encode(), digest_size=8).digest() for docid in docids
    )
    return np.frombuffer(b"".join(digests), np.uint64)
