"""Stage: passages and a two-tower model -> their vectors, in parts that survive a kill."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import collection, lucene, mapped
from pipeline.errors import PipelineError, shown
from pipeline.executor import Executor, Item, Made
from pipeline.models.reranker import load_towers, model_digest
from pipeline.models.scorer import Device, Limits, Precision, Wishes
from pipeline.parts import counted, facts_name
from pipeline.report import SILENT, Reporter
from pipeline.shards import Shard  # noqa: TC001 - likewise
from pipeline.stage import Job, Outcome, Recipe, producing
from pipeline.store import atomic_folder, digest_folder, digest_text, write_bytes
from pipeline.worker import keep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.cluster import Crew
    from pipeline.models.towers import Towers

VERSION = 2
PART = 4096  # passages
Dtype = Literal["fp16", "int8", "fp32"]


@dataclass(frozen=True)
class EncodeSettings:
    """What to encode, with which model, and how it is kept."""

    model: str  # a folder or a Hugging Face id of two towers
    output: Path  # a folder
    index: Path | None = None  # where texts are: an index,
    collection: Path | None = None  # or a collection
    dtype: Dtype = "fp16"
    max_tokens: int | None = None  # of a passage; None takes what the model's folder advises
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0  # 0: one for each processor
    token_budget: int = 0  # padded tokens of one forward pass; 0: what suits the device
    force: bool = False
    shard: Shard | None = None  # these parts alone, into a folder of their own
    executor: Executor | None = None  # workers that encode; None: this process


def digest(output: Path) -> str:
    """Digest of finished vectors, or of a shard's parts of them."""
    from pipeline import vectors

    whole = (output / mapped.ABOUT).is_file()
    return vectors.digest_read(output) if whole else digest_folder(output)


def recipe(settings: EncodeSettings) -> Recipe:
    """Name all that determines the vectors, but for their last bits.

    Raises:
        PipelineError: no usable model, index or collection.
    """
    _check(settings)
    inputs = {"model": model_digest(settings.model)}
    if settings.index is not None:
        inputs["index"] = lucene.index_digest(settings.index)
    else:
        inputs["collection"] = collection.digest(str(settings.collection))
    values: dict[str, Any] = {"dtype": settings.dtype, "precision": settings.precision}
    if settings.max_tokens is not None:
        values["max_tokens"] = settings.max_tokens
    if settings.shard is not None:
        values["shard"] = str(settings.shard)
    return Recipe("encode", VERSION, values, inputs)


def encode(settings: EncodeSettings, reporter: Reporter = SILENT) -> Outcome:
    """Encode unless the vectors are fresh; finished parts are not encoded again.

    Counts in the outcome: `passages`, `empty` (left out, as indexes do), `cut` of those encoded by
    this execution, and the `size` of a vector.

    Raises:
        PipelineError: as `recipe` does; a model without vectors; a docid that is there twice.
    """
    _check(settings)
    shard = settings.shard
    if shard is not None:
        settings = replace(settings, output=shard.output(settings.output))
    with producing(
        settings.output,
        lambda: recipe(settings),
        force=settings.force,
        digest=digest,
        reporter=reporter,
    ) as job:
        if job.fresh:
            return job.outcome
        from pipeline.vectors import write_vectors

        with ExitStack() as stack:
            work = _Work(settings, job, stack, reporter)
            parts = work.parts()
        facts = work.facts
        about = {
            "model": facts["model"],
            "limits": facts["limits"],
            "dtype": settings.dtype,
            "size": facts["size"],
            "texts": next(
                job.recipe.inputs[name]
                for name in ("index", "collection")
                if name in job.recipe.inputs
            ),
        }
        counts: dict[str, Any] = {"passages": work.done, "empty": work.empty, "cut": work.cut}
        counts["size"] = facts["size"]
        details = {"signature": facts["signature"], "about": about}
        if shard is not None:
            counts["shard"] = shard.facts(work.total, parts)
        with job.commit(counts, details), atomic_folder(settings.output) as new:
            if shard is None:
                write_vectors(new, parts.values(), about)
            else:
                for number, part in parts.items():
                    write_bytes(new / part_name(number), part.read_bytes())
        return job.outcome


def _crew(
    settings: EncodeSettings, begun: Mapping[str, Any] | None, job: Job, reporter: Reporter
) -> Crew:
    """Hire workers; one processor each unless told otherwise, or begun otherwise."""
    from pipeline.cluster import Crew

    if settings.executor is None:
        raise AssertionError("workers were not asked for")
    cpus = settings.threads or 1
    model = Path(settings.model)
    place = str(model.absolute()) if model.is_dir() else settings.model
    maker = EncodeMaker(replace(settings, model=place, threads=cpus), begun)
    gpus = int(settings.device == "cuda")
    return Crew(
        settings.executor, maker, job.parts, cpus=cpus, gpus=gpus, unit="passages",
        reporter=reporter,
    )  # fmt: skip


def part_name(number: int) -> str:
    """Name a part in a shard's folder by its place in the whole."""
    return f"{number:08}.part"


