"""What one training learns: scores of groups of candidates, or a teacher's inside on raw text.

The loop asks an objective for its units (the topics or texts of an epoch), draws some, and asks for
their loss. Nothing else in the loop depends on what is learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pipeline.distill import forward, losses
from pipeline.distill.classifier import Classifier
from pipeline.distill.data import read_data, read_texts
from pipeline.distill.development import Development
from pipeline.distill.groups import Stratum, epoch_order, group
from pipeline.distill.rankers import Student
from pipeline.distill.settings import DistillConfig, TeachConfig
from pipeline.distill.twin import TwinStudent
from pipeline.report import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    Cast = Callable[[], AbstractContextManager[object]]

    from pipeline.distill.groups import Group
    from pipeline.distill.rankers import Ranker

NARROWING = 1000  # pairs that a ranker is narrowed by
Loss = tuple["Tensor", dict[str, float]]
"""The loss, a mean over units, and each of its terms, unweighted, for the log"""


class Objective(Protocol):
    """What the loop trains."""

    module: torch.nn.Module
    units: list[str]
    pairs: int
    """Sequences that one unit stands for."""

    def draw(self, unit: str, epoch: int) -> Any:
        """Return what a unit gives to one epoch: a function of seed, epoch and unit alone."""

    def tokens(self, drawn: Any) -> int:
        """Count tokens, so that workers get slices of like length."""

    def loss(self, part: Sequence[Any], step: Sequence[Any]) -> Loss:
        """Loss of a slice of what a step drew; slices weighed by length make that of the step."""

    def evaluate(self) -> dict[str, float]:
        """Measure on the development sets; empty if there are none."""

    def save(self, folder: Path, advice: dict[str, Any], card: str) -> None:
        """Write the model's folder."""

    @property
    def counts(self) -> dict[str, int]:
        """What there is to learn from."""


class Ranking:
    """Scores of groups of candidates: by teacher runs, by labels, and by the model's own losses."""

    def __init__(
        self,
        config: DistillConfig | TeachConfig,
        ranker: Ranker,
        device: torch.device,
        cast: Cast,
        reporter: Reporter = SILENT,
    ) -> None:
        self._config, self._ranker, self._device, self._cast = config, ranker, device, cast
        self._data = read_data(config, ranker.tokens, reporter)
        self.units, self.pairs = self._data.qids, config.group_size
        self._strata = [Stratum(*numbers) for numbers in config.strata]
        limits = forward.Limits(config.max_query_tokens, config.max_tokens)
        self._development = Development(config.dev, ranker.tokens, limits)
        self._scale = config.scale if isinstance(config, DistillConfig) else 1.0
        inside = config.intermediate if isinstance(config, DistillConfig) else None
        self._own_weights: Mapping[str, float] = inside.losses if inside else {}
        if isinstance(config, DistillConfig) and config.narrowed and isinstance(ranker, Student):
            some = epoch_order(self.units, config.seed, 0)[: -(-NARROWING // self.pairs)]
            ranker.narrow(*self._texts([self.draw(unit, 0) for unit in some]))
        self.module = ranker.module

    def draw(self, unit: str, epoch: int) -> Group:
        """Draw a topic's group."""
        positives = self._data.positives.get(unit, set())
        return group(unit, self._data.pool, positives, self._strata, self._config.seed, epoch)

    def tokens(self, drawn: Group) -> int:
        """Count the tokens of a group's passages."""
        return sum(len(self._data.passages[int(doc)]) for doc in drawn.docs)

    def loss(self, part: Sequence[Group], step: Sequence[Group]) -> Loss:
        """Compare scores with the teacher's and with labels, shape (topics, group)."""
        with self._cast():
            flat, own = self._ranker.forward(*self._texts(part))
        scores = flat.view(len(part), self.pairs)
        teacher = torch.from_numpy(np.stack([g.scores for g in part])).to(self._device)
        labels = torch.from_numpy(np.stack([g.labels for g in part])).to(self._device)
        of_step = (
            torch.from_numpy(np.stack([g.scores for g in step])),
            torch.from_numpy(np.stack([g.labels for g in step])),
        )
        return losses.total(
            self._config.losses, scores, teacher * self._scale, labels, own, self._own_weights,
            of_step,
        )  # fmt: skip

    def _texts(self, part: Sequence[Group]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Token ids of queries and passages, a pair at each place."""
        queries = [self._data.queries[g.qid] for g in part for _ in g.docs]
        return queries, [self._data.passages[int(doc)] for g in part for doc in g.docs]

    def evaluate(self) -> dict[str, float]:
        """Rerank the development sets."""
        with torch.inference_mode(), self._cast():
            return self._development.evaluate(self._ranker.score)

    def save(self, folder: Path, advice: dict[str, Any], card: str) -> None:
        """Write the ranker's folder."""
        self._ranker.save(folder, advice, card)

    @property
    def counts(self) -> dict[str, int]:
        """Topics and passages."""
        return {"topics": len(self.units), "passages": len(self._data.pool.docids)}


class RawText:
    """General distillation: the inside of a pre-trained teacher on texts, without any scores."""

    def __init__(self, config: DistillConfig, device: torch.device, cast: Cast) -> None:
        self._student = Student(config, device)
        assert self._student.imitation  # noqa: S101 - the settings were checked
        assert config.intermediate  # noqa: S101
        self._imitation, self._weights = self._student.imitation, config.intermediate.losses
        self.module, self.pairs = self._student.module, 1
        self._texts = read_texts(config, self._student.tokens)
        self.units = [str(number) for number in range(len(self._texts))]
        self._device, self._cast, self._budget = device, cast, config.token_budget
        self._shape = forward.bert_shape(self._student.tokenizer)

    def draw(self, unit: str, epoch: int) -> list[int]:
        """Take a text: `[CLS] text [SEP]`."""
        del epoch
        return [*self._shape.before, *self._texts[int(unit)].tolist(), *self._shape.after]

    def tokens(self, drawn: list[int]) -> int:
        """Count them."""
        return len(drawn)

    def loss(self, part: Sequence[list[int]], step: Sequence[list[int]]) -> Loss:
        """Compare both insides, the mean over texts."""
        del step
        nothing: list[list[int]] = [[] for _ in part]
        made = forward.sequence_batches(part, nothing, self._shape.pad, self._budget, self._device)
        with self._cast():
            _, _, terms = self._imitation.compare_all(self._student.student.bert, made)
        return losses.weighted(terms, self._weights)

    def evaluate(self) -> dict[str, float]:
        """Nothing: a student without a head ranks nothing."""
        return {}

    def save(self, folder: Path, advice: dict[str, Any], card: str) -> None:
        """Write a student with an untrained head, to train on from."""
        self._student.save(folder, advice, card)

    @property
    def counts(self) -> dict[str, int]:
        """Texts."""
        return {"texts": len(self.units)}


def objective(
    config: DistillConfig | TeachConfig,
    device: torch.device,
    cast: Cast,
    reporter: Reporter = SILENT,
) -> Objective:
    """Make what an experiment asks for.

    Args:
        cast: the precision of forward passes.

    Raises:
        PipelineError: unusable settings or inputs.
    """
    if isinstance(config, TeachConfig):
        return Ranking(config, Classifier(config, device), device, cast, reporter)
    if config.raw_text:
        return RawText(config, device, cast)
    if config.twin:
        return Ranking(config, TwinStudent(config, device), device, cast, reporter)
    return Ranking(config, Student(config, device), device, cast, reporter)
