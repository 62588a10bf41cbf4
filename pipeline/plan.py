"""The stages of one experiment in their order: which depend on which, and which are fresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import stage
from pipeline.errors import PipelineError, did_you_mean, shown
from pipeline.stage import Outcome, Recipe, Status
from pipeline.store import digest_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.report import Reporter
    from pipeline.shards import Shard

TRAINING = ("teach", "distill")


@dataclass(frozen=True)
class Step:
    """One stage of an experiment: what it makes, from what, and how."""

    name: str
    output: Path
    needs: tuple[str, ...]
    recipe: Callable[[], Recipe]
    run: Callable[[Reporter, bool], Outcome]  # (reporter, force)
    digest: Callable[[Path], str] = digest_file
    beside: tuple[Path, ...] = ()  # what it writes beside its output
    given: tuple[Path, ...] = ()  # files it reads that no stage makes
    check: Callable[[], object] = lambda: None  # fails over what the stages before it cannot change
    share: Callable[[Reporter, bool, Shard], Outcome] | None = None  # do one share of it


@dataclass(frozen=True)
class Experiment:
    """The stages of one experiment, in the order in which they run."""

    name: str
    path: Path
    folder: Path
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step:
        """Find a stage by its name.

        Raises:
            PipelineError: there is none of that name.
        """
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise PipelineError(f"{self.path}: no stage {shown(name)}", did_you_mean(name, names))

    def until(self, name: str | None) -> tuple[Step, ...]:
        """Return the stages up to one of them, or all but the training.

        Models are trained by `pipeline teach` and `distill`, and by asking for the stage by name.
        """
        if name is None:
            return tuple(step for step in self.steps if step.name not in TRAINING)
        last = self.step(name)
        wanted = {last.name}
        for step in reversed(self.steps):
            if step.name in wanted:
                wanted.update(step.needs)
        return tuple(step for step in self.steps if step.name in wanted)

    def to_share(self, name: str | None) -> Step:
        """Find a stage that shards can do, the stages before it done.

        Raises:
            PipelineError: no stage is named, or it is done whole; or a stage before it is stale.
        """
        shared = [step.name for step in self.steps if step.share is not None]
        if name is None or self.step(name).share is None:
            raise PipelineError(
                "--shard does its share of one stage"
                + (f", and {name} is done whole" if name else ", and none is named"),
                f"name one with --until: {', '.join(shared)}",
            )
        step = self.step(name)
        for other, now in self.statuses():
            if other.name in step.needs and not now.fresh:
                raise PipelineError(
                    f"{other.output}: {', '.join(now.reasons)}, and {name} needs it",
                    f"do it before any shard: pipeline run {self.path} --until {other.name}",
                )
        return step

    def statuses(self) -> Iterator[tuple[Step, Status]]:
        """Yield every stage with its status; what follows a stale stage is stale with it."""
        stale: set[str] = set()
        for step in self.steps:
            if waiting := [need for need in step.needs if need in stale]:
                status = Status((f"after {waiting[0]}",))
            else:
                status = stage.status(step.output, step.recipe(), step.digest)
            if not status.fresh:
                stale.add(step.name)
            yield step, status