@dataclass
class EncodeMaker:
    """Encodes the passages of a part, here or on a worker."""

    settings: EncodeSettings
    begun: Mapping[str, Any] | None  # numeric signature of a stage that goes on
    _model: Towers | None = field(default=None, init=False)

    def open(self) -> dict[str, Any]:
        """Load the model, and say what decides vectors."""
        settings = self.settings
        wishes = Wishes(
            settings.device, settings.precision, settings.threads, settings.token_budget
        )
        limits = Limits(max_tokens=settings.max_tokens)
        self._model = model = load_towers(settings.model, wishes, limits, self.begun)
        return {
            "model": model.digest,
            "limits": dict(model.limits),
            "signature": dict(model.signature),
            "size": model.size,
        }

    def make(self, what: tuple[tuple[str, ...], tuple[str, ...], str]) -> Made:
        """Encode the texts of some docids; the third names the note about them."""
        from pipeline.vectors import part_bytes

        if self._model is None:
            raise AssertionError("asked for a part before the model was loaded")
        docids, texts, note = what
        made, cut = self._model.encode_anew(texts)
        keys = [digest_text(text) for text in texts]
        data = part_bytes(docids, keys, made, self.settings.dtype)
        return Made(data, {"cut": count} if (count := int(cut.sum())) else {}, note)


class _Work:
    """A stage at work."""

    def __init__(
        self, settings: EncodeSettings, job: Job, stack: ExitStack, reporter: Reporter
    ) -> None:
        self._settings, self._job, self._reporter = settings, job, reporter
        begun = job.parts.note("signature")
        self._crew: Crew | None = None
        if settings.executor is None:
            self._maker = EncodeMaker(settings, begun)
            self.facts: Mapping[str, Any] = self._maker.open()
        else:
            self._crew = stack.enter_context(_crew(settings, begun, job, reporter))
            self.facts = self._crew.facts
        job.parts.keep_note("signature", self.facts["signature"])
        self.done = self.empty = self.cut = self.total = 0
        self._seen: set[str] = set()

    def parts(self) -> dict[int, Path]:
        """Make the parts that are missing; all of this shard, by their numbers."""
        paths: dict[int, Path] = {}
        numbers: dict[str, int] = {}

        def missing() -> Iterator[Item]:
            for number, docids, texts in self._slices():
                key = self._key(docids, texts)
                note = facts_name(key)
                found = self._job.parts.find(key, note)
                if found is None:
                    numbers[key] = number
                    label = f"of passages from {shown(docids[0])}"
                    yield Item(key, label, len(docids), (docids, texts, note), note)
                else:
                    paths[number] = found
                    self.cut += counted(self._job.parts.note(note), "cut")
                    self._advance(len(docids))

        for item, path, facts in self._made(missing()):
            paths[numbers.pop(item.key)] = path
            self.cut += counted(facts, "cut")
            self._advance(item.size)
        return dict(sorted(paths.items()))

    def _made(self, items: Iterator[Item]) -> Iterator[tuple[Item, Path, Mapping[str, Any]]]:
        if self._crew is None:
            for item in items:
                made = self._maker.make(item.what)
                yield item, keep(self._job.parts, item.key, made), made.facts
            return
        for done in self._crew.make(items):
            yield done.item, done.path, done.facts
        self._crew.say()
        self._job.details["executor"] = self._crew.summary()

    def _advance(self, passages: int) -> None:
        self.done += passages
        self._reporter.advance(self.done, 0, "passages")

    def _slices(self) -> Iterator[tuple[int, tuple[str, ...], tuple[str, ...]]]:
        """Cut the collection into parts, of which other shards may have theirs."""
        shard = self._settings.shard
        for number, some in enumerate(batched(self._documents(), PART)):
            self.total = number + 1
            docids, texts = zip(*some, strict=True)
            for docid in docids:
                if docid in self._seen:
                    raise PipelineError(
                        f"document {shown(docid)} is there twice", "give each an id of its own"
                    )
                self._seen.add(docid)
            if shard is None or shard.takes(number):
                yield number, docids, texts

    def _key(self, docids: tuple[str, ...], texts: tuple[str, ...]) -> str:
        content = hashlib.sha256()
        for docid, text in zip(docids, texts, strict=True):
            data = f"{docid}\n{text}".encode("utf-8", "surrogatepass")
            content.update(len(data).to_bytes(8) + data)
        inputs = {"model": self.facts["model"]}
        of_part = Recipe("encode", VERSION, self._job.recipe.settings, inputs)
        return of_part.key(
            signature=self.facts["signature"],
            limits=self.facts["limits"],
            texts=content.hexdigest(),
        )

    def _documents(self) -> Iterator[tuple[str, str]]:
        for docid, text in self._all():
            if text.strip():
                yield docid, text
            else:
                self.empty += 1

    def _all(self) -> Iterator[tuple[str, str]]:
        if self._settings.index is None:
            for document in collection.documents(str(self._settings.collection)):
                yield document.docid, document.text
            return
        with lucene.Index(self._settings.index) as index:
            for some in batched(range(index.count), PART):
                docids = index.docids(some)
                for docid, text in zip(docids, index.texts(docids), strict=True):
                    yield docid, text or ""


def _check(settings: EncodeSettings) -> None:
    if settings.executor is not None:
        settings.executor.check()
    collection.need_one_source(settings.index, settings.collection)
    if settings.max_tokens is not None and settings.max_tokens < 1:
        raise PipelineError(
            f"--max-tokens {settings.max_tokens} is out of range", "choose a number 1 or more"
        )
