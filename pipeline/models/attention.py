"""Attention of the faster forward pass: over padded sequences, or over some laid in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.models.flat import FlatBatch, Kernel
    from pipeline.models.native import Kernels

# Attention as two plain multiplications is faster than the fused kernel on short sequences of
# narrow heads; on long ones its scores no longer fit the cache.
PLAIN_UP_TO = 192
MASKED = float("-inf")  # added to scores of padding; no sequence is padding alone
# Sums of e to the scores between which none is rounded away that matters.
LEAST_SUM, MOST_SUM = 1e-30, 1e34


class Padded:
    """Attention over (sequences, positions, hidden), queries scaled already.

    Args:
        mask: bool, (sequences, positions), true for tokens, which come first; None where nothing
            is padded.
        plain: two multiplications for short sequences, instead of torch's fused kernel.
    """

    def __init__(self, mask: torch.Tensor | None, dtype: torch.dtype, *, plain: bool) -> None:
        self._kept = self._bias = self._padding = None
        if mask is not None:
            if plain:
                self._kept = mask[:, :, None].to(dtype)
                self._padding = (~mask).view(-1).nonzero()[:, 0]
            bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            self._bias = bias.masked_fill_(~mask, MASKED)[:, None, None]
        self._plain = plain

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of the first positions."""
        return hidden[:, :1].contiguous()

    def within(self, projected: torch.Tensor, heads: int, width: int) -> torch.Tensor:
        """Context of (sequences, positions, 3 x hidden): queries, keys and values in a row."""
        query, key, value = torch.split(projected, heads * width, dim=-1)
        return self(query, key, value, heads, width)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, width: int
    ) -> torch.Tensor:
        """Context of the shape of the query, its heads of `width` side by side.

        Queries, keys and values of padding may be overwritten.
        """
        count, length = key.shape[:2]

        def split(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.view(count, -1, heads, width).transpose(1, 2)

        if self._plain and length <= PLAIN_UP_TO:
            self._blank(query, key, value)
            # Values are copied head by head: a multiplication of views takes longer than that.
            context = self._multiplied(split(query), split(key), split(value).contiguous())
        else:
            context = scaled_dot_product_attention(
                split(query), split(key), split(value), attn_mask=self._bias, scale=1.0
            )
        return context.transpose(1, 2).reshape(count, -1, heads * width)

    def _blank(self, *some: torch.Tensor) -> None:
        """Make padding zero in (sequences, positions, hidden): what it holds may be large.

        A score of it that e to leaves the range of floats would cost the sequence the ordinary
        softmax; models whose padding does that are met.
        """
        if self._padding is not None:
            for tensor in some:
                tensor.view(-1, tensor.shape[-1]).index_fill_(0, self._padding, 0)

    def _multiplied(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Softmax without its two passes for the maximum and the mask.

        Padding has no values and is left out of sums, and sums divide the few numbers behind the
        second multiplication. Sequences with scores so large or small that e to them leaves the
        range of floats are for the ordinary softmax.
        """
        count, heads, rows, _ = query.shape
        weights = (query @ key.transpose(2, 3)).exp_()
        kept = value.new_ones(count, key.shape[2], 1) if self._kept is None else self._kept
        sums = (weights.view(count, heads * rows, -1) @ kept).view(count, heads, rows, 1)
        context = (weights @ value).div_(sums)
        least, most = sums.aminmax()
        if not (least > LEAST_SUM and most < MOST_SUM):
            # Only where it is so: no bit of a sequence hangs on what stands beside it.
            fits = ((sums > LEAST_SUM) & (sums < MOST_SUM)).view(count, -1).all(dim=1)
            some = (~fits).nonzero()[:, 0]
            scores = query[some] @ key[some].transpose(2, 3)
            if self._bias is not None:
                scores += self._bias[some]
            context[some] = scores.softmax(dim=-1) @ value[some]
        return context

    def weighted(self, query: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Average hidden states by their products with queries (sequences, heads, hidden)."""
        scores = query @ hidden.transpose(1, 2)
        if self._bias is not None:
            scores += self._bias[:, 0]
        return scores.softmax(dim=-1) @ hidden


class Own:
    """The same by kernels of our own, for sequences of `LONGEST` positions at most.

    Args:
        shape: sequences and positions.
        mask: as above.
    """

    def __init__(self, kernels: Kernels, shape: Sequence[int], mask: torch.Tensor | None) -> None:
        count, length = shape
        self._kernels = kernels
        self.lengths = torch.full((count,), length, dtype=torch.int32)
        if mask is not None:
            self.lengths = mask.sum(dim=1, dtype=torch.int32)

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of the first positions."""
        return hidden[:, :1].contiguous()

    def within(self, projected: torch.Tensor, heads: int, width: int) -> torch.Tensor:
        """Context of (sequences, positions, 3 x hidden): queries, keys and values in a row."""
        return self._kernels.attend(projected, self.lengths, heads, width)

    def weighted(self, query: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Average hidden states by their products with queries, all in float32."""
        return self._kernels.average(query, hidden, self.lengths)


class Flat:
    """Attention within sequences that lie one after the other, (tokens, hidden)."""

    def __init__(self, batch: FlatBatch, kernel: Kernel) -> None:
        self._batch, self._kernel = batch, kernel

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of the first tokens."""
        return hidden.index_select(0, self._batch.starts[:-1])

    def within(self, projected: torch.Tensor, heads: int, width: int) -> torch.Tensor:
        """Context of (tokens, 3 x hidden): queries, keys and values in a row."""
        query, key, value = torch.split(projected, heads * width, dim=-1)
        return self(query, key, value, heads, width)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, width: int
    ) -> torch.Tensor:
        """Context of the shape of the query, its heads of `width` side by side."""
        batch = self._batch
        queries = (batch.starts, batch.longest)
        if len(query) != len(key):  # of the first tokens alone
            queries = (batch.each, 1)
        query, key, value = (tensor.view(-1, heads, width) for tensor in (query, key, value))
        context = self._kernel(
            query, key, value, queries[0], batch.starts, queries[1], batch.longest
        )
        return context.reshape(-1, heads * width)
