"""Multiplications in 8 bits: near what floats compute, and refused where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, linear

from pipeline.errors import PipelineError
from pipeline.models import int8
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.engine import DTYPES, resolve
from pipeline.models.folder import locate
from pipeline.models.reranker import Reranker
from pipeline.models.scorer import Limits, Wishes
from tests import tiny_models

if TYPE_CHECKING:
    from pathlib import Path

able = pytest.mark.skipif(
    not int8.works(), reason="this processor has no fast multiplications in 8 bits"
)

QUERY = "read the header row of a csv file"
PASSAGES = ["the csv file", "bread and sun " * 30, "", "a header row " * 9, "rows of files " * 70]


def _error(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float((made.float() - expected).abs().mean() / expected.abs().mean())


@able
def test_a_loud_channel_leaves_the_others_their_bits() -> None:
    """One channel a hundred times as loud: one scale for all would round the others to nothing."""
    torch.manual_seed(1)
    x, weight, bias = torch.randn(40, 96), torch.randn(64, 96) * 0.1, torch.randn(64)
    x[:, 7] *= 100
    weight[:, 7] /= 100
    largest = x.abs().amax(dim=0)
    expected = linear(x, weight, bias)

    made = int8.Linear(weight, bias, largest, torch.float32)(x)

    step = float(largest.max()) / int8.LEVELS
    in_one_scale = linear((x / step).round() * step, weight, bias)
    assert _error(made, expected) < 0.02
    assert _error(in_one_scale, expected) > 0.1


@able
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_multiplications_around_gelu_are_near_those_in_floats(dtype: torch.dtype) -> None:
    """With inner neurons a hundred times as loud as the rest, as trained models have them."""
    torch.manual_seed(2)
    x = torch.randn(50, 64)
    weights = torch.randn(256, 64) * 0.2, torch.randn(64, 256) * 0.1
    biases = torch.randn(256) * 0.1, torch.randn(64)
    weights[0][[3, 99, 200]] *= 30
    inner = gelu(linear(x, weights[0], biases[0]))
    ranges = int8.Ranges(*(t.abs().amax(dim=0) for t in (x, x, x, inner)))
    expected = linear(inner, weights[1], biases[1]) + x

    def plain(weight: torch.Tensor, bias: torch.Tensor) -> int8.Plain:
        return int8.Plain(weight.to(dtype), bias.to(dtype))

    made = int8.Between(weights, biases, ranges, plain).added(x.to(dtype), x.to(dtype))

    assert made.dtype == dtype
    assert _error(made, expected) < 0.02


@able
def test_what_is_louder_than_ever_seen_is_cut_off() -> None:
    """Numbers beyond the range do not come round at its other end."""
    weight = torch.eye(32)
    layer = int8.Linear(weight, torch.zeros(32), torch.ones(32), torch.float32)

    made = layer(torch.tensor([[1000.0, -1000.0] * 16]))

    assert torch.allclose(made.abs(), torch.full((1, 32), int8.HEADROOM), rtol=0.02)
    assert bool((made[0, ::2] > 0).all())
    assert bool((made[0, 1::2] < 0).all())


@able
@pytest.mark.parametrize(("kind", "labels"), [("bert", 1), ("bert", 2), ("electra", 1)])
def test_models_score_nearly_alike(tmp_path: Path, kind: str, labels: int) -> None:
    """Whatever the lengths, padded or not; the signature says what was computed in what."""
    folder = tiny_models.make(tmp_path / "model", kind, labels)
    exact = Reranker.load(str(folder), precision="fp32").score(QUERY, PASSAGES)

    reranker = Reranker.load(str(folder), precision="int8")
    made = reranker.score(QUERY, PASSAGES)

    assert np.abs(made - exact).max() < 0.2 * max(1.0, float(np.abs(exact).max()))
    for floats in ("fp32", "bf16"):  # so it was int8, and not what it would be without
        in_floats = Reranker.load(str(folder), precision=floats).score(QUERY, PASSAGES)  # type: ignore[arg-type]
        assert not np.array_equal(made, in_floats)
    assert reranker.signature["precision"] == "int8"
    assert reranker.signature["floats"] in {"bf16", "fp32"}
    assert reranker.signature["forward"] == "first token"


@able
def test_a_score_does_not_hang_on_what_stands_beside_it_nor_on_threads() -> None:
    """Ranges are settled when the model is loaded, and come out the same each time."""
    first = Reranker.load("small", precision="int8", threads=1)
    again = Reranker.load("small", precision="int8", threads=2)
    passages = [f"passage {n} about files and their rows" for n in range(40)]

    scores = first.score(QUERY, passages)

    assert np.array_equal(scores, again.score(QUERY, passages))
    loud = ["%$ \u20ac \u4e2d " * 12] * 5
    beside = first.score(QUERY, [*passages, *loud])[:40]
    assert np.allclose(beside, scores, atol=1e-3)


@able
def test_all_layers_but_the_last_are_in_int8() -> None:
    """Attention's projections and mixture, and what stands between GELU."""
    crossed = CrossEncoder(locate("small"), Wishes(device="cpu", precision="int8"), Limits())
    encoder: Any = crossed._forward._short

    for layer in encoder._layers:
        assert isinstance(layer._projections, int8.Linear)
        assert isinstance(layer._mix, int8.Linear)
        assert isinstance(layer._between, int8.Between)
    assert not isinstance(encoder._last._mix, int8.Linear)


