"""Vectors of passages: made once, resumed, bound to model and texts, searched and reranked with."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from killing import run
from refusal import refused
from tiny_models import change, make, make_twin

from pipeline import dense, encode
from pipeline.dense import DenseSettings
from pipeline.encode import EncodeSettings
from pipeline.models.reranker import load_towers
from pipeline.models.scorer import Limits, Wishes
from pipeline.rerank import RerankSettings, rerank
from pipeline.trec import read_run
from pipeline.vectors import PassageVectors, best, packed

CPU = {"device": "cpu", "precision": "fp32", "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twin(tmp_path_factory.mktemp("model"))


@pytest.fixture
def corpus(tiny: Path, tmp_path: Path) -> Path:
    shutil.copy(tiny / "corpus.jsonl", tmp_path / "corpus.jsonl")
    shutil.copy(tiny / "topics.tsv", tmp_path / "topics.tsv")
    return tmp_path / "corpus.jsonl"


def made(model: Path, corpus: Path, **changes: object) -> EncodeSettings:
    values = {
        "model": str(model), "output": corpus.parent / "vectors", "collection": corpus,
        "dtype": "fp32", **CPU, **changes,
    }  # fmt: skip
    return EncodeSettings(**values)  # type: ignore[arg-type]


def texts(corpus: Path) -> dict[str, str]:
    from pipeline.collection import documents

    return {d.docid: d.text for d in documents(corpus) if d.text.strip()}


def towers(model: Path):
    return load_towers(str(model), Wishes("cpu", "fp32", 1), Limits())


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 0.0), ("fp16", 1e-3), ("int8", 1e-2)])
def test_vectors_are_the_models_own(dtype: str, error: float, model: Path, corpus: Path) -> None:
    """A row for each passage that is not empty, in the order of the collection."""
    outcome = encode.encode(made(model, corpus, dtype=dtype))
    found = PassageVectors(corpus.parent / "vectors")
    known = texts(corpus)

    assert found.docids() == list(known)
    assert outcome.counts["passages"] == found.count == len(known)
    expected = towers(model).encode(list(known.values()))
    np.testing.assert_allclose(found[slice(0, found.count)], expected, atol=error)
    if dtype == "fp32":
        assert found[slice(0, 3)].tobytes() == expected[:3].tobytes()
    sizes = {"fp32": 4, "fp16": 2, "int8": 1}
    size = (corpus.parent / "vectors/vectors.bin").stat().st_size
    assert size == sizes[dtype] * expected.size


def test_int8_keeps_each_vector_to_half_a_step() -> None:
    """A scale a vector: its largest number is 127 steps; a vector of zeros stays one."""
    vectors = np.array([[0.5, -1.27, 0.004], [0, 0, 0], [1e-4, 5e-5, 0]], np.float32)
    numbers, scales = packed(vectors, "int8")
    each = np.frombuffer(scales, np.float32)[:, None]
    back = np.frombuffer(numbers, np.int8).reshape(3, 3) * each
    step = np.abs(vectors).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - vectors) <= step / 2 + 1e-9).all()


def test_vectors_are_fresh_until_model_or_texts_change(model: Path, corpus: Path) -> None:
    """And parts that are finished are not encoded again."""
    settings = made(model, corpus)
    assert encode.encode(settings).computed
    assert not encode.encode(settings).computed
    shutil.rmtree(corpus.parent / "vectors")
    before = {p: p.stat().st_mtime_ns for p in (corpus.parent / "vectors.parts").glob("*.part")}
    assert encode.encode(settings).computed
    assert before == {p: p.stat().st_mtime_ns for p in before}
    with corpus.open("a") as file:
        file.write('{"id": "new", "contents": "a new one"}\n')
    assert encode.encode(settings).reasons == ("input collection changed",)
    assert PassageVectors(corpus.parent / "vectors").docids()[-1] == "new"


def test_an_interrupted_encoding_goes_on(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vectors are the same bytes, and only what was missing is encoded."""
    monkeypatch.setattr(encode, "PART", 3)
    settings = made(model, corpus, max_tokens=8)
    cut = encode.encode(settings).counts["cut"]
    assert cut
    whole = (corpus.parent / "vectors/about.json").read_bytes()
    shutil.rmtree(corpus.parent / "vectors")
    parts = sorted((corpus.parent / "vectors.parts").glob("*.part"))
    assert len(parts) > 2
    parts[1].unlink()
    parts[2].write_bytes(b"torn")
    kept = parts[0].stat().st_mtime_ns
    assert encode.encode(settings).counts["cut"] == cut
    assert (corpus.parent / "vectors/about.json").read_bytes() == whole
    assert parts[0].stat().st_mtime_ns == kept


