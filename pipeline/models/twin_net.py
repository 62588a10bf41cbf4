"""TwinBERT (2002.06275) as a network: two towers, two poolings, two crossings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import InputError, shown
from pipeline.models.folder import TWIN, read_table
from pipeline.models.letters import COUNT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

Input = Literal["wordpiece", "triletter"]
Sides = Literal["shared", "separate"]
Pooling = Literal["cls", "weighted"]
Crossing = Literal["cosine", "residual"]
CHOICES: Mapping[str, tuple[str, ...]] = {
    "input": get_args(Input),
    "towers": get_args(Sides),
    "pooling": get_args(Pooling),
    "crossing": get_args(Crossing),
}
NUMBERS = {"size": (0, 8192), "max_query_tokens": (1, 8192), "max_tokens": (1, 8192)}
SCHEMA = 1
FIRST_SCALE = 5.0  # of the cosine, which alone could say no more than sigmoid(1)


@dataclass(frozen=True)
class Twin:
    """What a TwinBERT is made of; kept in `twin.json`."""

    input: Input = "wordpiece"
    towers: Sides = "shared"
    pooling: Pooling = "weighted"
    size: int = 128  # numbers of a vector, after tanh; 0: the encoder's own, without tanh
    crossing: Crossing = "cosine"
    max_query_tokens: int = 32  # word pieces without special ones, or words of tri-letters
    max_tokens: int = 254  # of a passage

    def record(self) -> dict[str, Any]:
        """As it stands in `twin.json`."""
        return {"schema": SCHEMA, **asdict(self)}


def read_twin(folder: Path) -> Twin:
    """Read `twin.json`.

    Raises:
        InputError: a key that is missing, or a value that cannot be.
    """
    path = folder / TWIN
    table = read_table(path)
    if table.get("schema") != SCHEMA:
        raise InputError(
            path, None, f"schema {shown(table.get('schema'))}", f"this version reads {SCHEMA}"
        )
    values: dict[str, Any] = {name: table.get(name) for name in (*CHOICES, *NUMBERS)}
    for name, known in CHOICES.items():
        if values[name] not in known:
            raise InputError(path, None, f"{name} = {shown(values[name])}", f"{' or '.join(known)}")
    for name, (least, most) in NUMBERS.items():
        if type(values[name]) is not int or not least <= values[name] <= most:
            raise InputError(
                path, None, f"{name} = {shown(values[name])}", f"{least} to {most} would be right"
            )
    return Twin(**values)


class Tower(nn.Module):
    """An encoder, a pooling, and a layer that makes vectors small."""

    def __init__(self, config: Any, twin: Twin) -> None:
        from transformers import BertModel

        super().__init__()
        width = config.hidden_size
        self.encoder = BertModel(config, add_pooling_layer=False)
        letters = twin.input == "triletter"
        self.letters = nn.Embedding(COUNT + 1, width, padding_idx=0) if letters else None
        if self.letters is not None:
            nn.init.normal_(self.letters.weight[1:], std=config.initializer_range)
        self.weigh = nn.Linear(width, 1) if twin.pooling == "weighted" else None
        self.down = nn.Linear(width, twin.size) if twin.size else None

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors of sequences, float32.

        Args:
            ids: (sequences, positions), of tri-letters (sequences, positions, parts of a word).
            mask: (sequences, positions), 1 for tokens.
        """
        if self.letters is None:
            output = self.encoder(input_ids=ids, attention_mask=mask)
        else:
            words = self.letters(ids).sum(dim=2)
            output = self.encoder(inputs_embeds=words, attention_mask=mask)
        with torch.autocast(ids.device.type, enabled=False):
            pooled = self.pool(output.last_hidden_state.float(), mask)
            if self.down is not None:
                pooled = torch.tanh(self.down(pooled))
            return pooled

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The first token's state, or the mean of all, weighted by a softmax over real tokens."""
        if self.weigh is None:
            return hidden[:, 0]
        scores = self.weigh(hidden)[:, :, 0].masked_fill(mask == 0, float("-inf"))
        weighted: Tensor = scores.softmax(dim=1)[:, :, None] * hidden
        return weighted.sum(dim=1)


class Cosine(nn.Module):
    """The retrieval version: a logistic layer over the cosine, so that dot products rank alike."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(FIRST_SCALE))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(self, query: Tensor, passage: Tensor) -> Tensor:
        """Logits of vectors of length 1, (pairs, size) each."""
        return self.scale * (query * passage).sum(dim=1) + self.bias


class Residual(nn.Module):
    """The relevance version: a residual layer over the element-wise maximum."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        self.out = nn.Linear(size, 1)

    def forward(self, query: Tensor, passage: Tensor) -> Tensor:
        """Logits of vectors, (pairs, size) each: relu(x + W2 relu(W1 x)), x their maximum."""
        x = torch.maximum(query, passage)
        residual = self.second(self.first(x).relu())
        return self.out((residual + x).relu())[:, 0]  # type: ignore[no-any-return]


class TwinNet(nn.Module):
    """Both towers and their crossing."""

    def __init__(self, config: Any, twin: Twin) -> None:
        super().__init__()
        self.twin = twin
        self.query = Tower(config, twin)
        self.passage = Tower(config, twin) if twin.towers == "separate" else None
        cosine = twin.crossing == "cosine"
        self.crossing = Cosine() if cosine else Residual(twin.size or config.hidden_size)

    def vectors(self, ids: Tensor, mask: Tensor, queries: bool) -> Tensor:
        """Vectors of one side; of length 1 where their cosine is what counts."""
        tower = self.query if queries or self.passage is None else self.passage
        made: Tensor = tower(ids, mask)
        return functional.normalize(made, dim=1) if self.twin.crossing == "cosine" else made

    def forward(self, query: Tensor, passage: Tensor) -> Tensor:
        """Logits of pairs of vectors, float32."""
        return self.crossing(query.float(), passage.float())  # type: ignore[no-any-return]
