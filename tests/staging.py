"""A stage small enough to reason about: it writes a few bytes, and its sidecar may be edited."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.stage import Outcome, Recipe, producing, sidecar_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPE = Recipe(
    "retrieve",
    1,
    {"hits": 1000, "k1": 0.9, "tag": "bm25", "fields": ("title", "text"), "rm3": None},
    {"index": "sha-of-index", "topics": "sha-of-topics"},
)


def make(output: Path, recipe: Recipe = RECIPE, text: bytes = b"run", **more: Any) -> Outcome:
    """Run a stage that writes these bytes."""
    with producing(output, lambda: recipe, **more) as job:
        if not job.fresh:
            with job.commit({"topics": 3}, {"pairs": 5}):
                store.write_bytes(output, text)
        return job.outcome


def settings(**changes: Any) -> Recipe:
    """The recipe with other settings."""
    return replace(RECIPE, settings={**RECIPE.settings, **changes})


def inputs(**changes: str) -> Recipe:
    """The recipe with other inputs."""
    return replace(RECIPE, inputs={**RECIPE.inputs, **changes})


def edit(output: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a sidecar by hand."""
    path = sidecar_path(output)
    sidecar = json.loads(path.read_text())
    change(sidecar)
    path.write_text(json.dumps(sidecar, indent=2))
