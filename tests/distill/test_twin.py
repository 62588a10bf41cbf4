"""TwinBERT: its poolings and crossings by hand, its training, and its folder as a reranker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from refusal import refused
from tiny_models import change
from trainings import Stop, results, settings

from pipeline.distill.settings import DistillConfig, Intermediate, TwinSettings
from pipeline.distill.stage import distill
from pipeline.distill.twin import TwinStudent
from pipeline.models.reranker import Reranker
from pipeline.models.scorer import Foreseeing
from pipeline.models.twin_net import Cosine, Residual, Tower, Twin, TwinNet
from pipeline.parts import Parts

KINDS = [
    TwinSettings("wordpiece", "shared", "weighted", 8, "cosine"),
    TwinSettings("wordpiece", "separate", "cls", 0, "residual"),
    TwinSettings("triletter", "shared", "cls", 8, "residual"),
    TwinSettings("triletter", "separate", "weighted", 12, "cosine"),
]
NAMES = [f"{k.input}-{k.towers}-{k.pooling}-{k.size}-{k.crossing}" for k in KINDS]
TEXTS = ["apple pear tree", "sea", "moon sun star . sky rain cloud", "", "stone sand"]


def twin(bert: Path, data: Path, folder: Path, kind: TwinSettings, **more: object) -> DistillConfig:
    folder.mkdir(exist_ok=True)
    off = {"kl": 0.0, "margin_mse": 0.0, "mse_logits": 0.0, "lce": 0.0, "ranknet": 0.0}
    changes = {
        "twin": kind, "soft_ce": 1.0, "steps": 30, "evaluate_every": 30, "checkpoint_every": 15,
        "scale": 3.0, "advised_tokens": 40, **more,
    }  # fmt: skip
    return settings(bert, data, folder, **(off | changes))


def config(bert: Path) -> object:
    from transformers import BertConfig

    return BertConfig.from_pretrained(bert, hidden_dropout_prob=0.0)


def test_weighted_pooling_looks_at_real_tokens_alone(tiny_bert: Path) -> None:
    """w = softmax(u h + b) over the mask; v = sum w h: by hand for two tokens of three."""
    tower = Tower(config(tiny_bert), Twin(size=0))
    assert tower.weigh is not None
    hidden = torch.zeros(1, 3, 16)
    hidden[0, 0, 0], hidden[0, 1, 0], hidden[0, 2, 0] = 1.0, 3.0, 50.0
    with torch.no_grad():
        tower.weigh.weight.zero_()
        tower.weigh.weight[0, 0] = 0.5
    found = tower.pool(hidden, torch.tensor([[1, 1, 0]]))[0, 0].item()
    one, two = np.exp(0.5), np.exp(1.5)
    assert found == pytest.approx((one * 1 + two * 3) / (one + two))
    first = Tower(config(tiny_bert), Twin(pooling="cls", size=0))
    assert first.pool(hidden, torch.tensor([[1, 1, 0]]))[0, 0].item() == 1.0


def test_vectors_are_normalised_each_by_itself(tiny_bert: Path) -> None:
    """For the cosine, along the vector and not along the batch; else they are tanh's numbers."""
    ids, mask = torch.tensor([[2, 5, 3], [2, 9, 3]]), torch.ones(2, 3, dtype=torch.long)
    for crossing in ("cosine", "residual"):
        net = TwinNet(config(tiny_bert), Twin(size=8, crossing=crossing)).eval()
        vectors = net.vectors(ids, mask, queries=True)
        raw = net.query(ids, mask)
        assert raw.abs().max() < 1
        expected = raw / raw.norm(dim=1, keepdim=True) if crossing == "cosine" else raw
        assert torch.allclose(vectors, expected, atol=1e-6)


