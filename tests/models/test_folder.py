"""Where a model's name leads, its digest, what its folder may say; and that it can only fail."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from refusal import refused

from pipeline.models.folder import SHIPPED, Advice, advice, digest, is_twin, locate
from pipeline.models.reranker import Reranker, model_digest

# ---------------------------------------------------------------- names


def test_a_folder_is_its_own_name(tmp_path: Path) -> None:
    """A path that is there is taken as it is, whatever it is called."""
    assert locate(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_name_leads_into_the_package(name: str) -> None:
    """It is the folder beside the demo's files, or an error that says it is not there."""
    from pipeline import demo

    expected = Path(demo.__file__).parent / name
    if expected.is_dir():
        assert locate(name) == expected
    else:
        with refused("the shipped student is not in this installation", "install"):
            locate(name)


@pytest.mark.parametrize("name", ["smal", "no/such/folder", "/nowhere", "", "../gone", "a b/c"])
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    """Without asking the network: none of these can be the id of a model."""
    with refused("no such model", "did you mean 'small'" if name == "smal" else ""):
        locate(name)


def test_a_folder_named_as_an_organisation_is_said_to_stand_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`org/name` may be a slip in a path then, and nothing is fetched over it."""
    (tmp_path / "BAAI").mkdir()
    monkeypatch.chdir(tmp_path)
    with refused("no id of Hugging Face as long as the folder BAAI is here", "in another folder"):
        locate("BAAI/bge")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    """Who names the weights instead of their folder is told so."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    with refused("is a file", "the folder"):
        locate(str(tmp_path / "model.safetensors"))


def test_a_hub_id_without_network_is_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that is not cached and cannot be fetched says what to do without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with refused("org/model: neither a folder nor in the local cache", "fetch it elsewhere"):
        locate("org/model@v1")


def test_a_hub_id_in_the_cache_needs_no_network(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once is found again by its id."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--org--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_model(), home / "snapshots" / ("0" * 40))

    found = locate("org/model")

    assert digest(found) == digest(tiny_model())


@pytest.mark.parametrize("network", [True, False])
def test_two_towers_that_were_cached_in_part_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool
) -> None:
    """transformers leaves their `modules.json` out; without a network no more is to be had."""
    import huggingface_hub

    whole, part = tiny_models.make_twin(tmp_path / "whole"), tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "modules.json").unlink()

    def fetch(*_: object, local_files_only: bool, **__: object) -> str:
        if not local_files_only and not network:
            raise ConnectionError
        return str(part if local_files_only else whole)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    assert locate("org/model") == (whole if network else part)


# ---------------------------------------------------------------- digests


def test_the_digest_is_of_what_decides_scores(own_model: Path) -> None:
    """A model card may be edited; weights, config, tokenizer and advice may not unnoticed."""
    before = digest(own_model)
    (own_model / "README.md").write_text("a card")
    (own_model / "onnx").mkdir()
    (own_model / "onnx" / "config.json").write_text("{}")
    (own_model / ".cache").mkdir()
    (own_model / ".cache" / "x.json").write_text("{}")
    assert digest(own_model) == before

    seen = {before}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = own_model / name
        path.write_text(path.read_text() + " ")
        seen.add(digest(own_model))
    (own_model / "pipeline.json").write_text('{"schema": 1}')
    seen.add(digest(own_model))
    weights = own_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    seen.add(digest(own_model))
    assert len(seen) == 6


def test_the_trivial_scorer_has_a_digest_and_no_folder() -> None:
    """`overlap` needs neither torch nor files."""
    assert model_digest("overlap") == "overlap-1"


# ---------------------------------------------------------------- advice