def test_search_finds_the_largest_dot_products(model: Path, corpus: Path) -> None:
    """Every passage is compared with every query; as many as asked for, in order."""
    encode.encode(made(model, corpus))
    folder = corpus.parent
    settings = DenseSettings(
        folder / "vectors", folder / "topics.tsv", str(model), folder / "dense.run", hits=3, **CPU
    )
    outcome = dense.retrieve(settings)
    known = texts(corpus)
    assert outcome.counts["passages"] == len(known)
    from pipeline.topics import read_topics

    loaded = towers(model)
    for ranking in read_run(folder / "dense.run"):
        query = loaded.encode([read_topics(folder / "topics.tsv")[ranking.qid]], queries=True)[0]
        products = (loaded.encode(list(known.values())) * query).sum(axis=1)
        scores = dict(zip(known, products.tolist(), strict=True))
        expected = sorted(scores, key=lambda d: (-scores[d], d))[:3]
        assert [doc.docid for doc in ranking.docs] == expected
        assert ranking.docs[0].score == pytest.approx(scores[expected[0]], abs=1e-6)
    assert not dense.retrieve(settings).computed


def searched(model: Path, corpus: Path, **changes: object) -> DenseSettings:
    folder = corpus.parent
    values = {
        "vectors": folder / "vectors", "topics": folder / "topics.tsv", "model": str(model),
        "output": folder / "dense.run", "hits": 3, **CPU, **changes,
    }  # fmt: skip
    return DenseSettings(**values)  # type: ignore[arg-type]


