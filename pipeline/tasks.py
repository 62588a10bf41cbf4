"""What a reranker scores: the candidates of topics with their texts, or with their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from pipeline import lucene
from pipeline.indexes import shown_place
from pipeline.rescore import task, token_task
from pipeline.store import scratch_file
from pipeline.trec import read_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from pipeline.candidates import Candidates, Texts
    from pipeline.indexes import Place
    from pipeline.models.scorer import Scorer
    from pipeline.rescore import How, Task
    from pipeline.shards import Shard
    from pipeline.tokens import PassageTokens
    from pipeline.topics import Topics
    from pipeline.trec import Ranking
    from pipeline.vectors import PassageVectors

SAMPLE = 200  # topics whose first and last candidates are looked up before anything is scored
HEAD = 10  # candidates of the first topic that are looked up before the whole run is read


@dataclass(frozen=True)
class Inputs:
    """Where candidates and texts come from, where the run goes, and which model makes it."""

    run: Path
    index: Place | None
    collection: Path | None
    output: Path
    model: str  # its digest
    shard: Shard | None = None  # score its topics alone
    tokens: Callable[[], PassageTokens] | None = None  # opens what stands for the texts,
    # or vectors that were made of these very texts, if so they were: docids say which is whose
    vectors: Callable[[], PassageVectors | None] | None = None


def read_candidates(inputs: Inputs, topics: Topics, stack: ExitStack) -> Candidates:
    """Read the run into a scratch file that `stack` closes.

    Raises:
        PipelineError: it is no run, or has a topic that is not among `topics`.
    """
    from pipeline.candidates import Candidates

    scratch = stack.enter_context(scratch_file(inputs.output))
    return Candidates(inputs.run, topics, scratch, inputs.shard)


class Tasks:
    """Looks up what is scored; neither index nor collection is opened where there are tokens.

    Raises:
        PipelineError: no such index, or tokens of other texts or of another tokenizer.
    """

    def __init__(self, inputs: Inputs, how: How, stack: ExitStack) -> None:
        self._inputs, self._how, self._stack = inputs, how, stack
        self._where: object = inputs.collection
        self._texts: Texts | None = None
        self._tokens: PassageTokens | None = None
        self._most = 1
        self.known = inputs.vectors() if inputs.vectors is not None else None
        if inputs.tokens is not None:
            self._tokens = inputs.tokens()
            self._where = self._tokens.folder
        elif inputs.index is not None:
            self._where = shown_place(inputs.index)
            self._texts = stack.enter_context(lucene.Index(inputs.index))

    @property
    def in_java(self) -> bool:
        """Whether texts are looked up in an index."""
        return self._inputs.tokens is None and self._inputs.index is not None

    def check_head(self, topics: Topics) -> None:
        """Look at the first topic of the run before the whole of it is read.

        Raises:
            PipelineError: it is unknown, or one of its documents is.
        """
        from pipeline.candidates import need_topic

        first = next(read_run(self._inputs.run))
        need_topic(self._inputs.run, first.qid, topics)
        if self._texts is not None or self._tokens is not None:
            self.of(first._replace(docs=first.docs[:HEAD]), "")

    def look_up(self, candidates: Candidates, scorer: Scorer) -> None:
        """Make ready for all candidates; look up the first and the last of topics over the run.

        Raises:
            PipelineError: a document is not there, or fewer tokens are kept than the model reads.
        """
        if self._tokens is not None:
            self._most = scorer.limits["max_tokens"]
            self._tokens.need_length(self._most)
        elif self._texts is None:
            self._spool(candidates)
        qids = candidates.qids
        for qid in qids[:: max(1, len(qids) // SAMPLE)]:
            ranking = candidates.ranking(qid)
            scored = ranking.docs[: self._how.depth]
            self.of(ranking._replace(docs=(scored[0], scored[-1])), "")

    def of(self, ranking: Ranking, query: str) -> Task:
        """Look up one topic.

        Raises:
            InputError: a candidate is not there.
        """
        run = self._inputs.run
        if self._tokens is not None:
            return token_task(ranking, query, self._how, self._tokens, self._most, run)
        if self._texts is None:
            raise AssertionError("asked for texts before the collection was read")
        return task(ranking, query, self._how, self._texts, run, self._where, self.known)

    def _spool(self, candidates: Candidates) -> None:
        from pipeline.candidates import Nothing, Spool

        wanted = (docid for qid in candidates.qids for docid in self._wanted(candidates, qid))
        first = next(wanted, None)
        if first is None:
            self._texts = Nothing()
            return
        scratch = self._stack.enter_context(scratch_file(self._inputs.output))
        spool = Spool(str(self._inputs.collection), chain([first], wanted), scratch)
        self._texts = spool
        if not spool.complete:
            for qid in candidates.qids:
                self.of(candidates.ranking(qid), "")

    def _wanted(self, candidates: Candidates, qid: str) -> list[str]:
        """Candidates whose text will be read."""
        docids = [doc.docid for doc in candidates.ranking(qid).docs[: self._how.depth]]
        if self.known is None:
            return docids
        return [docids[place] for place in (self.known.rows(docids) < 0).nonzero()[0].tolist()]
