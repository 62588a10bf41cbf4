"""Checking a run: what can be asked of a block at once, and one topic only where that stumbles."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.columns import repeated
from pipeline.errors import shown
from pipeline.lint.lines import Layout
from pipeline.lint.ranked import Ranked, Ties, duplicates
from pipeline.lint.references import TRAPS, hashes, trapped
from pipeline.trec import FLOAT32_LIMIT, TAG

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.columns import Block
    from pipeline.lint.findings import Findings
    from pipeline.lint.references import References

TREC = Layout(6, "columns", numbers=(3, 4))
QID, Q0, DOCID, RANK, SCORE, TAG_COLUMN = range(6)
MAX_TAGS = 20
_MIX = 0x9E3779B97F4A7C15


def text(word: bytes) -> str:
    """Quote a word of a file for a message."""
    return shown(word.decode("utf-8", "replace"))


class RunCheck:
    """Everything but the lines themselves; feed it blocks of whole topics, then `finish`."""

    docid = DOCID
    rank = RANK

    def __init__(self, findings: Findings, references: References) -> None:
        self.findings = findings
        self.references = references
        self.topics: set[bytes] = set()
        self.scattered = False
        self.lines = 0
        self.depths = (0, 0)  # of the shortest and the longest topic
        self._last = b""
        self._traps = [int(h) for h in hashes(TRAPS)]

    def feed(self, block: Block) -> None:
        """Check the next topics."""
        import numpy as np

        begins = np.flatnonzero(block.changes(QID))
        sizes = np.diff(begins, append=len(block))
        self._note_topics(block, begins.tolist(), sizes)
        if self.scattered:
            return  # of pieces of topics nothing can be said; the whole is checked again
        topic = np.repeat(np.arange(len(begins)), sizes)
        position = np.arange(len(block)) - begins[topic] + 1
        twice = self._note_documents(block, topic)
        self._look_closer(block, topic, position, twice)
        self.lines += len(block)

    def finish(self) -> None:
        """Say what only the end of the file can tell."""
        self._compare_topics()

    def facts(self) -> dict[str, Any]:
        """What the run holds."""
        low, high = self.depths
        depth = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return {"lines": self.lines, "topics": len(self.topics), "depth": depth}

    # ------------------------------------------------------------ of a block at once

    def _each(
        self, block: Block, lines: NDArray[np.int64], kind: str, message: Callable[[int], str]
    ) -> None:
        """One finding for each line; words are looked at only for those that will be shown."""
        some = lines.tolist()
        for place, line in enumerate(some):
            if self.findings.full(kind):
                self.findings.add(kind, None, "", len(some) - place)
                return
            self.findings.add(kind, int(block.numbers[line]), message(line))

    def _note_topics(self, block: Block, begins: list[int], sizes: NDArray[np.int64]) -> None:
        least, most = int(sizes.min()), int(sizes.max())
        low, high = self.depths
        self.depths = (min(low, least) if high else least, max(high, most))
        for begin in begins:
            qid, line = block.token(begin, QID), int(block.numbers[begin])
            before, self._last = self._last, qid
            if qid == before:  # a topic past all bounds, which comes in pieces
                continue
            if qid in self.topics:
                self.scattered = True
                self.findings.add("scattered", line, partial(self._again, qid))
                continue
            self.topics.add(qid)
            if trapped(qid.decode("utf-8", "replace")):
                self.findings.add("pandas-id", line, f"topic id {text(qid)}")
        if most > self.references.depth:
            for begin, size in zip(begins, sizes.tolist(), strict=True):
                if size > self.references.depth:
                    line = int(block.numbers[begin + self.references.depth])
                    topic = text(block.token(begin, QID))
                    message = f"{size:,} documents in topic {topic}"
                    self.findings.add("depth", line, message)

    @staticmethod
    def _again(qid: bytes) -> str:
        return f"topic {text(qid)} again after other topics"

    def _note_documents(self, block: Block, topic: NDArray[np.int64]) -> NDArray[np.int64]:
        """Check ids of documents; return the topics that may hold one twice."""
        import numpy as np

        found = block.hashes(self.docid)
        # All traps are short, and in most runs no id is.
        short = bool((block.widths(self.docid) <= max(map(len, TRAPS))).any())
        for trap in self._traps if short else ():
            lines = np.flatnonzero(found == trap)
            if len(lines):
                self._each(
                    block,
                    lines,
                    "pandas-id",
                    lambda i: f"document id {text(block.token(i, self.docid))}",
                )
        if self.references.documents is not None:
            self._each(
                block,
                self.references.documents.unknown(block, self.docid),
                "unknown-document",
                lambda i: (
                    f"document {text(block.token(i, self.docid))} of topic "
                    f"{text(block.token(i, QID))} is not in "
                    f"{self.references.names.get('documents', 'the collection')}"
                ),
            )
        with np.errstate(over="ignore"):
            key = found ^ (topic.astype(np.uint64) * np.uint64(_MIX))
        if not repeated(key, topic):
            return np.zeros(0, np.int64)
        values, counts = np.unique(key, return_counts=True)
        return np.unique(topic[np.isin(key, values[counts > 1])])

    def _look_closer(
        self,
        block: Block,
        topic: NDArray[np.int64],
        position: NDArray[np.int64],
        twice: NDArray[np.int64],
    ) -> None:
        """Check columns, and the topics in which something is not as it should be."""
        raise NotImplementedError

    # ------------------------------------------------------------ against topics and judgements

    def _compare_topics(self) -> None:
        asked = self.references.topics
        for known, name in ((asked, "topics"), (self.references.qrels, "qrels")):
            if known is None:
                continue
            file = self.references.names.get(name, name)
            mine = {qid.decode("utf-8", "replace") for qid in self.topics}
            if not mine & set(known):
                self.findings.add("no-topic", None, self._nothing_shared(mine, known, file))
                continue
            for qid in known:
                # A topic without judgements of a relevant document is missing all the same.
                if qid not in mine and not (name == "qrels" and asked is not None and qid in asked):
                    self.findings.add("missing-topic", None, f"topic {shown(qid)} of {file}")
            kind = "unknown-topic" if name == "topics" else "unjudged-topic"
            for qid in sorted(mine - set(known)):
                self.findings.add(kind, None, f"topic {shown(qid)} is not in {file}")

    def _nothing_shared(self, mine: set[str], known: Any, file: str) -> str:
        message = f"no topic in common with {file} ({shown(min(mine))}, not {shown(min(known))})"
        if {qid.lstrip("0") for qid in mine} & {qid.lstrip("0") for qid in known}:
            message += ", but for zeros in front"
        return message


class TrecCheck(RunCheck):
    """Checks a TREC run."""

    def __init__(self, findings: Findings, references: References) -> None:
        super().__init__(findings, references)
        self.tags: list[bytes] = []
        self.ties = Ties()

    def facts(self) -> dict[str, Any]:
        """What the run holds."""
        return super().facts() | {"tag": ", ".join(map(text, self.tags))}

    def finish(self) -> None:
        """Say what only the end of the file can tell."""
        super().finish()
        for tag in self.tags[:1]:
            if not TAG.fullmatch(tag.decode("utf-8", "replace")):
                self.findings.add("tag", 1, f"tag {text(tag)}")
        if self.ties.topics:
            judged = self.references.qrels is not None
            kind = "ties" if "ties" in self.findings.counts else "float32"
            self.findings.notes[kind] = self.ties.note(len(self.topics), judged)

    def _look_closer(
        self,
        block: Block,
        topic: NDArray[np.int64],
        position: NDArray[np.int64],
        twice: NDArray[np.int64],
    ) -> None:
        import numpy as np

        self._each(
            block,
            np.flatnonzero(block.differs(Q0, b"Q0")),
            "q0",
            lambda i: f"the second column is {text(block.token(i, Q0))}",
        )
        self._note_tags(block)
        scores, none = block.decimals(SCORE)
        self._note_scores(block, scores, none)
        with np.errstate(over="ignore"):
            single = scores.astype(np.float32)
        ranks = position if block.counts_up(RANK, position) else block.integers(RANK)
        self._each(
            block,
            np.flatnonzero(ranks < 0),
            "rank-number",
            lambda i: f"rank {text(block.token(i, RANK))} is no whole number",
        )
        for index in twice.tolist():
            begin, end = np.searchsorted(topic, [index, index + 1]).tolist()
            duplicates(block.part(begin, end), self.findings)
        falling = np.ones(len(block), bool)
        falling[1:] = (single[1:] < single[:-1]) | (topic[1:] != topic[:-1])
        odd = np.zeros(int(topic[-1]) + 1, bool)
        odd[topic[~falling | (ranks != position)]] = True
        if bool(odd.any()):
            ranked = Ranked(block, topic, odd, scores, single, ranks)
            ranked.order(self.findings)
            ranked.ties(self.findings, self.ties, self.references.qrels)

    def _note_scores(
        self, block: Block, scores: NDArray[np.float64], none: NDArray[np.int64]
    ) -> None:
        import numpy as np

        finite = np.abs(scores) < FLOAT32_LIMIT
        if bool(finite.all()):
            return
        self._each(
            block, none, "score", lambda i: f"score {text(block.token(i, SCORE))} is no number"
        )
        others = np.setdiff1d(np.flatnonzero(~finite), none)
        self._each(block, others, "non-finite", lambda i: f"score {text(block.token(i, SCORE))}")

    def _note_tags(self, block: Block) -> None:
        import numpy as np

        if not self.tags:
            self.tags.append(block.token(0, TAG_COLUMN))
        others = np.flatnonzero(block.differs(TAG_COLUMN, self.tags[0]))
        if not len(others):
            return
        for tag in set(block.part(int(others[0]), len(block)).tokens(TAG_COLUMN)) - {*self.tags}:
            if len(self.tags) < MAX_TAGS:
                self.tags.append(tag)
        self._each(
            block,
            others,
            "tags",
            lambda i: f"tag {text(block.token(i, TAG_COLUMN))}, not {text(self.tags[0])}",
        )


class MarcoCheck(RunCheck):
    """Checks an MS MARCO run: qid, pid, rank."""

    layout = Layout(3, "columns", b"\t", "tabs", numbers=(0, 2))
    docid = 1
    rank = 2
    limit = 1000
    of_documents = 100  # the depth of runs over documents, whose ids begin with D

    def __init__(self, findings: Findings, references: References) -> None:
        super().__init__(findings, references)
        self._depth = self.limit
        self._short = 0

    def finish(self) -> None:
        """Say what only the end of the file can tell."""
        super().finish()
        if self._short:
            self.findings.add(
                "shallow", None, f"{self._short:,} topics with fewer than {self._depth:,} documents"
            )

    def feed(self, block: Block) -> None:
        """Check the next topics."""
        import numpy as np

        if block.token(0, self.docid).startswith(b"D"):
            self._depth = self.of_documents
        begins = np.flatnonzero(block.changes(QID))
        self._short += int((np.diff(begins, append=len(block)) < self._depth).sum())
        super().feed(block)

    def _look_closer(
        self,
        block: Block,
        topic: NDArray[np.int64],
        position: NDArray[np.int64],
        twice: NDArray[np.int64],
    ) -> None:
        import numpy as np

        self._ranks = block.integers(self.rank)
        wrong = (block.integers(QID) < 0) | (self._ranks < 0)
        for line in np.flatnonzero(block.integers(self.docid) < 0).tolist():
            word = block.token(line, self.docid)
            wrong[line] |= not (word[:1] == b"D" and word[1:].isdigit())
        self._each(
            block,
            np.flatnonzero(wrong),
            "not-integer",
            lambda i: f"no whole numbers in {text(b' '.join(block.token(i, c) for c in range(3)))}",
        )
        self._each(
            block,
            np.flatnonzero((self._ranks == 0) | (self._ranks > self.limit)),
            "rank-limit",
            lambda i: f"rank {text(block.token(i, self.rank))}",
        )
        for index in np.union1d(topic[self._ranks != position], twice).tolist():
            self._topic(block, *np.searchsorted(topic, [index, index + 1]).tolist())

    def _topic(self, block: Block, begin: int, end: int) -> None:
        part = block.part(begin, end)
        qid = text(part.token(0, QID))
        ranks, seen = self._ranks[begin:end].tolist(), dict[int, int]()
        for line, rank in enumerate(ranks):
            if rank in seen:
                message = f"rank {rank} again in topic {qid} (first on line {seen[rank]})"
                self.findings.add("rank-twice", int(part.numbers[line]), message)
            seen.setdefault(rank, int(part.numbers[line]))
        if len(seen) == len(ranks) and sorted(seen) != list(range(1, len(seen) + 1)):
            message = f"the ranks of topic {qid} are not 1 to {len(seen)}"
            self.findings.add("rank-gaps", int(part.numbers[0]), message)
        places: dict[bytes, int] = {}
        for line, docid in enumerate(part.tokens(self.docid)):
            number = int(part.numbers[line])
            if docid in places:
                message = (
                    f"document {text(docid)} again in topic {qid} (first on line {places[docid]})"
                )
                self.findings.add("pid-twice", number, message)
            places.setdefault(docid, number)
