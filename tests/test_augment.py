"""Variants of topics by a masked language model: TinyBERT's augmentation of data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import refusal_on_small_disk
from refusal import check_two_lines, refused
from typer.testing import CliRunner

from pipeline import augment as stage
from pipeline.augment import PIECES, AugmentSettings, augment, variants
from pipeline.cli.main import app
from pipeline.errors import InputError, PipelineError
from pipeline.models.masked import MaskedModel
from pipeline.topics import read_topics

WORDS = ("what", "is", "a", "cat", "dog", "bird", "who", "sees", "house", "tree", "river", "stone")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "?", "[", "]", "##s", "##ing"]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model of random weights."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    folder = tmp_path_factory.mktemp("masked")
    tokenizer = BertTokenizer(vocab={token: place for place, token in enumerate(VOCABULARY)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def chosen(masked: Path, tmp_path: Path) -> AugmentSettings:
    (tmp_path / "topics.tsv").write_text(
        "q1\tWhat is a cat?\nq2\tdogs\nq3\twho sees [MASK] the house\n"
    )
    return AugmentSettings(tmp_path / "topics.tsv", str(masked), tmp_path / "more.tsv")


# ---------------------------------------------------------------- what could stand there


def test_replacements_are_what_the_model_finds_likely(masked: Path):
    """By transformers' own logits, one word masked; other words alone, and never the same one."""
    from transformers import AutoModelForMaskedLM

    pieces = ["What", " ", "is", " ", "a", " ", "cat", "?"]
    found = MaskedModel(masked).replacements(pieces, 4)
    model = AutoModelForMaskedLM.from_pretrained(masked).eval()
    text = [VOCABULARY.index(token) for token in ("[CLS]", "what", "is", "a", "cat", "?", "[SEP]")]
    with torch.inference_mode():
        for piece, place in ((0, 1), (2, 2), (4, 3), (6, 4)):
            ids = torch.tensor([text])
            ids[0, place] = VOCABULARY.index("[MASK]")
            order = model(input_ids=ids).logits[0, place].argsort(descending=True).tolist()
            words = [VOCABULARY[token] for token in order if VOCABULARY[token] in WORDS]
            assert found[piece] == [word for word in words if word != pieces[piece].lower()][:4]
    assert [found[piece] for piece in (1, 3, 5, 7)] == [[]] * 4


def test_a_word_of_several_tokens_or_of_none_stays(masked: Path):
    """The model fills single tokens, and knows nothing of unknown ones; markup is text."""
    model = MaskedModel(masked)
    assert PIECES.findall("a dog's tree") == ["a", " ", "dog's", " ", "tree"]
    assert model.replacements(["dog's"], 3) == [[]]
    found = model.replacements(["dogs", " ", "xylophone", " ", "[", "MASK", "]", " ", "tree"], 3)
    assert [len(words) for words in found] == [0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert model.replacements([], 3) == []
    assert len(model.replacements(["tree"], 1000)[0]) == len(WORDS) - 1


def test_what_is_behind_the_longest_input_stays(masked: Path):
    """Positions are 32, two of them for special tokens."""
    pieces = ["tree"] * 40
    found = MaskedModel(masked).replacements(pieces, 2)
    assert [bool(words) for words in found] == [True] * 30 + [False] * 10


# ---------------------------------------------------------------- what is drawn


def test_words_give_way_as_often_as_asked(chosen: AugmentSettings):
    """Of 1,000 words 400, within chance; equally often to each of the likely ones."""
    text = " ".join(f"w{n}" for n in range(1000))

    def likely(pieces: Any, count: int) -> list[list[str]]:
        return [["new", "other"][:count] if piece != " " else [] for piece in pieces]

    (made, *_) = variants("q", text, likely, replace(chosen, words=2))
    words = made.split(" ")
    assert 350 < words.count("new") + words.count("other") < 450
    assert 150 < words.count("new") < 250
    assert all(word in ("new", "other", f"w{n}") for n, word in enumerate(words))
    assert variants("q", text, likely, replace(chosen, probability=0)) == []
    (whole,) = variants("q", text, likely, replace(chosen, probability=1, words=1))
    assert set(whole.split(" ")) == {"new"}


def test_topics_come_with_their_variants(chosen: AugmentSettings):
    """Distinct ones; what stands between words stays, and so does a topic without any word."""
    done = augment(chosen)
    topics = read_topics(chosen.output)
    assert topics["q1"] == "What is a cat?"
    assert topics["q2"] == "dogs"
    assert "q2~1" not in topics
    mine = [text for qid, text in topics.items() if qid.startswith("q1")]
    assert len(set(mine)) == len(mine) > 10
    assert all(text.endswith("?") and len(text.split()) == 4 for text in mine)
    assert all("[MASK] the" in text for qid, text in topics.items() if qid.startswith("q3"))
    assert list(topics)[:2] == ["q1", "q1~1"]
    assert done.counts == {"topics": 3, "variants": len(topics) - 3, "unvaried": 1}


def test_a_topic_s_variants_depend_on_it_alone(chosen: AugmentSettings):
    """Not on its neighbours; and another seed draws others."""
    augment(chosen)
    before = read_topics(chosen.output)
    lines = chosen.topics.read_text().splitlines(keepends=True)
    chosen.topics.write_text("new\ta tree\n" + lines[0])
    augment(chosen)
    after = read_topics(chosen.output)
    assert {q: t for q, t in after.items() if q.startswith("q1")} == {
        q: t for q, t in before.items() if q.startswith("q1")
    }
    augment(replace(chosen, seed=2))
    assert read_topics(chosen.output)["q1~1"] != after["q1~1"]


# ---------------------------------------------------------------- a stage like the others


def test_finished_parts_are_not_made_again(
    chosen: AugmentSettings, monkeypatch: pytest.MonkeyPatch
):
    """After a kill the rest is made, and the bytes are those of an undisturbed execution."""
    topics = "".join(f"q{n}\twho sees a {WORDS[n % 12]}\n" for n in range(7))
    chosen.topics.write_text(topics)
    monkeypatch.setattr(stage, "PART", 2)
    undisturbed = replace(chosen, output=chosen.output.with_name("undisturbed.tsv"))
    augment(undisturbed)
    asked: list[list[str]] = []
    real = MaskedModel.replacements

    def counting(model: MaskedModel, pieces: list[str], count: int) -> list[list[str]]:
        asked.append(pieces)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return real(model, pieces, count)

    monkeypatch.setattr(MaskedModel, "replacements", counting)
    with pytest.raises(KeyboardInterrupt):
        augment(chosen)
    assert not chosen.output.exists()
    augment(chosen)
    assert len(asked) == 6 + 3
    assert chosen.output.read_bytes() == undisturbed.output.read_bytes()
    assert not augment(chosen).computed


def test_the_command_says_what_it_did(chosen: AugmentSettings):
    command = [
        *("augment", "--topics", str(chosen.topics), "--model", chosen.model),
        *("--output", str(chosen.output), "--copies", "2", "--json"),
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"]["unvaried"] == 1


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"copies": 0}, "--copies 0 is out of range"),
        ({"probability": 1.5}, "--probability 1.5 is out of range"),
        ({"probability": float("nan")}, "--probability nan is out of range"),
        ({"words": 0}, "--words 0 is out of range"),
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"topics": Path("-")}, "reads its topics twice"),
        ({"topics": Path("nowhere.tsv")}, "no such file of topics"),
        ({"model": "nowhere"}, "no such model"),
    ],
)
def test_settings_that_cannot_be(chosen: AugmentSettings, changes: dict[str, Any], said: str):
    with pytest.raises(PipelineError) as raised:
        augment(replace(chosen, **changes))
    check_two_lines(raised.value, said)
    assert not chosen.output.exists()


