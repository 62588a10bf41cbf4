"""A collection becomes an index, whole or not at all, and nothing in it is lost or doubled."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from elsewhere import ENVIRONMENT, refusal_on_small_disk, start_python
from folders import file_of, names
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from pipeline import formats, lucene, textfile
from pipeline import index as index_module
from pipeline.bm25 import BM25, Searcher
from pipeline.errors import BusyError, InputError
from pipeline.index import IndexSettings, _Ids, index, recipe
from pipeline.ingest import Added, Writer, docid_hash
from pipeline.lucene import Index
from pipeline.stage import read_sidecar
from pipeline.store import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

pytestmark = [pytest.mark.jvm]

TEXTS = [
    ("plain", "Water tomato plants at the root."),
    ("naïve", "Café owners roast coffee 😀"),
    ("null", "The null value."),
]


def beir(records: Iterable[tuple[str, str]]) -> str:
    return "".join(json.dumps({"_id": d, "title": "", "text": t}) + "\n" for d, t in records)


def trec(records: Iterable[tuple[str, str]]) -> str:
    document = "<DOC>\n<DOCNO> {} </DOCNO>\n<TEXT>\n{}\n</TEXT>\n</DOC>\n"
    return "".join(document.format(*record) for record in records)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was last written, and how long it is."""
    found = ((path, path.stat()) for path in folder.rglob("*"))
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in found}


class Listener:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))


def jsonl(records: Iterable[tuple[str, str]]) -> str:
    return "".join(json.dumps({"id": docid, "contents": text}) + "\n" for docid, text in records)


def settings(folder: Path, text: str | None = None, name: str = "c.jsonl") -> IndexSettings:
    """Settings for a collection in a file, with this text."""
    file = file_of(folder, jsonl(TEXTS) if text is None else text, name)
    return IndexSettings(file, folder / "index")


def search(folder: Path, text: str) -> list[str]:
    with Index(folder) as opened:
        return [doc.docid for doc in Searcher(opened, BM25()).search([text])[0]]


# ---------------------------------------------------------------- what goes in


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.jsonl", jsonl(TEXTS)),
        ("c.jsonl.gz", jsonl(TEXTS)),
        ("beir.jsonl", beir(TEXTS)),
        ("collection.tsv", "".join(f"{docid}\t{text}\n" for docid, text in TEXTS)),
        ("c.trec.gz", trec(TEXTS)),
    ],
)  # fmt: skip
def test_every_format_gives_the_same_index(name: str, text: str, tmp_path: Path) -> None:
    """The text is stored, so later stages need nothing else."""
    made = settings(tmp_path, text, name)
    outcome = index(made)
    assert outcome.counts["documents"] == outcome.counts["indexed"] == 3
    reference = index(replace(settings(tmp_path), output=tmp_path / "reference"))
    assert outcome.counts["content"] == reference.counts["content"]
    with Index(made.output) as opened:
        assert opened.texts(docid for docid, _ in TEXTS) == [text for _, text in TEXTS]
    assert search(made.output, "café coffee") == ["naïve"]


def test_a_folder_of_files_is_one_collection(tmp_path: Path) -> None:
    for docid, text in TEXTS:
        file_of(tmp_path / "corpus", jsonl([(docid, text)]), f"part-{docid}.jsonl.gz")
    outcome = index(IndexSettings(tmp_path / "corpus", tmp_path / "index"))
    assert outcome.counts["indexed"] == 3


def test_topics_beside_the_documents_are_pointed_out(tmp_path: Path) -> None:
    """They can be read as documents, so nothing but a notice tells that somebody meant a file."""
    file_of(tmp_path / "corpus", jsonl(TEXTS), "corpus.jsonl")
    file_of(tmp_path / "corpus", '{"_id": "q1", "text": "a query"}\n', "queries.jsonl")
    listener = Listener()
    index(IndexSettings(tmp_path / "corpus", tmp_path / "index"), listener)
    assert "corpus: queries.jsonl may hold topics or judgements" in listener.notices[0]


