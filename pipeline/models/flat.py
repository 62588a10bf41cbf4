"""Sequences without padding: the pairs of a topic one after the other, attention within each.

What a GPU computes fastest: every multiplication runs over all tokens of a batch, and none over
padding. Batches are cut by tokens and are, as everywhere, a function of one topic alone; so a topic
that is scored again, by whomever, gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.models.engine import Engine
    from pipeline.models.pairs import Template

Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor
]
"""Attention of (tokens, heads, width) within sequences: query, key, value, where sequences of
queries and of keys start (and end), and the longest of either; scaled by width ** -0.5."""


AGREEMENT = 0.05  # of attention's results, averages of numbers about 1, in half precision


class FlatBatch(NamedTuple):
    """Several sequences on their device, int32; the first three of shape (tokens,)."""

    ids: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor  # from 0 in each sequence
    starts: torch.Tensor  # (sequences + 1,): the first token of each, and the number of tokens
    each: torch.Tensor  # (sequences + 1,): 0, 1, 2, ...
    longest: int


def kernel(engine: Engine) -> Kernel | None:
    """Give torch's own attention over sequences of any length, where the engine can use it."""
    if engine.device != "cuda" or engine.precision == "fp32":
        return None
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch 2.9
        return None

    def attend(*of: Any) -> torch.Tensor:
        # The other back end, cuDNN's, prepares anew for every shape, and all shapes are new.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return cast("torch.Tensor", varlen_attn(*of))

    return attend


def one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    _: int,
    __: int,
) -> torch.Tensor:
    """Attend to one sequence after the other: slow, on any device, what a kernel must equal."""
    borders = zip(
        *(starts.tolist()[place:] for starts in (query_starts, key_starts) for place in (0, 1)),
        strict=False,
    )
    return torch.cat(
        [
            scaled_dot_product_attention(
                query[a:b].transpose(0, 1), key[c:d].transpose(0, 1), value[c:d].transpose(0, 1)
            ).transpose(0, 1)
            for a, b, c, d in borders
        ]
    )


def agrees(attend: Kernel, heads: int, width: int, engine: Engine) -> bool:
    """Whether a kernel computes what `one_by_one` does, of random vectors, to a few hundredths.

    Of all tokens of sequences of several lengths, and of their first tokens alone.
    """
    lengths = (33, 9, 4, 1)
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    each = torch.arange(len(starts), dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    shape = (3, sum(lengths), heads, width)
    query, key, value = torch.randn(shape, generator=generator).to(engine.dtype)
    for queries, rows, longest in ((starts, query, max(lengths)), (each, query[starts[:-1]], 1)):
        one, two, three, four, five = (
            t.to(engine.device) for t in (rows, key, value, queries, starts)
        )
        made = attend(one, two, three, four, five, longest, max(lengths))
        expected = one_by_one(
            rows.float(), key.float(), value.float(), queries, starts, longest, max(lengths)
        )
        if made.shape != expected.shape:
            return False
        if not torch.allclose(made.float().cpu(), expected, rtol=0, atol=AGREEMENT):
            return False
    return True


# ---------------------------------------------------------------- batches


def flat_batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Cut the sequences of one topic into batches, longest first; yield their places.

    A batch holds at most `budget` tokens, and at least one sequence whatever its length.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = done = 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, done + budget, side="right")))
        yield order[start:stop]
        start, done = stop, int(ends[stop - 1])


class Joined(NamedTuple):
    """Token ids of several passages, one after the other."""

    ids: NDArray[np.integer]
    starts: NDArray[np.int64]  # of each passage
    lengths: NDArray[np.int64]  # of what is read of it

    def one(self, place: int) -> NDArray[np.integer]:
        """Token ids of one passage."""
        start = self.starts[place]
        return self.ids[start : start + self.lengths[place]]


def joined(passages: Sequence[NDArray[np.integer]]) -> Joined:
    """Put the token ids of at least one passage one after the other."""
    lengths = np.array(list(map(len, passages)), np.int64)
    return Joined(np.concatenate(passages), np.cumsum(lengths) - lengths, lengths)


def flat_batch(
    template: Template,
    query: NDArray[np.int32],
    passages: Joined,
    places: NDArray[np.int64],
    device: str,
) -> FlatBatch:
    """Put one query and the passages at `places` together, as pairs one after the other."""
    head = np.concatenate([template.before, query, template.between]).astype(np.int32)
    kinds = np.repeat(
        np.array(template.segments[:3], np.int32),
        [len(template.before), len(query), len(template.between)],
    )
    tail = np.array(template.after, np.int32)
    lengths = passages.lengths[places]
    whole = lengths + len(head) + len(tail)
    starts = np.concatenate([[0], np.cumsum(whole)])
    count, tokens = len(places), int(starts[-1])
    # One piece of memory, and so one copy to the device.
    packed = np.empty(3 * tokens + 2 * (count + 1), np.int32)
    ids, segments, positions = packed[: 3 * tokens].reshape(3, tokens)
    packed[3 * tokens :] = np.concatenate([starts, np.arange(count + 1)])

    at = (starts[:-1, None] + np.arange(len(head))).ravel()
    ids[at], segments[at] = np.tile(head, count), np.tile(kinds, count)
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.repeat(starts[:-1] + len(head), lengths) + within
    ids[at] = passages.ids[np.repeat(passages.starts[places], lengths) + within]
    segments[at] = template.segments[3]
    at = (starts[1:, None] - len(tail) + np.arange(len(tail))).ravel()
    ids[at], segments[at] = np.tile(tail, count), template.segments[4]
    positions[:] = np.arange(tokens) - np.repeat(starts[:-1], whole)

    moved = _to_device(packed, device)
    rows = moved[: 3 * tokens].view(3, tokens)
    borders = moved[3 * tokens :].view(2, count + 1)
    return FlatBatch(rows[0], rows[1], rows[2], borders[0], borders[1], int(whole.max()))


# ---------------------------------------------------------------- to the device and back


def _to_device(values: NDArray[np.int32], device: str) -> torch.Tensor:
    """Copy without waiting for what the device is at."""
    tensor = torch.from_numpy(values)
    if device == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def fetching(values: torch.Tensor) -> Callable[[], NDArray[np.float32]]:
    """Begin to copy float32 values back; what is returned waits until they are here."""
    if not values.is_cuda:
        return values.numpy
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    here.copy_(values, non_blocking=True)
    copied = torch.cuda.current_stream(values.device).record_event()

    def wait() -> NDArray[np.float32]:
        copied.synchronize()
        return here.numpy()

    return wait
