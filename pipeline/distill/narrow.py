"""A narrow student cut out of a wide ranker: the directions, heads and neurons that matter most.

A narrow student of random weights learns to match words only after millions of pairs; the wide one
knows how. Structured pruning and the rotations of SliceGPT (2401.15024) and weight subcloning
(2312.09299) show that most of it survives a cut, if the cut follows what the network does with real
input. So some pairs pass through the wide ranker, and:

* the residual stream is projected onto its principal directions, the same ones in all layers;
* of each layer the heads and the inner neurons stay whose output varies most along these
  directions; what varied little is replaced by its mean, which goes into biases;
* LayerNorm does not commute with a projection, so gains and biases are fitted, one number after
  the other, to what the wide ranker has there, in the order in which the student computes them;
* the scoring head keeps the pooler's numbers that matter, and its weights are fitted to the
  scores.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from pipeline.distill import forward
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

    from pipeline.distill.forward import Batch
    from pipeline.distill.settings import Size

RIDGE = 1.0  # on the head's fitted weights
Places = dict[str, "Tensor"]
"""What was computed at one place of the network, of shape (tokens, numbers), padding left out"""


@torch.no_grad()
def narrowed(wide: Any, layers: Sequence[int], size: Size, batches: Sequence[Batch]) -> Any:
    """Cut a student of `size` out of some layers (counted from 0) of a ranker with one logit.

    Args:
        batches: pairs of the kind that the student is for; a thousand are plenty.

    Raises:
        PipelineError: the ranker is too narrow, or its heads are of another width.
    """
    from transformers import BertForSequenceClassification

    config = deepcopy(wide.config)
    head = config.hidden_size // config.num_attention_heads
    if size.hidden != head * size.heads or size.hidden > config.hidden_size:
        raise PipelineError(
            f"narrowed: {size.heads} heads of {size.hidden / size.heads:g} cannot be taken out of "
            f"{config.num_attention_heads} heads of {head}",
            "hidden has to be heads times the width of the base's heads",
        )
    if size.layers != len(layers) or size.intermediate > config.intermediate_size:
        raise PipelineError(
            f"narrowed: {size.layers} layers with {size.intermediate} inner numbers, out of "
            f"layers {list(layers)} with {config.intermediate_size}",
            "name as many layers of the base as the size has, and no more inner numbers",
        )
    last = config.num_hidden_layers - 1
    if any(not 0 <= layer <= last for layer in layers):
        raise PipelineError(
            f"narrowed: the base has layers 0 to {last}, not {list(layers)}",
            "choose layers it has",
        )
    config.num_hidden_layers, config.hidden_size = size.layers, size.hidden
    config.num_attention_heads, config.intermediate_size = size.heads, size.intermediate
    student = BertForSequenceClassification(config).eval()
    stream = ["0", *(f"{layer + 1}{part}" for layer in layers for part in ("attended", ""))]
    found = _places(wide, batches, {*stream, "pooled", "scores"})
    centre = torch.stack([found[place].mean(dim=0) for place in stream]).mean(dim=0)
    axes = _principal([found[place] - centre for place in stream], size.hidden)
    cut = _Cut(wide, student, found, centre, axes, batches)
    cut.embeddings()
    for own, layer in enumerate(layers):
        cut.attention(own, layer)
        cut.inner(own, layer)
    cut.head()
    return student


class _Cut:
    """The steps, each of which makes what the next ones are fitted on."""

    def __init__(
        self, wide: Any, student: Any, found: Places, centre: Tensor, axes: Tensor,
        batches: Sequence[Batch],
    ) -> None:  # fmt: skip
        self._wide, self._student, self._found = wide, student, found
        self._centre, self._axes, self._batches = centre, axes, batches

    def embeddings(self) -> None:
        """Project words, positions and segments; the base's gains say how much each number counts.

        The student's sums differ from the wide ones by what is the same for all tokens, and by
        their mean over numbers, which LayerNorm takes away: what that changes is fitted.
        """
        source, target = self._wide.bert.embeddings, self._student.bert.embeddings
        axes = source.LayerNorm.weight[:, None] * self._axes
        words = source.word_embeddings.weight
        target.word_embeddings.weight.copy_((words - words.mean(dim=0)) @ axes)
        for name in ("position_embeddings", "token_type_embeddings"):
            getattr(target, name).weight.copy_(getattr(source, name).weight @ axes)
        self._fit(target.LayerNorm, "0sum", "0")

    def attention(self, own: int, layer: int) -> None:
        """Keep the heads whose output varies most along the axes."""
        source, target = self._layers(own, layer)
        context, output = self._given(f"{layer + 1}context"), source.attention.output.dense
        heads, width = source.attention.self.num_attention_heads, self._student.config.hidden_size
        width //= self._student.config.num_attention_heads
        varies = (context - context.mean(dim=0)).view(-1, heads, width)
        weight = (self._axes.T @ output.weight).view(-1, heads, width)
        each = torch.einsum("thw,dhw->htd", varies, weight).square().sum(dim=(1, 2))
        kept = _most(each, self._student.config.num_attention_heads)
        rows = (kept[:, None] * width + torch.arange(width)).flatten()
        for name in ("query", "key", "value"):
            self._reads(
                getattr(target.attention.self, name), getattr(source.attention.self, name), rows
            )
        self._writes(target.attention.output.dense, output, rows, context)
        self._fit(
            target.attention.output.LayerNorm, f"{own + 1}attended sum", f"{layer + 1}attended"
        )

    def inner(self, own: int, layer: int) -> None:
        """Keep the inner neurons whose output varies most along the axes."""
        source, target = self._layers(own, layer)
        inner = self._given(f"{layer + 1}inner")
        each = inner.var(dim=0) * (self._axes.T @ source.output.dense.weight).square().sum(dim=0)
        rows = _most(each, self._student.config.intermediate_size)
        self._reads(target.intermediate.dense, source.intermediate.dense, rows)
        self._writes(target.output.dense, source.output.dense, rows, inner)
        self._fit(target.output.LayerNorm, f"{own + 1}sum", f"{layer + 1}")

    def head(self) -> None:
        """Keep the pooler's numbers that move the score most, and fit what weighs them."""
        weight = self._wide.classifier.weight[0]
        rows = _most(self._found["pooled"].var(dim=0) * weight.square(), len(self._axes.T))
        self._reads(self._student.bert.pooler.dense, self._wide.bert.pooler.dense, rows)
        pooled = _places(self._student, self._batches, {"pooled"})["pooled"]
        scores = self._found["scores"]
        varies = pooled - pooled.mean(dim=0)
        normal = varies.T @ varies + RIDGE * torch.eye(len(rows))
        fitted = torch.linalg.solve(normal, varies.T @ (scores - scores.mean()))
        self._student.classifier.weight.copy_(fitted[None])
        self._student.classifier.bias.copy_(scores.mean() - pooled.mean(dim=0) @ fitted)

    def _given(self, place: str) -> Tensor:
        """What the wide ranker has at a place that is looked at once, and too wide to be kept."""
        return _places(self._wide, self._batches, {place})[place]

    def _layers(self, own: int, layer: int) -> tuple[Any, Any]:
        return self._wide.bert.encoder.layer[layer], self._student.bert.encoder.layer[own]

    def _reads(self, target: Any, source: Any, rows: Tensor) -> None:
        """Some outputs of a linear layer that reads the stream."""
        target.weight.copy_(source.weight[rows] @ self._axes)
        target.bias.copy_(source.bias[rows] + source.weight[rows] @ self._centre)

    def _writes(self, target: Any, source: Any, rows: Tensor, given: Tensor) -> None:
        """A linear layer that adds to the stream, of some inputs; the others are their means."""
        others = torch.ones(given.shape[1], dtype=torch.bool)
        others[rows] = False
        target.weight.copy_(self._axes.T @ source.weight[:, rows])
        means = source.weight[:, others] @ given[:, others].mean(dim=0)
        target.bias.copy_(self._axes.T @ (source.bias + means))

    def _fit(self, norm: Any, own: str, place: str) -> None:
        """Fit gains and biases of a LayerNorm, whose input is the student's at `own`."""
        target = (self._found[place] - self._centre) @ self._axes
        given = _places(self._student, self._batches, {own})[own]
        normal = torch.nn.functional.layer_norm(given, given.shape[1:], eps=norm.eps)
        varies = normal - normal.mean(dim=0)
        gains = (varies * target).mean(dim=0) / varies.square().mean(dim=0)
        norm.weight.copy_(gains)
        norm.bias.copy_(target.mean(dim=0) - gains * normal.mean(dim=0))


