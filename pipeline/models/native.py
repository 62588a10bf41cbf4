"""Kernels of our own in bf16: attention, norms, embeddings, and with AMX linear and whole layers.

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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIBRARY = Path(__file__).parents[1] / "native" / "kernels-x86_64-linux.so"
VERSION = 6  # of the functions' arguments
LONGEST = 512  # positions
WIDTHS = (32, 64)  # of heads
NEEDED = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16")
LONGEST_ROW = 4096  # numbers that go into a linear layer, or come out
DEEPEST = 1024  # numbers of a hidden state
BLOCK = 32  # rows that are multiplied together
MOST_ROWS = 512  # that go through layers together
CACHED = 288 * 384  # numbers of hidden states with which all that a layer makes fits the cache


class Parts(NamedTuple):
    """What a layer is made of: weights as laid out, the rest in float32."""

    projections: Tensor
    mix: Tensor
    widen: Tensor
    narrow: Tensor
    projections_bias: Tensor
    mix_bias: Tensor
    widen_bias: Tensor
    narrow_bias: Tensor
    mixed_weight: Tensor
    mixed_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor
    mixed_epsilon: float
    output_epsilon: float


class _Parts(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in Parts._fields[:12]),
        *((name, ctypes.c_float) for name in Parts._fields[12:]),
    )


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
        self._through, self._room = library.through, library.room
        self._through.argtypes = (
            [pointer] * 2 + [long] * 2 + [pointer] + [long] * 4 + [pointer, long]
        )
        self._room.argtypes, self._room.restype = [long] * 3, long
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
        return hidden % 32 == 0 and 0 < hidden <= DEEPEST

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

    def through(
        self, exact: Tensor, lengths: Tensor, layers: Any, heads: int, width: int, between: int
    ) -> None:
        """Go through layers, as `Stack` says; the hidden states are changed."""
        (count, positions, _), hidden = exact.shape, heads * width
        _need(_is(exact, torch.float32, count, positions, hidden))
        _need(_is(lengths, torch.int32, count))
        rows = min(max(CACHED // hidden, positions), MOST_ROWS)
        rows = -(-rows // BLOCK) * BLOCK
        space = torch.empty(self._room(rows, hidden, between), dtype=torch.uint8)
        _done(
            self._through(
                exact.data_ptr(), lengths.data_ptr(), count, positions, layers, len(layers),
                heads, width, between, space.data_ptr(), rows,
            )
        )  # fmt: skip

    def attend(self, projected: Tensor, lengths: Tensor, heads: int, width: int) -> Tensor:
        """Attend within sequences; queries scaled already.

        Args:
            projected: (sequences, positions, 3 x heads x width), queries, keys and values.
            lengths: int32, tokens of each sequence; they come first.

        Returns:
            (sequences, positions, heads x width), zero at padding.
        """
        _need(projected.ndim == 3)
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
        _need(_is(other, torch.float32, *x.shape))
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
        _need(_is(ids, torch.int64, count, positions) and _is(kinds, torch.int64, count, positions))
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


class Stack:
    """Layers of one shape that are gone through at once, a few sequences at a time.

    What passes between their parts stays in the cache, and padding is not computed.

    Args:
        layers: with GELU, and heads for which there is a kernel.
        heads: of each.
    """

    def __init__(self, kernels: Kernels, layers: Sequence[Parts], heads: int) -> None:
        hidden, self._between = layers[0].mix.shape[0], layers[0].widen.shape[0]
        self._heads, self._width = heads, hidden // heads
        _need(hidden % heads == 0)
        for layer in layers:
            _need(_fits(layer, hidden, self._between))
        self._kernels, self._kept = kernels, [*layers]  # tensors that C has the addresses of
        self._layers = (_Parts * len(layers))()
        for to, layer in zip(self._layers, layers, strict=True):
            for name, part in layer._asdict().items():
                setattr(to, name, part.data_ptr() if isinstance(part, Tensor) else part)

    def __call__(self, exact: Tensor, lengths: Tensor) -> Tensor:
        """Go through them.

        Args:
            exact: (sequences, positions, hidden), hidden states in float32, which are changed.
            lengths: int32, tokens of each sequence; they come first.

        Returns:
            The same tensor: what comes out of the last layer, and at padding what was there.
        """
        shape = self._heads, self._width, self._between
        self._kernels.through(exact, lengths, self._layers, *shape)
        return exact


@cache
def kernels() -> Kernels | None:
    """Load them, if they are for this machine and compute what they should."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not LIBRARY.is_file():
        return None
    able: Mapping[str, Any] = torch.cpu.get_capabilities()
    if not all(able.get(name) for name in NEEDED):
        return None
    from pipeline.models import proof  # which looks at what is here

    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.version() != VERSION:
            return None
        made = Kernels(library, tiles=bool(able.get("amx_bf16") and library.may_use_tiles()))
        return made if proof.holds(made) else None
    except (OSError, AttributeError, RuntimeError, ValueError):  # a file that is none, say
        return None


# C trusts what it is given.


def _bf16(rows: Tensor, hidden: int) -> bool:
    return rows.dtype == torch.bfloat16 and rows.shape[-1] == hidden and rows.is_cpu


def _is(x: Tensor, dtype: torch.dtype, *shape: int) -> bool:
    return x.dtype == dtype and x.shape == shape and x.is_contiguous() and x.is_cpu


def _fits(layer: Parts, hidden: int, between: int) -> bool:
    wide = 3 * hidden
    shapes = (wide, hidden), (hidden, hidden), (between, hidden), (hidden, between)
    sizes = wide, hidden, between, *[hidden] * 5
    return all(
        _is(weight, torch.bfloat16, *shape) for weight, shape in zip(layer[:4], shapes, strict=True)
    ) and all(_is(row, torch.float32, size) for row, size in zip(layer[4:12], sizes, strict=True))


def _need(fits: bool) -> None:
    if not fits:
        raise ValueError("there is no kernel for such tensors")


def _done(problem: int) -> None:
    if problem == 2:  # as the source says
        raise IndexError("an embedding's table has no such row")
    if problem:
        raise ValueError("there is no kernel for this shape")
