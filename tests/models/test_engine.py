"""Devices, precisions, batches, memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.models import engine, native
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.engine import Gathered, batches, few_shapes, resolve, within_memory
from pipeline.models.folder import locate
from pipeline.models.reranker import Reranker
from pipeline.models.scorer import Limits, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


LADDER = (384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
SOME_LENGTHS = st.lists(st.integers(1, 600), max_size=80)
A_BUDGET = st.sampled_from([8, 64, 300, 1024, 65536])


@pytest.mark.parametrize("cut", [batches, few_shapes])
@given(lengths=SOME_LENGTHS, budget=A_BUDGET)
def test_batches_hold_every_sequence_once_within_the_budget(
    cut: Callable[[list[int], int], Iterator[tuple[NDArray[np.int64], int]]],
    lengths: list[int],
    budget: int,
) -> None:
    """Longest first, padded to a multiple of 8, and no more padded tokens than the budget.

    Where there are fewer sequences than rows, the last one is repeated.
    """
    made = list(cut(lengths, budget))

    seen = [place for places, _ in made for place in dict.fromkeys(places.tolist())]
    assert sorted(seen) == list(range(len(lengths)))
    assert [lengths[place] for place in seen] == sorted(lengths, reverse=True)
    for places, width in made:
        assert width % 8 == 0
        assert max(lengths[place] for place in places) <= width
        assert width * len(places) <= budget or len(places) == 1
        once = len(dict.fromkeys(places.tolist()))
        assert set(places[once:].tolist()) <= {places[once - 1]}


@pytest.mark.parametrize("budget", [1024, 4096, 16384])
def test_batches_of_many_topics_have_few_shapes(budget: int) -> None:
    """Multiplications are prepared once for a shape, and that costs as much as several of them."""
    draw = np.random.default_rng(0)
    topics = [draw.integers(20, 190, draw.integers(1, 300)) for _ in range(300)]

    rows: dict[tuple[int, int], set[int]] = {}
    for topic in topics:
        made = [(len(places), width) for places, width in few_shapes(topic, budget)]
        size = engine.even(topic, budget)
        for count, width in made:
            rows.setdefault((next(s for s in LADDER if s >= size), width), set()).add(count)

    assert max(map(len, rows.values())) == 4


def test_little_is_filled_up() -> None:
    """What is computed over and above the tokens, padding included, is a small share of them."""
    draw = np.random.default_rng(0)
    for count, most in ((5, 1.25), (20, 1.2), (100, 1.1), (1000, 1.05)):
        topics = [draw.integers(40, 190, count) for _ in range(50)]
        computed = [len(p) * width for topic in topics for p, width in few_shapes(topic, 1024)]
        assert sum(computed) < most * sum(int(topic.sum()) for topic in topics)


def test_a_small_topic_has_small_batches_whatever_the_budget() -> None:
    """So that several threads share it, and hardly anything is filled up."""
    for budget in (1024, 4096, 16384):
        assert [(len(p), width) for p, width in few_shapes([32], budget)] == [(3, 32)]
        assert len(list(few_shapes([100] * 100, budget))) >= engine.SHARES


def test_sequences_of_equal_length_keep_their_order() -> None:
    """Batches are a function of the topic: equal lengths are not shuffled."""
    (places, _), *_ = batches([5] * 30, 1024)

    assert places.tolist() == list(range(30))


def test_auto_means_bf16_only_where_the_hardware_is_built_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Emulated bf16 is slower than float32, and float32 is exact."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for able, expected in (({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert resolve(Wishes()).precision == expected
        assert resolve(Wishes(precision="fp32")).precision == "fp32"


def test_a_begun_stage_keeps_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was settled at the beginning holds for whatever is left to us, on the same device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    begun = {"device": "cpu", "precision": "fp32", "token_budget": 640}

    kept = resolve(Wishes(), begun)
    asked = resolve(Wishes(precision="bf16", threads=2, token_budget=512), begun)
    elsewhere = resolve(Wishes(), begun | {"device": "cuda"})

    assert (kept.precision, kept.token_budget) == ("fp32", 640)
    assert (asked.precision, asked.threads, asked.token_budget) == ("bf16", 2, 512)
    assert (elsewhere.device, elsewhere.token_budget) == ("cpu", engine.BUDGETS["cpu"])


@pytest.mark.parametrize(
    "begun",
    [
        {"device": "cpu", "precision": "int3", "token_budget": "many"},
        {"device": 7},
        {"device": "cpu", "token_budget": 0.5},
    ],
)
def test_a_damaged_signature_is_no_trap(begun: dict[str, object]) -> None:
    """A note that somebody edited is as good as none."""
    resolved = resolve(Wishes(device="cpu"), begun)

    assert resolved.precision in engine.DTYPES
    assert resolved.threads >= 1
    assert resolved.token_budget == engine.BUDGETS["cpu"]


def test_a_gpu_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device cuda` without one fails; `auto` does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(PipelineError, match="no usable GPU"):
        resolve(Wishes(device="cuda"))
    assert resolve(Wishes()).device == "cpu"


@pytest.mark.parametrize("wishes", [Wishes(token_budget=7), Wishes(threads=5000)])
def test_impossible_wishes_are_refused(wishes: Wishes) -> None:
    """No forward pass has less than eight tokens, no machine five thousand threads."""
    with pytest.raises(PipelineError, match="cannot be"):
        resolve(wishes)


def test_an_engine_never_asks_for_a_device_that_is_unknown() -> None:
    """From Python, where types are not checked."""
    with pytest.raises(PipelineError, match="'tpu'"):
        resolve(Wishes(device="tpu"))  # type: ignore[arg-type]


def test_the_signature_names_everything_that_decides_last_bits() -> None:
    """Device, processor, precision, budget and the versions of three libraries; not threads."""
    signature = resolve(Wishes(device="cpu", precision="fp32", threads=2)).signature()

    assert signature["device"] == "cpu"
    assert "threads" not in signature
    assert set(signature["versions"]) == {"torch", "transformers", "tokenizers"}
    assert signature["versions"]["torch"] == torch.__version__
    assert {"backend", "engine", "processor", "precision", "token_budget"} <= signature.keys()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate"),
    ],
)
def test_lack_of_memory_halves_the_budget(error: Exception) -> None:
    """However torch and Python say it; what fits in the end is told."""
    tried = []

    def compute(budget: int) -> np.ndarray:
        tried.append(budget)
        if budget > 200:
            raise error
        return np.ones(3)

    _, budget = within_memory(1024, compute)

    assert tried == [1024, 512, 256, 128]
    assert budget == 128


def test_small_topics_are_shared_among_threads() -> None:
    """Eight batches or more, none of them tiny, none above the budget."""
    assert engine.even([67] * 100, 1024) == 838
    assert engine.even([67] * 1000, 1024) == 1024
    assert engine.even([20] * 10, 1024) == engine.LEAST_SHARE
    assert engine.even([20] * 10, 64) == 64
    assert engine.even([], 64) == 64


def test_a_batch_ends_where_shorter_sequences_begin() -> None:
    """If it has enough tokens by then; so little is padded, and hardly anything filled up."""
    lengths = [40] * 12 + [31] * 12 + [8] * 3
    made = [(len(places), width) for places, width in few_shapes(lengths * 8, 1024)]
    assert made == [(25, 40)] * 3 + [(25, 40)] + [(32, 32)] * 3 + [(32, 8)]


def test_what_nobody_waits_for_is_not_computed() -> None:
    """After Ctrl-C a program need not finish the topics that were begun."""
    one = resolve(Wishes(device="cpu", precision="fp32", threads=1))
    begun, hold, done = threading.Event(), threading.Event(), []

    def compute(batch: int) -> None:
        begun.set()
        hold.wait(10)
        done.append(batch)

    pending = one.begin(compute, range(5))
    assert begun.wait(10)
    del pending
    hold.set()
    one.each(done.append, ["next"])
    assert done == [0, "next"]


AFTER_FORK = """
import os
from pipeline.models.engine import resolve
from pipeline.models.scorer import Limits, Wishes
engine = resolve(Wishes(device="cpu", precision="fp32", threads=2))
assert engine.each(abs, [-1, -2]) == [1, 2]
child = os.fork()
if child == 0:
    os._exit(0 if engine.each(abs, [-3]) == [3] else 1)
