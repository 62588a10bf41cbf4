"""Whatever bytes a stranger's file holds: a result or a `PipelineError`, quickly, in little memory.

PIPELINE_SOAK=1 tries many more.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import start_python
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusal import check_two_lines

from pipeline.collection import documents
from pipeline.errors import PipelineError
from pipeline.parts import Parts
from pipeline.stage import Recipe, read_sidecar, sidecar_path, status
from pipeline.topics import read_topics
from pipeline.trec import read_qrels, read_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOAK = bool(os.environ.get("PIPELINE_SOAK"))
SECONDS = 2.0  # of the processor, for one small file

VALID: dict[str, list[bytes]] = {
    "run": [
        b"1 Q0 a 1 2.5 t\n1 Q0 b 2 -1e-3 t\n007 Q0 NA 1 1.0 t\n",
        b"\xef\xbb\xbf1\tQ0\tna\xc3\xafve\t1\t3\tt\r\n1\tQ0\tb\t2\t3\tt\r\n",
    ],
    "qrels": [
        b"1 0 a 2\n1 0 b 0\n007 0 NA -1\n",
        b"query-id\tcorpus-id\tscore\n1\ta\t2\n2\tb\t1\n",
    ],
    "topics": [
        b"1\thow to bake bread\n007\tspy films\n",
        b'{"id": "1", "text": "how to \\u00e9"}\n{"_id": 2, "query": "x"}\n',
        b"<top>\n<num> Number: 301\n<title> spy < films\n<desc> Description:\nx\n</top>\n"
        b"<top><num>2</num><title>y</title></top>\n",
    ],
    "collection": [
        b'{"id": "1", "contents": "text"}\n{"_id": 2, "title": "t", "text": "x\\ud83d\\ude00"}\n',
        b"1\tone text\n007\tother\ttext\n",
        b"<DOC>\n<DOCNO> 1 </DOCNO>\n<TEXT>a &amp; <b>b</b>\n&#233;</TEXT>\n</DOC>\n"
        b"<DOC><DOCNO>2</DOCNO>x</DOC><DOC><DOCNO>3</DOCNO></DOC>",
    ],
}


def check_run(path: Path) -> None:
    """Read a run; what is accepted is ranked as evaluators rank it, finite and without repeats."""
    seen = set()
    for qid, docs in read_run(path):
        assert qid not in seen
        seen.add(qid)
        assert docs
        assert len({d.docid for d in docs}) == len(docs)
        keys = [(-d.score, [-b for b in d.docid.encode()] + [1]) for d in docs]
        assert keys == sorted(keys)
        assert all(math.isfinite(d.score) and d.docid for d in docs)


def check_qrels(path: Path) -> None:
    """Read qrels; what is accepted has ids and whole grades."""
    qrels = read_qrels(path)
    assert qrels
    for qid, judged in qrels.items():
        assert qid
        assert judged
        assert all(docid and isinstance(grade, int) for docid, grade in judged.items())


def check_topics(path: Path) -> None:
    """Read topics; what is accepted is one word each and a text on one line that can be encoded."""
    for field in ("title", "title+desc+narr"):
        topics = read_topics(path, field)
        assert topics
        for qid, text in topics.items():
            assert qid.split() == [qid]
            assert text
            assert text == " ".join(text.split())
            assert qid.isprintable()
            (qid + text).encode()


def check_collection(path: Path) -> None:
    """Read a collection; what is accepted has ids that fit into a run, and texts."""
    found = list(documents(path))
    assert found
    for document in found:
        assert document.docid.split() == [document.docid]
        (document.docid + document.text).encode()
        assert document.line >= 1


READERS: dict[str, Callable[[Path], None]] = {
    "run": check_run,
    "qrels": check_qrels,
    "topics": check_topics,
    "collection": check_collection,
}


def feed(read: Callable[[Path], None], path: Path, data: bytes) -> None:
    """Read these bytes: nothing but a refusal in two lines may come out, and soon."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        read(path)
    except PipelineError as error:
        check_two_lines(error, str(path))
    assert time.process_time() - start < SECONDS