def test_an_index_never_takes_the_place_of_its_collection(tmp_path: Path) -> None:
    """Nor stands in it, where it would be read as a part of it; nor with --force."""
    made = settings(tmp_path / "corpus")
    (tmp_path / "corpus" / "sub").mkdir()
    for source, output in (
        (made.collection, made.collection),
        (made.collection, tmp_path / "corpus"),
        (tmp_path / "corpus", tmp_path / "corpus" / "sub" / "index"),
    ):
        with refused(f"{output}: ", "choose another place for the output"):
            index(replace(made, collection=source, output=output, force=True))
    assert names(tmp_path / "corpus") == ["c.jsonl", "sub"]


def test_the_content_digest_is_of_the_documents_alone(tmp_path: Path) -> None:
    """Order, files, threads, and Lucene's own files, which differ at every build, do not matter."""
    digests = set()
    for number, records in enumerate(permutations(TEXTS)):
        made = replace(settings(tmp_path, jsonl(records)), threads=1 + number % 3, force=True)
        digests.add(index(made).counts["content"])
    assert len(digests) == 1


@pytest.mark.parametrize(
    "records",
    [
        TEXTS[:2],
        [*TEXTS[:2], ("null", "The null value!")],
        [*TEXTS[:2], ("Null", "The null value.")],
        [*TEXTS, ("more", "of it")],
        [("plain", TEXTS[1][1]), ("naïve", TEXTS[0][1]), TEXTS[2]],
    ],
)
def test_the_content_digest_notices_every_change(
    records: list[tuple[str, str]], tmp_path: Path
) -> None:
    """A document missing, changed, renamed, added, or two that changed places."""
    before = index(settings(tmp_path)).counts["content"]
    assert index(settings(tmp_path, jsonl(records))).counts["content"] != before


def test_how_text_is_analysed_is_part_of_the_content(tmp_path: Path) -> None:
    made = settings(tmp_path)
    before = index(made).counts["content"]
    changed = index(replace(made, stemmer="krovetz"))
    assert changed.counts["content"] != before
    assert changed.reasons == ("stemmer changed ('porter' -> 'krovetz')",)


# ---------------------------------------------------------------- analysis


def test_stemmers_and_stop_words_are_used(tmp_path: Path) -> None:
    """Each option changes what is found, and topics are analysed as the documents were."""
    text = jsonl([("a", "the houses were cleaned"), ("b", "universities and the church")])
    stopwords = file_of(tmp_path, "houses\nHOUSES\n\n", "stop.txt")
    made = settings(tmp_path, text)
    found = {}
    for name, change in {
        "default": {},
        "krovetz": {"stemmer": "krovetz"},
        "none": {"stemmer": "none"},
        "keep": {"stopwords": "keep"},
        "file": {"stopwords": stopwords},
    }.items():
        index(replace(made, **change))
        found[name] = [
            search(made.output, query) for query in ("house", "university", "the", "houses")
        ]
    assert found == {
        "default": [["a"], ["b"], [], ["a"]],
        "krovetz": [["a"], ["b"], [], ["a"]],
        "none": [[], [], [], ["a"]],
        "keep": [["a"], ["b"], ["a", "b"], ["a"]],
        "file": [[], ["b"], ["a", "b"], []],
    }  # fmt: skip


def test_another_language(tmp_path: Path) -> None:
    """German: `Häuser` finds `Haus`."""
    made = replace(settings(tmp_path, jsonl([("a", "das Haus am See")])), language="de")
    index(made)
    assert search(made.output, "Häuser") == ["a"]


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    made = settings(tmp_path)
    with refused("no analysis for language 'ger'", " de, "):
        index(replace(made, language="ger"))
    with refused("settings of English, not of de", "leave them out"):
        index(replace(made, language="de", stemmer="krovetz"))
    with refused("--threads -1 is out of range", "0 takes all"):
        index(replace(made, threads=-1))
    with refused("stop.txt: there are no stop words", "one word a line", InputError):
        index(replace(made, stopwords=file_of(tmp_path, "\n\n", "stop.txt")))
    with refused("none.txt: no such", "check the path"):
        index(replace(made, stopwords=tmp_path / "none.txt"))
    assert not made.output.exists()


