"""Topics become a run: Anserini's ranking, the same bytes however often it was stopped."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import anserini
import ir_measures
import pytest
from elsewhere import start_python
from folders import file_of, names
from refusal import refused

from pipeline import retrieve as retrieve_module
from pipeline.bm25 import Searcher
from pipeline.errors import InputError, StorageError
from pipeline.index import IndexSettings, index
from pipeline.parts import bucket
from pipeline.retrieve import PARTS, RetrieveSettings, _groups, recipe, retrieve
from pipeline.stage import parts_path, read_sidecar
from pipeline.trec import read_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.jvm]

WORDS = ("water", "tomato", "plant", "lamp", "river", "stone", "cloud", "bread", "wheel", "light")


class Listener:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 300 documents of few words, so that many score the same."""
    folder = tmp_path_factory.mktemp("retrieve")
    chance = random.Random(7)
    records = [
        {"id": f"d{n:03}", "contents": " ".join(chance.choices(WORDS, k=chance.choice((3, 3, 8))))}
        for n in range(300)
    ]
    file_of(folder, "".join(json.dumps(record) + "\n" for record in records), "c.jsonl")
    index(IndexSettings(folder / "c.jsonl", folder / "index"))
    return folder / "index"


def topics(count: int = 60) -> dict[str, str]:
    chance = random.Random(1)
    return {str(n): " ".join(chance.choices(WORDS, k=chance.randint(1, 4))) for n in range(count)}


def tsv(wanted: dict[str, str]) -> str:
    return "".join(f"{qid}\t{text}\n" for qid, text in wanted.items())


@pytest.fixture
def settings(built: Path, tmp_path: Path) -> RetrieveSettings:
    file_of(tmp_path, tsv(topics()), "topics.tsv")
    return RetrieveSettings(tmp_path / "topics.tsv", built, tmp_path / "bm25.run", hits=50)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were really searched."""
    seen: list[str] = []
    search = Searcher.search

    def counting(searcher: Searcher, texts: Sequence[str]) -> list[tuple]:
        seen.extend(texts)
        return search(searcher, texts)

    monkeypatch.setattr(Searcher, "search", counting)
    return seen


# ---------------------------------------------------------------- the run


def test_the_run_is_anserinis_ranking(settings: RetrieveSettings) -> None:
    """Documents and order of SimpleSearcher, topics in the order of their file."""
    outcome = retrieve(settings)
    assert outcome.counts == {"topics": 60, "without_hits": []}
    theirs = anserini.SimpleSearcher(settings.index).search(list(topics().values()), 50)
    run = list(read_run(settings.output))
    assert [ranking.qid for ranking in run] == list(topics())
    assert [[doc.docid for doc in ranking.docs] for ranking in run] == theirs


def test_written_scores_fall_strictly_and_stay_by_lucenes(settings: RetrieveSettings) -> None:
    """Equal scores are lowered by the least that float32 can tell apart."""
    retrieve(settings)
    columns = [line.split() for line in settings.output.read_text().splitlines()]
    assert {(len(row), row[1], row[5]) for row in columns} == {(6, "Q0", "bm25")}
    for before, row in pairwise(columns):
        if before[0] == row[0]:
            assert float(row[4]) < float(before[4])
            assert int(row[3]) == int(before[3]) + 1


def test_threads_make_no_difference_to_the_bytes(settings: RetrieveSettings) -> None:
    for threads in (1, 2, 3, 8):
        retrieve(replace(settings, threads=threads, output=settings.output.with_name(f"{threads}")))
    runs = {settings.output.with_name(f"{threads}").read_bytes() for threads in (1, 2, 3, 8)}
    assert len(runs) == 1


def test_the_tiny_run(tiny: Path, tmp_path: Path) -> None:
    """Small enough to check by hand, and pinned."""
    index(IndexSettings(tiny / "corpus.jsonl", tmp_path / "index"))
    listener = Listener()
    made = RetrieveSettings(tiny / "topics.tsv", tmp_path / "index", tmp_path / "bm25.run")
    outcome = retrieve(made, listener)
    assert made.output.read_bytes() == (tiny / "bm25.run").read_bytes()
    assert outcome.counts == {"topics": 7, "without_hits": ["6"]}
    assert listener.notices == ["1 topics without hits are not in the run: 6"]


@pytest.mark.slow
def test_nfcorpus_gives_the_published_figure(collections: Path, tmp_path: Path) -> None:
    """Anserini's: nDCG@10 0.3218 for title and text in one field."""
    folder = collections / "nfcorpus"
    index(IndexSettings(folder / "corpus.jsonl.gz", tmp_path / "index"))
    output = tmp_path / "bm25.run"
    retrieve(RetrieveSettings(folder / "topics.test.tsv", tmp_path / "index", output))
    qrels = ir_measures.read_trec_qrels(str(folder / "qrels.test.txt"))
    run = ir_measures.read_trec_run(str(output))
    measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)
    assert round(measured[ir_measures.nDCG @ 10], 4) == 0.3218


