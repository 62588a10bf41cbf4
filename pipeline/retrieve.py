"""Stage: topics and an index -> a first-stage run, in parts that survive a kill."""

from __future__ import annotations

import math
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import lucene, machine
from pipeline.bm25 import BM25, Searcher
from pipeline.errors import PipelineError, shown
from pipeline.executor import Executor, Item, Made
from pipeline.indexes import Place, folders, part_of, paths, shown_place
from pipeline.pace import Pace
from pipeline.parts import bucket, contents, joined, part_count
from pipeline.report import SILENT, Reporter
from pipeline.shards import Shard  # noqa: TC001 - likewise
from pipeline.stage import Job, Outcome, Recipe, need_apart, places, producing
from pipeline.store import atomic_file, digest_json
from pipeline.textfile import STREAM
from pipeline.threads import in_threads
from pipeline.topics import Topics, read_topics
from pipeline.trec import Ranking, check_tag, run_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.trec import ScoredDoc

VERSION = 1
PARTS = 32  # parts of a run, unless that makes them large:
PART_TOPICS = 128  # topics in a part on average, at most; a part is held in memory
CALL_TOPICS = 16  # topics that go to Java at once; between calls a stop is heard
SHOWN_TOPICS = 10

Group = tuple[tuple[str, str], ...]  # (qid, text) of the topics of one part


@dataclass(frozen=True)
class RetrieveSettings:
    """What to search, for what, and how; the defaults are Anserini's."""

    topics: Path  # `-`: standard input
    index: Place  # several are searched as one
    output: Path  # `-`: standard output, topic after topic, without sidecar
    field: str = "title"  # of TREC topic files
    hits: int = 1000
    k1: float = 0.9
    b: float = 0.4
    feedback: Literal["none", "rm3", "rocchio"] = "none"
    language: str | None = None  # for an index that does not say how its text was analysed,
    stemmer: Literal["porter", "krovetz", "none"] | None = None  # because others made it
    tag: str = "bm25"
    threads: int = 0  # 0: one for each processor; the output is the same for any number
    force: bool = False
    shard: Shard | None = None  # these topics alone, into a file of their own
    executor: Executor | None = None  # workers that search; None: this process


def recipe(settings: RetrieveSettings, topics: Topics | None = None) -> Recipe:
    """Name all that determines the run.

    Args:
        topics: what the file of topics holds, where it was read already.

    Raises:
        PipelineError: no usable topics, no finished index, or a setting out of its range.
    """
    _check(settings)
    inputs = {"index": lucene.index_digest(settings.index)}
    if topics is None:
        topics = read_topics(settings.topics, settings.field)
    inputs["topics"] = digest_json(list(topics.items()))
    shard = {} if settings.shard is None else {"shard": str(settings.shard)}
    return Recipe("retrieve", VERSION, _settings(settings) | shard, inputs)


def check(settings: RetrieveSettings) -> None:
    """Fail over settings that cannot be and topics that are none; no index is needed.

    Raises:
        PipelineError: so it is.
    """
    _check(settings)
    need_apart(settings.output, settings.topics, *paths(settings.index))
    read_topics(settings.topics, settings.field)


def retrieve(settings: RetrieveSettings, reporter: Reporter = SILENT) -> Outcome:
    """Search every topic unless the run is fresh; parts that are finished are not searched again.

    Counts in the outcome: `topics`, and `without_hits`, the ids of those the run lacks because no
    document of the index has any of their terms.

    Raises:
        PipelineError: as `recipe` does; or an index that cannot be read.
    """
    _check(settings)
    lucene.need_index(settings.index)
    if settings.shard is not None:
        settings = replace(settings, output=settings.shard.output(settings.output))
    need_apart(settings.output, settings.topics, *paths(settings.index))
    if str(settings.output) == STREAM:
        return _stream(settings, reporter)
    given = read_topics(STREAM, settings.field) if str(settings.topics) == STREAM else None
    with producing(
        settings.output,
        lambda: recipe(settings, given),
        force=settings.force,
        reporter=reporter,
    ) as job:
        if job.fresh:
            return job.outcome
        whole = given or read_topics(settings.topics, settings.field)
        topics = _share(settings, whole)
        parts = _finish_parts(settings, topics, job, reporter)
        blocks = {qid: content.block for qid, content in contents(parts).items()}
        found = [blocks[qid] for qid in topics if qid in blocks]
        counts = _counts(topics, [qid for qid in topics if qid not in blocks], reporter)
        if settings.shard is not None:
            at = {qid: place for place, qid in enumerate(whole)}
            filled = [at[qid] for qid in topics if qid in blocks]
            rest = [at[qid] for qid in topics if qid not in blocks]
            counts["shard"] = settings.shard.facts(len(whole), filled, rest)
        with job.commit(counts, _details(settings)), atomic_file(settings.output) as out:
            for lines in joined(found):
                out.write(lines)
        return job.outcome


def _share(settings: RetrieveSettings, topics: Topics) -> Topics:
    shard = settings.shard
    return {q: text for q, text in topics.items() if shard is None or shard.holds(q)}


