"""A teacher whose inside is imitated: frozen, without dropout, fed the student's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.distill.forward import inside
from pipeline.distill.layers import Comparison, Projections
from pipeline.distill.student import load_base, need_positions
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.distill.forward import Batch, Inside
    from pipeline.distill.settings import Intermediate


class Imitation:
    """The losses of `[distill.intermediate]`.

    Args:
        tokens: of the longest sequence that both will read.

    Attributes:
        projections: to be trained with the student, and left out of its folder.

    Raises:
        PipelineError: the teacher has another vocabulary, or a shape that cannot be compared.
    """

    def __init__(
        self, student: Any, tokenizer: Any, settings: Intermediate, tokens: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        config, encoder, _, own = load_base(settings.teacher)
        need_positions(settings.teacher, config, tokens)
        if own.get_vocab() != tokenizer.get_vocab():
            raise PipelineError(
                f"{settings.teacher}: has another vocabulary than the student",
                "hidden states are compared token by token: learn from its scores instead",
            )
        self._comparison = Comparison(student.config, config, settings)
        self._teacher = encoder.to(device).eval().requires_grad_(False)
        self.projections = Projections(
            student.config.hidden_size, config.hidden_size, settings.projections
        ).to(device)

    def compare(self, bert: Any, batch: Batch) -> tuple[Inside, dict[str, Tensor]]:
        """Run both over a batch; the student's inside, and the mean of each loss over sequences."""
        ours = inside(bert, batch, self._comparison.student_layers)
        with torch.no_grad():
            theirs = inside(self._teacher, batch, self._comparison.teacher_layers)
        with torch.autocast(batch.ids.device.type, enabled=False):
            terms = self._comparison.terms(ours, theirs, self.projections, batch.mask)
        return ours, terms

    def compare_all(
        self, bert: Any, made: Iterator[tuple[NDArray[Any], Batch]]
    ) -> tuple[list[Tensor], list[NDArray[Any]], dict[str, Tensor]]:
        """Compare batch after batch: last states of [CLS], places, mean losses over sequences."""
        first, order, count = [], [], 0
        sums: dict[str, Tensor] = {}
        for places, batch in made:
            ours, terms = self.compare(bert, batch)
            first.append(ours.last[:, :1])
            order.append(places)
            count += len(places)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term * len(places)
        return first, order, {name: term / count for name, term in sums.items()}
