"""Losses between insides: values by hand, padding without a say, gradients, sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from refusal import refused

from pipeline.distill.forward import Batch, inside
from pipeline.distill.imitation import Imitation
from pipeline.distill.layers import (
    Projections,
    attention_mse,
    hidden_mse,
    relation_kl,
    uniform_map,
)
from pipeline.distill.settings import INSIDE_NAMES, Intermediate, Size
from pipeline.distill.student import initial_student

CPU = torch.device("cpu")
MASK = torch.tensor([[1, 1, 0]])
WORDS = 40


@pytest.fixture(scope="module")
def deep_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve layers of BERT-Base's width and heads, random; few words and a narrow middle."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("deep-bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: n for n, word in enumerate([*special, *(f"w{n}" for n in range(WORDS))])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def a_batch(vocabulary: int = 5 + WORDS) -> Batch:
    """Three sequences of 9, 6 and 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocabulary, (3, 9), generator=generator)
    lengths = torch.tensor([9, 6, 4])
    mask = (torch.arange(9)[None] < lengths[:, None]).long()
    return Batch(ids * mask, mask, torch.zeros_like(ids))


# ---------------------------------------------------------------- by hand


def test_the_uniform_map_is_the_papers():
    """g(0) = 0 and g(m) = m N / M: TinyBERT-4 looks at 3, 6, 9, 12; TinyBERT-6 at every second."""
    assert uniform_map(4, 12) == {0: 0, 1: 3, 2: 6, 3: 9, 4: 12}
    assert uniform_map(6, 12) == {0: 0, 1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}
    assert uniform_map(3, 6) == {0: 0, 1: 2, 2: 4, 3: 6}
    with refused("5 layers cannot be mapped evenly onto 12"):
        uniform_map(5, 12)


def test_hidden_mse_is_the_mean_over_real_positions():
    """Errors 1, 3 | 0, 2 | padding: ((1 + 9) / 2 + (0 + 4) / 2) / 2 = 3.5."""
    student = torch.tensor([[[1.0, 3.0], [0.0, 2.0], [99.0, 99.0]]])
    assert hidden_mse(student, torch.zeros(1, 3, 2), MASK).item() == pytest.approx(3.5)


def test_attention_mse_compares_scores_before_the_softmax():
    """q k' / sqrt(width) of two heads, width 1 and 4: the mean over heads and real pairs."""
    query = torch.tensor([[[[1.0], [2.0], [9.0]], [[0.0], [1.0], [9.0]]]])
    key = torch.tensor([[[[3.0], [1.0], [9.0]], [[2.0], [4.0], [9.0]]]])
    nothing = torch.zeros(1, 2, 3, 4)
    # head 1: [[3, 1], [6, 2]], head 2: [[0, 0], [2, 4]]; the teacher's scores are 0
    expected = (9 + 1 + 36 + 4 + 0 + 0 + 4 + 16) / 8
    found = attention_mse((query, key), (nothing, nothing), MASK)
    assert found.item() == pytest.approx(expected)
    wide = torch.zeros(1, 2, 3, 4)
    wide[..., 0] = query[..., 0]
    wide_key = torch.zeros(1, 2, 3, 4)
    wide_key[..., 0] = key[..., 0]  # the same dot products, divided by sqrt(4)
    found = attention_mse((wide, wide_key), (nothing, nothing), MASK)
    assert found.item() == pytest.approx(expected / 4)


def test_relation_kl_joins_heads_and_cuts_them_anew():
    """Teacher of one head of width 2, student of two of width 1, one relation head: by hand."""
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [7.0, 7.0]]]])
    student = torch.tensor([[[[0.5], [1.0], [7.0]], [[0.0], [1.0], [7.0]]]])

    def relations(rows: list[list[float]]) -> list[list[float]]:
        found = []
        for a in rows:
            scores = [sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(2) for b in rows]
            total = sum(map(math.exp, scores))
            found.append([math.exp(s) / total for s in scores])
        return found

    p = relations([[1.0, 0.0], [0.0, 2.0]])
    q = relations([[0.5, 0.0], [1.0, 1.0]])
    each = [
        sum(a * math.log(a / b) for a, b in zip(row, other, strict=True))
        for row, other in zip(p, q, strict=True)
    ]
    found = relation_kl(student, teacher, MASK, heads=1)
    assert found.item() == pytest.approx(sum(each) / 2, rel=1e-5)
    assert relation_kl(teacher, teacher, MASK, heads=2).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["hidden", "attention", "relations"])
