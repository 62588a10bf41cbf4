"""The Python interface, as the README shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refusal import refused

from pipeline.models.folder import SHIPPED, locate
from pipeline.models.overlap import Overlap
from pipeline.models.reranker import Reranker, advised_weight
from pipeline.models.scorer import Scored

PASSAGES = ["the header row of a csv file", "bread in the sun", ""]


def test_scores_are_float32_one_for_each_passage(
    tiny_model: Callable[..., Path], tiny_twin: Path
) -> None:
    """Of cross-encoders and of two towers alike."""
    for folder in (tiny_model(), tiny_twin):
        scores = Reranker.load(str(folder), threads=1).score("read a csv", PASSAGES)
        assert scores.shape == (3,)
        assert scores.dtype == np.float32


def test_the_signature_says_what_was_resolved(tiny_model: Callable[..., Path]) -> None:
    """Wishes that were given are taken, the rest is settled."""
    reranker = Reranker.load(
        str(tiny_model()), device="cpu", precision="fp32", threads=1, token_budget=300
    )

    signature = reranker.signature

    assert signature["precision"] == "fp32"
    assert signature["token_budget"] == 300
    assert reranker.scorer.limits["max_query_tokens"] == 64


def test_the_trivial_scorer_counts_shared_words() -> None:
    """More shared words first; of equal ones the shorter passage."""
    scores = Reranker.load("overlap").score("read a CSV file", [*PASSAGES, "a csv file", "csv"])

    assert np.argsort(-scores).tolist() == [3, 0, 4, 2, 1]


def test_many_topics_get_the_scores_that_each_gets_alone(tiny_model: Callable[..., Path]) -> None:
    """To the bit, in their order, whatever their size; an empty one gets none."""
    reranker = Reranker.load(str(tiny_model()), device="cpu", threads=2)
    texts = [" ".join(["bread oil chain"] * n) for n in range(1, 60)]
    topics = [("bread", texts), ("oil", texts[:3]), ("chain", []), ("bread oil", texts[::-1])]

    together = list(reranker.score_each(topics))

    alone = [reranker.score(*topic) for topic in topics]
    assert [s.tobytes() for s in together] == [s.tobytes() for s in alone]
    assert [len(s) for s in together] == [59, 3, 0, 59]
    with refused("the query is empty", "some words"):
        list(reranker.score_each([("bread", texts), (" ", texts)]))


def test_an_empty_query_is_refused() -> None:
    """There is nothing to rank by."""
    with refused("the query is empty"):
        Reranker("x", Overlap()).score(" \n", ["a"])


def test_one_text_is_not_taken_for_many() -> None:
    """A string is a list of letters to Python, and a mistake to us."""
    with pytest.raises(TypeError, match="one text"):
        Reranker("x", Overlap()).score("a", "passage")


def test_a_score_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which passage it was is said."""
    broken = np.array([1, np.nan, np.inf], np.float32)
    monkeypatch.setattr(Overlap, "score", lambda *_: Scored(broken))
    with refused("the score of passage 1 is nan", "fp32"):
        Reranker("x", Overlap()).score("a", ["b", "c", "d"])


def test_the_folder_may_recommend_a_weight(own_model: Path) -> None:
    """Without a recommendation the model ranks alone."""
    assert advised_weight(str(own_model)) == 1.0
    (own_model / "pipeline.json").write_text('{"schema": 1, "interpolate": 0.75}')
    assert advised_weight(str(own_model)) == 0.75
    assert advised_weight("overlap") == 1.0


def test_importing_it_loads_no_torch() -> None:
    """Nor transformers nor numpy: `pipeline --help` imports the stage that imports this."""
    script = (
        "import sys; import pipeline.models.reranker, pipeline.rerank; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub', 'jnius')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=os.environ,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.model
@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_students_tell_sense_from_nonsense(model: str) -> None:
    """The README's example, with the students that ship."""
    from pipeline.errors import PipelineError

    try:
        locate(model)
    except PipelineError as error:
        pytest.skip(error.message)
    scores = Reranker.load(model).score(
        "how do I read a csv with a header row",
        ["csv.DictReader: read rows of a csv file as dictionaries keyed by the header row.",
         "math.cos: return the cosine of x, measured in radians."],
    )  # fmt: skip

    assert scores[0] > scores[1]
