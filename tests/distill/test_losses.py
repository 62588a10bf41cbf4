"""Losses equal values computed by hand, and every one of them has a gradient."""

import math

import pytest
import torch

from pipeline.distill import losses
from pipeline.distill.losses import (
    LOSSES,
    adr_mse,
    bce,
    hinge,
    kl,
    lce,
    margin_mse,
    mse_logits,
    ranknet,
    soft_ce,
    total,
)

STUDENT = [[1.0, 3.0, 0.0]]
TEACHER = [[2.0, 1.0, 0.0]]
LABELS = [[1.0, 0.0, 0.0]]


def tensors(labels=LABELS):
    return (
        torch.tensor(STUDENT, requires_grad=True),
        torch.tensor(TEACHER),
        torch.tensor(labels),
    )


def softmax(row):
    exponentials = [math.exp(x) for x in row]
    return [x / sum(exponentials) for x in exponentials]


def test_margin_mse_averages_the_squared_errors_of_all_margins():
    """Margins (01, 02, 12): student -2, 1, 3; teacher 1, 2, 1; errors 9, 1, 4; mean 14/3."""
    assert margin_mse(*tensors()).item() == pytest.approx(14 / 3)


def test_margin_mse_of_a_pair_is_the_papers_formula():
    """For two passages it is ((s+ - s-) - (t+ - t-))^2."""
    student, teacher = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 1.0]])
    assert margin_mse(student, teacher, torch.zeros(1, 2)).item() == pytest.approx(0.25)


def test_kl_is_teacher_to_student():
    """Sum of p (log p - log q), p the teacher's softmax and q the student's."""
    p, q = softmax(TEACHER[0]), softmax(STUDENT[0])
    expected = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    assert kl(*tensors()).item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_the_mean_over_topics_not_over_passages():
    """The same topic twice changes nothing."""
    student, teacher, labels = (t.detach().repeat(2, 1) for t in tensors())
    assert kl(student, teacher, labels).item() == pytest.approx(kl(*tensors()).item(), rel=1e-6)


def test_mse_logits_is_pointwise():
    """Errors -1, 2, 0: mean of squares 5/3."""
    assert mse_logits(*tensors()).item() == pytest.approx(5 / 3)


def test_lce_is_the_cross_entropy_of_the_relevant_passage():
    """-log of the relevant passage's softmax in its group."""
    assert lce(*tensors()).item() == pytest.approx(-math.log(softmax(STUDENT[0])[0]), rel=1e-5)


def test_lce_keeps_other_relevant_passages_out_of_the_denominator():
    """With 0 and 1 relevant, each competes with 2 alone."""
    expected = (math.log1p(math.exp(0 - 1)) + math.log1p(math.exp(0 - 3))) / 2
    assert lce(*tensors([[1.0, 1.0, 0.0]])).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [[[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]])
def test_lce_of_a_group_without_contrast_is_zero_with_a_finite_gradient(labels):
    """Nothing relevant, or nothing else: no loss, and no NaN in the gradient."""
    student, teacher, labels = tensors(labels)
    loss = lce(student, teacher, labels)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(1, 3))


def test_lce_gradient_is_finite_when_some_groups_have_no_label():
    """A labelled and an unlabelled topic in one step: the mean counts the labelled one."""
    student = torch.tensor([STUDENT[0], STUDENT[0]], requires_grad=True)
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    loss = lce(student, torch.zeros(2, 3), labels)
    loss.backward()
    assert loss.item() == pytest.approx(lce(*tensors()).item(), rel=1e-6)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert not student.grad[1].any()


