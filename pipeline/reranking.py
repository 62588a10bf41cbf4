"""The work of the rerank stage: look ahead, make the parts that are missing, join them."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, batched, chain, pairwise
from typing import TYPE_CHECKING, Any

from pipeline import java
from pipeline.ahead import Behind, ahead
from pipeline.errors import PipelineError, shown
from pipeline.executor import Item, Made
from pipeline.makers import Remote
from pipeline.models.scorer import Foreseeing, Reading
from pipeline.pace import Pace
from pipeline.parts import (
    Block,
    Parts,
    contents,
    docid_sums,
    facts_name,
    need_whole,
    part_count,
)
from pipeline.rescore import Facts, How, Rescored, Task, part_key, rescored
from pipeline.store import need_free
from pipeline.tasks import Tasks, read_candidates
from pipeline.trec import MAX_DOCS
from pipeline.worker import keep

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from pipeline.candidates import Candidates
    from pipeline.cluster import Crew
    from pipeline.models.scorer import Scorer
    from pipeline.report import Reporter
    from pipeline.tasks import Inputs
    from pipeline.topics import Topics

VERSION = 1  # of what a run is made of; a new one makes runs and parts stale
PARTS = 1024  # parts of a run, unless that makes them large:
PART_TOPICS = 8  # topics in a part on average, at most; a kill costs the one that is being made
LINE = 48  # bytes of a run line, for the estimate of what the disk must hold
SHOWN_TOPICS = 10
CHECKED = 64  # topics at a time


@dataclass
class _Group:
    """The topics of a part that is being made."""

    key: str
    qids: Sequence[str]
    lines: list[bytes] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    def blocks(self, part: Path) -> dict[str, Block]:
        """Where the lines of each topic lie in the part that is made of them."""
        stops = [0, *accumulate(map(len, self.lines))]
        return {
            qid: Block(part, start, stop - start)
            for qid, (start, stop) in zip(self.qids, pairwise(stops), strict=True)
        }


class Work:
    """A stage at work: what it reads, its model, and what it has done."""

    def __init__(
        self,
        inputs: Inputs,
        topics: Topics,
        candidates: Candidates | None,
        how: How,
        load: Callable[[Mapping[str, Any] | None], Scorer],
        stack: ExitStack,
        reporter: Reporter,
        parts: Parts | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Open everything, and fail now over what would stop the work hours later.

        Args:
            candidates: what was read already from a stream.
            load: loads the model, given the numeric signature of a begun stage.
            stack: closes what is opened here.
            parts: where finished parts are; without it nothing is kept.
            pace: what times the topics.

        Raises:
            PipelineError: an unknown topic or document, no space, or a model that does not load.
        """
        self._inputs, self._topics, self._parts = inputs, topics, parts
        self.pace = pace or Pace()
        self._reporter = reporter
        self._how = how
        self._tasks = Tasks(inputs, how, stack)
        if candidates is None:
            self._tasks.check_head(topics)
        self._note = f"signature-{inputs.model[:16]}"
        begun = parts.note(self._note) if parts is not None else None
        self._scorer = load(begun)
        self.candidates = candidates or read_candidates(inputs, topics, stack)
        self._tasks.look_up(self.candidates, self._scorer)
        self._check_disk()
        self._sign(begun)
        known = self._tasks.known
        if known is not None and self._signature.get("vectors") != known.content:
            raise PipelineError(
                f"{known.folder}: the model was given other vectors than lie here",
                "let nobody change them meanwhile, and give all nodes the same files",
            )
        self._facts = Facts()
        self._executor: Mapping[str, Any] = {}  # what workers did, where there were any
        self._scored_pairs = self._reused_pairs = self._scored_topics = 0
        self._seconds = 0.0
        self._blocks: dict[Path, dict[str, Block]] = {}  # of parts that were made here
        self._all_pairs = sum(self._pairs(qid) for qid in self.candidates.qids)

    # ------------------------------------------------------------ before the work

    def _check_disk(self) -> None:
        if self._parts is not None:
            lines = sum(map(self.candidates.count, self.candidates.qids))
            # Once in the parts, once in the run.
            need_free(self._inputs.output, 2 * (self.candidates.bytes + LINE * lines))

    def _sign(self, begun: Mapping[str, Any] | None) -> None:
        """Fix the numeric signature for this and for later executions."""
        self._signature = dict(self._scorer.signature)
        if self._parts is None or begun == self._signature:
            return
        if begun is not None:
            names = [name for name in self._signature if self._signature[name] != begun.get(name)]
            self._reporter.notice(
                f"{', '.join(names)} changed since this output was begun: parts that were finished "
                "then may differ in their last bits, and are made again"
            )
        self._parts.keep_note(self._note, self._signature)

    # ------------------------------------------------------------ the work

    def task(self, qid: str) -> Task:
        """Read what is scored for one topic."""
        return self._tasks.of(self.candidates.ranking(qid), self._topics[qid])

    def tasks(self) -> Generator[Task, None, None]:
        """Read what is scored for all topics, in the order of the run, ahead of its use."""
        return ahead((self.task(qid) for qid in self.candidates.qids), leave=self._leave)

    @property
    def _leave(self) -> Callable[[], None] | None:
        """What a thread does last that looked texts up."""
        return java.leave_thread if self._tasks.in_java else None

    def lines(self, topics: Iterable[Task]) -> Iterator[Rescored]:
        """Score topics, and yield what becomes of each, in their order."""
        for done in rescored(topics, self._scorer, self._how):
            pairs = len(done.task.scored)
            self.pace.add(done.began, done.ended, done.seconds, pairs=pairs)
            self.pace.add_tokens(done.result.tokens, done.result.padding)
            self._seconds += done.seconds
            self._facts.add(done.result.facts)
            self._scored_pairs += pairs
            self._scored_topics += 1
            self._advance()
            for qid, budget in done.result.facts.lowered_budgets.items():
                self._reporter.notice(
                    f"topic {shown(qid)}: out of memory; a token budget of {budget} was enough"
                )
            yield done.result

    def finish_parts(self, parts: Parts) -> list[Path]:
        """Make the parts that are missing; return all."""
        count = part_count(len(self.candidates.qids), PARTS, PART_TOPICS)
        groups = self.candidates.groups(count)
        if isinstance(self._scorer, Remote):
            return self._parts_of_crew(self._scorer.crew, groups, parts)
        self._foresee(groups, parts)
        paths: list[Path] = []
        at_work: deque[_Group] = deque()
        ready = ahead(self._ready(groups, parts), 1, self._leave)

        def missing() -> Iterator[Task]:
            for tasks, key, found in ready:
                if found is not None:
                    self._count(key, tasks, parts)
                    paths.append(found)
                    continue
                at_work.append(_Group(key, [topic.qid for topic in tasks]))
                yield from tasks

        # One after the other, across the borders of parts: topics come back in the same order.
        with Behind(partial(_save, parts)) as saving, closing(ready):
            for result in self.lines(missing()):
                group = at_work[0]
                group.lines.append(result.lines)
                group.facts.add(result.facts)
                if len(group.lines) == len(group.qids):
                    saving.give(at_work.popleft())
            self._blocks = dict(saving.results())
            return [*paths, *self._blocks]

    def _ready(
        self, groups: Sequence[Sequence[str]], parts: Parts
    ) -> Iterator[tuple[list[Task], str, Path | None]]:
        """Read topic by topic what parts are made of, and find those that were made before."""
        reader = self._scorer if isinstance(self._scorer, Reading) else None
        for group in groups:
            tasks = [self.task(qid) for qid in group]
            key = part_key(tasks, self._how, self._made_by())
            found = parts.find(key, facts_name(key))
            if found is None and reader is not None:
                for topic in tasks:
                    if topic.tokens is None:
                        reader.read(topic.query, list(chain(*topic.windows(self._how))))
            yield tasks, key, found

    def _count(self, key: str, tasks: Sequence[Task], parts: Parts) -> None:
        """Take note of a part that was made before."""
        self._facts.add(Facts.read(parts.note(facts_name(key))))
        self._reused_pairs += sum(len(topic.scored) for topic in tasks)
        self._advance()

    def _parts_of_crew(
        self, crew: Crew, groups: Sequence[Sequence[str]], parts: Parts
    ) -> list[Path]:
        """Have the missing parts made by workers; texts are read as parts are handed out."""
        paths: list[Path] = []

        def missing() -> Iterator[Item]:
            for group in groups:
                tasks = [self.task(qid) for qid in group]
                key = part_key(tasks, self._how, self._made_by())
                found = parts.find(key, facts_name(key))
                if found is None:
                    pairs = sum(len(topic.scored) for topic in tasks)
                    label = f"of topic {shown(group[0])}"
                    name = facts_name(key)
                    yield Item(key, label, pairs, (name, tasks), name)
                else:
                    self._count(key, tasks, parts)
                    paths.append(found)

        for done in crew.make(missing()):
            paths.append(done.path)
            self._facts.add(Facts.read(done.facts))
            self._scored_pairs += done.item.size
            self._seconds += done.seconds
            self.pace.took(done.seconds, len(done.item.what[1]), done.item.size)
            self._advance()
        crew.say()
        self._executor = crew.summary()
        return paths

    def _foresee(self, groups: Sequence[Sequence[str]], parts: Parts) -> None:
        """Let a two-tower model encode each passage once, however many topics it belongs to."""
        if not isinstance(self._scorer, Foreseeing):
            return
        self._scorer.foresee_queries([self._topics[qid] for group in groups for qid in group])
        if self._tasks.known is not None:
            return
        self._scorer.keep_vectors(Parts(parts.folder / "vectors", self._reporter))
        for done, group in enumerate(groups):
            tasks = [self.task(qid) for qid in group]
            if parts.find(part_key(tasks, self._how, self._made_by())) is None:
                for topic in tasks:
                    self._scorer.foresee(list(chain(*topic.windows(self._how))))
            self._reporter.advance(done, len(groups), "parts foreseen")
        self._scorer.settle()

    def _made_by(self) -> Mapping[str, Any]:
        return {
            "version": VERSION,
            "model": self._scorer.digest,
            "limits": dict(self._scorer.limits),
            "signature": self._signature,
        }

    def _pairs(self, qid: str) -> int:
        return min(self.candidates.count(qid), self._how.depth)

    def _advance(self) -> None:
        self._reporter.advance(self._scored_pairs + self._reused_pairs, self._all_pairs, "pairs")

    # ------------------------------------------------------------ after the work

    def blocks(self, parts: Sequence[Path]) -> list[Block]:
        """Put the topics of all parts into the order of the run, each with all its documents.

        Where topics lie in a part that was just made is known; others are looked through.

        Raises:
            PipelineError: a part does not hold what it should.
        """
        made = {qid: block for blocks in self._blocks.values() for qid, block in blocks.items()}
        need_whole(self._blocks)
        found = contents(part for part in parts if part not in self._blocks)
        depth = MAX_DOCS if self._how.keep_tail else self._how.depth
        for qids in batched((qid for qid in self.candidates.qids if qid not in made), CHECKED):
            asked = docid_sums([self.candidates.docids(qid, depth) for qid in qids])
            for qid, documents in zip(qids, asked, strict=True):
                if qid not in found or found[qid].documents != documents:
                    raise PipelineError(
                        f"topic {shown(qid)}: its part does not hold the documents it should",
                        "this is a mistake of the program; --force makes everything again",
                    )
        return [made.get(qid) or found[qid].block for qid in self.candidates.qids]

    def counts(self) -> dict[str, Any]:
        """Facts about the run."""
        shard = self._inputs.shard
        missing = {
            qid: place
            for place, qid in enumerate(self._topics)
            if qid not in self.candidates and (shard is None or shard.holds(qid))
        }
        without = list(missing)
        if without:
            names = ", ".join(without[:SHOWN_TOPICS]) + ", ..." * (len(without) > SHOWN_TOPICS)
            self._reporter.notice(
                f"{len(without):,} topics without candidates are not in the run: {names}"
            )
        for text in self._facts.notices():
            self._reporter.notice(text)
        facts, candidates = self._facts, self.candidates
        if times := self._times():
            self._reporter.notice(
                f"{times['ms_per_query']:.1f} ms to encode a query; {times['ms_crossing']:.2f} ms "
                "to look up and cross vectors of 1,000 candidates"
            )
        return {
            "topics": len(candidates.qids),
            "pairs": self._all_pairs,
            "queries_cut": facts.queries_cut,
            "passages_cut": facts.passages_cut,
            "empty_passages": facts.empty_passages,
            **({"documents_cut": facts.documents_cut} if facts.documents_cut else {}),
            "without_candidates": without,
        } | (
            {"shard": shard.facts(candidates.total, candidates.places, missing.values())}
            if shard
            else {}
        )

    def details(self) -> dict[str, Any]:
        """Facts about this execution."""
        return {
            "pairs_scored": self._scored_pairs,
            "pairs_reused": self._reused_pairs,
            "ms_per_1000": round(self._milliseconds(), 3),
            **self._times(),
            "weight": self._how.weight,
            "limits": dict(self._scorer.limits),
            "signature": self._signature,
            "lowered_budgets": self._facts.lowered_budgets,
        } | ({"executor": self._executor} if self._executor else {})

    def _milliseconds(self) -> float:
        """Time that 1,000 candidates took to be scored, in this execution."""
        return 1e6 * self._seconds / max(self._scored_pairs, 1)

    def _times(self) -> dict[str, float]:
        """What two towers took in this process: to encode a query, to cross 1,000 vectors."""
        if not isinstance(self._scorer, Foreseeing) or not self._scored_pairs:
            return {}
        spent = self._scorer.spent
        return {
            "ms_per_query": round(1e3 * spent["queries"] / self._scored_topics, 3),
            "ms_crossing": round(1e6 * spent["crossing"] / self._scored_pairs, 3),
        }


def _save(parts: Parts, group: _Group) -> tuple[Path, dict[str, Block]]:
    """Keep a part, and before it what is worth knowing about it; tell where its topics lie."""
    made = Made(b"".join(group.lines), group.facts.record(), facts_name(group.key))
    part = keep(parts, group.key, made)
    return part, group.blocks(part)
