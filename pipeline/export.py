"""Stage: a cross-encoder -> a folder for other programs, checked against the original.

The pairs are the demo's: its topics and the judged docstrings of Python's standard library, which
every machine has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, shown
from pipeline.models.folder import check, is_twin, is_twinbert, locate
from pipeline.models.reranker import model_digest
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, need_apart, producing
from pipeline.store import atomic_folder, digest_folder, write_bytes

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
ONNX, INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"  # where other runtimes look for them
COPIED = (".json", ".txt", ".model", ".md", ".safetensors")
TOPICS, PASSAGES = 30, 20  # of the check: at most so many topics, and passages of each
TOLERANCE = 1e-3  # of a float32 logit, between two engines


@dataclass(frozen=True)
class ExportSettings:
    """What to export, and in which forms beside the safetensors."""

    model: str  # small, a folder, or a Hugging Face id
    output: Path
    onnx: bool = False
    int8: bool = False  # of the ONNX graph
    force: bool = False


digest = digest_folder
"""Digest of a finished export."""


def recipe(settings: ExportSettings) -> Recipe:
    """Name all that determines the folder.

    Raises:
        PipelineError: no such model, two towers, or int8 without ONNX.
    """
    _check(settings)
    forms = {"onnx": settings.onnx, "int8": settings.int8}
    return Recipe("export", VERSION, forms, {"model": model_digest(settings.model)})


def export(settings: ExportSettings, reporter: Reporter = SILENT) -> Outcome:
    """Write the folder unless it is fresh; nothing is left of one that fails its check.

    Counts in the outcome: `pairs` and `topics` of the check; details: `checked`, for each form its
    `bytes`, `largest` and `mean` difference from the original's logits, `reordered` topics,
    `first_changed` topics and the mean `tau` of Kendall over topics.

    Raises:
        PipelineError: as `recipe` does; a package is missing; a form disagrees with the original.
    """
    _check(settings)
    with producing(
        settings.output,
        lambda: recipe(settings),
        force=settings.force,
        digest=digest,
        reporter=reporter,
    ) as job:
        if job.fresh:
            return job.outcome
        from pipeline.models import exported

        folder = locate(settings.model)
        pairs = list(real_pairs())
        model = exported.Original(folder)
        if settings.onnx:
            model.need_graph()
        reporter.notice(f"scoring {sum(len(p) for _, p in pairs):,} real pairs by each form")
        original = model.scores(pairs)
        counts = {"pairs": sum(map(len, original)), "topics": len(original)}
        checked: dict[str, Any] = {}
        with job.commit(counts, {"checked": checked}), atomic_folder(settings.output) as new:
            for path in sorted(folder.iterdir()):
                if path.is_file() and path.suffix in COPIED:
                    write_bytes(new / path.name, path.read_bytes())
            forms = ["safetensors"]
            if settings.onnx:
                write_bytes(new / ONNX, model.graph())
                forms.append(ONNX)
            if settings.int8:
                model.quantise(new / ONNX, new / INT8)
                forms.append(INT8)
            for form in forms:
                scores = model.scores_of(new, form, pairs)
                checked[form] = exported.difference(original, scores)
                size = model.weights_of(new) if form == "safetensors" else [new / form]
                checked[form]["bytes"] = sum(path.stat().st_size for path in size)
                _need_agreement(form, checked[form]["largest"])
        return job.outcome


def real_pairs() -> list[tuple[str, list[str]]]:
    """The demo's topics with the passages judged for them, as they are in this Python."""
    from importlib import resources

    from pipeline.demo import docstrings
    from pipeline.topics import read_topics
    from pipeline.trec import read_qrels

    shipped = resources.files("pipeline.demo")
    texts = dict(docstrings.passages())
    with resources.as_file(shipped / "topics.tsv") as path:
        topics = read_topics(path)
    with resources.as_file(shipped / "qrels.txt") as path:
        qrels, _ = docstrings.applicable(read_qrels(path), texts)
    found = []
    for qid in list(topics)[:TOPICS]:
        passages = [texts[docid] for docid in sorted(qrels.get(qid, ()))][:PASSAGES]
        if len(passages) > 1:
            found.append((topics[qid], passages))
    return found


def _need_agreement(form: str, largest: float) -> None:
    limit = float("inf") if form == INT8 else TOLERANCE
    if not largest <= limit:  # nan as well
        raise PipelineError(
            f"{form}: a logit differs by {largest:.2g} from the original's",
            "a fault of the exporter or of a library: nothing was written; please report it",
        )


def _check(settings: ExportSettings) -> None:
    if settings.int8 and not settings.onnx:
        raise PipelineError(
            "--int8 without --onnx: no safetensors in int8 is read by `rerank` or transformers",
            "add --onnx; the int8 model is an ONNX graph",
        )
    if settings.model == "overlap":
        raise PipelineError("overlap: has no weights to export", "name a model folder")
    folder = locate(settings.model)
    if is_twin(folder) or is_twinbert(folder):
        raise PipelineError(
            f"{shown(settings.model)}: two towers, and export is for cross-encoders",
            "its folder is what other programs read; `pipeline encode` writes its vectors",
        )
    check(folder)
    need_apart(settings.output, folder)
    if settings.onnx:
        from pipeline.models.onnx import need_packages

        need_packages()
