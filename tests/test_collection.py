"""Collections in every format, as a file, packed or a folder; bad ones are refused by line."""

from __future__ import annotations

import builtins
import json
import os
import time
import tracemalloc
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import refusal_unprivileged
from folders import file_of
from hypothesis import example, given
from hypothesis import strategies as st
from refusal import refused

from pipeline import collection, formats, textfile
from pipeline.collection import digest, documents, duplicate, files, load_texts
from pipeline.errors import InputError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSERINI = '{"id": "007", "contents": "A spy."}\n{"id": "NA", "contents": "Sodium → é"}\n'
BEIR = (
    '{"_id": "007", "title": "", "text": "A spy.", "metadata": {"url": "x"}}\n'
    '{"_id": "NA", "title": "Sodium", "text": "is a metal.\\nIt burns."}\n'
)
TSV = "007\tA spy.\nNA\tSodium\tand more\n"
TREC = """<DOC>
<DOCNO> 007 </DOCNO>
<DATE>today</DATE>
<TEXT>
A spy &amp; a <b>hero</b>.
</TEXT>
<BYLINE>nobody</BYLINE>
</DOC>
<doc><docno>NA</docno>Sodium,
without &lt;elements&gt;.</doc>
"""
FORMATS = {
    "anserini": (ANSERINI, {"007": "A spy.", "NA": "Sodium → é"}),
    "beir": (BEIR, {"007": "A spy.", "NA": "Sodium\nis a metal.\nIt burns."}),
    "tsv": (TSV, {"007": "A spy.", "NA": "Sodium\tand more"}),
    "trec": (
        TREC,
        {"007": "today\nA spy & a hero .", "NA": "Sodium,\nwithout <elements>."},
    ),
}


def texts(path: Path | str) -> dict[str, str]:
    return {document.docid: document.text for document in documents(path)}


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("ends", ["plain", "crlf", "bom"])
@pytest.mark.parametrize("name", ["corpus.any", "corpus.gz", "folder/corpus.txt.gz"])
def test_formats_are_told_by_content(tmp_path: Path, kind: str, ends: str, name: str) -> None:
    """Four formats, line ends of either kind, packed or not, a file or a folder."""
    text, expected = FORMATS[kind]
    if ends == "crlf":
        text = text.replace("\n", "\r\n")
    elif ends == "bom":
        text = "\ufeff" + text
    path = file_of(tmp_path, text, name)
    assert texts(path.parent if name.startswith("folder") else path) == expected


