"""A training small enough to run whole: its settings, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.distill.settings import DevSet, DistillConfig

if TYPE_CHECKING:
    from pathlib import Path

WORDS = (
    *("apple", "pear", "plum", "tree", "leaf", "root", "car", "train", "road", "wheel", "engine"),
    *("fuel", "sea", "ship", "wave", "salt", "fish", "moon", "star", "sun", "sky", "cloud", "rain"),
    *("wind", "stone", "sand"),
)
STEPS = 60


def development(data: Path) -> DevSet:
    """The topics that are trained on, as a development set."""
    return DevSet(
        "words",
        run=data / "teacher.run",
        topics=data / "topics.tsv",
        collection=data / "collection.tsv",
        qrels=data / "qrels.txt",
    )


def settings(bert: Path, data: Path, folder: Path, **changes: object) -> DistillConfig:
    """A training of a second or two, development data and all losses included."""
    config = DistillConfig(
        output=folder / "student",
        topics=data / "topics.tsv",
        collection=data / "collection.tsv",
        work=folder / "student.parts",
        base=bert,
        teacher_runs=(data / "teacher.run", data / "other.run"),
        teacher_weights=(0.8, 0.2),
        qrels=data / "qrels.txt",
        layers=(0, 2),
        train_embeddings=True,
        strata=((1, 2, 1), (3, 6, 2), (7, 12, 1)),
        topics_per_step=6,
        workers=2,
        steps=STEPS,
        learning_rate=3e-3,
        warmup=5,
        kl=1.0,
        margin_mse=0.1,
        mse_logits=0.1,
        lce=0.2,
        ranknet=0.1,
        max_query_tokens=4,
        max_tokens=24,
        advised_tokens=32,
        token_budget=256,
        precision="fp32",
        evaluate_every=20,
        checkpoint_every=7,
        dev=(development(data),),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.progress: list[tuple[int, int, str]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        self.progress.append((done, total, unit))


class Stop(Recorder):
    """A reporter that breaks the training off at a step."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def advance(self, done: int, total: int, unit: str) -> None:
        super().advance(done, total, unit)
        if len(self.progress) == self._after:
            raise KeyboardInterrupt


def results(folder: Path) -> dict[str, str]:
    """Digests of what a training leaves."""
    weights = folder / "student" / "model.safetensors"
    newest = max((folder / "student.parts" / "checkpoints").iterdir())
    return {
        "student": store.digest_file(weights),
        "model": store.digest_file(newest / "model.safetensors"),
        "optimiser": store.digest_file(newest / "optimiser.safetensors"),
        "log": store.digest_file(folder / "student.parts" / "metrics.jsonl"),
    }


def remove_student(folder: Path) -> None:
    """Take the student away, so that training has to go on."""
    store.remove(folder / "student")
    store.remove(folder / "student.json")
