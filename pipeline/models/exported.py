"""A model and its exported forms, side by side over the same token ids."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.models import onnx
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.loading import load_tokenizer, load_weights, takes_segments
from pipeline.models.pairs import Tokenizer, pair_batch
from pipeline.models.scorer import Limits, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.engine import Batch

    Pairs = Sequence[tuple[str, Sequence[str]]]

BATCH = 8  # pairs


class Original:
    """A cross-encoder in float32 as `rerank` runs it, and what is made of it.

    Raises:
        PipelineError: the folder holds no such model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranker = CrossEncoder(folder, Wishes("cpu", "fp32"), Limits())
        self._limits = self._ranker.limits
        self._model = load_weights(folder, "AutoModelForSequenceClassification", heads=True)
        self._tokenizer = Tokenizer(load_tokenizer(folder, self._model.config.vocab_size), folder)

    def scores(self, pairs: Pairs) -> list[NDArray[np.float32]]:
        """Score the passages of each topic."""
        return [self._ranker.score(query, passages).scores for query, passages in pairs]

    def need_graph(self) -> None:
        """Fail before anything is scored if no graph can be written."""
        onnx.need_bert(self._model.config)

    def graph(self) -> bytes:
        """Write down the ONNX graph."""
        return onnx.graph(self._model)

    def quantise(self, source: Path, target: Path) -> None:
        """Write the int8 form of a graph."""
        onnx.quantise(source, target, self._model.config.num_hidden_layers)

    def weights_of(self, folder: Path) -> list[Path]:
        """List the files of weights of an exported folder."""
        return sorted(folder.glob("*.safetensors"))

    def scores_of(self, folder: Path, form: str, pairs: Pairs) -> list[NDArray[np.float32]]:
        """Score the same pairs by an exported form: by transformers' own pass, or ONNX's runtime.

        Raises:
            PipelineError: it cannot be loaded, or its scores are not finite.
        """
        run = self._torch(folder) if form == "safetensors" else self._onnx(folder / form)
        found = [self._topic(run, query, passages) for query, passages in pairs]
        if not all(np.isfinite(scores).all() for scores in found):
            raise PipelineError(f"{form}: a score is not finite", "export without this form")
        return found

    def _torch(self, folder: Path) -> Callable[[Batch], NDArray[np.float32]]:
        model = load_weights(folder, "AutoModelForSequenceClassification", heads=True)
        segmented = self._tokenizer.segmented and takes_segments(model)

        def run(batch: Batch) -> NDArray[np.float32]:
            kinds = {"token_type_ids": batch.segments} if segmented else {}
            with torch.inference_mode():
                output = model(input_ids=batch.ids, attention_mask=_mask(batch), **kinds)
            return np.asarray(output.logits, np.float32)

        return run

    def _onnx(self, path: Path) -> Callable[[Batch], NDArray[np.float32]]:
        session = onnx.Session(path, self._ranker.engine.threads)
        return lambda batch: session.logits(
            tensor.numpy() for tensor in (batch.ids, _mask(batch), batch.segments)
        )

    def _topic(
        self, run: Callable[[Batch], NDArray[np.float32]], query: str, passages: Sequence[str]
    ) -> NDArray[np.float32]:
        template = self._tokenizer.template
        assert template is not None  # noqa: S101 - the ranker was loaded with the same one
        asked, longest = self._limits["max_query_tokens"], self._limits["max_tokens"]
        (head,) = self._tokenizer.tokens([query], asked)
        head = head[:asked]
        room = longest - template.size - len(head)
        tails = [tokens[:room] for tokens in self._tokenizer.tokens(passages, longest)]
        made = []
        for start in range(0, len(tails), BATCH):
            group = tails[start : start + BATCH]
            width = template.size + len(head) + max(map(len, group))
            made.append(run(pair_batch(template, head, group, width, self._tokenizer.pad, "cpu")))
        logits = np.concatenate(made)
        if logits.shape[1] == 1:
            return logits[:, 0]
        positive = self._limits["positive"]
        return logits[:, positive] - logits[:, 1 - positive]


def _mask(batch: Batch) -> torch.Tensor:
    return torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()


def difference(
    before: Sequence[NDArray[np.float32]], after: Sequence[NDArray[np.float32]]
) -> dict[str, float]:
    """Compare logits and the orders they make, topic by topic."""
    gaps = np.abs(np.concatenate(list(before)) - np.concatenate(list(after)))
    orders = [(np.argsort(-a, kind="stable"), np.argsort(-b, kind="stable"))
              for a, b in zip(before, after, strict=True)]  # fmt: skip
    return {
        "largest": float(gaps.max()),
        "mean": float(gaps.mean()),
        "reordered": sum(bool((a != b).any()) for a, b in orders),
        "first_changed": sum(bool(a[0] != b[0]) for a, b in orders),
        "tau": float(np.mean([_tau(a, b) for a, b in zip(before, after, strict=True)])),
    }


def _tau(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    return float(np.mean(signs))