def test_a_document_knows_its_place(tmp_path: Path) -> None:
    """File and line, for whoever finds it a second time."""
    file_of(tmp_path, TREC, "b.trec.gz")
    file_of(tmp_path, "\n" + TSV, "a/c.tsv")
    places = [(d.docid, d.path.removeprefix(f"{tmp_path}/"), d.line) for d in documents(tmp_path)]
    assert places == [("007", "a/c.tsv", 2), ("NA", "a/c.tsv", 3), ("007", "b.trec.gz", 1),
                      ("NA", "b.trec.gz", 9)]  # fmt: skip


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Formats may differ from file to file; what is hidden or of another kind is left out."""
    for name, text in {
        "z.jsonl": '{"id": "1", "contents": "one"}',
        "a/b.tsv.gz": "2\ttwo",
        "a/c.trec": "<DOC><DOCNO>3</DOCNO>three</DOC>",
        ".hidden.tsv": "4\tfour",
        ".cache/x.tsv": "5\tfive",
        "README.md": "6\tsix",
        "notes": "7\tseven",
    }.items():
        file_of(tmp_path, text, name)
    (tmp_path / "folder.tsv").mkdir()
    assert texts(tmp_path) == {"2": "two", "3": "three", "1": "one"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<DOC><DOCNO>1</DOCNO>a</DOC><DOC><DOCNO>2</DOCNO>b</DOC>", {"1": "a", "2": "b"}),
        ("<DOC>\n<DOCNO>1</DOCNO>\nßßß ŉ a</DOC> \n<DOC><DOCNO>2</DOCNO>İ</DOC>",
         {"1": "ßßß ŉ a", "2": "İ"}),
        ("<DOC>\n<DOCNO>1</DOCNO>\n<TEXT>never closed\n<P>still\n</DOC>",
         {"1": "never closed\nstill"}),
        ("<DOC><DOCNO>1</DOCNO><TEXT>a</TEXT>x<TEXT>b</TEXT></DOC>", {"1": "a\nb"}),
        ("<DOC><DOCNO>1</DOCNO><TEXT><TITLE>a</TITLE> b</TEXT></DOC>", {"1": "a b"}),
        ("<DOC><DOCNO>1</DOCNO><TEXT>3 < 4 &amp;&#233;&#xd800;</TEXT></DOC>",
         {"1": "3 < 4 &é\ufffd"}),
        ("<DOC><DOCNO>1</DOCNO></DOC>", {"1": ""}),
        ('<DOC id="x">\n<DOCNO>1</DOCNO><DOCTYPE>a</DOCTYPE>\n</DOC >', {"1": "a"}),
        (f"<DOC><DOCNO>1</DOCNO>&#{'9' * 5000};</DOC>", {"1": f"&#{'9' * 5000};"}),
        ("<?xml?>\n<docs>\n<DOC>\n<DOCNO>1</DOCNO>a\n</DOC>\n</docs>", {"1": "a"}),
    ],
)  # fmt: skip
def test_trec_documents_as_they_come(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    """Several on a line, letters whose capitals are longer, elements that never end, entities."""
    assert texts(file_of(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"id": 7, "contents": "a"}, ("7", "a")),
        ({"docid": "d", "text": "a"}, ("d", "a")),
        ({"docno": "d", "text": "a", "title": None}, ("d", "a")),
        ({"id": "x", "contents": "", "text": "ignored"}, ("x", "")),
        ({"id": "x", "contents": None, "text": "b", "title": "t"}, ("x", "t\nb")),
        ({"id": "x", "contents": "a\ud800"}, ("x", "a?")),
    ],
)
def test_json_documents_as_they_come(
    tmp_path: Path, record: dict[str, Any], expected: tuple[str, str]
) -> None:
    """Other names of ids, numbers, empty texts, half a character."""
    (document,) = documents(file_of(tmp_path, json.dumps(record)))
    assert document[:2] == expected
    document.text.encode()


ROWS = st.lists(
    st.sampled_from(["a\tb", " a \tb\tc", "a\té\u2028", "a b", "", "a\tb\r", "\t", "a\t\xff"]),
    min_size=1,
)
RECORDS = st.lists(
    st.sampled_from(
        [
            '{"id": "a", "contents": "one"}',
            '{"_id": 7, "title": "t", "text": "\u2028 é \\ud800\\n"}',
            '{"id": "b", "contents": "x"} ',
            '{"id": "c", "contents": "y"}\r',
            ' {"id": "d", "contents": "z"}',
            '{"id": "e",',
            '"contents": "split"}',
            '{"id": "f", "contents": "1"}{"id": "g", "contents": "2"}',
            '{"id": "h", "contents": "1"},',
            '{"id": null, "contents": 1}',
            '{"id": "i", "id": "j", "contents": "twice"}',
            '["k"]',
            "NaN",
            "",
            "\xff",
        ]
    ),
    min_size=1,
)


def check_both_ways(lines: list[str], ended: bool, at_once: Any, one_by_one: Any) -> None:
    """Either the same documents, or none and a reading line by line, which finds what is wrong."""
    latin = any("\xff" in line for line in lines)
    block = "\n".join(lines).encode("latin1" if latin else "utf-8", "replace") + b"\n" * ended
    found = at_once(block) if block else None
    if found is not None:
        file = Path("corpus")
        source = textfile.decoded(file, textfile.cut(file, 1, block, 1 << 20))
        expected = list(one_by_one(file, source))
        assert [(number, *record) for number, record in enumerate(found, 1)] == expected


@given(RECORDS, st.booleans())
@example(['{"id": "a", "contents": "one"}', '{"id": "b",', '"contents": "two"}'], True)
@example(['{"id": "e",', '"contents": "split"}{"id": "e", "contents": "one"}'], True)
def test_lines_read_at_once_are_those_read_one_by_one(records: list[str], ended: bool) -> None:
    """JSON."""
    check_both_ways(records, ended, formats._plain_records, formats._records)


@given(ROWS, st.booleans())
def test_rows_read_at_once_are_those_read_one_by_one(rows: list[str], ended: bool) -> None:
    """TSV."""
    check_both_ways(rows, ended, formats._plain_rows, formats._rows)


def test_real_lines_are_read_at_once(tiny: Path) -> None:
    """What most collections look like takes the short way."""
    for text in (ANSERINI, BEIR):
        assert len(formats._plain_records(text.encode()) or []) == 2
    block = (tiny / "corpus.jsonl").read_bytes()
    assert len(formats._plain_records(block) or []) == 20
    assert len(formats._plain_rows(TSV.encode()) or []) == 2


def test_the_tiny_collection(tiny: Path) -> None:
    """Twenty documents, two of them with the same text."""
    found = texts(tiny / "corpus.jsonl")
    assert len(found) == 20
    assert found["twinA"] == found["twinB"]
    assert found["naïve"].startswith("Café")


@pytest.mark.parametrize(
    ("name", "count"), [("cranfield", 1400), ("nfcorpus", 3633), ("scifact", 5183)]
)
def test_real_collections(collections: Path, name: str, count: int) -> None:
    """Every document is read, and none twice."""
    path = collections / name / "corpus.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{name} is not among the collections")
    docids = [document.docid for document in documents(path)]
    assert len(docids) == len(set(docids))
    if name != "cranfield":
        assert len(docids) == count
    else:
        assert 1398 <= len(docids) <= count  # some editions leave out the empty ones


# ---------------------------------------------------------------- what is refused

BAD = {
    "empty": ("", "", "there are no documents", "file and its format"),
    "blank": ("\n\n", "", "there are no documents", "file and its format"),
    "not JSON": ('{"id": "1", "contents": "a"}\n{"id": \n', ":2", "not JSON (Exp", "object a line"),
    "blank line": ('{"id": "1", "contents": "a"}\n\n', ":2", "an empty line", "delete it"),
    "array": ('[{"id": "1", "contents": "a"}]\n', ":1", "not a JSON object", "one object a line"),
    "number": ('{"id": "1", "contents": "a"}\n5\n', ":2", "not a JSON object: '5'", "one object"),
    "pretty": ('{\n  "id": "1"\n}\n', ":1", "not JSON (", "one object a line"),
    "deep": ('{"id": ' + "[" * 100_000, ":1", "not JSON (maximum recursion", "one object"),
    "huge number": ('{"id": ' + "1" * 5000 + "}", ":1", "not JSON (Exceeds the limit", "one"),
    "no id": ('{"contents": "a"}\n', ":1", "no id or no text among the keys ['contents']", "_id"),
    "no text": ('{"id": "a"}\n', ":1", "no id or no text among the keys ['id']", "contents"),
    "id is null": ('{"id": null, "contents": "a"}\n', ":1", "no id or no text", "contents"),
    "id is true": ('{"id": true, "contents": "a"}\n', ":1", "no id or no text", "contents"),
    "text is a list": ('{"id": "1", "contents": ["a"]}\n', ":1", "no id or no text", "contents"),
    "id is empty": ('{"id": "", "contents": "a"}\n', ":1", "document id ''", "white space"),
    "id of two words": ('{"id": "a b", "contents": "a"}\n', ":1", "document id 'a b' is", "white"),
    "id that drives": ('{"id": "\\u001b[2J", "contents": ""}', ":1", r"id '\x1b[2J' is", "white"),
    "id half a character": ('{"id": "\\ud800", "contents": ""}', ":1", r"id '\ud800' is", "white"),
    "first of two": (
        '{"id": "a b", "contents": "a"}\n{"id": \n',
        ":1",
        "document id 'a b' is",
        "white",
    ),
    "no tab": ("1\ta\n2 b\n", ":2", "no tab in '2 b'", "docid TAB text"),
    "empty line": ("1\ta\n\n", ":2", "an empty line", "docid TAB text"),
    "latin1": ("1\tcaf\xe9\n".encode("latin1"), ":1", "not UTF-8", "iconv -f latin1"),
    "utf-16": ("1\ta\n".encode("utf-16"), ":1", "not UTF-8", "iconv -f utf-16"),
    "binary": (b"\x7fELF\x02\x01\x01", ":1", r"no tab in '\x7fELF", "docid TAB text"),
    "no docno": ("\n<DOC>\n<TEXT>a</TEXT>\n</DOC>", ":2", "a <DOC> without <DOCNO>", "an id"),
    "never closed": ("<DOC>\n<DOCNO>1</DOCNO>\na\n", ":1", "a <DOC> that never ends", "</DOC>"),
    "not closed": (
        "<DOC>\n<DOCNO>1</DOCNO>\n<DOC>\n<DOCNO>2</DOCNO>\n</DOC>\n",
        ":1",
        "a <DOC> that never ends",
        "close it with </DOC>",
    ),
    "not opened": (
        "<DOC>\n<DOCNO>1</DOCNO>\n</DOC>\n</DOC>\n",
        ":4",
        "a </DOC> without a <DOC>",
        "open it with <DOC>",
    ),
    "other elements": ("<page>a</page>\n", "", "there are no documents", "its format"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz"])
def test_a_bad_document_is_refused_by_its_line(tmp_path: Path, name: str, case: str) -> None:
    """path:line: what is wrong; and what to do. Found in a folder, the file is named as well."""
    text, place, problem, hint = BAD[case]
    path = file_of(tmp_path, text, name)
    for source in (path, tmp_path):
        with refused(f"{path}{place}: ", hint, InputError):
            list(documents(source))
        with refused(problem, hint, InputError):
            list(documents(source))


def test_collections_that_are_none(tmp_path: Path, shared_path: Path) -> None:
    """Not there, an empty folder, a pipe, no permission, a name no file can have."""
    with refused(f"{tmp_path / 'no'}: no such collection", "a file or a folder"):
        list(documents(tmp_path / "no"))
    with refused("no such collection", "a file or a folder"):
        list(documents("a\0b"))
    with refused(f"{tmp_path}: no collection files in this folder", "files end in .jsonl"):
        list(documents(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with refused("pipe: is no regular file", "write it to a file first"):
        list(documents(tmp_path / "pipe"))
    with refused("x" * 300 + ": File name too long", kind=PipelineError):
        list(documents("x" * 300))
    (shared_path / "closed").mkdir(0o000)
    file_of(shared_path, TSV, "corpus.tsv").chmod(0o000)
    for name in ("closed/corpus.tsv", "corpus.tsv"):
        refusal = refusal_unprivileged(f"list(collection.documents({name!r}))", shared_path)
        assert refusal is not None
        assert refusal[1] == f"{name}: no permission (Permission denied)"


def test_an_endless_document_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one line nor one `<DOC>` may grow for ever, not even of empty lines."""
    monkeypatch.setattr(formats, "MAX_DOCUMENT", 1 << 18)
    line = file_of(tmp_path, '{"id": "' + "x" * 600_000, "line.jsonl")
    block = file_of(tmp_path, "<DOC>\n" + "\n" * 400_000, "block.trec")
    tracemalloc.start()
    with refused(f"{line}:1: a line longer than 262,144 bytes", kind=InputError):
        list(documents(line))
    with refused(f"{block}:1: a <DOC> that never ends", kind=InputError):
        list(documents(block))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    for text in ("1\ta\n2\t{}\n3\tb\n", '{{"id": "1", "contents": "{}"}}\n'):
        later = file_of(tmp_path, "1\ta\n" * text.startswith("1") + text.format("x" * (1 << 18)))
        with refused(": a line longer than 262,144 bytes", kind=InputError):
            list(documents(later))


