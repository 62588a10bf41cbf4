"""A faster forward pass for BERT and its kin, for heads that look at the first token alone.

The last layer is computed for that one position, which of three layers saves a third. In the others
query, key and value are one multiplication; on a CPU in bf16 the weights are laid out once for
oneDNN, which also takes the GELU and the residual sum along. What this computes is compared with
the model's own forward pass when the model is loaded; where the two differ, the model's own is
used.

Sequences are padded to a common length, or lie one after the other without any padding (`flat.py`):
only attention (`attention.py`) and the last layer differ.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import gelu, layer_norm

from pipeline.models import int8
from pipeline.models.attention import Flat, Own, Padded
from pipeline.models.engine import Batch
from pipeline.models.flat import agrees
from pipeline.models.linear import Linear
from pipeline.models.native import LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.models.engine import Engine
    from pipeline.models.flat import FlatBatch, Kernel
    from pipeline.models.native import Kernels

KINDS = frozenset({"bert", "electra", "roberta", "xlm-roberta", "camembert"})


class Hidden(NamedTuple):
    """Hidden states as they are multiplied, and as they are added.

    With kernels of our own what is added stays in float32 from layer to layer; else both are one.
    """

    rounded: torch.Tensor
    exact: torch.Tensor


class FirstToken:
    """The encoder of a model of one of `KINDS`, its weights prepared for one engine.

    Args:
        base: the encoder in float32, which is left as it is.
        kernel: attention over sequences without padding; with it `flat` may be called, without it
            `hidden`.
        alone: False computes the last layer for all positions as well.
        ranges: of the inputs of all layers but the last, which are then computed in int8.

    Raises:
        AttributeError, TypeError: the encoder is built otherwise.
    """

    def __init__(
        self,
        base: Any,
        engine: Engine,
        kernel: Kernel | None = None,
        *,
        alone: bool = True,
        ranges: Sequence[int8.Ranges] = (),
    ) -> None:
        self._kernel = kernel
        # Kinds that count positions from behind the padding token's number keep that number here.
        self._first_position = int(getattr(base.embeddings, "padding_idx", -1)) + 1
        self._plain = engine.lays_out
        stages = [base.embeddings]
        if getattr(base, "embeddings_project", None) is not None:  # ELECTRA's small ones
            stages.append(base.embeddings_project)
        self._embed, *self._project = (
            deepcopy(stage).to(engine.device, engine.dtype) for stage in stages
        )
        *layers, last = base.encoder.layer
        own = _kernels(engine, last.output.LayerNorm)
        self._own = own is not None
        embedded = _embedding(self._embed, base.embeddings, engine)
        self._embedded = embedded or self._embed_plainly
        scaled = kernel is None
        self._layers = [
            _Layer(layer, engine, scaled=scaled, ranges=seen)
            for layer, seen in zip_longest(layers, ranges)
        ]
        first = _PaddedFirst if kernel is None else _FlatFirst
        # For the first position alone float32 costs little, and half of all that rounding costs a
        # score is in this layer.
        of_last = replace(engine, precision="fp32") if own is not None and alone else engine
        self._last = (first if alone else _Layer)(last, of_last, scaled=scaled)
        self._kernels = own if own is not None and own.can_attend(self._last.width) else None

    @property
    def takes_any_rows(self) -> bool:
        """Whether batches may have any number of rows: nothing is prepared for each."""
        return bool(self._layers) and all(layer.is_own for layer in self._layers)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden state: (sequences, 1, hidden), or (sequences, positions, hidden) of all."""
        hidden = self._projected(batch)
        return self._through(hidden, self._attention(batch, hidden.rounded.dtype))

    def attended(self, batch: Batch) -> torch.Tensor:
        """All but what follows the last attention, for `finished`: (sequences, 2, hidden)."""
        hidden = self._projected(batch)
        attention = self._attention(batch, hidden.rounded.dtype)
        return torch.cat(self._alone.attended(self._before(hidden, attention), attention), dim=1)

    def finished(self, attended: torch.Tensor) -> torch.Tensor:
        """What `hidden` gives for sequences of any batches that were `attended`.

        The weights of the last layer pass by once for all of them.
        """
        first, context = attended[:, :1].contiguous(), attended[:, 1:].contiguous()
        return self._alone.finished(first, context).exact

    @property
    def _alone(self) -> _PaddedFirst:
        if not isinstance(self._last, _PaddedFirst):
            raise AssertionError("made for all positions, or for sequences without padding")
        return self._last

    def _projected(self, batch: Batch) -> Hidden:
        hidden = self._embedded(batch)
        for project in self._project:
            hidden = self._both(project(hidden.rounded))
        return hidden

    def _attention(self, batch: Batch, dtype: torch.dtype) -> Padded | Own:
        if self._kernels is not None and batch.ids.shape[1] <= LONGEST:
            return Own(self._kernels, batch.ids.shape, batch.mask)
        return Padded(batch.mask, dtype, plain=self._plain)

    def _embed_plainly(self, batch: Batch) -> Hidden:
        return self._both(self._embed(input_ids=batch.ids, token_type_ids=batch.segments))

    def flat(self, batch: FlatBatch) -> torch.Tensor:
        """Last hidden state of the first tokens, shape (sequences, 1, hidden), without padding."""
        if self._kernel is None:
            raise AssertionError("made for padded sequences")
        positions = batch.positions
        if self._first_position:
            positions = positions + self._first_position
        hidden = self._embed(
            input_ids=batch.ids[None],
            token_type_ids=batch.segments[None],
            position_ids=positions[None],
        )
        for project in self._project:
            hidden = project(hidden)
        return self._through(self._both(hidden[0]), Flat(batch, self._kernel))[:, None]

    def kernel_works(self, engine: Engine) -> bool:
        """Whether the kernel computes attention for heads of this number and width."""
        heads, width = self._last.heads, self._last.width
        return self._kernel is not None and agrees(self._kernel, heads, width, engine)

    def _through(self, hidden: Hidden, attention: Any) -> torch.Tensor:
        return self._last(self._before(hidden, attention), attention).exact

    def _before(self, hidden: Hidden, attention: Any) -> Hidden:
        """Go through all layers but the last."""
        for layer in self._layers:
            hidden = layer(hidden, attention)
        return hidden

    def _both(self, hidden: torch.Tensor) -> Hidden:
        return Hidden(hidden, hidden.float() if self._own else hidden)


