"""BERT by torch alone: what transformers computes, in folders that are exactly that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import Interrupted
from pipeline.models import plain
from pipeline.models.loading import load_weights

CHANGES: dict[str, Any] = {
    "model_type": "roberta",
    "architectures": ["BertModel"],
    "hidden_act": "relu",
    "position_embedding_type": "relative_key",
    "is_decoder": True,
    "chunk_size_feed_forward": 64,
    "num_hidden_layers": 1,
    "hidden_size": "many",
    "num_attention_heads": 0,
    "layer_norm_eps": 0,
    "num_labels": 3,
    "a_setting_of_tomorrow": 1,
}


@pytest.mark.parametrize("labels", [1, 2])
def test_it_says_what_transformers_says(tiny_model: Callable[..., Path], labels: int) -> None:
    """Logits of padded sequences agree to the last digits of float32."""
    folder = tiny_model("bert", labels)
    model = plain.classifier(folder)
    assert model is not None
    expected = load_weights(folder, "AutoModelForSequenceClassification", heads=True)
    ids = torch.randint(5, 50, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1], [7]])).long()
    segments = (torch.arange(9) > 3).long().expand(4, 9)
    for given in ({}, {"token_type_ids": segments}):
        with torch.inference_mode():
            made = model(input_ids=ids, attention_mask=mask, **given).logits
            wanted = expected(input_ids=ids, attention_mask=mask, **given).logits
        assert made.shape == (4, labels)
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)


def test_a_shipped_student_loads_without_the_models_of_transformers() -> None:
    """Their import takes two seconds, and torch's compiler comes with it."""
    program = (
        "import sys\n"
        "from pipeline.models.reranker import Reranker\n"
        "assert Reranker.load('small').score('a', ['b']).shape == (1,)\n"
        "heavy = ('transformers.modeling_utils', 'torch._dynamo', 'sympy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert said.stdout.strip() == b"[]"


@pytest.mark.parametrize("setting", CHANGES)
def test_another_setting_is_left_to_transformers(own_model: Path, setting: str) -> None:
    """Whatever could change what is computed, or is not known, or does not fit the weights."""
    path = own_model / "config.json"
    assert plain.classifier(own_model) is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: CHANGES[setting]}))
    assert plain.classifier(own_model) is None


def test_other_weights_are_left_to_transformers(own_model: Path) -> None:
    """Missing, too many, of another size or kind, not finite: it has the words for each."""
    path = own_model / "model.safetensors"
    whole = load_file(path)
    name = "classifier.bias"
    for spoilt in (
        {key: each for key, each in whole.items() if key != name},
        whole | {"bert.encoder.layer.9.output.dense.bias": torch.zeros(2)},
        whole | {name: torch.zeros(7)},
        whole | {name: torch.zeros_like(whole[name], dtype=torch.int32)},
        whole | {name: whole[name] * float("nan")},
    ):
        save_file(spoilt, path)
        assert plain.classifier(own_model) is None
    path.write_bytes(b"no weights")
    assert plain.classifier(own_model) is None


def test_positions_that_older_versions_saved_are_no_weights(own_model: Path) -> None:
    """They are 0, 1, 2, ..., and said nothing."""
    path = own_model / "model.safetensors"
    save_file(load_file(path) | {"bert.embeddings.position_ids": torch.arange(8)[None]}, path)
    assert plain.classifier(own_model) is not None


def test_a_signal_while_weights_are_read_stops(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nothing that is wrong with the folder."""

    def interrupted(path: Path) -> None:
        raise Interrupted(15)

    monkeypatch.setattr("safetensors.torch.load_file", interrupted)
    with pytest.raises(Interrupted):
        plain.classifier(own_model)
