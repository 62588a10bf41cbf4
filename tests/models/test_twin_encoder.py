"""Two towers: vectors as sentence-transformers makes them, each a function of its text alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from numpy.typing import NDArray
from refusal import refused

from pipeline.models.scorer import Foreseeing, Limits, Wishes
from pipeline.models.twin_encoder import TwinEncoder
from pipeline.parts import Parts

EXACT = Wishes(device="cpu", precision="fp32", threads=1)
TEXTS = [
    "the header row", "a csv file has rows.", "", "bread in the sun", "reading files " * 30,
    "x " * 40, "the sun", "csv csv", "row, file!", "z",
]  # fmt: skip


def load(folder: Path, precision: str = "fp32", limits: Limits = Limits()) -> TwinEncoder:  # noqa: B008
    return TwinEncoder(folder, Wishes("cpu", precision, 1), limits)  # type: ignore[arg-type]


def by_hand(folder: Path, texts: list[str], longest: int = 64) -> NDArray[np.float32]:
    """Mean of the last hidden states, one text after the other."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            one = tokenizer([text], truncation=True, max_length=longest, return_tensors="pt")
            vectors.append(model(**one).last_hidden_state[0].mean(0).numpy())
    return np.array(vectors)


def test_vectors_are_normalised_means(tiny_twin: Path) -> None:
    """What mean pooling and normalisation make of each text alone."""
    expected = by_hand(tiny_twin, TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)

    np.testing.assert_allclose(load(tiny_twin).encode(TEXTS), expected, atol=1e-5)


def test_without_normalisation_the_score_is_the_dot_product(tmp_path: Path) -> None:
    """And with `similarity_fn_name` cosine it is the cosine all the same."""
    folder = tiny_models.make_twin(tmp_path / "m", normalize=False)
    vectors = by_hand(folder, TEXTS)
    dot = load(folder).score("a csv", TEXTS).scores
    (query,) = by_hand(folder, ["a csv"])
    tiny_models.write(
        folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"}
    )
    cosine = load(folder).score("a csv", TEXTS).scores

    np.testing.assert_allclose(dot, vectors @ query, rtol=1e-4)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    np.testing.assert_allclose(cosine, (vectors @ query) / lengths, atol=1e-5)


def test_pooling_by_the_first_token(tmp_path: Path) -> None:
    """The other kind of pooling that is read, in both spellings."""
    folder = tiny_models.make_twin(tmp_path / "m", pooling="cls", normalize=False)
    old = load(folder).encode(TEXTS)
    tiny_models.write(folder / "1_Pooling/config.json", {"pooling_mode": "cls"})
    new = load(folder).encode(TEXTS)

    assert np.abs(old - by_hand(folder, TEXTS)).max() > 0.1
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_vector_depends_on_its_text_alone(tiny_twin: Path, precision: str) -> None:
    """Bit for bit the same, whatever is encoded with it and in what order."""
    together = load(tiny_twin, precision).encode(TEXTS)
    draw = np.random.default_rng(0)
    for _ in range(5):
        some = draw.permutation(len(TEXTS))[: draw.integers(1, len(TEXTS))]
        apart = load(tiny_twin, precision).encode([TEXTS[i] for i in some])
        assert apart.tobytes() == together[some].tobytes()
    queries = load(tiny_twin, precision).encode(TEXTS, queries=True)
    for text, vector in zip(TEXTS, queries, strict=True):
        alone = load(tiny_twin, precision).encode([text], queries=True)
        assert alone.tobytes() == vector.tobytes()


