"""The judged documents of a run file: topic, rank, grade; all that most measures look at.

A run of seven million lines may hold seven thousand judged documents, so no line becomes a Python
object: blocks of whole topics are looked at as arrays. Whatever is not plain (a malformed line, a
document twice, a topic in two places, other white space) is left to `trec.read_run`, which has the
words for it: the answer is None then. Ranks are those of `trec.ordered`.

In memory at a time: a block of the file and its columns, some 20 MiB, and the judgements.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pipeline.ahead import ahead
from pipeline.columns import (
    Block,
    best_first,
    heights,
    in_columns,
    repeated,
    separators,
    word_hashes,
)
from pipeline.errors import PipelineError
from pipeline.textfile import STREAM, UTF8_MARK, open_stream
from pipeline.trec import FLOAT32_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.trec import Qrels

BLOCK = 1 << 20  # bytes read at a time
MAX_TOPIC = 1 << 23  # bytes; topics of more lines are left to the careful reader
MAX_LINE = 1000  # bytes
COLUMNS = 6
QID, DOCID, SCORE = 0, 2, 4
_MIX = 0x9E3779B97F4A7C15
_SPARSE = 16  # places of the filter for each judgement


class Hits(NamedTuple):
    """Judged documents, by topic and rank; ranks begin at 1."""

    topic: NDArray[np.int64]  # place of its topic among the topics
    rank: NDArray[np.int64]
    grade: NDArray[np.int64]
    first: NDArray[np.int64]  # rank of the first document with the same score
    tied: NDArray[np.int64]  # how many documents have that score


class JudgedRun(NamedTuple):
    """What a run has for judged topics."""

    qids: tuple[str, ...]  # every topic of the run, in its order
    sizes: NDArray[np.int64]  # documents of each
    hits: Hits


class _OddError(Exception):
    """Something for the careful reader."""


class Judgements:
    """Judgements as a table of 64-bit keys, to be looked up by the block."""

    def __init__(self, qrels: Qrels) -> None:
        import numpy as np

        pairs = [(qid, docid) for qid, judged in qrels.items() for docid in judged]
        text = "".join(f"{qid} {docid}\n" for qid, docid in pairs).encode("utf-8", "replace")
        grades = chain.from_iterable(judged.values() for judged in qrels.values())
        self._grades = np.fromiter(grades, np.int64, len(pairs))
        self.usable = separators(text, 2) is not None
        if not self.usable:  # an id with a control character
            return
        self._block = in_columns(text, 2, np.arange(len(pairs)))
        keys = _keys(self._block.hashes(0), self._block.hashes(1), np.arange(len(pairs)))
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        bits = max(10, (_SPARSE * len(pairs)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, bool)
        self._filter[keys >> self._shift] = True
        self.usable = not bool((self._keys[1:] == self._keys[:-1]).any())

    def read(self, path: Path | str, *, identical: bool = True) -> JudgedRun | None:
        """Find the judged documents of a run; None for what only `trec.read_run` can say of it.

        Args:
            identical: without it, a document with the id of its topic is a reason to refuse.
        """
        if not self.usable or str(path) == STREAM or not Path(path).is_file():
            return None
        with suppress(_OddError, PipelineError, OSError), open_stream(path) as stream:
            return self._read(stream, identical)
        return None

    def _read(self, stream: BinaryIO, identical: bool) -> JudgedRun:
        import numpy as np

        qids: dict[str, None] = {}
        sizes: list[NDArray[np.int64]] = []
        found: list[tuple[NDArray[np.int64], ...]] = []
        for block in ahead(_whole_topics(stream)):
            begins = np.flatnonzero(block.changes(QID))
            before = len(qids)
            names = block.words_of(begins, QID)
            qids |= dict.fromkeys(name.decode() for name in names)
            if len(qids) != before + len(begins):
                raise _OddError  # a topic in two places
            sizes.append(np.diff(begins, append=len(block)))
            hits = self._hits(block, begins, sizes[-1], word_hashes(names), identical)
            found.append((hits[0] + before, *hits[1:]))
        if not qids:
            raise _OddError
        topic, *others = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((others[0], topic))
        hits = Hits(topic[order], *(column[order] for column in others))
        return JudgedRun(tuple(qids), np.concatenate(sizes), hits)

    def _hits(
        self,
        block: Block,
        begins: NDArray[np.int64],
        sizes: NDArray[np.int64],
        of_topic: NDArray[np.uint64],
        identical: bool,
    ) -> Hits:
        """Judged documents of some topics, topics numbered from 0."""
        import numpy as np

        topic = np.repeat(np.arange(len(begins)), sizes)
        scores, none = block.decimals(SCORE)
        if len(none) or not bool((np.abs(scores) < FLOAT32_LIMIT).all()):
            raise _OddError
        of_document = block.hashes(DOCID)
        if not identical and bool((of_topic[topic] == of_document).any()):
            raise _OddError
        keys = _keys(of_topic, of_document, topic)
        if repeated(keys, topic):
            raise _OddError  # a document twice
        lines, grades = self._look_up(block, keys)
        at = topic[lines]
        rank = lines - begins[at] + 1
        first, tied = rank.copy(), np.ones_like(rank)
        single = scores.astype(np.float32)
        rising = np.flatnonzero((single[1:] >= single[:-1]) & (topic[1:] == topic[:-1]))
        unordered = np.isin(at, topic[rising])
        if bool(unordered.any()):
            rank[unordered], first[unordered], tied[unordered] = _ranks(
                block, topic, single, lines[unordered]
            )
        return Hits(at, rank, grades, first, tied)

    def _look_up(
        self, block: Block, keys: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lines of judged documents, and their grades."""
        import numpy as np

        lines = np.flatnonzero(self._filter[keys >> self._shift])
        places = np.minimum(np.searchsorted(self._keys, keys[lines]), len(self._keys) - 1)
        same = self._keys[places] == keys[lines]
        lines, rows = lines[same], self._order[places[same]]
        for mine, theirs in ((QID, 0), (DOCID, 1)):
            if block.words_of(lines, mine) != self._block.words_of(rows, theirs):
                raise _OddError  # two ids with the same 64 bits
        return lines, self._grades[rows]