class _Layer:
    """One layer over (sequences, positions, hidden), or (tokens, hidden).

    Args:
        scaled: attention's scale is part of the query's weights, and not left to attention.
        ranges: of the layer's inputs, which is then computed in int8.
    """

    def __init__(
        self, layer: Any, engine: Engine, *, scaled: bool = True, ranges: int8.Ranges | None = None
    ) -> None:
        attention, mixed, output = layer.attention.self, layer.attention.output, layer.output
        self.heads, self.width = attention.num_attention_heads, attention.attention_head_size
        scale = self.width**-0.5 if scaled else 1.0  # before any rounding
        parts = [attention.query, attention.key, attention.value]
        weights = [part.weight.data for part in parts]
        biases = [part.bias.data for part in parts]
        weights[0], biases[0] = weights[0] * scale, biases[0] * scale
        self._mix: Linear | int8.Linear
        self._between: _Between | int8.Between
        if ranges is None:
            self._prepare(weights, biases, engine)
            self._mix = Linear(mixed.dense.weight.data, mixed.dense.bias.data, engine)
            self._between = _Between(layer, engine)
        else:
            self._projections: Linear | int8.Linear = int8.Linear(
                torch.cat(weights), torch.cat(biases), ranges.projections, engine.dtype
            )
            self._mix = int8.Linear(
                mixed.dense.weight.data, mixed.dense.bias.data, ranges.mix, engine.dtype,
                int8.ATTENDED_HEADROOM,
            )  # fmt: skip
            self._between = _between_in_int8(layer, engine, ranges)
        self._norm_mixed = _Norm(mixed.LayerNorm, engine)
        self._norm_output = _Norm(output.LayerNorm, engine)

    @property
    def is_own(self) -> bool:
        """Whether our own kernels compute all of its multiplications."""
        parts = (self._projections, self._mix, self._between)
        return all(part.is_own for part in parts)

    def _prepare(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], engine: Engine
    ) -> None:
        """Keep what makes query, key and value."""
        self._projections = Linear(torch.cat([*weights]), torch.cat([*biases]), engine)

    def __call__(self, hidden: Hidden, attention: Any) -> Hidden:
        """Hidden states of the layer, of the shape of those before it."""
        context = attention.within(self._projections(hidden.rounded), self.heads, self.width)
        return self._finish(hidden, context)

    def _finish(self, hidden: Hidden, context: torch.Tensor) -> Hidden:
        attended = self._norm_mixed(self._mix, context, hidden)
        return self._norm_output(self._between, attended.rounded, attended)


class _FlatFirst(_Layer):
    """A layer for the first tokens alone, of sequences that lie one after the other."""

    def _prepare(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], engine: Engine
    ) -> None:
        self._query = Linear(weights[0], biases[0], engine)
        self._projections = Linear(torch.cat([*weights[1:]]), torch.cat([*biases[1:]]), engine)

    def __call__(self, hidden: Hidden, attention: Any) -> Hidden:
        """Take (tokens, hidden), give (sequences, hidden)."""
        of_all, _ = hidden
        first = attention.first(of_all)
        key, value = torch.split(self._projections(of_all), of_all.shape[-1], dim=-1)
        context = attention(self._query(first), key, value, self.heads, self.width)
        return self._finish(Hidden(first, first), context)