def _details(settings: RetrieveSettings) -> dict[str, Any]:
    index = settings.index if isinstance(settings.index, Path) else None
    where = places(settings.output, topics=settings.topics, index=index)
    return {"threads": _threads(settings), "places": where, "field": settings.field}


def search(
    settings: RetrieveSettings, topics: Topics, reporter: Reporter = SILENT
) -> dict[str, bytes]:
    """Search some topics as `retrieve` would: the lines of each, nothing for one without hits.

    Raises:
        PipelineError: as `retrieve` does.
    """
    _check(settings)
    lucene.need_index(settings.index)
    with _searching(settings, [tuple(topics.items())], Pace(), reporter) as results:
        return dict(zip(topics, next(results), strict=True))


def _stream(settings: RetrieveSettings, reporter: Reporter) -> Outcome:
    """Write whole topics to standard output, in order, as they come."""
    started = time.monotonic()
    topics = read_topics(settings.topics, settings.field)
    groups = list(batched(topics.items(), CALL_TOPICS))
    without: list[str] = []
    done, pace = 0, Pace()
    with _searching(settings, groups, pace, reporter) as results, atomic_file(STREAM) as out:
        for group, found in zip(groups, results, strict=True):
            for (qid, _), lines in zip(group, found, strict=True):
                if not lines:
                    without.append(qid)
                out.write(lines)
            out.flush()
            done += len(group)
            reporter.advance(done, len(topics), "topics")
    counts = _counts(topics, without, reporter)
    return Outcome(STREAM, True, (), time.monotonic() - started, counts, pace=pace.record())


def _finish_parts(
    settings: RetrieveSettings, topics: Topics, job: Job, reporter: Reporter
) -> list[Path]:
    inputs = {"index": job.recipe.inputs["index"]}
    of_part = Recipe("retrieve", VERSION, _settings(settings), inputs)
    groups = {of_part.key(topics=group): group for group in _groups(topics)}
    found = {key: job.parts.find(key) for key in groups}
    missing = [key for key, part in found.items() if part is None]
    done = len(topics) - sum(len(groups[key]) for key in missing)
    reporter.advance(done, len(topics), "topics")
    if settings.executor is not None and missing:
        from pipeline.cluster import Crew

        _say_what_is_local(settings, reporter)
        maker = RetrieveMaker(_from_anywhere(settings), inputs["index"])
        with Crew(settings.executor, maker, job.parts, cpus=1, reporter=reporter) as crew:
            items = (
                Item(key, f"of topic {shown(groups[key][0][0])}", len(groups[key]), groups[key], "")
                for key in missing
            )
            for one in crew.make(items):
                found[one.item.key] = one.path
                done += one.item.size
                reporter.advance(done, len(topics), "topics")
            crew.say()
            job.details["executor"] = crew.summary()
        return [part for part in found.values() if part is not None]
    with _searching(settings, [groups[key] for key in missing], job.pace, reporter) as results:
        for key, lines in zip(missing, results, strict=True):
            found[key] = job.parts.save(key, b"".join(lines))
            done += len(groups[key])
            reporter.advance(done, len(topics), "topics")
    return [part for part in found.values() if part is not None]


def _groups(topics: Topics) -> list[Group]:
    """Cut topics into parts, in the order in which each part's first topic stands in the file."""
    count = part_count(len(topics), PARTS, PART_TOPICS)
    groups: dict[int, list[tuple[str, str]]] = {}
    for qid, text in topics.items():
        groups.setdefault(bucket(qid, count), []).append((qid, text))
    return [tuple(group) for group in groups.values()]


@contextmanager
def _searching(
    settings: RetrieveSettings, groups: list[Group], pace: Pace, reporter: Reporter
) -> Iterator[Iterator[list[bytes]]]:
    """Search groups of topics in threads; for each, in order, the run lines of its topics."""
    if not groups:
        yield iter(())
        return
    stop = threading.Event()
    with lucene.Index(settings.index) as index:
        if not index.count:
            raise PipelineError(
                f"{shown_place(settings.index)}: the index has no documents", "build it again"
            )
        index.analysis = _analysis(settings, index, reporter)
        _say_what_is_local(settings, reporter)
        searcher = Searcher(index, BM25(settings.hits, settings.k1, settings.b, settings.feedback))

        def search(group: Group) -> list[bytes]:
            lines: list[bytes] = []
            for some in batched(group, CALL_TOPICS):
                if stop.is_set():
                    break
                with pace.timing(len(some)):
                    lines += _lines(settings, index, searcher, some)
            return lines

        with closing(in_threads(search, groups, _threads(settings))) as results:
            try:
                yield results
            finally:
                stop.set()


def _lines(
    settings: RetrieveSettings, index: lucene.Index, searcher: Searcher, some: Group
) -> Iterator[bytes]:
    found = searcher.search([text for _, text in some])
    for (qid, _), docs in zip(some, found, strict=True):
        if index.several:
            _need_distinct(settings, docs)
        yield run_lines(Ranking(qid, docs), settings.tag)