def _principal(some: Sequence[Tensor], count: int) -> Tensor:
    """Directions of most variance, shape (numbers, count), places of the network weighed alike."""
    moments = torch.stack([((s.T @ s) / s.square().sum()).double() for s in some]).sum(dim=0)
    axes = torch.linalg.eigh(moments)[1][:, -count:].flip(1)  # eigh: ascending
    # An axis has no sign of its own: let its largest number be positive on every machine.
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    signed: Tensor = (axes * signs).float()
    return signed


def _most(values: Tensor, count: int) -> Tensor:
    """Places of the largest values, ascending."""
    kept: Tensor = values.argsort(descending=True, stable=True)[:count].msort()
    return kept


def _places(ranker: Any, batches: Sequence[Batch], wanted: Collection[str]) -> Places:
    """Run a ranker and keep what it has at some places, of tokens, and of pairs at the head.

    "0sum" and "0" are before and behind the LayerNorm of embeddings; of layer m, from 1, there are
    "mcontext", "mattended sum", "mattended", "minner", "msum" and "m".
    """
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        real = batch.mask.bool()
        for place, states in forward.places(ranker.bert, batch):
            if place in wanted:
                found.setdefault(place, []).append(states[real])
        pooled = ranker.bert.pooler(states)
        for place, states in (("pooled", pooled), ("scores", ranker.classifier(pooled)[:, 0])):
            if place in wanted:
                found.setdefault(place, []).append(states)
    return {place: torch.cat(found.pop(place)) for place in list(found)}