@pytest.mark.parametrize("feedback", ["rm3", "rocchio"])
def test_feedback_changes_the_ranking(feedback: str, settings: RetrieveSettings) -> None:
    retrieve(settings)
    plain = settings.output.read_bytes()
    outcome = retrieve(replace(settings, feedback=feedback))
    assert outcome.reasons == (f"feedback changed ('none' -> '{feedback}')",)
    assert settings.output.read_bytes() != plain


def test_packed_output_and_topics(settings: RetrieveSettings, tmp_path: Path) -> None:
    """`.gz` by name, with the same content."""
    retrieve(settings)
    file_of(tmp_path, tsv(topics()), "topics.tsv.gz")
    packed = replace(settings, topics=tmp_path / "topics.tsv.gz", output=tmp_path / "bm25.run.gz")
    retrieve(packed)
    assert list(read_run(packed.output)) == list(read_run(settings.output))


# ---------------------------------------------------------------- topics without hits


def test_topics_without_hits_are_counted_and_named(
    settings: RetrieveSettings, tmp_path: Path
) -> None:
    """Unknown words, stop words, or nothing that is a word: never dropped in silence."""
    odd = {"a": "zzyzx", "b": "water", "c": "the of", "d": "?!", "e": "😀"}
    file_of(tmp_path, tsv(odd), "topics.tsv")
    listener = Listener()
    outcome = retrieve(settings, listener)
    assert outcome.counts == {"topics": 5, "without_hits": ["a", "c", "d", "e"]}
    assert listener.notices == ["4 topics without hits are not in the run: a, c, d, e"]
    assert [ranking.qid for ranking in read_run(settings.output)] == ["b"]
    sidecar = read_sidecar(settings.output)
    assert sidecar is not None
    assert sidecar["counts"]["without_hits"] == ["a", "c", "d", "e"]


def test_no_hits_at_all_is_an_empty_run(settings: RetrieveSettings, tmp_path: Path) -> None:
    """It is what the topics and the index give; the notice says so."""
    file_of(tmp_path, "1\tzzyzx\n", "topics.tsv")
    outcome = retrieve(settings)
    assert outcome.counts["without_hits"] == ["1"]
    assert settings.output.read_bytes() == b""
    assert not retrieve(settings).computed


# ---------------------------------------------------------------- parts


def test_a_fresh_run_is_left_alone(settings: RetrieveSettings, searched: list[str]) -> None:
    retrieve(settings)
    searched.clear()
    outcome = retrieve(settings)
    assert not outcome.computed
    assert not searched