# Pieces that mean something to one reader or another, and pieces that mean trouble.
PIECES = st.sampled_from(
    [
        b"\n", b"\r\n", b"\t", b" ", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[2J", b"\x85",
        b"\xc2\xa0", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"1", b"007", b"NA", b"Q0", b"nan", b"inf",
        b"-1e999", b"1_0", b"0x1", b"1e-400", b"\xd9\xa3", b"9" * 400, b"#", b"query-id",
        b"<top>", b"</top>", b"<num>", b"<title>", b"<desc> Description:", b"<", b">", b"<DOC>",
        b"</DOC>", b"<DOCNO>", b"</DOCNO>", b"<TEXT>", b"</TEXT>", b"&#", b"&amp;", b"&#xd800;",
        b"&#x110000;", b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b'"id"', b'"_id"',
        b'"text"', b'"contents"', b'"\\ud800"', b"null", b"true", b"NaN", b"-Infinity", b"1e5000",
    ]
)  # fmt: skip
LINES = st.lists(PIECES, max_size=40).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn, texts: list[bytes]) -> bytes:
    """A valid file with a few of its bytes cut out, doubled, replaced or joined by others."""
    data = bytearray(draw(st.sampled_from(texts)))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["cut", "double", "put", "byte"]))
        if kind == "double":
            data[start:start] = data[start:end]
        elif kind == "cut":
            del data[start:end]
        else:
            data[start:end] = draw(PIECES if kind == "put" else st.binary(min_size=1, max_size=2))
    return bytes(data)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=3_000 if SOAK else 200)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Random bytes, random pieces of the formats, and valid files with random changes."""
    bytes_ = data.draw(st.one_of(st.binary(max_size=300), LINES, mutated(VALID[kind])))
    feed(READERS[kind], tmp_path_factory.getbasetemp() / "fuzz.txt", bytes_)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=3_000 if SOAK else 200)
@given(data=st.data())
def test_any_packed_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """No gzip at all, changed gzip, and gzip of changed files."""
    whole = gzip.compress(VALID[kind][0] * 3, mtime=0)
    bytes_ = data.draw(
        st.one_of(
            st.binary(max_size=100),
            st.binary(max_size=100).map(lambda rest: whole[:10] + rest),
            mutated([whole]),
            mutated(VALID[kind]).map(gzip.compress),
        )
    )
    feed(READERS[kind], tmp_path_factory.getbasetemp() / "fuzz.txt.gz", bytes_)


@pytest.mark.parametrize("kind", READERS)
def test_the_valid_files_are_valid(tmp_path: Path, kind: str) -> None:
    """What is mutated above would be read without a refusal."""
    for text in VALID[kind]:
        (tmp_path / "a.txt").write_bytes(text)
        READERS[kind](tmp_path / "a.txt")


SIDECAR = (
    b'{"schema": 1, "state": "finished", "recipe": {"stage": "a", "version": 1, "settings":'
    b' {"k": 1}, "inputs": {"i": "x"}}, "output": {"sha256": "0"}, "counts": {}, "details": {}}'
)


@given(st.one_of(st.binary(max_size=200), LINES, mutated([SIDECAR])))
@example(SIDECAR)
@example(b"")
def test_any_sidecar_is_fresh_stale_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """An edited sidecar never breaks the program, whatever was edited."""
    output = tmp_path_factory.getbasetemp() / "fuzz.run"
    output.write_bytes(b"x")
    recipe = Recipe("a", 1, {"k": 1}, {"i": "x"})

    def look(path: Path) -> Any:
        read_sidecar(output)
        found = status(output, recipe)
        assert not found.fresh  # for the digest is wrong
        assert all(reason.isprintable() for reason in found.reasons)

    feed(look, sidecar_path(output), data)


@given(st.one_of(st.binary(max_size=200), LINES))
def test_any_note_is_read_or_forgotten(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """A damaged note beside the parts is none."""
    parts = Parts(tmp_path_factory.getbasetemp())

    def look(path: Path) -> None:
        note = parts.note("fuzz")
        assert note is None or isinstance(note, dict)

    feed(look, parts.folder / "fuzz.json", data)


# ---------------------------------------------------------------- bombs and endless files

BOMBS = {
    "null bytes": bytes(1000),
    "one line": b"x" * 1000,
    "empty lines": b"\n" * 1000,
    "opened topics": b"<top>\n" * 200,
    "closed topics": b"</top>\n" * 200,
    "topics without end": b"<top>\n" + b"<title>\n" * 100,
    "opened documents": b"<DOC>\n" * 200,
    "elements": b"<b>\n" * 300,
    "documents": b'{"id": "1", "contents": "x"}\n' * 40,
    "run lines": b"1 Q0 a 1 1.0 t\n" * 80,
    "qrels lines": b"1 0 a 1\n" * 130,
    "nesting": b"[" * 1000,
}


QUICK = ("one line", "empty lines", "topics without end", "run lines")

EXPLODE = """
import json, resource, sys, time
from pathlib import Path
from refusal import check_two_lines
from pipeline import collection, errors, topics, trec
resource.setrlimit(resource.RLIMIT_AS, (500_000_000, 500_000_000))
readers = {
    "run": lambda path: sum(1 for _ in trec.read_run(path)),
    "qrels": trec.read_qrels,
    "topics": topics.read_topics,
    "collection": lambda path: sum(1 for _ in collection.documents(path)),
}
import numpy
for kind, read in readers.items():
    for path in sorted(Path().glob("*.gz")):
        start = time.process_time()
        try:
            read(path)
            print(json.dumps([kind, path.name, "was read", 0]))
        except errors.PipelineError as error:
            check_two_lines(error)
            assert str(path) in error.message
            print(json.dumps([kind, path.name, "", time.process_time() - start]))
"""


def test_a_bomb_is_refused_by_every_reader(tmp_path: Path) -> None:
    """Small files of 40 MB: refused within seconds, with a few hundred megabytes to live in."""
    for name in BOMBS if SOAK else QUICK:
        packer = zlib.compressobj(9, wbits=31)
        block = BOMBS[name] * (1_000_000 // len(BOMBS[name]))
        with (tmp_path / f"{name}.gz").open("wb") as out:
            for _ in range(40):
                out.write(packer.compress(block))
            out.write(packer.flush())
        assert (tmp_path / f"{name}.gz").stat().st_size < 1_000_000
    with start_python(EXPLODE, tmp_path) as process:
        answers = [json.loads(line) for line in process.communicate()[0].splitlines()]
    assert len(answers) == len(READERS) * len(BOMBS if SOAK else QUICK)
    assert [answer for answer in answers if answer[2] or answer[3] > 10] == []