def test_advice_is_optional(tmp_path: Path) -> None:
    """Without the file nothing is advised; with it, what it says."""
    assert advice(tmp_path) == Advice()
    tiny_models.write(
        tmp_path / "pipeline.json",
        {"schema": 1, "max_query_tokens": 32, "interpolate": 1, "trained_on": "questions"},
    )
    assert advice(tmp_path) == Advice(max_query_tokens=32, interpolate=1.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "schema None"),
        ({"schema": 2}, "schema 2"),
        ({"schema": 1, "max_tokens": "192"}, "max_tokens = '192'"),
        ({"schema": 1, "max_tokens": 0}, "max_tokens = 0"),
        ({"schema": 1, "interpolate": 1.5}, "interpolate = 1.5"),
        ({"schema": 1, "interpolate": True}, "interpolate = True"),
        ({"schema": 1, "positive": 2}, "positive = 2"),
        ([1], "not a JSON object"),
    ],
)
def test_impossible_advice_is_refused(tmp_path: Path, table: object, message: str) -> None:
    """A wrong key in the file is named, with its file."""
    tiny_models.write(tmp_path / "pipeline.json", table)
    with refused(message):
        advice(tmp_path)
    with refused("pipeline.json"):
        advice(tmp_path)


# ---------------------------------------------------------------- strangers


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self._path,))


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(str(model.parent / "sprung"))))


def own_code(model: Path) -> None:
    trap = f"import os\nos.mkdir({str(model.parent / 'sprung')!r})\n"
    (model / "modeling_trap.py").write_text(trap + "class Config: ...\nclass Model: ...\n")
    tiny_models.change(
        model / "config.json",
        model_type="trap",
        auto_map={
            "AutoConfig": "modeling_trap.Config",
            "AutoModelForSequenceClassification": "modeling_trap.Model",
        },
    )


def own_tokenizer_code(model: Path) -> None:
    trap = f"import os\nos.mkdir({str(model.parent / 'sprung')!r})\nclass Trap: ...\n"
    (model / "tokenization_trap.py").write_text(trap)
    tiny_models.change(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_trap.Trap", None]},
    )


