"""The training loop, from top to bottom: for students and teachers, scores and insides alike.

What is learnt is an `Objective`. Which of its units a step sees, its learning rate and its batches
are functions of the settings and the step's number, so a killed training resumes from its
checkpoint and ends in the same weights, bit for bit on one kind of CPU with the same number of
threads.
"""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pipeline import store
from pipeline.distill import checkpoint
from pipeline.distill.groups import epoch_order
from pipeline.distill.objectives import Objective, objective
from pipeline.distill.settings import learning_rate, progress_line
from pipeline.distill.student import load_weights, save_weights
from pipeline.errors import PipelineError
from pipeline.report import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from pipeline.distill.settings import DistillConfig, TeachConfig


class Trained(NamedTuple):
    """What was trained, with the weights that are kept, and what is told about it."""

    learnt: Objective
    counts: dict[str, Any]
    details: dict[str, Any]


class Slice(NamedTuple):
    """What a part of a step's topics adds to it."""

    terms: dict[str, float]  # the loss and each term of it, as shares of the step's means
    gradients: tuple[Tensor | None, ...]


def train(
    config: DistillConfig | TeachConfig, recipe: dict[str, Any], reporter: Reporter = SILENT
) -> Trained:
    """Run the loop, going on from the last checkpoint in `config.work`.

    Args:
        recipe: what the checkpoints are bound to, flat.

    Raises:
        PipelineError: unusable settings or inputs, or a checkpoint of another recipe.
    """
    threads = max(1, torch.get_num_threads() // config.workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolved_precision(config.precision, device)
    signature = f"torch {torch.__version__}, {device.type}, {precision}, {threads} threads a worker"
    # No cache of casts: it would be shared, and freed, between workers.
    bf16 = precision == "bf16"
    cast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)
    learnt = objective(config, device, cast, reporter)
    model = learnt.module
    step_pairs = config.topics_per_step * learnt.pairs

    # Optimiser: weights decay, biases and normalisation do not.
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    plain = [p for name, p in named if name.endswith("bias") or "norm" in name.lower()]
    decayed = [p for name, p in named if not (name.endswith("bias") or "norm" in name.lower())]
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        eps=1e-6,
        fused=True,
    )

    # Where we are.
    work, bound = config.work, recipe | {"signature": signature}
    has_best = partial(_has_best, work)
    state = checkpoint.load(work / "checkpoints", bound, model, optimiser, reporter, has_best) or {
        "step": 0, "epoch": 0, "position": 0, "best": None, "log": [],
    }  # fmt: skip
    if state["step"]:
        reporter.notice(f"going on after step {state['step']:,} of {config.steps:,}")
    order = epoch_order(learnt.units, config.seed, state["epoch"])
    began, first = time.monotonic(), state["step"]
    recent: list[dict[str, float]] = []
    # Workers of one thread each, summed in order, outrun one worker of many threads, and more so on
    # a busy machine: they wait for each other once a step instead of once a multiplication.
    workers = ThreadPoolExecutor(
        config.workers, initializer=partial(torch.set_num_threads, threads)
    )

    def gradients(part: Sequence[Any], step: Sequence[Any]) -> Slice:
        """Do one part of a step: its loss, as part of the step's mean, and its gradients."""
        loss, terms = learnt.loss(part, step)
        share = len(part) / config.topics_per_step
        loss = loss * share
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        told = {"loss": float(loss.detach())} | {n: value * share for n, value in terms.items()}
        return Slice(told, found)

    while state["step"] < config.steps and not _stalled(state, config):
        # 1. The topics or texts of this step; an epoch ends where too few are left.
        if state["position"] + config.topics_per_step > len(order):
            state["epoch"], state["position"] = state["epoch"] + 1, 0
            order = epoch_order(learnt.units, config.seed, state["epoch"])
        chosen = order[state["position"] : state["position"] + config.topics_per_step]
        drawn = [learnt.draw(unit, state["epoch"]) for unit in chosen]

        # 2. Forward and backward: `accumulate` slices for each worker, slices of like length.
        drawn.sort(key=learnt.tokens)
        count = min(config.workers * config.accumulate, len(drawn))
        cut = (drawn[n::count] for n in range(count))
        results = list(workers.map(partial(gradients, step=drawn), cut))
        for parameter, *slices in zip(parameters, *(r.gradients for r in results), strict=True):
            used = [gradient for gradient in slices if gradient is not None]
            parameter.grad = reduce(torch.add, used) if used else None
        recent.append(_added(r.terms for r in results))

        # 3. Update.
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        if not math.isfinite(float(norm)):
            raise PipelineError(
                f"step {state['step'] + 1}: the gradient is not finite", "lower learning_rate"
            )
        for share in optimiser.param_groups:
            share["lr"] = learning_rate(state["step"], config)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state["step"] += 1
        state["position"] += len(chosen)
        step, last = state["step"], state["step"] == config.steps
        reporter.advance(step * step_pairs, config.steps * step_pairs, "pairs")

        # 4. Now and then: log, evaluate, save.
        due = last or step % config.evaluate_every == 0
        if due or step % config.checkpoint_every == 0:
            speed = (step - first) * step_pairs / (time.monotonic() - began)
            entry: dict[str, Any] = {
                "step": step, "epoch": state["epoch"],
                **{name: value / len(recent) for name, value in _added(recent).items()},
                "learning_rate": learning_rate(step - 1, config),
            }  # fmt: skip
            recent = []
            if due and (dev := learnt.evaluate()):
                entry["dev"], score = dev, sum(dev.values()) / len(dev)
                if score > (state["best"] or {"score": -math.inf})["score"]:
                    weights = _keep_best(work, step, model)
                    state["best"] = {"step": step, "score": score, "dev": dev, "weights": weights}
            state["log"].append(entry)
            checkpoint.save(work / "checkpoints", bound, state, model, optimiser)
            lines = "".join(json.dumps(row) + "\n" for row in state["log"])
            store.write_bytes(work / "metrics.jsonl", lines.encode())
            reporter.notice(progress_line(entry, speed, (config.steps - step) * step_pairs))

    # The weights that are kept.
    workers.shutdown()
    kept = _kept(state, config, model, reporter)
    counts = {
        "pairs": state["step"] * step_pairs, **learnt.counts,
        "step": kept["step"], "dev": kept.get("dev", {}),
    }  # fmt: skip
    return Trained(learnt, counts, {"signature": signature})


