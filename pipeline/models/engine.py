"""Devices, precisions and batches: what decides how fast a model runs, and its last bits.

Scores of the same pairs differ in their last bits with the batch they are computed in and the
libraries. So batches are a function of one topic alone, and everything else is resolved once, when
a stage begins, into the numeric signature: under one signature the same bytes come out, whatever
was killed or resumed. On a CPU each batch is computed by one thread (`each`): the bits do not
depend on how many there are, and no thread waits for another in the middle of a layer.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pipeline.errors import PipelineError, shown
from pipeline.machine import cpus
from pipeline.models import int8, native
from pipeline.models.hardware import CPU_BF16, CPU_INT8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.models.native import Kernels
    from pipeline.models.scorer import Wishes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"  # of multiplications; hidden states are in the best that the CPU has
BUDGETS = {"cpu": 1024, "cuda": 65536}  # padded tokens of one forward pass
LEAST_BUDGET = 8
MOST_THREADS = 1024
SHARES = 8  # batches of a small topic, so that so many threads have some
LEAST_SHARE = 384  # tokens of a batch, below which multiplications become slow
ROWS = (1 / 4, 1 / 2, 3 / 4, 1)  # of a batch, as shares of those that fit its size
ROUND_TO = 8  # sequence lengths: few shapes, and rows that vector units like
# Below so many numbers bf16's errors no longer average out: with 384 nDCG@10 moves by 0.001 and
# less, with 128 by up to 0.005. So `auto` computes narrow models in float32, but where our own
# kernels go through whole layers and keep what is added exact: by less than 0.001 again.
WIDE = 256
VERSION = 8  # of the arithmetic in this folder; a new one makes finished parts stale


@dataclass(frozen=True)
class Engine:
    """What was resolved; kept as it is while a stage is resumed."""

    device: str  # cpu or cuda
    precision: str  # fp32, bf16, fp16 or int8
    threads: int
    token_budget: int  # padded tokens of one forward pass
    beside: str = ""  # with int8 the precision of everything else, fp32 or bf16

    @property
    def dtype(self) -> torch.dtype:
        """That of hidden states; the scoring head is always float32."""
        return DTYPES[self.floats]

    @property
    def floats(self) -> str:
        """The precision of everything that is not in int8."""
        return self.beside if self.precision == INT8 else self.precision

    @property
    def lays_out(self) -> bool:
        """Whether weights in floats are laid out for oneDNN: in bf16 on a CPU."""
        return self.device == "cpu" and self.floats == "bf16"

    @property
    def kernels(self) -> Kernels | None:
        """Our own beside oneDNN's, where weights are laid out for it."""
        return native.kernels() if self.lays_out else None

    def signature(self) -> dict[str, Any]:
        """Everything beside model and texts that decides the last bits of a score."""
        kernels = self.kernels
        return {
            "backend": "torch",
            "engine": VERSION,
            "device": self.device,
            "processor": _processor(self.device),
            "precision": self.precision,
            **({"floats": self.floats} if self.precision == INT8 else {}),
            **({"kernels": kernels.kind} if kernels is not None else {}),
            "token_budget": self.token_budget,
            "versions": {
                "torch": str(torch.__version__),  # with its build, which the metadata leave out
                "transformers": metadata.version("transformers"),
                "tokenizers": metadata.version("tokenizers"),
            },
        }

    def each[B, R](self, compute: Callable[[B], R], some: Iterable[B]) -> list[R]:
        """Compute batches, on a CPU as many at a time as there are threads, one thread each."""
        return self.begin(compute, some)()

    def begin[B, R](self, compute: Callable[[B], R], some: Iterable[B]) -> Callable[[], list[R]]:
        """Begin to compute batches; what is returned waits for them, and dropping it gives up."""
        some = list(some)
        if self.device == "cpu":
            pending = _Pending[R]()
            try:
                for batch in some:
                    pending.futures.append(_crew(self.threads).submit(compute, batch))
            except RuntimeError as error:
                if "shutdown" not in str(error):
                    raise
                torch.set_num_threads(1)  # the interpreter ends, and no other thread takes work
            else:
                return pending
        made = [compute(batch) for batch in some]
        return lambda: made


