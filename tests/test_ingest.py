"""Java reads a line as Python does or not at all, and what it indexes is what Anserini would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anserini
import pytest
from elsewhere import ENVIRONMENT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusal import refused

from pipeline import formats, java, program
from pipeline.ingest import Added, Writer, docid_hash, together
from pipeline.java import java_class
from pipeline.lucene import ANSERINI, Analysis, Index
from pipeline.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = [pytest.mark.jvm]

JAVA_BLANK = "".join(map(chr, range(33)))  # what Java trims
ROOT = Path(__file__).parent.parent
PLAIN = ["d1", "MED-10", "_", "!~", "0" * 512]
ODD_IDS = ["", "a b", "naïve", "\x7f", "tab\t", "line\n", "0" * 513, "中"]
WRITTEN = st.text(st.characters(codec="utf-8"), max_size=40)


def written(folder: Path, records: Iterable[tuple[str, str]], analysis: Analysis) -> Path:
    """An index of ours."""
    folder.mkdir()
    writer = Writer([folder], analysis)
    assert writer.add(lines(records), tabbed=False) is not None
    writer.finish(1)
    return folder


def lines(records: Iterable[tuple[str, str]], **options: Any) -> bytes:
    return b"".join(
        json.dumps({"id": docid, "contents": text}, **options).encode() + b"\n"
        for docid, text in records
    )


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    """Takes in all kinds of things; nobody looks at its index."""
    folder = tmp_path_factory.mktemp("ingest") / "index"
    folder.mkdir()
    made = Writer([folder], ANSERINI)
    yield made
    made.give_up()


def check(added: Added, records: list[tuple[str, str]]) -> None:
    """What went in is what Python read."""
    digests = [sha256(f"{d}\0{t}".encode()).digest() for d, t in records if t.strip(JAVA_BLANK)]
    assert added.ids.tolist() == [docid_hash(docid) for docid, _ in records]
    assert added.content == sum(map(int.from_bytes, digests))
    assert added.empty == [docid for docid, text in records if not text.strip(JAVA_BLANK)]


# ---------------------------------------------------------------- lines


@given(st.lists(st.tuples(st.sampled_from(PLAIN), WRITTEN)), st.booleans(), st.booleans())
@example([("d1", "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028\ufeff\ufffd😀')], True, True)
@example([("d1", "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028\ufeff\ufffd😀')], False, False)
def test_lines_are_what_python_reads(
    writer: Writer, records: list[tuple[str, str]], escaped: bool, ended: bool
) -> None:
    """Whatever the text: escaped or not, blank or not; the last line may lack its end."""
    block = lines(records, ensure_ascii=escaped)
    added = writer.add(block if ended else block.removesuffix(b"\n"), tabbed=False)
    assert added is not None
    check(added, records)


@pytest.mark.parametrize(
    "line",
    [
        '{"contents": "text", "id": "d"}',
        '{"id":"d","contents":"text"}',
        '  { "id"  :  "d" , "contents" : "text"  }',
        r'{"\u0069d": "d", "contents": "te\u0078t"}',
        '{"_id": "d", "text": "text"}',
        '{"_id": "d", "title": "", "text": "text", "metadata": {}}',
        '{"metadata": {"url": "u", "id": "x"}, "text": "text", "title": "", "_id": "d"}',
        '{"id": "d", "title": "left out", "text": "left out", "contents": "text", "url": "u"}',
    ],
)
def test_layout_does_not_matter(writer: Writer, line: str) -> None:
    """Of records as Anserini and BEIR have them, with whatever strings beside."""
    added = writer.add(f"{line}\n".encode(), tabbed=False)
    assert added is not None
    check(added, [("d", "text")])


def test_a_title_comes_first(writer: Writer) -> None:
    """On a line of its own, as everywhere."""
    line = json.dumps({"_id": "d", "text": 'the "text"', "title": "a\\b"})
    added = writer.add(line.encode(), tabbed=False)
    assert added is not None
    check(added, [("d", 'a\\b\nthe "text"')])


@pytest.mark.parametrize(
    "line",
    [
        "", " ", "{", "{}", "null", "[]", '"d"', "oops", '{"id": "d"}', '{"contents": "text"}',
        '{"id": "d", "contents": "text"', '{"id": "d", "contents": "text}', '{"id": "d" "contents"',
        '{"id": "d", "contents": "text"} ', '{"id": "d", "contents": "text"}\r',
        '{"id": "d", "contents": "text"},', '{"id": "d", "contents": "text"}{"id": "e"}',
        '{"id": "d", "contents": "text",}',
        '{"id": "d", "id": "d"}', '{"id": "d", "contents": "a", "contents": "b"}',
        '{"contents": "a", "contents": "b"}', '{"title": "a", "id": "d"}',
        '{"id": 7, "contents": "text"}', '{"id": "d", "contents": null}',
        '{"id": "d", "contents": ["text"]}', "{'id': 'd', 'contents': 'text'}",
        '{"id": "d", "contents": "text", "docno": "e"}', '\t{"id": "d", "contents": "text"}',
        '{"id": "d", "_id": "d", "contents": "text"}', '{"id": "d", "contents": "text", "n": 1}',
        '{"id": "d", "contents": "text", "n": null}', '{"id": "d", "contents": "text", "n": []}',
        '{"id": "d", "contents": "text", "n": {"m": 1}}', '{"id": "d", "contents": "text", "n": {',
        '{"id": "d", "contents": "text", "n": {"m": "1"}', '{"id": {}, "contents": "text"}',
        '{"id": "d", "contents": "text", "n": {"m"}}', '{"id": "d", "contents": "a", "text": 1}',
        '{"id": "d", "text": "text", "title": null}', '{"id": "d", "title": "title"}',
        '{"id": "d",\n"contents": "text"}', '{"id": "d", "contents": "a\tb"}',
        '{"id": "d", "contents": "a\x00b"}', r'{"id": "d", "contents": "\x41"}',
        r'{"id": "d", "contents": "\u12"}', r'{"id": "d", "contents": "\u12G4"}',
        r'{"id": "d", "contents": "\u 123"}', r'{"id": "d", "contents": "\U0041"}',
        r'{"id": "d", "contents": "\ud83d"}', r'{"id": "d", "contents": "\ude00\ud83d"}',
        r'{"id": "d", "contents": "\ud83d\u0041"}', r'{"id": "d", "contents": "\ud83d\n"}',
        '{"id": "d", "contents": "\\', '{"id": "d", "contents": "\\u',
        '{"id": "d", "contents": "\\"}',
        "\ufeff" + '{"id": "d", "contents": "text"}',
        *(json.dumps({"id": docid, "contents": "text"}) for docid in ODD_IDS),
    ],
)  # fmt: skip
def test_anything_else_is_left_to_python(writer: Writer, line: str) -> None:
    """Right or wrong: then nothing of the block is taken."""
    good = lines([("d", "text")])
    for block in (good + line.encode() + b"\n", line.encode() + b"\n" + good):
        assert writer.add(block, tabbed=False) is None


@pytest.mark.parametrize("junk", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80"])
def test_what_is_no_utf8_is_left_to_python(writer: Writer, junk: bytes) -> None:
    """Java would put a question mark in its place."""
    for good in ("\ufffd", "é", "a"):
        line = lines([("d", f"{good}X\ufffd")], ensure_ascii=False)
        row = f"d\t{good}X\ufffd\n".encode()
        for whole, tabbed in ((line, False), (row, True)):
            assert writer.add(whole, tabbed=tabbed) is not None
            assert writer.add(whole.replace(b"X", junk), tabbed=tabbed) is None


@given(
    st.lists(st.tuples(st.sampled_from(PLAIN), WRITTEN), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=2), st.integers(0, 3))),
    st.sampled_from(["json", "beir", "tsv"]),
)
def test_spoilt_lines_are_read_alike_or_not_at_all(
    writer: Writer,
    records: list[tuple[str, str]],
    spoils: list[tuple[int, bytes, int]],
    kind: Literal["json", "beir", "tsv"],
) -> None:
    """Bytes put in, left out or overwritten anywhere."""
    block = lines(records)
    if kind == "beir":
        block = block.replace(b'"id"', b'"_id"').replace(b"}", b', "metadata": {"url": "u"}}')
        block = block.replace(b'"contents"', b'"title": "t", "text"')
    elif kind == "tsv":
        block = "".join(f"{docid}\t{text}\n" for docid, text in records).encode()
    for place, put, cut in spoils:
        at = place % len(block) if block else 0
        block = block[:at] + put + block[at + cut :]
    added = writer.add(block, tabbed=kind == "tsv")
    if added is not None and block:
        expected = (formats._plain_rows if kind == "tsv" else formats._plain_records)(block)
        assert expected is not None
        check(added, expected)


@given(st.lists(st.tuples(st.sampled_from(PLAIN), WRITTEN)), st.booleans())
def test_rows_are_what_python_reads(
    writer: Writer, records: list[tuple[str, str]], ended: bool
) -> None:
    """Tabs in the text and all."""
    kept = [(d, t.replace("\n", "\t").replace("\r", '"')) for d, t in records]
    block = "".join(f"{docid}\t{text}\n" for docid, text in kept).encode()
    added = writer.add(block if ended else block.removesuffix(b"\n"), tabbed=True)
    assert added is not None
    check(added, kept)


@pytest.mark.parametrize("row", ["", "d", "d\ttext\r", "\ttext", " d\ttext", "d \tt", "é\tt"])
def test_other_rows_are_left_to_python(writer: Writer, row: str) -> None:
    for block in (f"d\ttext\n{row}\n", f"{row}\nd\ttext\n"):
        assert writer.add(block.encode(), tabbed=True) is None


def test_records_may_be_anything(writer: Writer) -> None:
    """What Python has read, it need not justify again."""
    records = [(docid, 'a "text"\n') for docid in (*PLAIN, *ODD_IDS)]
    check(writer.add_records(records), records)
    assert writer.add_records([("d", "a\ud800")]).content != 0


def test_several_are_one(writer: Writer) -> None:
    records = [(f"d{n}", "text" if n % 3 else " ") for n in range(10)]
    check(together(writer.add_records(records[n : n + 2]) for n in range(0, 10, 2)), records)


def test_several_indexes_share_the_documents(tmp_path: Path) -> None:
    """By id alone."""
    folders = [tmp_path / str(n) for n in range(3)]
    for folder in folders:
        folder.mkdir()
    made = Writer(folders, ANSERINI)
    made.add(lines((f"d{n}", "text") for n in range(30)), tabbed=False)
    made.add_records((f"é{n}", "text") for n in range(30))
    assert made.finish(2) == 60
    for place, folder in enumerate(folders):
        with Index(folder) as index:
            docids = index.docids(range(index.count))
        assert docids
        assert all(docid_hash(docid) % 3 == place for docid in docids)


# ---------------------------------------------------------------- as Anserini does


def stored(folder: Path, count: int) -> list[str]:
    """The records as they stand in an index."""
    look_up = java_class("io.anserini.index.IndexReaderUtils").documentRaw
    with Index(folder) as index:
        return [look_up(index.reader, f"d{n}") for n in range(count)]


def test_records_are_stored_as_anserini_stores_them(tmp_path: Path) -> None:
    """To the letter, so tools that read one kind of index read the other."""
    texts = [f"x{chr(n)}y" for n in [*range(0xA1), 0x2028, 0xFEFF, 0xFFFD]]
    records = [(f"d{n}", text) for n, text in enumerate([*texts, "\\", '"', "/", "a\\n", "é"])]
    ours = stored(written(tmp_path / "ours", records, ANSERINI), len(records))
    theirs = stored(anserini.build(tmp_path / "theirs", records), len(records))
    assert ours == theirs


def terms(folder: Path) -> dict[str, tuple[int, int]]:
    """Every term of an index, in how many documents and how often it is there."""
    statistics = {}
    with Index(folder) as index:
        of_field = java_class("org.apache.lucene.index.MultiTerms").getTerms(
            index.reader, "contents"
        )
        listed = of_field.iterator()
        while (term := listed.next()) is not None:
            name = term.utf8ToString()
            statistics[name] = (listed.docFreq(), listed.totalTermFreq())
    return statistics


def lengths(folder: Path) -> tuple[int, int]:
    with Index(folder) as index:
        of_field = java_class("org.apache.lucene.index.MultiTerms").getTerms(
            index.reader, "contents"
        )
        return of_field.getSumTotalTermFreq(), of_field.getSumDocFreq()


@pytest.mark.parametrize(
    ("analysis", "options"),
    [
        (Analysis(), {}),
        (Analysis(stemmer="krovetz"), {"stemmer": "krovetz"}),
        (Analysis(stemmer="none"), {"stemmer": "none"}),
        (Analysis(stopwords=()), {"keepStopwords": True}),
    ],
)
def test_terms_are_those_of_anserini(
    analysis: Analysis, options: dict[str, Any], tmp_path: Path
) -> None:
    """Of our own documents, twice, so that words are met again; and of odd ones."""
    files = sorted((ROOT / "docs").glob("*.md"))
    texts = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    odd = [
        "The dog's DOGS dogs\u2019 and the cats' o'clock it's IT'S", "and the of", "It's a's b'S",
        "running RUNNING Runner", "naïve Éclair İstanbul \ufb01ne ß \u017f", "a.b.c 3.14 1,000 x_y",
        "中文 日本語 ไทย 한국어 😀 👩\u200d👩\u200d👧", "foo@bar.com", "'s \u2019s s '",
        "w" * 254, "w" * 255, "w" * 256, "w" * 300 + " " + "w" * 600,
    ]  # fmt: skip
    records = [(f"d{n}", text) for n, text in enumerate([*texts, *odd, *texts, *odd])]
    ours = written(tmp_path / "ours", records, analysis)
    theirs = anserini.build(tmp_path / "theirs", records, **options)
    assert terms(ours) == terms(theirs)
    assert lengths(ours) == lengths(theirs)
    assert len(terms(ours)) > 1000


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("aAsS'\u2019ştTheİ\u0131ß ing.éÉ中\U00010400\u0345"), max_size=60)
    )
)
def test_terms_of_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("terms")
    records = [(f"d{n}", f"x {text} {text[::-1]} {text}") for n, text in enumerate(texts * 2)]
    ours = written(folder / "ours", records, ANSERINI)
    theirs = anserini.build(folder / "theirs", records)
    assert not records or terms(ours) == terms(theirs)
    shutil.rmtree(folder)


# ---------------------------------------------------------------- the classes themselves


def test_the_jar_is_what_its_sources_make() -> None:
    """Byte for byte, where the compiler that made it is at hand."""
    command = [sys.executable, ROOT / "scripts" / "build_java.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stderr) == (0, "")


def test_java_may_be_up_already(tmp_path: Path) -> None:
    """Started by somebody else, who knew nothing of our classes."""
    script = """
        import os, sys
        from pathlib import Path
        from pipeline import java
        import jnius_config
        os.environ["JAVA_HOME"] = str(java.home())
        jnius_config.set_classpath(str(java.jar()))
        jnius_config.add_options("--enable-native-access=ALL-UNNAMED")
        import jnius
        from pipeline.index import IndexSettings, index
        Path("c.jsonl").write_text('{"id": "d", "contents": "text"}')
        assert index(IndexSettings(Path("c.jsonl"), Path("index"))).counts["indexed"] == 1
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_jar_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java.start()
    monkeypatch.setattr(program, "__file__", str(tmp_path / "program.py"))
    program._our_loader.cache_clear()
    with refused("ours.jar is missing", "install trec-pipeline again"):
        Program.new("trecpipeline.Ingest", "java.util.List")
    program._our_loader.cache_clear()


