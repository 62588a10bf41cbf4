"""Training as a stage: fresh or stale like any other, resumable through its checkpoints.

Nothing here loads torch until a student is trained: `pipeline status` asks for recipes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import collection
from pipeline.distill.settings import (
    LATER,
    NOT_IN_RECIPE,
    VERSION,
    DistillConfig,
    TeachConfig,
)
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, producing
from pipeline.store import digest_file, digest_folder, remove

if TYPE_CHECKING:
    from collections.abc import Iterator

digest = digest_folder
"""Digest of a finished student."""


def recipe(config: DistillConfig | TeachConfig) -> Recipe:
    """Name all that determines the model, but for the machine it is trained on.

    Raises:
        PipelineError: settings that cannot be, or an input that is not there.
    """
    config.check()
    settings: dict[str, Any] = {}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in dataclasses.asdict(config).items():
        if name in LATER[config.table] and value == defaults[name]:
            continue
        if name == "dev":
            settings[name] = [
                [one.name, one.measure, one.depth, one.limit, one.field]
                + [one.windows] * (one.windows != "none")
                for one in config.dev
            ]
        elif name == "intermediate" and value:
            settings[name] = {key: value[key] for key in value if key != "teacher"}
        elif name not in (*NOT_IN_RECIPE, "teacher_runs") and not isinstance(value, Path):
            settings[name] = value
    return Recipe(config.table, VERSION, json.loads(json.dumps(settings)), dict(_inputs(config)))


def _inputs(config: DistillConfig | TeachConfig) -> Iterator[tuple[str, str]]:
    yield "collection", collection.digest(config.collection)
    for name in ("topics", "base", "qrels", "card"):
        if path := getattr(config, name):
            yield name, _digest(path)
    if isinstance(config, TeachConfig):
        yield "candidates", digest_file(config.candidates)
    else:
        if config.intermediate:
            yield "intermediate teacher", _digest(config.intermediate.teacher)
        for number, run in enumerate(config.teacher_runs, 1):
            yield f"teacher {number}", digest_file(run)
    for one in config.dev:
        yield f"dev {one.name} collection", collection.digest(one.collection)
        for name in ("run", "topics", "qrels"):
            yield f"dev {one.name} {name}", digest_file(getattr(one, name))


def _digest(path: Path) -> str:
    return digest_folder(path) if path.is_dir() else digest_file(path)


def distill(
    config: DistillConfig | TeachConfig, reporter: Reporter = SILENT, *, force: bool = False
) -> Outcome:
    """Bring a model up to date; killed and run again, it goes on after the last checkpoint.

    Counts in the outcome: `pairs` trained on, `topics`, `passages`, and of the model that is
    kept its `step` and its figures on `dev`, the development sets.

    Raises:
        PipelineError: unusable settings or inputs, checkpoints of another recipe, or a student
            that is not ours in the way.
    """
    with producing(
        config.output, lambda: recipe(config), force=force, digest=digest, reporter=reporter
    ) as job:
        if job.fresh:
            return job.outcome
        job.hint = "run the same command with --force, to train on it as it is now"
        if force:
            remove(config.work)
        from pipeline.distill.card import card
        from pipeline.distill.train import train

        record = job.recipe.record()
        flat = {"version": record["version"], **record["settings"], **record["inputs"]}
        trained = train(config, flat, reporter)
        advice = {
            "max_query_tokens": config.max_query_tokens,
            "max_tokens": config.advised_tokens,
            "interpolate": config.interpolate,
        }
        text = (
            config.card.read_text("utf-8")
            if config.card
            else card(config, job.recipe, trained.counts, trained.details)
        )
        with job.commit(trained.counts, trained.details):
            trained.learnt.save(config.output, advice, text)
        return job.outcome