def test_padding_has_no_say(name: str):
    """More padding, and other numbers in it, change nothing."""
    generator = torch.Generator().manual_seed(0)
    real, fill = (torch.randn(2, 4, n, 6, generator=generator) for n in (5, 3))
    other = torch.randn(2, 4, 5, 6, generator=generator)
    short, long = torch.ones(2, 5), torch.cat([torch.ones(2, 5), torch.zeros(2, 3)], 1)

    def loss(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
        if name == "hidden":
            return hidden_mse(a[:, 0], b[:, 0], mask).item()
        if name == "attention":
            return attention_mse((a, a), (b, b), mask).item()
        return relation_kl(a, b, mask, 3).item()

    padded = [torch.cat([part, fill * n], 2) for n, part in enumerate((real, other), 1)]
    assert loss(*padded, long) == pytest.approx(loss(real, other, short), rel=1e-5)


def test_projections_begin_as_the_identity_between_equal_widths():
    """And are one layer or two, as the settings ask."""
    x = torch.randn(2, 3, 6)
    separate = Projections(6, 6, "separate")
    assert torch.equal(separate.embedding(x), x)
    assert torch.equal(separate.hidden(x), x)
    assert len(list(separate.parameters())) == 2
    shared = Projections(6, 8, "shared")
    assert torch.equal(shared.embedding(x), shared.hidden(x))
    assert {tuple(p.shape) for p in shared.parameters()} == {(8, 6), (8,)}


# ---------------------------------------------------------------- on real models


@pytest.mark.parametrize(
    ("size", "projected"),
    [(Size(4, 312, 12, 1200), 2 * 312 * 768), (Size(6, 768, 12, 64), 2 * 768 * 768)],
    ids=["4/312/12/1200", "6/768"],
)
def test_the_sizes_of_tinybert_learn_from_a_twelve_layer_bert(
    deep_bert: Path, size: Size, projected: int
):
    """Every loss is above zero, reaches every layer, and falls along its gradient."""
    student, tokenizer = initial_student(deep_bert, [], seed=1, size=size)
    settings = Intermediate(deep_bert, relations=1.0, relation_heads=6)
    imitation = Imitation(student, tokenizer, settings, 32, CPU)
    assert sum(p.numel() for p in imitation.projections.parameters()) == projected

    def losses() -> dict[str, torch.Tensor]:
        return imitation.compare(student.bert, a_batch())[1]

    terms = losses()
    assert list(terms) == list(INSIDE_NAMES)
    named = dict(student.bert.named_parameters()) | dict(imitation.projections.named_parameters())
    for name, term in terms.items():
        assert term.item() > 1e-4, name
        found = torch.autograd.grad(term, [*named.values()], retain_graph=True, allow_unused=True)
        reached = {key for key, g in zip(named, found, strict=True) if g is not None and g.any()}
        assert "embeddings.word_embeddings.weight" in reached, name
        if name in ("hidden", "attention"):
            for layer in range(size.layers):
                assert f"encoder.layer.{layer}.attention.self.query.weight" in reached, name
        if name in ("embedding", "hidden"):
            assert ("first.weight" if name == "embedding" else "second.weight") in reached
    before = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(before, list(named.values()), allow_unused=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(named.values(), gradients, strict=True):
            if gradient is not None:
                parameter -= 1e-2 * gradient / norm
    assert torch.stack(list(losses().values())).sum() < before


def test_the_published_size_of_tinybert_4(deep_bert: Path):
    """4/312/12/1200 over BERT's 30,522 word pieces has 14.35 million parameters."""
    from transformers import BertConfig, BertModel

    student, _ = initial_student(deep_bert, [], 1, Size(4, 312, 12, 1200))
    shape = student.config.to_dict() | {"vocab_size": 30522, "max_position_embeddings": 512}
    with torch.device("meta"):
        model = BertModel(BertConfig(**shape))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(14.35e6, rel=1e-3)


def test_the_teacher_has_no_dropout_and_no_gradient(deep_bert: Path):
    """Two passes give the same bits though its config asks for dropout; nothing of it learns."""
    student, tokenizer = initial_student(deep_bert, [2, 5, 8, 11], seed=1)
    student.train()
    imitation = Imitation(student, tokenizer, Intermediate(deep_bert), 32, CPU)
    one, two = (imitation.compare(student.bert, a_batch())[1] for _ in range(2))
    assert one == two
    assert not any("teacher" in name for name, _ in imitation.projections.named_parameters())
    teacher = imitation._teacher
    assert teacher.config.hidden_dropout_prob == 0.1
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn(deep_bert: Path):
    """All layers copied and projections at the identity: every loss is zero."""
    student, tokenizer = initial_student(deep_bert, range(12), seed=1)
    settings = Intermediate(deep_bert, relations=1.0)
    terms = Imitation(student, tokenizer, settings, 32, CPU).compare(student.bert, a_batch())[1]
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        dict.fromkeys(INSIDE_NAMES, 0.0), abs=1e-6
    )


def test_only_the_layers_that_are_compared_are_kept(deep_bert: Path):
    """Of a teacher of twelve layers, those that the student is mapped to."""
    student, tokenizer = initial_student(deep_bert, [0, 1, 2], seed=1)
    imitation = Imitation(student, tokenizer, Intermediate(deep_bert), 32, CPU)
    wanted = imitation._comparison.teacher_layers
    assert wanted == {0, 4, 8, 12}
    assert set(inside(imitation._teacher, a_batch(), wanted).attention) == {4, 8, 12}


def test_what_cannot_be_compared_is_refused(deep_bert: Path, tiny_bert: Path):
    """Another vocabulary, other heads, other depths, heads that do not divide."""
    student, tokenizer = initial_student(deep_bert, [], 1, Size(5, 24, 4, 8))
    for settings, message in (
        (Intermediate(tiny_bert), "another vocabulary"),
        (Intermediate(deep_bert), "5 layers cannot be mapped"),
        (Intermediate(deep_bert, 0, 0, 0, 1, relation_heads=7), "does not divide the student's"),
        (Intermediate(deep_bert, 0, 0, 0, 1, relation_layer=13), "the teacher has layers 1 to 12"),
    ):
        with refused(message):
            Imitation(student, tokenizer, settings, 32, CPU)
    student, tokenizer = initial_student(deep_bert, [], 1, Size(4, 24, 4, 8))
    with refused("attention of 4 and of 12 heads", "relations = 1"):
        Imitation(student, tokenizer, Intermediate(deep_bert), 32, CPU)
    with refused("has positions for 32 tokens, not 40", "max_tokens"):
        Imitation(student, tokenizer, Intermediate(deep_bert), 40, CPU)


def test_a_teacher_of_one_segment_is_refused(deep_bert: Path, tmp_path: Path):
    """Pairs are read in two, and the student's second has no counterpart there."""
    import transformers

    config = transformers.BertConfig.from_pretrained(deep_bert, type_vocab_size=1)
    transformers.BertModel(config).save_pretrained(tmp_path / "plain")
    for path in deep_bert.glob("tokenizer*"):
        (tmp_path / "plain" / path.name).write_bytes(path.read_bytes())
    student, tokenizer = initial_student(deep_bert, [], 1, Size(4, 24, 12, 8))
    with refused("has one segment, and pairs are read in two"):
        Imitation(student, tokenizer, Intermediate(tmp_path / "plain"), 32, CPU)