@dataclass
class RetrieveMaker:
    """Searches the topics of a part on a worker."""

    settings: RetrieveSettings
    digest: str  # of the index that the driver has
    _open: tuple[lucene.Index, Searcher] | None = field(default=None, init=False)

    def open(self) -> dict[str, Any]:
        """Open the index, and say which it is."""
        settings = self.settings
        if lucene.index_digest(settings.index) != self.digest:
            raise PipelineError(
                f"{shown_place(settings.index)}: is another index here than where this was begun",
                "let all nodes see one index, or give them copies of it",
            )
        index = lucene.Index(settings.index)
        index.analysis = _analysis(settings, index, SILENT)
        bm25 = BM25(settings.hits, settings.k1, settings.b, settings.feedback)
        self._open = index, Searcher(index, bm25)
        return {"index": self.digest}

    def make(self, what: Group) -> Made:
        """Search the topics of a part."""
        if self._open is None:
            raise AssertionError("asked for a part before the index was open")
        lines: list[bytes] = []
        for some in batched(what, CALL_TOPICS):
            lines += _lines(self.settings, *self._open, some)
        return Made(b"".join(lines), {})


def _from_anywhere(settings: RetrieveSettings) -> RetrieveSettings:
    """Name the index by its absolute place: workers stand in other folders."""
    named = tuple(path.absolute() for path in paths(settings.index))
    return replace(settings, index=named[0] if len(named) == 1 else named)


def _analysis(
    settings: RetrieveSettings, index: lucene.Index, reporter: Reporter
) -> lucene.Analysis:
    language, stemmer, where = settings.language, settings.stemmer, shown_place(settings.index)
    if index.own:
        if language not in (None, index.analysis.language) or stemmer not in (
            None,
            index.analysis.stemmer,
        ):
            raise PipelineError(
                f"{where}: was analysed with language {index.analysis.language} and "
                f"stemmer {index.analysis.stemmer}",
                "leave these options out: the index says how topics have to be analysed",
            )
        return index.analysis
    chosen = replace(index.analysis, language=language or "en", stemmer=stemmer or "porter")
    how = chosen.language if chosen.language != "en" else f"English, {chosen.stemmer} stemmer"
    reporter.notice(
        f"{where}: made by another program, which leaves no word of how text was "
        f"analysed; topics are analysed as Anserini does ({how})"
    )
    return chosen


def _say_what_is_local(settings: RetrieveSettings, reporter: Reporter) -> None:
    """Folders of an index that is made of several have statistics of their own."""
    named = {path.absolute() for path in paths(settings.index)}
    for whole in filter(None, set(map(part_of, named))):
        if not named.issuperset(folders(whole)):
            reporter.notice(
                f"{shown_place(settings.index)}: part of the index {whole}: scores rest on the "
                f"statistics of this part alone, and are local; --index {whole} searches all"
            )


def _need_distinct(settings: RetrieveSettings, docs: Sequence[ScoredDoc]) -> None:
    seen: set[str] = set()
    for doc in docs:
        if doc.docid in seen:
            raise PipelineError(
                f"{shown_place(settings.index)}: document {shown(doc.docid)} is in more than one",
                "name indexes of different documents",
            )
        seen.add(doc.docid)


def _counts(topics: Topics, without: list[str], reporter: Reporter) -> dict[str, Any]:
    if without:
        names = ", ".join(without[:SHOWN_TOPICS])
        more = ", ..." if len(without) > SHOWN_TOPICS else ""
        reporter.notice(f"{len(without):,} topics without hits are not in the run: {names}{more}")
    return {"topics": len(topics), "without_hits": without}


def _settings(settings: RetrieveSettings) -> dict[str, Any]:
    """The settings that determine the run's bytes."""
    names = ("hits", "k1", "b", "feedback", "tag")
    values: dict[str, Any] = {name: getattr(settings, name) for name in names}
    for name in ("language", "stemmer"):
        if getattr(settings, name) is not None:
            values[name] = getattr(settings, name)
    return values


def _threads(settings: RetrieveSettings) -> int:
    return settings.threads or machine.cpus()


def _check(settings: RetrieveSettings) -> None:
    check_tag(settings.tag)
    if settings.executor is not None:
        settings.executor.check()
        if str(settings.output) == STREAM:
            raise PipelineError("--executor and --output -: parts need a place", "name a file")
    ranges: tuple[tuple[str, float, float, float], ...] = (
        ("hits", settings.hits, 1, 2**31 - 1),
        ("k1", settings.k1, 0, math.inf),
        ("b", settings.b, 0, 1),
        ("threads", settings.threads, 0, 1024),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high or math.isinf(value):
            bound = f"from {low:g} to {high:g}" if high < 2**31 - 1 else f"{low:g} or more"
            raise PipelineError(f"--{name} {value} is out of range", f"choose a number {bound}")
    if settings.language is not None and settings.language not in lucene.LANGUAGES:
        raise PipelineError(
            f"no analysis for language {shown(settings.language)}",
            f"known: {', '.join(lucene.LANGUAGES)}",
        )
