"""Forward passes of a BERT in training: pairs of token ids to logits, fast, or with its inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

PAD_TO = 8  # sequence lengths are rounded up to this, for few shapes and aligned rows


@dataclass(frozen=True)
class Limits:
    """Tokens kept of a query, and of the whole pair `[CLS] query [SEP] passage [SEP]`."""

    query: int = 32
    pair: int = 192


class Shape(NamedTuple):
    """What stands around and between the two texts of a pair; segments as in BERT."""

    before: Sequence[int]
    between: Sequence[int]
    after: Sequence[int]
    pad: int


class Batch(NamedTuple):
    """Padded sequences, each tensor of shape (sequences, length); the mask is 1 for tokens."""

    ids: Tensor
    mask: Tensor
    segments: Tensor


def bert_shape(tokenizer: Any) -> Shape:
    """`[CLS] query [SEP] passage [SEP]`."""
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    return Shape((cls,), (sep,), (sep,), pad)


# ---------------------------------------------------------------- batches


def batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Cut sequences into batches of like length, longest first, at most `budget` padded tokens."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = -(-int(lengths[order[start]]) // PAD_TO) * PAD_TO
        count = max(1, budget // longest)
        yield order[start : start + count]
        start += count


def pair_batches(
    queries: Sequence[NDArray[Any]],
    passages: Sequence[NDArray[Any]],
    shape: Shape,
    limits: Limits,
    budget: int,
    device: torch.device,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Put pairs of token ids together; yields the places of the pairs, and their batch.

    Args:
        budget: padded tokens of one batch.
    """
    first = [(*shape.before, *q[: limits.query].tolist(), *shape.between) for q in queries]
    around = len(shape.after)
    second = [
        (*p[: max(limits.pair - len(f) - around, 0)].tolist(), *shape.after)
        for f, p in zip(first, passages, strict=True)
    ]
    yield from sequence_batches(first, second, shape.pad, budget, device)


