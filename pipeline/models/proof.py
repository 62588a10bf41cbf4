"""Whether our own kernels compute what torch does, of random numbers, before they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import gelu, layer_norm, linear

from pipeline.models.native import Parts, Stack

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.native import Kernels

AGREEMENT = 0.05  # with torch in float32, of numbers around 1
LENGTHS = torch.tensor([97, 1, 16], dtype=torch.int32)
POSITIONS = 100


def holds(kernels: Kernels) -> bool:
    """Whether each function does."""
    draw = _Draw()
    return (
        all(_attends(kernels, draw, width, loud) for width in (32, 64) for loud in (False, True))
        and _averages(kernels, draw)
        and all(_norms(kernels, draw, hidden) for hidden in (1024, 96))
        and _embeds(kernels, draw)
        and (
            not kernels.can_multiply(1024, 96)
            or (
                _multiplies(kernels, draw)
                and all(_goes_through(kernels, draw, *heads) for heads in ((2, 32), (1, 64)))
            )
        )
    )


class _Draw:
    """Numbers that bf16 has."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).bfloat16()


def _attends(kernels: Kernels, draw: _Draw, width: int, loud: bool) -> bool:
    """With scores beyond the range of floats as well, where rounding decides nothing."""
    projected = draw(len(LENGTHS), POSITIONS, 3 * 3 * width)
    if loud:
        projected[..., : 3 * width] *= 30
        key = projected[..., 3 * width : 6 * width]
        key[:, 1:] = key[:, :1] * 0.25
    made = kernels.attend(projected, LENGTHS, 3, width)
    for context, parts, length in zip(made, projected, LENGTHS.tolist(), strict=True):
        query, key, value = parts[:length].float().view(length, 3, 3, width).unbind(1)
        scores = torch.einsum("qhw,khw->hqk", query, key).softmax(dim=-1)
        expected = torch.einsum("hqk,khw->qhw", scores, value).reshape(length, -1)
        if not _near(context[:length], expected) or bool(context[length:].any()):
            return False
    return True


def _averages(kernels: Kernels, draw: _Draw) -> bool:
    queries, states = draw(3, 5, 96).float() / 8, draw(3, POSITIONS, 96).float()
    kept = torch.arange(POSITIONS) < LENGTHS[:, None]
    scores = (queries @ states.transpose(1, 2)).masked_fill(~kept[:, None], -torch.inf)
    return _near(kernels.average(queries, states, LENGTHS), scores.softmax(dim=-1) @ states)


def _norms(kernels: Kernels, draw: _Draw, hidden: int) -> bool:
    weight, bias, x = draw(hidden).float(), draw(hidden).float(), draw(5, hidden)
    expected = layer_norm(x.float() + bias, (hidden,), weight, bias, 0.1)
    normed = kernels.norm(x, bias.expand(x.shape), weight, bias, 0.1)
    return all(_near(each, expected) for each in normed)


def _multiplies(kernels: Kernels, draw: _Draw) -> bool:
    x, weight = draw(600, 1024), draw(96, 1024) / 32
    bias, laid_out = weight[:, 0].float(), kernels.lay_out(weight)
    expected = linear(x.float(), weight.float(), bias)
    return _near(kernels.multiply(x, laid_out, bias), expected) and _near(
        kernels.multiply(x, laid_out, bias, with_gelu=True), gelu(expected)
    )


def _goes_through(kernels: Kernels, draw: _Draw, heads: int, width: int) -> bool:
    """Two layers over more rows than go through at once, beside the functions for their parts."""
    hidden, between, epsilon = heads * width, 1024, 0.1
    lengths = LENGTHS.repeat(6)
    exact, layers = draw(len(lengths), POSITIONS, hidden).float(), []
    for _ in range(2):
        shapes = (3 * hidden, hidden), (hidden, hidden), (between, hidden), (hidden, between)
        weights = [kernels.lay_out(draw(*shape) / 8) for shape in shapes]
        biases = [draw(shape[0]).float() for shape in shapes]
        norms = [draw(hidden).float() for _ in range(4)]
        layers.append(Parts._make([*weights, *biases, *norms, epsilon, epsilon]))
    expected = exact
    for layer in layers:
        projected = kernels.multiply(expected.bfloat16(), layer.projections, layer.projections_bias)
        context = kernels.attend(projected, lengths, heads, width)
        mixed = kernels.multiply(context, layer.mix, layer.mix_bias)
        rounded, expected = kernels.norm(
            mixed, expected, layer.mixed_weight, layer.mixed_bias, layer.mixed_epsilon
        )
        wide = kernels.multiply(rounded, layer.widen, layer.widen_bias, with_gelu=True)
        narrow = kernels.multiply(wide, layer.narrow, layer.narrow_bias)
        _, expected = kernels.norm(
            narrow, expected, layer.output_weight, layer.output_bias, layer.output_epsilon
        )
    made = Stack(kernels, layers, heads)(exact.clone(), lengths)
    kept = torch.arange(POSITIONS) < lengths[:, None]
    return _near(made[kept], expected[kept]) and torch.equal(made[~kept], exact[~kept])


def _embeds(kernels: Kernels, draw: _Draw) -> bool:
    weight, bias = draw(96).float(), draw(96).float()
    tables = draw(9, 96).float(), draw(4, 96).float(), draw(2, 96).float()
    ids, kinds = torch.tensor([[3, 8, 0], [1, 1, 2]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
    total = tables[0][ids] + tables[1][:3] + tables[2][kinds]
    expected = layer_norm(total, (96,), weight, bias)
    embedded = kernels.embed(ids, kinds, tables, weight, bias, 1e-12)
    if not all(_near(each, expected) for each in embedded):
        return False
    try:
        kernels.embed(ids + 1, kinds, tables, weight, bias, 1e-12)
    except IndexError:
        return True
    return False


def _near(made: Tensor, expected: Tensor) -> bool:
    return torch.allclose(made.float(), expected, rtol=0.02, atol=AGREEMENT)
