"""Score a sample of a run's topics again, and say what came out differently and what has changed.

The sidecar of the run says how it was made; texts, candidates and model are looked for where they
lay then. The numeric signature of the run is kept as far as this machine can.
"""

from __future__ import annotations

import hashlib
import heapq
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import lucene, rerank, retrieve, stage
from pipeline.candidates import Spool
from pipeline.errors import PipelineError, shown
from pipeline.models.folder import OVERLAP, SHIPPED
from pipeline.models.reranker import load_scorer
from pipeline.models.scorer import Limits, Wishes
from pipeline.report import SILENT, Reporter
from pipeline.rerank import RerankSettings, how_of
from pipeline.rescore import rescore, task
from pipeline.retrieve import RetrieveSettings
from pipeline.store import digest_file, scratch_file
from pipeline.textfile import STREAM
from pipeline.topics import read_topics
from pipeline.trec import Ranking, ScoredDoc, read_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.candidates import Texts
    from pipeline.models.scorer import Scorer
    from pipeline.rescore import How, Task
    from pipeline.topics import Topics

SAMPLE = 10


@dataclass(frozen=True)
class VerifySettings:
    """Which run, how much of it, and where to look if things have moved since."""

    run: Path
    sample: int = SAMPLE  # topics
    seed: int = 42
    tolerance: float = 0.0  # of scores, before a difference counts
    places: Mapping[str, Path | str] = field(default_factory=dict)
    """run (the candidates), topics, model, index or collection; what is not here, the sidecar
    knows."""
    threads: int = 0  # 0: every processor


@dataclass(frozen=True)
class TopicCheck:
    """One topic scored again."""

    qid: str
    documents: int
    difference: float  # the largest of its scores
    docid: str  # whose it is
    moved: tuple[tuple[str, int, int], ...]  # (docid, rank in the run, rank now), 0: not there


@dataclass(frozen=True)
class Verification:
    """What scoring again has found."""

    run: str
    stage: str
    topics: int  # of the whole run
    tolerance: float
    checked: tuple[TopicCheck, ...]
    changed: tuple[str, ...]  # since the run was made: settings, inputs, the run itself
    surroundings: tuple[str, ...]  # versions and hardware: they may change last bits
    edited: bool = False  # whether the file is another than the one that was written

    @property
    def worst(self) -> TopicCheck:
        """The topic with the largest difference."""
        return max(self.checked, key=lambda each: each.difference)

    @property
    def moved(self) -> int:
        """Documents whose rank is another, over all topics checked."""
        return sum(len(each.moved) for each in self.checked)

    @property
    def well(self) -> bool:
        """Whether the run is what was written, and what its recipe makes today."""
        return not self.edited and not self.moved and self.worst.difference <= self.tolerance

    def record(self) -> dict[str, Any]:
        """For machines."""
        return {
            "schema": 1,
            "run": self.run,
            "stage": self.stage,
            "topics": self.topics,
            "checked": len(self.checked),
            "documents": sum(each.documents for each in self.checked),
            "largest_difference": self.worst.difference,
            "ranks_changed": self.moved,
            "tolerance": self.tolerance,
            "verified": self.well,
            "changed": list(self.changed),
            "surroundings": list(self.surroundings),
            "per_topic": [
                {
                    "qid": each.qid,
                    "documents": each.documents,
                    "largest_difference": each.difference,
                    "docid": each.docid,
                    "moved": [list(one) for one in each.moved],
                }
                for each in self.checked
            ],
        }


def verify(settings: VerifySettings, reporter: Reporter = SILENT) -> Verification:
    """Score a seeded sample of topics again.

    Raises:
        PipelineError: the run has no sidecar of ours, or what it was made from cannot be found or
            no longer holds its topics and documents.
    """
    if settings.sample < 1:
        raise PipelineError(f"--sample {settings.sample} is out of range", "choose 1 or more")
    if not settings.tolerance >= 0:
        raise PipelineError(f"--tolerance {settings.tolerance:g} is below 0", "choose 0 or more")
    sidecar = _sidecar(settings.run)
    count, sample = _sampled(settings)
    if sidecar["recipe"]["stage"] == "rerank":
        again, changed, signature = _rerank(settings, sidecar, sample, reporter)
    else:
        again, changed, signature = _retrieve(settings, sidecar, sample, reporter)
    checked = tuple(_compared(sample[qid], again.get(qid, b"")) for qid in sample)
    edited = digest_file(settings.run) != sidecar["output"].get("sha256")
    return Verification(
        str(settings.run),
        sidecar["recipe"]["stage"],
        count,
        settings.tolerance,
        checked,
        (*changed, *(["the run was edited"] if edited and "output edited" not in changed else [])),
        tuple(_surroundings(sidecar, signature)),
        edited,
    )


