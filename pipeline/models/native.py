"""Kernels of our own in bf16: attention, norms, embeddings, and with AMX linear layers.

They are C (`native/kernels.c`), compiled for x86-64 Linux, and lie beside their source. Where they
are missing, or the processor has no AVX-512 BF16, or one of them does not compute what torch does,
torch's own operators are used: slower, and the same but for last bits, so the numeric
signature says which it was.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import gelu, layer_norm, linear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LIBRARY = Path(__file__).parents[1] / "native" / "kernels-x86_64-linux.so"
VERSION = 5  # of the functions' arguments
LONGEST = 512  # positions
WIDTHS = (32, 64)  # of heads
NEEDED = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16")
LONGEST_ROW = 4096  # numbers that go into a linear layer, or come out
DEEPEST = 1024  # numbers of a hidden state
AGREEMENT = 0.05  # with torch in float32, of numbers around 1


class Kernels:
    """The functions, on bf16 tensors on the CPU, by the thread that calls.

    Args:
        library: as loaded.
        tiles: whether AMX may be used.
    """

    def __init__(self, library: ctypes.CDLL, *, tiles: bool) -> None:
        pointer: Any = ctypes.c_void_p
        long: Any = ctypes.c_long
        self._attend, self._norm, self._embed = library.attend, library.norm, library.embed
        self._attend.argtypes = [pointer] * 3 + [long] * 4 + [ctypes.c_int]
        self._norm.argtypes = [pointer] * 6 + [long] * 2 + [ctypes.c_float]
        self._embed.argtypes = (
            [pointer] * 2 + [pointer, long] * 3 + [pointer] * 4 + [long] * 3 + [ctypes.c_float]
        )
        self._average = library.average
        self._average.argtypes = [pointer] * 4 + [long] * 4
        self._multiply, self._lay_out = library.multiply, library.lay_out
        self._multiply.argtypes = [pointer] * 4 + [long] * 3 + [ctypes.c_int]
        self._lay_out.argtypes = [pointer] * 2 + [long] * 2
        self._tiles = tiles

    @property
    def kind(self) -> str:
        """What of the processor they use, for the signature."""
        return "amx_bf16" if self._tiles else "avx512_bf16"

    @staticmethod
    def can_attend(width: int) -> bool:
        """Whether there is a kernel for heads so wide, in sequences of `LONGEST` at most."""
        return width in WIDTHS

    @staticmethod
    def can_norm(hidden: int) -> bool:
        """Whether there is a kernel for hidden states of so many numbers."""
        return hidden % 16 == 0 and 0 < hidden <= DEEPEST

    def can_multiply(self, depth: int, width: int) -> bool:
        """Whether there is a kernel for linear layers of so many numbers in and out: by tiles."""
        if not self._tiles or depth % 32 or width % 32 or max(depth, width) > LONGEST_ROW:
            return False
        return depth <= 512 or depth % 512 == 0 or depth % 384 == 0  # as in C

    def lay_out(self, weight: Tensor) -> Tensor:
        """Lay out the weights (out, in) of a linear layer, of the same shape."""
        weight = weight.bfloat16().contiguous()
        out = torch.empty_like(weight)
        _done(self._lay_out(weight.data_ptr(), out.data_ptr(), weight.shape[1], weight.shape[0]))
        return out

    def multiply(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        with_gelu: bool = False,
    ) -> Tensor:
        """Linear layer of (..., in), by laid out weights and a bias in float32.

        Args:
            with_gelu: apply the exact GELU, to 2e-5.
        """
        x = x.contiguous()
        width, depth = weight.shape
        _need(_bf16(x, depth) and _bf16(weight, depth) and weight.is_contiguous())
        _need(_is(bias, torch.float32, width))
        out = x.new_empty(*x.shape[:-1], width)
        _done(
            self._multiply(
                x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(),
                x.numel() // depth, depth, width, with_gelu,
            )
        )  # fmt: skip
        return out

    def attend(self, projected: Tensor, lengths: Tensor, heads: int, width: int) -> Tensor:
        """Attend within sequences; queries scaled already.

        Args:
            projected: (sequences, positions, 3 x heads x width), queries, keys and values.
            lengths: int32, tokens of each sequence; they come first.

        Returns:
            (sequences, positions, heads x width), zero at padding.
        """
        count, positions, hidden = *projected.shape[:2], heads * width
        _need(_bf16(projected, 3 * hidden) and _is(lengths, torch.int32, count))
        projected, lengths = projected.contiguous(), lengths.contiguous()
        context = projected.new_empty(count, positions, hidden)
        _done(
            self._attend(
                projected.data_ptr(), lengths.data_ptr(), context.data_ptr(),
                count, positions, heads, width, self._tiles,
            )
        )  # fmt: skip
        return context

    def average(self, queries: Tensor, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Average hidden states by the softmax of their products with queries, in float32.

        Args:
            queries: (sequences, heads, hidden).
            hidden: (sequences, positions, hidden), a multiple of 32.
            lengths: int32, tokens of each sequence; they come first.

        Returns:
            (sequences, heads, hidden).
        """
        count, positions, width = hidden.shape
        queries, hidden, lengths = queries.contiguous(), hidden.contiguous(), lengths.contiguous()
        heads = queries.shape[1]
        _need(_is(queries, torch.float32, count, heads, width))
        _need(_is(hidden, torch.float32, count, positions, width))
        _need(_is(lengths, torch.int32, count))
        mean = torch.empty_like(queries)
        _done(
            self._average(
                queries.data_ptr(), hidden.data_ptr(), lengths.data_ptr(), mean.data_ptr(),
                count, positions, heads, width,
            )
        )  # fmt: skip
        return mean

    def norm(
        self, x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """LayerNorm of x + other, by weight and bias in float32; in bf16, and in float32.

        Args:
            x: (..., hidden).
            other: of the same shape, in float32.
        """
        hidden, x, other = x.shape[-1], x.contiguous(), other.contiguous()
        _need(_bf16(x, hidden) and _is(weight, torch.float32, hidden))
        _need(_is(bias, torch.float32, hidden))
        _need(other.dtype == torch.float32 and other.shape == x.shape)
        out, exact = torch.empty_like(x), torch.empty_like(other)
        _done(
            self._norm(
                x.data_ptr(), other.data_ptr(), weight.data_ptr(), bias.data_ptr(),
                out.data_ptr(), exact.data_ptr(), x.numel() // hidden, hidden, epsilon,
            )
        )  # fmt: skip
        return out, exact

    def embed(
        self,
        ids: Tensor,
        kinds: Tensor,
        tables: tuple[Tensor, Tensor, Tensor],
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, Tensor]:
        """LayerNorm of the sum of three embeddings, in bf16, and in float32.

        Args:
            ids, kinds: int64, (sequences, positions), words and segments.
            tables: of words, places and segments, each (rows, hidden), in float32.

        Raises:
            IndexError: a table has no such row.
        """
        (count, positions), hidden = ids.shape, tables[0].shape[1]
        ids, kinds = ids.long().contiguous(), kinds.long().contiguous()
        _need(all(_is(table, torch.float32, len(table), hidden) for table in tables))
        _need(_is(weight, torch.float32, hidden) and _is(bias, torch.float32, hidden))
        _need(kinds.shape == ids.shape)
        exact = tables[0].new_empty(count, positions, hidden)
        out = torch.empty_like(exact, dtype=torch.bfloat16)
        rows = [part for table in tables for part in (table.data_ptr(), len(table))]
        _done(
            self._embed(
                ids.data_ptr(), kinds.data_ptr(), *rows, weight.data_ptr(), bias.data_ptr(),
                out.data_ptr(), exact.data_ptr(), count, positions, hidden, epsilon,
            )
        )  # fmt: skip
        return out, exact

    def works(self) -> bool:
        """Whether each function computes what torch does in float32, of random numbers."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).bfloat16()

        lengths = torch.tensor([97, 1, 16], dtype=torch.int32)
        for width in WIDTHS:
            projected = draw(3, 100, 3 * 3 * width)
            made = self.attend(projected, lengths, 3, width)
            for context, parts, length in zip(made, projected, lengths.tolist(), strict=True):
                query, key, value = parts[:length].float().view(length, 3, 3, width).unbind(1)
                scores = torch.einsum("qhw,khw->hqk", query, key).softmax(dim=-1)
                expected = torch.einsum("hqk,khw->qhw", scores, value).reshape(length, -1)
                if not _near(context[:length], expected) or bool(context[length:].any()):
                    return False
        queries, states = draw(3, 5, 96).float() / 8, draw(3, 100, 96).float()
        kept = torch.arange(100) < lengths[:, None]
        scores = (queries @ states.transpose(1, 2)).masked_fill(~kept[:, None], -torch.inf)
        if not _near(self.average(queries, states, lengths), scores.softmax(dim=-1) @ states):
            return False
        for hidden in (DEEPEST, 48):
            weight, bias, x = draw(hidden).float(), draw(hidden).float(), draw(5, hidden)
            expected = layer_norm(x.float() + bias, (hidden,), weight, bias)
            normed = self.norm(x, bias.expand(x.shape), weight, bias, 1e-12)
            if not all(_near(each, expected) for each in normed):
                return False
        if self.can_multiply(64, 96) and not self._multiplies(draw(37, 64), draw(96, 64)):
            return False
        tables = draw(9, 48).float(), draw(4, 48).float(), draw(2, 48).float()
        ids, kinds = torch.tensor([[3, 8, 0], [1, 1, 2]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
        total = tables[0][ids] + tables[1][:3] + tables[2][kinds]
        expected = layer_norm(total, (48,), weight, bias)
        embedded = self.embed(ids, kinds, tables, weight, bias, 1e-12)
        return all(_near(each, expected) for each in embedded)

    def _multiplies(self, x: Tensor, weight: Tensor) -> bool:
        bias, laid_out = weight[:, 0].float(), self.lay_out(weight)
        expected = linear(x.float(), weight.float(), bias)
        return _near(self.multiply(x, laid_out, bias), expected) and _near(
            self.multiply(x, laid_out, bias, with_gelu=True), gelu(expected)
        )


@cache
def kernels() -> Kernels | None:
    """Load them, if they are for this machine and compute what they should."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not LIBRARY.is_file():
        return None
    able: Mapping[str, Any] = torch.cpu.get_capabilities()
    if not all(able.get(name) for name in NEEDED):
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.version() != VERSION:
            return None
        made = Kernels(library, tiles=bool(able.get("amx_bf16") and library.may_use_tiles()))
        return made if made.works() else None
    except (OSError, AttributeError, RuntimeError, ValueError):  # a file that is none, say
        return None


# C trusts what it is given.


def _bf16(rows: Tensor, hidden: int) -> bool:
    return rows.dtype == torch.bfloat16 and rows.shape[-1] == hidden and rows.is_cpu


def _is(x: Tensor, dtype: torch.dtype, *shape: int) -> bool:
    return x.dtype == dtype and x.shape == shape and x.is_contiguous() and x.is_cpu


def _need(fits: bool) -> None:
    if not fits:
        raise ValueError("there is no kernel for such tensors")


def _near(made: Tensor, expected: Tensor) -> bool:
    return torch.allclose(made.float(), expected, rtol=0.02, atol=AGREEMENT)


def _done(problem: int) -> None:
    if problem == 2:  # as the source says
        raise IndexError("an embedding's table has no such row")
    if problem:
        raise ValueError("there is no kernel for this shape")
