"""One model over (query, passage) pairs: sequence classifiers with one or two logits.

The score is the raw logit, of two logits the difference z1 - z0, never a probability: sigmoid and
softmax make ties. The encoder runs in the precision of the engine, everything behind it (pooling,
head) in float32: bf16 logits would keep 439 of 1,000 scores apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.models import plain
from pipeline.models.bert import KINDS
from pipeline.models.engine import (
    SHARES,
    WIDE,
    Gathered,
    batches,
    even,
    few_shapes,
    resolve,
    within_memory,
)
from pipeline.models.flat import Joined, fetching, flat_batch, flat_batches, joined
from pipeline.models.folder import advice, check, digest, read_table, reading
from pipeline.models.forward import Forward
from pipeline.models.loading import load_tokenizer, load_weights, longest_input
from pipeline.models.pairs import Tokenizer, pair_batch
from pipeline.models.scorer import Scored
from pipeline.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.engine import Batch
    from pipeline.models.pairs import Template
    from pipeline.models.scorer import Limits, Wishes

MAX_QUERY_TOKENS = 64
MAX_TOKENS = 512
ENDED = 4096  # pairs that pass through the end of the last layer together
TOGETHER = 4  # token budgets that are handed over at once where fewer are computed at a time
AHEAD = 2  # topics in the hands of a GPU before the scores of the first are asked for


class CrossEncoder:
    """A loaded cross-encoder.

    Args:
        folder: of a saved `...ForSequenceClassification` with safetensors, or of a cross-encoder
            of sentence-transformers.
        limits: what they leave open the folder advises, else at most 64 tokens of a query and 512
            of a pair count, and the second of two logits is the positive one.
        begun: numeric signature of a stage that goes on.

    Raises:
        PipelineError: the folder holds no such model.
    """

    def __init__(
        self,
        folder: Path,
        wishes: Wishes,
        limits: Limits,
        begun: Mapping[str, Any] | None = None,
    ) -> None:
        check(folder)
        advised = advice(folder)
        self.folder = folder
        self.digest = digest(folder)
        config = read_table(folder / "config.json")
        width, kind = config.get("hidden_size"), config.get("model_type")
        self.engine = resolve(
            wishes, begun, width if isinstance(width, int) else WIDE, in_int8=True,
            by_layers=isinstance(kind, str) and kind in KINDS,
        )  # fmt: skip
        model: Any = plain.classifier(folder)
        if model is None:
            model = load_weights(folder, "AutoModelForSequenceClassification", heads=True)
        with reading(folder):
            saved = load_tokenizer(folder, model.config.vocab_size)
            self._tokenizer = Tokenizer(saved, folder)
            longest = longest_input(model.config.to_dict(), saved)
        self._positive = _first(limits.positive, advised.positive, 1)
        self._limit = _first(limits.max_tokens, advised.max_tokens, min(MAX_TOKENS, longest))
        self._query_limit = _first(
            limits.max_query_tokens,
            advised.max_query_tokens,
            min(MAX_QUERY_TOKENS, self._limit // 2),
        )
        self._check(model, longest)
        with reading(folder):  # weights are laid out by a thread like those that use them
            (self._forward,) = self.engine.each(
                lambda of: Forward(of, self.engine, self._tokenizer), [model]
            )

    def _check(self, model: Any, longest: int) -> None:
        logits = model.config.num_labels
        if logits not in (1, 2):
            raise PipelineError(
                f"{self.folder}: a classifier with {logits} classes",
                "a reranker has one logit, or two of which one speaks for relevance",
            )
        template = self._tokenizer.template
        if template is None or not template.between:
            raise PipelineError(
                f"{self.folder}: the tokenizer puts nothing between query and passage",
                "use a cross-encoder, trained on pairs",
            )
        least = self._query_limit + template.size + 1
        if not least <= self._limit <= longest or self._query_limit < 1:
            raise PipelineError(
                f"{self.folder}: at most {self._query_limit} tokens of a query and {self._limit} "
                "of a pair cannot be",
                f"this model takes {longest} tokens, {template.size} of them its own; "
                "leave some for the passage",
            )
        if self._positive not in (0, 1):
            raise PipelineError(
                f"logit {self._positive} cannot be the positive one", "it is 0 or 1"
            )

    @property
    def signature(self) -> Mapping[str, Any]:
        """The numeric signature, with the way the forward pass is computed."""
        return {**self.engine.signature(), "forward": self._forward.kind}

    @property
    def limits(self) -> Mapping[str, int]:
        """Tokens of a query and of a pair, and which of two logits is the positive one."""
        return {
            "max_query_tokens": self._query_limit,
            "max_tokens": self._limit,
            "positive": self._positive,
        }

    @property
    def ahead(self) -> int:
        """Topics that are worth launching before the scores of the first are asked for."""
        if self._forward.is_flat:
            return AHEAD
        return 1 + self.engine.threads // SHARES if self.engine.device == "cpu" else 0

    def read(self, query: str, passages: Sequence[str]) -> None:
        """Tokenise what will be scored soon, which is then at hand."""
        self._tokens(query, passages)

    def _tokens(
        self, query: str, passages: Sequence[str]
    ) -> tuple[NDArray[np.int32], list[NDArray[np.int32]]]:
        (of_query,) = self._tokenizer.tokens([query], self._query_limit)
        # One limit for all queries, so that a passage is tokenised once for all of them.
        return of_query, self._tokenizer.tokens(passages, self._limit - self._template.size)

    def score(self, query: str, passages: Sequence[str] | Tokens) -> Scored:
        """Score the passages of one topic; batches depend on nothing but this call's texts."""
        return self.launch(query, passages)()

    def launch(self, query: str, passages: Sequence[str] | Tokens) -> Callable[[], Scored]:
        """Begin to score one topic; what is returned gives the scores, once.

        The device, or the threads of a CPU, are at work when this returns, and the next topic may
        be launched.
        """
        if not len(passages.lengths if isinstance(passages, Tokens) else passages):
            return lambda: Scored(np.empty(0, np.float32))
        if not self._forward.is_flat:
            return self._padded(self._pairs(query, passages))
        return self._flat(self._pairs(query, passages))

    def _pairs(self, query: str, passages: Sequence[str] | Tokens) -> _Pairs:
        tokens, of_texts = self._tokens(query, () if isinstance(passages, Tokens) else passages)
        cut = len(tokens) > self._query_limit
        tokens = tokens[: self._query_limit]
        around = self._template.size + len(tokens)
        if isinstance(passages, Tokens):
            ends = np.cumsum(passages.lengths)
            given = Joined(passages.ids, ends - passages.lengths, passages.lengths)
        else:
            given = joined(of_texts)
        room = self._limit - around
        lengths = np.minimum(given.lengths, room)
        return _Pairs(
            tokens, cut, given._replace(lengths=lengths), int((given.lengths > room).sum()),
            lengths + around,
        )  # fmt: skip

    @property
    def _template(self) -> Template:
        template = self._tokenizer.template
        assert template is not None  # noqa: S101 - checked when the model was loaded
        return template

    def _padded(self, pairs: _Pairs) -> Callable[[], Scored]:
        device, pad, passages = self.engine.device, self._tokenizer.pad, pairs.passages

        def read(batch: tuple[NDArray[np.int64], int]) -> Batch:
            places, width = batch
            group = [passages.one(place) for place in places.tolist()]
            return pair_batch(self._template, pairs.query, group, width, pad, device)

        def end(parts: list[torch.Tensor]) -> torch.Tensor:
            pieces = torch.split(torch.cat(parts), ENDED)
            return torch.cat([self._one_logit(self._forward.ended(piece)) for piece in pieces])

        def begin(budget: int) -> tuple[list[NDArray[np.int64]], Callable[[], list[Any]]]:
            cut = list(self._cut(pairs.lengths, budget))
            gathered = Gathered(len(cut), end)

            def score(place: int) -> tuple[torch.Tensor | None, int]:
                with torch.inference_mode():
                    batch = read(cut[place])
                    if self._forward.takes_any_rows:  # and leaves padding out
                        logits = gathered.bring(place, self._forward.begun(batch))
                        return logits, int(pairs.lengths[cut[place][0]].sum())
                    return self._one_logit(self._forward.padded(batch)), batch.ids.numel()

            return [places for places, _ in cut], self.engine.begin(score, range(len(cut)))

        def compute(budget: int) -> tuple[NDArray[np.float32], int]:
            order, wait = begun.pop() if begun else begin(budget)
            made = wait()
            with torch.inference_mode():
                logits = torch.cat([some for some, _ in made if some is not None]).cpu().numpy()
            return pairs.in_place(order, logits), sum(tokens for _, tokens in made)

        def finish() -> Scored:
            (scores, computed), budget = within_memory(self.engine.token_budget, compute)
            return self._scored(pairs, scores, budget, computed)

        begun = [begin(self.engine.token_budget)] if device == "cpu" else []
        return finish

    def _cut(
        self, lengths: NDArray[np.int64], budget: int
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        if self.engine.device != "cpu":
            return batches(lengths, budget)
        if self._forward.takes_any_rows:
            return batches(lengths, even(lengths, TOGETHER * budget))
        return few_shapes(lengths, budget)

    def _flat(self, pairs: _Pairs) -> Callable[[], Scored]:
        def compute(budget: int) -> tuple[list[NDArray[np.int64]], Callable[[], NDArray[Any]]]:
            order, made = list(flat_batches(pairs.lengths, budget)), []
            with torch.inference_mode():
                for places in order:
                    batch = flat_batch(
                        self._template, pairs.query, pairs.passages, places, self.engine.device
                    )
                    made.append(self._one_logit(self._forward.flat(batch)))
                return order, fetching(torch.cat(made))

        # Memory is taken when a batch is launched, so that is where it runs out.
        (order, fetch), budget = within_memory(self.engine.token_budget, compute)
        computed = int(pairs.lengths.sum())
        return lambda: self._scored(pairs, pairs.in_place(order, fetch()), budget, computed)

    def _scored(
        self, pairs: _Pairs, scores: NDArray[np.float32], budget: int, computed: int
    ) -> Scored:
        lowered = budget if budget != self.engine.token_budget else None
        real = int(pairs.lengths.sum())
        return Scored(scores, pairs.query_cut, pairs.cut, lowered, real, computed - real)

    def _one_logit(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        return logits[:, self._positive] - logits[:, 1 - self._positive]


class _Pairs(NamedTuple):
    """One topic: its query, its passages, and the tokens of each pair."""

    query: NDArray[np.int32]
    query_cut: bool
    passages: Joined
    cut: int  # passages
    lengths: NDArray[np.int64]

    def in_place(
        self, order: Sequence[NDArray[np.int64]], logits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Put scores in batches back into the order of the passages; some come more than once."""
        scores = np.empty(len(self.lengths), np.float32)
        # Backwards: of a passage that also fills up a batch the first score holds.
        scores[np.concatenate(order)[::-1]] = logits[::-1]
        return scores


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
