"""Token ids of pairs are those that transformers makes, and text never becomes a special token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.models.loading import load_tokenizer
from pipeline.models.pairs import Tokenizer, pair_batch

QUERY = "read a csv, file"
PASSAGES = ["the header row.", "", "a", "bread " * 30]


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(load_tokenizer(folder, vocabulary(folder)), folder)


def vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def test_pairs_are_those_of_transformers(folder: Path, tokenizer: Tokenizer) -> None:
    """Ids, segments, mask and padding: what `only_second` truncation gives, pair by pair."""
    theirs = load_tokenizer(folder, vocabulary(folder))
    limit = 24
    (query,) = tokenizer.tokens([QUERY], 64)
    assert tokenizer.template is not None
    room = limit - tokenizer.template.size - len(query)
    passages = [tokens[:room] for tokens in tokenizer.tokens(PASSAGES, limit)]

    batch = pair_batch(tokenizer.template, query, passages, limit, tokenizer.pad, "cpu")

    expected = theirs(
        [QUERY] * len(PASSAGES),
        PASSAGES,
        truncation="only_second",
        max_length=limit,
        padding="max_length",
        return_tensors="np",
    )
    np.testing.assert_array_equal(batch.ids.numpy(), expected["input_ids"])
    np.testing.assert_array_equal(batch.segments.numpy(), expected["token_type_ids"])
    assert batch.mask is not None
    np.testing.assert_array_equal(batch.mask.numpy(), expected["attention_mask"])


def test_no_mask_where_nothing_is_padded(tokenizer: Tokenizer) -> None:
    """Equal lengths that fill their width need no mask, which is the faster way."""
    (query,) = tokenizer.tokens(["a b"], 9)
    assert tokenizer.template is not None
    passages = tokenizer.tokens(["x y z", "z y x"], 9)

    batch = pair_batch(tokenizer.template, query, passages, 8, 0, "cpu")

    assert batch.mask is None
    assert batch.segments[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("literal", ["[SEP]", "[CLS]", "[PAD]", "[MASK]", "x[SEP]y", "[sep]"])
def test_special_tokens_in_a_text_are_plain_characters(tokenizer: Tokenizer, literal: str) -> None:
    """Who writes "[SEP]" in a query or a passage cannot end it."""
    (tokens,) = tokenizer.tokens([literal], 50)

    assert not set(tokens.tolist()) & {0, 2, 3, 4}
    assert len(tokens) >= 3


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_no_text_makes_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    """Whatever the text, half surrogates included."""
    (tokens,) = tokenizer.tokens([text], 50)

    assert not set(tokens.tolist()) & {0, 2, 3, 4}


def test_half_a_surrogate_pair_is_read_as_a_question_mark(tokenizer: Tokenizer) -> None:
    """JSON can hold it; the tokenizer cannot."""
    broken, whole = tokenizer.tokens(["csv \ud800 row", "csv ? row"], 50)

    assert broken.tolist() == whole.tolist()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(["csv", "rows", "a", "reading", "x" * 300, "\n", "  "])),
    limit=st.integers(1, 12),
)
def test_reading_only_the_head_of_a_text_changes_nothing(
    tokenizer: Tokenizer, words: list[str], limit: int
) -> None:
    """A long text is cut before it is tokenised; its first tokens are the same."""
    text = " ".join(words * 5)

    (tokens,) = tokenizer.tokens([text], limit)

    (whole,) = tokenizer._encode([text])
    assert tokens.tolist() == whole[: limit + 1].tolist()


def test_a_passage_met_again_is_not_tokenised_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of passages are kept, for each limit."""
    tokenizer = Tokenizer(load_tokenizer(folder, vocabulary(folder)), folder)
    asked: list[str] = []
    real = tokenizer._encode

    def spy(texts: list[str]) -> list[np.ndarray]:
        asked.extend(texts)
        return real(texts)

    monkeypatch.setattr(tokenizer, "_encode", spy)
    first = tokenizer.tokens(["csv", "row"], 9)
    again = tokenizer.tokens(["row", "sun", "csv"], 9)

    assert asked == ["csv", "row", "sun"]
    assert [again[0].tolist(), again[2].tolist()] == [first[1].tolist(), first[0].tolist()]


def test_the_memory_for_tokens_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its size the cache starts anew instead of growing with the collection."""
    monkeypatch.setattr("pipeline.models.pairs.CACHED_TOKENS", 100)
    tokenizer = Tokenizer(load_tokenizer(folder, vocabulary(folder)), folder)

    for number in range(200):
        tokenizer.tokens([f"row {number}"], 9)

    assert len(tokenizer._cache) < 12


def test_a_tokenizer_that_leaks_special_tokens_is_filtered(folder: Path, tmp_path: Path) -> None:
    """Where a special token is an ordinary word as well, its number is taken out of texts."""
    copy = Path(shutil.copytree(folder, tmp_path / "leaky"))
    table = json.loads((copy / "tokenizer.json").read_text())
    # Without splitting at punctuation, "[SEP]" is found in the vocabulary as a word.
    table["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    table["normalizer"] = None
    (copy / "tokenizer.json").write_text(json.dumps(table))
    tiny_models.change(copy / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = Tokenizer(load_tokenizer(copy, vocabulary(copy)), copy)
    assert tokenizer._leaks

    (tokens,) = tokenizer.tokens(["csv [SEP] row"], 9)

    assert 3 not in tokens.tolist()
    assert len(tokens) == 2


def test_a_tokenizer_without_template_makes_no_pairs(folder: Path, tmp_path: Path) -> None:
    """Nothing between query and passage means it was made for something else."""
    from pipeline.models.cross_encoder import CrossEncoder
    from pipeline.models.scorer import Limits, Wishes

    copy = Path(shutil.copytree(folder, tmp_path / "plain"))
    table = json.loads((copy / "tokenizer.json").read_text())
    table["post_processor"] = None
    (copy / "tokenizer.json").write_text(json.dumps(table))
    tiny_models.change(copy / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")

    with pytest.raises(PipelineError, match="nothing between query and passage"):
        CrossEncoder(copy, Wishes(device="cpu"), Limits())
