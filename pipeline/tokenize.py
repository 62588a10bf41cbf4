"""Stage: passages and a model's tokenizer -> their token ids, in parts that survive a kill."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING

from pipeline import collection, lucene, mapped
from pipeline.errors import PipelineError, shown
from pipeline.models.folder import locate
from pipeline.parts import counted
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, need_apart, producing
from pipeline.store import atomic_folder

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pipeline.models.tokenizing import Vocabulary
    from pipeline.stage import Job

VERSION = 1
PART = 1 << 12  # passages
MOST = 1 << 20


@dataclass(frozen=True)
class TokenizeSettings:
    """Whose tokenizer, of what, and how much of a passage is kept."""

    model: str  # a shipped name, a folder or a Hugging Face id; any with the same tokenizer
    output: Path  # a folder
    index: Path | None = None  # where texts are: an index,
    collection: Path | None = None  # or a collection
    max_tokens: int = 512  # of a passage: as many as the longest pair that will be read
    force: bool = False


def digest(output: Path) -> str:
    """Digest of finished tokens: of their `about.json`, which names that of the others."""
    from pipeline.tokens import FILES

    return mapped.digest_read(output, FILES)


def source(index: Path | None, path: Path | None) -> str:
    """Digest of the texts that tokens are bound to."""
    return lucene.index_digest(index) if index is not None else collection.digest(str(path))


def tokenize(settings: TokenizeSettings, reporter: Reporter = SILENT) -> Outcome:
    """Tokenise unless the tokens are fresh; finished parts are not made again.

    Counts in the outcome: `passages`, `tokens`, and `cut`, passages of which not all is kept.

    Raises:
        PipelineError: no usable model, index or collection; a docid that is there twice.
    """
    _check(settings)
    from pipeline.models.tokenizing import Vocabulary

    vocabulary = Vocabulary(locate(settings.model))

    def recipe() -> Recipe:
        inputs = {"tokenizer": vocabulary.digest}
        name = "collection" if settings.index is None else "index"
        inputs[name] = source(settings.index, settings.collection)
        return Recipe("tokenize", VERSION, {"max_tokens": settings.max_tokens}, inputs)

    with producing(
        settings.output, recipe, force=settings.force, digest=digest, reporter=reporter
    ) as job:
        if job.fresh:
            return job.outcome
        from pipeline.tokens import write_tokens

        about = {
            "tokenizer": vocabulary.digest,
            "vocabulary": vocabulary.size,
            "limit": settings.max_tokens,
            "source": next(v for k, v in job.recipe.inputs.items() if k != "tokenizer"),
        }
        counts = {"passages": 0, "tokens": 0, "cut": 0}
        parts = _parts(settings, vocabulary, job, counts, reporter)
        with job.commit(counts, {"about": about}), atomic_folder(settings.output) as new:
            write_tokens(new, parts, about)
        return job.outcome


def _parts(
    settings: TokenizeSettings,
    vocabulary: Vocabulary,
    job: Job,
    counts: dict[str, int],
    reporter: Reporter,
) -> list[Path]:
    """Make the parts that are missing; all of them, in the order of the collection."""
    from pipeline.tokens import part_bytes

    paths: list[Path] = []
    with closing(_documents(settings)) as documents:
        for some in batched(documents, PART):
            docids, texts = zip(*some, strict=True)
            key = _key(job, docids, texts)
            found, facts = job.parts.find(key), job.parts.note(key[:32])
            if found is None or facts is None or not {"tokens", "cut"} <= facts.keys():
                made = vocabulary.tokens(texts, settings.max_tokens)
                lengths = list(map(len, made))
                facts = {
                    "tokens": sum(lengths),
                    "cut": sum(length > settings.max_tokens for length in lengths),
                }
                job.parts.keep_note(key[:32], facts)
                found = job.parts.save(key, part_bytes(docids, texts, made, vocabulary.size))
            paths.append(found)
            counts["passages"] += len(docids)
            for name in ("tokens", "cut"):
                counts[name] += counted(facts, name)
            reporter.advance(counts["passages"], 0, "passages")
    return paths


def _key(job: Job, docids: tuple[str, ...], texts: tuple[str, ...]) -> str:
    content = hashlib.sha256()
    for docid, text in zip(docids, texts, strict=True):
        data = f"{docid}\n{text}".encode("utf-8", "surrogatepass")
        content.update(len(data).to_bytes(8) + data)
    inputs = {"tokenizer": job.recipe.inputs["tokenizer"]}
    of_part = Recipe("tokenize", VERSION, job.recipe.settings, inputs)
    return of_part.key(texts=content.hexdigest())


def _documents(settings: TokenizeSettings) -> Generator[tuple[str, str]]:
    if settings.index is None:
        for document in collection.documents(str(settings.collection)):
            yield document.docid, document.text
        return
    with lucene.Index(settings.index) as index:
        for some in batched(range(index.count), PART):
            docids = index.docids(some)
            for docid, text in zip(docids, index.texts(docids), strict=True):
                yield docid, text or ""


def _check(settings: TokenizeSettings) -> None:
    collection.need_one_source(settings.index, settings.collection)
    if not 1 <= settings.max_tokens <= MOST:
        raise PipelineError(
            f"--max-tokens {settings.max_tokens} is out of range", f"choose from 1 to {MOST:,}"
        )
    need_apart(settings.output, settings.index, settings.collection)
    if settings.output.is_file():
        raise PipelineError(f"{shown(str(settings.output))}: is a file", "name a folder")
