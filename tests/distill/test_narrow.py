"""A narrow student cut out of a wide ranker scores much as that one does, before any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import results, settings

from pipeline.demo.docstrings import passages
from pipeline.distill.forward import Limits, bert_shape, logits, pair_batches, pair_logits
from pipeline.distill.groups import Tokens
from pipeline.distill.narrow import narrowed
from pipeline.distill.settings import Size
from pipeline.distill.stage import distill
from pipeline.distill.student import initial_student, load_ranker
from pipeline.errors import PipelineError
from pipeline.models.folder import locate

QUERIES = ("read a csv file", "parse a date", "open a socket", "sort a list by a key")


def pairs(tokenizer: object, some: list[str]) -> list[object]:
    """Batches of all queries with all passages."""
    queries, texts = Tokens(tokenizer, QUERIES, 16), Tokens(tokenizer, some, 64)
    both = [(query, text) for query in queries for text in texts]
    made = pair_batches(
        [query for query, _ in both], [text for _, text in both], bert_shape(tokenizer),
        Limits(16, 64), 4096, torch.device("cpu"),
    )  # fmt: skip
    return list(made)


def scores(ranker: object, made: list[object]) -> np.ndarray:
    with torch.inference_mode():
        return pair_logits(lambda batch: logits(ranker, batch), iter(made)).numpy()


def test_most_of_a_real_ranker_survives_the_cut() -> None:
    """A third of the numbers, a third of the heads and inner neurons: its scores still go along.

    Random weights of that shape know nothing, and neither does a cut of other pairs' noise.
    """
    wide, tokenizer = load_ranker(locate("small"))
    texts = [text for _, text in passages()][::60]
    met, unmet = pairs(tokenizer, texts[::2]), pairs(tokenizer, texts[1::2])
    size = Size(layers=3, hidden=128, heads=4, intermediate=512)

    narrow = narrowed(wide, (0, 1, 2), size, [batch for _, batch in met])

    expected = scores(wide, unmet)
    alike = np.corrcoef(scores(narrow, unmet), expected)[0, 1]
    new, _ = initial_student(locate("small"), (), 1, size)
    assert alike > 0.6
    assert alike > abs(np.corrcoef(scores(new, unmet), expected)[0, 1]) + 0.2
    assert (
        sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters()) / 3
    )


@pytest.mark.parametrize(
    ("layers", "size", "message"),
    [
        ((0,), Size(1, 128, 2, 512), "2 heads of 64 cannot be taken out of 12 heads of 32"),
        ((0,), Size(1, 416, 13, 512), "13 heads of 32 cannot"),
        ((0, 1), Size(1, 128, 4, 512), r"1 layers .* out of layers \[0, 1\]"),
        ((0,), Size(1, 128, 4, 2048), "with 2048 inner numbers"),
        ((0, 3), Size(2, 128, 4, 512), r"has layers 0 to 2, not \[0, 3\]"),
    ],
)
def test_what_cannot_be_cut_is_said(layers: tuple[int, ...], size: Size, message: str) -> None:
    """Before any pair passes through."""
    wide, _ = load_ranker(locate("small"))
    with pytest.raises(PipelineError, match=message):
        narrowed(wide, layers, size, [])


def test_a_training_begins_with_a_cut_and_ends_in_the_same_weights(
    tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """The base has to be a ranker; its layers are named; what is cut is a matter of the recipe."""
    distill(settings(tiny_bert, training_data, tmp_path / "wide"))
    changes = {
        "base": tmp_path / "wide" / "student", "layers": (1,), "narrowed": True, "steps": 20,
        "size": Size(layers=1, hidden=8, heads=1, intermediate=16),
    }  # fmt: skip
    for name in ("one", "two"):
        distill(settings(tiny_bert, training_data, tmp_path / name, **changes))

    assert results(tmp_path / "one") == results(tmp_path / "two")
    student, _ = load_ranker(tmp_path / "one" / "student")
    assert (student.config.hidden_size, student.config.num_hidden_layers) == (8, 1)

    changes["base"] = tiny_bert
    with pytest.raises(PipelineError, match="is no ranker with one logit"):
        distill(settings(tiny_bert, training_data, tmp_path / "three", **changes))
    for wrong in ({"size": None}, {"projected_embeddings": True}):
        with pytest.raises(PipelineError, match="narrowed without size"):
            distill(settings(tiny_bert, training_data, tmp_path / "four", **(changes | wrong)))
