"""A TwinBERT in training: towers of a BERT encoder's layers, crossed to one logit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import store
from pipeline.distill.forward import batches, in_order
from pipeline.distill.groups import Tokens
from pipeline.distill.student import fp16_weights, load_base, need_positions, write_tokenizer
from pipeline.errors import PipelineError
from pipeline.models.folder import TWIN
from pipeline.models.letters import tri_letters
from pipeline.models.twin_net import Twin, TwinNet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.distill.groups import Rows
    from pipeline.distill.rankers import Scores
    from pipeline.distill.settings import DistillConfig

PAD_TO = 8


class TwinStudent:
    """Two towers; both begin with the same layers of the base, everything else is new.

    Raises:
        PipelineError: the base is no BERT encoder, or has no such layer.
    """

    def __init__(self, config: DistillConfig, device: torch.device) -> None:
        assert config.twin  # noqa: S101 - this is why we are here
        wanted = config.twin
        pieces = wanted.input == "wordpiece"
        base = load_base(config.base)
        longest = min(config.advised_tokens, base.config.max_position_embeddings)
        self.twin = Twin(
            wanted.input, wanted.towers, wanted.pooling, wanted.size, wanted.crossing,
            config.max_query_tokens, longest - (2 if pieces else 0),
        )  # fmt: skip
        depth = base.config.num_hidden_layers
        if not config.layers or any(not 0 <= layer < depth for layer in config.layers):
            raise PipelineError(
                f"{config.base}: has layers 0 to {depth - 1}, not {list(config.layers)}",
                "choose layers it has",
            )
        settings = base.config
        settings.num_hidden_layers = len(config.layers)
        settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = 0.0
        if not pieces:
            settings.vocab_size = 1  # words are sums of tri-letters instead
        torch.manual_seed(config.seed)
        self.module: torch.nn.Module = TwinNet(settings, self.twin)
        self._net: Any = self.module
        for tower in filter(None, (self._net.query, self._net.passage)):
            weights = _chosen(base.encoder.state_dict(), config.layers)
            if not pieces:
                del weights["embeddings.word_embeddings.weight"]
            missing, unexpected = tower.encoder.load_state_dict(weights, strict=False)
            assert not unexpected  # noqa: S101
            assert pieces <= (not missing)  # noqa: S101
            if pieces:
                tower.encoder.embeddings.word_embeddings.requires_grad_(config.train_embeddings)
            else:  # never looked at
                tower.encoder.embeddings.word_embeddings.requires_grad_(False)
        self.module.to(device).train()
        self.tokenizer = base.tokenizer
        self._before = [base.tokenizer.cls_token_id] if pieces else []
        self._after = [base.tokenizer.sep_token_id] if pieces else []
        self._pad = int(base.tokenizer.pad_token_id) if pieces else 0
        self._limits = {True: config.max_query_tokens, False: config.max_tokens}
        around = len(self._before) + len(self._after)
        need_positions(config.base, base.config, config.max_tokens + around, pairs=False)
        self._budget, self._device = config.token_budget, device

    def tokens(self, texts: Iterable[str], limit: int) -> Rows:
        """Tokenise by word pieces, or by the tri-letters of words."""
        if self.twin.input == "wordpiece":
            return Tokens(self.tokenizer, texts, limit)
        return [tri_letters(text, limit) for text in texts]

    def score(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Tensor:
        """Encode each query once, each passage, and cross them."""
        places: dict[int, int] = {}
        which = [places.setdefault(id(query), len(places)) for query in queries]
        distinct = [queries[which.index(number)] for number in range(len(places))]
        left = self._vectors(distinct, queries=True)[torch.tensor(which, device=self._device)]
        right = self._vectors(passages, queries=False)
        with torch.autocast(self._device.type, enabled=False):
            return self._net(left, right)  # type: ignore[no-any-return]

    def forward(self, queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Scores:
        """Score as in ranking."""
        return self.score(queries, passages), {}

    def _vectors(self, texts: Sequence[NDArray[Any]], *, queries: bool) -> Tensor:
        limit, around = self._limits[queries], len(self._before) + len(self._after)
        lengths = np.array([min(len(text), limit) + around for text in texts], np.int64)
        parts, order = [], []
        for chosen in batches(lengths, self._budget):
            width = -(-int(lengths[chosen].max()) // PAD_TO) * PAD_TO
            ids = np.full((len(chosen), width, *texts[0].shape[1:]), self._pad, np.int64)
            mask = np.zeros((len(chosen), width), np.int64)
            for row, place in enumerate(chosen.tolist()):
                length = int(lengths[place])
                text = texts[place][:limit]
                if around:
                    text = np.concatenate([self._before, text, self._after])
                ids[row, :length], mask[row, :length] = text, 1
            both = (torch.from_numpy(array).to(self._device) for array in (ids, mask))
            parts.append(self._net.vectors(*both, queries))
            order.append(chosen)
        return in_order(parts, order)

    def save(self, folder: Path, advice: dict[str, Any], card: str) -> None:
        """Write fp16 weights, `twin.json`, the tokenizer, `pipeline.json` and the card.

        Raises:
            PipelineError: a weight is not finite in fp16.
        """
        weights = fp16_weights(self.module)
        config = self._net.query.encoder.config.to_dict()
        config |= {"dtype": "float16", "architectures": ["TwinBert"]}
        config.pop("_name_or_path", None)
        interpolate = {"schema": 1, "interpolate": advice.get("interpolate", 1.0)}
        with store.atomic_folder(folder) as new:
            store.write_bytes(new / "model.safetensors", weights)
            store.write_json(new / "config.json", config)
            store.write_json(new / TWIN, self.twin.record())
            if self.twin.input == "wordpiece":
                write_tokenizer(self.tokenizer, new, config["max_position_embeddings"])
            store.write_json(new / "pipeline.json", interpolate)
            store.write_bytes(new / "README.md", card.encode())


def _chosen(weights: dict[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """Weights of chosen layers, numbered anew, and everything else but the pooler."""
    kept = {f"encoder.layer.{old}.": f"encoder.layer.{new}." for new, old in enumerate(layers)}
    found = {}
    for name, tensor in weights.items():
        if not name.startswith(("encoder.layer.", "pooler.")):
            found[name] = tensor
        for old, new in kept.items():
            if name.startswith(old):
                found[new + name.removeprefix(old)] = tensor
    return found
