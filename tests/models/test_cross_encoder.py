"""Cross-encoders score as transformers itself does, in batches that depend on one topic alone."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.models import bert, engine, linear, native
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.scorer import Limits, Wishes

EXACT = Wishes(device="cpu", precision="fp32", threads=1)
QUERY = "read a csv file"
PASSAGES = [
    "the header row", "a csv file has rows.", "", "bread in the sun", "reading files " * 9,
    "x " * 40, "the sun", "csv csv", "[header] row, file!", "z",
]  # fmt: skip


def own_logits(folder: Path, query: str, passages: list[str]) -> NDArray[np.float32]:
    """What transformers makes of one pair after the other."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.inference_mode():
        for passage in passages:
            pair = tokenizer([query], [passage], truncation="only_second", return_tensors="pt")
            if "token_type_ids" not in inspect.signature(model.forward).parameters:
                pair.pop("token_type_ids", None)
            rows.append(model(**pair).logits[0].numpy())
    return np.array(rows)


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_scores_are_the_models_own_logits(tiny_model: Callable[..., Path], kind: str) -> None:
    """Of every kind, padded and sorted in batches: what transformers says of each pair alone."""
    folder = tiny_model(kind)

    result = CrossEncoder(folder, EXACT, Limits()).score(QUERY, PASSAGES)

    expected = own_logits(folder, QUERY, PASSAGES)[:, 0]
    assert expected.std() > 0.01  # random weights must tell passages apart, or this says nothing
    np.testing.assert_allclose(result.scores, expected, atol=2e-5)
    assert result.scores.dtype == np.float32


@pytest.mark.parametrize("positive", [None, 0, 1])
def test_two_logits_make_one_score(tiny_model: Callable[..., Path], positive: int | None) -> None:
    """The positive logit less the other; the second is the positive one unless told otherwise."""
    folder = tiny_model("bert", 2)
    logits = own_logits(folder, QUERY, PASSAGES)
    expected = logits[:, 0] - logits[:, 1] if positive == 0 else logits[:, 1] - logits[:, 0]

    result = CrossEncoder(folder, EXACT, Limits(positive=positive)).score(QUERY, PASSAGES)

    np.testing.assert_allclose(result.scores, expected, atol=2e-5)


def test_a_classifier_of_three_classes_is_refused(tiny_model: Callable[..., Path]) -> None:
    """Three logits are no score."""
    with pytest.raises(PipelineError, match="3 classes"):
        CrossEncoder(tiny_model("bert", 3), EXACT, Limits())


