"""Stage: candidates, texts and a model -> a run, in parts that survive a kill.

The unit of work is one topic: its candidates down to the depth are scored together, in batches that
depend on nothing else. Finished parts hold a few topics each, named by everything that determines
their bytes: settings, model, numeric signature, and their own queries, candidates and texts.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import collection, lucene, passages
from pipeline.errors import PipelineError
from pipeline.executor import Executor  # noqa: TC001 - settings are filled by their types at run time
from pipeline.indexes import Place, paths, shown_place
from pipeline.makers import Load, Remote, RerankMaker
from pipeline.models.folder import OVERLAP, SHIPPED, locate
from pipeline.models.reranker import advised_weight, model_digest, reads_pairs
from pipeline.models.scorer import Device, Limits, Precision, Wishes
from pipeline.parts import joined
from pipeline.report import SILENT, Reporter
from pipeline.reranking import VERSION, Work
from pipeline.rescore import How
from pipeline.shards import Shard  # noqa: TC001 - likewise
from pipeline.stage import Job, Outcome, Recipe, need_apart, places, producing
from pipeline.store import atomic_file, digest_file, digest_json, need_path
from pipeline.tasks import Inputs, read_candidates
from pipeline.textfile import STREAM
from pipeline.topics import Topics, read_topics
from pipeline.trec import check_tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.candidates import Candidates
    from pipeline.cluster import Crew
    from pipeline.models.scorer import Scorer
    from pipeline.tokens import PassageTokens
    from pipeline.vectors import PassageVectors

MOST = 1 << 31


@dataclass(frozen=True)
class RerankSettings:
    """What to rerank, with which model, and how."""

    run: Path  # candidates: any TREC run; `-`: standard input
    topics: Path  # `-`: standard input
    model: str  # a shipped name, a folder or a Hugging Face id
    output: Path  # `-`: standard output, topic after topic, without sidecar
    index: Place | None = None  # where texts are: an index, or several,
    collection: Path | None = None  # or a collection
    vectors: Path | None = None  # of two towers: passages that were encoded before
    tokens: Path | None = None  # of cross-encoders: passages that were tokenised before
    field: str = "title"  # of TREC topic files
    depth: int = 1000  # candidates of a topic that are scored
    tail: Literal["keep", "drop"] = "keep"  # what becomes of those below
    interpolate: float | None = None  # weight of the model beside the first stage; None: see folder
    aggregation: passages.Aggregation = (
        "none"  # none: a document is one passage, cut where it is too long
    )
    window: int = passages.SIZE  # words
    stride: int = passages.STRIDE
    windows: int = passages.LIMIT  # of one document, at most
    top: int = passages.TOP  # windows whose mean `topk` takes
    max_query_tokens: int | None = None  # these three: None takes what the model's folder advises
    max_tokens: int | None = None
    positive: int | None = None
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0  # 0: one for each processor
    token_budget: int = 0  # padded tokens of one forward pass; 0: what suits the device
    tag: str = "rerank"
    force: bool = False
    shard: Shard | None = None  # these topics alone, into a file of their own
    executor: Executor | None = None  # workers that score the parts; None: this process


def recipe(
    settings: RerankSettings, topics: Topics | None = None, candidates: Candidates | None = None
) -> Recipe:
    """Name all that determines the run.

    Device and token budget are not part of it: they decide last bits, not the run.

    Args:
        topics, candidates: what was read already, from streams that cannot be read twice.

    Raises:
        PipelineError: no usable topics, run, index, collection or model, or a setting out of range.
    """
    _check(settings)
    _need_files(settings)
    if topics is None:
        topics = read_topics(settings.topics, settings.field)
    inputs = {
        "run": digest_file(settings.run) if candidates is None else candidates.digest,
        "topics": digest_json(list(topics.items())),
        "model": model_digest(settings.model),
    }
    if settings.index is not None:
        inputs["index"] = lucene.index_digest(settings.index)
    else:
        inputs["collection"] = collection.digest(str(settings.collection))
    if settings.vectors is not None:
        from pipeline import vectors

        inputs["vectors"] = vectors.digest(settings.vectors)
    values: dict[str, Any] = {name: getattr(settings, name) for name in ("depth", "tail", "tag")}
    if settings.shard is not None:
        values["shard"] = str(settings.shard)
    return Recipe("rerank", VERSION, values | _scoring(settings), inputs)


def check(settings: RerankSettings) -> None:
    """Fail over settings that cannot be and a model that is not there; no other input is needed.

    Raises:
        PipelineError: so it is.
    """
    _check(settings)
    how_of(settings)
    model_digest(settings.model)


def rerank(settings: RerankSettings, reporter: Reporter = SILENT) -> Outcome:
    """Rerank unless the run is fresh; pairs of finished parts are not scored again.

    Counts in the outcome: `topics` and `pairs` of the run; `queries_cut`,
    `passages_cut` and `empty_passages`; `without_candidates`, the ids of topics that the run lacks.
    Details: `pairs_scored` and `pairs_reused` by this execution, the numeric `signature`, and
    `lowered_budgets`, the token budget of topics that ran out of memory.

    Raises:
        PipelineError: as `recipe` does; an unknown topic or document; a score that is not finite.
    """
    started = time.monotonic()
    if settings.shard is not None:
        settings = replace(settings, output=settings.shard.output(settings.output))
    _check(settings)
    _need_files(settings)
    inputs = Inputs(
        settings.run,
        settings.index,
        settings.collection,
        settings.output,
        model_digest(settings.model),
        settings.shard,
        partial(_tokens, settings) if settings.tokens is not None else None,
        partial(_vectors, settings) if settings.vectors is not None else None,
    )

    wishes = Wishes(settings.device, settings.precision, settings.threads, settings.token_budget)
    limits = Limits(settings.max_query_tokens, settings.max_tokens, settings.positive)
    load = Load(settings.model, wishes, limits, settings.vectors)

    topics: Topics | None = None
    candidates: Candidates | None = None
    with ExitStack() as stack:
        # Streams cannot be read twice, and nothing may be written to one that would be taken back.
        streams = _is_stream(settings.run) or _is_stream(settings.output)
        if streams or _is_stream(settings.topics):
            topics = read_topics(settings.topics, settings.field)
        if streams and topics is not None:
            candidates = read_candidates(inputs, topics, stack)
        if _is_stream(settings.output) and topics is not None:
            work = Work(inputs, topics, candidates, how_of(settings), load, stack, reporter)
            done = _to_stream(work)
            return replace(done, seconds=time.monotonic() - started, pace=work.pace.record())
        with producing(
            settings.output,
            lambda: recipe(settings, topics, candidates),
            force=settings.force,
            reporter=reporter,
        ) as job:
            if job.fresh:
                return job.outcome
            known = topics or read_topics(settings.topics, settings.field)
            how = how_of(settings)

            def loaded(begun: Mapping[str, Any] | None) -> Scorer:
                if settings.executor is None:
                    return load(begun)
                crew = _crew(settings.executor, load, how, begun, inputs.model, job, reporter)
                return Remote(stack.enter_context(crew))

            work = Work(
                inputs, known, candidates, how, loaded, stack, reporter, job.parts, job.pace
            )
            blocks = work.blocks(work.finish_parts(job.parts))
            details = work.details() | {"places": _places(settings), "field": settings.field}
            with job.commit(work.counts(), details), atomic_file(settings.output) as out:
                for lines in joined(blocks):
                    out.write(lines)
            return job.outcome


def _crew(
    executor: Executor,
    load: Load,
    how: How,
    begun: Mapping[str, Any] | None,
    digest: str,
    job: Job,
    reporter: Reporter,
) -> Crew:
    """Hire workers; one processor each unless told otherwise."""
    from pipeline.cluster import Crew

    cpus = load.wishes.threads or 1
    load = replace(load, wishes=replace(load.wishes, threads=cpus)).from_anywhere()
    return Crew(
        executor,
        RerankMaker(load, how, begun, digest),
        job.parts,
        cpus=cpus,
        gpus=int(load.wishes.device == "cuda"),
        unit="pairs",
        reporter=reporter,
    )


def _vectors(settings: RerankSettings) -> PassageVectors | None:
    """Open vectors, if they were made of the very index or collection given, text by text."""
    from pipeline.vectors import PassageVectors

    if settings.vectors is None or settings.aggregation != "none":
        return None
    found = PassageVectors(settings.vectors)
    if settings.index is not None:
        texts = lucene.index_digest(settings.index)
    else:
        texts = collection.digest(str(settings.collection))
    return found if found.texts == texts else None


def _tokens(settings: RerankSettings) -> PassageTokens:
    """Open the tokens that stand for the texts, if they are this tokenizer's of these texts."""
    from pipeline.models.tokenizing import Vocabulary
    from pipeline.tokens import PassageTokens

    if settings.tokens is None:
        raise AssertionError("tokens were not named")
    found = PassageTokens(settings.tokens)
    if settings.index is not None:
        found.need_texts(lucene.index_digest(settings.index), shown_place(settings.index))
    else:
        found.need_texts(collection.digest(str(settings.collection)), settings.collection)
    found.need_tokenizer(Vocabulary(locate(settings.model)).digest, settings.model)
    found.need_whole()
    return found


