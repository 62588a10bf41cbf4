"""Whole layers by our own kernels, beside the same layers part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import gelu, layer_norm, linear

from pipeline.models import native
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.folder import locate
from pipeline.models.native import LONGEST, Kernels, Parts, Stack
from pipeline.models.scorer import Limits, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = [(2, 32, 96), (2, 64, 512), (3, 32, 32), (12, 32, 1536), (12, 64, 3072)]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = native.kernels()
    if found is None or found.kind != "amx_bf16":
        pytest.skip("whole layers want x86-64 Linux with AMX")
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(heads: int, width: int, between: int, seed: int = 0) -> list[torch.Tensor]:
    """Weights that bf16 has, biases and norms of a layer, in the order of `Parts`."""
    hidden = heads * width
    shapes = (3 * hidden, hidden), (hidden, hidden), (between, hidden), (hidden, between)
    weights = [
        (draw(*shape, seed=9 * seed + each) / shape[1] ** 0.5).bfloat16()
        for each, shape in enumerate(shapes)
    ]
    weights[0][: 2 * hidden] /= 4  # scores whose rounding decides little
    biases = [draw(shape[0], seed=seed) / 8 for shape in shapes]
    norms = [1 + draw(hidden, seed=seed) / 8, draw(hidden, seed=seed + 1) / 8]
    return [*weights, *biases, *norms, *norms]


def stacked(kernels: Kernels, layers: list[list[torch.Tensor]], heads: int) -> Stack:
    laid_out = [[*map(kernels.lay_out, layer[:4]), *layer[4:], 1e-12, 1e-12] for layer in layers]
    return Stack(kernels, [Parts._make(layer) for layer in laid_out], heads)


def in_double(layers: list[list[torch.Tensor]], rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Hidden states of one sequence behind all layers, in float64."""
    x = rows.double()
    for layer in layers:
        qkv, mix, widen, narrow, qkv_bias, mix_bias, widen_bias, narrow_bias, *norms = (
            part.double() for part in layer
        )
        query, key, value = (
            linear(x, qkv, qkv_bias).view(len(x), 3, heads, x.shape[1] // heads).unbind(1)
        )
        scores = torch.einsum("qhw,khw->hqk", query, key).softmax(dim=-1)
        context = torch.einsum("hqk,khw->qhw", scores, value).reshape(x.shape)
        x = layer_norm(x + linear(context, mix, mix_bias), x.shape[1:], *norms[:2])
        wide = gelu(linear(x, widen, widen_bias))
        x = layer_norm(x + linear(wide, narrow, narrow_bias), x.shape[1:], *norms[2:])
    return x


def int32(lengths: list[int]) -> torch.Tensor:
    return torch.tensor(lengths, dtype=torch.int32)


@pytest.mark.parametrize(("heads", "width", "between"), SHAPES)
@given(st.lists(st.integers(0, 140), min_size=1, max_size=7), st.integers(0, 9), st.integers(1, 3))
def test_layers_are_what_their_formulas_say(
    kernels: Kernels,
    heads: int,
    width: int,
    between: int,
    lengths: list[int],
    padding: int,
    many: int,
) -> None:
    """Of any lengths, few and many rows; padding, whatever it holds, is left alone."""
    layers = [plain(heads, width, between, seed) for seed in range(many)]
    positions = max(lengths) + max(padding, 1)
    exact = draw(len(lengths), positions, heads * width, seed=sum(lengths))
    for row, length in enumerate(lengths):
        exact[row, length:] = torch.nan

    made = stacked(kernels, layers, heads)(exact.clone(), int32(lengths))

    for row, length in enumerate(lengths):
        expected = in_double(layers, exact[row, :length], heads)
        torch.testing.assert_close(made[row, :length].double(), expected, atol=0.08, rtol=0.05)
        assert made[row, length:].isnan().all()


def test_the_longest_sequence(kernels: Kernels) -> None:
    """As many positions as a sequence may have, and one more."""
    layers, exact = [plain(12, 32, 1536)], draw(2, LONGEST, 384)

    made = stacked(kernels, layers, 12)(exact.clone(), int32([LONGEST, 5]))

    torch.testing.assert_close(made[0].double(), in_double(layers, exact[0], 12), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="no kernel for this shape"):
        stacked(kernels, layers, 12)(draw(1, LONGEST + 1, 384), int32([3]))


def test_no_bit_of_a_sequence_hangs_on_what_stands_beside_it(kernels: Kernels) -> None:
    """Alone, among others, in another place of a block and in longer padding."""
    lengths = [93, 17, 200, 1, 64, 150, 33]
    stack, exact = stacked(kernels, [plain(12, 32, 1536)] * 2, 12), draw(7, 200, 384)

    together = stack(exact.clone(), int32(lengths))

    for row, length in enumerate(lengths):
        alone = stack(exact[row : row + 1, :length].clone(), int32([length]))
        assert torch.equal(alone[0], together[row, :length])
    behind = stack(exact[1:].clone(), int32(lengths[1:]))
    for row, length in enumerate(lengths[1:]):
        assert torch.equal(behind[row, :length], together[1 + row, :length])


def test_what_c_would_trust_is_checked(kernels: Kernels) -> None:
    """Types, sizes and strides, and parts that do not fit each other."""
    good = plain(2, 32, 96)
    stack, exact, lengths = stacked(kernels, [good], 2), draw(2, 4, 64), int32([4, 4])
    wrong: list[Callable[[], object]] = [
        lambda: stack(exact.bfloat16(), lengths),
        lambda: stack(exact.double(), lengths),
        lambda: stack(draw(2, 4, 96), lengths),
        lambda: stack(draw(2, 64, 4).transpose(1, 2), lengths),
        lambda: stack(exact, lengths.long()),
        lambda: stack(exact, lengths[:1]),
        lambda: stacked(kernels, [good, plain(2, 32, 128)], 2),
        lambda: stacked(kernels, [[*good[:4], good[5], *good[5:]]], 2),
        lambda: stacked(kernels, [[*good[:11], good[11].double()]], 2),
        lambda: stacked(kernels, [good], 3),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="no kernel for such tensors"):
            call()
    for bad in ([5, 1], [-1, 1]):
        with pytest.raises(ValueError, match="no kernel for this shape"):
            stack(exact, int32(bad))
    with pytest.raises(ValueError, match="no kernel for this shape"):
        stacked(kernels, [plain(4, 16, 96)], 4)(exact, lengths)


def test_what_is_no_number_stays_none(kernels: Kernels) -> None:
    """In its own sequence, and in no other."""
    exact = draw(2, 40, 384)
    exact[0, 3, 5] = torch.nan

    made = stacked(kernels, [plain(12, 32, 1536)], 12)(exact, int32([40, 40]))

    assert made[0].isnan().all()
    assert made[1].isfinite().all()


@pytest.mark.model
def test_scores_are_those_of_the_parts(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what float32 rounds: no batch of the last layer is the same."""
    passages = ["Sorts a list in place.", "Opens a file " * 40, "sorting", "a b c " * 90]
    wishes = Wishes(device="cpu", precision="bf16")
    whole = CrossEncoder(locate("small"), wishes, Limits()).score("how to sort a list", passages)

    def part_by_part(*_: object) -> None:
        return None

    monkeypatch.setattr("pipeline.models.layers.Layer.parts", part_by_part)
    parts = CrossEncoder(locate("small"), wishes, Limits())

    assert not parts._forward.takes_any_rows
    made = parts.score("how to sort a list", passages).scores
    assert made == pytest.approx(whole.scores, abs=1e-4)