def test_the_crossings_are_the_papers() -> None:
    """scale cos + bias; and out(relu(x + W2 relu(W1 x))) of the element-wise maximum."""
    q, p = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    cosine = Cosine()
    with torch.no_grad():
        cosine.scale.fill_(4.0)
        cosine.bias.fill_(-1.0)
    assert cosine(q, p).item() == pytest.approx(4 * 0.6 - 1)
    residual = Residual(2)
    with torch.no_grad():
        for linear, weight, bias in (
            (residual.first, [[1.0, -1.0], [0.0, -2.0]], [0.0, 1.0]),
            (residual.second, [[2.0, 0.0], [1.0, 1.0]], [0.0, -3.0]),
            (residual.out, [[1.0, 10.0]], [0.5]),
        ):
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.copy_(torch.tensor(bias))
    # x = (1, .8); relu(W1 x + b1) = (.2, 0); W2 of it + b2 = (.4, -2.8); relu(x + r) = (1.4, 0)
    assert residual(q, p).item() == pytest.approx(1.4 + 0.5)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_twin_learns_and_ranks_as_it_was_trained(
    kind: TwinSettings, tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """Its loss falls; its folder, loaded as a reranker, gives training's scores, up to fp16."""
    distill(twin(tiny_bert, training_data, tmp_path, kind))
    lines = (tmp_path / "student.parts" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[-1]["loss"] < rows[0]["loss"]
    scorer = Reranker.load(str(tmp_path / "student"), precision="fp32").scorer
    assert isinstance(scorer, Foreseeing)
    trained = TwinStudent(twin(tiny_bert, training_data, tmp_path, kind), torch.device("cpu"))
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "student/model.safetensors")
    trained.module.load_state_dict({name: t.float() for name, t in weights.items()})
    (query,) = trained.tokens(["apple tree"], 4)
    with torch.inference_mode():
        ours = trained.score([query] * len(TEXTS), list(trained.tokens(TEXTS, 24)))
    np.testing.assert_allclose(scorer.score("apple tree", TEXTS).scores, ours.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_every_weight_that_is_trained_has_a_gradient(
    kind: TwinSettings, tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """Towers, pooling, down-scaling, letters and crossing: nothing is left out."""
    student = TwinStudent(twin(tiny_bert, training_data, tmp_path, kind), torch.device("cpu"))
    query, other = student.tokens(["apple pear", "moon"], 4)
    scores = student.score([query, query, other], list(student.tokens(TEXTS[:3], 24)))
    scores.square().sum().backward()
    for name, parameter in student.module.named_parameters():
        # A constant added to every weight of a softmax changes nothing.
        if parameter.requires_grad and name.split(".")[-2:] != ["weigh", "bias"]:
            # So does one added to every key.
            if name.endswith("key.bias"):
                continue
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_separate_towers_begin_alike_and_part(
    tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """Two encoders of the same layers, each with its own weights afterwards."""
    configured = twin(tiny_bert, training_data, tmp_path, KINDS[1])
    net = TwinStudent(configured, torch.device("cpu"))._net
    name = "encoder.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(net.query.state_dict()[name], net.passage.state_dict()[name])
    distill(configured)
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "student/model.safetensors")
    assert not torch.equal(weights[f"query.{name}"], weights[f"passage.{name}"])
    shared = TwinStudent(twin(tiny_bert, training_data, tmp_path, KINDS[0]), torch.device("cpu"))
    assert shared._net.passage is None


def test_a_twin_resumes_to_the_same_weights(
    tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """Broken off after step 20, it goes on from 15, to the same bits."""
    torch.set_num_threads(1)
    found = []
    for name in ("whole", "broken"):
        configured = twin(tiny_bert, training_data, tmp_path / name, KINDS[0])
        if name == "broken":
            with pytest.raises(KeyboardInterrupt):
                distill(configured, Stop(20))
        distill(configured)
        found.append(results(tmp_path / name))
    assert found[0] == found[1]


def test_vectors_are_kept_for_the_next_process(
    tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """As of any two towers: a passage is encoded once, and its score has the same bits."""
    distill(twin(tiny_bert, training_data, tmp_path, KINDS[1]))
    scores = []
    for _ in range(2):
        scorer = Reranker.load(str(tmp_path / "student"), precision="fp32").scorer
        assert isinstance(scorer, Foreseeing)
        scorer.keep_vectors(Parts(tmp_path / "vectors"))
        scorer.foresee(TEXTS)
        scorer.settle()
        scores.append(scorer.score("sea", TEXTS).scores.tobytes())
    assert scores[0] == scores[1]
    assert len(list((tmp_path / "vectors").glob("*.part"))) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"crossing": "product"}, "crossing = 'product'"),
        ({"size": -1}, "size = -1"),
        ({"size": None}, "size = None"),
        ({"max_tokens": 5000}, "and 5000 of a passage cannot be"),
        ({"size": 9}, "this model cannot be loaded"),
    ],
)
def test_a_strangers_twin_can_only_fail(
    values: dict[str, object], message: str, tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """With two lines that name the file."""
    student = TwinStudent(twin(tiny_bert, training_data, tmp_path, KINDS[0]), torch.device("cpu"))
    student.save(tmp_path / "student", {}, "")
    change(tmp_path / "student/twin.json", **values)
    with refused(message):
        Reranker.load(str(tmp_path / "student"))


def test_twins_beside_what_they_cannot_be_are_refused(
    tiny_bert: Path, training_data: Path, tmp_path: Path
) -> None:
    """The inside of two towers is not that of a cross-encoder."""
    inside = {"intermediate": Intermediate(tiny_bert)}
    with refused("twin beside intermediate"):
        distill(twin(tiny_bert, training_data, tmp_path, KINDS[0], **inside))