# ---------------------------------------------------------------- what must not be in it


def test_a_repeated_id_is_refused_with_both_places(tmp_path: Path) -> None:
    """In one file, and in two."""
    records = [*TEXTS, ("naïve", "again")]
    with refused("c.jsonl:4: document 'naïve' again (first in ", "an id of its own", InputError):
        index(settings(tmp_path, jsonl(records)))
    file_of(tmp_path / "corpus", jsonl(TEXTS), "a.jsonl")
    file_of(tmp_path / "corpus", jsonl([("x", "y"), ("null", "z")]), "b.jsonl")
    with refused(
        f"b.jsonl:2: document 'null' again (first in {tmp_path / 'corpus' / 'a.jsonl'}:3)"
    ):
        index(IndexSettings(tmp_path / "corpus", tmp_path / "index"))
    assert names(tmp_path) == ["c.jsonl", "corpus"]


def test_a_repeated_id_is_found_across_many_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of the two has no text."""
    monkeypatch.setattr(textfile, "BLOCK", 200)
    records = [(f"d{n}", "text" if n != 3 else "") for n in range(500)]
    with refused("c.jsonl:501: document 'd3' again (first in ", kind=InputError):
        index(settings(tmp_path, jsonl([*records, ("d3", "text")])))


def test_ids_of_one_hash_are_no_repeated_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspicion is checked against the ids themselves."""
    monkeypatch.setattr(textfile, "BLOCK", 100)
    monkeypatch.setattr(index_module, "docid_hash", len)
    add = Writer.add

    def alike(writer: Writer, lines: bytes, tabbed: bool) -> Added | None:
        added = add(writer, lines, tabbed=tabbed)
        return added and added._replace(ids=np.full_like(added.ids, 3))

    monkeypatch.setattr(Writer, "add", alike)
    records = [(f"d{n:02}", "text") for n in range(20)]
    assert index(settings(tmp_path, jsonl(records))).counts["indexed"] == 20
    with refused("document 'd07' again"):
        index(settings(tmp_path, jsonl([*records, ("d07", "text")])))


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=30))
def test_repeats_are_suspected_exactly(batches: list[list[int]]) -> None:
    """Against a set, which holds the same in twenty times the memory."""
    ids, seen = _Ids(), set()
    for batch in batches:
        expected = {n for at, n in enumerate(batch) if n in seen or n in batch[:at]}
        assert ids.add(np.array(batch, np.uint64)) == expected
        seen.update(batch)


def test_ids_take_eight_bytes_each() -> None:
    """And few runs are searched."""
    ids = _Ids()
    for start in range(0, 100_000, 1000):
        hashes = [docid_hash(f"document-{n}") for n in range(start, start + 1000)]
        ids.add(np.array(hashes, np.uint64))
    assert sum(run.nbytes for run in ids._runs) == 800_000
    assert len(ids._runs) < 10
    assert all(np.all(run[1:] > run[:-1]) for run in ids._runs)