@pytest.mark.parametrize(
    ("kind", "forward"),
    [("bert", "first token"), ("electra", "first token"), ("modernbert", "whole")],
)
def test_the_shorter_forward_pass_is_used_where_it_can_be(
    tiny_model: Callable[..., Path], kind: str, forward: str
) -> None:
    """The signature tells which pass made the scores, for the two differ in last bits."""
    assert CrossEncoder(tiny_model(kind), EXACT, Limits()).signature["forward"] == forward


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_shorter_pass_that_disagrees_is_not_used(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Should transformers build BERT otherwise one day, its own pass is taken, not a wrong one."""
    right = bert.FirstToken.hidden

    def spoilt(base: Any, batch: Any) -> torch.Tensor:
        if fault == "raises":
            raise AttributeError("no such layer")
        return right(base, batch) + 0.1

    monkeypatch.setattr(bert.FirstToken, "hidden", spoilt)
    model = CrossEncoder(tiny_model(), EXACT, Limits())

    assert model.signature["forward"] == "whole"
    expected = own_logits(tiny_model(), QUERY, PASSAGES)[:, 0]
    np.testing.assert_allclose(model.score(QUERY, PASSAGES).scores, expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "electra", "modernbert"])
def test_the_head_is_float32_whatever_the_encoder(
    tiny_model: Callable[..., Path], kind: str
) -> None:
    """A thousand passages keep a thousand scores in bf16; bf16 logits would keep a fraction."""
    draw = np.random.default_rng(0)
    words = [*tiny_models.WORDS[:8], *"abcdefghij"]
    passages = [" ".join(draw.choice(words, draw.integers(3, 30))) for _ in range(1000)]
    passages = list(dict.fromkeys(passages))
    wishes = Wishes(device="cpu", precision="bf16", threads=1)

    scores = CrossEncoder(tiny_model(kind), wishes, Limits()).score(QUERY, passages).scores

    rounded = torch.from_numpy(scores).bfloat16().unique()
    assert len(np.unique(scores)) > 0.97 * len(passages)
    assert len(rounded) < 0.7 * len(passages)
    exact = CrossEncoder(tiny_model(kind), EXACT, Limits()).score(QUERY, passages).scores
    assert np.corrcoef(scores, exact)[0, 1] > 0.98


@pytest.mark.parametrize("by", ["our kernels", "oneDNN's layout", "plain multiplications"])
def test_bf16_stays_near_float32(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Whatever multiplies, it is the same model, on short sequences and on long ones."""
    if by != "our kernels":
        monkeypatch.setattr(native, "kernels", lambda: None)
    if by == "plain multiplications":
        monkeypatch.setattr(linear, "_packing_works", lambda: False)
    passages = [*PASSAGES, "the sun and a row " * 40]
    exact = CrossEncoder(tiny_model(), EXACT, Limits()).score(QUERY, passages).scores
    wishes = Wishes(device="cpu", precision="bf16", threads=1)

    scores = CrossEncoder(tiny_model(), wishes, Limits()).score(QUERY, passages).scores

    assert np.abs(scores - exact).max() < 0.1 * exact.std() + 0.05
    assert np.corrcoef(scores, exact)[0, 1] > 0.99


def test_another_activation_is_not_taken_for_gelu(own_model: Path) -> None:
    """A BERT with ReLU keeps its ReLU."""
    config = json.loads((own_model / "config.json").read_text())
    tiny_models.write(own_model / "config.json", config | {"hidden_act": "relu"})

    model = CrossEncoder(own_model, EXACT, Limits())

    assert model.signature["forward"] == "first token"
    expected = own_logits(own_model, QUERY, PASSAGES)[:, 0]
    np.testing.assert_allclose(model.score(QUERY, PASSAGES).scores, expected, atol=2e-5)


def test_the_same_topic_gets_the_same_bytes(tiny_model: Callable[..., Path]) -> None:
    """Whatever was scored before, and in a model loaded anew, one topic's scores are the same."""
    first = CrossEncoder(tiny_model(), EXACT, Limits())
    alone = first.score(QUERY, PASSAGES).scores
    first.score("bread", ["the sun"] * 7)
    again = first.score(QUERY, PASSAGES).scores
    anew = CrossEncoder(tiny_model(), EXACT, Limits()).score(QUERY, PASSAGES).scores

    assert alone.tobytes() == again.tobytes() == anew.tobytes()


def test_tokens_and_padding_are_counted(tiny_model: Callable[..., Path]) -> None:
    """Tokens are those of the pairs as transformers makes them; the rest of a batch is padding."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model())
    lengths = [len(one) for one in tokenizer([QUERY] * len(PASSAGES), PASSAGES).input_ids]
    wishes = Wishes(device="cpu", precision="fp32", threads=1, token_budget=128)

    result = CrossEncoder(tiny_model(), wishes, Limits()).score(QUERY, PASSAGES)

    computed = sum(len(places) * width for places, width in engine.few_shapes(lengths, 128))
    assert (result.tokens, result.padding) == (sum(lengths), computed - sum(lengths))
    assert result.padding > 0


def test_no_passages_no_scores(tiny_model: Callable[..., Path]) -> None:
    """An empty list is answered by an empty array."""
    assert CrossEncoder(tiny_model(), EXACT, Limits()).score(QUERY, []).scores.shape == (0,)


def test_long_texts_are_cut_and_counted(tiny_model: Callable[..., Path]) -> None:
    """A query is capped, a passage takes what is left, and both are counted."""
    model = CrossEncoder(tiny_model(), EXACT, Limits(max_query_tokens=5, max_tokens=20))
    fits, cut = "a b c d e", "a b c d e f"
    room = 20 - 3 - 5

    whole = model.score(fits, [" ".join("x" * room)])
    both = model.score(cut, [" ".join("x" * room), " ".join("x" * (room + 1)), "y"])

    assert (whole.query_cut, whole.passages_cut) == (False, 0)
    assert (both.query_cut, both.passages_cut) == (True, 1)
    assert both.scores[0] == pytest.approx(whole.scores[0], abs=1e-5)  # the cap cut off the f
    assert both.scores[1] == pytest.approx(both.scores[0], abs=1e-5)


def test_a_long_query_leaves_room_for_the_passage(tiny_model: Callable[..., Path]) -> None:
    """With the default cap a query of a thousand words does not push the passage out."""
    scores = CrossEncoder(tiny_model(), EXACT, Limits()).score("row " * 1000, PASSAGES).scores

    assert len(np.unique(scores)) == len(PASSAGES)


def test_an_odd_number_of_positions_is_enough(tmp_path: Path) -> None:
    """Sequences are padded to multiples of eight, and 63 positions hold 56 tokens so."""
    folder = tiny_models.make(tmp_path / "model", positions=63)

    result = CrossEncoder(folder, EXACT, Limits()).score("a b c", ["x " * 1000])

    expected = own_logits(folder, "a b c", ["x " * (56 - 3 - 3)])[:, 0]
    assert result.passages_cut == 1
    np.testing.assert_allclose(result.scores, expected, atol=2e-5)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_tokens=513),
        Limits(max_query_tokens=509),
        Limits(max_query_tokens=10, max_tokens=13),
        Limits(max_query_tokens=0),
        Limits(positive=2),
    ],
)
def test_impossible_limits_are_refused(tiny_model: Callable[..., Path], limits: Limits) -> None:
    """More tokens than the model has positions, or none for the passage, is said at once."""
    with pytest.raises(PipelineError, match=r"cannot be"):
        CrossEncoder(tiny_model(), EXACT, limits)


def test_the_folders_advice_is_taken_unless_overruled(own_model: Path) -> None:
    """`pipeline.json` sets limits; the caller's come first."""
    advice = {"schema": 1, "max_query_tokens": 7, "max_tokens": 30, "note": "for people"}
    tiny_models.write(own_model / "pipeline.json", advice)

    advised = CrossEncoder(own_model, EXACT, Limits()).limits
    overruled = CrossEncoder(own_model, EXACT, Limits(max_tokens=40)).limits

    assert advised == {"max_query_tokens": 7, "max_tokens": 30, "positive": 1}
    assert overruled == {"max_query_tokens": 7, "max_tokens": 40, "positive": 1}


def test_out_of_memory_starts_the_topic_again_with_smaller_batches(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is halved until it fits, the scores are the same, and the budget is told."""
    model = CrossEncoder(tiny_model(), EXACT, Limits())
    expected = model.score(QUERY, PASSAGES).scores
    real = bert.FirstToken.hidden

    def small_memory(base: Any, batch: Any) -> torch.Tensor:
        if batch.ids.numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(base, batch)

    monkeypatch.setattr(bert.FirstToken, "hidden", small_memory)
    result = model.score(QUERY, PASSAGES)

    assert result.lowered_budget == 128
    np.testing.assert_allclose(result.scores, expected, atol=2e-5)
    assert model.engine.token_budget == engine.BUDGETS["cpu"]  # the next topic starts as usual


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_do_not_depend_on_the_number_of_threads(
    tiny_model: Callable[..., Path], precision: Any
) -> None:
    """Each batch is computed by one thread, so a run is the same on machines of any size."""
    folder = tiny_model()
    passages = [text * repeat for repeat in range(1, 9) for text in PASSAGES]
    scores = [
        CrossEncoder(folder, Wishes("cpu", precision, threads), Limits()).score(QUERY, passages)
        for threads in (1, 2, 5)
    ]
    assert scores[0].scores.tobytes() == scores[1].scores.tobytes() == scores[2].scores.tobytes()


def test_a_passage_that_never_fits_is_an_error(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a single passage is too much, halving ends in two lines."""
    model = CrossEncoder(tiny_model(), EXACT, Limits())

    def no_memory(*_: Any) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(bert.FirstToken, "hidden", no_memory)

    with pytest.raises(PipelineError, match="out of memory") as caught:
        model.score(QUERY, PASSAGES)
    assert "smaller model" in caught.value.hint


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shape error is raised as what it is, after one try."""
    model = CrossEncoder(tiny_model(), EXACT, Limits())
    calls = []

    def broken(*_: Any) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(bert.FirstToken, "hidden", broken)

    with pytest.raises(RuntimeError, match="mat1"):
        model.score(QUERY, PASSAGES)
    assert len(calls) <= 2  # batches of one try


@pytest.mark.parametrize("labels", [1])
def test_a_cross_encoder_of_sentence_transformers_loads_as_it_is(
    tiny_model: Callable[..., Path], tmp_path: Path, labels: int
) -> None:
    """Saved by sentence-transformers, modules.json and sigmoid and all: the raw logits."""
    rival = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    theirs = rival.CrossEncoder(str(tiny_model()), device="cpu", num_labels=labels)
    theirs.save_pretrained(str(tmp_path / "saved"))
    expected = theirs.predict(
        [(QUERY, passage) for passage in PASSAGES], activation_fn=torch.nn.Identity()
    )

    from pipeline.models.reranker import Reranker

    ours = Reranker.load(str(tmp_path / "saved"), precision="fp32").score(QUERY, PASSAGES)

    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_a_model_without_segments_is_given_none(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """DistilBERT takes no segment ids; a BERT whose segments matter gets 0 and 1."""
    folder = Path(shutil.copytree(tiny_model(), tmp_path / "bert"))
    before = CrossEncoder(folder, EXACT, Limits()).score(QUERY, PASSAGES).scores
    weights = torch_weights(folder)
    weights["bert.embeddings.token_type_embeddings.weight"][1, :9] += 1
    save_weights(folder, weights)

    after = CrossEncoder(folder, EXACT, Limits()).score(QUERY, PASSAGES).scores

    assert np.abs(before - after).min() > 1e-4
    assert CrossEncoder(tiny_model("distilbert"), EXACT, Limits()).score("a", ["b"]).scores.size


def torch_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def save_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