def _places(settings: RerankSettings) -> dict[str, str]:
    model = settings.model
    found = places(
        settings.output,
        run=settings.run,
        topics=settings.topics,
        model=model,
        index=settings.index if isinstance(settings.index, Path) else None,
        collection=settings.collection,
    )
    return found | ({"model": model} if model in (*SHIPPED, OVERLAP) else {})


def _to_stream(work: Work) -> Outcome:
    """Write whole topics to standard output, in the order of the run, as they are scored."""
    with atomic_file(STREAM) as out, closing(work.tasks()) as tasks:
        for done in work.lines(tasks):
            out.write(done.lines)
            out.flush()
    return Outcome(STREAM, computed=True, counts=work.counts(), details=work.details())


# ---------------------------------------------------------------- settings


def how_of(settings: RerankSettings) -> How:
    """Take from the settings what scoring a topic needs."""
    weight = settings.interpolate
    return How(
        settings.depth,
        settings.tail == "keep",
        advised_weight(settings.model) if weight is None else weight,
        settings.aggregation,
        settings.window,
        settings.stride,
        settings.windows,
        settings.top,
        settings.tag,
    )


def _scoring(settings: RerankSettings) -> dict[str, Any]:
    """The settings that determine scores; those of an aggregation only where there is one."""
    how = how_of(settings)
    values: dict[str, Any] = {"interpolate": how.weight, "precision": settings.precision}
    for name in ("max_query_tokens", "max_tokens", "positive"):
        if getattr(settings, name) is not None:
            values[name] = getattr(settings, name)
    if how.aggregation != "none":
        names = ("aggregation", "window", "stride", "windows", "top")
        values |= {name: getattr(settings, name) for name in names}
    return values