@pytest.mark.parametrize(
    "text",
    [
        "<DOC><DOCNO>1</DOCNO>" + "<" * 300_000 + "</DOC>",
        "<DOC><DOCNO>1</DOCNO>" + "<TEXT>" * 50_000 + "</DOC>",
        "<DOC><DOCNO>1</DOCNO>" + "<TEXT" * 50_000 + "</DOC>",
        "<DOC><DOCNO>" + " " * 300_000 + "</DOC>",
        "<DOC>" + "<DOCNO> " * 50_000 + "</DOC>",
        "<DOC><DOCNO>1</DOCNO>" + "&" * 300_000 + "</DOC>",
    ],
)
def test_hostile_markup_takes_linear_time(tmp_path: Path, text: str) -> None:
    """What makes a careless pattern search for minutes is over at once."""
    path = file_of(tmp_path, text)
    start = time.process_time()
    try:
        list(documents(path))
    except PipelineError as error:
        assert "without <DOCNO>" in error.message  # noqa: PT017 - either answer is right
    assert time.process_time() - start < 2


# ---------------------------------------------------------------- texts, digests


def test_texts_are_found_in_one_pass(tiny: Path) -> None:
    """Only those asked for."""
    found = load_texts(tiny / "corpus.jsonl", ["null", "007", "null"])
    assert found == {
        "null": "A null value marks what is not known.",
        "007": "James Bond is a spy in novels and films.",
    }


