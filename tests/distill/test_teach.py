"""Fine-tuning a teacher: any encoder, one logit or two, its labels, and what is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from refusal import refused
from tiny_models import change, make, make_twin, without
from trainings import development

from pipeline import experiment
from pipeline.distill.groups import TeacherRun, read_pool, with_relevant
from pipeline.distill.settings import TeachConfig
from pipeline.distill.stage import distill, recipe
from pipeline.models.reranker import Reranker
from pipeline.topics import read_topics


def settings(base: Path, data: Path, folder: Path, **changes: object) -> TeachConfig:
    config = TeachConfig(
        output=folder / "teacher",
        work=folder / "teacher.parts",
        topics=data / "topics.tsv",
        collection=data / "collection.tsv",
        base=base,
        candidates=data / "other.run",
        qrels=data / "qrels.txt",
        strata=((1, 12, 4),),
        topics_per_step=6,
        steps=40,
        learning_rate=3e-3,
        warmup=5,
        max_query_tokens=6,
        max_tokens=48,
        advised_tokens=60,
        token_budget=512,
        precision="fp32",
        evaluate_every=20,
        checkpoint_every=20,
        dev=(development(data),),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def log(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "teacher.parts" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("losses", "logits"),
    [
        ({"lce": 1.0}, 1),
        ({"lce": 0.0, "bce": 1.0}, 1),
        ({"lce": 0.0, "bce": 1.0}, 2),
        ({"lce": 0.0, "hinge": 1.0}, 1),
    ],
    ids=["LCE", "BCE of one logit", "CE of two logits", "hinge"],
)
def test_a_teacher_learns_labels_and_ranks_as_it_was_trained(
    losses: dict[str, float], logits: int, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """The loss falls, development data say so, and `rerank` loads the folder as a cross-encoder."""
    config = settings(tiny_bert, training_data, tmp_path, logits=logits, **losses)
    outcome = distill(config)
    rows = log(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 0 < outcome.counts["dev"]["words"] <= 1
    assert json.loads((tmp_path / "teacher/config.json").read_text())["hidden_size"] == 16
    scorer = Reranker.load(str(tmp_path / "teacher"), precision="fp32").scorer
    assert dict(scorer.limits) == {"max_query_tokens": 6, "max_tokens": 60, "positive": 1}
    assert len(scorer.score("apple", ["apple pear", "sea salt"]).scores) == 2


@pytest.mark.parametrize("kind", ["electra", "modernbert", "distilbert"])
def test_any_encoder_can_be_a_teacher(kind: str, training_data: Path, tmp_path: Path):
    """What the head says in training is what it says when the folder is loaded, up to fp16."""
    import torch

    from pipeline.distill.classifier import Classifier

    base = make(tmp_path / "base", kind)
    config = settings(base, training_data, tmp_path, steps=4, evaluate_every=4, dev=())
    distill(config)
    trained = Classifier(replace(config, base=tmp_path / "teacher"), torch.device("cpu"))
    query, passage = trained.tokens(["the sun", "read a file"], 20)
    with torch.inference_mode():
        ours = trained.score([query], [passage])
    theirs = Reranker.load(str(tmp_path / "teacher"), precision="fp32").score(
        "the sun", ["read a file"]
    )
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-4)


def test_two_towers_can_become_a_cross_encoder(training_data: Path, tmp_path: Path):
    """An encoder without a head gets a new one, drawn from the seed."""
    base = make_twin(tmp_path / "towers")
    config = settings(base, training_data, tmp_path, steps=4, evaluate_every=4, dev=())
    distill(config)
    assert Reranker.load(str(tmp_path / "teacher")).score("the sun", ["read"]).shape == (1,)


def test_a_teacher_may_get_another_head(training_data: Path, tmp_path: Path):
    """A reranker of two logits goes on with one: its head alone is drawn anew."""
    base = make(tmp_path / "base", labels=2)
    config = settings(base, training_data, tmp_path, steps=4, evaluate_every=4, dev=())
    distill(config)
    assert Reranker.load(str(tmp_path / "teacher")).score("the sun", ["read"]).shape == (1,)


def test_an_encoder_that_is_not_whole_is_refused(training_data: Path, tmp_path: Path):
    """transformers would fill what is missing, or of another size, with random numbers."""
    base = make(tmp_path / "base")
    torn = without(base, tmp_path / "torn", "bert.encoder.layer.1.")
    with refused("no weights for bert.encoder.layer.1.", "not whole"):
        distill(settings(torn, training_data, tmp_path))
    change(base / "config.json", intermediate_size=48)
    with refused("weights of another size for bert.encoder.layer.0.", "not whole"):
        distill(settings(base, training_data, tmp_path))


def test_heads_of_other_kinds_and_qrels_of_others_are_refused(
    training_data: Path, tiny_bert: Path, tmp_path: Path
):
    """What is missing is said: a head, labels, a judged passage."""
    import transformers

    shape = transformers.GPT2Config(
        vocab_size=33, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    decoder = transformers.GPT2ForSequenceClassification(shape)
    decoder.save_pretrained(tmp_path / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "gpt2" / name).write_bytes((tiny_bert / name).read_bytes())
    with refused("the head of a gpt2 is none that is taught here", "BERT"):
        distill(settings(tmp_path / "gpt2", training_data, tmp_path))
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("somebody 0 d1 1\n")
    with refused(f"{qrels}: no candidate of", "the same topics"):
        distill(settings(tiny_bert, training_data, tmp_path, qrels=qrels))
    qrels.write_text((training_data / "qrels.txt").read_text() + "q0 0 nosuch 1\n")
    with refused("no document 'nosuch'", "the run, or the qrels,"):
        distill(settings(tiny_bert, training_data, tmp_path, qrels=qrels))


def test_a_setting_that_came_later_makes_no_teacher_stale(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """What teachers had from the beginning is recorded as ever."""
    config = settings(tiny_bert, training_data, tmp_path)
    recorded = recipe(config).settings
    assert {"accumulate", "patience", "bce", "hinge"} <= recorded.keys()
    assert "positive_windows" not in recorded
    assert recipe(replace(config, positive_windows=1)).settings["positive_windows"] == 1


def test_relevant_passages_that_were_not_found_join_the_candidates(training_data: Path):
    """At the end and scored last, so that no rank of the run moves."""
    topics = read_topics(training_data / "topics.tsv")
    pool = read_pool([TeacherRun(training_data / "other.run")], topics)
    row = pool.rows["q0"]
    stranger = next(d for d in pool.docids if pool.docids.index(d) not in row.docs.tolist())
    more = with_relevant(pool, {"q0": {stranger: 1, "unheard-of": 2, pool.docids[row.docs[0]]: 1}})
    assert more.rows["q0"].docs[: len(row.docs)].tolist() == row.docs.tolist()
    added = [more.docids[place] for place in more.rows["q0"].docs[len(row.docs) :]]
    assert added == sorted([stranger, "unheard-of"])
    assert more.rows["q0"].scores[-1] == row.scores.min()
    assert more.rows["q1"].docs.tolist() == pool.rows["q1"].docs.tolist()


def test_topics_without_a_known_relevant_passage_are_left_out(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """They would teach that nothing is relevant."""
    qrels = tmp_path / "qrels.txt"
    lines = (training_data / "qrels.txt").read_text().splitlines(keepends=True)
    topics = sorted({line.split()[0] for line in lines})[:8]
    qrels.write_text("".join(line for line in lines if line.split()[0] in topics))
    config = settings(tiny_bert, training_data, tmp_path, qrels=qrels, steps=2, dev=())
    assert distill(config).counts["topics"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lce": 0.0}, "[teach] switches every loss off"),
        ({"qrels": None}, "[teach] lce needs qrels"),
        ({"strata": ((1, 100, 1),)}, "[teach] strata give groups of one passage"),
        ({"max_tokens": 100, "advised_tokens": 100}, "takes 64"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    changes: dict[str, object], message: str, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """In two lines; nothing is left behind."""
    with refused(message):
        distill(settings(tiny_bert, training_data, tmp_path, **changes))
    assert not (tmp_path / "teacher").exists()


def test_a_folder_that_is_no_encoder_is_refused(training_data: Path, tmp_path: Path):
    """With its path, and without a traceback."""
    (tmp_path / "empty").mkdir()
    with refused("no config.json in this folder"):
        distill(settings(tmp_path / "empty", training_data, tmp_path))


EXPERIMENT = """
name = "mine"
[collection]
path = "corpus.tsv"
[topics]
path = "topics.tsv"
[teach]
base = "encoder"
qrels = "qrels.txt"
strata = [[1, 10, 2], [50, 100, 6]]
"""


def test_an_experiment_file_teaches_on_its_own_first_stage(tmp_path: Path):
    """Candidates are the file's BM25 run unless another is named; `run` does not train."""
    path = tmp_path / "mine.toml"
    path.write_text(EXPERIMENT)
    plan = experiment.load(path)
    assert [step.name for step in plan.until(None)] == ["index", "retrieve"]
    teach = plan.step("teach")
    assert teach.output == tmp_path / "runs" / "mine" / "teacher"
    assert [step.name for step in plan.until("teach")] == ["index", "retrieve", "teach"]
    path.write_text(EXPERIMENT + "lr = 1\n")
    with refused("unknown key 'lr' in [teach]"):
        experiment.load(path)
