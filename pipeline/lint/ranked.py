"""Topics of a run: their order by score, by rank and by line, ties, duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.columns import best_first, distinct, heights
from pipeline.errors import shown
from pipeline.trec import FLOAT32_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.columns import Block
    from pipeline.lint.findings import Findings
    from pipeline.trec import Qrels

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


def _order(
    topic: NDArray[np.int64], single: NDArray[np.float32], ranks: NDArray[np.int64]
) -> NDArray[np.int64]:
    """By topic, best score first, lowest rank first; lines that are alike stay as they are."""
    import numpy as np

    place = heights(single)
    key = topic * (1 << 33) - place
    rising = key[1:] > key[:-1]
    if bool((rising | ((key[1:] == key[:-1]) & (ranks[1:] >= ranks[:-1]))).all()):
        return np.arange(len(key))  # as most runs are written
    order = best_first(topic, place)
    ordered, ranks_so = key[order], ranks[order]
    equal = ordered[1:] == ordered[:-1]
    if bool((equal & (ranks_so[1:] < ranks_so[:-1])).any()):
        tied = np.append(equal, False) | np.append(False, equal)
        some = order[tied]
        order[tied] = some[np.lexsort((some, ranks[some], key[some]))]
    return order


class Ranked:
    """Some topics of a block: their lines as they stand, and by score (then by rank).

    `topic[i]` numbers the topic of line `i` from 0; only those `chosen` are looked at, and of these
    only those whose scores are all finite.
    """

    def __init__(
        self,
        block: Block,
        topic: NDArray[np.int64],
        chosen: NDArray[np.bool_],
        scores: NDArray[np.float64],
        single: NDArray[np.float32],
        ranks: NDArray[np.int64],
    ) -> None:
        import numpy as np

        wanted = chosen.copy()
        wanted[topic[~(np.abs(scores) < FLOAT32_LIMIT)]] = False
        lines = np.flatnonzero(wanted[topic])
        self._block = block
        self._lines, self._topic, self._single = lines, topic[lines], single[lines]
        order = _order(self._topic, self._single, ranks[lines])
        # From here on, in the order by topic, score and rank.
        self._ranked = lines[order]  # lines of the block
        self._scores, self._ranks = scores[self._ranked], ranks[self._ranked]
        first = np.ones(len(lines), bool)
        first[1:] = self._topic[1:] != self._topic[:-1]
        begins = np.flatnonzero(first)
        sizes = np.diff(begins, append=len(lines))
        self._position = np.arange(len(lines)) - np.repeat(begins, sizes)  # from 0
        self._same = ~first[1:]  # as the one before
        self._numbered = ~self._of_topics(self._topic[self._ranks < 0])

    def _of_topics(self, some: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which lines are of these topics, in the order of topics."""
        import numpy as np

        chosen = np.zeros(int(self._topic[-1]) + 1 if len(self._topic) else 0, bool)
        chosen[some] = True
        found: NDArray[np.bool_] = chosen[self._topic]
        return found

    def _first_of_each(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of places in the order of topics, the first one of each topic."""
        import numpy as np

        topics = self._topic[places]
        new = np.ones(len(places), bool)
        new[1:] = topics[1:] != topics[:-1]
        return places[new]

    def _say(
        self,
        findings: Findings,
        kind: str,
        places: NDArray[np.int64],
        lines: NDArray[np.int64],
        message: Callable[[int], str],
    ) -> None:
        """One finding for each place; `lines` are those of the block."""
        some = places.tolist()
        for done, (place, line) in enumerate(zip(some, lines.tolist(), strict=True)):
            if findings.full(kind):
                findings.add(kind, None, "", len(some) - done)
                return
            findings.add(kind, int(self._block.numbers[line]), message(place))

    def _word(self, line: int, column: int) -> str:
        return shown(self._block.token(line, column).decode("utf-8", "replace"))

    def order(self, findings: Findings) -> None:
        """Compare the order of lines, of ranks and of scores."""
        import numpy as np

        rising = np.flatnonzero((self._single[1:] > self._single[:-1]) & self._same) + 1
        rising = self._first_of_each(rising)
        self._say(findings, "order", rising, self._lines[rising], self._rise)
        falling = (self._ranks[1:] < self._ranks[:-1]) & self._same & self._numbered[1:]
        wrong = self._first_of_each(np.flatnonzero(falling) + 1)
        self._say(findings, "rank-order", wrong, self._ranked[wrong], self._misrank)
        others = self._numbered & ~self._of_topics(self._topic[wrong])
        gaps = np.flatnonzero((self._ranks != self._position + 1) & others)
        gaps = self._first_of_each(gaps)
        self._say(findings, "ranks", gaps, self._ranked[gaps], self._gap)

    def _rise(self, place: int) -> str:
        line = int(self._lines[place])
        above, below = (self._block.token(i, SCORE).decode() for i in (line - 1, line))
        return (
            f"in topic {self._word(line, QID)} the score rises to {below} after {above}: "
            "the lines are not in order of score"
        )

    def _misrank(self, place: int) -> str:
        better, worse = int(self._ranked[place - 1]), int(self._ranked[place])
        return (
            f"document {self._word(worse, DOCID)} of topic {self._word(worse, QID)} has rank "
            f"{self._ranks[place]} and score {self._scores[place]:g}, but rank "
            f"{self._ranks[place - 1]} has {self._block.token(better, SCORE).decode()}"
        )

    def _gap(self, place: int) -> str:
        qid = self._word(int(self._ranked[place]), QID)
        return f"rank {self._ranks[place]} of topic {qid} should be {self._position[place] + 1}"

    def ties(self, findings: Findings, ties: Ties, qrels: Qrels | None) -> None:
        """Find equal scores, and whether they can decide a measure."""
        import numpy as np

        single = self._scores.astype(np.float32)
        equal = np.flatnonzero((single[1:] == single[:-1]) & self._same)  # with the next one
        if not len(equal):
            return
        group = np.cumsum(np.diff(equal, prepend=equal[0]) > 1)
        begins = equal[np.diff(group, prepend=-1) > 0]
        ends = equal[np.diff(group, append=group[-1] + 1) > 0] + 2
        collapsed = np.zeros(len(begins), bool)
        collapsed[group[self._scores[equal] != self._scores[equal + 1]]] = True
        for kind, some in (("float32", collapsed), ("ties", ~collapsed)):
            if bool(some.any()):
                self._say_ties(findings, kind, begins[some], ends[some])
        ranks, topics = self._position[begins], self._topic[begins]
        stops = ranks + (ends - begins)
        ties.topics += distinct(topics)
        for cutoff in CUTOFFS:
            within = ranks < cutoff
            ties.reaching[cutoff] += distinct(topics[within])
            ties.crossing[cutoff] += distinct(topics[within & (stops > cutoff)])
        if qrels is not None:
            self._note_decisions(ties, begins.tolist(), ends.tolist(), qrels)

    def _say_ties(
        self, findings: Findings, kind: str, begins: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> None:
        import numpy as np

        counts = np.bincount(self._topic[begins])

        def message(begin: int) -> str:
            size = int(ends[np.searchsorted(begins, begin)]) - begin
            first, second = (int(self._ranked[begin + i]) for i in (0, 1))
            others = int(counts[self._topic[begin]]) - 1
            return (
                f"{size:,} documents of topic {self._word(first, QID)} from rank "
                f"{self._position[begin] + 1} on have one "
                f"score{' in float32' if kind == 'float32' else ''}, {self._word(second, SCORE)} "
                f"({self._word(first, DOCID)}, {self._word(second, DOCID)}"
                f"{', ...' if size > 2 else ''})"
                + (f", and {others:,} more such" if others else "")
            )

        first = self._first_of_each(begins)
        self._say(findings, kind, first, self._ranked[first + 1], message)

    def _note_decisions(self, ties: Ties, begins: list[int], ends: list[int], qrels: Qrels) -> None:
        """Count topics by where the first tie begins whose documents differ in grade."""
        decided = -1
        for begin, end in zip(begins, ends, strict=True):
            lines = self._ranked[begin:end].tolist()
            topic = int(self._topic[begin])
            if topic == decided:
                continue
            qid = self._block.token(lines[0], QID).decode("utf-8", "replace")
            judged = qrels.get(qid)
            if not judged:
                continue
            words = (self._block.token(i, DOCID).decode("utf-8", "replace") for i in lines)
            if len({max(judged.get(word, 0), 0) for word in words}) > 1:
                decided = topic
                ties.deciding_anywhere += 1
                for cutoff in CUTOFFS:
                    ties.deciding[cutoff] += int(self._position[begin]) < cutoff


def duplicates(block: Block, findings: Findings) -> None:
    """Find documents that are twice in one topic: the lines of that topic are the block."""
    first: dict[bytes, int] = {}
    qid = block.token(0, QID)
    for number, docid in zip(block.numbers.tolist(), block.tokens(DOCID), strict=True):
        if docid in first:
            words = [shown(word.decode("utf-8", "replace")) for word in (docid, qid)]
            message = (
                f"document {words[0]} again in topic {words[1]} (first on line {first[docid]})"
            )
            findings.add("duplicate", number, message)
        first.setdefault(docid, number)