def test_ranknet_sums_over_the_pairs_that_the_teacher_orders():
    """Pairs 0>1, 0>2, 1>2 with student margins -2, 1, 3."""
    expected = sum(math.log1p(math.exp(-margin)) for margin in (-2, 1, 3)) / 3
    assert ranknet(*tensors()).item() == pytest.approx(expected, rel=1e-5)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_adr_mse_compares_approximate_ranks_with_the_teachers():
    """Ranks 1 + sum of sigmoid(s_j - s_i) against 1, 2, 3, each error divided by log2(rank + 1)."""
    approximate = [
        1 + sigmoid(3 - 1) + sigmoid(0 - 1),
        1 + sigmoid(1 - 3) + sigmoid(0 - 3),
        1 + sigmoid(1 - 0) + sigmoid(3 - 0),
    ]
    errors = [(a - r) ** 2 / math.log2(r + 1) for a, r in zip(approximate, (1, 2, 3), strict=True)]
    assert adr_mse(*tensors()).item() == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_soft_ce_is_the_two_class_cross_entropy_of_the_papers():
    """-sum over both classes of softmax(0, t) * log softmax(0, s), the mean over passages."""
    expected = 0.0
    for s, t in zip(STUDENT[0], TEACHER[0], strict=True):
        pairs = zip(softmax([0.0, t]), softmax([0.0, s]), strict=True)
        expected -= sum(p * math.log(q) for p, q in pairs)
    assert soft_ce(*tensors()).item() == pytest.approx(expected / 3, rel=1e-5)


def test_bce_is_the_cross_entropy_of_two_logits():
    """For a ranker with logits z0, z1 and score z1 - z0 it is torch's cross_entropy(z, label)."""
    two = torch.tensor([[0.3, 1.3], [-1.0, 2.0], [0.5, 0.5]])
    expected = torch.nn.functional.cross_entropy(two, torch.tensor([1, 0, 0]))
    assert bce(*tensors()).item() == pytest.approx(expected.item(), rel=1e-5)
    by_hand = -math.log(sigmoid(1)) - math.log(1 - sigmoid(3)) - math.log(1 - sigmoid(0))
    assert bce(*tensors()).item() == pytest.approx(by_hand / 3, rel=1e-5)


def test_hinge_asks_for_a_margin_of_one_between_relevant_and_not():
    """Margins 1 - 3 and 1 - 0 cost 3 and 0: mean 1.5; a group without contrast counts nothing."""
    assert hinge(*tensors()).item() == pytest.approx(1.5)
    student = torch.tensor([STUDENT[0], STUDENT[0]])
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    assert hinge(student, student, labels).item() == pytest.approx(1.5)
    assert hinge(student, student, torch.zeros(2, 3)).item() == 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_has_a_gradient_and_a_step_along_it_helps(name):
    """The gradient is not zero, and a small step downhill lowers the loss."""
    student, teacher, labels = tensors()
    loss = LOSSES[name](student, teacher, labels)
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-3
    with torch.no_grad():
        lower = LOSSES[name](student - 0.01 * student.grad, teacher, labels)
    assert lower < loss


def test_total_weighs_the_terms_and_reports_each():
    """kl + half of margin_mse, and both by name, unweighted."""
    loss, terms = total({"kl": 1.0, "margin_mse": 0.5}, *tensors())
    assert terms["margin_mse"] == pytest.approx(14 / 3)
    assert loss.item() == pytest.approx(terms["kl"] + 0.5 * terms["margin_mse"])


@pytest.mark.parametrize("name", ["lce", "bce", "hinge", "kl", "margin_mse", "ranknet"])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_slices_of_a_step_make_its_loss(name: str, size: int):
    """Whichever topics have labels: none counts more because its slice has few of them."""
    generator = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(2, 8, 4, generator=generator)
    labels = torch.zeros(8, 4)
    labels[[0, 3, 4, 5], [1, 0, 2, 2]] = 1
    labels[7] = 1  # nothing else in the group: of use to bce alone
    teacher[[1, 2, 6]] = 0.5  # of no use to ranknet
    teacher[5, :2] = 0.25
    whole, _ = losses.total({name: 1.0}, student, teacher, labels)

    parts = [slice(start, start + size) for start in range(0, 8, size)]
    total = sum(
        losses.total({name: 1.0}, student[p], teacher[p], labels[p], step=(teacher, labels))[0]
        * len(labels[p]) / 8
        for p in parts
    )  # fmt: skip

    assert float(total) == pytest.approx(float(whole), rel=1e-5)
