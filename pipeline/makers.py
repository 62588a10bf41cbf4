"""Reranking on workers: what travels to them, and what stands for their model meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.executor import Made
from pipeline.models.reranker import load_scorer, load_towers
from pipeline.models.scorer import Foreseeing
from pipeline.rescore import Facts, How, Task, rescored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.cluster import Crew
    from pipeline.models.scorer import Limits, Scored, Scorer, Wishes


@dataclass(frozen=True)
class Load:
    """How to load a reranker; may travel to another machine."""

    model: str
    wishes: Wishes
    limits: Limits
    vectors: Path | None = None

    def __call__(self, begun: Mapping[str, Any] | None) -> Scorer:
        """Load it, under the numeric signature of a begun stage where there is one.

        Raises:
            PipelineError: it cannot be loaded, or has other vectors.
        """
        if self.vectors is None:
            return load_scorer(self.model, self.wishes, self.limits, begun)
        from pipeline.vectors import PassageVectors

        towers = load_towers(self.model, self.wishes, self.limits, begun)
        found = PassageVectors(self.vectors)
        found.need_model(towers.digest, self.model)
        found.need_length(towers.limits)
        found.need_whole()
        towers.use_vectors(found)
        return towers

    def from_anywhere(self) -> Load:
        """Name folders by their absolute places: workers stand in other folders."""
        place = Path(self.model)
        model = str(place.absolute()) if place.is_dir() else self.model
        vectors = None if self.vectors is None else self.vectors.absolute()
        return Load(model, self.wishes, self.limits, vectors)


@dataclass
class RerankMaker:
    """Scores the topics of a part on a worker."""

    load: Load
    how: How
    begun: Mapping[str, Any] | None
    digest: str  # of the model that the driver has
    _scorer: Scorer | None = field(default=None, init=False)

    def open(self) -> dict[str, Any]:
        """Load the model, and say what decides scores."""
        self._scorer = self.load(self.begun)
        if self._scorer.digest != self.digest:
            raise PipelineError(
                f"{self.load.model}: is another model here than where the work was begun",
                "give all nodes the same files",
            )
        return {
            "model": self._scorer.digest,
            "limits": dict(self._scorer.limits),
            "signature": dict(self._scorer.signature),
        }

    def make(self, what: tuple[str, Sequence[Task]]) -> Made:
        """Score the topics of a part, one after the other."""
        note, tasks = what
        if self._scorer is None:
            raise AssertionError("asked for a part before the model was loaded")
        facts, lines = Facts(), []
        if isinstance(self._scorer, Foreseeing):
            self._scorer.foresee_queries([task.query for task in tasks])
        for done in rescored(tasks, self._scorer, self.how):
            facts.add(done.result.facts)
            lines.append(done.result.lines)
        return Made(b"".join(lines), facts.record(), note)


class Remote:
    """Stands for a model that is loaded on workers."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew

    @property
    def digest(self) -> str:
        """Digest of the model, the same on all workers."""
        return str(self.crew.facts["model"])

    @property
    def signature(self) -> Mapping[str, Any]:
        """The numeric signature, the same on all workers."""
        return dict(self.crew.facts["signature"])

    @property
    def limits(self) -> Mapping[str, int]:
        """As settled on all workers."""
        return dict(self.crew.facts["limits"])

    def score(self, query: str, passages: Sequence[str]) -> Scored:
        """Fail: parts are scored where the model is."""
        raise AssertionError(f"{len(passages)} passages for {query!r}: the crew scores them")
