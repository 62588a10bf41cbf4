"""One model over (query, passage) pairs: sequence classifiers with one or two logits.

The score is the raw logit, of two logits the difference z1 - z0, never a probability: sigmoid and
softmax make ties. The encoder runs in the precision of the engine, everything behind it (pooling,
head) in float32: bf16 logits would keep 439 of 1,000 scores apart.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.models import bert
from pipeline.models.engine import batches, resolve, within_memory
from pipeline.models.folder import advice, check, digest, reading
from pipeline.models.loading import load_tokenizer, load_weights, longest_input, takes_segments
from pipeline.models.pairs import Tokenizer, pair_batch
from pipeline.models.scorer import Scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.engine import Batch, Engine
    from pipeline.models.pairs import Template
    from pipeline.models.scorer import Limits, Wishes

MAX_QUERY_TOKENS = 64
MAX_TOKENS = 512
AGREEMENT = 1e-4  # of the largest activation, between two float32 passes of one model


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
        self.engine = resolve(wishes, begun)
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
        with reading(folder):
            self._forward = _Forward(model, self.engine, self._tokenizer)

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
    def _template(self) -> Template:
        template = self._tokenizer.template
        assert template is not None  # noqa: S101 - checked when the model was loaded
        return template

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

    def read(self, query: str, passages: Sequence[str]) -> None:
        """Tokenise what will be scored soon, which `score` then finds."""
        self._tokens(query, passages)

    def _tokens(
        self, query: str, passages: Sequence[str]
    ) -> tuple[NDArray[np.int32], list[NDArray[np.int32]]]:
        (of_query,) = self._tokenizer.tokens([query], self._query_limit)
        # One limit for all queries, so that a passage is tokenised once for all of them.
        return of_query, self._tokenizer.tokens(passages, self._limit - self._template.size)

    def score(self, query: str, passages: Sequence[str]) -> Scored:
        """Score the passages of one topic; batches depend on nothing but this call's texts."""
        if not passages:
            return Scored(np.empty(0, np.float32))
        template = self._template
        query_tokens, tokens = self._tokens(query, passages)
        query_cut = len(query_tokens) > self._query_limit
        query_tokens = query_tokens[: self._query_limit]
        room = self._limit - template.size - len(query_tokens)
        cut = sum(len(passage) > room for passage in tokens)
        tokens = [passage[:room] for passage in tokens]
        lengths = [len(passage) + len(query_tokens) + template.size for passage in tokens]
        device, pad = self.engine.device, self._tokenizer.pad

        def compute(budget: int) -> NDArray[np.float32]:
            self.engine.use_threads()
            order, made = [], []
            with torch.inference_mode():
                for places, width in batches(lengths, budget):
                    group = [tokens[place] for place in places]
                    batch = pair_batch(template, query_tokens, group, width, pad, device)
                    made.append(self._one_logit(self._forward(batch)))
                    order.append(places)
                logits = torch.cat(made).cpu().numpy()
            scores = np.empty(len(tokens), np.float32)
            scores[np.concatenate(order)] = logits
            return scores

        scores, budget = within_memory(self.engine.token_budget, compute)
        lowered = budget if budget != self.engine.token_budget else None
        return Scored(scores, query_cut, cut, lowered)

    def _one_logit(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        return logits[:, self._positive] - logits[:, 1 - self._positive]


class _Forward:
    """Token ids to float32 logits of shape (pairs, labels)."""

    def __init__(self, model: Any, engine: Engine, tokenizer: Tokenizer) -> None:
        self._model = model
        self._base = getattr(model, model.base_model_prefix)
        self._segmented = tokenizer.segmented and takes_segments(model)
        self._short = self._shortened(tokenizer, engine)
        self.kind = "whole" if self._short is None else "first token"
        if self._short is not None:
            self._base.encoder = None  # its weights were prepared anew
        pooler = getattr(self._base, "pooler", None)
        kept = {id(weights) for weights in pooler.parameters()} if pooler is not None else set()
        for weights in self._base.parameters():  # not the buffers: rotary angles want float32
            if id(weights) not in kept:
                weights.data = weights.data.to(engine.dtype)
        if pooler is not None:
            pooler.register_forward_pre_hook(_float_inputs)
        self._base.register_forward_hook(_float_output)
        model.to(engine.device)

    def __call__(self, batch: Batch) -> torch.Tensor:
        if self._short is None:
            return self._whole(batch)
        return self._headed(self._short, batch)

    def _headed(self, encoder: bert.FirstToken, batch: Batch) -> torch.Tensor:
        segments = batch.segments if self._segmented else torch.zeros_like(batch.segments)
        first = encoder.hidden(batch._replace(segments=segments)).float()
        pooler = getattr(self._base, "pooler", None)
        return self._model.classifier(first if pooler is None else pooler(first))  # type: ignore[no-any-return]

    def _whole(self, batch: Batch) -> torch.Tensor:
        segments = {"token_type_ids": batch.segments} if self._segmented else {}
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
        output = self._model(input_ids=batch.ids, attention_mask=mask, **segments)
        return output.logits.float()  # type: ignore[no-any-return]

    def _shortened(self, tokenizer: Tokenizer, engine: Engine) -> bert.FirstToken | None:
        """Prepare the shorter pass, if in float32 it says what the model's own says."""
        if self._model.config.model_type not in bert.KINDS:
            return None
        template = tokenizer.template
        assert template is not None  # noqa: S101 - checked before
        generator = np.random.default_rng(0)
        size = self._model.config.vocab_size
        query, *passages = (
            generator.integers(size // 2, size, length, dtype=np.int32) for length in (3, 9, 4, 1)
        )
        batch = pair_batch(template, query, passages, 9 + 3 + template.size, tokenizer.pad, "cpu")
        exact = replace(engine, device="cpu", precision="fp32")
        with torch.inference_mode():
            try:
                short = self._headed(bert.FirstToken(self._base, exact), batch)
                own = self._whole(batch)
                if short.shape != own.shape or not torch.allclose(
                    short, own, rtol=AGREEMENT, atol=AGREEMENT
                ):
                    return None
                return bert.FirstToken(self._base, engine)
            except (AttributeError, TypeError, ValueError, RuntimeError):
                return None  # a version of transformers that builds this model otherwise


def _float_inputs(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) else x for x in inputs)


def _float_output(_: Any, __: Any, output: Any) -> Any:
    output["last_hidden_state"] = output.last_hidden_state.float()
    return output


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