def test_finished_parts_are_not_searched_again(
    settings: RetrieveSettings, searched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stopped half way goes on from there, to the same bytes."""
    retrieve(replace(settings, output=settings.output.with_name("undisturbed")))
    whole = settings.output.with_name("undisturbed").read_bytes()
    searched.clear()

    class Stopper(Listener):
        def advance(self, done: int, total: int, unit: str) -> None:
            if done > 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrieve(settings, Stopper())
    assert not settings.output.exists()
    saved = sum(1 for _ in _finished(settings))
    assert 20 < saved < 60
    searched.clear()
    outcome = retrieve(settings)
    assert outcome.reasons == ("never finished",)
    assert len(searched) == 60 - saved
    assert settings.output.read_bytes() == whole


def _finished(settings: RetrieveSettings) -> Iterator[str]:
    for part in parts_path(settings.output).glob("*.part"):
        yield from {line.split()[0] for line in part.read_text().splitlines()}


def test_one_changed_topic_costs_its_part(
    settings: RetrieveSettings, searched: list[str], tmp_path: Path
) -> None:
    """And an added one moves no other."""
    retrieve(settings)
    changed = topics() | {"7": "river light", "new": "stone"}
    file_of(tmp_path, tsv(changed), "topics.tsv")
    searched.clear()
    assert retrieve(settings).reasons == ("input topics changed",)
    parts = {bucket("7", PARTS), bucket("new", PARTS)}
    affected = [text for qid, text in changed.items() if bucket(qid, PARTS) in parts]
    assert sorted(searched) == sorted(affected)
    assert len(searched) < 20


def test_another_tag_is_another_run(settings: RetrieveSettings) -> None:
    retrieve(settings)
    outcome = retrieve(replace(settings, tag="mine"))
    assert outcome.reasons == ("tag changed ('bm25' -> 'mine')",)
    assert {line.split()[-1] for line in settings.output.read_text().splitlines()} == {"mine"}


def test_a_torn_part_is_noticed_named_and_made_again(settings: RetrieveSettings) -> None:
    retrieve(settings)
    whole = settings.output.read_bytes()
    part = max(parts_path(settings.output).glob("*.part"), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-5])
    settings.output.unlink()
    listener = Listener()
    assert retrieve(settings, listener).reasons == ("output missing",)
    assert any(part.name in notice for notice in listener.notices)
    assert settings.output.read_bytes() == whole


def test_a_part_that_changes_while_others_are_made_makes_no_run(
    settings: RetrieveSettings,
) -> None:
    """An emptied part is no topic without hits: nothing is written, and the next time all is."""
    retrieve(replace(settings, output=settings.output.with_name("undisturbed")))
    edited: list[Path] = []

    class Editor(Listener):
        def advance(self, done: int, total: int, unit: str) -> None:
            if done == total and not edited:
                edited.append(next(parts_path(settings.output).glob("*.part")))
                edited[0].write_bytes(b"")

    with refused(f"{parts_path(settings.output)}", "the same command again", StorageError):
        retrieve(settings, Editor())
    assert not settings.output.exists()
    retrieve(settings)
    whole = settings.output.with_name("undisturbed").read_bytes()
    assert settings.output.read_bytes() == whole


def test_many_topics_make_more_parts_of_bounded_size() -> None:
    """A part is held in memory; their number changes with the order of magnitude only."""
    few = _groups({str(n): "x" for n in range(4096)})
    many = _groups({str(n): "x" for n in range(4097)})
    assert len(few) == PARTS
    assert len(many) == PARTS * 8
    assert max(map(len, few)) < 200
    assert sorted(qid for group in many for qid, _ in group) == sorted(map(str, range(4097)))


def test_an_edited_output_is_made_again(settings: RetrieveSettings) -> None:
    retrieve(settings)
    whole = settings.output.read_bytes()
    settings.output.write_bytes(whole + b"\n")
    assert retrieve(settings).reasons == ("output edited",)
    assert settings.output.read_bytes() == whole


def test_a_run_of_somebody_else_is_not_replaced(settings: RetrieveSettings) -> None:
    settings.output.write_text("mine")
    with refused("bm25.run: exists already and was not written by this program", "--force"):
        retrieve(settings)
    assert settings.output.read_text() == "mine"
    assert retrieve(replace(settings, force=True)).computed


def test_a_run_never_takes_the_place_of_its_topics(settings: RetrieveSettings) -> None:
    """Nor lies inside the index; nor with --force."""
    for output in (settings.topics, settings.index / "bm25.run"):
        with refused(f"{output}: ", "choose another place for the output"):
            retrieve(replace(settings, output=output, force=True))
    assert settings.topics.read_text() == tsv(topics())


def test_progress_counts_topics(settings: RetrieveSettings) -> None:
    listener = Listener()
    retrieve(settings, listener)
    assert listener.steps[0] == (0, 60, "topics")
    assert listener.steps[-1] == (60, 60, "topics")
    assert [done for done, _, _ in listener.steps] == sorted(done for done, _, _ in listener.steps)


WORKING = """
import sys
import time
from pathlib import Path
from pipeline.retrieve import RetrieveSettings, retrieve
class Reporter:
    calls = 0
    def notice(self, text): pass
    def advance(self, done, total, unit):
        print(done, flush=True)
        if self.calls: sys.stdin.readline()
        self.calls += 1
settings = RetrieveSettings(Path("topics.tsv"), Path({index!r}), Path("bm25.run"), hits=50)
retrieve(settings, Reporter())
"""


def test_killed_in_the_middle_and_resumed(
    settings: RetrieveSettings, searched: list[str], tmp_path: Path
) -> None:
    """SIGKILL after each of several parts: the same bytes, no part made twice."""
    retrieve(replace(settings, output=tmp_path / "undisturbed"))
    whole = (tmp_path / "undisturbed").read_bytes()
    for kept in (1, 3, 6):
        with start_python(WORKING.format(index=str(settings.index)), tmp_path) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdout.readline()
            for _ in range(kept):
                before = process.stdout.readline()
                process.stdin.write("\n")
                process.stdin.flush()
            process.send_signal(signal.SIGKILL)
        assert before
        assert len(set(_finished(settings))) >= int(before)
    finished = len(set(_finished(settings)))
    searched.clear()
    retrieve(settings)
    assert len(searched) == 60 - finished
    assert settings.output.read_bytes() == whole


# ---------------------------------------------------------------- streams


class Stdout:
    """Something like sys.stdout that keeps bytes."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()

    def flush(self) -> None:
        """Nothing to do."""


def test_the_stream_has_the_bytes_of_the_file(
    settings: RetrieveSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And leaves nothing beside."""
    retrieve(settings)
    stdout = Stdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    before = names(tmp_path)
    outcome = retrieve(replace(settings, output=type(settings.output)("-"), threads=3))
    assert stdout.buffer.getvalue() == settings.output.read_bytes()
    assert outcome.counts == {"topics": 60, "without_hits": []}
    assert names(tmp_path) == before


def test_topics_from_standard_input(
    settings: RetrieveSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their content counts, so the same run is fresh whichever way they came."""
    retrieve(settings)

    class Stdin:
        buffer = io.BytesIO(tsv(topics()).encode())

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert not retrieve(replace(settings, topics=type(settings.topics)("-"))).computed


# ---------------------------------------------------------------- indexes of others


def test_an_index_of_pyserini_is_searched(settings: RetrieveSettings, tmp_path: Path) -> None:
    """With a word on what is assumed about it; its files identify it."""
    records = [("a", "houses of stone"), ("b", "a house")]
    folder = anserini.build(tmp_path / "theirs", records)
    file_of(tmp_path, "1\tstone house\n", "topics.tsv")
    made = replace(settings, index=folder)
    listener = Listener()
    retrieve(made, listener)
    assert [doc.docid for doc in next(read_run(made.output)).docs] == ["a", "b"]
    assert len(listener.notices) == 1
    assert "analysed as Anserini does (English, porter stemmer)" in listener.notices[0]


def test_the_analysis_of_such_an_index_can_be_said(
    settings: RetrieveSettings, tmp_path: Path
) -> None:
    folder = anserini.build(tmp_path / "theirs", [("a", "universities")], stemmer="none")
    file_of(tmp_path, "1\tuniversities\n", "topics.tsv")
    assert retrieve(replace(settings, index=folder)).counts["without_hits"] == ["1"]
    said = retrieve(replace(settings, index=folder, stemmer="none"))
    assert said.counts["without_hits"] == []
    german = anserini.build(tmp_path / "german", [("a", "das Haus")], language="de")
    file_of(tmp_path, "1\tHäuser\n", "topics.tsv")
    assert retrieve(replace(settings, index=german, language="de")).counts["without_hits"] == []


def test_our_index_is_not_contradicted(settings: RetrieveSettings) -> None:
    """It says how it was analysed; saying the same again is fine."""
    with refused("was analysed with language en and stemmer porter", "leave these options out"):
        retrieve(replace(settings, stemmer="none"))
    with refused("was analysed with language en", "leave these options out"):
        retrieve(replace(settings, language="de"))
    assert retrieve(replace(settings, language="en", stemmer="porter")).computed


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hits": 0}, "--hits 0 is out of range"),
        ({"hits": -5}, "--hits -5 is out of range"),
        ({"hits": 2**31}, "--hits 2147483648 is out of range"),
        ({"k1": -0.1}, "--k1 -0.1 is out of range"),
        ({"k1": float("inf")}, "--k1 inf is out of range"),
        ({"k1": float("nan")}, "--k1 nan is out of range"),
        ({"b": 1.01}, "--b 1.01 is out of range"),
        ({"b": float("nan")}, "--b nan is out of range"),
        ({"threads": -1}, "--threads -1 is out of range"),
        ({"tag": "two words"}, "'two words' is no legal run tag"),
        ({"language": "ger"}, "no analysis for language 'ger'"),
    ],
)
def test_settings_out_of_range(
    change: dict[str, object], message: str, settings: RetrieveSettings, tmp_path: Path
) -> None:
    """Refused before anything is read or written."""
    before = names(tmp_path)
    with refused(message):
        retrieve(replace(settings, **change))
    with refused(message):
        recipe(replace(settings, **change))
    assert names(tmp_path) == before


