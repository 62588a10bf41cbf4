"""A model for other programs: the same scores in every form, checked before it is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import run
from refusal import refused
from tiny_models import change, make, make_twin
from trainings import Recorder

from pipeline import export as stage
from pipeline.export import ExportSettings, export

PAIRS = [
    ("read csv", ["the csv file header", "bread", "the sun file reads a row", "csv csv"]),
    ("sun", ["bread and sun", "row", "the header row reading"]),
]


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's pairs mean nothing to a tiny vocabulary, and take seconds to read."""
    monkeypatch.setattr(stage, "real_pairs", lambda: PAIRS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "model")


def test_the_folder_is_a_model_again(model: Path, tmp_path: Path) -> None:
    """transformers' own pass over the exported weights agrees; a second call does nothing."""
    (model / "README.md").write_text("# card")
    settings = ExportSettings(str(model), tmp_path / "out")
    outcome = export(settings)
    assert outcome.counts == {"pairs": 7, "topics": 2}
    checked = outcome.details["checked"]["safetensors"]
    assert checked["largest"] < 1e-4
    assert checked["reordered"] == 0
    assert checked["tau"] == 1.0
    assert checked["bytes"] == (model / "model.safetensors").stat().st_size
    assert (tmp_path / "out/README.md").read_text() == "# card"
    assert not export(settings).computed
    from pipeline.models.reranker import Reranker

    mine, theirs = (
        Reranker.load(str(folder), precision="fp32", threads=1).score(*PAIRS[0])
        for folder in (model, tmp_path / "out")
    )
    assert (mine == theirs).all()


@pytest.mark.parametrize("labels", [1, 2])
def test_the_onnx_graph_says_what_the_model_says(labels: int, tmp_path: Path) -> None:
    """For pairs of any length, padded or not, one logit or two; int8 is measured beside it."""
    pytest.importorskip("onnx")
    folder = make(tmp_path / "two", labels=labels)
    outcome = export(ExportSettings(str(folder), tmp_path / "out", onnx=True, int8=True))
    checked = outcome.details["checked"]
    assert list(checked) == ["safetensors", "onnx/model.onnx", "onnx/model_quantized.onnx"]
    assert checked["onnx/model.onnx"]["largest"] < 1e-4
    int8 = checked["onnx/model_quantized.onnx"]
    assert 0 < int8["largest"] < 2
    assert int8["mean"] > checked["onnx/model.onnx"]["mean"]

    import onnxruntime
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = tmp_path / "out/onnx/model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    pairs = [("csv", "the header row"), ("read the file", "sun"), ("a", "b")]
    inputs = tokenizer(*zip(*pairs, strict=True), padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = whole(**inputs).logits.numpy()
    (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    assert found.shape == (3, labels)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_form_that_disagrees_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the folder nor anything beside it that could be taken for one."""
    from pipeline.models import exported

    def wrong(*_: object) -> list[np.ndarray]:
        return [np.full(len(passages), 9.0, np.float32) for _, passages in PAIRS]

    monkeypatch.setattr(exported.Original, "scores_of", wrong)
    with refused("safetensors: a logit differs by"):
        export(ExportSettings(str(model), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(stage, "real_pairs", lambda: PAIRS)
    assert export(ExportSettings(str(model), tmp_path / "out")).computed


def test_what_cannot_be_exported_is_refused(model: Path, tmp_path: Path) -> None:
    """With a reason, before any work; nothing is left."""
    out = tmp_path / "out"
    with refused("--int8 without --onnx"):
        export(ExportSettings(str(model), out, int8=True))
    with refused("no such model"):
        export(ExportSettings(str(tmp_path / "nowhere"), out))
    (tmp_path / "empty").mkdir()
    with refused("no config.json"):
        export(ExportSettings(str(tmp_path / "empty"), out))
    with refused("two towers"):
        export(ExportSettings(str(make_twin(tmp_path / "twin")), out))
    with refused("no weights to export"):
        export(ExportSettings("overlap", out))
    with refused("is also an input"):
        export(ExportSettings(str(model), model))
    (model / "model.safetensors").write_bytes(b"torn")
    with refused("cannot be loaded"):
        export(ExportSettings(str(model), out))
    assert not out.exists()


def test_somebody_elses_folder_is_not_replaced(model: Path, tmp_path: Path) -> None:
    """Unless it is asked for."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with refused("exists already"):
        export(ExportSettings(str(model), out))
    assert (out / "mine.txt").read_text() == "mine"


def test_onnx_is_refused_where_it_cannot_be_had(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package, and for models that are no BERT."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        with refused("--onnx needs the package onnx", "trec-pipeline[export]"):
            export(ExportSettings(str(model), tmp_path / "out", onnx=True))
    pytest.importorskip("onnx")
    other = make(tmp_path / "other", "distilbert")
    reporter = Recorder()
    with refused("not for model_type = distilbert", "without --onnx"):
        export(ExportSettings(str(other), tmp_path / "out", onnx=True), reporter)
    assert reporter.notices == []  # before any pair is scored
    change(model / "config.json", hidden_act="relu")
    with refused("hidden_act = relu"):
        export(ExportSettings(str(model), tmp_path / "out", onnx=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.model
@pytest.mark.slow
def test_the_command_exports_the_shipped_student(tmp_path: Path) -> None:
    """With its check over real pairs as a table, or as JSON."""
    done = run("export", "--model", "small", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "real pairs" in done.stdout
    assert any(line.split()[:1] == ["safetensors"] for line in done.stdout.splitlines())
    again = run("export", "--model", "small", "--output", "out", "--json", cwd=tmp_path)
    told = json.loads(again.stdout)
    assert not told["computed"]
    assert told["counts"]["pairs"] > 300
    assert told["details"]["checked"]["safetensors"]["largest"] < 1e-3
