"""Losses of distillation: plain functions on tensors of shape (topics, group).

`student` holds raw logits, `teacher` scores on a logit scale, `labels` 1 for a known relevant
passage and 0 for anything else. Each returns a scalar, the mean over topics: over those that it can
use (`usable`). `LOSSES` names them for experiment files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from pipeline.distill.settings import NEED_LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


def margin_mse(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of the margins of all pairs of a group (Hofstätter et al., 2010.02666).

    The paper takes one pair (relevant, not relevant) a topic; here every pair i < j counts, which
    is the same as twice the variance of the difference between student and teacher.
    """
    del labels
    difference = student - teacher
    margins = difference.unsqueeze(2) - difference.unsqueeze(1)
    size = student.shape[1]
    return margins.square().sum(dim=(1, 2)).div(size * (size - 1)).mean()


def kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Listwise Kullback-Leibler divergence, teacher to student, over the softmax of the group.

    As in RocketQAv2 (2110.07367). The temperature is 1: `scale` of the teacher's scores sets how
    peaked the target is.
    """
    del labels
    return F.kl_div(
        student.log_softmax(dim=1),
        teacher.log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )


def mse_logits(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Pointwise squared error of raw logits (the sentence-transformers recipe; 1503.02531, 2.1)."""
    del labels
    return F.mse_loss(student, teacher)


def lce(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Localized contrastive estimation with hard labels (Gao, Dai, Callan, 2101.08751).

    Cross-entropy of each relevant passage against the group's others; other relevant passages are
    left out of its denominator. Topics whose group holds none, or nothing else, count nothing.
    """
    del teacher
    relevant = labels > 0
    usable = relevant & (~relevant).any(dim=1, keepdim=True)
    if not usable.any():
        return student.sum() * 0.0
    others = student.masked_fill(relevant, float("-inf")).logsumexp(dim=1, keepdim=True)
    each = F.softplus(others - student)  # -log(e^s / (e^s + sum of the others))
    per_topic = each.masked_fill(~usable, 0.0).sum(dim=1)
    return (per_topic / usable.sum(dim=1).clamp(min=1)).sum() / usable.any(dim=1).sum()


def ranknet(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """RankNet over all pairs the teacher orders (Burges et al. 2005; as in 2405.07920).

    Topics whose scores are all equal count nothing.
    """
    del labels
    ordered = teacher.unsqueeze(2) > teacher.unsqueeze(1)
    if not ordered.any():
        return student.sum() * 0.0
    margins = student.unsqueeze(2) - student.unsqueeze(1)
    return _over_pairs(F.softplus(-margins), ordered)


def adr_mse(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Squared error of approximate ranks, discounted by the teacher's rank (2405.07920).

    The student's rank of a passage is 1 plus the sigmoids of how far each other passage stands
    above it; the teacher's counts from 1, equal scores sharing the best rank.
    """
    del labels
    above = (student.unsqueeze(1) - student.unsqueeze(2)).sigmoid()  # [t, i, j]: j above i
    approximate = above.sum(dim=2) + 0.5  # 1, less the passage's sigmoid(0) over itself
    rank = 1.0 + (teacher.unsqueeze(1) > teacher.unsqueeze(2)).sum(dim=2).to(student.dtype)
    return ((approximate - rank).square() / (rank + 1).log2()).mean()


def soft_ce(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Pointwise cross-entropy with the teacher's probability (TinyBERT 1909.10351, TwinBERT).

    A logit here is the margin z1 - z0 of a two-class ranker, so sigmoid is its softmax and this is
    the papers' soft cross-entropy, summed over the two classes, at temperature 1. Scores must be
    the teacher's logits themselves: set `raw_scores`, and `scale` to 1 / temperature.
    """
    del labels
    return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())


def bce(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Pointwise cross-entropy with hard labels; of two logits' difference it is their softmax CE.

    The hard-label loss of Simplified TinyBERT (2009.07531) and of pointwise rerankers (1901.04085).
    Topics whose group holds nothing relevant count nothing: a label that is not known is no zero.
    """
    del teacher
    usable = (labels > 0).any(dim=1)
    if not usable.any():
        return student.sum() * 0.0
    return F.binary_cross_entropy_with_logits(student[usable], labels[usable])


def hinge(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Pairwise hinge with margin 1 over all pairs (relevant, not relevant) of a group.

    Topics without such a pair count nothing.
    """
    del teacher
    pairs = (labels > 0).unsqueeze(2) & (labels <= 0).unsqueeze(1)
    if not pairs.any():
        return student.sum() * 0.0
    margins = student.unsqueeze(2) - student.unsqueeze(1)
    return _over_pairs((1.0 - margins).clamp(min=0.0), pairs)


def _over_pairs(each: Tensor, pairs: Tensor) -> Tensor:
    """Mean over the pairs of each topic, (topics, group, group), then over topics that have any."""
    sums = each.masked_fill(~pairs, 0.0).sum(dim=(1, 2))
    means: Tensor = sums / pairs.sum(dim=(1, 2)).clamp(min=1)
    return means.sum() / pairs.any(dim=2).any(dim=1).sum()


def usable(name: str, teacher: Tensor, labels: Tensor) -> int:
    """How many topics a loss is the mean of.

    Losses by labels need known relevant passages, RankNet scores that differ.
    """
    if name == "ranknet":
        return int((teacher.amax(dim=1) > teacher.amin(dim=1)).sum())
    if name not in NEED_LABELS:
        return len(labels)
    relevant = labels > 0
    some = relevant.any(dim=1)
    return int((some if name == "bce" else some & (~relevant).any(dim=1)).sum())


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "margin_mse": margin_mse,
    "kl": kl,
    "mse_logits": mse_logits,
    "lce": lce,
    "ranknet": ranknet,
    "adr_mse": adr_mse,
    "soft_ce": soft_ce,
    "bce": bce,
    "hinge": hinge,
}


def total(
    weights: Mapping[str, float],
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    own: Mapping[str, Tensor] | None = None,
    own_weights: Mapping[str, float] | None = None,
    step: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the named losses, and each term by its own for the log.

    Args:
        own, own_weights: further losses, computed already.
        step: teacher and labels of all topics of a step, of which these are a slice. A topic then
            counts as much as in the mean over the step, however many of its slice a loss can use.
    """
    whole = (teacher, labels) if step is None else step
    of_topics = len(whole[1]) / len(labels)
    terms = {}
    for name in weights:
        share = usable(name, teacher, labels) / max(usable(name, *whole), 1) * of_topics
        terms[name] = LOSSES[name](student, teacher, labels) * share
    return weighted(terms | dict(own or {}), {**weights, **(own_weights or {})})


def weighted(
    terms: Mapping[str, Tensor], weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """Add up terms by their weights; and each term, unweighted, for the log."""
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: float(term.detach()) for name, term in terms.items()}