def test_no_index_or_no_topics(settings: RetrieveSettings, tmp_path: Path) -> None:
    before = names(tmp_path)
    with refused("none: no such index", "pipeline index"):
        retrieve(replace(settings, index=tmp_path / "none"))
    with refused("no Lucene index in this folder"):
        retrieve(replace(settings, index=tmp_path))
    with refused("none.tsv: no such", "check the path"):
        retrieve(replace(settings, topics=tmp_path / "none.tsv"))
    assert names(tmp_path) == before
    file_of(tmp_path, "1\twater\n1\tagain\n", "topics.tsv")
    with refused("topics.tsv:2: topic '1' again", kind=InputError):
        retrieve(settings)
    assert names(tmp_path) == before


def test_an_empty_index_is_refused(settings: RetrieveSettings, tmp_path: Path) -> None:
    """Somebody else's; ours are never empty."""
    folder = anserini.build(tmp_path / "theirs", [])
    with refused("theirs: the index has no documents", "build it again"):
        retrieve(replace(settings, index=folder))
    assert not settings.output.exists()


def test_an_edited_index_is_refused(settings: RetrieveSettings, tmp_path: Path) -> None:
    """Its sidecar no longer speaks for it."""
    folder = shutil.copytree(settings.index, tmp_path / "index")
    shutil.copy(settings.index.with_name("index.json"), tmp_path / "index.json")
    retrieve(replace(settings, index=folder))
    next(folder.glob("*.fdt")).write_bytes(b"")
    with refused("index: files of this index changed after it was built", "build it again"):
        retrieve(replace(settings, index=folder))


