"""Topics from TSV, JSONL and TREC files: ids and texts as they stand, or a refusal by line."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
from elsewhere import refusal_unprivileged
from folders import file_of
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from pipeline.errors import InputError
from pipeline.topics import read_topics

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = {"007": "spy films", "1": "how to bake bread", "NA": "café ü"}

TSV = "007\tspy films\n1\thow to bake bread\nNA\tcafé ü\n"
JSONL = (
    '{"id": "007", "text": "spy films"}\n'
    '{"_id": 1, "query": "how to bake bread", "metadata": {}}\n'
    '{"qid": "NA", "title": "caf\\u00e9 ü"}\n'
)
TREC = """
<top>
<num> Number: 007
<title> spy films

<desc> Description:
Which films are about
spies?

<narr> Narrative:
Relevant: any film. Not relevant: books.
</top>

<top>
<num> Number: 1
<title> Topic: how to
bake bread
<desc> Description:
</top>
<top>
<num>NA</num>
<title>café ü</title>
<desc>coffee</desc>
</top>
"""


@pytest.mark.parametrize("text", [TSV, JSONL, TREC], ids=["tsv", "jsonl", "trec"])
@pytest.mark.parametrize("ends", ["plain", "crlf", "bom", "no last end"])
@pytest.mark.parametrize("name", ["topics", "topics.gz", "-"])
def test_formats_are_told_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, ends: str, name: str
) -> None:
    """Three formats, line ends of either kind, packed or not, from a file or standard input."""
    if ends == "crlf":
        text = text.replace("\n", "\r\n")
    elif ends == "bom":
        text = "\ufeff" + text
    elif ends == "no last end":
        text = text.rstrip("\n")
    source: Path | str = name
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    else:
        source = file_of(tmp_path, text, name)
    topics = read_topics(source)
    assert topics == EXPECTED
    assert list(topics) == list(EXPECTED)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("title", "spy films"),
        ("desc", "Which films are about spies?"),
        ("narr", "Relevant: any film. Not relevant: books."),
        ("title+desc", "spy films Which films are about spies?"),
        ("desc+title", "Which films are about spies? spy films"),
    ],
)
def test_fields_of_a_trec_topic(tmp_path: Path, field: str, expected: str) -> None:
    """One field, or several in the order asked for; labels are no text."""
    first = TREC.split("</top>")[0] + "</top>\n"
    assert read_topics(file_of(tmp_path, first), field) == {"007": expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<top><num>1</num><title>one line</title></top>", {"1": "one line"}),
        (
            "<top><num>1</num><title>a</title></top><top><num>2<title>b</top>",
            {"1": "a", "2": "b"},
        ),
        ("<TOP>\n<NUM> Number: 1\n<TITLE> loud\n</TOP>", {"1": "loud"}),
        ("<top>\n<num> 1\n<title> List<String> in x < y > z\n</top>", {"1": None}),
        ("<top>\n<num> 1\n<title> what is Topic: and Number: x\n</top>", {"1": None}),
        ("<top>\n<num> 1\n<title> a <b>bold</b> word\n</top>", {"1": None}),
        ("<top>\n<num> 1\n<dom> Domain: law\n<title> kept\n<con> 1. x\n</top>", {"1": "kept"}),
        ("<?xml version='1.0'?>\n<xml>\n<top>\n<num> 1\n<title> t\n</top>\n</xml>", {"1": "t"}),
        ('<top lang="en">\n<num> 1\n<title> t\n</top>\nrest', {"1": "t"}),
    ],
)
def test_trec_topics_as_they_come(
    tmp_path: Path, text: str, expected: dict[str, str | None]
) -> None:
    """One line or many, closed or not, capitals, other fields; a query may hold a `<`."""
    got = read_topics(file_of(tmp_path, text))
    title = text.partition("<title> ")[2].partition("\n")[0]
    assert got == {qid: title if want is None else want for qid, want in expected.items()}


def test_white_space_in_a_text_is_one_blank(tmp_path: Path) -> None:
    """A second column is part of the text; a query has no tab and no line end."""
    assert read_topics(file_of(tmp_path, " 1 \t two \twords\u00a0here \n")) == {
        "1": "two words here"
    }
    assert read_topics(file_of(tmp_path, '{"id": "1", "text": "two\\nwords \\ud800"}')) == {
        "1": "two words ?"
    }


XML = """<?xml version="1.0" encoding="UTF-8"?>
<topics task="years later">
  <topic number="1"><query>corona &amp; <i>heat</i></query>
    <question>does it like
