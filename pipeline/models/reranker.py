"""Reranking from Python, and the one place that knows which kind of model a name stands for.

from pipeline.models.reranker import Reranker

reranker = Reranker.load("small")
scores = reranker.score("what is a lock file", ["A lock file ...", "Bread is ..."])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import telemetry
from pipeline.errors import PipelineError, shown
from pipeline.models.folder import OVERLAP, advice, digest, is_twin, is_twinbert, locate
from pipeline.models.scorer import (
    Device,
    Launching,
    Limits,
    Precision,
    Scored,
    Scorer,
    Wishes,
    held_back,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.towers import Towers


@dataclass(frozen=True)
class Reranker:
    """A model that scores passages for queries; made by `Reranker.load`."""

    name: str
    scorer: Scorer

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        threads: int = 0,
        token_budget: int = 0,
        max_query_tokens: int | None = None,
        max_tokens: int | None = None,
        positive: int | None = None,
    ) -> Reranker:
        """Load a model.

        Args:
            model: a shipped name (`small`), a folder, or a Hugging Face id (`org/name`).
            precision: of the encoder; `auto` is bf16 where the hardware is built for it, but fp32
                of narrow models (below 256 numbers) where that would change their ranking.
            threads: 0 takes every processor this process may use.
            token_budget: padded tokens of one forward pass; 0 takes what suits the device.
            positive: of a model with two logits, the one that speaks for relevance.

        Raises:
            PipelineError: there is no such model, or it cannot be loaded.
        """
        telemetry.switch_off()  # here too: not everybody comes by the command line
        wishes = Wishes(device, precision, threads, token_budget)
        limits = Limits(max_query_tokens, max_tokens, positive)
        return cls(model, load_scorer(model, wishes, limits))

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Score passages for one query: float32 of shape (passages,), higher is better.

        Scores are raw logits (of two-tower models, dot products). They may be compared within one
        query; across models, precisions and machines only up to a tolerance.

        Raises:
            PipelineError: the query is empty, or a score is not finite.
        """
        (scores,) = self.score_each([(query, passages)])
        return scores

    def score_each(
        self, topics: Iterable[tuple[str, Sequence[str]]]
    ) -> Iterator[NDArray[np.float32]]:
        """Score (query, passages) of many topics: what `score` gives for each, in their order.

        Faster than one call after the other: the next topic is begun before the last one ends, so
        no thread and no device waits.

        Raises:
            PipelineError: a query is empty, or a score is not finite.
        """
        begun = (self._begin(query, passages) for query, passages in topics)
        for finish in held_back(begun, self.scorer):
            yield _finite(finish())

    def _begin(self, query: str, passages: Sequence[str]) -> Callable[[], Scored]:
        if isinstance(passages, str):
            raise TypeError("passages is one text; give a list of them")
        if not query.strip():
            raise PipelineError("the query is empty", "give a query some words")
        if isinstance(self.scorer, Launching):
            return self.scorer.launch(query, passages)
        return lambda: self.scorer.score(query, passages)

    @property
    def signature(self) -> Mapping[str, Any]:
        """What decides the last bits of the scores: device, precision, processor, versions."""
        return self.scorer.signature


def _finite(scored: Scored) -> NDArray[np.float32]:
    import numpy as np

    scores = scored.scores
    broken = np.flatnonzero(~np.isfinite(scores))
    if len(broken):
        raise PipelineError(
            f"the score of passage {broken[0]} is {scores[broken[0]]}",
            "the model or its precision is at fault: try precision='fp32'",
        )
    return scores


def load_scorer(
    model: str, wishes: Wishes, limits: Limits, begun: Mapping[str, Any] | None = None
) -> Scorer:
    """Load a model by its name, folder or id, whatever its kind.

    Args:
        begun: the numeric signature of a stage that goes on.

    Raises:
        PipelineError: there is no such model, or it cannot be loaded.
    """
    if model == OVERLAP:
        from pipeline.models.overlap import Overlap

        return Overlap()
    folder = locate(model)
    if is_twinbert(folder):
        from pipeline.models.twinbert import TwinBert

        return TwinBert(folder, wishes, limits, begun)
    if is_twin(folder):
        from pipeline.models.twin_encoder import TwinEncoder

        return TwinEncoder(folder, wishes, limits, begun)
    from pipeline.models.cross_encoder import CrossEncoder

    return CrossEncoder(folder, wishes, limits, begun)


def load_towers(
    model: str, wishes: Wishes, limits: Limits, begun: Mapping[str, Any] | None = None
) -> Towers:
    """Load a model that has vectors.

    Raises:
        PipelineError: it cannot be loaded, or scores pairs.
    """
    from pipeline.models.towers import Towers

    scorer = load_scorer(model, wishes, limits, begun)
    if not isinstance(scorer, Towers):
        raise PipelineError(
            f"{shown(model)}: scores pairs, and has no vectors of passages",
            "name two towers: a bi-encoder of sentence-transformers, or a TwinBERT",
        )
    return scorer


def reads_pairs(model: str) -> bool:
    """Whether a model is a cross-encoder; nothing is loaded."""
    if model == OVERLAP:
        return False
    folder = locate(model)
    return not (is_twinbert(folder) or is_twin(folder))


def model_digest(model: str) -> str:
    """Digest of a model by name, folder or id; nothing is loaded."""
    if model == OVERLAP:
        from pipeline.models.overlap import Overlap

        return Overlap.digest
    return digest(locate(model))


def advised_weight(model: str) -> float:
    """Weight of the model beside the first stage that its folder recommends; 1 where it is mute."""
    weight = None if model == OVERLAP else advice(locate(model)).interpolate
    return 1.0 if weight is None else weight
