"""A faster forward pass for BERT and its kin, for heads that look at the first token alone.

The last layer is computed for that one position: its keys and values need the whole sequence, the
rest (two thirds of a layer's work) does not. Of three layers that saves more than a quarter. Query,
key and value are one multiplication; on a CPU in bf16 the weights are laid out once for oneDNN,
which also takes the GELU along. What this computes is compared with the model's own forward pass
when the model is loaded; where the two differ, the model's own is used.

Sequences are padded to a common length, or lie one after the other without any padding (`flat.py`):
only attention and the choice of the first tokens differ.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.models.engine import Batch, Engine
    from pipeline.models.flat import FlatBatch, Kernel

KINDS = frozenset({"bert", "electra", "roberta", "xlm-roberta", "camembert"})
TYPICAL_ROWS = 1024  # tokens of a batch, for which oneDNN lays out weights
# Attention as two plain multiplications is faster than the fused kernel on short sequences of
# narrow heads; on long ones its scores no longer fit the cache.
PLAIN_UP_TO = 192
MASKED = -30000.0  # added to a score: e to that is zero, and it is a number in bf16 and fp16


class FirstToken:
    """The encoder of a model of one of `KINDS`, its weights prepared for one engine.

    Args:
        base: the encoder in float32, which is left as it is.
        kernel: attention over sequences without padding; with it `flat` may be called, without it
            `hidden`.
        alone: False computes the last layer for all positions as well.

    Raises:
        AttributeError, TypeError: the encoder is built otherwise.
    """

    def __init__(
        self, base: Any, engine: Engine, kernel: Kernel | None = None, *, alone: bool = True
    ) -> None:
        self._kernel = kernel
        # Kinds that count positions from behind the padding token's number keep that number here.
        self._first_position = int(getattr(base.embeddings, "padding_idx", -1)) + 1
        self._plain = engine.device == "cpu" and engine.precision != "fp32"
        stages = [base.embeddings]
        if getattr(base, "embeddings_project", None) is not None:  # ELECTRA's small ones
            stages.append(base.embeddings_project)
        self._embed, *self._project = (
            deepcopy(stage).to(engine.device, engine.dtype) for stage in stages
        )
        *layers, last = base.encoder.layer
        scaled = kernel is None
        self._layers = [_Layer(layer, engine, scaled=scaled) for layer in layers]
        self._last = _Layer(last, engine, scaled=scaled, alone=alone)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden state: (sequences, 1, hidden), or (sequences, positions, hidden) of all."""
        hidden = self._embed(input_ids=batch.ids, token_type_ids=batch.segments)
        for project in self._project:
            hidden = project(hidden)
        bias: torch.Tensor | None = None
        if batch.mask is not None:
            bias = torch.zeros(batch.mask.shape, dtype=hidden.dtype, device=hidden.device)
            bias = bias.masked_fill_(~batch.mask, MASKED)[:, None, None]
        return self._through(hidden, _Padded(bias, plain=self._plain))

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
        return self._through(hidden[0], _Flat(batch, self._kernel))[:, None]

    def _through(self, hidden: torch.Tensor, attention: _Padded | _Flat) -> torch.Tensor:
        for layer in self._layers:
            hidden = layer(hidden, attention)
        return self._last(hidden, attention)


class _Padded:
    """Attention over (sequences, positions, hidden); `bias` is added to its scores."""

    def __init__(self, bias: torch.Tensor | None, *, plain: bool) -> None:
        self._bias, self._plain = bias, plain

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, :1].contiguous()

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, width: int
    ) -> torch.Tensor:
        count, length = key.shape[:2]

        def split(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.view(count, -1, heads, width).transpose(1, 2)

        query, key, value = split(query), split(key), split(value)
        if self._plain and length <= PLAIN_UP_TO:
            scores = query @ key.transpose(2, 3)
            if self._bias is not None:
                scores += self._bias
            context = scores.softmax(dim=-1) @ value
        else:
            context = scaled_dot_product_attention(
                query, key, value, attn_mask=self._bias, scale=1.0
            )
        return context.transpose(1, 2).reshape(count, -1, heads * width)


class _Flat:
    """Attention within sequences that lie one after the other, (tokens, hidden)."""

    def __init__(self, batch: FlatBatch, kernel: Kernel) -> None:
        self._batch, self._kernel = batch, kernel

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.index_select(0, self._batch.starts[:-1])

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, width: int
    ) -> torch.Tensor:
        batch = self._batch
        queries = (batch.starts, batch.longest)
        if len(query) != len(key):  # of the first tokens alone
            queries = (batch.each, 1)
        query, key, value = (tensor.view(-1, heads, width) for tensor in (query, key, value))
        context = self._kernel(
            query, key, value, queries[0], batch.starts, queries[1], batch.longest
        )
        return context.reshape(-1, heads * width)