def test_passages_are_encoded_once(tiny_twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passage of many topics costs one encoding, and a query that comes again none."""
    model = load(tiny_twin)
    encoded: list[str] = []
    real = model._encode
    monkeypatch.setattr(
        model, "_encode", lambda texts, *rest: (encoded.extend(texts), real(texts, *rest))[1]
    )

    first = model.score("a csv", ["row", "sun", "row"]).scores
    model.score("bread", ["sun", "file"])
    again = model.score("a csv", ["row", "sun", "row"]).scores

    assert encoded == ["a csv", "row", "sun", "bread", "file"]
    assert first.tobytes() == again.tobytes()
    assert first[0] == first[2]


def test_vectors_survive_the_process(
    tiny_twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was foreseen and settled is found by the next process, which encodes only the rest."""
    monkeypatch.setattr("pipeline.models.towers.PIECE", 4)
    model = load(tiny_twin)
    assert isinstance(model, Foreseeing)
    expected = load(tiny_twin).score("a csv", TEXTS).scores
    model.keep_vectors(Parts(tmp_path))
    model.foresee(TEXTS[:3])
    model.foresee([*TEXTS[:6], TEXTS[1]])
    assert len(list(tmp_path.glob("*.part"))) == 1  # four are kept, two still wait
    model.settle()

    later = load(tiny_twin)
    later.keep_vectors(Parts(tmp_path))
    encoded: list[str] = []
    real = later._encode
    monkeypatch.setattr(
        later, "_encode", lambda texts, *rest: (encoded.extend(texts), real(texts, *rest))[1]
    )
    scores = later.score("a csv", TEXTS).scores

    assert encoded == ["a csv", *TEXTS[6:]]
    assert scores.tobytes() == expected.tobytes()


def test_queries_that_are_known_ahead_are_encoded_together(
    tiny_twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at a time, in the order told, with the bits of each alone; a stranger is no loss."""
    queries = ["a csv", "bread", "the row file", "sun", "reading a file with a row"]
    alone = load(tiny_twin)
    expected = [alone.score(query, TEXTS).scores.tobytes() for query in queries]
    model = load(tiny_twin)
    encoded: list[list[str]] = []
    real = model._encode

    def watched(texts: list[str], queries: bool) -> object:
        encoded.append(list(texts))
        return real(texts, queries)

    monkeypatch.setattr(model, "_encode", watched)
    monkeypatch.setattr("pipeline.models.towers.QUERIES_AHEAD", 3)
    model.foresee_queries([*queries, "bread"])
    scores = [model.score(query, TEXTS).scores.tobytes() for query in queries]
    model.score("nobody told", TEXTS)
    assert scores == expected
    assert [some for some in encoded if len(some) < len(TEXTS)] == [
        queries[:3], queries[3:], ["nobody told"],
    ]  # fmt: skip


@pytest.mark.parametrize("alone", [False, True])
def test_the_faster_pass_is_taken_and_agrees(tmp_path: Path, alone: bool) -> None:
    """With all tokens or with the first alone, as the pooling asks; float32 to 1e-5."""
    folder = tiny_models.make_twin(tmp_path / "m")
    mode = {"pooling_mode_cls_token": True} if alone else {"pooling_mode_mean_tokens": True}
    tiny_models.write(folder / "1_Pooling/config.json", mode)
    model = load(folder)
    assert model._short is not None
    kind = "first token" if alone else "all tokens"
    assert model.signature["forward"] == f"rows of 16, {kind}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwinEncoder, "_shortened", lambda _: None)
        own = load(folder)
    assert own.signature["forward"] == "rows of 16"
    np.testing.assert_allclose(model.encode(TEXTS), own.encode(TEXTS), atol=1e-5)


def test_long_texts_are_cut_and_counted(tiny_twin: Path) -> None:
    """Cut passages are counted from the cache as well; a cut query is told."""
    model = load(tiny_twin, limits=Limits(max_query_tokens=4, max_tokens=8))

    first = model.score("a b c", ["x y z", "x y z a b c", "x y z a b c d"])
    again = model.score("a b", ["x y z a b c d"])

    assert (first.query_cut, first.passages_cut) == (True, 1)
    assert (again.query_cut, again.passages_cut) == (False, 1)
    assert model.limits == {"max_query_tokens": 4, "max_tokens": 8}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_text_may_take_every_position_that_there_is(tiny_twin: Path, precision: str) -> None:
    """Where no room is left for padding, a vector is still a function of its text alone."""
    limits = Limits(max_tokens=128)
    texts = ["x " * 1000, "a b c d " * 32, "csv " * 126, "row " * 125, "sun " * 120, "bread"]

    vectors = load(tiny_twin, precision, limits).encode(texts)

    if precision == "fp32":
        expected = by_hand(tiny_twin, texts, longest=128)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    for queries in (False, True):
        together = load(tiny_twin, precision, limits).encode(texts, queries=queries)
        for text, vector in zip(texts, together, strict=True):
            alone = load(tiny_twin, precision, limits).encode([text], queries=queries)
            assert alone.tobytes() == vector.tobytes()


@pytest.mark.parametrize("limits", [Limits(max_tokens=2), Limits(max_tokens=129)])
def test_impossible_limits_are_refused(tiny_twin: Path, limits: Limits) -> None:
    """No room for a text, or more than the model has positions."""
    with refused("cannot be", "this model takes 128 tokens"):
        load(tiny_twin, limits=limits)


def test_prompts_are_put_before_the_texts(tiny_twin: Path, tmp_path: Path) -> None:
    """As sentence-transformers' encode_query and encode_document do."""
    folder = Path(shutil.copytree(tiny_twin, tmp_path / "m"))
    tiny_models.write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "read: ", "passage": "row: "}},
    )

    prompted, plain = load(folder), load(tiny_twin)

    np.testing.assert_array_equal(
        prompted.encode(["csv"], queries=True), plain.encode(["read: csv"], queries=True)
    )
    np.testing.assert_array_equal(prompted.encode(["csv"]), plain.encode(["row: csv"]))


