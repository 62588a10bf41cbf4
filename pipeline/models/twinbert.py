"""TwinBERT as a reranker and encoder: reads the folders that training writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.models.engine import resolve
from pipeline.models.folder import check, digest, reading
from pipeline.models.letters import tri_letters
from pipeline.models.loading import load_tokenizer
from pipeline.models.pairs import Tokenizer, to_device
from pipeline.models.towers import Towers
from pipeline.models.twin_net import TwinNet, read_twin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.scorer import Limits, Wishes


class TwinBert(Towers):
    """A loaded TwinBERT.

    Args:
        folder: with `twin.json`, `config.json` and safetensors.
        limits: `max_tokens` and `max_query_tokens` cap each text; without them the folder does.
        begun: numeric signature of a stage that goes on.

    Raises:
        PipelineError: the folder holds no such model.
    """

    def __init__(
        self, folder: Path, wishes: Wishes, limits: Limits, begun: Mapping[str, Any] | None = None
    ) -> None:
        from safetensors.torch import load_file
        from transformers import BertConfig

        table = check(folder)
        self.folder, self.digest = folder, digest(folder)
        self.engine = resolve(wishes, begun)
        self._twin = read_twin(folder)
        self.searchable = self._twin.crossing == "cosine"
        with reading(folder):
            config = BertConfig.from_dict(table)
            self._net = TwinNet(config, self._twin).eval()
            weights = load_file(folder / "model.safetensors")
            self._net.load_state_dict({name: t.float() for name, t in weights.items()}, strict=True)
            if not all(bool(torch.isfinite(t).all()) for t in self._net.state_dict().values()):
                raise PipelineError(
                    f"{folder}: the weights are not finite", "fetch or save the model again"
                )
            self._tokenizer = None
            if self._twin.input == "wordpiece":
                saved = load_tokenizer(folder, config.vocab_size)
                self._tokenizer = Tokenizer(saved, folder)
                self.pad = self._tokenizer.pad
        around = sum(map(len, self._tokenizer.around)) if self._tokenizer else 0
        self.positions = config.max_position_embeddings
        longest = self.positions - around
        self._query_limit = limits.max_query_tokens or self._twin.max_query_tokens
        self._passage_limit = limits.max_tokens or self._twin.max_tokens
        if max(self._query_limit, self._passage_limit) > longest:
            raise PipelineError(
                f"{folder}: at most {self._query_limit} tokens of a query and "
                f"{self._passage_limit} of a passage cannot be",
                f"this model takes {longest}",
            )
        for tower in filter(None, (self._net.query, self._net.passage)):
            tower.encoder.to(self.engine.dtype)
            if tower.letters is not None:
                tower.letters.to(self.engine.dtype)
        self._net.to(self.engine.device)
        self.size = self._twin.size or int(config.hidden_size)
        self._begin()

    @property
    def limits(self) -> Mapping[str, int]:
        """Tokens, or words, of a query and of a passage, without special ones."""
        return {"max_query_tokens": self._query_limit, "max_tokens": self._passage_limit}

    def _made_by(self) -> list[Any]:
        return [self.digest, self.signature, [self._passage_limit]]

    def _ids(
        self, texts: Sequence[str], queries: bool
    ) -> tuple[list[NDArray[Any]], NDArray[np.uint8]]:
        limit = self._query_limit if queries else self._passage_limit
        if self._tokenizer is None:
            found: list[NDArray[Any]] = [tri_letters(text, limit + 1) for text in texts]
            before, after = [], []  # type: list[int], list[int]
        else:
            found = list(self._tokenizer.tokens(texts, limit))
            before, after = self._tokenizer.around
        cut = np.array([len(one) > limit for one in found], np.uint8)
        rows = [one[:limit] for one in found]
        if self._tokenizer is not None:
            rows = [np.concatenate([before, one, after]) for one in rows]
        return rows, cut

    def _forward(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], queries: bool
    ) -> NDArray[np.float32]:
        flat = ids if ids.ndim == 2 else ids[:, :, 0]
        batch = to_device(flat, np.zeros_like(flat), lengths, self.engine.device)
        assert batch.mask is not None  # noqa: S101 - every row is padded
        whole = torch.from_numpy(ids).to(self.engine.device)
        with torch.inference_mode():
            made = self._net.vectors(whole, batch.mask.long(), queries)
            return made.float().cpu().numpy()

    def _cross(self, vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[Any]:
        def cross(of: NDArray[np.float32]) -> NDArray[Any]:
            with torch.inference_mode():
                passages = torch.from_numpy(of).to(self.engine.device)
                wanted = torch.from_numpy(query).to(self.engine.device).expand_as(passages)
                return self._net(wanted, passages).cpu().numpy()  # type: ignore[no-any-return]

        return self.engine.each(cross, [vectors])[0]