def _sidecar(run: Path) -> dict[str, Any]:
    if str(run) == STREAM:
        raise PipelineError("a stream has no sidecar", "name the file of the run")
    if not run.exists():
        raise PipelineError(f"{run}: no such run", "check the path")
    sidecar = stage.read_sidecar(run)
    if sidecar is None or sidecar.get("state") != "finished":
        raise PipelineError(
            f"{run}: no finished sidecar beside it, so nothing tells how it was made",
            "only runs that this program wrote can be verified, and their RUN.json with them",
        )
    name = sidecar["recipe"].get("stage")
    if name not in ("rerank", "retrieve"):
        raise PipelineError(
            f"{run}: was made by stage {shown(name)}",
            "runs of retrieve and rerank are verified; for others, verify what they are made of",
        )
    return sidecar


def _sampled(settings: VerifySettings) -> tuple[int, dict[str, Ranking]]:
    """Take the topics whose ids have the lowest seeded digests: of any run, in one pass."""
    kept: list[tuple[int, str, Ranking]] = []  # a heap, the highest digest first
    count = 0
    for ranking in read_run(settings.run):
        count += 1
        digest = hashlib.sha256(f"{settings.seed} {ranking.qid}".encode()).digest()
        entry = (-int.from_bytes(digest[:8]), ranking.qid, ranking)
        if len(kept) < settings.sample:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    return count, {qid: ranking for _, qid, ranking in sorted(kept, reverse=True)}


# ---------------------------------------------------------------- the stages, again


def _place(settings: VerifySettings, sidecar: Mapping[str, Any], name: str) -> Path | str | None:
    """Find an input: where the user says, or where it lay when the run was made."""
    if name in settings.places:
        return settings.places[name]
    others = {"index": "collection", "collection": "index"}
    if others.get(name) in settings.places:
        return None
    known = sidecar["details"].get("places")
    place = known.get(name) if isinstance(known, dict) else None
    if not isinstance(place, str):
        return None
    named = name == "model" and place in (*SHIPPED, OVERLAP)
    return place if named else stage.find_place(settings.run, place)


def _needed(settings: VerifySettings, sidecar: Mapping[str, Any], name: str) -> Path:
    place = _place(settings, sidecar, name)
    if place is None or not Path(place).exists():
        at = f" ({place})" if place is not None else ""
        raise PipelineError(
            f"{settings.run}: its {_WORDS[name]} cannot be found{at}",
            f"say where it is: {_OPTIONS[name]}",
        )
    return Path(place)


_WORDS = {"run": "candidates", "topics": "file of topics", "index": "index", "model": "model"}
_OPTIONS = {
    "run": "--run FILE", "topics": "--topics FILE", "index": "--index DIR", "model": "--model NAME",
}  # fmt: skip


def _known[S: (RerankSettings, RetrieveSettings)](made: S, sidecar: Mapping[str, Any]) -> S:
    """Take over the settings that the recipe names, where they still have their type."""
    names = {each.name for each in fields(made)}
    recorded = sidecar["recipe"]["settings"]
    given = {name: value for name, value in recorded.items() if name in names}
    topics_field = sidecar["details"].get("field")
    if isinstance(topics_field, str):
        given["field"] = topics_field
    for name, value in given.items():
        if not isinstance(value, str | int | float) and value is not None:
            raise PipelineError(
                f"the recipe of this run has no usable {name}: {shown(value)}",
                "its sidecar was edited; make the run again",
            )
    return replace(made, **given)


def _rerank(
    settings: VerifySettings,
    sidecar: dict[str, Any],
    sample: dict[str, Ranking],
    reporter: Reporter,
) -> tuple[dict[str, bytes], tuple[str, ...], Mapping[str, Any]]:
    model = _place(settings, sidecar, "model")
    if model is None:
        raise PipelineError(
            f"{settings.run}: its sidecar does not say which model made it",
            "say which: --model NAME",
        )
    texts = {name: _place(settings, sidecar, name) for name in ("index", "collection")}
    if not any(texts.values()):
        raise PipelineError(
            f"{settings.run}: its sidecar does not say where its texts are",
            "say where: --index DIR or --collection PATH",
        )
    made = RerankSettings(
        run=_needed(settings, sidecar, "run"),
        topics=_needed(settings, sidecar, "topics"),
        model=str(model),
        output=settings.run,
        index=None if texts["index"] is None else Path(texts["index"]),
        collection=None if texts["collection"] is None else Path(texts["collection"]),
    )
    made = _known(made, sidecar)
    changed = stage.status(settings.run, rerank.recipe(made)).reasons
    topics = read_topics(made.topics, made.field)
    with ExitStack() as stack:
        scorer = _scorer(settings, made, sidecar)
        how = how_of(made)
        again: dict[str, bytes] = {}
        for each in _tasks(made, topics, sample, how, stack):
            again[each.qid] = rescore(each, scorer, how).lines
            reporter.advance(len(again), len(sample), "topics")
        return again, changed, scorer.signature