def test_a_missing_document_is_named(tiny: Path) -> None:
    """The first by name, always the same one, and how many more there are."""
    path = tiny / "corpus.jsonl"
    with refused(f"{path}: no document 'ghost'", "the collection that the run was made from"):
        load_texts(path, ["NA", "ghost"])
    with refused(f"{path}: no document 'a' and 2 others"):
        load_texts(path, ["c", "a", "NA", "b"])


def test_a_document_that_is_there_twice_is_named_with_both_places(tmp_path: Path) -> None:
    """Only if somebody wants it; who reads everything checks everything."""
    first = file_of(tmp_path, TSV, "a.tsv")
    second = file_of(tmp_path, "8\tx\n007\tagain\n", "b.tsv")
    with refused(f"{second}:2: document '007' again (first in {first}:1)", "delete one"):
        load_texts(tmp_path, ["007"])
    assert load_texts(tmp_path, ["8"]) == {"8": "x"}
    (document,) = documents(file_of(tmp_path, "9\tx\n", "c.tsv"))
    assert duplicate(document, ("z", 5)).line == 1


def test_a_digest_is_of_content(tmp_path: Path) -> None:
    """Bytes and their order, not names; a single file or a folder of it is the same content."""
    path = file_of(tmp_path, TSV, "one/a.tsv")
    same = file_of(tmp_path, TSV, "two/b.tsv")
    assert digest(path) == digest(same) == digest(path.parent)
    file_of(tmp_path, "8\tx", "two/c.tsv")
    assert digest(same.parent) != digest(path)
    assert digest("ir_datasets:vaswani") == "ir_datasets:vaswani"


