"""The layers of the faster forward pass, each over all positions or for the first ones alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import gelu, layer_norm

from pipeline.models import int8
from pipeline.models.linear import Linear
from pipeline.models.native import Parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.models.engine import Engine
    from pipeline.models.native import Kernels


class Hidden(NamedTuple):
    """Hidden states as they are multiplied, and as they are added.

    With kernels of our own what is added stays in float32 from layer to layer; else both are one.
    """

    rounded: torch.Tensor
    exact: torch.Tensor


class Layer:
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

    def parts(self) -> Parts | None:
        """What our own kernels need to compute the whole layer, where they can."""
        mix, between, norms = self._mix, self._between, (self._norm_mixed, self._norm_output)
        linear = [self._projections, mix]
        if isinstance(between, _Between) and between.has_gelu:
            linear += [between.widen, between.narrow]
        laid_out = [part.laid_out for part in linear if isinstance(part, Linear)]
        if len(laid_out) < 4 or None in laid_out or not all(norm.is_own for norm in norms):
            return None
        weights, biases = zip(*laid_out, strict=True)
        of_norms = [part for norm in norms for part in (norm.weight, norm.bias)]
        return Parts(*weights, *biases, *of_norms, *(norm.epsilon for norm in norms))

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


class FlatFirst(Layer):
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


class PaddedFirst(Layer):
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
        self.has_gelu = _is_gelu(self._activation)
        self.widen = Linear(wide.dense.weight.data, wide.dense.bias.data, engine)
        self.narrow = Linear(output.dense.weight.data, output.dense.bias.data, engine)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self._wide(x))

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Both, and `other` added to the outcome."""
        return self.narrow.added(self._wide(x), other)

    def _wide(self, x: torch.Tensor) -> torch.Tensor:
        return self.widen.with_gelu(x) if self.has_gelu else self._activation(self.widen(x))


def _between_in_int8(layer: Any, engine: Engine, ranges: int8.Ranges) -> int8.Between:
    if not _is_gelu(layer.intermediate.intermediate_act_fn):
        raise TypeError("int8 is for GELU")
    widen, narrow = layer.intermediate.dense, layer.output.dense
    return int8.Between(
        (widen.weight.data, narrow.weight.data), (widen.bias.data, narrow.bias.data), ranges,
        partial(Linear, engine=engine),
    )  # fmt: skip


def norm_kernels(engine: Engine, norm: Any) -> Kernels | None:
    """Our own kernels, if hidden states as wide as this norm's are for them."""
    own = engine.kernels
    return own if own is not None and own.can_norm(norm.weight.numel()) else None


class _Norm:
    """LayerNorm of what comes out of a linear layer, and of what is added to it."""

    def __init__(self, norm: Any, engine: Engine) -> None:
        self._own, self.epsilon = norm_kernels(engine, norm), float(norm.eps)
        self._shape = tuple(norm.normalized_shape)
        where = ("cpu", torch.float32) if self._own else (engine.device, engine.dtype)
        self.weight, self.bias = (t.data.to(*where) for t in (norm.weight, norm.bias))

    @property
    def is_own(self) -> bool:
        return self._own is not None

    def __call__(
        self, layer: Linear | _Between | int8.Linear | int8.Between, x: torch.Tensor, other: Hidden
    ) -> Hidden:
        if self._own is not None:
            made = self._own.norm(layer(x), other.exact, self.weight, self.bias, self.epsilon)
            return Hidden(*made)
        total = layer.added(x, other.rounded)
        plain = layer_norm(total, self._shape, self.weight, self.bias, self.epsilon)
        return Hidden(plain, plain)


def _is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, by transformers' module or torch's."""
    x = torch.linspace(-4, 4, 33)
    return bool(torch.equal(activation(x), gelu(x)))