def test_empty_documents_are_counted_and_listed(tmp_path: Path) -> None:
    """They are not in the index, as in Anserini's; nobody has to find out by comparing."""
    blanks = ["", " ", "\n\t\r", "\x00\x1f", "\u3000", "\u00a0"]  # to Java, the last two are text
    records = [*TEXTS, *((f"blank{n}", text) for n, text in enumerate(blanks))]
    listener = Listener()
    made = settings(tmp_path, jsonl(records))
    outcome = index(made, listener)
    assert outcome.counts["documents"] == 9
    assert outcome.counts["indexed"] == 5
    assert outcome.counts["empty"] == 4
    assert outcome.counts["empty_first"] == ["blank0", "blank1", "blank2", "blank3"]
    assert listener.notices == [
        "4 empty documents are not in the index: blank0, blank1, blank2, blank3 "
        f"(all in {made.output / 'empty-documents.txt'})"
    ]
    listed = (made.output / "empty-documents.txt").read_text().split()
    assert listed == ["blank0", "blank1", "blank2", "blank3"]
    with Index(made.output) as opened:
        assert opened.count == 5
    listener.notices.clear()
    assert not index(made, listener).computed


def test_only_empty_documents_are_refused(tmp_path: Path) -> None:
    with refused("c.jsonl: every document is empty", "format"):
        index(settings(tmp_path, jsonl([("a", ""), ("b", " ")])))
    assert names(tmp_path) == ["c.jsonl"]


def test_an_id_too_long_for_lucene_is_refused(tmp_path: Path) -> None:
    """Lucene's own words would not name the document's place."""
    good = "é" * 256
    assert index(settings(tmp_path, jsonl([(good, "x")]))).counts["indexed"] == 1
    with refused("c.jsonl:2: document id 'éé", "shorter", InputError):
        index(settings(tmp_path, jsonl([(good, "x"), ("é" * 257, "x")])))


def test_a_malformed_line_far_into_the_collection_leaves_nothing(tmp_path: Path) -> None:
    """Java was at work on what came before."""
    records = jsonl((f"d{n}", "some text") for n in range(5000))
    with refused("c.jsonl:5001: not JSON", kind=InputError):
        index(settings(tmp_path, records + "{oops\n"))
    assert names(tmp_path) == ["c.jsonl"]


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a part of it, and its end, were read together."""
    for module in (formats, index_module):
        monkeypatch.setattr(module, "MAX_DOCUMENT", 500)
    monkeypatch.setattr(textfile, "BLOCK", 400)
    for length in (520, 10_000):
        with refused("c.jsonl:2: ", kind=InputError):
            index(settings(tmp_path, jsonl([("a", "text"), ("b", "x" * length), ("c", "text")])))
    assert index(settings(tmp_path, jsonl([("a", "x" * 300)]))).counts["indexed"] == 1


def test_a_document_lost_on_the_way_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of documents is checked against the input."""
    add = Writer.add

    def forgetful(writer: Writer, lines: bytes, tabbed: bool) -> Added | None:
        added = add(writer, lines.split(b"\n", 1)[1], tabbed=tabbed)
        return added and added._replace(ids=np.append(added.ids, 7))

    monkeypatch.setattr(Writer, "add", forgetful)
    with refused("2 documents in the index, but 3 in the collection", "again"):
        index(settings(tmp_path, jsonl((f"d{n}", "text") for n in range(3))))
    assert names(tmp_path) == ["c.jsonl"]