def test_the_files_of_a_trec_disk_have_no_suffix(tmp_path: Path) -> None:
    """In a folder, those that begin with <DOC> are taken, packed or not; their DTDs are not."""
    for name in ("ft/FT911_1", "fr/fr940104.0", "packed/LA010189.gz"):
        file_of(tmp_path, f"\n<doc><docno>{name}</docno>text</doc>", name)
    file_of(tmp_path, "<!-- the DTD --><!ELEMENT DOC", "ft/ftdtd")
    file_of(tmp_path, "<DOC> is what each begins with", "README.gz").write_bytes(b"no gzip")
    assert texts(tmp_path) == {
        "fr/fr940104.0": "text", "ft/FT911_1": "text", "packed/LA010189.gz": "text"
    }  # fmt: skip


def test_topics_in_a_folder_of_documents_are_pointed_out(tmp_path: Path) -> None:
    """Whatever they are refused for, the file of documents should be named instead."""
    for name in ("queries.jsonl", "topics.dev.tsv", "x.qrels.txt", "qrels/dev.tsv"):
        folder = tmp_path / name.replace("/", "-")
        file_of(folder, ANSERINI, "corpus.jsonl")
        other = file_of(folder, "one line", name)
        assert collection.not_documents(folder) == [other]
        with refused(f"{other}:1: no", "name the file that is", InputError):
            list(documents(folder))
    file_of(tmp_path, TSV, "twice/corpus.tsv")
    file_of(tmp_path, TSV, "twice/topics.tsv")
    with refused("document '007' again", "name the file that is", InputError):
        load_texts(tmp_path / "twice", ["007"])
    assert collection.not_documents(tmp_path / "twice" / "topics.tsv") == []
    assert collection.not_documents("ir_datasets:vaswani/topics") == []


