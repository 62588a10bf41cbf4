"""Attention over padded sequences, beside the formula."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.attention import PLAIN_UP_TO, Padded

HEADS, WIDTH = 3, 8
LENGTHS = (7, 16, 2, 11)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    """Softmax(query key^T) value of each sequence's own positions, in float64."""
    made = torch.zeros(query.shape, dtype=torch.float64)
    for row, length in enumerate(lengths):
        of_row = (
            t[row, :length].double().unflatten(-1, (HEADS, WIDTH)) for t in (query, key, value)
        )
        q, k, v = (t.transpose(0, 1) for t in of_row)
        context = (q @ k.transpose(1, 2)).softmax(-1) @ v
        made[row, :length] = context.transpose(0, 1).flatten(1)
    return made


def inputs(dtype: torch.dtype, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (3, len(LENGTHS), length, HEADS * WIDTH)
    query, key, value = torch.randn(shape, generator=generator).to(dtype)
    return query, key, value


@pytest.mark.parametrize("length", [16, PLAIN_UP_TO + 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 30.0, -300.0], ids=lambda s: f"times {s:g}")
@pytest.mark.parametrize("plain", [True, False])
def test_it_is_softmax_over_the_tokens(
    length: int, dtype: torch.dtype, tolerance: float, scale: float, plain: bool
) -> None:
    """Of scores of any size: e to 3,000 is no float, and e to -3,000 is zero."""
    query, key, value = inputs(dtype, length)
    query = query * scale
    if abs(scale) > 1:  # one position wins in every row, so that rounding decides nothing
        key[:, 1:] = key[:, :1] * 0.25
    mask = torch.arange(length)[None] < torch.tensor(LENGTHS)[:, None]

    made = Padded(mask, dtype, plain=plain)(query, key, value, HEADS, WIDTH)

    expected = attend(query, key, value, LENGTHS)
    where = mask[:, :, None]
    assert made.dtype == dtype
    torch.testing.assert_close(
        made.double() * where, expected, atol=tolerance, rtol=tolerance, check_dtype=False
    )


@pytest.mark.parametrize("length", [16, PLAIN_UP_TO + 8])
@pytest.mark.parametrize("plain", [True, False])
def test_padding_never_wins(length: int, plain: bool) -> None:
    """Not even against tokens whose scores are -100,000 where its own is 0."""
    _, _, value = inputs(torch.float32, length)
    mask = torch.arange(length)[None] < torch.tensor(LENGTHS)[:, None]
    query = torch.ones_like(value)
    key = query * -1e5 / WIDTH * mask[:, :, None]

    made = Padded(mask, torch.float32, plain=plain)(query, key, value, HEADS, WIDTH)

    for row, tokens in enumerate(LENGTHS):
        mean = value[row, :tokens].mean(dim=0)
        torch.testing.assert_close(made[row, :tokens], mean.expand(tokens, -1))


@pytest.mark.parametrize("offset", [-200.0, 200.0])
def test_scores_beyond_floats_are_no_trap(offset: float) -> None:
    """The same is added to all scores, which softmax does not see and e to them does."""
    query, key, value = inputs(torch.float32, 16)
    query[..., ::WIDTH], key[..., ::WIDTH] = 1.0, offset

    made = Padded(None, torch.float32, plain=True)(query, key, value, HEADS, WIDTH)

    expected = attend(query, key, value, (16,) * len(LENGTHS))
    torch.testing.assert_close(made.double(), expected, atol=2e-4, rtol=2e-4)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    """Not to one bit, nor to the way it is computed: numbers of padding may leave all ranges."""
    query, key, value = inputs(torch.float32, 16)
    mask = torch.arange(16)[None] < torch.tensor(LENGTHS)[:, None]
    made = Padded(mask, torch.float32, plain=True)(query, key, value, HEADS, WIDTH)
    for tensor in (query, key, value):
        tensor[~mask] = 1e4
    again = Padded(mask, torch.float32, plain=True)(query, key, value, HEADS, WIDTH)

    assert torch.equal(made[mask], again[mask])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_beyond_floats_leave_the_other_sequences_alone(dtype: torch.dtype) -> None:
    """Not one of their bits changes: a vector may not depend on what is encoded beside it."""
    query, key, value = inputs(dtype, 16)
    mask = torch.arange(16)[None] < torch.tensor(LENGTHS)[:, None]
    made = Padded(mask, dtype, plain=True)(query.clone(), key, value, HEADS, WIDTH)
    query[1] *= 1e4
    again = Padded(mask, dtype, plain=True)(query, key, value, HEADS, WIDTH)

    others = torch.arange(len(LENGTHS)) != 1
    assert torch.equal(made[others], again[others])
    assert again.isfinite().all()