class _Layer:
    """One layer; `alone` computes it for the first position alone.

    `scaled`: attention's scale is part of the query's weights, and not left to attention.
    """

    def __init__(
        self, layer: Any, engine: Engine, *, scaled: bool = True, alone: bool = False
    ) -> None:
        attention, mixed, output = layer.attention.self, layer.attention.output, layer.output
        self._heads, self._width = attention.num_attention_heads, attention.attention_head_size
        parts = [attention.query, attention.key, attention.value]
        weights = [part.weight.data for part in parts]
        biases = [part.bias.data for part in parts]
        if scaled:  # before any rounding
            weights[0] = weights[0] * self._width**-0.5
            biases[0] = biases[0] * self._width**-0.5
        self._alone = _Linear(weights.pop(0), biases.pop(0), engine) if alone else None
        self._projections = _Linear(torch.cat(weights), torch.cat(biases), engine)
        self._mix = _Linear(mixed.dense.weight.data, mixed.dense.bias.data, engine)
        wide = layer.intermediate
        self._activation = wide.intermediate_act_fn
        self._gelu = _is_gelu(self._activation)
        self._widen = _Linear(wide.dense.weight.data, wide.dense.bias.data, engine)
        self._narrow = _Linear(output.dense.weight.data, output.dense.bias.data, engine)
        self._norm_mixed = _norm(mixed.LayerNorm, engine)
        self._norm_output = _norm(output.LayerNorm, engine)

    def __call__(self, hidden: torch.Tensor, attention: _Padded | _Flat) -> torch.Tensor:
        """Take and give (sequences, positions, hidden), or (tokens, hidden)."""
        projected = torch.split(self._projections(hidden), hidden.shape[-1], dim=-1)
        if self._alone is not None:
            hidden = attention.first(hidden)
            projected = (self._alone(hidden), *projected)
        query, key, value = projected
        context = attention(query, key, value, self._heads, self._width)
        attended = self._norm_mixed(self._mix(context) + hidden)
        if self._gelu:
            wide = self._widen.with_gelu(attended)
        else:
            wide = self._activation(self._widen(attended))
        return self._norm_output(self._narrow(wide) + attended)


class _Linear:
    """A linear layer laid out for the engine, of a weight (out, in) and a bias (out) in float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, engine: Engine) -> None:
        self._weight = weight.to(engine.device, engine.dtype)
        self._bias = bias.to(engine.device, engine.dtype)
        self._packed = engine.device == "cpu" and engine.precision == "bf16" and _packing_works()
        if self._packed:
            self._weight = _pack(self._weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed:
            return _multiply(x, self._weight, self._bias, "none")
        return linear(x, self._weight, self._bias)

    def with_gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the exact GELU as well."""
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
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(
        torch.allclose(plain, expected, rtol=0.02, atol=0.1)
        and torch.allclose(fused, gelu(expected), rtol=0.02, atol=0.1)
    )


def _norm(norm: Any, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
    weight, bias = (t.data.to(engine.device, engine.dtype) for t in (norm.weight, norm.bias))
    shape, eps = tuple(norm.normalized_shape), float(norm.eps)
    return lambda x: layer_norm(x, shape, weight, bias, eps)


def _is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, by transformers' module or torch's."""
    x = torch.linspace(-4, 4, 33)
    return bool(torch.equal(activation(x), gelu(x)))