def test_a_failure_of_java_is_said_in_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing, though it came from another thread."""
    add = Writer.add

    def too_late(writer: Writer, lines: bytes, tabbed: bool) -> Added | None:
        writer.give_up()
        return add(writer, lines, tabbed=tabbed)

    monkeypatch.setattr(Writer, "add", too_late)
    with refused("index", "--debug"):
        index(settings(tmp_path))
    assert names(tmp_path) == ["c.jsonl"]


def test_of_two_faults_the_first_is_named(tmp_path: Path) -> None:
    """Though files are read ahead of the threads that look into them."""
    corpus = tmp_path / "corpus"
    file_of(corpus, jsonl([("a", "x"), ("b", "y"), ("a", "z")]), "a.jsonl")
    file_of(corpus, "<DOC><DOCNO>a</DOCNO>never", "b.trec")
    with refused("a.jsonl:3: document 'a' again"):
        index(IndexSettings(corpus, tmp_path / "index"))
    file_of(corpus, jsonl([("a", "x")]) + "{bad\n", "a.jsonl")
    with refused("a.jsonl:2: not JSON"):
        index(IndexSettings(corpus, tmp_path / "index"))
    file_of(corpus, jsonl([("a", "x")]), "a.jsonl")
    with refused("b.trec:1: "):
        index(IndexSettings(corpus, tmp_path / "index"))


def test_a_small_heap_is_enough(tmp_path: Path) -> None:
    """However many threads and indexes are asked for: Java's memory bounds them."""
    settings(tmp_path, jsonl((f"d{n}", f"w{n} text {n % 977} " * 40) for n in range(40_000)))
    script = """
        from pathlib import Path
        from pipeline.index import IndexSettings, index
        settings = IndexSettings(Path("c.jsonl"), Path("index"), threads=8, shards=3)
        assert index(settings).counts["indexed"] == 40_000
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    small = ENVIRONMENT | {"PIPELINE_JAVA_HEAP": "64m"}
    done = subprocess.run(
        command, cwd=tmp_path, env=small, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    """Whether Lucene or we ran into it."""
    chance = random.Random(3)
    words = ["".join(chance.choices("abcdefghijklmnop", k=9)) for _ in range(60_000)]
    file_of(tmp_path, jsonl([(f"d{n}", " ".join(words[n::60])) for n in range(60)]), "c.jsonl")
    script = """
        from pipeline.index import IndexSettings, index
        index(IndexSettings(Path("c.jsonl"), Path("disk/index")))
    """
    refusal = refusal_on_small_disk(script, tmp_path, "300k")
    assert refusal is not None
    assert "the disk is full" in refusal[1]
    assert "free some space" in refusal[2]


# ---------------------------------------------------------------- fresh, stale, whole


def test_a_fresh_index_is_left_alone(tmp_path: Path) -> None:
    """Not even Java is started for it."""
    made = settings(tmp_path)
    assert index(made).computed
    before = snapshot(tmp_path)
    again = index(made)
    assert not again.computed
    assert again.counts["indexed"] == 3
    assert snapshot(tmp_path) == before


def test_a_changed_collection_is_indexed_again(tmp_path: Path) -> None:
    made = settings(tmp_path)
    index(made)
    outcome = index(settings(tmp_path, jsonl([("new", "other water")])))
    assert outcome.reasons == ("input collection changed",)
    assert search(made.output, "water") == ["new"]
    assert names(tmp_path) == ["c.jsonl", "index", "index.json"]


def test_a_torn_index_is_built_again(tmp_path: Path) -> None:
    """A file cut by somebody else, or a folder half copied."""
    made = settings(tmp_path)
    index(made)
    next(made.output.glob("*.fdt")).write_bytes(b"")
    outcome = index(made)
    assert outcome.reasons == ("output edited",)
    with Index(made.output) as opened:
        assert opened.text("plain") == TEXTS[0][1]


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    """A folder with somebody's thesis in it."""
    made = settings(tmp_path)
    file_of(made.output, "my life's work", "thesis.txt")
    with refused("index: exists already and was not written by this program", "--force"):
        index(made)
    assert (made.output / "thesis.txt").read_text() == "my life's work"
    assert index(replace(made, force=True)).reasons == ("forced",)


def test_two_at_once_on_one_index(tmp_path: Path) -> None:
    """The second is refused."""
    made = settings(tmp_path)
    with locked(made.output), refused("another process", kind=BusyError):
        index(made)


def test_the_recipe_names_what_determines_the_index(tmp_path: Path) -> None:
    """Threads do not: any number makes the same."""
    made = settings(tmp_path)
    assert recipe(made) == recipe(replace(made, threads=7, output=tmp_path / "other", force=True))
    stopwords = file_of(tmp_path, "and\n", "stop.txt")
    with_words = recipe(replace(made, stopwords=stopwords))
    assert with_words.settings["stopwords"] == "file"
    assert with_words.inputs["stopwords"]
    assert str(tmp_path) not in str(with_words)


