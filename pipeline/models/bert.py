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
from functools import cache, partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import gelu, layer_norm, linear

from pipeline.models import int8
from pipeline.models.attention import Flat, Padded
from pipeline.models.engine import Batch
from pipeline.models.flat import agrees

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.models.engine import Engine
    from pipeline.models.flat import FlatBatch, Kernel

KINDS = frozenset({"bert", "electra", "roberta", "xlm-roberta", "camembert"})
TYPICAL_ROWS = 1024  # tokens of a batch, for which oneDNN lays out weights


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
        self._embedded = _embedding(self._embed, base.embeddings, engine)
        *layers, last = base.encoder.layer
        scaled = kernel is None
        self._layers = [
            _Layer(layer, engine, scaled=scaled, ranges=seen)
            for layer, seen in zip_longest(layers, ranges)
        ]
        first = _PaddedFirst if kernel is None else _FlatFirst
        self._last = (first if alone else _Layer)(last, engine, scaled=scaled)
        own = engine.kernels
        self._kernels = own if own is not None and own.can_attend(self._last.width) else None

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden state: (sequences, 1, hidden), or (sequences, positions, hidden) of all."""
        hidden = self._embedded(batch)
        for project in self._project:
            hidden = project(hidden)
        attention = Padded(batch.mask, hidden.dtype, plain=self._plain, kernels=self._kernels)
        return self._through(hidden, attention)

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
        return self._through(hidden[0], Flat(batch, self._kernel))[:, None]

    def kernel_works(self, engine: Engine) -> bool:
        """Whether the kernel computes attention for heads of this number and width."""
        heads, width = self._last.heads, self._last.width
        return self._kernel is not None and agrees(self._kernel, heads, width, engine)

    def _through(self, hidden: torch.Tensor, attention: Any) -> torch.Tensor:
        for layer in self._layers:
            hidden = layer(hidden, attention)
        return self._last(hidden, attention)


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
        self._mix: _Linear | int8.Linear
        self._between: _Between | int8.Between
        if ranges is None:
            self._prepare(weights, biases, engine)
            self._mix = _Linear(mixed.dense.weight.data, mixed.dense.bias.data, engine)
            self._between = _Between(layer, engine)
        else:
            self._projections: _Linear | int8.Linear = int8.Linear(
                torch.cat(weights), torch.cat(biases), ranges.projections, engine.dtype
            )
            self._mix = int8.Linear(
                mixed.dense.weight.data, mixed.dense.bias.data, ranges.mix, engine.dtype,
                int8.ATTENDED_HEADROOM,
            )  # fmt: skip
            self._between = _between_in_int8(layer, engine, ranges)
        self._norm_mixed = _norm(mixed.LayerNorm, engine)
        self._norm_output = _norm(output.LayerNorm, engine)

    def _prepare(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], engine: Engine
    ) -> None:
        """Keep what makes query, key and value."""
        self._projections = _Linear(torch.cat([*weights]), torch.cat([*biases]), engine)

    def __call__(self, hidden: torch.Tensor, attention: Any) -> torch.Tensor:
        """Hidden states of the layer, of the shape of those before it."""
        context = attention.within(self._projections(hidden), self.heads, self.width)
        return self._finish(hidden, context)

    def _finish(self, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        attended = self._norm_mixed(self._mix.added(context, hidden))
        return self._norm_output(self._between.added(attended))


class _FlatFirst(_Layer):
    """A layer for the first tokens alone, of sequences that lie one after the other."""

    def _prepare(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], engine: Engine
    ) -> None:
        self._query = _Linear(weights[0], biases[0], engine)
        self._projections = _Linear(torch.cat([*weights[1:]]), torch.cat([*biases[1:]]), engine)

    def __call__(self, hidden: torch.Tensor, attention: Any) -> torch.Tensor:
        """Take (tokens, hidden), give (sequences, hidden)."""
        first = attention.first(hidden)
        key, value = torch.split(self._projections(hidden), hidden.shape[-1], dim=-1)
        context = attention(self._query(first), key, value, self.heads, self.width)
        return self._finish(first, context)


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
        self._query = _Linear(weights[0], biases[0], engine)
        key, value = (
            weight.view(self.heads, self.width, -1).to(engine.device, engine.dtype)
            for weight in weights[1:]
        )
        self._key, self._value = key.contiguous(), value.transpose(1, 2).contiguous()
        self._value_bias = biases[2].to(engine.device, engine.dtype)

    def __call__(self, hidden: torch.Tensor, attention: Any) -> torch.Tensor:
        """Take (sequences, positions, hidden), give (sequences, 1, hidden)."""
        first = attention.first(hidden)
        query = self._query(first).view(-1, self.heads, self.width)
        sought = _by_head(query, self._key)  # (sequences, heads, hidden)
        mean = attention.weighted(sought, hidden)
        context = _by_head(mean, self._value).reshape(first.shape) + self._value_bias
        return self._finish(first, context)


def _by_head(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply (sequences, heads, in) by each head's own (heads, in, out)."""
    return (rows.transpose(0, 1) @ weights).transpose(0, 1)


