"""Stage: topics and a masked language model -> the topics with variants of each.

TinyBERT's augmentation of data (1909.10351, section 3 and algorithm 1): every word may give way to
one that the model thinks likely in its place. Variants are topics like others: candidates are
retrieved for them, and a teacher's scores of those say what there is to learn.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path  # noqa: TC003 - settings are filled by their types at run time
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, shown
from pipeline.models.folder import locate
from pipeline.models.reranker import model_digest
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, need_apart, places, producing
from pipeline.store import atomic_file, digest_json, need_path
from pipeline.textfile import STREAM
from pipeline.topics import read_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.models.masked import MaskedModel
    from pipeline.stage import Job
    from pipeline.topics import Topics

VERSION = 1
PART = 64  # topics
MOST = 1_000_000
PIECES = re.compile(r"\w+(?:['\u2019]\w+)*|\W+")  # words, what stands between them
VARIANT = re.compile(r"(.+)~([1-9][0-9]{0,6})", re.DOTALL)


@dataclass(frozen=True)
class AugmentSettings:
    """What to vary, and how much; the defaults are the paper's."""

    topics: Path
    model: str  # a folder or a Hugging Face id of a masked language model
    output: Path  # topics as TSV
    field: str = "title"  # of TREC topic files
    copies: int = 20  # variants of a topic, at most
    probability: float = 0.4  # that a word is replaced
    words: int = 15  # likely ones, of which the replacement is drawn
    seed: int = 1
    force: bool = False


def augment(settings: AugmentSettings, reporter: Reporter = SILENT) -> Outcome:
    """Vary topics unless the output is fresh; finished parts are not made again.

    The output has each topic as it was, then its variants, named `QID~1`, `QID~2` and so on;
    variants that come out equal to another text of their topic are left out. What is drawn depends
    on (seed, qid) and what the model says, and on nothing else.

    Counts in the outcome: `topics`; `variants`; and `unvaried`, topics without any.

    Raises:
        PipelineError: a setting out of its range, unusable topics, a model that is no masked
            language model, or an id that a variant would share with a topic.
    """
    _check(settings)

    def recipe() -> Recipe:
        names = ("copies", "probability", "words", "seed")
        values = {name: getattr(settings, name) for name in names}
        topics = read_topics(settings.topics, settings.field)
        inputs = {
            "topics": digest_json(list(topics.items())),
            "model": model_digest(settings.model),
        }
        return Recipe("augment", VERSION, values, inputs)

    with producing(settings.output, recipe, force=settings.force, reporter=reporter) as job:
        if job.fresh:
            return job.outcome
        topics = read_topics(settings.topics, settings.field)
        _need_free_ids(settings, topics)
        parts = list(_parts(settings, topics, job, reporter))
        counts = {"topics": len(topics), "variants": -len(topics), "unvaried": len(topics)}
        for part in parts:
            lines = part.read_bytes().splitlines()
            ids = {line.partition(b"\t")[0].decode() for line in lines}
            counts["variants"] += len(ids)
            counts["unvaried"] -= sum(f"{qid}~1" in ids for qid in ids if qid in topics)
        where = places(settings.output, topics=settings.topics, model=settings.model)
        with job.commit(counts, {"places": where}), atomic_file(settings.output) as out:
            for part in parts:
                out.write(part.read_bytes())
        return job.outcome


def _parts(
    settings: AugmentSettings, topics: Topics, job: Job, reporter: Reporter
) -> Iterator[Path]:
    """Make the parts that are missing; all of them, in the order of the topics."""
    model: MaskedModel | None = None
    done = 0
    for some in batched(topics.items(), PART):
        of_part = replace(job.recipe, inputs={"model": job.recipe.inputs["model"]})
        key = of_part.key(topics=some)
        found = job.parts.find(key)
        if found is None:
            model = model or _load(settings.model)
            lines = []
            for qid, text in some:
                lines.append(f"{qid}\t{text}\n")
                made = variants(qid, text, model.replacements, settings)
                lines += (f"{qid}~{n}\t{variant}\n" for n, variant in enumerate(made, 1))
            found = job.parts.save(key, "".join(lines).encode())
        yield found
        done += len(some)
        reporter.advance(done, len(topics), "topics")


def _load(name: str) -> MaskedModel:
    from pipeline.models.masked import MaskedModel

    return MaskedModel(locate(name))


def variants(
    qid: str,
    text: str,
    likely: Callable[[Sequence[str], int], list[list[str]]],
    settings: AugmentSettings,
) -> list[str]:
    """Draw the variants of a topic: in each, every word is replaced with `probability`.

    Args:
        likely: words for each piece of a text, at most so many; see `MaskedModel.replacements`.
    """
    pieces = PIECES.findall(text)
    words = likely(pieces, settings.words)
    found = {text: None}  # in order, each once
    for copy in range(settings.copies):
        key = hashlib.sha256(f"{settings.seed}\t{copy}\t{qid}".encode()).digest()
        draw = random.Random(key)
        new = (
            draw.choice(some) if some and draw.random() < settings.probability else piece
            for piece, some in zip(pieces, words, strict=True)
        )
        found["".join(new)] = None
    return list(found)[1:]


def _need_free_ids(settings: AugmentSettings, topics: Topics) -> None:
    """Refuse topics that are named as a variant of another would be."""
    for qid in topics:
        named = VARIANT.fullmatch(qid)
        if named and named[1] in topics and int(named[2]) <= settings.copies:
            raise PipelineError(
                f"{settings.topics}: topic {shown(qid)} is named as a variant of "
                f"{shown(named[1])} is",
                "give topics ids that do not end in ~ and a number",
            )


def _check(settings: AugmentSettings) -> None:
    for name, value, low, high in (
        ("copies", settings.copies, 1, MOST),
        ("probability", settings.probability, 0, 1),
        ("words", settings.words, 1, MOST),
        ("seed", settings.seed, 0, MOST),
    ):
        if not low <= value <= high:
            raise PipelineError(
                f"--{name} {value} is out of range", f"choose a number from {low} to {high:,}"
            )
    if STREAM in (str(settings.topics), str(settings.output)):
        raise PipelineError(
            "augment reads its topics twice, and writes whole files", "name files instead of -"
        )
    need_path(settings.topics, "file of topics")
    need_apart(settings.output, settings.topics, locate(settings.model))
