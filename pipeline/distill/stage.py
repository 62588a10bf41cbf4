"""Training as a stage: fresh or stale like any other, resumable through its checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import collection
from pipeline.distill.settings import NOT_IN_RECIPE, VERSION, DistillConfig
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, producing
from pipeline.store import digest_file, digest_folder

if TYPE_CHECKING:
    from typing import Any

digest = digest_folder
"""Digest of a finished student."""


def recipe(config: DistillConfig) -> Recipe:
    """Name all that determines the student, but for the machine it is trained on."""
    settings: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    for name, value in dataclasses.asdict(config).items():
        if name in NOT_IN_RECIPE:
            continue
        if name == "collection":
            inputs[name] = collection.digest(value)
        elif name == "dev":
            for one in config.dev:
                for part in ("run", "topics", "qrels"):
                    inputs[f"{one.name} {part}"] = digest_file(getattr(one, part))
            settings[name] = [[one.name, one.measure, one.depth, one.limit] for one in config.dev]
        elif isinstance(value, Path):
            inputs[name] = digest_folder(value) if value.is_dir() else digest_file(value)
        elif name == "teacher_runs":
            inputs |= {f"teacher {n}": digest_file(run) for n, run in enumerate(value, 1)}
        else:
            settings[name] = value
    return Recipe("distill", VERSION, json.loads(json.dumps(settings)), inputs)


def distill(config: DistillConfig, reporter: Reporter = SILENT, *, force: bool = False) -> Outcome:
    """Bring a student up to date; killed and run again, it goes on after the last checkpoint.

    Raises:
        PipelineError: unusable settings or inputs, or a student that is not ours in the way.
    """
    from pipeline.distill import train
    from pipeline.store import remove

    config.check()
    with producing(
        config.output, lambda: recipe(config), force=force, digest=digest, reporter=reporter
    ) as job:
        if job.fresh:
            return job.outcome
        if force:
            remove(config.work)
        with job.commit({"steps": config.steps}):
            train.distill(config, reporter.notice)
        return job.outcome