def test_a_topic_that_is_named_as_a_variant(chosen: AugmentSettings):
    with chosen.topics.open("a") as topics:
        for number in ("q1~20", "q1~x", "q9~1", "q1~02", "q1~0", f"q1~{'9' * 5000}"):
            topics.write(f"{number}\ttext\n")
    with refused("topic 'q1~20' is named as a variant of 'q1' is", "ids"):
        augment(chosen)
    assert augment(replace(chosen, copies=19)).counts["unvaried"] == 7


def test_malformed_topics_are_named_with_their_line(chosen: AugmentSettings):
    with chosen.topics.open("a") as topics:
        topics.write("q1\tagain\n")
    with refused(f"{chosen.topics}:4: topic 'q1' again", kind=InputError):
        augment(chosen)


def test_models_that_are_no_masked_language_models(
    chosen: AugmentSettings, masked: Path, tmp_path: Path
):
    """Encoders without a head, other tokens, broken weights."""
    from transformers import BertModel

    encoder = Path(shutil.copytree(masked, tmp_path / "encoder"))
    BertModel.from_pretrained(masked).save_pretrained(encoder)
    with refused("so this is no masked language model", "with its head"):
        augment(replace(chosen, model=str(encoder)))
    broken = Path(shutil.copytree(masked, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"rubbish")
    with refused(str(broken)):
        augment(replace(chosen, model=str(broken)))
    endless = Path(shutil.copytree(masked, tmp_path / "endless"))
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(masked)
    model.cls.predictions.bias.data[3] = float("nan")
    model.save_pretrained(endless)
    with refused("not finite"):
        augment(replace(chosen, model=str(endless)))
    assert not chosen.output.exists()


def test_a_full_disk_is_said(masked: Path, tmp_path: Path):
    """And leaves nothing half-written."""
    (tmp_path / "topics.tsv").write_text(
        "".join(f"q{n}\twho sees a {WORDS[n % 12]}\n" for n in range(400))
    )
    refusal = refusal_on_small_disk(
        f"""
        from pipeline.augment import AugmentSettings, augment
        augment(AugmentSettings(Path("topics.tsv"), {str(masked)!r}, Path("disk/more.tsv")))
        """,
        tmp_path,
        "128k",
    )
    assert refusal is not None
    assert refusal[0] == "StorageError"
    assert "the disk is full" in refusal[1]
