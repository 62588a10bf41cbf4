"""The training loop: groups of candidates in, a student folder out.

Which topics and candidates a step sees, its learning rate and its batches are functions of the
settings and the step's number, so a killed training resumes from its checkpoint and ends in the
same weights, bit for bit on one kind of CPU with the same number of threads.
"""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pipeline import store
from pipeline.collection import load_texts
from pipeline.distill import checkpoint, losses
from pipeline.distill.development import Development
from pipeline.distill.groups import (
    Stratum,
    TeacherRun,
    Tokens,
    epoch_order,
    group,
    read_pool,
    relevant,
)
from pipeline.distill.settings import learning_rate, progress_line, recipe_of, resolved_precision
from pipeline.distill.student import (
    Limits,
    initial_student,
    load_weights,
    pair_logits,
    save_student,
    save_weights,
    special_ids,
)
from pipeline.errors import PipelineError
from pipeline.topics import read_topics
from pipeline.trec import read_qrels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from pipeline.distill.groups import Group
    from pipeline.distill.settings import DistillConfig


class Slice(NamedTuple):
    """What one worker adds to a step."""

    loss: float
    terms: dict[str, float]
    gradients: tuple[Tensor, ...]


def distill(config: DistillConfig, report: Callable[[str], None]) -> Path:
    """Train a student, resuming from `config.work` if a checkpoint is there; return its folder.

    `report` gets a line of progress now and then.

    Raises:
        PipelineError: unusable settings or inputs, or a checkpoint of another recipe.
    """
    config.check()
    threads = max(1, torch.get_num_threads() // config.workers)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolved_precision(config.precision, device)
    recipe = recipe_of(config, device, precision)

    # Data: everything is read and tokenised once.
    topics = read_topics(config.topics)
    shares = config.teacher_weights or (1.0,) * len(config.teacher_runs)
    pool = read_pool(list(map(TeacherRun, config.teacher_runs, shares)), topics)
    positives = relevant(pool, read_qrels(config.qrels)) if config.qrels else {}
    strata = [Stratum(*numbers) for numbers in config.strata]
    group_size = sum(stratum.count for stratum in strata)
    qids = [qid for qid, row in pool.rows.items() if len(row.docs) >= group_size]
    student, tokenizer = initial_student(config.base, config.layers, config.seed)
    limits, special = Limits(config.max_query_tokens, config.max_tokens), special_ids(tokenizer)
    texts = load_texts(config.collection, pool.docids)
    passages = Tokens(tokenizer, (texts[docid] for docid in pool.docids), limits.pair)
    queries = dict(
        zip(qids, Tokens(tokenizer, (topics[q] for q in qids), limits.query), strict=True)
    )
    development = Development(config.dev, tokenizer, limits)
    del texts
    report(f"{len(qids):,} topics in groups of {group_size}, {len(pool.docids):,} passages")

    # Model and optimiser.
    student.to(device).train()
    if not config.train_embeddings:
        student.bert.embeddings.word_embeddings.requires_grad_(requires_grad=False)
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    plain = [p for name, p in named if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in named if not (name.endswith("bias") or "LayerNorm" in name)]
    decay = {"params": decayed, "weight_decay": config.weight_decay}
    optimiser = torch.optim.AdamW(
        [decay, {"params": plain, "weight_decay": 0.0}], lr=config.learning_rate, eps=1e-6
    )

    # Where we are.
    state = checkpoint.load(config.work / "checkpoints", recipe, student, optimiser) or {
        "step": 0, "epoch": 0, "position": 0, "best": None, "log": [],
    }  # fmt: skip
    if state["step"]:
        report(f"resuming after step {state['step']:,}")
    order = epoch_order(qids, config.seed, state["epoch"])
    # Workers of one thread each, summed in order, outrun one worker of many threads, and more so on
    # a busy machine: they wait for each other once a step instead of once a multiplication.
    workers = ThreadPoolExecutor(
        config.workers, initializer=partial(torch.set_num_threads, threads)
    )
    started, pairs, recent = time.monotonic(), 0, []

    def gradients(part: list[Group]) -> Slice:
        """Do the share of one worker: its loss, as part of the step's mean, and its gradients."""
        # No cache of casts: it would be shared, and freed, between workers.
        cast = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
        )
        with cast:
            scores = pair_logits(
                student,
                [queries[g.qid] for g in part for _ in g.docs],
                [passages[int(doc)] for g in part for doc in g.docs],
                special, limits, config.token_budget,
            ).view(len(part), group_size)  # fmt: skip
        teacher = torch.from_numpy(np.stack([g.scores for g in part])).to(device) * config.scale
        labels = torch.from_numpy(np.stack([g.labels for g in part])).to(device)
        loss, terms = losses.total(config.losses, scores, teacher, labels)
        loss = loss * (len(part) / config.topics_per_step)
        return Slice(float(loss.detach()), terms, torch.autograd.grad(loss, parameters))

    while state["step"] < config.steps:
        # 1. The topics of this step; an epoch ends where too few are left.
        if state["position"] + config.topics_per_step > len(order):
            state["epoch"], state["position"] = state["epoch"] + 1, 0
            order = epoch_order(qids, config.seed, state["epoch"])
        chosen = order[state["position"] : state["position"] + config.topics_per_step]
        groups = [
            group(q, pool, positives.get(q, set()), strata, config.seed, state["epoch"])
            for q in chosen
        ]

        # 2. Forward and backward: a slice of the topics for each worker, slices of like length.
        groups.sort(key=lambda g: sum(len(passages[int(doc)]) for doc in g.docs))
        parts = [groups[n :: config.workers] for n in range(min(config.workers, len(groups)))]
        results = list(workers.map(gradients, parts))
        for parameter, *slices in zip(parameters, *(r.gradients for r in results), strict=True):
            parameter.grad = torch.stack(slices).sum(dim=0)
        recent.append(sum(r.loss for r in results))

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
        pairs += len(chosen) * group_size

        # 4. Now and then: log, evaluate, save.
        step, last = state["step"], state["step"] == config.steps
        due = last or step % config.evaluate_every == 0
        if due or step % config.checkpoint_every == 0:
            elapsed = time.monotonic() - started
            entry: dict[str, Any] = {
                "step": step, "epoch": state["epoch"], "loss": sum(recent) / len(recent),
                **results[0].terms, "learning_rate": learning_rate(step - 1, config),
            }  # fmt: skip
            recent = []
            if development and due:
                student.eval()
                entry["dev"] = development.evaluate(
                    student, special, config.token_budget, precision
                )
                student.train()
                score = sum(entry["dev"].values()) / len(entry["dev"])
                if state["best"] is None or score > state["best"]["score"]:
                    state["best"] = {"step": step, "score": score}
                    save_weights(config.work / "best.safetensors", student)
            state["log"].append(entry)
            checkpoint.save(config.work / "checkpoints", recipe, state, student, optimiser)
            lines = "".join(json.dumps(row) + "\n" for row in state["log"])
            store.write_bytes(config.work / "metrics.jsonl", lines.encode())
            left = elapsed / pairs * group_size * config.topics_per_step * (config.steps - step)
            report(progress_line(entry, pairs / elapsed, left))

    # The student that is kept.
    if config.keep == "best" and state["best"]:
        load_weights(config.work / "best.safetensors", student)
    settings = {
        "max_query_tokens": limits.query,
        "max_tokens": limits.pair,
        "interpolate": config.interpolate,
    }
    card = config.card.read_text("utf-8") if config.card else f"# {config.output.name}\n"
    save_student(student.cpu(), tokenizer, config.output, settings, card)
    return config.output