class _PaddedFirst(_Layer):
    """A layer for the first position alone, of padded sequences.

    One query needs no keys and values: its product with the keys of all positions is the product of
    one vector, made of the query and the key's weights, with all hidden states, and the value's
    weights may be applied to the average of hidden states as well as to each. (The key's bias adds
    the same to all scores of a query, which softmax does not see.)
    """

    def _prepare(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], engine: Engine
    ) -> None:
        self._query = Linear(weights[0], biases[0], engine)
        key, value = (
            weight.view(self.heads, self.width, -1).to(engine.device, engine.dtype)
            for weight in weights[1:]
        )
        self._key, self._value = key.contiguous(), value.transpose(1, 2).contiguous()
        self._value_bias = biases[2].to(engine.device, engine.dtype)

    def __call__(self, hidden: Hidden, attention: Any) -> Hidden:
        """Take (sequences, positions, hidden), give (sequences, 1, hidden)."""
        return self.finished(*self.attended(hidden, attention))

    def attended(self, hidden: Hidden, attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of the first positions and their context, (sequences, 1, hidden) each."""
        first = attention.first(hidden.exact)
        query = self._query(first).view(-1, self.heads, self.width)
        sought = _by_head(query, self._key)  # (sequences, heads, hidden)
        mean = attention.weighted(sought, hidden.exact)
        return first, _by_head(mean, self._value).reshape(first.shape) + self._value_bias

    def finished(self, first: torch.Tensor, context: torch.Tensor) -> Hidden:
        """The rest of the layer."""
        return self._finish(Hidden(first, first), context)


def _by_head(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply (sequences, heads, in) by each head's own (heads, in, out)."""
    return (rows.transpose(0, 1) @ weights).transpose(0, 1)


class _Between:
    """The two multiplications around a layer's activation."""

    def __init__(self, layer: Any, engine: Engine) -> None:
        wide, output = layer.intermediate, layer.output
        self._activation = wide.intermediate_act_fn
        self._gelu = _is_gelu(self._activation)
        self._widen = Linear(wide.dense.weight.data, wide.dense.bias.data, engine)
        self._narrow = Linear(output.dense.weight.data, output.dense.bias.data, engine)

    @property
    def is_own(self) -> bool:
        return self._widen.is_own and self._narrow.is_own

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._narrow(self._wide(x))

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Both, and `other` added to the outcome."""
        return self._narrow.added(self._wide(x), other)

    def _wide(self, x: torch.Tensor) -> torch.Tensor:
        return self._widen.with_gelu(x) if self._gelu else self._activation(self._widen(x))


def _between_in_int8(layer: Any, engine: Engine, ranges: int8.Ranges) -> int8.Between:
    if not _is_gelu(layer.intermediate.intermediate_act_fn):
        raise TypeError("int8 is for GELU")
    widen, narrow = layer.intermediate.dense, layer.output.dense
    return int8.Between(
        (widen.weight.data, narrow.weight.data), (widen.bias.data, narrow.bias.data), ranges,
        partial(Linear, engine=engine),
    )  # fmt: skip


def _kernels(engine: Engine, norm: Any) -> Kernels | None:
    """Our own kernels, if hidden states as wide as this norm's are for them."""
    own = engine.kernels
    return own if own is not None and own.can_norm(norm.weight.numel()) else None


def _embedding(embed: Any, exact: Any, engine: Engine) -> Callable[[Batch], Hidden] | None:
    """Embeddings by our own kernel, of ids and segments, where there is one for them.

    Args:
        exact: the same in float32.
    """
    kernels = _kernels(engine, exact.LayerNorm)
    # Kinds that count positions otherwise have a number of their own to begin with.
    if kernels is None or type(embed).__name__ not in {"BertEmbeddings", "ElectraEmbeddings"}:
        return None
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    words, places, kinds = (getattr(exact, name).weight.data.float() for name in names)
    norm = exact.LayerNorm
    weight, bias, eps = norm.weight.data.float(), norm.bias.data.float(), float(norm.eps)

    def embedded(batch: Batch) -> Hidden:
        tables = words, places, kinds  # exact: a rounded word would be so everywhere
        return Hidden(*kernels.embed(batch.ids, batch.segments, tables, weight, bias, eps))

    some = torch.arange(min(len(words), len(places), 8))[None]
    made = embedded(Batch(some, torch.zeros_like(some), None)).exact
    expected = embed(input_ids=some, token_type_ids=torch.zeros_like(some)).float()
    return embedded if torch.allclose(made, expected, rtol=0.05, atol=0.05) else None


class _Norm:
    """LayerNorm of what comes out of a linear layer, and of what is added to it."""

    def __init__(self, norm: Any, engine: Engine) -> None:
        self._own, self._eps = _kernels(engine, norm), float(norm.eps)
        self._shape = tuple(norm.normalized_shape)
        where = ("cpu", torch.float32) if self._own else (engine.device, engine.dtype)
        self._weight, self._bias = (t.data.to(*where) for t in (norm.weight, norm.bias))

    def __call__(
        self, layer: Linear | _Between | int8.Linear | int8.Between, x: torch.Tensor, other: Hidden
    ) -> Hidden:
        if self._own is not None:
            made = self._own.norm(layer(x), other.exact, self._weight, self._bias, self._eps)
            return Hidden(*made)
        total = layer.added(x, other.rounded)
        plain = layer_norm(total, self._shape, self._weight, self._bias, self._eps)
        return Hidden(plain, plain)


def _is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, by transformers' module or torch's."""
    x = torch.linspace(-4, 4, 33)
    return bool(torch.equal(activation(x), gelu(x)))