def test_files_of_a_collection(tmp_path: Path) -> None:
    """A file of any name is taken as given; in a folder, the suffix decides."""
    odd = file_of(tmp_path, TSV, "odd")
    assert files(odd) == [odd]
    one = file_of(tmp_path, TSV, "a.sgml")
    assert files(tmp_path) == [one]


# ---------------------------------------------------------------- ir_datasets


def test_without_ir_datasets_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra, and needs the network once."""
    real = builtins.__import__

    def importing(name: str, *more: Any) -> Any:
        if name == "ir_datasets":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", importing)
    with refused("ir_datasets:x: the package ir_datasets is not installed", "pip install"):
        list(documents("ir_datasets:x"))


class Dataset:
    """Stands for a data set, which takes the network; its surface is ir_datasets' own."""

    def __init__(self, *docs: tuple[str, str]) -> None:
        self.docs = docs

    def has_docs(self) -> bool:
        return bool(self.docs)

    def docs_iter(self) -> Iterator[Any]:
        for docid, text in self.docs:
            yield types.SimpleNamespace(doc_id=docid, default_text=lambda text=text: text)


class Mirrors(Dataset):
    """Stands for a data set none of whose mirrors answers; ir_datasets says so like this."""

    def docs_iter(self) -> Iterator[Any]:
        raise RuntimeError("All download sources failed", [("mirror", KeyError("x\ny"))])
        yield


def test_a_data_set_is_a_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documents obey the rules of all; its failures are said in two lines."""

    def load(name: str) -> Dataset:
        if name == "offline":
            raise OSError("no route to host")
        if name == "manual":
            raise FileNotFoundError("ir_datasets/manual")
        if name == "mirrors":
            return Mirrors(("1", "one"))
        return {
            "good": Dataset(("1", "one")), "bad": Dataset(("a b", "two")), "parent": Dataset()
        }[name]  # fmt: skip

    monkeypatch.setitem(__import__("sys").modules, "ir_datasets", types.SimpleNamespace(load=load))
    assert list(documents("ir_datasets:good")) == [("1", "one", "ir_datasets:good", 1)]
    with refused("ir_datasets:bad:1: document id 'a b' is not one", kind=InputError):
        list(documents("ir_datasets:bad"))
    with refused("ir_datasets:none: no such data set", "catalogue"):
        list(documents("ir_datasets:none"))
    with refused("ir_datasets:offline: could not be obtained (no route", "needs the network"):
        list(documents("ir_datasets:offline"))
    with refused("ir_datasets:manual: could not be obtained (ir_datasets/manual)", "by hand"):
        list(documents("ir_datasets:manual"))
    with refused("ir_datasets:mirrors: could not be obtained", "needs the network"):
        list(documents("ir_datasets:mirrors"))
    with refused("ir_datasets:parent: has no documents", "the catalogue"):
        list(documents("ir_datasets:parent"))