class _Pending[R]:
    """Batches that were begun; those that nobody waits for any more are not computed."""

    def __init__(self) -> None:
        self.futures: list[Future[R]] = []

    def __call__(self) -> list[R]:
        try:
            return [future.result() for future in self.futures]
        finally:  # after a fault nothing goes on beside what follows, nor holds its memory
            self.cancel()
            wait(self.futures)
            self.futures.clear()  # whose faults know the frames, and those the tensors

    def __del__(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Give up what has not begun to be computed."""
        for future in self.futures:
            future.cancel()


class Gathered[R, E]:
    """Results of several batches, ended together by the thread that brings the last of them.

    Args:
        count: of batches.
        end: takes their results, in order.
    """

    def __init__(self, count: int, end: Callable[[list[R]], E]) -> None:
        self._results: dict[int, R] = {}
        self._count, self._end, self._lock = count, end, Lock()

    def bring(self, place: int, result: R) -> E | None:
        """Take one result; give what `end` makes of all, to the one who brings the last."""
        with self._lock:
            self._results[place] = result
            if len(self._results) < self._count:
                return None
        return self._end([self._results.pop(place) for place in range(self._count)])


def resolve(
    wishes: Wishes,
    begun: Mapping[str, Any] | None = None,
    width: int = WIDE,
    *,
    in_int8: bool = False,
    by_layers: bool = False,
) -> Engine:
    """Settle what `auto` means here, staying with the signature of a begun stage where possible.

    Args:
        begun: the numeric signature under which parts were finished before.
        width: numbers of a hidden state of the model, if they are few.
        in_int8: whether models of this kind are computed in int8 where that is asked for.
        by_layers: whether our own kernels are for models of this kind.

    Raises:
        PipelineError: a device or precision that is not to be had here.
    """
    begun = begun or {}
    device = _device(wishes, begun)
    if begun.get("device") != device:
        begun = {}
    precision = str(begun.get("precision") if wishes.precision == "auto" else wishes.precision)
    threads = wishes.threads or cpus()
    budget = wishes.token_budget or _positive(begun.get("token_budget")) or BUDGETS[device]
    if not 1 <= threads <= MOST_THREADS or budget < LEAST_BUDGET:
        raise PipelineError(
            f"{threads} threads and a token budget of {budget} cannot be",
            f"use at least 1 thread and {LEAST_BUDGET} tokens, or leave them out",
        )
    best = _best_precision(device)
    by_layers = by_layers and wishes.precision != INT8
    if width < WIDE and not (by_layers and _stays_exact(device, width)):
        best = "fp32"
    if wishes.precision == INT8:
        _need_int8(device, of_kind=in_int8)
        kept = begun.get("floats")
        beside = kept if isinstance(kept, str) and kept in {"fp32", "bf16"} else best
        return Engine(device, precision, threads, budget, beside)
    return Engine(device, precision if precision in DTYPES else best, threads, budget)


@cache
def _crew(threads: int) -> ThreadPoolExecutor:
    # In torch the number of threads belongs to the thread that calls.
    return ThreadPoolExecutor(threads, "engine", torch.set_num_threads, (1,))


os.register_at_fork(after_in_child=_crew.cache_clear)  # threads stay behind


def _need_int8(device: str, *, of_kind: bool) -> None:
    if not of_kind:
        raise PipelineError(
            "precision int8 is for cross-encoders", "use --precision auto, bf16 or fp32"
        )
    if device != "cpu":
        raise PipelineError(
            "precision int8 is for CPUs", "add --device cpu, or use --precision auto for the GPU"
        )
    if not int8.works():
        raise PipelineError(
            "precision int8: this processor and torch have no fast multiplications for it "
            f"({', '.join(CPU_INT8)})",
            "use --precision auto; `pipeline doctor` says what was found",
        )


def _stays_exact(device: str, width: int) -> bool:
    """Whether what layers add stays in float32 in bf16, too: where our own kernels compute them."""
    own = native.kernels() if device == "cpu" else None
    return own is not None and own.can_norm(width) and own.can_multiply(width, width)


def _positive(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _device(wishes: Wishes, begun: Mapping[str, Any]) -> str:
    has_cuda = torch.cuda.is_available()
    if wishes.device == "auto":
        kept = begun.get("device")
        if kept == "cpu" or (kept == "cuda" and has_cuda):
            return str(kept)
        return "cuda" if has_cuda else "cpu"
    if wishes.device == "cuda" and not has_cuda:
        raise PipelineError(
            "device cuda: torch finds no usable GPU here",
            "use --device auto or cpu; `pipeline doctor` says what was found",
        )
    if wishes.device not in BUDGETS:
        raise PipelineError(f"device {shown(wishes.device)} is not known", "auto, cpu or cuda")
    return wishes.device


def _best_precision(device: str) -> str:
    if device == "cuda":
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without such instructions bf16 is emulated, and slower than float32.
        capabilities = torch.cpu.get_capabilities()
        capable = any(capabilities.get(name) for name in CPU_BF16)
    return "bf16" if capable else "fp32"


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


# ---------------------------------------------------------------- batches


def batches(
    lengths: Sequence[int] | NDArray[np.int64], budget: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Cut the sequences of one topic into batches of like length, longest first.

    Yields (places of the sequences, padded length). A batch holds at most `budget` padded tokens,
    and at least one sequence whatever its length.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = round_up(int(lengths[order[start]]))
        stop = start + max(1, budget // width)
        yield order[start:stop], width
        start = stop


def few_shapes(
    lengths: Sequence[int] | NDArray[np.int64], budget: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Cut the sequences of one topic into batches as `batches` does, but of few different shapes.

    For each shape oneDNN prepares its multiplications anew, which takes as long as several of them,
    and keeps the last thousand. So the rows of a batch are one of four numbers for each padded
    length and size; where there are fewer sequences, the last one is repeated to fill them up,
    which costs two per cent of a hundred sequences, and of a handful a seventh. A topic of few
    tokens gets smaller batches, so that several threads share them.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    falling = -lengths[order]
    wanted = even(lengths, budget)
    size = min(budget, next(size for size in _sizes() if size >= wanted))
    start = 0
    while start < len(order):
        width = round_up(-int(falling[start]))
        fitting = max(1, size // width)
        left = len(order) - start
        if left >= fitting:  # it may end where a shorter padded length begins
            same = int(np.searchsorted(falling, -(width - ROUND_TO), side="left")) - start
            left = max(same, -(-LEAST_SHARE // width))
        rows = next((rows for part in ROWS if (rows := round(fitting * part)) >= left), fitting)
        places = order[start : start + rows]
        yield np.pad(places, (0, rows - len(places)), mode="edge"), width
        start += rows


def _sizes() -> Iterator[int]:
    """Tokens of a batch: 384, 512, 768, 1,024, 1,536 and so on."""
    size = LEAST_SHARE
    while True:
        yield from (size, size // 3 * 4)
        size *= 2


def even(lengths: Sequence[int] | NDArray[np.int64], budget: int) -> int:
    """Lower a budget so that the batches of one topic share its tokens among several threads.

    There are `SHARES` of them or more, if that leaves `LEAST_SHARE` tokens for each.
    """
    return min(budget, max(LEAST_SHARE, -(-int(np.sum(lengths)) // SHARES)))


def round_up(length: int) -> int:
    """Round a length up to a multiple of `ROUND_TO`."""
    return -(-max(length, 1) // ROUND_TO) * ROUND_TO


class Batch(NamedTuple):
    """Padded token ids of several sequences on their device, each tensor (sequences, length)."""

    ids: torch.Tensor
    segments: torch.Tensor
    mask: torch.Tensor | None  # bool, true for tokens; None where nothing is padded


def within_memory[T](budget: int, compute: Callable[[int], T]) -> tuple[T, int]:
    """Compute one topic; out of memory starts it again under half the token budget.

    Returns what was computed and the budget that sufficed.

    Raises:
        PipelineError: not even one sequence at a time fits.
    """
    while True:
        try:
            return compute(budget), budget
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            problem = type(error).__name__
        # Outside the handler, whose traceback would keep the tensors of the failed try alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if budget <= LEAST_BUDGET:
            raise PipelineError(
                f"out of memory over a single passage ({problem})",
                "use a smaller model, fewer --max-tokens, or another device",
            )
        budget //= 2


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator: " in text or "out of memory" in text
