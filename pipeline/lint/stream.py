"""A run as blocks of whole topics: as it comes, or collected where a topic's lines lie apart."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO

from pipeline.columns import Block, count, in_columns, separators
from pipeline.errors import shown
from pipeline.lint.lines import Layout, chunks, header, in_order
from pipeline.store import scratch_file
from pipeline.textfile import STREAM
from pipeline.trec import MAX_DOCS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.lint.findings import Findings

BUCKETS = 64  # of a run whose topics lie apart: one at a time is in memory


def blocks(
    stream: BinaryIO, path: Path | str, layout: Layout, findings: Findings
) -> Iterator[Block]:
    """Yield the lines of a run that are in order, a block at a time."""
    import numpy as np

    for first, text in chunks(stream, path, findings):
        if first == 1 and (names := header(text, layout)):
            findings.add(
                "header", 1, f"a header: {shown(names.rstrip().decode('utf-8', 'replace'))}"
            )
            text, first = text[len(names) :], 2
        found = separators(text, layout.columns)
        numbers = None
        if found is None or _longest(found) > MAX_PLAIN_LINE or _comments(text, found):
            text, some = in_order(text, first, layout, findings)
            found, numbers = separators(text, layout.columns), np.array(some, np.int64)
        if found is None:
            continue
        if numbers is None:
            numbers = np.arange(first, first + len(found))
        block = Block(text, np.ascontiguousarray(found.T), numbers)
        if count(text, layout.separator) != (layout.columns - 1) * len(found):
            _note_separators(block, layout, findings)
        yield block


def _note_separators(block: Block, layout: Layout, findings: Findings) -> None:
    import numpy as np

    between = np.frombuffer(block.text, np.uint8)[block.ends[:-1]]
    other = (between != layout.separator[0]).any(axis=0)
    at = int(np.flatnonzero(other)[0])
    line = block.part(at, at + 1).bytes()[:-1]
    message = f"tabs and blanks in {shown(line.decode('utf-8', 'replace'))}"
    findings.add(layout.separators, int(block.numbers[at]), message, int(other.sum()))


MAX_PLAIN_LINE = 1000  # bytes; longer lines are looked at one by one


def _comments(text: bytes, places: NDArray[np.int64]) -> bool:
    import numpy as np

    begins = np.frombuffer(text, np.uint8)[places[:-1, -1] + 1]
    return text.startswith(b"#") or bool((begins == ord("#")).any())


def _longest(places: NDArray[np.int64]) -> int:
    ends = places[:, -1]
    return int(max(ends[0], (ends[1:] - ends[:-1]).max(initial=0)))


def topic_blocks(
    stream: BinaryIO, path: Path | str, layout: Layout, findings: Findings
) -> Iterator[Block]:
    """Like `blocks`, but the lines of a topic that follow each other are never in two blocks."""
    import numpy as np

    held: Block | None = None
    for block in blocks(stream, path, layout, findings):
        if held is not None:
            block = joined([held, block])
        begin = int(np.flatnonzero(block.changes(0))[-1])
        if begin:
            yield block.part(0, begin)
        held = block.part(begin, len(block))
        if len(held) > MAX_DOCS:
            qid = held.token(0, 0).decode("utf-8", "replace")
            message = f"more than {MAX_DOCS:,} documents in topic {shown(qid)}"
            findings.add("huge", int(held.numbers[MAX_DOCS]), message)
            yield held
            held = None
    if held is not None:
        yield held


def joined(some: list[Block]) -> Block:
    """One block of several, in this order."""
    import numpy as np

    texts = [block.bytes() for block in some]
    ends = np.empty((len(some[0].ends), sum(map(len, some))), np.int64)
    at = line = 0
    for block, text in zip(some, texts, strict=True):
        np.add(block.ends, at - block.start, out=ends[:, line : line + len(block)])
        at, line = at + len(text), line + len(block)
    return Block(b"".join(texts), ends, np.concatenate([block.numbers for block in some]))


def collected_topics(
    stream: BinaryIO, path: Path | str, layout: Layout, findings: Findings
) -> Iterator[Block]:
    """Yield blocks of whole topics though their lines lie apart, by way of scratch files.

    Topics come in no order to rely on; lines of one keep theirs. Memory holds a 64th of the run.
    """
    import numpy as np

    with ExitStack() as stack:
        buckets = [stack.enter_context(scratch_file(STREAM)) for _ in range(BUCKETS)]
        pieces: list[list[NDArray[np.int64]]] = [[] for _ in buckets]
        for block in blocks(stream, path, layout, findings):
            bucket = (block.hashes(0) % np.uint64(BUCKETS)).astype(np.int64)
            order = np.argsort(bucket, kind="stable")
            lines = _lines(block)
            borders = np.searchsorted(bucket[order], np.arange(BUCKETS + 1)).tolist()
            for number, (begin, end) in enumerate(pairwise(borders)):
                if begin < end:
                    some = order[begin:end]
                    buckets[number].write(b"".join([lines[i] for i in some.tolist()]))
                    pieces[number].append(block.numbers[some])
        for file, numbers in zip(buckets, pieces, strict=True):
            if not numbers:
                continue
            file.seek(0)
            block = in_columns(file.read(), layout.columns, np.concatenate(numbers))
            numbers.clear()
            order = np.argsort(block.hashes(0), kind="stable")
            lines = _lines(block)
            text = b"".join([lines[i] for i in order.tolist()])
            yield in_columns(text, layout.columns, block.numbers[order])


def _lines(block: Block) -> list[bytes]:
    return block.bytes().splitlines(keepends=True)