def write_garbage(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes(data)


def config(**values: object) -> Callable[[Path], object]:
    return lambda model: tiny_models.change(model / "config.json", **values)


def weights(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def spoil(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        loaded = load_file(model / "model.safetensors")
        change(loaded)
        save_file(loaded, model / "model.safetensors", metadata={"format": "pt"})

    return spoil


def not_a_number(loaded: dict[str, object]) -> None:
    loaded["bert.encoder.layer.1.output.dense.weight"][3, 3] = float("nan")  # type: ignore[index]


def wrong_shape(loaded: dict[str, object]) -> None:
    loaded["classifier.weight"] = loaded["classifier.weight"].repeat(2, 1)  # type: ignore[attr-defined]


STRANGERS: list[tuple[str, Callable[[Path], object], str]] = [
    ("nothing in it", lambda m: [p.unlink() for p in m.iterdir()], "no config.json"),
    ("only pickled weights", pickled, "no model.safetensors, and pickled weights are never loaded"),
    ("code of its own", own_code, "code of its own (auto_map)"),
    ("a tokenizer with code", own_tokenizer_code, "code of its own (auto_map)"),
    ("an adapter", write_garbage("adapter_config.json", b"{}"), "an adapter"),
    ("quantised", config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    ("no tokenizer", lambda m: (m / "tokenizer.json").unlink(), "no tokenizer"),
    ("config of no JSON", write_garbage("config.json", b"{"), "config.json: not JSON"),
    ("config of bytes", write_garbage("config.json", b"\xff\xfe\0"), "config.json: not JSON"),
    ("config of a list", write_garbage("config.json", b"[1]"), "not a JSON object"),
    ("config too deep", write_garbage("config.json", b"[" * 99999), "config.json: not JSON"),
    ("unknown kind", config(model_type="skynet"), "cannot be loaded"),
    ("no kind", config(model_type=None), "cannot be loaded"),
    ("kind that is no text", config(model_type=["bert"]), "cannot be loaded"),
    ("no head kind", config(model_type="vit"), "cannot be loaded"),
    ("words for numbers", config(hidden_size="many"), "cannot be loaded"),
    ("negative layers", config(num_hidden_layers=-3), ""),
    ("layers left out", config(num_hidden_layers=2), "a layer that its config.json does not"),
    ("odd number of heads", config(num_attention_heads=5), "cannot be loaded"),
    ("huge", config(hidden_size=10**9), ""),
    ("huge vocabulary", config(vocab_size=10**12), ""),
    ("another activation", config(hidden_act="os.system"), "cannot be loaded"),
    ("an attention to fetch", config(_attn_implementation="evil/kernel"), ""),
    ("garbage for weights", write_garbage("model.safetensors", b"x" * 999), "cannot be loaded"),
    ("empty weights", write_garbage("model.safetensors", b""), "cannot be loaded"),
    ("torn weights", lambda m: os.truncate(m / "model.safetensors", 9999), "cannot be loaded"),
    ("wrong shapes", weights(wrong_shape), "cannot be loaded"),
    ("no head", weights(lambda w: w.pop("classifier.weight")), "no trained reranker"),
    ("a layer is missing", config(num_hidden_layers=5), "no weights for"),
    ("not finite", weights(not_a_number), "are not finite"),
    ("tokenizer of no JSON", write_garbage("tokenizer.json", b"{]"), "cannot be loaded"),
    ("tokenizer of nothing", write_garbage("tokenizer.json", b"{}"), "cannot be loaded"),
    ("no SentencePiece", lambda m: (m / "tokenizer.json").rename(m / "spm.model"), "5 tokens"),
    ("tokenizer config of a list", write_garbage("tokenizer_config.json", b"[]"), "JSON object"),
    ("small vocabulary", config(vocab_size=40), ""),
    ("negative positions", config(max_position_embeddings=-1), ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "message"),
    [case[1:] for case in STRANGERS],
    ids=[case[0] for case in STRANGERS],
)
def test_a_strangers_folder_can_only_fail(
    own_model: Path,
    spoil: Callable[[Path], object],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two lines, nothing run, nothing fetched, nothing printed but by a panicking library."""
    spoil(own_model)

    with refused(message):
        Reranker.load(str(own_model), precision="fp32", threads=1).score("a csv", ["the row"])

    assert not (own_model.parent / "sprung").exists()
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_harmless_oddities_load(own_model: Path) -> None:
    """Unknown keys, a card in another encoding, stray files: the model is loaded all the same."""
    tiny_models.change(own_model / "config.json", favourite_colour="blue", transformers_version="9")
    (own_model / "README.md").write_bytes(b"\xff\xfe")
    (own_model / "pytorch_model.bin").write_bytes(b"ignored")

    assert Reranker.load(str(own_model), threads=1).score("a csv", ["the row"]).shape == (1,)


def test_twins_are_told_from_cross_encoders(
    tiny_model: Callable[..., Path], tiny_twin: Path, tmp_path: Path
) -> None:
    """Both may have a modules.json; sentence-transformers notes which is which."""
    assert is_twin(tiny_twin)
    assert not is_twin(tiny_model())
    copy = Path(shutil.copytree(tiny_twin, tmp_path / "cross"))
    tiny_models.write(copy / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    assert not is_twin(copy)


def test_an_encoder_without_a_head_is_refused(tiny_twin: Path, tmp_path: Path) -> None:
    """A bare encoder would be given a head of random weights; it is not."""
    copy = Path(shutil.copytree(tiny_twin, tmp_path / "bare"))
    (copy / "modules.json").unlink()
    with refused("no trained reranker", "modules.json"):
        Reranker.load(str(copy))


def test_deep_vocabulary_files_do_not_matter(own_model: Path) -> None:
    """The tokenizer's numbers must be the model's: one token too many is refused."""
    table = json.loads((own_model / "tokenizer.json").read_text())
    table["model"]["vocab"]["zzz"] = 999
    (own_model / "tokenizer.json").write_text(json.dumps(table))
    tiny_models.change(
        own_model / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"
    )
    with refused("tokenizer knows"):
        Reranker.load(str(own_model))