def _keys(
    of_topic: NDArray[np.uint64], of_document: NDArray[np.uint64], topic: NDArray[np.int64]
) -> NDArray[np.uint64]:
    import numpy as np

    with np.errstate(over="ignore"):
        return of_document ^ (of_topic * np.uint64(_MIX))[topic]


def _whole_topics(stream: BinaryIO) -> Iterator[Block]:
    """Yield blocks of lines in order; the lines of a topic that follow each other are in one."""
    import numpy as np

    rest, last = stream.read(BLOCK), False
    if rest.startswith(UTF8_MARK):
        raise _OddError
    while not last:
        read = stream.read(BLOCK)
        last = not read
        if last and rest and not rest.endswith(b"\n"):
            rest += b"\n"
        end = rest.rfind(b"\n") + 1
        if end:
            block = _in_order(rest[:end])
            begin = len(block) if last else int(np.flatnonzero(block.changes(QID))[-1])
            if begin:
                yield block.part(0, begin)
            rest = block.part(begin, len(block)).bytes() + rest[end:]
        if len(rest) > MAX_TOPIC:
            raise _OddError
        rest += read


def _in_order(text: bytes) -> Block:
    import numpy as np

    places = separators(text, COLUMNS)
    if places is None or int(np.diff(places[:, -1], prepend=-1).max()) > MAX_LINE:
        raise _OddError
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            raise _OddError from None
    return Block(text, np.ascontiguousarray(places.T), np.arange(len(places)))


def _ranks(
    block: Block,
    topic: NDArray[np.int64],
    single: NDArray[np.float32],
    wanted: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rank, first rank of its score, documents of that score, for lines of unordered topics."""
    import numpy as np

    chosen = np.zeros(int(topic[-1]) + 1, bool)
    chosen[topic[wanted]] = True
    lines = np.flatnonzero(chosen[topic])
    place = heights(single[lines])
    order = best_first(topic[lines], place)
    key, lines = (topic[lines] * (1 << 33) - place)[order], lines[order]
    changed = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
    group = np.repeat(np.arange(len(changed)), np.diff(changed, append=len(key)))
    sizes = np.diff(changed, append=len(key))
    begins = np.searchsorted(topic[lines], topic[wanted])  # `lines` go by topic
    back = np.empty(len(topic), np.int64)
    back[lines] = np.arange(len(lines))
    mine = group[back[wanted]]
    first, tied = changed[mine] - begins + 1, sizes[mine]
    rank = first.copy()
    some = np.flatnonzero(tied > 1)
    for number in np.unique(mine[some]).tolist():
        begin = int(changed[number])
        members = block.words_of(lines[begin : begin + int(sizes[number])], DOCID)
        behind = {docid: i for i, docid in enumerate(sorted(members, reverse=True))}
        here = some[mine[some] == number]
        rank[here] += [behind[docid] for docid in block.words_of(wanted[here], DOCID)]
    return rank, first, tied