def _is_stream(path: Path) -> bool:
    return str(path) == STREAM


def _check(settings: RerankSettings) -> None:
    check_tag(settings.tag)
    collection.need_one_source(settings.index, settings.collection)
    if settings.executor is not None:
        settings.executor.check()
        if _is_stream(settings.output):
            raise PipelineError("--executor and --output -: parts need a place", "name a file")
    if settings.tokens is not None:
        if settings.aggregation != "none":
            raise PipelineError(
                "--tokens and --windows together: tokens are of whole passages",
                "leave --tokens out, and texts are read and cut",
            )
        if settings.vectors is not None or not reads_pairs(settings.model):
            raise PipelineError(
                f"--tokens and {settings.model}: tokens are for cross-encoders",
                "leave --tokens out; of two towers, vectors are kept: pipeline encode",
            )
    if _is_stream(settings.run) and _is_stream(settings.topics):
        raise PipelineError(
            "run and topics cannot both come from standard input", "name a file for one of them"
        )
    weight = settings.interpolate
    ranges: tuple[tuple[str, float | None, float, float], ...] = (
        ("depth", settings.depth, 1, MOST),
        ("interpolate", weight, 0, 1),
        ("window", settings.window, 1, MOST),
        ("stride", settings.stride, 1, settings.window),
        ("windows", settings.windows, 1, MOST),
        ("top", settings.top, 1, MOST),
        ("max-query-tokens", settings.max_query_tokens, 1, MOST),
        ("max-tokens", settings.max_tokens, 1, MOST),
        ("positive", settings.positive, 0, 1),
        ("threads", settings.threads, 0, 1024),
        ("token-budget", settings.token_budget, 0, MOST),
    )
    for name, value, low, high in ranges:
        if value is not None and not low <= value <= high:
            bound = f"from {low:g} to {high:g}" if high < MOST else f"{low:g} or more"
            raise PipelineError(f"--{name} {value} is out of range", f"choose a number {bound}")
    indexes = () if settings.index is None else paths(settings.index)
    folders = (*indexes, settings.tokens, settings.vectors)
    need_apart(settings.output, settings.run, settings.topics, settings.collection, *folders)


def _need_files(settings: RerankSettings) -> None:
    for path, what in (
        (settings.run, "run"),
        (settings.topics, "file of topics"),
        *([(settings.vectors / "about.json", "vectors")] if settings.vectors else []),
        *([(settings.tokens, "folder of tokens")] if settings.tokens else []),
    ):
        need_path(path, what)