heat</question><narrative>any</narrative></topic>
  <topic id='CT-2'>
    A man of 45 has a cough &lt; a week.
  </topic>
  <topic number="3" type="faceted">
    <query> obama </query>
    <description>his family tree</description>
    <subtopic number="1">his parents</subtopic>
    <query>another</query>
  </topic>
  <TOPIC><num>4</num><title>a title</title></TOPIC>
</topics>
"""


def test_elements_of_later_years(tmp_path: Path) -> None:
    """`<topic number="1">`: query, question and narrative; or a text without any field."""
    path = file_of(tmp_path, XML, "topics.xml.gz")
    assert read_topics(path) == {
        "1": "corona & heat",
        "CT-2": "A man of 45 has a cough < a week.",
        "3": "obama",
        "4": "a title",
    }
    some = file_of(tmp_path, XML.split("<topic id")[0], "some.xml")
    assert read_topics(some, "desc") == {"1": "does it like heat"}
    assert read_topics(some, "desc+narr") == {"1": "does it like heat any"}


BAD = {
    "no number": ("<topics>\n<topic>a\n</topic>", ":2", "a <topic> without number", "an id"),
    "XML, no title": (
        '<topic number="1"><narrative>a</narrative></topic>',
        ":1",
        "topic '1' has no text",
        "--field",
    ),
    "topic never closed": ('<topic number="1">\na', ":1", "a <topic> that never", "</topic>"),
    "topic not opened": ("<x>\n</topic>", ":2", "a </topic> without a <topic>", "open it"),
    "empty": ("", "", "there are no topics", "how the file was written"),
    "blank": ("\n \n", "", "there are no topics", "how the file was written"),
    "no tab": ("1\ta\n2 b\n", ":2", "no tab in '2 b'", "qid TAB text"),
    "empty line": ("1\ta\n\n2\tb\n", ":2", "an empty line", "qid TAB text"),
    "no text": ("1\ta\n2\t \n", ":2", "topic '2' has no text", "write the query"),
    "no id": ("1\ta\n\tb\n", ":2", "topic id '' is not one printable word", "an id"),
    "id of two words": ("1 2\ta\n", ":1", "topic id '1 2' is not one printable word", "an id"),
    "id that drives": ("\x1b[2J\ta\n", ":1", r"topic id '\x1b[2J' is not one printable", "an id"),
    "twice": ("1\ta\n2\tb\n1\tc\n", ":3", "topic '1' again (first on line 1)", "of its own"),
    "twice as number": (
        '{"id": "1", "text": "a"}\n{"id": 1, "text": "b"}\n',
        ":2",
        "topic '1' again (first on line 1)",
        "of its own",
    ),
    "latin1": ("1\tcaf\xe9\n".encode("latin1"), ":1", "not UTF-8", "iconv -f latin1"),
    "not JSON": ('{"id": 1, "text": "a"}\n{"id": 2,\n', ":2", "not a JSON object", "write {"),
    "JSON list": ('{"id": 1, "text": "a"}\n[1]\n', ":2", "not a JSON object: '[1]'", "write {"),
    "JSON blank": ('{"id": 1, "text": "a"}\n\n', ":2", "an empty line", "delete it"),
    "deep JSON": ('{"id": ' + "[" * 100_000, ":1", "not a JSON object", "write {"),
    "no id key": ('{"text": "a"}\n', ":1", "no id or no text", "are understood too"),
    "no text key": ('{"id": "1"}\n', ":1", "no id or no text", "are understood too"),
    "id is true": ('{"id": true, "text": "a"}\n', ":1", "no id or no text", "understood"),
    "text is a number": ('{"id": "1", "text": 5}\n', ":1", "no id or no text", "understood"),
    "id of half a character": (
        '{"id": "\\ud800", "text": "a"}\n',
        ":1",
        r"topic id '\ud800' is not one printable word",
        "an id",
    ),
    "huge number": ('{"id": ' + "1" * 5000 + ', "text": "a"}', ":1", "not a JSON", "write {"),
    "no num": ("\n<top>\n<title> a\n</top>\n", ":2", "a <top> without <num>", "an id"),
    "never closed": ("<top>\n<num> 1\n<title> a\n", ":1", "a <top> that never", "</top>"),
    "not closed": (
        "<top>\n<num> 1\n<title> a\n<top>\n<num> 2\n<title> b\n</top>\n",
        ":1",
        "a <top> that never ends",
        "close it with </top>",
    ),
    "not opened": (
        "<top>\n<num> 1\n<title> a\n</top>\n<num> 2\n<title> b\n</top>\n",
        ":7",
        "a </top> without a <top>",
        "open it with <top>",
    ),
    "endless": ("<top>\n<num> 1\n" + "word\n" * 300_000, ":1", "a <top> that never", "</top>"),
    "no title": ("<top>\n<num> 1\n<desc> a\n</top>", ":1", "topic '1' has no text", "query"),
    "no top": ("<num> 1\n<title> a\n", "", "there are no topics", "how the file"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["topics", "topics.gz"])
def test_bad_topics_are_refused_by_their_line(tmp_path: Path, name: str, case: str) -> None:
    """path:line: what is wrong; and what to do."""
    text, place, problem, hint = BAD[case]
    path = file_of(tmp_path, text, name)
    with refused(f"{path}{place}: {problem}", hint, InputError):
        read_topics(path)


def test_a_field_nobody_knows_is_refused(tmp_path: Path) -> None:
    """With a suggestion, before the file is opened."""
    with refused("no field 'descr' in TREC topics", "did you mean 'desc'?"):
        read_topics(tmp_path / "no", "title+descr")


def test_topics_we_may_not_read(shared_path: Path) -> None:
    """Not there, a folder, no permission."""
    with refused(f"{shared_path / 'no'}: no such file"):
        read_topics(shared_path / "no")
    with refused(f"{shared_path}: is a folder"):
        read_topics(shared_path)
    file_of(shared_path, TSV, "topics").chmod(0o000)
    refusal = refusal_unprivileged("topics.read_topics('topics')", shared_path)
    assert refusal is not None
    assert refusal[1] == "topics: no permission (Permission denied)"


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)


@given(
    st.dictionaries(
        WORDS.filter(lambda s: s[0] not in "<{" and s.split() == [s]),
        st.lists(WORDS.filter(lambda s: s.split() == [s]), min_size=1, max_size=5).map(" ".join),
        min_size=1,
        max_size=6,
    )
)
def test_any_words_are_read_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, topics: dict[str, str]
) -> None:
    """Ids and texts of any script, in the order of the file."""
    text = "".join(f"{qid}\t{query}\n" for qid, query in topics.items())
    read = read_topics(file_of(tmp_path_factory.getbasetemp(), text, "any.tsv"))
    assert list(read.items()) == list(topics.items())


def test_the_tiny_topics(tiny: Path) -> None:
    """`007` keeps its zeros."""
    topics = read_topics(tiny / "topics.tsv")
    assert list(topics) == ["1", "2", "3", "007", "4", "5", "6"]
    assert topics["007"] == "spy films"


@pytest.mark.parametrize(
    ("name", "count"), [("cranfield/topics.all.tsv", 225), ("nfcorpus/topics.test.tsv", 323)]
)
def test_real_topics(collections: Path, name: str, count: int) -> None:
    """Every topic of a real collection has an id of its own and a text."""
    if not (collections / name).is_file():
        pytest.skip(f"{name} is not among the collections")
    assert len(read_topics(collections / name)) == count