def test_a_graph_finds_what_exact_search_finds(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among few vectors all of it, with the same scores; the graph is made once, then kept."""
    pytest.importorskip("faiss")
    folder = corpus.parent
    encode.encode(made(model, corpus, dtype="int8"))
    dense.retrieve(searched(model, corpus))
    settings = searched(model, corpus, output=folder / "ann.run", ann=True)
    assert dense.retrieve(settings).computed
    assert (folder / "ann.run").read_bytes() == (folder / "dense.run").read_bytes()
    graph = folder / "vectors.hnsw"
    whole, stamp = graph.read_bytes(), graph.stat().st_mtime_ns
    assert not dense.retrieve(settings).computed
    dense.retrieve(replace(settings, hits=2))
    assert graph.stat().st_mtime_ns == stamp
    # Made again from nothing it is the same, whatever the number of threads.
    graph.unlink()
    dense.retrieve(replace(settings, hits=1))
    assert graph.read_bytes() == whole


def test_a_graph_is_made_again_for_other_vectors(model: Path, corpus: Path) -> None:
    """One of vectors that are no more would propose the wrong passages."""
    pytest.importorskip("faiss")
    folder = corpus.parent
    encode.encode(made(model, corpus))
    dense.retrieve(searched(model, corpus, ann=True))
    before = (folder / "vectors.hnsw").read_bytes()
    with corpus.open("a") as lines:
        lines.write('{"id": "new", "contents": "read the csv file"}\n')
    encode.encode(made(model, corpus))
    dense.retrieve(searched(model, corpus, ann=True, hits=100))
    assert (folder / "vectors.hnsw").read_bytes() != before
    assert all(
        "new" in {doc.docid for doc in ranking.docs} for ranking in read_run(folder / "dense.run")
    )


def test_most_of_many_neighbours_are_found() -> None:
    """Of the 100 nearest among 20,000 vectors in clusters, more than 95 in 100."""
    pytest.importorskip("faiss")
    from pipeline.neighbours import built, nearest_in

    draw = np.random.default_rng(1)
    centres = draw.normal(size=(200, 64))
    many = centres[draw.integers(200, size=20_000)] + 0.7 * draw.normal(size=(20_000, 64))
    many = (many / np.linalg.norm(many, axis=1, keepdims=True)).astype(np.float32)
    queries = many[::1000] + 0.05 * draw.normal(size=(20, 64)).astype(np.float32)
    index = built(many, 64, len(many))
    for query, rows in zip(queries, nearest_in(index, queries, 100), strict=True):
        best_rows = set(np.argsort(-(many @ query))[:100].tolist())
        assert len(best_rows & set(rows.tolist())) > 95
        assert len(set(rows.tolist())) == len(rows) == 100


def test_a_graph_that_cannot_be_had_is_refused_in_words(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without faiss, with a stranger's file in the way, or with a damaged one."""
    folder = corpus.parent
    encode.encode(made(model, corpus))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faiss", None)
        with refused("--ann needs the package faiss-cpu", "trec-pipeline[ann]"):
            dense.retrieve(searched(model, corpus, ann=True))
    pytest.importorskip("faiss")
    (folder / "vectors.hnsw").write_text("somebody's own")
    with refused("vectors.hnsw: exists already"):
        dense.retrieve(searched(model, corpus, ann=True))
    assert (folder / "vectors.hnsw").read_text() == "somebody's own"
    assert not (folder / "dense.run").exists()
    (folder / "vectors.hnsw").unlink()
    dense.retrieve(searched(model, corpus, ann=True))
    (folder / "vectors.hnsw").write_bytes(b"torn")  # is made again
    assert dense.retrieve(searched(model, corpus, ann=True, hits=2)).computed


def test_vectors_may_lie_where_one_stands(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` can be read; but nothing can be put beside it, and that is said."""
    encode.encode(made(model, corpus))
    folder = corpus.parent
    monkeypatch.chdir(folder / "vectors")
    settings = DenseSettings(Path(), folder / "topics.tsv", str(model), folder / "x.run", **CPU)
    assert dense.retrieve(replace(settings, ann=True)).computed
    with refused(".: nothing can lie beside it", "name"):
        encode.encode(made(model, corpus, output=Path()))


def test_ann_is_for_vectors(corpus: Path) -> None:
    """With an index it is refused, not ignored."""
    words = ("retrieve", "--topics", "topics.tsv", "-o", "x.run", "--index", "i", "--ann")
    done = run(*words, cwd=corpus.parent)
    assert done.returncode == 1
    assert "--ann with an index" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_equal_scores_are_ordered_by_docid_at_every_cut() -> None:
    """Whatever the order in which blocks bring them."""
    scores = np.array([1, 2, 1, 1, 3], np.float32)
    docids = ["d", "b", "a", "c", "e"]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        found = best(scores[order], np.array(order), docids, 4)
        assert [docids[row] for row in found[1]] == ["e", "b", "a", "c"]


def test_search_in_blocks_is_search_at_once(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, however few passages and topics are compared at a time."""
    encode.encode(made(model, corpus))
    folder = corpus.parent
    assert len((folder / "topics.tsv").read_text().splitlines()) > 2
    for hits in (2, 1000):
        found = set()
        for block, together in ((1 << 15, 64), (4, 64), (1 << 15, 1), (4, 2)):
            monkeypatch.setattr(dense, "BLOCK", block)
            monkeypatch.setattr(dense, "TOGETHER", together)
            output = folder / f"{hits}.{block}.{together}.run"
            dense.retrieve(
                DenseSettings(
                    folder / "vectors", folder / "topics.tsv", str(model), output, hits=hits, **CPU
                )
            )
            found.add(output.read_bytes())
        assert len(found) == 1


def test_rerank_takes_vectors_that_are_there(
    model: Path, corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as without them, and no passage is encoded."""
    encode.encode(made(model, corpus))
    folder = corpus.parent
    values = {
        "run": tiny / "bm25.run", "topics": tiny / "topics.tsv", "model": str(model),
        "collection": corpus, **CPU,
    }  # fmt: skip
    rerank(RerankSettings(output=folder / "a.run", **values))  # type: ignore[arg-type]
    from pipeline.models.towers import Towers

    real = Towers._encode
    encoded: list[bool] = []

    def watched(self: Towers, texts: list[str], queries: bool):
        encoded.append(queries)
        return real(self, texts, queries)

    monkeypatch.setattr(Towers, "_encode", watched)
    settings = RerankSettings(output=folder / "b.run", vectors=folder / "vectors", **values)  # type: ignore[arg-type]
    outcome = rerank(settings)
    assert encoded
    assert all(encoded)
    assert (folder / "a.run").read_bytes() == (folder / "b.run").read_bytes()
    assert outcome.details["ms_per_1000"] > 0


def test_vectors_of_shorter_passages_are_refused(model: Path, corpus: Path, tiny: Path) -> None:
    """What a passage is cut at decides its score, whichever way its vector came about."""
    encode.encode(made(model, corpus, max_tokens=5))
    folder = corpus.parent
    settings = RerankSettings(
        run=tiny / "bm25.run", topics=tiny / "topics.tsv", model=str(model), collection=corpus,
        output=folder / "a.run", vectors=folder / "vectors", **CPU,
    )  # fmt: skip
    with refused("was encoded from 5 tokens of a passage, and the model reads", "--max-tokens 5"):
        rerank(settings)
    assert rerank(replace(settings, max_tokens=5)).computed
    with refused("--max-tokens 0 is out of range"):
        encode.encode(made(model, corpus, max_tokens=0))


def test_equal_texts_are_found_in_the_order_of_their_ids(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding in a product of matrices decides nothing: a short run begins a longer one."""
    texts = "".join(f'{{"id": "d{n:04}", "contents": "the same words"}}\n' for n in range(203))
    corpus.write_text(texts)
    encode.encode(made(model, corpus))
    folder = corpus.parent
    monkeypatch.setattr(dense, "BLOCK", 50)

    for hits in (1, 5, 60):
        output = folder / f"{hits}.run"
        dense.retrieve(
            DenseSettings(
                folder / "vectors", folder / "topics.tsv", str(model), output, hits=hits, **CPU
            )
        )
        for ranking in read_run(output):
            assert [doc.docid for doc in ranking.docs] == [f"d{n:04}" for n in range(hits)]


def test_docids_say_which_vector_where_the_texts_are_the_same(
    model: Path, corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text is read then, but of passages without a vector; the run is the same to the byte."""
    with corpus.open("a") as lines:
        lines.write('{"id": "empty", "contents": " "}\n')
    encode.encode(made(model, corpus))
    folder = corpus.parent
    candidates = (tiny / "bm25.run").read_text()
    qid = candidates.split()[0]
    (folder / "first.run").write_text(f"{qid} Q0 empty 1 99999 x\n{candidates}")
    copy = folder / "copy.jsonl"  # the same texts, in other bytes
    copy.write_text(corpus.read_text().replace('"id": ', '"id":  '))
    values = {
        "run": folder / "first.run", "topics": tiny / "topics.tsv", "model": str(model),
        "vectors": folder / "vectors", **CPU,
    }  # fmt: skip
    from pipeline.candidates import Spool

    wanted: list[list[str]] = []
    real = Spool.__init__

    def watched(self: Spool, where: str, docids: Iterable[str], scratch: BinaryIO) -> None:
        wanted.append(sorted(set(docids)))
        real(self, where, wanted[-1], scratch)

    monkeypatch.setattr(Spool, "__init__", watched)
    by_docid = rerank(RerankSettings(output=folder / "a.run", collection=corpus, **values))  # type: ignore[arg-type]
    by_text = rerank(RerankSettings(output=folder / "b.run", collection=copy, **values))  # type: ignore[arg-type]
    assert wanted[0] == ["empty"]
    assert len(wanted[1]) > 3
    assert (folder / "a.run").read_bytes() == (folder / "b.run").read_bytes()
    assert by_docid.counts == by_text.counts
    assert by_docid.counts["empty_passages"] == 1
    assert by_docid.details["ms_crossing"] > 0
    assert by_docid.details["ms_per_query"] > 0


def test_vectors_that_are_exchanged_meanwhile_are_noticed(
    model: Path, corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model was loaded with others than those whose docids are looked up."""
    encode.encode(made(model, corpus))
    from pipeline.makers import Load

    real = Load.__call__

    def exchanged(self: Load, begun: dict | None):
        towers = real(self, begun)
        towers._given.content = "other"  # type: ignore[attr-defined]
        return towers

    monkeypatch.setattr(Load, "__call__", exchanged)
    folder = corpus.parent
    settings = RerankSettings(
        run=tiny / "bm25.run", topics=tiny / "topics.tsv", model=str(model), collection=corpus,
        vectors=folder / "vectors", output=folder / "a.run", **CPU,
    )  # fmt: skip
    with refused("other vectors"):
        rerank(settings)
    assert not (folder / "a.run").exists()


def test_vectors_of_another_model_are_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    """By search and by reranking: their numbers would mean nothing."""
    encode.encode(made(model, corpus))
    other = shutil.copytree(model, tmp_path / "other")
    change(other / "sentence_bert_config.json", max_seq_length=32)
    folder = corpus.parent
    with refused("was not encoded by"):
        dense.retrieve(
            DenseSettings(folder / "vectors", folder / "topics.tsv", str(other), folder / "x.run")
        )
    assert not (folder / "x.run").exists()


def test_damaged_and_missing_vectors_are_named(model: Path, corpus: Path) -> None:
    """With the file and its size."""
    folder = corpus.parent
    settings = DenseSettings(
        folder / "vectors", folder / "topics.tsv", str(model), folder / "x.run", **CPU
    )
    with refused("no such folder of vectors"):
        dense.retrieve(settings)
    encode.encode(made(model, corpus))
    path, about = folder / "vectors" / "vectors.bin", folder / "vectors" / "about.json"
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with refused("vectors.bin"):
        dense.retrieve(settings)
    path.write_bytes(data[:-2] + bytes(2))
    with refused(f"{path.parent}: damaged or edited", "encode again"):
        dense.retrieve(settings)
    assert encode.encode(made(model, corpus)).reasons == ("output edited",)
    assert path.read_bytes() == data
    (path.parent / "keys.bin").unlink()
    with refused("keys.bin: is missing", "encode again"):
        dense.retrieve(settings)
    assert encode.encode(made(model, corpus)).computed
    for wrong in ("{", '{"schema": 1}', about.read_text().replace('"fp32"', '"fp31"')):
        about.write_text(wrong)
        with refused("about.json", "encode again"):
            dense.retrieve(settings)


def test_a_cross_encoder_has_no_vectors(corpus: Path, tmp_path: Path) -> None:
    """It says what would have."""
    with refused("scores pairs", "two towers"):
        encode.encode(made(make(tmp_path / "cross"), corpus))


def test_the_command_encodes_searches_and_fuses(model: Path, corpus: Path) -> None:
    """From an index, by Lucene's numbers, to a run that is fused with BM25's."""
    folder = corpus.parent
    where = ("--index", "i", "--output")
    common = ("--model", model, "--threads", "1")
    for words in (
        ("index", "--collection", corpus, "--index", "i"),
        ("encode", *where, "v", "--dtype", "int8", *common),
        ("retrieve", "--vectors", "v", "--topics", "topics.tsv", "--output", "dense.run", *common),
        ("retrieve", "--topics", "topics.tsv", *where, "bm25.run"),
        ("fuse", "bm25.run", "dense.run", "--output", "both.run"),
    ):
        done = run(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert sorted(PassageVectors(folder / "v").docids()) == sorted(texts(corpus))
    assert json.loads((folder / "v/about.json").read_text())["dtype"] == "int8"
    assert len(list(read_run(folder / "both.run"))) >= 3


@pytest.mark.parametrize(
    "words",
    [
        ("retrieve", "--topics", "topics.tsv", "-o", "x.run"),
        ("retrieve", "--topics", "topics.tsv", "-o", "x.run", "--vectors", "v"),
        ("encode", "--model", "m", "--output", "v"),
    ],
)
def test_commands_say_what_they_lack(words: tuple[str, ...], corpus: Path) -> None:
    """In two lines, exit code 1."""
    done = run(*words, cwd=corpus.parent)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert "--index DIR" in done.stderr
