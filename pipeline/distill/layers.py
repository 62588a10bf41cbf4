"""Losses between the insides of teacher and student: TinyBERT (1909.10351), MiniLMv2 (2012.15828).

Every loss is the mean over real positions of each sequence, then over sequences: neither padding
nor the way sequences are batched changes its value. Masks are (sequences, positions), 1 for tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.distill.forward import Inside
    from pipeline.distill.settings import Intermediate


def uniform_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Teacher's layer g(m) = m N / M for each layer m of the student; 0 is the embeddings.

    Raises:
        PipelineError: the student's depth does not divide the teacher's.
    """
    if teacher_layers % student_layers:
        raise PipelineError(
            f"{student_layers} layers cannot be mapped evenly onto {teacher_layers} of the teacher",
            "choose a depth that divides the teacher's, or leave these losses out",
        )
    step = teacher_layers // student_layers
    return {layer: layer * step for layer in range(student_layers + 1)}


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of hidden states of one width, shape (sequences, positions, width)."""
    errors = (student.float() - teacher.float()).square().mean(dim=2)
    return _mean(errors, mask)


def attention_mse(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor
) -> Tensor:
    """Mean squared error of attention scores before their softmax, over heads and real pairs.

    Args:
        student, teacher: queries and keys, (sequences, heads, positions, width of a head); widths
            may differ, numbers of heads may not.
    """
    difference = _scores(*student) - _scores(*teacher)
    errors = difference.square().mean(dim=1)  # over heads: (sequences, positions, positions)
    weights = mask.to(errors.dtype)
    pairs = weights[:, :, None] * weights[:, None, :]
    return ((errors * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))).mean()


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Divergence of self-relations: softmax(x x' / sqrt(width)), teacher to student.

    Args:
        student, teacher: queries, keys or values, (sequences, heads, positions, width of a head):
            their heads are joined and cut anew into `heads`, so neither count nor width must agree.
    """
    bias = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -1e4)[:, None, None]

    def log_relation(vectors: Tensor) -> Tensor:
        joined = vectors.transpose(1, 2).flatten(2)
        cut = joined.view(*joined.shape[:2], heads, -1).transpose(1, 2)
        return (_scores(cut, cut) + bias).log_softmax(dim=-1)

    divergence = F.kl_div(
        log_relation(student), log_relation(teacher), reduction="none", log_target=True
    )
    return _mean(divergence.sum(dim=3).mean(dim=1), mask)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Scaled dot products in float32."""
    width: int = queries.shape[-1]
    return torch.matmul(queries.float(), keys.float().transpose(-1, -2)) / math.sqrt(width)


def _mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real positions of each sequence, then over sequences."""
    weights = mask.to(errors.dtype)
    each: Tensor = (errors * weights).sum(dim=1) / weights.sum(dim=1)
    return each.mean()


class Projections(torch.nn.Module):
    """Learnt maps from the student's width to the teacher's; trained, and left out of the student.

    `separate` as in the paper: one matrix for embeddings, one for hidden states, no bias. `shared`
    as in the released code: one linear layer with bias for both. Between equal widths they begin as
    the identity: a student cut from its teacher then begins near it.
    """

    def __init__(self, width: int, teacher_width: int, how: str) -> None:
        super().__init__()
        shared = how == "shared"
        self.first = torch.nn.Linear(width, teacher_width, bias=shared)
        self.second = None if shared else torch.nn.Linear(width, teacher_width, bias=False)
        for linear in self.children():
            assert isinstance(linear, torch.nn.Linear)  # noqa: S101 - for the type checker
            if width == teacher_width:
                torch.nn.init.eye_(linear.weight)
            else:
                torch.nn.init.normal_(linear.weight, std=0.02)  # as BERT's own
            if linear.bias is not None:
                torch.nn.init.zeros_(linear.bias)

    def embedding(self, output: Tensor) -> Tensor:
        """Map the embeddings' output."""
        return self.first(output.float())  # type: ignore[no-any-return]

    def hidden(self, state: Tensor) -> Tensor:
        """Map the hidden state of any layer."""
        return (self.second or self.first)(state.float())  # type: ignore[no-any-return]


class Comparison:
    """Which layers are compared by which losses, and with what weights.

    Raises:
        PipelineError: depth, heads or widths of student and teacher do not allow a loss asked for.
    """

    def __init__(self, student: Any, teacher: Any, settings: Intermediate) -> None:
        self._settings = settings
        depth, deep = student.num_hidden_layers, teacher.num_hidden_layers
        losses = settings.losses
        self.student_layers: set[int] = set()
        self.teacher_layers: set[int] = set()
        self._map: dict[int, int] = {}
        self._relation = depth, settings.relation_layer or deep
        if losses.keys() & {"embedding", "hidden", "attention"}:
            self._map = uniform_map(depth, deep)
            self.student_layers |= self._map.keys()
            self.teacher_layers |= set(self._map.values())
        if "attention" in losses and student.num_attention_heads != teacher.num_attention_heads:
            raise PipelineError(
                f"attention of {student.num_attention_heads} and of "
                f"{teacher.num_attention_heads} heads cannot be compared",
                "set attention = 0 and relations = 1, which need no equal numbers of heads",
            )
        if "relations" in losses:
            heads = settings.relation_heads
            for name, config in (("student", student), ("teacher", teacher)):
                if config.hidden_size % heads:
                    raise PipelineError(
                        f"relation_heads = {heads} does not divide the {name}'s width of "
                        f"{config.hidden_size}",
                        "choose a number that divides both widths",
                    )
            if not 1 <= self._relation[1] <= deep:
                raise PipelineError(
                    f"relation_layer = {self._relation[1]}: the teacher has layers 1 to {deep}",
                    "choose one of them; 0 is the last",
                )
            self.student_layers.add(depth)
            self.teacher_layers.add(self._relation[1])

    def terms(
        self, student: Inside, teacher: Inside, projections: Projections, mask: Tensor
    ) -> dict[str, Tensor]:
        """Each loss by its name, summed over the layers that it compares, unweighted."""
        found: dict[str, Tensor] = {}
        losses = self._settings.losses
        pairs = [(m, g) for m, g in self._map.items() if m]
        if "embedding" in losses:
            embedded = projections.embedding(student.hidden[0])
            found["embedding"] = hidden_mse(embedded, teacher.hidden[0], mask)
        if "hidden" in losses:
            found["hidden"] = torch.stack(
                [
                    hidden_mse(projections.hidden(student.hidden[m]), teacher.hidden[g], mask)
                    for m, g in pairs
                ]
            ).sum()
        if "attention" in losses:
            found["attention"] = torch.stack(
                [
                    attention_mse(student.attention[m][:2], teacher.attention[g][:2], mask)
                    for m, g in pairs
                ]
            ).sum()
        if "relations" in losses:
            m, g = self._relation
            found["relations"] = torch.stack(
                [
                    relation_kl(ours, theirs, mask, self._settings.relation_heads)
                    for ours, theirs in zip(student.attention[m], teacher.attention[g], strict=True)
                ]
            ).sum()
        return found