def test_a_damaged_jar_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java.start()
    (tmp_path / "jvm").mkdir()
    (tmp_path / "jvm" / "ours.jar").write_bytes(b"junk")
    (tmp_path / "index").mkdir()
    monkeypatch.setattr(program, "__file__", str(tmp_path / "program.py"))
    program._our_loader.cache_clear()
    with refused("a Java class of ours or of Anserini's is missing or damaged", "install"):
        Writer([tmp_path / "index"], ANSERINI)
    program._our_loader.cache_clear()


class Tragic:
    """A writer that Lucene closed over a fault."""

    def getTragicException(self) -> Any:  # noqa: N802 - Lucene's name
        return java_class("java.lang.OutOfMemoryError")(java.java_text("Java heap space"))


def test_what_closed_a_writer_is_named(tmp_path: Path) -> None:
    """One thread meets it, and the others a closed writer: their error comes first, maybe."""
    (tmp_path / "index").mkdir()
    writer = Writer([tmp_path / "index"], ANSERINI)
    writer.give_up()
    with refused("this IndexWriter is closed", "--debug"):
        writer.add(lines([("d", "text")]), tabbed=False)
    writer._writers.append(Tragic())
    with refused("Java's memory is full", "PIPELINE_JAVA_HEAP"):
        writer.add(lines([("d", "text")]), tabbed=False)
