"""A collection in several indexes is searched as one: scores, order and texts are the same."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline import indexes, lucene
from pipeline.index import IndexSettings, index
from pipeline.rerank import RerankSettings, rerank
from pipeline.retrieve import RetrieveSettings, retrieve
from pipeline.stage import read_sidecar

SOAK = bool(os.environ.get("PIPELINE_SOAK"))
PASSAGES = 100_000 if SOAK else 20_000
FEEDBACK = ("none", "rm3", "rocchio")
SEVERAL = ("msmarco-v2-pool", "msmarco-pool", "nq-oracle", "scifact", "nfcorpus", "cranfield")

pytestmark = pytest.mark.jvm


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        pass


def made(folder: Path, count: int = 1500) -> Path:
    """A collection of Zipf's words, many texts of it alike, so that scores tie."""
    choose = random.Random(7)
    words = [f"w{number}" for number in range(400)]
    weights = [1 / (rank + 1) for rank in range(400)]
    with (folder / "corpus.jsonl").open("w") as out:
        for number in range(count):
            text = " ".join(choose.choices(words, weights, k=choose.choice((3, 3, 12, 40))))
            out.write(json.dumps({"id": f"d{number}", "contents": text}) + "\n")
        out.write('{"id": "empty", "contents": " "}\n')
    with (folder / "topics.tsv").open("w") as out:
        for number in range(40):
            out.write(f"{number}\t{' '.join(choose.choices(words, weights, k=4))}\n")
    return folder / "corpus.jsonl"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collection in one index and in seven."""
    folder = tmp_path_factory.mktemp("indexes")
    corpus = made(folder)
    index(IndexSettings(corpus, folder / "one"))
    index(IndexSettings(corpus, folder / "seven", shards=7))
    return folder


def search(folder: Path, place: indexes.Place, name: str, **changes: object) -> Path:
    settings = RetrieveSettings(folder / "topics.tsv", place, folder / name)
    retrieve(replace(settings, **changes))  # type: ignore[arg-type]
    return settings.output


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_seven_indexes_rank_as_one(feedback: str, ready: Path) -> None:
    """Byte for byte; in one folder, or named one by one in any order."""
    expected = search(ready, ready / "one", f"{feedback}.run", feedback=feedback)
    as_one = search(ready, ready / "seven", f"{feedback}7.run", feedback=feedback)
    named = tuple(ready / "seven" / str(number) for number in (3, 1, 2, 7, 6, 5, 4))
    one_by_one = search(ready, named, f"{feedback}77.run", feedback=feedback)
    assert expected.read_bytes() == as_one.read_bytes() == one_by_one.read_bytes()
    assert expected.read_bytes().count(b"\n") > 1000


def test_what_is_in_an_index_is_said_alike_however_it_is_cut(ready: Path) -> None:
    """A run over one index is fresh over seven of the same documents; counts are of all."""
    search(ready, ready / "one", "fresh.run")
    settings = RetrieveSettings(ready / "topics.tsv", ready / "seven", ready / "fresh.run")
    assert not retrieve(settings).computed
    one, seven = (read_sidecar(ready / name) or {} for name in ("one", "seven"))
    assert one["counts"] == seven["counts"]
    assert seven["recipe"]["settings"]["shards"] == 7
    sizes = []
    for folder in indexes.folders(ready / "seven"):
        with lucene.Index(folder) as part:
            sizes.append(part.count)
    assert sum(sizes) == one["counts"]["indexed"]
    assert min(sizes) > 100


def test_texts_and_docids_come_from_all(ready: Path) -> None:
    """For reranking and encoding."""
    with lucene.Index(ready / "one") as one, lucene.Index(ready / "seven") as seven:
        docids = sorted(seven.docids(range(seven.count)))
        assert docids == sorted(one.docids(range(one.count)))
        assert one.texts(docids) == seven.texts(docids)
        assert seven.texts(["nobody"]) == [None]
    run_file = search(ready, ready / "one", "candidates.run", hits=10)
    for name, place in (("a", ready / "one"), ("b", (ready / "seven" / "1", ready / "seven"))):
        settings = RerankSettings(
            run_file, ready / "topics.tsv", "overlap", ready / f"{name}.run", index=place
        )
        rerank(settings)
    assert (ready / "a.run").read_bytes() == (ready / "b.run").read_bytes()


def test_part_of_an_index_says_that_its_scores_are_local(ready: Path) -> None:
    """And which index searches all."""
    heard = Heard()
    part = RetrieveSettings(ready / "topics.tsv", ready / "seven" / "3", ready / "local.run")
    retrieve(part, heard)
    assert any(
        "statistics of this part alone" in text and f"--index {ready / 'seven'}" in text
        for text in heard.notices
    )
    heard.notices.clear()
    several = tuple(ready / "seven" / str(number) for number in range(1, 8))
    retrieve(replace(part, index=several[2:], output=ready / "five.run"), heard)
    assert any("statistics of this part alone" in text for text in heard.notices)
    heard.notices.clear()
    for whole in (ready / "seven", several):
        retrieve(replace(part, index=whole, output=ready / "all.run"), heard)
        assert heard.notices == []


def test_indexes_that_do_not_belong_together_are_refused(ready: Path, tmp_path: Path) -> None:
    """Other analysis; the same document twice; an index that is none."""
    index(IndexSettings(ready / "corpus.jsonl", tmp_path / "keep", stopwords="keep"))
    with refused(f"{tmp_path / 'keep'}: was not analysed as {ready / 'one'} was"):
        search(ready, (ready / "one", tmp_path / "keep"), "no.run")
    with refused("is in more than one", "different documents"):
        search(ready, (ready / "one", ready / "seven" / "2"), "no.run")
    with refused(f"{tmp_path}: no Lucene index in this folder"):
        search(ready, (ready / "one", tmp_path), "no.run")
    assert not (ready / "no.run").exists()
    for shards in (0, 1025):
        with refused(f"--shards {shards} is out of range"):
            index(IndexSettings(ready / "corpus.jsonl", tmp_path / "x", shards=shards))


def test_a_missing_piece_is_noticed(ready: Path, tmp_path: Path) -> None:
    """Six of seven are not the index that was built."""
    for name in ("seven", "seven.json"):
        copy = shutil.copytree if (ready / name).is_dir() else shutil.copy
        copy(ready / name, tmp_path / name)
    shutil.rmtree(tmp_path / "seven" / "4")
    with refused("files of this index changed after it was built"):
        search(ready, tmp_path / "seven", "no.run")


def test_the_command_builds_several_and_searches_them(ready: Path, tmp_path: Path) -> None:
    """`index --shards`, `retrieve --index A --index B`."""
    shutil.copy(ready / "corpus.jsonl", tmp_path)
    shutil.copy(ready / "topics.tsv", tmp_path)
    expected = search(ready, ready / "one", "expected.run").read_bytes()
    words = ("index", "--collection", "corpus.jsonl", "--index", "i", "--shards", "2")
    assert run(*words, cwd=tmp_path).returncode == 0
    for places in (("i",), ("i/1", "i/2")):
        named = [word for place in places for word in ("--index", place)]
        done = run("retrieve", *named, "--topics", "topics.tsv", "-o", "x.run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "x.run").read_bytes() == expected
        (tmp_path / "x.run").unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_passages_in_one_index_and_in_seven(
    collections: Path, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    """The same runs, with and without feedback, from as many real passages as the soak takes."""
    count = 0
    with (tmp_path / "corpus.jsonl").open("w") as out:
        for record in islice(real(collections), PASSAGES):
            out.write(record)
            count += 1
    if count < PASSAGES:
        pytest.skip(f"the collections at hand have {count:,} passages only")
    topics = [line for name in SEVERAL for line in queries(collections / name)]
    (tmp_path / "topics.tsv").write_text("".join(topics[:: max(1, len(topics) // 300)]))
    index(IndexSettings(tmp_path / "corpus.jsonl", tmp_path / "one"))
    index(IndexSettings(tmp_path / "corpus.jsonl", tmp_path / "seven", shards=7))
    for feedback in FEEDBACK if SOAK else FEEDBACK[:1]:
        runs = [
            search(tmp_path, tmp_path / name, f"{name}.{feedback}.run", feedback=feedback)
            for name in ("one", "seven")
        ]
        assert runs[0].read_bytes() == runs[1].read_bytes(), feedback
    record_property("passages", count)


def real(collections: Path) -> Iterator[str]:
    """Passages of all collections at hand, under ids that no two share."""
    from pipeline.collection import documents

    for folder in sorted(collections.iterdir()):
        for path in sorted(folder.glob("corpus*")):
            for document in documents(path):
                record = {"id": f"{folder.name}-{document.docid}", "contents": document.text}
                yield json.dumps(record) + "\n"


def queries(folder: Path) -> Iterator[str]:
    """Topics of one collection, under ids of their own."""
    for path in sorted(folder.glob("topics*.tsv")):
        for line in path.read_text().splitlines():
            yield f"{folder.name}-{path.stem}-{line}\n"
