"""One topic of a run: duplicates, its order by score, by rank and by line, and its ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import shown
from pipeline.trec import FLOAT32_LIMIT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.lint.block import Block
    from pipeline.lint.findings import Findings

CUTOFFS = (10, 100, 1000)
QID, DOCID, SCORE = 0, 2, 4


class Ties:
    """Ties of a whole run: how many topics they are in, and which cut-offs they can change."""

    def __init__(self) -> None:
        self.topics = 0
        self.reaching = dict.fromkeys(CUTOFFS, 0)  # topics with a tie that begins within
        self.crossing = dict.fromkeys(CUTOFFS, 0)  # topics with a tie on both sides
        self.deciding = dict.fromkeys(CUTOFFS, 0)  # and tied documents differ in grade
        self.deciding_anywhere = 0

    def note(self, topics: int, judged: bool) -> str:
        """Say whether they can change a measure."""
        parts = [f"ties in {self.topics:,} of {topics:,} topics"]
        for cutoff in CUTOFFS:
            if self.reaching[cutoff]:
                crossing = self.crossing[cutoff]
                parts.append(
                    f"within the first {cutoff:,} in {self.reaching[cutoff]:,}"
                    + (f" (across that cut-off in {crossing:,})" if crossing else "")
                )
        if not self.reaching[CUTOFFS[0]]:
            parts.append(f"no measure at {CUTOFFS[0]} can change")
        if judged:
            first = self.deciding[CUTOFFS[0]]
            parts.append(
                f"tied documents differ in grade in {self.deciding_anywhere:,}, within the first "
                f"{CUTOFFS[0]} in {first:,}: pipeline evaluate --tie-bounds says by how much"
                if self.deciding_anywhere
                else "all tied documents have the same grade: no measure can change"
            )
        return "; ".join(parts)


class Ranked:
    """The lines of one topic, in the order of the file."""

    def __init__(
        self,
        block: Block,
        scores: NDArray[np.float64],
        single: NDArray[np.float32],
        ranks: NDArray[np.int64],
    ) -> None:
        import numpy as np

        self._block, self._scores, self._single, self._ranks = block, scores, single, ranks
        self.finite = bool((np.abs(scores) < FLOAT32_LIMIT).all())
        self._rising = np.flatnonzero(single[1:] > single[:-1])
        self._numbered = bool((ranks == np.arange(1, len(ranks) + 1)).all())
        self._by_score = np.arange(len(ranks))
        if self.finite and not (self._numbered and not len(self._rising)):
            # Best score first, lowest rank first: float32 values are numbered in their order.
            bits = single.view(np.int32).astype(np.int64)
            place = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
            key = np.minimum(ranks, 0x7FFFFFFF) - place * (1 << 32)
            self._by_score = np.argsort(key, kind="stable")

    def _qid(self) -> str:
        return shown(self._block.token(0, QID).decode("utf-8", "replace"))

    def _document(self, line: int) -> str:
        return shown(self._block.token(line, DOCID).decode("utf-8", "replace"))

    def _number(self, line: int) -> int:
        return int(self._block.numbers[line])

    def duplicates(self, findings: Findings) -> None:
        """Find documents that are ranked twice."""
        docids = self._block.tokens(DOCID)
        if len(set(docids)) == len(docids):
            return
        first: dict[bytes, int] = {}
        for line, docid in enumerate(docids):
            if docid in first:
                message = (
                    f"document {self._document(line)} again in topic {self._qid()} "
                    f"(first on line {self._number(first[docid])})"
                )
                findings.add("duplicate", self._number(line), message)
            first.setdefault(docid, line)

    def order(self, findings: Findings) -> None:
        """Compare the order of lines, of ranks and of scores."""
        import numpy as np

        if len(self._rising):
            line = int(self._rising[0]) + 1
            findings.add("order", self._number(line), lambda: self._rise(line))
        if self._numbered and not len(self._rising):
            return
        if bool((self._ranks < 0).any()):
            return
        ranks = self._ranks[self._by_score]
        wrong = np.flatnonzero(ranks[1:] < ranks[:-1])
        if len(wrong):
            better, worse = self._by_score[wrong[0] : wrong[0] + 2].tolist()
            findings.add("rank-order", self._number(worse), lambda: self._misrank(better, worse))
            return
        gaps = np.flatnonzero(ranks != np.arange(1, len(ranks) + 1))
        if len(gaps):
            at = int(gaps[0])
            message = f"rank {ranks[at]} of topic {self._qid()} should be {at + 1}"
            findings.add("ranks", self._number(int(self._by_score[at])), message)

    def _rise(self, line: int) -> str:
        above, below = self._scores[line - 1], self._scores[line]
        return (
            f"in topic {self._qid()} the score rises to {below:g} after {above:g}: "
            "the lines are not in order of score"
        )

    def _misrank(self, better: int, worse: int) -> str:
        return (
            f"document {self._document(worse)} of topic {self._qid()} has rank "
            f"{self._ranks[worse]} and score {self._scores[worse]:g}, but rank "
            f"{self._ranks[better]} has {self._scores[better]:g}"
        )

    def ties(self, findings: Findings, ties: Ties, judged: dict[str, int] | None) -> None:
        """Find equal scores, and whether they can decide a measure."""
        import numpy as np

        single, double = self._single[self._by_score], self._scores[self._by_score]
        equal = np.flatnonzero(single[1:] == single[:-1])  # with the next one
        if not len(equal):
            return
        group = np.cumsum(np.diff(equal, prepend=equal[0]) > 1)
        begins = equal[np.diff(group, prepend=-1) > 0]
        ends = equal[np.diff(group, append=group[-1] + 1) > 0] + 2
        differ = double[equal] != double[equal + 1]
        collapsed = np.unique(group[differ])
        if len(collapsed):
            self._say(findings, "float32", begins[collapsed], ends[collapsed])
        if not bool(differ.all()):
            plain = np.unique(group[~differ])
            self._say(findings, "ties", begins[plain], ends[plain])
        ties.topics += 1
        for cutoff in CUTOFFS:
            ties.reaching[cutoff] += bool(begins[0] < cutoff)
            ties.crossing[cutoff] += bool(((begins < cutoff) & (ends > cutoff)).any())
        if judged and (first := self._first_decision(begins, ends, judged)) is not None:
            ties.deciding_anywhere += 1
            for cutoff in CUTOFFS:
                ties.deciding[cutoff] += first < cutoff

    def _say(
        self, findings: Findings, kind: str, begins: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> None:
        begin, size = int(begins[0]), int(ends[0] - begins[0])
        first, second = self._by_score[begin : begin + 2].tolist()

        def message() -> str:
            more = f", and {len(begins) - 1:,} more such" if len(begins) > 1 else ""
            score = self._block.token(second, SCORE).decode("utf-8", "replace")
            return (
                f"{size:,} documents of topic {self._qid()} from rank {begin + 1} on have one "
                f"score{' in float32' if kind == 'float32' else ''}, {shown(score)} "
                f"({self._document(first)}, {self._document(second)}"
                f"{', ...' if size > 2 else ''}){more}"
            )

        findings.add(kind, self._number(second), message)

    def _first_decision(
        self, begins: NDArray[np.int64], ends: NDArray[np.int64], judged: dict[str, int]
    ) -> int | None:
        """Where the first tie begins whose documents differ in grade."""
        docids = self._block.tokens(DOCID)
        ranked = [docids[line] for line in self._by_score.tolist()]
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            words = (docid.decode("utf-8", "replace") for docid in ranked[begin:end])
            if len({max(judged.get(word, 0), 0) for word in words}) > 1:
                return int(begin)
        return None
