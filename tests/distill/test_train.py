"""The loop: it learns, and a killed training ends in the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trainings
from refusal import refused
from trainings import STEPS, Recorder, remove_student, results, settings

from pipeline import experiment, store
from pipeline.distill import checkpoint
from pipeline.distill.settings import (
    DistillConfig,
    Intermediate,
    TwinSettings,
    learning_rate,
)
from pipeline.distill.stage import distill
from pipeline.errors import PipelineError
from pipeline.models.reranker import Reranker

if TYPE_CHECKING:
    from collections.abc import Callable

SOAK = bool(os.environ.get("PIPELINE_SOAK"))
KILLS = 40 if SOAK else 4

# Trains in a process of its own, so that it can be killed; prints a line at each checkpoint.
CHILD = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from trainings import settings
from pipeline.distill.stage import distill
class Printer:
    def notice(self, text):
        print(text, flush=True)
    def advance(self, done, total, unit):
        pass
distill(settings(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])), Printer())
"""


def child(bert: Path, data: Path, folder: Path) -> subprocess.Popen[str]:
    """Start the training in a process of its own."""
    helpers = str(Path(trainings.__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, helpers, str(bert), str(data), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a child to end well; its output."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def test_it_learns_what_the_teacher_knows(tiny_bert: Path, training_data: Path, tmp_path: Path):
    """The loss falls, and the student ranks passages with the word above those without."""
    reporter = Recorder()
    distill(settings(tiny_bert, training_data, tmp_path, steps=200), reporter)
    log = [
        json.loads(line)
        for line in (tmp_path / "student.parts/metrics.jsonl").read_text().splitlines()
    ]
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    dev = [row["dev"]["words"] for row in log if "dev" in row]
    assert dev[-1] > dev[0] + 0.05
    assert [row["step"] for row in log] == sorted({*range(7, 201, 7), *range(20, 201, 20)})
    assert any("pairs/s" in line and "left" in line for line in reporter.notices)
    assert reporter.progress[-1] == (200 * 24, 200 * 24, "pairs")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_weights(
    tiny_bert: Path, training_data: Path, tmp_path: Path, record_property: Callable[..., None]
):
    """SIGKILL a moment after some checkpoint or before any; what is left equals bit for bit."""
    finish(child(tiny_bert, training_data, tmp_path / "undisturbed"))
    rng = random.Random(11)
    record_property("kills", KILLS)
    for number in range(KILLS):
        # In the long version, what a training of a few checkpoints leaves is begun anew.
        if number % 4 == 0 and number:
            finish(child(tiny_bert, training_data, tmp_path / "killed"))
            assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")
            shutil.rmtree(tmp_path / "killed")
        process = child(tiny_bert, training_data, tmp_path / "killed")
        assert process.stdout is not None
        for _ in range(rng.randint(0, 2) if SOAK else rng.randint(1, 2)):
            # In the long version little may be left to do, and to tell.
            assert process.stdout.readline() or SOAK
        time.sleep(rng.uniform(0, 3 if SOAK else 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in ((-signal.SIGKILL, 0) if SOAK else (-signal.SIGKILL,))
        if process.returncode == 0:  # it was done before
            remove_student(tmp_path / "killed")
    output = finish(child(tiny_bert, training_data, tmp_path / "killed"))
    assert "going on after step" in output
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


def test_killed_before_every_kind_of_write_it_ends_in_the_same_weights(
    tiny_bert: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A crash at the n-th atomic write, for n of each kind in turn, then resumed."""
    distill(settings(tiny_bert, training_data, tmp_path / "undisturbed"))
    real = store.os.fsync
    for fatal in (1, 3, 6, 9, 14, 22):
        count = 0

        def failing(descriptor: int, fatal: int = fatal) -> None:
            nonlocal count
            count += 1
            if count == fatal:
                raise KeyboardInterrupt
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(store.os, "fsync", failing)
            with pytest.raises(KeyboardInterrupt):
                distill(settings(tiny_bert, training_data, tmp_path / "crashed"))
    distill(settings(tiny_bert, training_data, tmp_path / "crashed"))
    assert results(tmp_path / "crashed") == results(tmp_path / "undisturbed")


def test_topics_with_too_few_candidates_are_counted(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    lines = (training_data / "teacher.run").read_text().splitlines(keepends=True)
    (tmp_path / "teacher.run").write_text("".join(lines[3:12] + lines[21:]))
    config = settings(
        tiny_bert, training_data, tmp_path,
        teacher_runs=(tmp_path / "teacher.run",), teacher_weights=(), steps=1, dev=(),
    )  # fmt: skip
    reporter = Recorder()
    assert distill(config, reporter).counts["topics"] == 23
    said = "1 of 24 topics have fewer than 4 candidates, and are left out"
    assert said in reporter.notices


def test_a_fresh_student_is_left_alone(tiny_bert: Path, training_data: Path, tmp_path: Path):
    """A second call trains no step; force trains again and gets the same weights."""
    config = settings(tiny_bert, training_data, tmp_path)
    assert distill(config).computed
    before = results(tmp_path)
    reporter = Recorder()
    assert not distill(config, reporter).computed
    assert reporter.progress == []
    assert distill(config, force=True).computed
    assert results(tmp_path) == before


def test_a_training_goes_on_where_it_was(
    tiny_bert: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Interrupted at step 25, the second run says so and does the steps after checkpoint 21."""
    config = settings(tiny_bert, training_data, tmp_path)

    class Interrupting(Recorder):
        def advance(self, done: int, total: int, unit: str) -> None:
            if done == 25 * 24:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(config, Interrupting())
    assert not (tmp_path / "student").exists()
    reporter = Recorder()
    distill(config, reporter)
    assert any("going on after step 21 of 60" in line for line in reporter.notices)
    assert reporter.progress[0][0] == 22 * 24


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.003 and is 0.001"),
        ({"steps": 80}, "steps was 60 and is 80"),
        ({"teacher_weights": (0.5, 0.5)}, "teacher_weights"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    tiny_bert: Path, training_data: Path, tmp_path: Path, changes, named
):
    """The message names what differs; nothing is overwritten."""
    distill(settings(tiny_bert, training_data, tmp_path))
    before = results(tmp_path)
    with pytest.raises(PipelineError, match=named):
        distill(settings(tiny_bert, training_data, tmp_path, **changes))
    assert results(tmp_path) == before
    assert distill(settings(tiny_bert, training_data, tmp_path, **changes), force=True).computed


def test_an_edited_teacher_run_is_another_recipe(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Inputs count by content, not by name."""
    run = tmp_path / "teacher.run"
    run.write_bytes((training_data / "teacher.run").read_bytes())
    config = settings(tiny_bert, training_data, tmp_path, teacher_runs=(run,), teacher_weights=())
    distill(config)
    lines = run.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace(lines[0].split()[4], "77.0")
    run.write_text("".join(lines))
    with pytest.raises(PipelineError, match="teacher 1 was"):
        distill(config)


def test_an_input_that_changes_meanwhile_is_said(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Nothing is kept that it did not make, and the advice leads on."""
    run = tmp_path / "teacher.run"
    run.write_bytes((training_data / "teacher.run").read_bytes())
    config = settings(tiny_bert, training_data, tmp_path, teacher_runs=(run,), teacher_weights=())

    class Editing(Recorder):
        def advance(self, done: int, total: int, unit: str) -> None:
            run.write_bytes((training_data / "other.run").read_bytes())

    with refused("input teacher 1 changed while the stage was at work", "--force"):
        distill(config, Editing())
    assert not (tmp_path / "student").exists()
    assert distill(config, force=True).computed


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def mends(config: DistillConfig, harm: Callable[[], object], said: str) -> None:
    """Lose the student and more; the training says what it found, and ends in the same weights."""
    folder = config.output.parent
    before = results(folder)
    remove_student(folder)
    harm()
    heard = Recorder()
    assert distill(config, heard).computed
    assert any(said in text for text in heard.notices)
    assert results(folder) == before


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_made_again(
    tiny_bert: Path, training_data: Path, tmp_path: Path, name: str
):
    """One byte of the newest is enough: training goes on from the one before, to the same end."""
    config = settings(tiny_bert, training_data, tmp_path)
    distill(config)
    newest = max((tmp_path / "student.parts" / "checkpoints").iterdir())
    mends(config, partial(flip_a_bit, newest / name), f"{newest}: a damaged checkpoint")


@pytest.mark.parametrize("how", ["edited", "lost"])
def test_best_weights_that_are_not_whole_are_made_again(
    how: str, tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """They are what is kept: a student of other weights would pass for the best."""
    config = settings(tiny_bert, training_data, tmp_path)
    distill(config)
    best = max((tmp_path / "student.parts").glob("best-*.safetensors"))
    harm = best.unlink if how == "lost" else partial(flip_a_bit, best)
    mends(config, harm, "a damaged checkpoint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_runs": ()}, "no teacher run"),
        ({"teacher_weights": (1.0,)}, "2 teacher_runs and 1 teacher_weights"),
        ({"kl": 0.0, "margin_mse": 0, "mse_logits": 0, "lce": 0, "ranknet": 0}, "every loss off"),
        ({"qrels": None}, "lce needs qrels"),
        ({"strata": ((3, 1, 1),)}, "strata"),
        ({"strata": ((1, 3, 1),)}, "groups of one"),
        ({"steps": 0}, "steps = 0"),
        ({"workers": 0}, "workers = 0"),
        ({"max_query_tokens": 30}, "max_tokens = 24, max_query_tokens = 30"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(
    tiny_bert: Path, training_data: Path, tmp_path: Path, changes, message
):
    """One line says which setting; no folder appears."""
    with pytest.raises(PipelineError, match=message):
        distill(settings(tiny_bert, training_data, tmp_path, **changes))
    assert not any(p.is_dir() for p in tmp_path.iterdir())


def test_frozen_embeddings_stay_and_the_rest_moves(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """train_embeddings = false keeps the word embeddings of the base, bit for bit in fp16."""
    from safetensors.torch import load_file

    distill(settings(tiny_bert, training_data, tmp_path, train_embeddings=False))
    base = load_file(tiny_bert / "model.safetensors")
    student = load_file(tmp_path / "student" / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert (student[f"bert.{name}"] == base[name].half()).all()
    moved = "encoder.layer.0.attention.self.query.weight"
    assert not (student[f"bert.{moved}"] == base[moved].half()).all()


def test_the_schedule_has_three_cases(tiny_bert: Path, training_data: Path, tmp_path: Path):
    """Up to the full rate in the warm-up, down to the floor at the end, and the floor after it."""
    config = settings(
        tiny_bert, training_data, tmp_path,
        learning_rate=1.0, warmup=10, steps=200, decay_steps=110, floor=0.1,
    )  # fmt: skip
    rates = [learning_rate(step, config) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a > b for a, b in pairwise(rates[10:111]))
    assert rates[110:] == pytest.approx([0.1] * 90)


def test_a_student_without_a_card_gets_one(tiny_bert: Path, training_data: Path, tmp_path: Path):
    """It says what was learnt, from how much, under which settings, and how good it was."""
    distill(settings(tiny_bert, training_data, tmp_path))
    card = (tmp_path / "student/README.md").read_text()
    for words in (
        "A cross-encoder, distilled",
        "| losses | kl 1, margin_mse 0.1",
        f"| pairs | {STEPS * 24} |",
        "| development, words | 0.",
        "| learning_rate | 0.003 |",
        "| teacher 2 | `",
        "CrossEncoder",
    ):
        assert words in card
    own = tmp_path / "own.md"
    own.write_text("# mine\n")
    distill(settings(tiny_bert, training_data, tmp_path, card=own), force=True)
    assert (tmp_path / "student/README.md").read_text() == "# mine\n"


def test_it_stops_early_when_nothing_gets_better(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """After `patience` evaluations without gain; stopped again it stays where it was."""
    config = settings(
        tiny_bert, training_data, tmp_path, steps=400, patience=2, learning_rate=0.0,
        evaluate_every=10,
    )  # fmt: skip
    reporter = Recorder()
    outcome = distill(config, reporter)
    assert outcome.counts["step"] == 10  # nothing is learnt at this rate
    assert outcome.counts["pairs"] == 30 * 24
    assert "no gain since step 10: ends with step 30" in reporter.notices
    remove_student(tmp_path)
    assert distill(config).counts == outcome.counts
    with pytest.raises(PipelineError, match="patience without"):
        distill(replace(config, dev=()))


def test_more_slices_make_the_same_step(tiny_bert: Path, training_data: Path, tmp_path: Path):
    """Accumulated gradients are those of the whole step, but for the order of sums."""
    logs = []
    for accumulate in (1, 3):
        folder = tmp_path / str(accumulate)
        # RankNet is a mean over pairs, of which a slice may have more than another.
        config = settings(
            tiny_bert, training_data, folder, accumulate=accumulate, ranknet=0.0, steps=20,
            keep="last",
        )  # fmt: skip
        distill(config)
        lines = (folder / "student.parts/metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for one, three in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(three["loss"], rel=1e-4)
        assert one["kl"] == pytest.approx(three["kl"], rel=1e-4)


def test_the_terms_in_the_log_add_up_to_the_loss(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """All of them are means over all steps since the last line, of all slices."""
    config = settings(tiny_bert, training_data, tmp_path, steps=20)
    distill(config)
    for line in (tmp_path / "student.parts/metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        total = sum(weight * row[name] for name, weight in config.losses.items())
        assert row["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"kl": -1.0}, "kl = -1.0"),
        ({"interpolate": 7.0}, "interpolate = 7.0"),
        ({"warmup": -1}, "warmup = -1"),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"max_tokens": 72}, "has positions for 64 tokens, not 72"),
        ({"intermediate": Intermediate(Path("x"), relation_heads=0)}, "relation_heads = 0"),
        ({"intermediate": Intermediate(Path("x"), hidden=-1.0)}, "intermediate.hidden = -1.0"),
        ({"twin": TwinSettings(), "max_tokens": 63}, "not 65"),
        ({"scale": -2.0}, "scale = -2.0"),
        ({"scale": float("nan")}, "scale = nan"),
        ({"clip": 0.0}, "clip = 0.0"),
        ({"teacher_weights": (1.0, float("nan"))}, "teacher_weights: nan"),
        ({"teacher_weights": (2.0, -1.0)}, "teacher_weights: -1.0"),
        ({"layers": (0, 0)}, "layers = [0, 0]: one is there twice"),
        ({"layers": (1, 1), "twin": TwinSettings()}, "layers = [1, 1]: one is there twice"),
    ],
)
def test_settings_that_cannot_be_are_told_before_any_step(
    tiny_bert: Path, training_data: Path, tmp_path: Path, changes, named
):
    """By their name, with what they are."""
    changes = {"advised_tokens": 100} | changes
    with pytest.raises(PipelineError, match=re.escape(named)):
        distill(settings(tiny_bert, training_data, tmp_path, **changes))


def test_a_development_set_of_no_depth_is_refused(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """And not at the first evaluation."""
    config = settings(tiny_bert, training_data, tmp_path)
    with pytest.raises(PipelineError, match="dev words: depth = 0"):
        distill(replace(config, dev=(replace(config.dev[0], depth=0),)))
    with pytest.raises(PipelineError, match="no measure is called 'foo'"):
        distill(replace(config, dev=(replace(config.dev[0], measure="foo"),)))
    with pytest.raises(PipelineError, match="two dev sets have one name"):
        distill(replace(config, dev=config.dev * 2))


def test_other_names_of_a_measure_are_taken(tiny_bert: Path, training_data: Path, tmp_path: Path):
    """As `evaluate` takes them."""
    config = settings(tiny_bert, training_data, tmp_path, steps=4, evaluate_every=4)
    dev = replace(config.dev[0], measure="AP(rel=1)")
    assert 0 < distill(replace(config, dev=(dev,))).counts["dev"]["words"] <= 1


def test_a_student_advises_no_more_tokens_than_it_has_positions(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """Its folder could not be loaded otherwise, once all is trained."""
    config = settings(tiny_bert, training_data, tmp_path, steps=2, dev=(), advised_tokens=256)
    distill(config)
    about = json.loads((tmp_path / "student" / "pipeline.json").read_text())
    assert about["max_tokens"] == 64
    assert Reranker.load(str(tmp_path / "student")).score("apple", ["pear"]).shape == (1,)


def test_topics_have_the_field_that_the_file_names(
    tiny_bert: Path, training_data: Path, tmp_path: Path
):
    """The stages of one file read the same queries, and two trainings draw two curves."""
    (tmp_path / "topics.trec").write_text(
        "<top><num>q0</num><title>zzz</title><desc>apple</desc></top>\n"
    )
    (tmp_path / "mine.toml").write_text(
        f"""
[collection]
path = "ir_datasets:vaswani"
[topics]
path = "topics.trec"
field = "desc"
[teach]
base = "{tiny_bert}"
qrels = "{training_data / "qrels.txt"}"
[distill]
base = "{tiny_bert}"
teacher_runs = ["{training_data / "teacher.run"}"]
[[distill.dev]]
name = "words"
run = "{training_data / "teacher.run"}"
topics = "topics.trec"
field = "desc"
collection = "ir_datasets:vaswani"
qrels = "{training_data / "qrels.txt"}"
"""
    )
    plan = experiment.load(tmp_path / "mine.toml")
    step = plan.step("distill")
    recipe = step.recipe()
    assert recipe.settings["field"] == "desc"
    assert recipe.settings["dev"] == [["words", "nDCG@10", 50, 0, "desc"]]
    assert recipe.inputs["collection"] == recipe.inputs["dev words collection"]
    assert recipe.inputs["collection"] == "ir_datasets:vaswani"
    assert {plan.step(name).beside[0].name for name in ("teach", "distill")} == {
        "teacher-loss.png", "student-loss.png",
    }  # fmt: skip


def test_what_the_optimiser_knows_goes_where_its_parameters_are(tmp_path: Path):
    """A checkpoint is read onto the CPU; the model may be elsewhere."""
    import torch

    def parts(device: str) -> tuple[torch.nn.Module, torch.optim.AdamW]:
        module = torch.nn.Linear(3, 2).to(device)
        return module, torch.optim.AdamW(module.parameters())

    module, optimiser = parts("cpu")
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    state = {"step": 1, "epoch": 0, "position": 0, "best": None, "log": []}
    checkpoint.save(tmp_path, {"a": 1}, state, module, optimiser)

    module, optimiser = parts("meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights copied to a device without memory stay there
        found = checkpoint.load(tmp_path, {"a": 1}, module, optimiser)
    assert found is not None
    for parameter in module.parameters():
        known = optimiser.state[parameter]
        assert known["exp_avg"].device == known["exp_avg_sq"].device == parameter.device
        assert known["step"].device.type == "cpu"


def test_a_curve_that_was_lost_is_drawn_again(tiny_bert: Path, training_data: Path, tmp_path: Path):
    """A kill may come between the student and its curve."""
    (tmp_path / "mine.toml").write_text(
        f"""
[collection]
path = "{training_data / "collection.tsv"}"
[topics]
path = "{training_data / "topics.tsv"}"
[distill]
base = "{tiny_bert}"
teacher_runs = ["{training_data / "teacher.run"}"]
strata = [[1, 12, 4]]
steps = 2
max_query_tokens = 8
max_tokens = 24
precision = "fp32"
"""
    )
    step = experiment.load(tmp_path / "mine.toml").step("distill")
    assert step.run(Recorder(), False).computed
    curve = tmp_path / "runs" / "mine" / "loss.png"
    curve.unlink()
    assert not step.run(Recorder(), False).computed
    assert curve.read_bytes().startswith(b"\x89PNG")
