"""Without padding the scores are the same; where a kernel fails or errs, padding stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.docstrings import passages
from pipeline.models import bert, flat
from pipeline.models.cross_encoder import AHEAD, CrossEncoder
from pipeline.models.flat import flat_batches
from pipeline.models.folder import locate
from pipeline.models.scorer import Limits, Wishes

EXACT = Wishes(device="cpu", precision="fp32", threads=1)
QUERY = "read a csv file"
PASSAGES = [
    "the header row", "a csv file has rows.", "", "bread in the sun", "reading files " * 9,
    "x " * 40, "the sun", "csv csv", "[header] row, file!", "z",
]  # fmt: skip


@pytest.fixture
def without_padding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CrossEncoder]:
    """Load models that compute without padding on the CPU, by the plain attention or another."""

    def load(
        folder: Path, wishes: Wishes = EXACT, kernel: flat.Kernel = flat.one_by_one
    ) -> CrossEncoder:
        with monkeypatch.context() as patch:
            patch.setattr(flat, "kernel", lambda engine: kernel)
            return CrossEncoder(folder, wishes, Limits())

    return load


def test_the_shipped_student_scores_alike_with_and_without_padding(
    without_padding: Callable[..., CrossEncoder],
) -> None:
    """In float32 to 1e-5, over real passages of many lengths, some of them cut."""
    folder = locate("small")
    texts = [text for _, text in passages()][::400]
    texts.append(" ".join(texts))
    padded = CrossEncoder(folder, EXACT, Limits()).score(QUERY, texts)

    model = without_padding(folder)
    result = model.score(QUERY, texts)

    assert model.signature["forward"] == "flattened"
    np.testing.assert_allclose(result.scores, padded.scores, atol=1e-5)
    assert padded.scores.std() > 0.1
    assert result.passages_cut == padded.passages_cut >= 1
    assert (result.tokens, result.padding) == (padded.tokens, 0)


@pytest.mark.parametrize(
    ("kind", "labels"), [("bert", 1), ("bert", 2), ("electra", 1), ("roberta", 1)]
)
def test_every_kind_scores_alike(
    tmp_path: Path, without_padding: Callable[..., CrossEncoder], kind: str, labels: int
) -> None:
    """Segments, positions that begin elsewhere, projected embeddings, two logits; small batches."""
    folder = tiny_models.make(tmp_path / kind, kind, labels)
    padded = CrossEncoder(folder, EXACT, Limits())

    for budget in (0, 64, 8):
        wishes = Wishes(device="cpu", precision="fp32", threads=1, token_budget=budget)
        model = without_padding(folder, wishes)

        assert (padded.signature["forward"], model.signature["forward"]) == (
            "first token", "flattened",
        )  # fmt: skip
        np.testing.assert_allclose(
            model.score(QUERY, PASSAGES).scores, padded.score(QUERY, PASSAGES).scores, atol=1e-5
        )


def test_a_topic_gets_the_same_bytes_whatever_was_launched_before(
    tiny_model: Callable[..., Path], without_padding: Callable[..., CrossEncoder]
) -> None:
    """Batches are a function of one topic alone, in whatever order topics come."""
    model = without_padding(tiny_model())
    alone = model.score(QUERY, PASSAGES).scores

    first, second = model.launch("bread", PASSAGES[:4]), model.launch(QUERY, PASSAGES)
    again, other = second().scores, first().scores

    assert again.tobytes() == alone.tobytes()
    assert other.tobytes() == model.score("bread", PASSAGES[:4]).scores.tobytes()
    assert model.ahead == AHEAD
    assert CrossEncoder(tiny_model(), EXACT, Limits()).ahead == 1
    assert model.launch(QUERY, [])().scores.shape == (0,)


def _wrong(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.zeros_like(query)


def _failing(*_: Any) -> torch.Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def _unscaled(query: torch.Tensor, *others: Any) -> torch.Tensor:
    return flat.one_by_one(query * query.shape[-1] ** 0.5, *others)


def _borderless(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> torch.Tensor:
    ends = torch.tensor([0, len(query)]), torch.tensor([0, len(key)])
    return flat.one_by_one(query, key, value, *ends, len(query), len(key))


def _of_the_first_wrong(query: torch.Tensor, key: torch.Tensor, *others: Any) -> torch.Tensor:
    right = flat.one_by_one(query, key, *others)
    return right if len(query) == len(key) else right.flip(0)


@pytest.mark.parametrize("kernel", [_wrong, _failing, _unscaled, _borderless, _of_the_first_wrong])
def test_a_kernel_that_errs_or_fails_is_not_used(
    tiny_model: Callable[..., Path],
    without_padding: Callable[..., CrossEncoder],
    kernel: flat.Kernel,
) -> None:
    """It is tried when the model is loaded; sequences are padded where it is of no use."""
    padded = CrossEncoder(tiny_model(), EXACT, Limits())

    model = without_padding(tiny_model(), kernel=kernel)

    assert model.signature == padded.signature
    expected = padded.score(QUERY, PASSAGES).scores
    assert model.score(QUERY, PASSAGES).scores.tobytes() == expected.tobytes()


def test_out_of_memory_starts_the_topic_again_with_smaller_batches(
    tiny_model: Callable[..., Path],
    without_padding: Callable[..., CrossEncoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with padding: the budget is halved until it fits, and told."""
    model = without_padding(tiny_model())
    expected = model.score(QUERY, PASSAGES).scores
    real = bert.FirstToken.flat

    def small_memory(base: Any, batch: Any) -> torch.Tensor:
        if batch.ids.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(base, batch)

    monkeypatch.setattr(bert.FirstToken, "flat", small_memory)
    result = model.score(QUERY, PASSAGES)

    assert result.lowered_budget == 64
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)


def test_no_kernel_on_a_cpu(tiny_model: Callable[..., Path]) -> None:
    """There padding is little, the weights are packed, and the bytes are those of always."""
    wishes = Wishes(device="cpu", precision="bf16", threads=1)
    for chosen in (EXACT, wishes):
        engine = CrossEncoder(tiny_model(), chosen, Limits()).engine
        assert flat.kernel(engine) is None


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(8, 200)
)  # fmt: skip
def test_batches_hold_their_budget(lengths: list[int], budget: int) -> None:
    """Every sequence is in one of them, longest first; only one alone may be over the budget."""
    batches = list(flat_batches(np.array(lengths), budget))

    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    sizes = [lengths[place] for place in order]
    assert sizes == sorted(lengths, reverse=True)
    for places, following in zip(batches, [*batches[1:], None], strict=True):
        total = sum(lengths[place] for place in places)
        assert total <= budget or len(places) == 1
        if following is not None:
            assert total + lengths[following[0]] > budget


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu_scores_are_near_those_of_the_cpu(precision: Any) -> None:
    """By torch's own attention over sequences of any length; and the same bytes again."""
    texts = [text for _, text in passages()][::20]
    exact = CrossEncoder(locate("small"), EXACT, Limits()).score(QUERY, texts).scores

    model = CrossEncoder(locate("small"), Wishes(device="cuda", precision=precision), Limits())
    scores = model.score(QUERY, texts).scores

    assert model.signature["forward"] == "flattened"
    assert np.abs(scores - exact).max() < 0.05 * (1 + np.abs(exact).max())
    assert np.corrcoef(scores, exact)[0, 1] > 0.999
    assert scores.tobytes() == model.score(QUERY, texts).scores.tobytes()
