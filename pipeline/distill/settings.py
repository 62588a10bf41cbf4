"""Settings of a training, what they mean at each step, and the recipe that they amount to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import collection, store
from pipeline.distill.development import DevSet  # noqa: TC001 - read by config.fill
from pipeline.distill.losses import LOSSES
from pipeline.errors import PipelineError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1  # of the training procedure: raised when equal settings would give other weights
NOT_IN_RECIPE = ("output", "work", "card", "interpolate", "keep", "checkpoint_every")


@dataclass(frozen=True)
class DistillConfig:
    """Settings of one training; the keys of `[distill]` in an experiment file.

    Steps, batches and rates are per optimiser step. A loss with weight 0 is not computed.
    """

    output: Path  # the student folder
    work: Path  # checkpoints and metrics.jsonl
    topics: Path
    collection: Path
    base: Path  # a BERT encoder whose layers the student starts from
    teacher_runs: tuple[Path, ...]
    teacher_weights: tuple[float, ...] = ()  # default: all equal
    scale: float = 1.5  # logits per standard deviation of the teacher's scores
    qrels: Path | None = None  # hard labels, where there are any
    layers: tuple[int, ...] = (1, 3, 5)
    train_embeddings: bool = False
    strata: tuple[tuple[int, ...], ...] = ((1, 3, 1), (4, 10, 2), (11, 30, 2), (31, 100, 3))
    topics_per_step: int = 16
    workers: int = 1  # each takes a slice of a step's topics on its share of the CPU's threads
    steps: int = 1000
    learning_rate: float = 2e-4
    warmup: int = 50
    floor: float = 0.01  # share of the learning rate that is left at the end
    decay_steps: int = 0  # default: all steps
    weight_decay: float = 0.01
    clip: float = 1.0
    kl: float = 1.0
    margin_mse: float = 0.0
    mse_logits: float = 0.0
    lce: float = 0.0
    ranknet: float = 0.0
    seed: int = 1
    max_query_tokens: int = 32
    max_tokens: int = 192
    token_budget: int = 2560
    precision: str = "auto"  # auto, bf16 or fp32
    evaluate_every: int = 500
    checkpoint_every: int = 100
    keep: str = "best"  # best on development data, or last
    interpolate: float = (
        1.0  # weight that the student recommends for itself against the first stage
    )
    card: Path | None = None  # text of the student's README.md
    dev: tuple[DevSet, ...] = field(default=())

    @property
    def losses(self) -> dict[str, float]:
        """Weights of the losses that are switched on, by name."""
        weights: dict[str, float] = {name: getattr(self, name) for name in LOSSES}
        return {name: weight for name, weight in weights.items() if weight}

    def check(self) -> None:
        """Fail before any work on settings that cannot be.

        Raises:
            PipelineError: says which and why.
        """
        for wrong, message, hint in self._mistakes():
            if wrong:
                raise PipelineError(f"[distill] {message}", hint)

    def _mistakes(self) -> Iterable[tuple[bool, str, str]]:
        yield not self.teacher_runs, "names no teacher run", 'add teacher_runs = ["teacher.run"]'
        weights = self.teacher_weights
        yield (
            bool(weights) and len(weights) != len(self.teacher_runs),
            f"has {len(self.teacher_runs)} teacher_runs and {len(weights)} teacher_weights",
            "give one weight to each run, or none at all",
        )
        yield bool(weights) and sum(weights) <= 0, "teacher_weights add up to 0", "raise one"
        yield not self.losses, "switches every loss off", f"give one a weight: {', '.join(LOSSES)}"
        yield "lce" in self.losses and not self.qrels, "lce needs qrels", "add qrels = ..."
        bad = [s for s in self.strata if len(s) != 3 or not 1 <= s[0] <= s[1] or s[2] < 1]
        yield bool(bad) or not self.strata, f"strata: {bad}", "a stratum is [first, last, count]"
        yield (
            sum(s[2] for s in self.strata if len(s) == 3) < 2,
            "strata give groups of one passage",
            "a group needs two or more",
        )
        for name in (
            "topics_per_step",
            "workers",
            "steps",
            "evaluate_every",
            "checkpoint_every",
        ):
            yield getattr(self, name) < 1, f"{name} = {getattr(self, name)}", "use 1 or more"
        yield (
            not 0 < self.max_query_tokens < self.max_tokens - 3 <= 509,
            f"max_query_tokens = {self.max_query_tokens}, max_tokens = {self.max_tokens}",
            "a pair has at most 512 tokens, more than a query and 3 special ones",
        )
        for name, known in (("precision", ["auto", "bf16", "fp32"]), ("keep", ["best", "last"])):
            value = getattr(self, name)
            yield value not in known, f"{name} = {value!r}", did_you_mean(str(value), known)


def learning_rate(step: int, config: DistillConfig) -> float:
    """Rate of one step, counted from 0."""
    end = config.decay_steps or config.steps
    # 1. Warm-up: a straight line up to the full rate.
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    # 2. Decay: a straight line down to the floor.
    if step < end:
        left = (end - step) / max(end - config.warmup, 1)
        return config.learning_rate * (config.floor + (1 - config.floor) * left)
    # 3. The floor.
    return config.learning_rate * config.floor


def resolved_precision(wish: str, device: torch.device) -> str:
    """Turn `auto` into bf16 where the device computes in it, else fp32."""
    if wish != "auto":
        return wish
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def recipe_of(config: DistillConfig, device: torch.device, precision: str) -> dict[str, Any]:
    """Everything that determines the weights: settings, digests of inputs, numeric signature."""
    flat = {k: v for k, v in asdict(config).items() if k not in (*NOT_IN_RECIPE, "dev")}
    recipe: dict[str, Any] = {"version": VERSION}
    for key, value in flat.items():
        if key == "collection":
            recipe[key] = collection.digest(value)
        elif isinstance(value, Path):
            recipe[key] = _content(value)
        elif key == "teacher_runs":
            recipe[key] = [_content(run) for run in value]
        else:
            recipe[key] = value
    recipe["precision"] = precision
    for one in config.dev:
        files = [_content(p) for p in (one.run, one.topics, one.qrels)]
        recipe[f"dev.{one.name}"] = [*files, one.measure, one.depth, one.limit]
    recipe["signature"] = (
        f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads"
    )
    # As JSON gives it back: lists for tuples.
    return json.loads(json.dumps(recipe))  # type: ignore[no-any-return]


def _content(path: Path) -> str:
    return store.digest_folder(path) if path.is_dir() else store.digest_file(path)


def progress_line(entry: dict[str, Any], pairs_per_second: float, left: float) -> str:
    """Tell how training goes: step, loss, development figures, pairs a second, time left."""
    dev = "".join(f", {name} {value:.4f}" for name, value in entry.get("dev", {}).items())
    hours, minutes = divmod(round(left / 60), 60)
    return (
        f"step {entry['step']:,}: loss {entry['loss']:.4f}{dev}, "
        f"{pairs_per_second:.0f} pairs/s, {hours}:{minutes:02} left"
    )
