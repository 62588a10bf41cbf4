"""The papers' procedures as settings of the one loop, each on models of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refusal import refused
from trainings import Recorder, Stop, remove_student, results, settings

from pipeline import experiment
from pipeline.distill.settings import DistillConfig, Intermediate, Size
from pipeline.distill.stage import distill
from pipeline.distill.student import initial_student, load_student

SCORES_OFF = {"kl": 0.0, "margin_mse": 0.0, "mse_logits": 0.0, "lce": 0.0, "ranknet": 0.0}
RAW = {"raw_scores": True, "scale": 1.0}
STUDENT = Size(layers=2, hidden=12, heads=2, intermediate=24)
QUICK = {"steps": 30, "evaluate_every": 15, "checkpoint_every": 10}


def log(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "student.parts" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def general(bert: Path, data: Path, folder: Path, **changes: object) -> DistillConfig:
    """General distillation: a student of new weights learns the encoder's inside from raw text."""
    folder.mkdir(parents=True, exist_ok=True)
    more = {
        "size": STUDENT, "intermediate": Intermediate(bert), "raw_text": True, "dev": (),
        "teacher_runs": (), "teacher_weights": (), "qrels": None, "topics": None,
        "topics_per_step": 20, **QUICK, **changes,
    }  # fmt: skip
    return settings(bert, data, folder, **more)


@pytest.fixture(scope="module")
def language(
    tiny_bert: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A student after general distillation."""
    folder = tmp_path_factory.mktemp("general")
    distill(general(tiny_bert, training_data, folder, steps=120))
    return folder / "student"


def test_general_distillation_needs_no_topics_and_learns(
    language: Path, tiny_bert: Path, training_data: Path
):
    """All three losses are there, none is zero, and their sum falls by a good part."""
    rows = log(language.parent)
    for row in rows:
        assert all(row[name] > 0 for name in ("embedding", "hidden", "attention"))
        assert row["loss"] == pytest.approx(
            sum(row[name] for name in ("embedding", "hidden", "attention")), rel=0.5
        )
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    student = load_student(language)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 12)
    assert not any("projections" in name for name in student.state_dict())


def test_tinybert_goes_in_two_steps_from_the_general_student(
    language: Path, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Intermediate losses at a constant rate, then the prediction loss, from where that ended."""
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    inside = settings(
        tiny_bert, training_data, first, base=language, layers=(0, 1), floor=1.0, keep="last",
        intermediate=Intermediate(tiny_bert), **(SCORES_OFF | QUICK),
    )  # fmt: skip
    distill(inside)
    rows = log(first)
    assert set(rows[-1]) >= {"embedding", "hidden", "attention"}
    assert not set(rows[-1]) & {"kl", "soft_ce", "bce"}
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["learning_rate"] == rows[-1]["learning_rate"]
    prediction = settings(
        tiny_bert, training_data, second, base=first / "student", layers=(0, 1), soft_ce=1.0,
        **(SCORES_OFF | RAW | QUICK),
    )  # fmt: skip
    student, _ = initial_student(prediction.base, prediction.layers, prediction.seed)
    before = load_student(first / "student").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    distill(prediction)
    assert log(second)[-1]["soft_ce"] < log(second)[0]["soft_ce"]


def test_an_untrained_head_is_left_alone_by_intermediate_losses(
    language: Path, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Weights that no loss reaches keep their bits: no decay without a gradient."""
    config = settings(
        tiny_bert, training_data, tmp_path, base=language, layers=(0, 1), keep="last",
        intermediate=Intermediate(tiny_bert), **(SCORES_OFF | QUICK),
    )  # fmt: skip
    distill(config)
    before, after = load_student(language).state_dict(), load_student(config.output).state_dict()
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert torch.equal(before[name], after[name])
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(before[name], after[name])


def simplified(bert: Path, data: Path, folder: Path, base: Path) -> DistillConfig:
    """Both steps merged, hard labels beside."""
    return settings(
        bert, data, folder, base=base, layers=(0, 1), intermediate=Intermediate(bert),
        soft_ce=1.0, bce=1.0, **(SCORES_OFF | RAW | QUICK),
    )  # fmt: skip


def test_simplified_tinybert_learns_everything_in_one_step(
    language: Path, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Five terms in one loss, each above zero, and each can be weighed or switched off."""
    config = simplified(tiny_bert, training_data, tmp_path, language)
    distill(config)
    rows = log(tmp_path)
    names = ("embedding", "hidden", "attention", "soft_ce", "bce")
    assert all(row[name] > 0 for row in rows for name in names)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("system", ["simplified", "general"])
def test_a_broken_off_training_ends_in_the_same_weights(
    system: str, language: Path, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Projections and their moments are part of checkpoints: the same bits as undisturbed."""
    torch.set_num_threads(1)
    found = []
    for name, stop in (("whole", None), ("broken", Stop(14))):
        folder = tmp_path / name
        folder.mkdir()
        if system == "general":
            config = general(tiny_bert, training_data, folder)
        else:
            config = simplified(tiny_bert, training_data, folder, language)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                distill(config, stop)
        reporter = Recorder()
        distill(config, reporter)
        assert bool(stop) == any("going on after step 10" in n for n in reporter.notices)
        found.append(results(folder))
    assert found[0] == found[1]


def test_the_three_arms_differ_in_start_and_losses_alone(
    language: Path, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Random start; language start and labels; language start and teacher: all of them learn."""
    distilled = {"margin_mse": 1.0, "intermediate": Intermediate(tiny_bert)}
    arms = {
        "random": {"size": STUDENT, **distilled},
        "labels": {"base": language, "layers": (0, 1), "lce": 1.0},
        "teacher": {"base": language, "layers": (0, 1), **distilled},
    }
    for name, changes in arms.items():
        folder = tmp_path / name
        folder.mkdir()
        more = {"steps": 120, "checkpoint_every": 30, "learning_rate": 1e-2, "dev": ()}
        distill(settings(tiny_bert, training_data, folder, **(SCORES_OFF | more | changes)))
        rows = log(folder)
        assert rows[-1]["loss"] < rows[0]["loss"], name
        shape = load_student(folder / "student").config
        assert (shape.num_hidden_layers, shape.hidden_size) == (2, 12)
        remove_student(folder)
    start = initial_student(language, (0, 1), 1)[0].bert.state_dict()
    taught = load_student(language).bert.state_dict()
    assert all(torch.equal(tensor, taught[name]) for name, tensor in start.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw_text": True}, "raw_text without"),
        ({"size": STUDENT, "train_embeddings": False}, "would stay random"),
        ({"size": Size(2, 13, 2, 8)}, "13 cannot be cut into 2 heads"),
        ({"qrels": None, "lce": 0.0, "bce": 1.0}, "bce needs qrels"),
        ({"topics": None}, "no topics to train on"),
    ],
)
def test_settings_of_systems_that_cannot_be_are_refused(
    changes: dict[str, object], message: str, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Before anything is loaded."""
    with refused(message):
        distill(settings(tiny_bert, training_data, tmp_path, **changes))


FILES = sorted((Path(__file__).parents[2] / "experiments").rglob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_experiment_file_can_be_read(path: Path):
    """Keys, types and settings of the systems that are handed out are right."""
    from pipeline.errors import PipelineError

    for step in experiment.load(path).steps:
        if step.name in ("distill", "teach"):
            try:
                step.recipe()
            except PipelineError as error:  # the data are not here; nothing else may be wrong
                assert "no such" in error.message.lower(), error.message  # noqa: PT017