assert os.waitpid(child, 0)[1] == 0
"""
AFTER_THE_END = """
import threading, time
from pipeline.models.engine import resolve
from pipeline.models.scorer import Limits, Wishes
engine = resolve(Wishes(device="cpu", precision="fp32", threads=2))
def late():
    threading.main_thread().join()
    time.sleep(0.2)
    print(engine.each(abs, [-1, -2]))
threading.Thread(target=late).start()
"""


@pytest.mark.parametrize("script", [AFTER_FORK, AFTER_THE_END], ids=["fork", "end"])
def test_it_computes_in_forked_children_and_after_the_main_thread(script: str) -> None:
    """Servers fork, and leave their work to threads."""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert script is AFTER_FORK or done.stdout == "[1, 2]\n"


def test_a_fault_in_one_batch_ends_the_others_first() -> None:
    """Nothing goes on beside the next try, nor holds its memory."""
    two = resolve(Wishes(device="cpu", precision="fp32", threads=2))
    done: list[float] = []

    def compute(seconds: float) -> None:
        if not seconds:
            raise ValueError("no")
        time.sleep(seconds)
        done.append(seconds)

    with pytest.raises(ValueError, match="no"):
        two.each(compute, [0.3, 0.0, 0.2, 0.2, 0.2, 0.2, 0.2])
    known = list(done)
    time.sleep(0.3)
    assert done == known


def test_narrow_models_are_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 would rank otherwise; who asks for it, or began with it, gets it."""
    monkeypatch.setattr(engine, "_best_precision", lambda device: "bf16")
    monkeypatch.setattr(native, "kernels", lambda: None)
    begun = resolve(Wishes(device="cpu", precision="bf16")).signature()

    def made(name: str, wishes: Wishes, begun: dict[str, Any] | None = None) -> object:
        return CrossEncoder(locate(name), wishes, Limits(), begun).signature["precision"]

    assert made("small", Wishes(device="cpu")) == "bf16"
    assert made("tiny", Wishes(device="cpu")) == "fp32"
    assert made("tiny", Wishes(device="cpu", precision="bf16")) == "bf16"
    assert made("tiny", Wishes(device="cpu"), begun) == "bf16"