def test_last_bits_of_a_range_change_nothing() -> None:
    """Processors differ in them; roundings everywhere would follow."""
    torch.manual_seed(3)
    weight, largest = torch.randn(48, 64), torch.rand(64) * 5

    first, again = (
        int8.input_scaling(weight, int8.coarse(some)) for some in (largest, largest * (1 + 1e-7))
    )

    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]


@able
@pytest.mark.parametrize(
    ("layers", "inner", "positions"), [(2, 16, 512), (2, 33, 512), (3, 64, 48)]
)
def test_small_shapes_are_computed(tmp_path: Path, layers: int, inner: int, positions: int) -> None:
    """Few inner neurons, and fewer positions than ranges are usually seen on."""
    folder = tiny_models.make(
        tmp_path / "model", positions=positions, num_hidden_layers=layers, intermediate_size=inner
    )
    passages = ["the csv file", "", "a row"]

    exact = Reranker.load(str(folder), precision="fp32").score(QUERY[:8], passages)
    made = Reranker.load(str(folder), precision="int8").score(QUERY[:8], passages)

    assert np.abs(made - exact).max() < 0.2 * max(1.0, float(np.abs(exact).max()))


@able
def test_a_model_of_one_layer_is_refused(tmp_path: Path) -> None:
    """Its only layer is the last, which stays in floats: int8 would be a word."""
    folder = tiny_models.make(tmp_path / "model", num_hidden_layers=1)

    with pytest.raises(PipelineError, match="int8: this model cannot be computed so"):
        Reranker.load(str(folder), precision="int8")


@able
def test_a_begun_stage_keeps_the_precision_of_the_rest() -> None:
    """What another machine began in float32 goes on so where there is bf16."""
    wishes = Wishes(device="cpu", precision="int8")
    for floats in ("fp32", "bf16"):
        begun = {"device": "cpu", "precision": "int8", "floats": floats}

        engine = resolve(wishes, begun, in_int8=True)

        assert engine.signature()["floats"] == floats
        assert engine.dtype == DTYPES[floats]
    assert resolve(wishes, width=128, in_int8=True).floats == "fp32"


@able
def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """No model is half in int8 without anybody being told."""
    folder = tiny_models.make(tmp_path / "model", "modernbert")

    with pytest.raises(PipelineError, match="int8: this model cannot be computed so"):
        Reranker.load(str(folder), precision="int8")


@able
def test_two_towers_are_refused(tmp_path: Path) -> None:
    """int8 is for cross-encoders; vectors are kept in int8 by `encode --dtype`."""
    tiny_models.make_twin(tmp_path)

    with pytest.raises(PipelineError, match="int8 is for cross-encoders"):
        Reranker.load(str(tmp_path), precision="int8")


def test_without_the_instructions_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older processors would add products in 16 bits, which overflow."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    int8.works.cache_clear()
    try:
        with pytest.raises(PipelineError, match="no fast multiplications"):
            resolve(Wishes(device="cpu", precision="int8"), in_int8=True)
    finally:
        int8.works.cache_clear()


def test_auto_never_means_int8() -> None:
    """It moves rankings by more than `auto` may."""
    assert resolve(Wishes(device="cpu"), in_int8=True).precision in {"bf16", "fp32"}
