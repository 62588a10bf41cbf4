"""The canonical copy of a run: trec_eval's order, and no reader can see another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import CheckFailedError, PipelineError, shown, shown_path
from pipeline.lint.findings import KINDS, Findings
from pipeline.lint.runs import DOCID, QID, SCORE, TREC, MarcoCheck
from pipeline.lint.stream import collected_topics, topic_blocks
from pipeline.store import atomic_file, scratch_file
from pipeline.textfile import STREAM
from pipeline.trec import Ranking, ScoredDoc, check_tag, ordered, run_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

    from pipeline.columns import Block

# What no program can mend, or what is not about the run alone and stays as it is.
_BEYOND = {"missing-topic", "unknown-topic", "no-topic", "unknown-document"}


class Mended(NamedTuple):
    """What was written."""

    topics: int
    lines: int
    dropped: int  # lines of documents that were ranked before


def need_mendable(path: Path | str, findings: Findings) -> None:
    """Make sure that a canonical copy loses nothing that was meant.

    Raises:
        CheckFailedError: something in the file only its author can mend.
    """
    stopping = [
        kind
        for kind in findings.counts
        if KINDS[kind].severity == "error" and not KINDS[kind].fixed and kind not in _BEYOND
    ]
    if stopping:
        count = sum(findings.counts[kind] for kind in stopping)
        raise CheckFailedError(
            f"{shown_path(path)}: nothing written: {count:,} errors that only you can mend "
            f"({', '.join(sorted(stopping))})",
            "mend these in the file, then run the same command again",
        )


def mend(
    path: Path | str,
    again: Callable[[], AbstractContextManager[BinaryIO]],
    output: Path | str,
    findings: Findings,
    *,
    marco: bool,
    tag: str | None,
) -> Mended:
    """Write the canonical copy of a run, in the order in which its topics first appear.

    Raises:
        PipelineError: the run's tag is illegal and none was given, or the disk refuses.
    """
    layout = MarcoCheck.layout if marco else TREC
    scattered = "scattered" in findings.counts
    unheard = Findings()
    order: dict[bytes, tuple[int, int]] = {}  # topic -> where its lines lie, and how many bytes
    with again() as stream:
        for part in _topics(topic_blocks(stream, path, layout, unheard)):
            order.setdefault(part.token(0, QID), (0, 0))
            if tag is None and not marco:
                tag = _own_tag(part.token(0, 5))
            if not scattered:
                break
    lines = dropped = topics = 0

    def written(parts: Iterable[Block], file: BinaryIO) -> None:
        nonlocal lines, dropped, topics
        for part in parts:
            kept, text = _marco_topic(part) if marco else _trec_topic(part, tag or "")
            if scattered:
                order[part.token(0, QID)] = (file.tell(), len(text))
            file.write(text)
            lines += kept
            dropped += len(part) - kept
            topics += 1

    if not scattered:
        with again() as stream, atomic_file(output) as out:
            written(_topics(topic_blocks(stream, path, layout, unheard)), out)
        return Mended(topics, lines, dropped)
    # One after the other, so that a full disk is named as the one it is.
    with scratch_file(STREAM) as held:
        with again() as stream:
            written(_topics(collected_topics(stream, path, layout, unheard)), held)
        with atomic_file(output) as out:
            for start, size in order.values():
                held.seek(start)
                out.write(held.read(size))
    return Mended(topics, lines, dropped)


def _topics(blocks: Iterable[Block]) -> Iterator[Block]:
    import numpy as np

    for block in blocks:
        begins = np.flatnonzero(block.changes(QID)).tolist()
        for begin, end in zip(begins, [*begins[1:], len(block)], strict=True):
            yield block.part(begin, end)


def _own_tag(tag: bytes) -> str:
    text = tag.decode("utf-8", "replace")
    try:
        return check_tag(text)
    except PipelineError as error:
        raise PipelineError(
            f"the run's tag {shown(text)} is not legal everywhere, so none is written",
            "name one: --tag NAME, of 1 to 20 letters, digits, _ and -",
        ) from error


def _trec_topic(part: Block, tag: str) -> tuple[int, bytes]:
    import numpy as np

    docids = b"\n".join(part.tokens(DOCID)).decode().split("\n")
    scores, _ = part.decimals(SCORE)
    docs = map(ScoredDoc._make, zip(docids, scores.astype(np.float32).tolist(), strict=True))
    ranking = ordered(part.token(0, QID).decode(), docs)
    best = dict(reversed(ranking.docs))  # of a document that is there twice, the better line
    if len(best) < len(ranking.docs):
        first = dict.fromkeys(doc.docid for doc in ranking.docs)
        ranking = Ranking(ranking.qid, tuple(ScoredDoc(docid, best[docid]) for docid in first))
    return len(ranking.docs), run_lines(ranking, tag)


def _marco_topic(part: Block) -> tuple[int, bytes]:
    """By rank; lines that share one in the order of the file."""
    ranks = part.integers(MarcoCheck.rank).tolist()
    pids = part.tokens(MarcoCheck.docid)
    order = dict.fromkeys(pids[line] for line in sorted(range(len(ranks)), key=ranks.__getitem__))
    qid = part.token(0, QID)
    text = b"".join(b"%b\t%b\t%d\n" % (qid, pid, rank) for rank, pid in enumerate(order, 1))
    return len(order), text
