"""Settings of a training, and what they mean at each step.

Nothing here loads torch: `pipeline status` asks for recipes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - settings are filled by their types at run time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.errors import PipelineError
from pipeline.notation import parse_measure
from pipeline.passages import Aggregation  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 4  # of the training procedure: raised when equal settings would give other weights
LOSS_NAMES = (
    "kl", "margin_mse", "mse_logits", "lce", "ranknet", "adr_mse", "soft_ce", "bce", "hinge",
)  # fmt: skip
NEED_LABELS = ("lce", "bce", "hinge")
INSIDE_NAMES = ("embedding", "hidden", "attention", "relations")
MAX_TOKENS = 512
NOT_IN_RECIPE = ("output", "work", "checkpoint_every")
# Settings that came later: recorded where they differ from their defaults, so that models made
# before stay fresh.
LATER = {
    "distill": frozenset(
        {
            "raw_scores", "adr_mse", "soft_ce", "bce", "hinge", "size", "projected_embeddings",
            "narrowed", "intermediate", "twin", "raw_text", "accumulate", "patience",
            "positive_windows",
        }
    ),
    "teach": frozenset({"positive_windows"}),
}  # fmt: skip


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
    field: str = "title"  # of TREC topic files
    # Of long documents, whose windows run and collection have: how a document's score is made of
    # theirs. `depth` counts documents then, and qrels are theirs.
    windows: Aggregation = "none"


@dataclass(frozen=True)
class Size:
    """The shape of a student of new, random weights: `[distill.size]`."""

    layers: int
    hidden: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class Intermediate:
    """Losses between the insides of student and teacher: `[distill.intermediate]`.

    The teacher is a BERT of the student's vocabulary. A loss with weight 0 is not computed.
    """

    teacher: Path
    embedding: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    relations: float = 0.0
    relation_heads: int = 12
    relation_layer: int = 0  # of the teacher, from 1; 0: the last. The student's is its last.
    projections: Literal["separate", "shared"] = "separate"

    @property
    def losses(self) -> dict[str, float]:
        """Weights of the losses that are switched on, by name."""
        weights: dict[str, float] = {name: getattr(self, name) for name in INSIDE_NAMES}
        return {name: weight for name, weight in weights.items() if weight}


@dataclass(frozen=True)
class TwinSettings:
    """Two towers instead of a cross-encoder: `[distill.twin]` (TwinBERT, 2002.06275)."""

    input: Literal["wordpiece", "triletter"] = "wordpiece"
    towers: Literal["shared", "separate"] = "shared"
    pooling: Literal["cls", "weighted"] = "weighted"
    size: int = 128  # numbers of a vector, after tanh; 0: the encoder's width, without tanh
    crossing: Literal["cosine", "residual"] = "cosine"


Mistake = tuple[bool, str, str]  # (whether it was made, what it is, what to do)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training has; steps and rates are per optimiser step.

    A loss with weight 0 is not computed.
    """

    table: ClassVar[str] = "distill"  # of the experiment file

    output: Path  # the model's folder
    work: Path  # checkpoints, best-STEP.safetensors, metrics.jsonl
    topics: Path | None = None
    collection: Path  # has the texts
    base: Path  # what training starts from
    qrels: Path | None = None  # hard labels, where there are any
    # Of long documents, whose windows the runs rank (`pipeline windows`): windows of a judged
    # document that are relevant, the first in the run's order; 0: passages are judged themselves.
    positive_windows: int = 0
    field: str = "title"  # of TREC topic files
    # Groups: [first, last, count] draws `count` candidates from the ranks first to last.
    strata: tuple[tuple[int, ...], ...] = ((1, 3, 1), (4, 10, 2), (11, 30, 2), (31, 100, 3))
    topics_per_step: int = 8
    workers: int = 2  # each takes a slice of a step's topics on its share of the CPU's threads
    accumulate: int = 1  # slices of each worker, one after the other: less memory, the same step
    steps: int = 1000
    learning_rate: float = 3e-4
    warmup: int = 50
    decay_steps: int = 0  # 0: all steps
    floor: float = 0.01  # share of the learning rate that is left at the end
    weight_decay: float = 0.01
    clip: float = 1.0
    lce: float = 0.0
    bce: float = 0.0
    hinge: float = 0.0
    seed: int = 1
    max_query_tokens: int = 32
    max_tokens: int = 128  # of a pair in training
    token_budget: int = 2560  # padded tokens of one forward pass
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    evaluate_every: int = 500
    checkpoint_every: int = 50
    patience: int = 0  # evaluations without gain on the development sets, then it ends; 0: never
    keep: Literal["best", "last"] = "best"  # best: on the development sets
    advised_tokens: int = 256  # of a pair in ranking: written into the model's folder
    interpolate: float = 1.0  # advised weight against the first stage, likewise
    card: Path | None = None  # text of the model's README.md
    dev: tuple[DevSet, ...] = ()

    @property
    def losses(self) -> dict[str, float]:
        """Weights of the losses over scores that are switched on, by name."""
        weights: dict[str, float] = {name: getattr(self, name, 0.0) for name in LOSS_NAMES}
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
                raise PipelineError(f"[{self.table}] {message}", hint)

    def _mistakes(self) -> Iterator[Mistake]:
        for name in (
            "topics_per_step", "workers", "accumulate", "steps", "evaluate_every",
            "checkpoint_every", "token_budget",
        ):  # fmt: skip
            yield getattr(self, name) < 1, f"{name} = {getattr(self, name)}", "use 1 or more"
        for name in (
            "learning_rate", "warmup", "decay_steps", "weight_decay", "patience",
            "positive_windows", *LOSS_NAMES,
        ):  # fmt: skip
            value = getattr(self, name, 0)
            yield not 0 <= value < math.inf, f"{name} = {value}", "use 0 or more"
        for name in ("clip", "scale"):
            value = getattr(self, name, 1.0)
            yield not 0 < value < math.inf, f"{name} = {value}", "use a positive number"
        for name in ("floor", "interpolate"):
            value = getattr(self, name)
            yield not 0 <= value <= 1, f"{name} = {value}", "use a number from 0 to 1"
        yield self.patience > 0 and not self.dev, "patience without [[dev]] sets", "name some"
        names = [one.name for one in self.dev]
        yield len({*names}) < len(names), "two dev sets have one name", "give each its own"
        for one in self.dev:
            parse_measure(one.measure)
            yield one.depth < 1, f"dev {one.name}: depth = {one.depth}", "use 1 or more"
            yield one.limit < 0, f"dev {one.name}: limit = {one.limit}", "use 0 or more"
        for name in ("max_tokens", "advised_tokens"):
            yield (
                not 0 < self.max_query_tokens < getattr(self, name) - 3 < MAX_TOKENS - 2,
                f"{name} = {getattr(self, name)}, max_query_tokens = {self.max_query_tokens}",
                f"a pair has {MAX_TOKENS} tokens at most, the query among them and 3 special ones",
            )

    def _ranking_mistakes(self) -> Iterator[Mistake]:
        """Of what is asked of groups of candidates."""
        yield self.topics is None, "has no topics to train on", "add [topics] to the file"
        for name in NEED_LABELS:
            yield name in self.losses and not self.qrels, f"{name} needs qrels", "add qrels = ..."
        bad = [s for s in self.strata if len(s) != 3 or not 1 <= s[0] <= s[1] or s[2] < 1]
        yield (
            self.positive_windows > 0 and not self.qrels,
            "positive_windows needs qrels",
            "add qrels = ... of the documents",
        )
        yield bool(bad) or not self.strata, f"strata: {bad}", "a stratum is [first, last, count]"
        yield self.group_size < 2, "strata give groups of one passage", "a group needs two or more"


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """The keys of `[distill]` in an experiment file.

    `base` is a BERT encoder, or a student, whose layers the student starts from. Losses compare
    logits of the student with standardised scores of the teacher, multiplied by `scale`.
    """

    teacher_runs: tuple[Path, ...] = ()  # the first decides which candidates there are
    teacher_weights: tuple[float, ...] = ()  # none: all equal
    scale: float = 2.0
    raw_scores: bool = False  # the runs' scores are logits and are learnt as they are
    layers: tuple[int, ...] = (0, 1, 2)
    size: Size | None = None  # new weights of this shape instead; only the vocabulary is the base's
    projected_embeddings: bool = False  # with size: the base's, cut to the directions that matter
    narrowed: bool = False  # with size: cut out of those `layers` of the base, which is a ranker
    train_embeddings: bool = False
    kl: float = 1.0
    margin_mse: float = 0.0
    mse_logits: float = 0.0
    ranknet: float = 0.0
    adr_mse: float = 0.0
    soft_ce: float = 0.0
    intermediate: Intermediate | None = None
    twin: TwinSettings | None = None
    raw_text: bool = False  # general distillation: learn the inside alone, from every text

    @property
    def losses(self) -> dict[str, float]:
        """Weights of the losses over scores that are switched on, by name."""
        return {} if self.raw_text else super().losses

    def _mistakes(self) -> Iterator[Mistake]:
        inside = self.intermediate.losses if self.intermediate else {}
        yield (
            len({*self.layers}) < len(self.layers),
            f"layers = {list(self.layers)}: one is there twice",
            "name each once",
        )
        yield (
            self.size is not None
            and not (self.train_embeddings or self.projected_embeddings or self.narrowed),
            "size makes new embeddings, which would stay random",
            "add train_embeddings = true or projected_embeddings = true",
        )
        yield (
            self.projected_embeddings and self.size is None,
            "projected_embeddings without size",
            "a student cut out of layers has their embeddings whole",
        )
        yield (
            self.narrowed and (self.size is None or self.projected_embeddings or self.raw_text),
            "narrowed without size, or beside projected_embeddings or raw_text",
            "a ranker is cut to a size, and learns to rank from there",
        )
        if self.size is not None:
            shape = [self.size.layers, self.size.hidden, self.size.heads, self.size.intermediate]
            yield (
                min(shape) < 1 or self.size.hidden % self.size.heads != 0,
                f"size: {self.size.hidden} cannot be cut into {self.size.heads} heads",
                "hidden has to be a multiple of heads",
            )
        yield (
            self.twin is not None and (bool(inside) or self.raw_text or self.size is not None),
            "twin beside intermediate, raw_text or size",
            "two towers begin with a BERT's layers and learn from scores",
        )
        if self.intermediate is not None:
            heads = self.intermediate.relation_heads
            yield heads < 1, f"intermediate.relation_heads = {heads}", "use 1 or more"
            for name, weight in self.intermediate.losses.items():
                yield not 0 < weight < math.inf, f"intermediate.{name} = {weight}", "use 0 or more"
        yield self.twin is not None and self.twin.size < 0, "twin.size is negative", "use 0 or more"
        if self.raw_text:
            yield not inside, "raw_text without [distill.intermediate]", "say what is to be learnt"
        else:
            yield from self._score_mistakes()
            yield from self._ranking_mistakes()
            yield (
                not self.losses and not inside,
                "switches every loss off",
                f"weigh one of {', '.join(LOSS_NAMES)}",
            )
        yield from super()._mistakes()

    def _score_mistakes(self) -> Iterator[Mistake]:
        yield not self.teacher_runs, "names no teacher run", 'add teacher_runs = ["teacher.run"]'
        weights = self.teacher_weights
        yield (
            bool(weights) and len(weights) != len(self.teacher_runs),
            f"has {len(self.teacher_runs)} teacher_runs and {len(weights)} teacher_weights",
            "give one weight to each run, or none at all",
        )
        for weight in weights:
            yield not 0 <= weight < math.inf, f"teacher_weights: {weight}", "use 0 or more"
        yield bool(weights) and sum(weights) <= 0, "teacher_weights add up to 0", "raise one"


@dataclass(frozen=True, kw_only=True)
class TeachConfig(TrainConfig):
    """The keys of `[teach]` in an experiment file: fine-tuning of a large ranker by labels.

    `base` is any encoder, cross-encoders among them. Candidates that are judged relevant and that
    the run lacks join it at the end, but for windows of documents, which have to be in a run of
    their scores; topics without any known relevant passage are left out. A
    group is one relevant passage and `strata` of the others: negatives from the ranks you choose.
    """

    table: ClassVar[str] = "teach"

    candidates: Path  # a run, as the first stage makes it
    logits: Literal[1, 2] = 1  # two: scored by their difference, which makes bce their softmax's CE
    strata: tuple[tuple[int, ...], ...] = ((1, 100, 8),)
    lce: float = 1.0
    learning_rate: float = 2e-5
    warmup: int = 100
    max_query_tokens: int = 64
    max_tokens: int = 192

    def _mistakes(self) -> Iterator[Mistake]:
        yield not self.losses, "switches every loss off", f"weigh one of {', '.join(NEED_LABELS)}"
        yield from self._ranking_mistakes()
        yield from super()._mistakes()


def learning_rate(step: int, config: TrainConfig) -> float:
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