@pytest.mark.skipif(
    not ((own := native.kernels()) and own.can_multiply(128, 128)), reason="wants AMX"
)
def test_narrow_models_are_in_bf16_where_sums_stay_exact() -> None:
    """Our own kernels keep them so, in models that they are for; int8 keeps what it had."""
    assert Reranker.load("tiny", device="cpu").signature["precision"] == "bf16"
    assert resolve(Wishes(device="cpu"), None, 128, by_layers=True).precision == "bf16"
    assert resolve(Wishes(device="cpu"), None, 120, by_layers=True).precision == "fp32"
    assert resolve(Wishes(device="cpu"), None, 128).precision == "fp32"
    in_int8 = Wishes(device="cpu", precision="int8")
    assert resolve(in_int8, None, 128, in_int8=True, by_layers=True).floats == "fp32"


def test_whoever_brings_the_last_result_ends_all_of_them() -> None:
    """Once, and in the order of the batches, whichever is brought last."""
    gathered = Gathered[int, list[int]](3, list)
    assert gathered.bring(2, 12) is None
    assert gathered.bring(0, 10) is None
    assert gathered.bring(1, 11) == [10, 11, 12]


def test_results_of_many_threads_are_ended_once() -> None:
    """By one of them."""
    for _ in range(50):
        gathered = Gathered[int, list[int]](40, list)
        with ThreadPoolExecutor(8) as crew:
            made = list(crew.map(lambda place: gathered.bring(place, -place), range(40)))  # noqa: B023
        assert [some for some in made if some is not None] == [[-place for place in range(40)]]