def test_progress_counts_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steadily up to the last; the total is not known beforehand."""
    line = jsonl([("d10", "x")])
    monkeypatch.setattr(textfile, "BLOCK", 10 * len(line))
    listener = Listener()
    index(settings(tmp_path, jsonl((f"d{n}", "x") for n in range(10, 99))), listener)
    assert listener.steps == [(10 * n, 0, "documents") for n in range(1, 9)] + [
        (89, 0, "documents")
    ]


def test_memory_is_bounded_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large documents go in small ones, whether Java reads them or Python, line by line."""
    monkeypatch.setattr(formats, "BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(textfile, "BLOCK", 1000)
    sizes = []

    def seen(writer: Writer, given: Any, **kind: bool) -> Added | None:
        sizes.append(given.count(b"\n") if isinstance(given, bytes) else len(given))
        return adds[type(given)](writer, given, **kind)

    adds: dict[type, Callable[..., Added | None]]
    adds = {bytes: Writer.add, list: Writer.add_records}
    monkeypatch.setattr(Writer, "add", seen)
    monkeypatch.setattr(Writer, "add_records", seen)
    text = jsonl((f"d{n}", "x" * 400) for n in range(10))
    for start, times in (("", 1), ("\t", 2)):  # the second way comes to nothing in Java first
        sizes.clear()
        made = settings(tmp_path, start + text.replace("\n{", f"\n{start}{{"))
        index(replace(made, force=True))
        assert sum(sizes) == 10 * times
        assert max(sizes) <= 3


STOPPED = """
import signal
from pathlib import Path
from pipeline.index import IndexSettings, index
class Reporter:
    def notice(self, text): pass
    def advance(self, done, total, unit):
        print("at work", flush=True)
try:
    index(IndexSettings(Path("c.jsonl"), Path("index"), threads=2), Reporter())
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_leaves_no_index_and_the_next_run_makes_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C takes its rest away at once; after a kill the next run does."""
    made = settings(tmp_path, jsonl((f"d{n}", f"text number {n} " * 20) for n in range(60_000)))
    with start_python(STOPPED, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        rest = process.stdout.read().split("\n")
    if number == signal.SIGINT:
        assert "stopped" in rest
        assert names(tmp_path) == ["c.jsonl"]
    assert not made.output.exists()
    made = settings(tmp_path)
    assert index(made).counts["indexed"] == 3
    assert names(tmp_path) == ["c.jsonl", "index", "index.json"]


def test_an_input_changed_meanwhile_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index would not be of the collection that lies there now."""
    made = settings(tmp_path)
    finish = Writer.finish

    def slow(writer: Writer, threads: int) -> int:
        file_of(tmp_path, jsonl([("other", "text")]), "c.jsonl")
        return finish(writer, threads)

    monkeypatch.setattr(Writer, "finish", slow)
    with refused("input collection changed while the stage was at work"):
        index(made)
    assert names(tmp_path) == ["c.jsonl"]


def test_no_threads_are_left_behind(tmp_path: Path) -> None:
    """Neither after success nor after failure."""
    before = threading.active_count()
    index(settings(tmp_path))
    with refused("not JSON"):
        index(settings(tmp_path, jsonl((f"d{n}", "x") for n in range(3000)) + "oops\n{\n"))
    assert threading.active_count() == before


def test_the_sidecar_keeps_the_counts(tmp_path: Path) -> None:
    made = settings(tmp_path)
    outcome = index(made)
    sidecar = read_sidecar(made.output)
    assert sidecar is not None
    assert sidecar["counts"] == outcome.counts
    assert lucene.index_digest(made.output) == outcome.counts["content"]
    moved = shutil.copytree(made.output, tmp_path / "moved")
    assert lucene.index_digest(moved) == lucene.files_digest(moved)
