"""A large ranker in training: any encoder of transformers under a head of one or two logits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline import store
from pipeline.distill import forward
from pipeline.distill.groups import Tokens
from pipeline.errors import PipelineError
from pipeline.models.folder import check
from pipeline.models.loading import (
    VOCABULARIES,
    from_folder,
    load_tokenizer,
    longest_input,
    takes_segments,
)
from pipeline.models.pairs import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.distill.forward import Batch
    from pipeline.distill.rankers import Scores
    from pipeline.distill.settings import TeachConfig

TOKENIZER_FILES = (
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt",
)  # fmt: skip


class Classifier:
    """`AutoModelForSequenceClassification` over a base, scored by raw logits, without dropout.

    Raises:
        PipelineError: the base cannot be loaded, or makes nothing of pairs.
    """

    def __init__(self, config: TeachConfig, device: torch.device) -> None:
        from transformers import AutoModelForSequenceClassification

        self._base, self._logits = config.base, config.logits
        check(config.base)
        torch.manual_seed(config.seed)  # of a new head
        self.module: torch.nn.Module
        self.module, _, _ = from_folder(
            config.base, AutoModelForSequenceClassification, num_labels=config.logits,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
        settings: Any = self.module.config
        self._tokenizer = load_tokenizer(config.base, settings.vocab_size)
        longest = longest_input(settings.to_dict(), self._tokenizer)
        ours = Tokenizer(self._tokenizer, config.base)
        template = ours.template
        if template is None or not template.between:
            raise PipelineError(
                f"{config.base}: the tokenizer puts nothing between query and passage",
                "choose an encoder that takes pairs",
            )
        if config.max_tokens > longest:
            raise PipelineError(
                f"[teach] max_tokens = {config.max_tokens}: {config.base} takes {longest}",
                "lower it",
            )
        self._advised = min(config.advised_tokens, longest)
        # As with students, what is trained is what ranks: dropout stays off, and the head computes
        # in float32 whatever the encoder's precision.
        self.module.eval().to(device)
        head: Any = getattr(self.module, "classifier", None)
        if head is None:
            raise PipelineError(
                f"{config.base}: the head of a {settings.model_type} is none that is taught here",
                "choose an encoder such as BERT, ELECTRA, RoBERTa, DeBERTa or ModernBERT",
            )
        head.forward = partial(_in_float32, head.forward)
        self._segmented = ours.segmented and takes_segments(self.module)
        self._shape = forward.Shape(template.before, template.between, template.after, ours.pad)
        self._limits = forward.Limits(config.max_query_tokens, config.max_tokens)
        self._budget, self._device = config.token_budget, device

    def tokens(self, texts: Iterable[str], limit: int) -> Tokens:
        """Tokenise as the base does."""
        return Tokens(self._tokenizer, texts, limit)

    def score(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Tensor:
        """One logit, or the second less the first."""
        made = forward.pair_batches(
            queries, passages, self._shape, self._limits, self._budget, self._device
        )
        return forward.pair_logits(self._one_logit, made)

    def forward(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Scores:
        """Score as in ranking."""
        return self.score(queries, passages), {}

    def _one_logit(self, batch: Batch) -> Tensor:
        more = {"token_type_ids": batch.segments} if self._segmented else {}
        logits: Tensor = self.module(
            input_ids=batch.ids, attention_mask=batch.mask, **more
        ).logits.float()
        return logits[:, 0] if self._logits == 1 else logits[:, 1] - logits[:, 0]

    def save(self, folder: Path, advice: dict[str, Any], card: str) -> None:
        """Write fp16 weights, the base's tokenizer, `pipeline.json` and the card.

        Raises:
            PipelineError: a weight is not finite in fp16.
        """
        from pipeline.distill.student import fp16_weights

        weights = fp16_weights(self.module)
        settings: Any = self.module.config
        config = settings.to_dict() | {
            "dtype": "float16",
            "architectures": [type(self.module).__name__],
        }
        # sentence-transformers squashes single logits unless the model says otherwise.
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
        config.pop("_name_or_path", None)
        advice = advice | {"max_tokens": self._advised}
        if self._logits == 2:
            advice["positive"] = 1
        with store.atomic_folder(folder) as new:
            store.write_bytes(new / "model.safetensors", weights)
            store.write_json(new / "config.json", config)
            for name in TOKENIZER_FILES:
                if (self._base / name).is_file():
                    store.write_bytes(new / name, (self._base / name).read_bytes())
            store.write_json(new / "pipeline.json", {"schema": 1} | advice)
            store.write_bytes(new / "README.md", card.encode())


def _in_float32(compute: Callable[..., Tensor], hidden: Tensor, *more: Any, **named: Any) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return compute(hidden.float(), *more, **named)
