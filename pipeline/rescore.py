"""One topic: its candidates, their texts and a scorer -> its lines of the new run."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pipeline import passages
from pipeline.errors import InputError, PipelineError, shown
from pipeline.store import digest_json
from pipeline.trec import scored_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.candidates import Texts
    from pipeline.models.scorer import Scorer
    from pipeline.trec import Ranking, ScoredDoc

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
    texts: tuple[str, ...]  # of `scored`

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
        digest = hashlib.sha256()
        for text in self.texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8) + data)
        return [self.qid, self.query, *ids, first_stage, digest.hexdigest()]


@dataclass
class Facts:
    """What is worth knowing about how topics were scored; kept beside a part, added up."""

    queries_cut: int = 0
    passages_cut: int = 0
    empty_passages: int = 0
    lowered_budgets: dict[str, int] = field(default_factory=dict)  # qid -> token budget

    def add(self, other: Self) -> None:
        """Take the facts of other topics in."""
        self.queries_cut += other.queries_cut
        self.passages_cut += other.passages_cut
        self.empty_passages += other.empty_passages
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
    ranking: Ranking, query: str, how: How, texts: Texts, run: Path | str, where: object
) -> Task:
    """Look up the texts of a topic's candidates.

    Args:
        run, where: name the run, and the index or collection, in the error.

    Raises:
        InputError: a candidate has no text there.
    """
    scored, below = ranking.docs[: how.depth], ranking.docs[how.depth :]
    found = texts.texts(doc.docid for doc in scored)
    for doc, text in zip(scored, found, strict=True):
        if text is None:
            from pipeline.candidates import line_of

            raise InputError(
                run,
                line_of(run, ranking.qid, doc.docid),
                f"topic {shown(ranking.qid)}: no document {shown(doc.docid)} in {where}",
                "use the index or collection that the run was made from",
            )
    read = tuple(text for text in found if text is not None)
    return Task(ranking.qid, query, scored, below if how.keep_tail else (), read)


def rescore(task: Task, scorer: Scorer, how: How) -> tuple[bytes, Facts]:
    """Score one topic and print it.

    Candidates with equal scores keep the order of the first stage.

    Raises:
        PipelineError: a score is not finite.
    """
    import numpy as np

    scores, facts = _document_scores(task, scorer, how)
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
    return scored_lines(task.qid, docids, scores, how.tag), facts


def _document_scores(task: Task, scorer: Scorer, how: How) -> tuple[NDArray[np.float32], Facts]:
    windows = task.windows(how)
    result = scorer.score(task.query, [window for some in windows for window in some])
    facts = Facts(int(result.query_cut), result.passages_cut)
    facts.empty_passages = sum(not text.strip() for text in task.texts)
    if result.lowered_budget is not None:
        facts.lowered_budgets[task.qid] = result.lowered_budget
    scores = passages.aggregate(result.scores, list(map(len, windows)), how.aggregation, how.top)
    return scores, facts


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
