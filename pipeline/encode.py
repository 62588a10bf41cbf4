"""Stage: passages and a two-tower model -> their vectors, in parts that survive a kill."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path  # noqa: TC003 - settings are filled by their types at run time
from typing import TYPE_CHECKING, Any, Literal

from pipeline import collection, lucene
from pipeline.errors import PipelineError, shown
from pipeline.models.reranker import load_towers, model_digest
from pipeline.models.scorer import Device, Limits, Precision, Wishes
from pipeline.report import SILENT, Reporter
from pipeline.shards import Shard  # noqa: TC001 - likewise
from pipeline.stage import Job, Outcome, Recipe, producing
from pipeline.store import atomic_folder, digest_folder, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1
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


def digest(output: Path) -> str:
    """Digest of finished vectors, or of a shard's parts of them."""
    from pipeline import vectors

    whole = (output / vectors.ABOUT).is_file()
    return vectors.digest(output) if whole else digest_folder(output)


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

        work = _Work(settings, job, reporter)
        parts = dict(work.parts())
        about = {
            "model": work.model.digest,
            "limits": dict(work.model.limits),
            "dtype": settings.dtype,
            "size": work.model.size,
        }
        counts: dict[str, Any] = {"passages": work.done, "empty": work.empty, "cut": work.cut}
        counts["size"] = work.model.size
        details = {"signature": dict(work.model.signature), "about": about}
        if shard is not None:
            counts["shard"] = shard.facts(work.total, parts)
        with job.commit(counts, details), atomic_folder(settings.output) as new:
            if shard is None:
                write_vectors(new, parts.values(), about)
            else:
                for number, part in parts.items():
                    write_bytes(new / part_name(number), part.read_bytes())
        return job.outcome


def part_name(number: int) -> str:
    """Name a part in a shard's folder by its place in the whole."""
    return f"{number:08}.part"


class _Work:
    """A stage at work."""

    def __init__(self, settings: EncodeSettings, job: Job, reporter: Reporter) -> None:
        self._settings, self._job, self._reporter = settings, job, reporter
        begun = job.parts.note("signature")
        wishes = Wishes(
            settings.device, settings.precision, settings.threads, settings.token_budget
        )
        limits = Limits(max_tokens=settings.max_tokens)
        self.model = load_towers(settings.model, wishes, limits, begun)
        job.parts.keep_note("signature", self.model.signature)
        self.done = self.empty = self.cut = self.total = 0
        self._seen: set[str] = set()

    def parts(self) -> Iterator[tuple[int, Path]]:
        """Make the parts that are missing; yield all of this shard, in the collection's order."""
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
            if shard is not None and not shard.takes(number):
                continue
            yield number, self._part(docids, texts)
            self.done += len(docids)
            self._reporter.advance(self.done, 0, "passages")

    def _part(self, docids: tuple[str, ...], texts: tuple[str, ...]) -> Path:
        from pipeline.models.towers import text_key
        from pipeline.vectors import part_bytes

        content = hashlib.sha256()
        for docid, text in zip(docids, texts, strict=True):
            data = f"{docid}\n{text}".encode("utf-8", "surrogatepass")
            content.update(len(data).to_bytes(8) + data)
        inputs = {"model": self.model.digest}
        of_part = Recipe("encode", VERSION, self._job.recipe.settings, inputs)
        key = of_part.key(
            signature=dict(self.model.signature),
            limits=dict(self.model.limits),
            texts=content.hexdigest(),
        )
        found = self._job.parts.find(key)
        if found is None:
            made, cut = self.model.encode_anew(texts)
            self.cut += int(cut.sum())
            keys = [text_key(text) for text in texts]
            data = part_bytes(docids, keys, made, self._settings.dtype)
            found = self._job.parts.save(key, data)
        return found

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
    if (settings.index is None) == (settings.collection is None):
        raise PipelineError(
            "texts come from an index or from a collection, and "
            + ("neither is" if settings.index is None else "both are")
            + " named",
            "name one: --index DIR or --collection PATH",
        )