def test_the_recipe_names_what_determines_the_run(settings: RetrieveSettings) -> None:
    """Where things lie, and threads, do not; content does."""
    same = replace(settings, threads=5, force=True, output=settings.output.with_name("x"))
    assert recipe(settings) == recipe(same)
    made = recipe(settings)
    assert set(made.inputs) == {"index", "topics"}
    assert made.settings == {
        "hits": 50, "k1": 0.9, "b": 0.4, "feedback": "none", "tag": "bm25",
    }  # fmt: skip


def test_topics_that_change_meanwhile_commit_nothing(
    settings: RetrieveSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Searcher.search

    def editing(searcher: Searcher, texts: Sequence[str]) -> list[tuple]:
        file_of(tmp_path, "1\tother\n", "topics.tsv")
        return search(searcher, texts)

    monkeypatch.setattr(Searcher, "search", editing)
    with refused("input topics changed while the stage was at work"):
        retrieve(settings)
    assert not settings.output.exists()


def test_a_stop_is_heard_between_calls(
    settings: RetrieveSettings, searched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of many slow topics does not hold up Ctrl-C."""
    monkeypatch.setattr(retrieve_module, "PARTS", 2)
    monkeypatch.setattr(retrieve_module, "CALL_TOPICS", 1)

    search = Searcher.search

    def slow(searcher: Searcher, texts: Sequence[str]) -> list[tuple]:
        time.sleep(0.02)
        return search(searcher, texts)

    monkeypatch.setattr(Searcher, "search", slow)

    class Stopper(Listener):
        def advance(self, done: int, total: int, unit: str) -> None:
            if done:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrieve(replace(settings, threads=1), Stopper())
    assert len(searched) < 50