def test_an_empty_prompt_is_one(tiny_twin: Path, tmp_path: Path) -> None:
    """The default prompt is for sides that have none of their own."""
    folder = Path(shutil.copytree(tiny_twin, tmp_path / "m"))
    tiny_models.write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "", "document": "", "x": "row: "}, "default_prompt_name": "x"},
    )

    for queries in (False, True):
        np.testing.assert_array_equal(
            load(folder).encode(["csv"], queries=queries),
            load(tiny_twin).encode(["csv"], queries=queries),
        )


def test_limits_in_a_file_of_older_versions_count(tiny_twin: Path, tmp_path: Path) -> None:
    """sentence-transformers named it after the kind of model, and reads it still."""
    folder = Path(shutil.copytree(tiny_twin, tmp_path / "m"))
    (folder / "sentence_bert_config.json").unlink()
    tiny_models.write(folder / "sentence_roberta_config.json", {"max_seq_length": 16})

    assert load(folder).limits["max_tokens"] == 16


def test_two_towers_that_lack_a_layer_are_refused(tiny_twin: Path, tmp_path: Path) -> None:
    """They would score by random numbers."""
    folder = tiny_models.without(tiny_twin, tmp_path / "m", "encoder.layer.1.")

    with refused("no weights for encoder.layer.1.", "not whole"):
        load(folder)


def test_no_passages_no_scores(tiny_twin: Path) -> None:
    """An empty list is answered by an empty array."""
    assert load(tiny_twin).score("a", []).scores.shape == (0,)


def test_out_of_memory_is_told(tiny_twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller batches, the same scores but for last bits, and the budget that fitted."""
    model = load(tiny_twin)
    expected = model.score("a csv", TEXTS).scores
    model = load(tiny_twin)
    real = model._forward

    def small(
        ids: NDArray[np.int64], lengths: NDArray[np.int64], queries: bool
    ) -> NDArray[np.float32]:
        if ids.size > 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(ids, lengths, queries)

    monkeypatch.setattr(model, "_forward", small)
    result = model.score("a csv", TEXTS)

    assert result.lowered_budget == 256
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)


MODULE = "sentence_transformers.models."


def modules(*kinds: str, path: str = "") -> list[dict[str, object]]:
    return [{"idx": i, "path": path, "type": kind} for i, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: tiny_models.write(m / "modules.json", {}), "not a list of modules"),
        (lambda m: tiny_models.write(m / "modules.json", ["x"]), "not a list of modules"),
        (lambda m: tiny_models.write(m / "modules.json", []), "modules.json: consists of"),
        (
            lambda m: tiny_models.write(m / "modules.json", modules(MODULE + "Dense")),
            "'sentence_transformers.models.Dense' is not supported",
        ),
        (
            lambda m: tiny_models.write(m / "modules.json", modules("os.Pooling")),
            "'os.Pooling' is not supported",
        ),
        (
            lambda m: tiny_models.write(
                m / "modules.json", modules(MODULE + "Transformer", path="../../etc")
            ),
            "outside the model folder",
        ),
        (
            lambda m: tiny_models.write(
                m / "modules.json", modules(MODULE + "Pooling", MODULE + "Transformer")
            ),
            "modules.json: consists of",
        ),
        (lambda m: shutil.rmtree(m / "1_Pooling"), "no such file"),
        (
            lambda m: tiny_models.write(m / "1_Pooling/config.json", {"pooling_mode": "max"}),
            "pooling 'max'",
        ),
        (
            lambda m: tiny_models.write(
                m / "1_Pooling/config.json",
                {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            ),
            "pooling ['mean', 'max']",
        ),
        (lambda m: (m / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda m: tiny_models.change(m / "config.json", auto_map={"AutoModel": "x.Y"}),
            "auto_map",
        ),
    ],
)
def test_a_strangers_folder_can_only_fail(
    tiny_twin: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    """Two lines for whatever is wrong with the layout."""
    folder = Path(shutil.copytree(tiny_twin, tmp_path / "m"))
    spoil(folder)
    with refused(message):
        load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "all-mpnet-base-v2"])
def test_the_teachers_vectors_are_those_of_sentence_transformers(teachers: Path, name: str) -> None:
    """Both real encoders, in float32, to 1e-5."""
    rival = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    texts = [
        "how do I read a csv with a header row",
        "Return an iterable of rows, each a dictionary keyed by the header. " * 20,
        "naïve café, 北京, 🍞",
        "",
    ]
    model = rival.SentenceTransformer(str(teachers / name), device="cpu")
    expected = model.encode(texts)

    np.testing.assert_allclose(load(teachers / name).encode(texts), expected, atol=1e-5)