def sequence_batches(
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
    pad: int,
    budget: int,
    device: torch.device,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Batch sequences whose tokens are `first` (segment 0), then `second` (segment 1)."""
    lengths = np.array([len(f) + len(s) for f, s in zip(first, second, strict=True)], np.int64)
    for places in batches(lengths, budget):
        width = -(-int(lengths[places].max()) // PAD_TO) * PAD_TO
        ids = np.full((len(places), width), pad, np.int64)
        segments, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, place in enumerate(places.tolist()):
            start, end = len(first[place]), int(lengths[place])
            ids[row, :start], ids[row, start:end] = first[place], second[place]
            segments[row, start:end] = 1
            mask[row, :end] = 1
        yield places, Batch(*(torch.from_numpy(a).to(device) for a in (ids, mask, segments)))


def in_order(parts: Sequence[Tensor], places: Sequence[NDArray[np.int64]]) -> Tensor:
    """Join what was computed by batches, rows in the order in which the sequences were given."""
    order = np.concatenate(places)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return torch.cat(list(parts))[torch.from_numpy(back).to(parts[0].device)]


def pair_logits(
    logits_of: Callable[[Batch], Tensor],
    made: Iterator[tuple[NDArray[np.int64], Batch]],
) -> Tensor:
    """Score batches of pairs; float32 logits in the order of the pairs."""
    parts, order = [], []
    for places, batch in made:
        parts.append(logits_of(batch))
        order.append(places)
    return in_order(parts, order)


# ---------------------------------------------------------------- BERT, layer by layer


def logits(student: Any, batch: Batch) -> Tensor:
    """Compute what the student's own forward pass does, float32 logits of shape (pairs,), faster.

    The head looks at [CLS] alone, so the last layer is computed for that position alone: of three
    layers that saves more than a quarter of the work. The head itself is always float32.
    """
    bert = student.bert
    hidden, bias = _begin(bert, batch)
    for layer in bert.encoder.layer[:-1]:
        hidden = _layer(layer, hidden, *_project(layer, hidden, hidden), bias)
    last, first = bert.encoder.layer[-1], hidden[:, :1]
    return head(student, _layer(last, first, *_project(last, first, hidden), bias))


def head(student: Any, hidden: Tensor) -> Tensor:
    """Pooler, tanh and linear layer over the first token of (pairs, positions, width)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return student.classifier(student.bert.pooler(hidden.float()))[:, 0]  # type: ignore[no-any-return]


class Inside(NamedTuple):
    """What one forward pass leaves of the layers that were asked for, by their number.

    `hidden[0]` is the embeddings' output, `hidden[m]` that of layer m, counted from 1, each of
    shape (sequences, positions, width). `attention[m]` are query, key and value of layer m, each
    (sequences, heads, positions, width / heads).
    """

    hidden: dict[int, Tensor]
    attention: dict[int, tuple[Tensor, Tensor, Tensor]]
    last: Tensor


def inside(bert: Any, batch: Batch, wanted: Collection[int]) -> Inside:
    """Run every layer for every position, keeping what `wanted` layers compute.

    By hand, because libraries give attention after its softmax, and under fused kernels not at all.
    """
    hidden, bias = _begin(bert, batch)
    found = Inside({0: hidden} if 0 in wanted else {}, {}, hidden)
    for number, layer in enumerate(bert.encoder.layer, 1):
        projected = _project(layer, hidden, hidden)
        hidden = _layer(layer, hidden, *projected, bias)
        if number in wanted:
            found.hidden[number], found.attention[number] = hidden, projected
    return found._replace(last=hidden)


def places(bert: Any, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Run every layer; yield what is computed on the way, named as `narrow` reads it."""
    embeddings = bert.embeddings
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    total = (
        embeddings.word_embeddings(batch.ids)
        + embeddings.token_type_embeddings(batch.segments)
        + embeddings.position_embeddings(positions)
    )
    hidden, bias = _begin(bert, batch)
    yield "0sum", total
    yield "0", hidden
    for number, layer in enumerate(bert.encoder.layer, 1):
        mixed, output = layer.attention.output, layer.output
        context = _context(*_project(layer, hidden, hidden), bias)
        total = mixed.dense(context) + hidden
        attended = mixed.LayerNorm(total)
        inner = layer.intermediate(attended)
        yield f"{number}context", context
        yield f"{number}attended sum", total
        yield f"{number}attended", attended
        yield f"{number}inner", inner
        total = output.dense(inner) + attended
        hidden = output.LayerNorm(total)
        yield f"{number}sum", total
        yield f"{number}", hidden


def _begin(bert: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Embeddings, and what is added to attention's scores."""
    hidden = bert.embeddings(input_ids=batch.ids, token_type_ids=batch.segments)
    bias = torch.zeros(batch.mask.shape, device=hidden.device)
    return hidden, bias.masked_fill(batch.mask == 0, -1e4)[:, None, None]


def _project(layer: Any, at: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the positions `at`, keys and values of all of `hidden`, by heads."""
    attention = layer.attention.self
    heads, width = attention.num_attention_heads, attention.attention_head_size

    def split(tensor: Tensor) -> Tensor:
        return tensor.view(len(tensor), -1, heads, width).transpose(1, 2)

    return split(attention.query(at)), split(attention.key(hidden)), split(attention.value(hidden))


def _layer(
    layer: Any, at: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor
) -> Tensor:
    """Finish one BERT layer for the positions `at`."""
    attended = layer.attention.output(_context(query, key, value, bias), at)
    return layer.output(layer.intermediate(attended), attended)  # type: ignore[no-any-return]


def _context(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attend; heads side by side again, (sequences, positions, width)."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    context: Tensor = (scores + bias.to(scores.dtype)).softmax(dim=-1).to(value.dtype) @ value
    return context.transpose(1, 2).reshape(len(query), -1, query.shape[1] * query.shape[-1])