def _scorer(settings: VerifySettings, made: RerankSettings, sidecar: Mapping[str, Any]) -> Scorer:
    begun = sidecar["details"].get("signature")
    wishes = Wishes(made.device, made.precision, settings.threads)
    limits = Limits(made.max_query_tokens, made.max_tokens, made.positive)
    return load_scorer(made.model, wishes, limits, begun if isinstance(begun, dict) else None)


def _tasks(
    made: RerankSettings,
    topics: Topics,
    sample: Mapping[str, Ranking],
    how: How,
    stack: ExitStack,
) -> Iterable[Task]:
    """Read candidates and texts of the sample."""
    candidates = {ranking.qid: ranking for ranking in read_run(made.run) if ranking.qid in sample}
    for qid in sample:
        if qid not in candidates or qid not in topics:
            where = made.run if qid not in candidates else made.topics
            raise PipelineError(
                f"{where}: topic {shown(qid)} is not there any more",
                "name the file that the run was made from",
            )
    texts: Texts
    if made.index is not None:
        texts = stack.enter_context(lucene.Index(made.index))
    else:
        wanted = (doc.docid for each in candidates.values() for doc in each.docs[: how.depth])
        scratch = stack.enter_context(scratch_file(made.output))
        texts = Spool(str(made.collection), wanted, scratch)
    place = made.index or made.collection
    return [task(candidates[qid], topics[qid], how, texts, made.run, place) for qid in sample]


def _retrieve(
    settings: VerifySettings,
    sidecar: dict[str, Any],
    sample: dict[str, Ranking],
    reporter: Reporter,
) -> tuple[dict[str, bytes], tuple[str, ...], Mapping[str, Any]]:
    made = RetrieveSettings(
        topics=_needed(settings, sidecar, "topics"),
        index=_needed(settings, sidecar, "index"),
        output=settings.run,
        threads=1,
    )
    made = _known(made, sidecar)
    changed = stage.status(settings.run, retrieve.recipe(made)).reasons
    topics = read_topics(made.topics, made.field)
    if missing := [qid for qid in sample if qid not in topics]:
        raise PipelineError(
            f"{made.topics}: topic {shown(missing[0])} is not there any more",
            "name the file that the run was made from",
        )
    again = retrieve.search(made, {qid: topics[qid] for qid in sample}, reporter)
    return again, changed, {}


# ---------------------------------------------------------------- comparing


def _compared(before: Ranking, lines: bytes) -> TopicCheck:
    """Hold one topic of the run against its lines of today."""
    import numpy as np

    words = [line.split() for line in lines.decode().splitlines()]
    after = {w[2]: (rank, float(np.float32(w[4]))) for rank, w in enumerate(words, 1)}
    ranks = {doc.docid: rank for rank, doc in enumerate(before.docs, 1)}
    moved = [
        (docid, rank, after[docid][0] if docid in after else 0)
        for docid, rank in ranks.items()
        if docid not in after or after[docid][0] != rank
    ]
    moved += [(docid, 0, rank) for docid, (rank, _) in after.items() if docid not in ranks]
    common = [doc for doc in before.docs if doc.docid in after]
    none = ScoredDoc("", 0.0)
    worst = max(common, key=lambda doc: abs(doc.score - after[doc.docid][1]), default=none)
    difference = abs(worst.score - after[worst.docid][1]) if common else 0.0
    return TopicCheck(before.qid, len(before.docs), difference, worst.docid, tuple(moved))


def _surroundings(sidecar: Mapping[str, Any], signature: Mapping[str, Any]) -> Iterable[str]:
    """Say what else is different from when the run was made."""
    before = sidecar["details"].get("signature")
    if isinstance(before, dict):
        for name in sorted(before.keys() | signature.keys()):
            if before.get(name) != signature.get(name):
                yield f"{name}: {shown(before.get(name))} -> {shown(signature.get(name))}"
    made = sidecar.get("provenance")
    packages = made.get("packages") if isinstance(made, dict) else None
    now = stage.provenance(0.0)["packages"]
    for name, version in sorted((packages if isinstance(packages, dict) else {}).items()):
        if now.get(name) != version:
            yield f"package {shown(name)}: {shown(version)} -> {shown(now.get(name))}"
