"""Models that are trained to rank, as the loop sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipeline.distill import forward
from pipeline.distill.groups import Tokens
from pipeline.distill.imitation import Imitation
from pipeline.distill.narrow import narrowed
from pipeline.distill.student import (
    initial_student,
    load_ranker,
    need_positions,
    save_student,
)
from pipeline.models.loading import longest_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.distill.groups import Rows
    from pipeline.distill.settings import DistillConfig

BUDGET = 4096  # padded tokens of a batch that a ranker is narrowed by
Scores = tuple["Tensor", dict[str, "Tensor"]]
"""Float32 scores of pairs in the order given, and losses of the model's own, unweighted, by name"""


class Ranker(Protocol):
    """A model in training, with its tokens."""

    module: torch.nn.Module
    """All that is trained, and kept in checkpoints."""

    def tokens(self, texts: Iterable[str], limit: int) -> Rows:
        """Tokenise texts without special tokens, cutting each at `limit` tokens."""

    def forward(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Scores:
        """Score pairs of token ids as they are trained; differentiable."""

    def score(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Tensor:
        """Score pairs of token ids as they are ranked: the same scores, without other losses."""

    def save(self, folder: Path, advice: dict[str, Any], card: str) -> None:
        """Write the model's folder, whole or not at all."""


class Student:
    """A BERT cross-encoder, with a teacher of its kind beside it where there is one to imitate."""

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._limits = forward.Limits(config.max_query_tokens, config.max_tokens)
        if config.narrowed:
            self.student, self.tokenizer = load_ranker(config.base)
        else:
            self.student, self.tokenizer = initial_student(
                config.base,
                config.layers,
                config.seed,
                config.size,
                projected=config.projected_embeddings,
            )
        need_positions(config.base, self.student.config, config.max_tokens)
        self._shape = forward.bert_shape(self.tokenizer)
        self.imitation: Imitation | None = None
        self.module: torch.nn.Module = self.student
        if not config.narrowed:
            self._settle()

    def narrow(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> None:
        """Cut the wide ranker that was loaded down to the student, as these pairs pass through it.

        Raises:
            PipelineError: it cannot be cut so.
        """
        assert self._config.size  # noqa: S101 - the settings were checked
        made = forward.pair_batches(
            queries, passages, self._shape, self._limits, BUDGET, torch.device("cpu")
        )
        batches = [batch for _, batch in made]
        self.student = narrowed(self.student, self._config.layers, self._config.size, batches)
        self._settle()

    def _settle(self) -> None:
        """Move what is trained to the device, with a teacher of the inside if there is one."""
        config, device = self._config, self._device
        self.student.to(device).train()
        self.student.bert.embeddings.word_embeddings.requires_grad_(config.train_embeddings)
        self.module = self.student
        if config.intermediate:
            self.imitation = Imitation(
                self.student, self.tokenizer, config.intermediate, config.max_tokens, device
            )
            self.module = torch.nn.ModuleDict(
                {"student": self.student, "projections": self.imitation.projections}
            )

    def tokens(self, texts: Iterable[str], limit: int) -> Tokens:
        """Tokenise by word pieces."""
        return Tokens(self.tokenizer, texts, limit)

    def _batches(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Any:
        return forward.pair_batches(
            queries, passages, self._shape, self._limits, self._config.token_budget, self._device
        )

    def score(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Tensor:
        """Score by the short way, the last layer for [CLS] alone."""
        return forward.pair_logits(
            lambda batch: forward.logits(self.student, batch), self._batches(queries, passages)
        )

    def forward(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Scores:
        """Score; where a teacher is imitated every position of every layer is computed for it."""
        if self.imitation is None:
            return self.score(queries, passages), {}
        first, order, terms = self.imitation.compare_all(
            self.student.bert, self._batches(queries, passages)
        )
        return forward.in_order([forward.head(self.student, f) for f in first], order), terms

    def save(self, folder: Path, advice: dict[str, Any], card: str) -> None:
        """Write a cross-encoder for transformers, sentence-transformers and this program."""
        self.student.cpu().eval()
        longest = longest_input(self.student.config.to_dict(), None)
        advice = advice | {"max_tokens": min(self._config.advised_tokens, longest)}
        save_student(self.student, self.tokenizer, folder, advice, card)
