"""One topic: its candidates, their texts and a scorer -> its lines of the new run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pipeline import passages
from pipeline.errors import InputError, PipelineError, shown
from pipeline.models.scorer import Foreseeing, Launching, held_back
from pipeline.store import digest_bytes, digest_json, digest_text
from pipeline.trec import scored_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.candidates import Texts
    from pipeline.models.scorer import Scored, Scorer
    from pipeline.tokens import PassageTokens, Tokens
    from pipeline.trec import Ranking, ScoredDoc
    from pipeline.vectors import PassageVectors

TAIL_STEP = 0.001  # between the scores of candidates that were not scored


@dataclass(frozen=True)
class How:
    """Everything beside model, topic and texts that determines the lines of a topic."""

    depth: int  # candidates that are scored
    keep_tail: bool  # whether those below follow, with lower scores
    weight: float  # of the model beside the first stage, 0 to 1
    aggregation: passages.Aggregation
    window: int
    stride: int
    windows: int
    top: int
    tag: str


class Task(NamedTuple):
    """What is scored for one topic."""

    qid: str
    query: str
    scored: tuple[ScoredDoc, ...]  # with first-stage scores
    tail: tuple[ScoredDoc, ...]
    texts: tuple[str, ...]  # of `scored`,
    tokens: Tokens | None = None  # or what stands for them
    rows: NDArray[np.int64] | None = None  # in vectors that were given, and then no text; -1: text

    def windows(self, how: How) -> list[list[str]]:
        """Cut each text into what is scored of it."""
        if how.aggregation == "none":
            return [[text] for text in self.texts]
        limit = 1 if how.aggregation == "firstp" else how.windows
        return [passages.windows(text, how.window, how.stride, limit) for text in self.texts]

    def record(self, how: How) -> list[Any]:
        """Everything of this topic that determines its lines, texts by their digest."""
        first_stage = [doc.score for doc in self.scored] if how.weight < 1 else None
        ids = [[doc.docid for doc in docs] for docs in (self.scored, self.tail)]
        keys = self.tokens.keys if self.tokens else b"".join(map(digest_text, self._read))
        # The numeric signature has the digest of the vectors: docids say which.
        by_docid = [] if self.rows is None else ["vectors by docid"]
        return [self.qid, self.query, *ids, first_stage, digest_bytes(keys), *by_docid]

    @property
    def _read(self) -> Sequence[str]:
        """Texts of documents whose vector is not known."""
        if self.rows is None:
            return self.texts
        return [self.texts[place] for place in (self.rows < 0).nonzero()[0].tolist()]

    @property
    def empty(self) -> int:
        """Number of passages without anything in them."""
        if self.tokens is not None:
            return int((self.tokens.lengths == 0).sum())
        return sum(map(passages.blank, self._read))

    def unread(self, how: How) -> int:
        """Number of documents that go on behind their last window."""
        if how.aggregation in ("none", "firstp"):
            return 0
        cut = (how.window, how.stride, how.windows)
        return sum(passages.goes_on(text, *cut) for text in self.texts)


class Rescored(NamedTuple):
    """The lines of a topic, and what it took to make them."""

    lines: bytes
    facts: Facts
    tokens: int  # that the model was given; 0 where it does not say
    padding: int


@dataclass
class Facts:
    """What is worth knowing about how topics were scored; kept beside a part, added up."""

    queries_cut: int = 0
    passages_cut: int = 0
    empty_passages: int = 0
    documents_cut: int = 0  # behind the last of their windows
    lowered_budgets: dict[str, int] = field(default_factory=dict)  # qid -> token budget

    def add(self, other: Self) -> None:
        """Take the facts of other topics in."""
        self.queries_cut += other.queries_cut
        self.passages_cut += other.passages_cut
        self.empty_passages += other.empty_passages
        self.documents_cut += other.documents_cut
        self.lowered_budgets |= other.lowered_budgets

    def record(self) -> dict[str, Any]:
        """Return what is not zero, as JSON takes it."""
        return {name: value for name, value in asdict(self).items() if value}

    def notices(self) -> list[str]:
        """Say what a user should hear."""
        sentences = (
            (self.queries_cut, "queries were longer than the model takes, and cut"),
            (self.passages_cut, "passages were longer than the model takes, and cut"),
            (self.empty_passages, "passages are empty, and were scored as such"),
            (self.documents_cut, "documents go on behind their last window (--max-windows)"),
        )
        return [f"{number:,} {text}" for number, text in sentences if number]

    @classmethod
    def read(cls, record: Mapping[str, Any] | None) -> Self:
        """Read a record; whatever is wrong with it counts as zero."""
        facts = cls()
        for name, value in (record or {}).items():
            if name in asdict(facts) and type(value) is type(getattr(facts, name)):
                setattr(facts, name, value)
        return facts


def task(
    ranking: Ranking,
    query: str,
    how: How,
    texts: Texts,
    run: Path | str,
    where: object,
    known: PassageVectors | None = None,
) -> Task:
    """Look up the texts of a topic's candidates.

    Args:
        run, where: name the run, and the index or collection, in the error.
        known: vectors of those very texts; what has one is not looked up.

    Raises:
        InputError: a candidate has no text there.
    """
    scored, below = ranking.docs[: how.depth], ranking.docs[how.depth :]
    rows = None if known is None else known.rows([doc.docid for doc in scored])
    asked = scored
    if rows is not None:
        asked = tuple(scored[place] for place in (rows < 0).nonzero()[0].tolist())
    found = texts.texts(doc.docid for doc in asked) if asked else []
    for doc, text in zip(asked, found, strict=True):
        if text is None:
            raise _missing(run, ranking.qid, doc.docid, where)
    read = [text for text in found if text is not None]
    if rows is not None:
        left = iter(read)
        read = ["" if row >= 0 else next(left) for row in rows.tolist()]
    tail = below if how.keep_tail else ()
    return Task(ranking.qid, query, scored, tail, tuple(read), rows=rows)


def token_task(
    ranking: Ranking, query: str, how: How, tokens: PassageTokens, most: int, run: Path | str
) -> Task:
    """Look up the tokens of a topic's candidates, at most so many of each.

    Raises:
        InputError: a candidate has none there.
    """
    scored, below = ranking.docs[: how.depth], ranking.docs[how.depth :]
    found, missing = tokens.find([doc.docid for doc in scored], most)
    if missing:
        raise _missing(run, ranking.qid, scored[missing[0]].docid, tokens.folder)
    return Task(ranking.qid, query, scored, below if how.keep_tail else (), (), found)


def _missing(run: Path | str, qid: str, docid: str, where: object) -> InputError:
    from pipeline.candidates import line_of

    return InputError(
        run,
        line_of(run, qid, docid),
        f"topic {shown(qid)}: no document {shown(docid)} in {where}",
        "use the index or collection that the run was made from",
    )


def rescore(task: Task, scorer: Scorer, how: How) -> Rescored:
    """Score one topic and print it; as `begin` does."""
    return begin(task, scorer, how)()


def begin(task: Task, scorer: Scorer, how: How) -> Callable[[], Rescored]:
    """Begin to score one topic; what is returned finishes it, and prints it.

    Candidates with equal scores keep the order of the first stage.

    Raises:
        PipelineError: a score is not finite.
    """
    if task.tokens is not None:
        if not isinstance(scorer, Launching):
            raise AssertionError("tokens are for cross-encoders")
        finish = scorer.launch(task.query, task.tokens)
        return lambda: _printed(task, finish(), [1] * len(task.scored), how)
    if task.rows is not None:
        if not isinstance(scorer, Foreseeing):
            raise AssertionError("vectors are for two towers")
        result = scorer.score_rows(task.query, task.rows, task.texts)
        return lambda: _printed(task, result, [1] * len(task.scored), how)
    windows = task.windows(how)
    texts = [window for some in windows for window in some]
    counts = list(map(len, windows))
    if isinstance(scorer, Launching):
        launched = scorer.launch(task.query, texts)
        return lambda: _printed(task, launched(), counts, how)
    return lambda: _printed(task, scorer.score(task.query, texts), counts, how)


class Done(NamedTuple):
    """One topic that was scored, and when, as `time.perf_counter` counts."""

    task: Task
    result: Rescored
    began: float
    ended: float
    seconds: float  # spent on it; other topics may have come between


def rescored(tasks: Iterable[Task], scorer: Scorer, how: How) -> Iterator[Done]:
    """Score topics one after the other.

    A device is given the next topics before it is asked for the scores of the first, so that it
    need not wait for us to read, to print and to write.
    """

    def begun() -> Iterator[tuple[Task, Callable[[], Rescored], float, float]]:
        for topic in tasks:
            began = time.perf_counter()
            finish = begin(topic, scorer, how)
            yield topic, finish, began, time.perf_counter() - began

    for topic, finish, began, launched in held_back(begun(), scorer):
        asked = time.perf_counter()
        result = finish()
        ended = time.perf_counter()
        yield Done(topic, result, began, ended, launched + ended - asked)


def _printed(task: Task, result: Scored, windows: Sequence[int], how: How) -> Rescored:
    import numpy as np

    scores = passages.aggregate(result.scores, windows, how.aggregation, how.top)
    broken = np.flatnonzero(~np.isfinite(scores))
    if len(broken):
        raise PipelineError(
            f"topic {shown(task.qid)}, document {shown(task.scored[broken[0]].docid)}: "
            f"the score is {scores[broken[0]]}",
            "the model or its precision is at fault: try --precision fp32",
        )
    if how.weight < 1:
        first_stage = np.array([doc.score for doc in task.scored], np.float32)
        mixed = how.weight * standardised(scores) + (1 - how.weight) * standardised(first_stage)
        scores = mixed.astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    docids = [task.scored[place].docid for place in order.tolist()]
    docids += [doc.docid for doc in task.tail]
    below = float(scores[order[-1]]) - TAIL_STEP * np.arange(1, len(task.tail) + 1)
    scores = np.concatenate([scores[order], below.astype(np.float32)])
    lines = scored_lines(task.qid, docids, scores, how.tag)
    return Rescored(lines, _facts(task, result, how), result.tokens, result.padding)


def _facts(task: Task, result: Scored, how: How) -> Facts:
    facts = Facts(int(result.query_cut), result.passages_cut)
    facts.empty_passages, facts.documents_cut = task.empty, task.unread(how)
    if result.lowered_budget is not None:
        facts.lowered_budgets[task.qid] = result.lowered_budget
    return facts


def standardised(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Shift and scale to mean 0 and deviation 1; equal scores say nothing, and become 0."""
    import numpy as np

    exact = scores.astype(np.float64)
    spread = float(exact.std())
    centred = exact - exact.mean()
    # Summing leaves a spread of rounding errors where there is none.
    if spread <= 1e-12 * float(np.abs(exact).max()):
        return np.zeros_like(exact)
    return centred / spread


def part_key(tasks: Sequence[Task], how: How, made_by: Mapping[str, Any]) -> str:
    """Name a part by everything that determines its bytes."""
    settings = asdict(how)
    # These act through the lists of scored and of appended candidates, which are in the records.
    del settings["depth"], settings["keep_tail"]
    return digest_json([settings, dict(made_by), [task.record(how) for task in tasks]])