def _stalled(state: dict[str, Any], config: DistillConfig | TeachConfig) -> bool:
    """Whether `patience` evaluations in a row brought nothing better: early stop."""
    if not config.patience or state["best"] is None:
        return False
    since: int = state["step"] - state["best"]["step"]
    return since >= config.patience * config.evaluate_every


def _best(work: Path, step: int) -> Path:
    """Where weights lie that were the best; each step's by a name of its own.

    So no file stands for another's figures, whatever is killed in between.
    """
    return work / f"best-{step:08d}.safetensors"


def _keep_best(work: Path, step: int, model: torch.nn.Module) -> str:
    """Save weights and return their digest; those that older checkpoints speak of stay as well."""
    digest = save_weights(_best(work, step), model)
    for old in sorted(work.glob("best-*.safetensors"))[: -checkpoint.KEPT - 1]:
        store.remove(old)
    return digest


def _has_best(work: Path, state: dict[str, Any]) -> bool:
    """Whether the best weights that a checkpoint speaks of are there as they were written."""
    if not state["best"]:
        return True
    path = _best(work, state["best"]["step"])
    return path.is_file() and store.digest_file(path) == state["best"]["weights"]


def _kept(
    state: dict[str, Any], config: DistillConfig | TeachConfig, model: torch.nn.Module,
    reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    """Put the weights that are kept into the model; returns what is known of them."""
    last, best = state["log"][-1], state["best"]
    if state["step"] < config.steps:
        reporter.notice(f"no gain since step {best['step']:,}: ends with step {state['step']:,}")
    if config.keep == "last" or not best:
        return dict(last)
    load_weights(_best(config.work, best["step"]), model)
    return dict(best)


def _added(some: Iterable[dict[str, float]]) -> dict[str, float]:
    """Sums of what stands under the same names."""
    total: dict[str, float] = {}
    for each in some:
        for name, value in each.items():
            total[name] = total.get(name, 0.0) + value
    return total


def resolved_precision(wish: str, device: torch.device) -> str:
    """Turn `auto` into bf16 where the device computes in it, else fp32."""
    if wish != "auto":
        return wish
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