class _Between:
    """The two multiplications around a layer's activation."""

    def __init__(self, layer: Any, engine: Engine) -> None:
        wide, output = layer.intermediate, layer.output
        self._activation = wide.intermediate_act_fn
        self._gelu = _is_gelu(self._activation)
        self._widen = _Linear(wide.dense.weight.data, wide.dense.bias.data, engine)
        self._narrow = _Linear(output.dense.weight.data, output.dense.bias.data, engine)

    def added(self, x: torch.Tensor) -> torch.Tensor:
        """Both, and `x` added to the outcome."""
        wide = self._widen.with_gelu(x) if self._gelu else self._activation(self._widen(x))
        return self._narrow.added(wide, x)


def _between_in_int8(layer: Any, engine: Engine, ranges: int8.Ranges) -> int8.Between:
    if not _is_gelu(layer.intermediate.intermediate_act_fn):
        raise TypeError("int8 is for GELU")
    widen, narrow = layer.intermediate.dense, layer.output.dense
    return int8.Between(
        (widen.weight.data, narrow.weight.data), (widen.bias.data, narrow.bias.data), ranges,
        partial(_Linear, engine=engine),
    )  # fmt: skip


class _Linear:
    """A linear layer laid out for the engine, of a weight (out, in) and a bias (out) in float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, engine: Engine) -> None:
        own = engine.kernels
        self._own = own if own is not None and own.can_multiply(*weight.T.shape) else None
        self._packed = self._own is None and engine.lays_out and _packing_works()
        if self._own is not None:
            self._weight, self._bias = self._own.lay_out(weight), bias.float()
            return
        self._weight = weight.to(engine.device, engine.dtype)
        self._bias = bias.to(engine.device, engine.dtype)
        if self._packed:
            self._weight = _pack(self._weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._own is not None:
            return self._own.multiply(x, self._weight, self._bias)
        if self._packed:
            return _multiply(x, self._weight, self._bias, "none")
        return linear(x, self._weight, self._bias)

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Add `other`, of the shape of the output, as well."""
        if self._own is not None:
            return self._own.multiply(x, self._weight, self._bias, other)
        if self._packed:
            return _multiply_and_add(x, self._weight, self._bias, other)
        return linear(x, self._weight, self._bias) + other

    def with_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the exact GELU as well."""
        if self._own is not None:
            return self._own.multiply(x, self._weight, self._bias, with_gelu=True)
        if self._packed:
            return _multiply(x, self._weight, self._bias, "gelu")
        return gelu(linear(x, self._weight, self._bias))


# oneDNN's own layout of weights: torch.compile calls it so, and it has no public name. Where a
# torch has it not, or computes something else by it, plain multiplications do.


def _pack(weight: torch.Tensor) -> torch.Tensor:
    lay_out = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
    return lay_out(weight, TYPICAL_ROWS)  # type: ignore[no-any-return]


def _multiply(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, activation: str
) -> torch.Tensor:
    fused = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    return fused(x, packed, bias, activation, [], "none")  # type: ignore[no-any-return]


def _multiply_and_add(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    fused = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
    return fused(x, other, packed, bias, "add")  # type: ignore[no-any-return]


@cache
def _packing_works() -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).bfloat16() for shape in ((9, 64), (48, 64), (48,))
    )
    expected = linear(x, weight, bias).float()
    try:
        plain, fused = (
            _multiply(x, _pack(weight), bias, kind).float() for kind in ("none", "gelu")
        )
        added = _multiply_and_add(x, _pack(weight), bias, linear(x, weight, bias)).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(
        torch.allclose(plain, expected, rtol=0.02, atol=0.1)
        and torch.allclose(fused, gelu(expected), rtol=0.02, atol=0.1)
        and torch.allclose(added, 2 * expected, rtol=0.02, atol=0.2)
    )


def _embedding(embed: Any, exact: Any, engine: Engine) -> Callable[[Batch], torch.Tensor]:
    """Embeddings as prepared for the engine, of ids and segments.

    Args:
        exact: the same in float32.
    """
    kernels = engine.kernels

    def own(batch: Batch) -> torch.Tensor:
        return embed(input_ids=batch.ids, token_type_ids=batch.segments)  # type: ignore[no-any-return]

    # Kinds that count positions otherwise have a number of their own to begin with.
    plain = type(embed).__name__ in {"BertEmbeddings", "ElectraEmbeddings"}
    if kernels is None or not plain or not kernels.can_norm(embed.word_embeddings.embedding_dim):
        return own
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    words, places, kinds = (getattr(embed, name).weight.data.contiguous() for name in names)
    norm = exact.LayerNorm
    weight, bias, eps = norm.weight.data.float(), norm.bias.data.float(), float(norm.eps)

    def ours(batch: Batch) -> torch.Tensor:
        return kernels.embed(batch.ids, batch.segments, (words, places, kinds), weight, bias, eps)

    some = torch.arange(min(len(words), len(places), 8))[None]
    probe = Batch(some, torch.zeros_like(some), None)
    return ours if torch.allclose(ours(probe), own(probe), rtol=0.05, atol=0.05) else own


def _norm(norm: Any, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
    kernels, eps = engine.kernels, float(norm.eps)
    if kernels is not None and kernels.can_norm(norm.weight.numel()):
        exact = norm.weight.data.float(), norm.bias.data.float()
        return lambda x: kernels.norm(x, *exact, eps)
    weight, bias = (t.data.to(engine.device, engine.dtype) for t in (norm.weight, norm.bias))
    shape = tuple(norm.normalized_shape)
    return lambda x: layer_norm(x, shape, weight, bias, eps)


def _is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, by transformers' module or torch's."""
    x = torch.linspace(-4, 4, 33)
    return bool(torch.equal(activation(x), gelu(x)))
