"""Token ids word by word are those of the tokenizer itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.models import words
from pipeline.models.folder import locate
from pipeline.models.words import Words

SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u200b\u2028\u2029\u202f\u3000\ufeff"
ODD = (
    "\x00\x01\x7f\x80\x99\xad\u0301\u0327\ufffd\u2019\u201c\u2014\u00e9\u0130\u1e9e\u03c2\u4e2d\ud55c"
    "\U0001f600"
)


def backend(**changes: Any) -> Tokenizer:
    """The shipped student's tokenizer, parts of it changed."""
    built = json.loads((locate("small") / "tokenizer.json").read_text("utf-8"))
    for part, values in changes.items():
        built[part] = {**built[part], **values} if isinstance(values, dict) else values
    made = Tokenizer.from_str(json.dumps(built))
    made.no_padding()
    made.no_truncation()
    made.encode_special_tokens = True
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, Words]:
    tokenizer = backend(normalizer={"lowercase": request.param})
    made = Words.of(tokenizer)
    assert made is not None
    return tokenizer, made


pieces = st.one_of(
    st.sampled_from(
        ["the", "Tokenizer", "e-mail", "##ing", "[SEP]", "[UNK]", "a" * 101, "1,000.50"]
    ),
    st.text(st.sampled_from("aZ09_-'[#.," + SPACES + ODD), max_size=6),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)


@given(st.lists(st.lists(pieces, max_size=8).map("".join), max_size=4))
@example([" ".join(SPACES), "".join(ODD), "a\x01b a\x85b a\x1cb", "e\u0301 \u0301e", "\u4e2da b"])
def test_ids_are_the_tokenizers(both: tuple[Tokenizer, Words], texts: list[str]) -> None:
    """Of anything; what is not taken has a character that separates nothing."""
    tokenizer, made = both
    for text, ids in zip(texts, made.ids(texts), strict=True):
        if ids is not None:
            assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        else:
            assert words.CONTROL.search(text)


def test_half_a_surrogate_pair_is_not_taken(both: tuple[Tokenizer, Words]) -> None:
    """As JSON may hold it; its neighbours are."""
    before, broken, behind = both[1].ids(["fine", "\ud83d", "also fine"])
    assert broken is None
    assert before is not None
    assert behind is not None


def test_other_tokenizers_are_left_alone() -> None:
    """Those whose words are not BERT's, or that know more tokens than the model's own."""
    assert Words.of(backend(pre_tokenizer={"type": "Whitespace"})) is None
    assert Words.of(backend(normalizer={"type": "Lowercase"})) is None
    assert Words.of(backend(normalizer={"clean_text": False})) is None
    known = backend()
    known.add_tokens(["e-mail"])
    assert Words.of(known) is None
    without = {"vocab": {"a": 0}, "unk_token": "[NONE]"}  # an unknown word is an error there
    assert Words.of(backend(model=without, added_tokens=[], post_processor=None)) is None


def test_a_dictionary_that_is_full_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size counts characters, so that no text fills the memory."""
    monkeypatch.setattr(words, "MOST", 10 * words.SIZE)
    tokenizer = backend()
    made = Words.of(tokenizer)
    assert made is not None
    for start in range(0, 60, 3):
        texts = [f"word{n} \u00e9{n}" * 3 for n in range(start, start + 5)]
        for text, ids in zip(texts, made.ids(texts), strict=True):
            assert ids is not None
            assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
