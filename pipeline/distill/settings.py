"""Settings of a training, and what they mean at each step.

Nothing here loads torch: `pipeline status` asks for recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - settings are filled by their types at run time
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1  # of the training procedure: raised when equal settings would give other weights
LOSS_NAMES = ("kl", "margin_mse", "mse_logits", "lce", "ranknet")
MAX_TOKENS = 512
NOT_IN_RECIPE = ("output", "work", "checkpoint_every")


@dataclass(frozen=True)
class DevSet:
    """Candidates to rerank and what they are measured by; one `[[distill.dev]]` table each.

    `limit` topics are taken, chosen by a digest of their ids; 0 takes all.
    """

    name: str
    run: Path
    topics: Path
    collection: Path
    qrels: Path
    measure: str = "nDCG@10"
    depth: int = 50
    limit: int = 0


@dataclass(frozen=True)
class DistillConfig:
    """The keys of `[distill]` in an experiment file; steps and rates are per optimiser step.

    A loss with weight 0 is not computed. Losses compare logits of the student with standardised
    scores of the teacher, multiplied by `scale`.
    """

    output: Path  # the student's folder
    work: Path  # checkpoints, best.safetensors, metrics.jsonl
    topics: Path
    collection: Path  # has the texts
    base: Path  # a BERT encoder, or a student, whose layers the student starts from
    teacher_runs: tuple[Path, ...]  # the first decides which candidates there are
    teacher_weights: tuple[float, ...] = ()  # none: all equal
    scale: float = 2.0
    qrels: Path | None = None  # hard labels, where there are any
    field: str = "title"  # of TREC topic files
    layers: tuple[int, ...] = (0, 1, 2)
    train_embeddings: bool = False
    # Groups: [first, last, count] draws `count` candidates from the teacher's ranks first to last.
    strata: tuple[tuple[int, ...], ...] = ((1, 3, 1), (4, 10, 2), (11, 30, 2), (31, 100, 3))
    topics_per_step: int = 8
    workers: int = 2  # each takes a slice of a step's topics on its share of the CPU's threads
    steps: int = 1000
    learning_rate: float = 3e-4
    warmup: int = 50
    decay_steps: int = 0  # 0: all steps
    floor: float = 0.01  # share of the learning rate that is left at the end
    weight_decay: float = 0.01
    clip: float = 1.0
    kl: float = 1.0
    margin_mse: float = 0.0
    mse_logits: float = 0.0
    lce: float = 0.0
    ranknet: float = 0.0
    seed: int = 1
    max_query_tokens: int = 32
    max_tokens: int = 128  # of a pair in training
    token_budget: int = 2560  # padded tokens of one forward pass
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    evaluate_every: int = 500
    checkpoint_every: int = 50
    keep: Literal["best", "last"] = "best"  # best: on the development sets
    advised_tokens: int = 256  # of a pair in ranking: written into the student's folder
    interpolate: float = 1.0  # advised weight against the first stage, likewise
    card: Path | None = None  # text of the student's README.md
    dev: tuple[DevSet, ...] = ()

    @property
    def losses(self) -> dict[str, float]:
        """Weights of the losses that are switched on, by name."""
        weights: dict[str, float] = {name: getattr(self, name) for name in LOSS_NAMES}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def group_size(self) -> int:
        """Passages in a group."""
        return sum(count for _, _, count in self.strata)

    def check(self) -> None:
        """Fail before any work on settings that cannot be.

        Raises:
            PipelineError: says which and why.
        """
        for wrong, message, hint in self._mistakes():
            if wrong:
                raise PipelineError(f"[distill] {message}", hint)

    def _mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not self.teacher_runs, "names no teacher run", 'add teacher_runs = ["teacher.run"]'
        weights = self.teacher_weights
        yield (
            bool(weights) and len(weights) != len(self.teacher_runs),
            f"has {len(self.teacher_runs)} teacher_runs and {len(weights)} teacher_weights",
            "give one weight to each run, or none at all",
        )
        yield bool(weights) and sum(weights) <= 0, "teacher_weights add up to 0", "raise one"
        yield not self.losses, "switches every loss off", f"weigh one of {', '.join(LOSS_NAMES)}"
        yield "lce" in self.losses and not self.qrels, "lce needs qrels", "add qrels = ..."
        bad = [s for s in self.strata if len(s) != 3 or not 1 <= s[0] <= s[1] or s[2] < 1]
        yield bool(bad) or not self.strata, f"strata: {bad}", "a stratum is [first, last, count]"
        yield self.group_size < 2, "strata give groups of one passage", "a group needs two or more"
        for name in ("topics_per_step", "workers", "steps", "evaluate_every", "checkpoint_every"):
            yield getattr(self, name) < 1, f"{name} = {getattr(self, name)}", "use 1 or more"
        for name in ("max_tokens", "advised_tokens"):
            yield (
                not 0 < self.max_query_tokens < getattr(self, name) - 3 < MAX_TOKENS - 2,
                f"{name} = {getattr(self, name)}, max_query_tokens = {self.max_query_tokens}",
                f"a pair has {MAX_TOKENS} tokens at most, the query among them and 3 special ones",
            )


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


def progress_line(entry: dict[str, Any], pairs_per_second: float, pairs_left: int) -> str:
    """Tell how training goes: step, loss, development figures, pairs a second, time left."""
    dev = "".join(f", {name} {value:.4f}" for name, value in entry.get("dev", {}).items())
    hours, minutes = divmod(round(pairs_left / pairs_per_second / 60), 60)
    return (
        f"step {entry['step']:,}: loss {entry['loss']:.4f}{dev}, "
        f"{pairs_per_second:.0f} pairs/s, {hours}:{minutes:02} left"
    )
