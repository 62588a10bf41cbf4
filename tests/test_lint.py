# ruff: noqa: E501 - the table of cases reads best with a case on a line
"""Checking runs: what is found in each broken file, with its line; what pytrec_eval makes of it."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path
from typing import NamedTuple

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, PipelineError, StorageError
from pipeline.lint import stream as streaming
from pipeline.lint.check import LintSettings, lint
from pipeline.lint.findings import KINDS, Report
from pipeline.trec import read_run

GOOD = "1 Q0 a 1 3.5 t\n1 Q0 b 2 2.5 t\n2 Q0 x 1 9 t\n2 Q0 y 2 -1e-3 t\n"


def check(path: Path, **settings: object) -> Report:
    (report,) = lint([path], LintSettings(**settings))  # type: ignore[arg-type]
    return report


def checked(tmp_path: Path, data: str | bytes, **settings: object) -> Report:
    path = tmp_path / "run"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return check(path, **settings)


def found(report: Report) -> dict[str, int]:
    return report.findings.counts


class Broken(NamedTuple):
    name: str
    data: str | bytes
    kind: str
    line: int | None
    message: str
    read_by_pytrec_eval: bool
    others: tuple[str, ...] = ()


def row(number: int, **changes: str) -> str:
    """Line `number` of a topic, with some columns changed."""
    columns = {
        "qid": "1",
        "q0": "Q0",
        "docid": f"d{number}",
        "rank": str(number),
        "score": f"{-number}",
        "tag": "t",
    }
    return " ".join((columns | changes).values()) + "\n"


BROKEN = [
    Broken("nothing", "", "empty", None, "the run is empty", True),
    Broken("one blank line", "\n", "blank", 1, "an empty line", False, ("empty",)),
    Broken("comments alone", "# a\n# b\n", "empty", None, "the run is empty", False, ("comment",)),
    Broken("a blank line in the middle", row(1) + "\n" + row(2), "blank", 2, "an empty line", False),
    Broken("white space alone", row(1) + " \t\n" + row(2), "blank", 2, "an empty line", False),
    Broken("five columns", row(1) + "1 Q0 b 2 1.0\n", "columns", 2, "5 columns instead of 6 in '1 Q0 b 2 1.0'", False),
    Broken("seven columns", row(1) + row(2, docid="d 2"), "columns", 2, "7 columns", False),
    Broken("a torn line", row(1) + "1 Q0 b", "columns", 2, "3 columns", False, ("last-line",)),
    Broken("a comment", "# ir_metadata.start\n" + row(1), "comment", 1, "a comment: '# ir_metadata.start'", False),
    Broken("a comment of six words", "# a b c d e\n" + row(1), "comment", 1, "a comment", False),
    Broken("a header line", "qid Q0 docid rank score tag\n" + row(1), "header", 1, "a header: 'qid Q0 docid rank score tag'", False),
    Broken("a header with tabs", "qid\titer\tdocno\trank\tsim\trun\n" + row(1), "header", 1, r"a header: 'qid\titer", False),
    Broken("a header alone", "qid Q0 docid rank score tag\n", "empty", None, "the run is empty", False, ("header",)),
    Broken("four columns with Q0", "1 Q0 a 1\n", "columns", 1, "4 columns instead of 6", False),
    Broken("a csv", "1,Q0,a,1,2.0,t\n", "columns", 1, "1 columns", False),
    Broken("an html page", "<html>\n<body>\n", "empty", None, "there are no topics", False),
    Broken("no Q0", row(1) + row(2, q0="0"), "q0", 2, "the second column is '0'", True),
    Broken("q0 in small letters", row(1, q0="q0"), "q0", 1, "'q0'", True),
    Broken("a rank that is no number", row(1, rank="first"), "rank-number", 1, "rank 'first'", True),
    Broken("a rank with a point", row(1, rank="1.0"), "rank-number", 1, "rank '1.0'", True),
    Broken("a rank below zero", row(1, rank="-1"), "rank-number", 1, "rank '-1'", True),
    Broken("ranks from 0", row(1, rank="0") + row(2, rank="1"), "ranks", 1, "rank 0 of topic '1' should be 1", True),
    Broken("ranks with a gap", row(1) + row(2, rank="3"), "ranks", 2, "rank 3 of topic '1' should be 2", True),
    Broken("one rank for all", row(1) + row(2, rank="1"), "ranks", 2, "rank 1 of topic '1' should be 2", True),
    Broken("ranks against scores", row(1, score="1") + row(2, score="2"), "rank-order", 1, "document 'd1' of topic '1' has rank 1 and score 1, but rank 2 has 2", True, ("order",)),
    Broken("lines out of order", row(2) + row(1), "order", 2, "the score rises to -1 after -2", True),
    Broken("a document twice", row(1) + row(2) + row(3, docid="d1"), "duplicate", 3, "document 'd1' again in topic '1' (first on line 1)", False),
    Broken("a document twice with one score", row(1) + row(2, docid="d1", score="-1"), "duplicate", 2, "again", False, ("ties",)),
    Broken("a tie", row(1) + row(2, score="-1.0"), "ties", 2, "2 documents of topic '1' from rank 1 on have one score, '-1.0' ('d1', 'd2')", True),
    Broken("zeros of both signs", row(1, score="0.0") + row(2, score="-0.0"), "ties", 2, "one score", True),
    Broken("a tie in float32 alone", row(1, score="16777217") + row(2, score="16777216"), "float32", 2, "one score in float32", True),
    Broken("scores that vanish in float32", row(1, score="1e-60") + row(2, score="1e-61"), "float32", 2, "in float32", True),
    Broken("NaN", row(1, score="nan"), "non-finite", 1, "score 'nan'", True),
    Broken("infinity", row(1, score="inf"), "non-finite", 1, "score 'inf'", True),
    Broken("a score past float32", row(1, score="1e39"), "non-finite", 1, "score '1e39'", True),
    Broken("a score past everything", row(1, score="-1e999"), "non-finite", 1, "score '-1e999'", True),
    Broken("a word for a score", row(1, score="high"), "score", 1, "score 'high' is no number", False),
    Broken("a decimal comma", row(1, score="1,5"), "score", 1, "score '1,5'", False),
    Broken("thousands as Python has them", row(1, score="1_000"), "score", 1, "score '1_000'", True),
    Broken("a hexadecimal score", row(1, score="0x10"), "score", 1, "score '0x10'", False),
    Broken("two signs", row(1, score="--1"), "score", 1, "score '--1'", False),
    Broken("two points", row(1, score="1.2.3"), "score", 1, "score '1.2.3'", False),
    Broken("a sign alone", row(1, score="-"), "score", 1, "score '-'", False),
    Broken("a topic in two places", row(1) + row(1, qid="2") + row(2), "scattered", 3, "topic '1' again after other topics", True),
    Broken("two tags", row(1) + row(2, tag="u"), "tags", 2, "tag 'u', not 't'", True),
    Broken("a tag no checker takes", row(1, tag="my.run!"), "tag", 1, "tag 'my.run!'", True),
    Broken("a tag too long", row(1, tag="x" * 21), "tag", 1, "tag 'xxxxx", True),
    Broken("CRLF", row(1).replace("\n", "\r\n") * 1, "crlf", 1, "lines end in CR LF", True),
    Broken("CRLF further down", row(1) + row(2).replace("\n", "\r\n"), "crlf", 2, "lines end in CR LF", True),
    Broken("tabs", row(1) + row(2).replace(" ", "\t"), "separators", 2, r"tabs and blanks in '1\tQ0\td2\t2\t-2\tt'", True),
    Broken("columns set with blanks", row(1) + "1  Q0 d2 2 -2 t \n", "separators", 2, "white space is not one blank", True),
    Broken("blanks before a line", " " + row(1), "separators", 1, "white space is not one blank", True),
    Broken("no line feed at the end", row(1) + row(2)[:-1], "last-line", 2, "no line feed at the end of '1 Q0 d2 2 -2 t'", True),
    Broken("a byte order mark", b"\xef\xbb\xbf" + row(1).encode(), "bom", 1, "a byte order mark", True),
    Broken("UTF-16", row(1).encode("utf-16"), "unreadable", 1, "UTF-16", False),
    Broken("Latin-1", row(1).encode() + row(2, docid="é").encode("latin1"), "encoding", 2, "not UTF-8 (byte 6 of the line is 0xe9)", False),
    Broken("a return without a line feed", row(1) + row(2).replace("\n", "\r") + row(3), "return", 2, "a carriage return in", True),
    Broken("a return between words", row(1) + "1 Q0\rd2 2 -2 t\n", "return", 2, "a carriage return in", False),
    Broken("gzip under another name", gzip.compress(row(1).encode()), "unreadable", 1, "gzip data: name it .gz", False),
    Broken("zip", b"PK\x03\x04" + bytes(99), "unreadable", 1, "zip data: unpack it first", False),
    Broken("a null byte", row(1) + row(2, docid="d\0"), "control", 2, r"a control character in '1 Q0 d\x00", True),
    Broken("an escape sequence", row(1) + row(2, docid="\x1b[31m"), "control", 2, r"'1 Q0 \x1b[31m 2", True),
    Broken("a blank that is none to C", row(1) + row(2, docid="d\u00a02"), "unicode-space", 2, r"'\xa0' in", False),
    Broken("a word of many bytes", row(1) + row(2, docid="d" * 2000), "long-id", 2, "a word of 2,000 bytes", True),
    Broken("a line without end", row(1) + "x" * (3 << 20), "unreadable", 2, "a line longer than", False),
    Broken("an id that pandas loses", row(1, docid="NA"), "pandas-id", 1, "document id 'NA'", True),
    Broken("a topic that pandas changes", row(1, qid="007"), "pandas-id", 1, "topic id '007'", True),
    Broken("too deep", "".join(row(i) for i in range(1, 1003)), "depth", 1001, "1,002 documents in topic '1'", True),
]  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_every_broken_run_is_told_with_its_line(case: Broken, tmp_path: Path) -> None:
    """The kind, the line and the message; nothing else is claimed, and nothing crashes."""
    report = checked(tmp_path, case.data)
    assert set(found(report)) == {case.kind, *case.others}
    first = next(finding for finding in report.findings if finding.kind == case.kind)
    assert first.line == case.line
    assert case.message in first.message
    for line in report.findings.lines(report.path):
        assert line.isprintable()


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_what_pytrec_eval_makes_of_it(case: Broken, tmp_path: Path) -> None:
    """Where its reader stops we say error; what it swallows and we call an error is listed here."""
    data = case.data.encode() if isinstance(case.data, str) else case.data
    try:
        pytrec_eval.parse_run(io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        read = True
    except (ValueError, AssertionError):
        read = False
    assert read == case.read_by_pytrec_eval
    report = checked(tmp_path, data)
    if not read:
        assert report.errors
    elif report.errors:
        assert case.kind in (
            "bom", "control", "empty", "long-id", "non-finite", "return", "score"
        )  # fmt: skip


def test_a_good_run_has_nothing(tmp_path: Path) -> None:
    """No finding, and one line of what it holds."""
    report = checked(tmp_path, GOOD)
    assert found(report) == {}
    assert report.summary().endswith("run: TREC run, 4 lines, 2 topics, depth 2, tag 't': all well")


def test_every_kind_says_what_it_does_and_how_to_mend_it() -> None:
    """One line each, without a full stop, as it will stand in the middle of a line."""
    for name, kind in KINDS.items():
        assert kind.severity in ("error", "warning"), name
        for text in (kind.effect, kind.mend, kind.advice(run=False)):
            assert text
            assert text.isprintable()
            assert not text.endswith(".") or text.endswith("...")


def test_a_finding_is_one_line_of_place_message_effect_and_mend(tmp_path: Path) -> None:
    """As compilers print it, so that editors find the place."""
    report = checked(tmp_path, row(1) + row(2, docid="d1"))
    (line,) = report.findings.lines("my.run")
    assert line == (
        "my.run:2: error [duplicate]: document 'd1' again in topic '1' (first on line 1); trec_eval "
        "stops; others count the document twice or keep either score; keep one line; --fix OUT "
        "keeps the best"
    )


def test_repeated_findings_are_counted_and_only_some_named(tmp_path: Path) -> None:
    """Three of a kind are named, the others counted; --max names more."""
    data = "".join(row(i, q0="0") for i in range(1, 51))
    report = checked(tmp_path, data)
    lines = list(report.findings.lines("r"))
    assert len(lines) == 4
    assert lines[-1] == "r: warning [q0]: 47 more, 50 in all"
    assert len(list(checked(tmp_path, data, shown=100).findings.lines("r"))) == 50


def test_errors_come_first_and_then_by_line(tmp_path: Path) -> None:
    """What makes the exit code is read first."""
    report = checked(tmp_path, row(1, q0="0") + row(2) + row(3, docid="d2"))
    assert [(f.severity, f.line) for f in report.findings] == [("error", 3), ("warning", 1)]


def test_gzip_is_read_by_name_and_damage_is_found(tmp_path: Path) -> None:
    """A cut .gz file is an error with the line reached, never a crash."""
    path = tmp_path / "a.run.gz"
    packed = gzip.compress("".join(row(i) for i in range(1, 900)).encode())
    path.write_bytes(packed)
    assert found(check(path)) == {}
    path.write_bytes(packed[:-20])
    assert "unreadable" in found(check(path))
    path.write_bytes(b"no gzip at all")
    assert "unreadable" in found(check(path))
    with pytest.raises(StorageError, match="no such file"):
        check(tmp_path / "absent")


# ---------------------------------------------------------------- ties, topics, documents


def test_ties_say_which_cut_offs_they_can_change(tmp_path: Path) -> None:
    """Topics whose ties begin within a cut-off, and those that lie across it."""
    data = ""
    for qid, tied in (("1", (9, 10)), ("2", (10, 11)), ("3", (50, 51)), ("4", ())):
        for i in range(1, 61):
            data += row(i, qid=qid, score=f"{-tied[0] if i in tied else -i}")
    report = checked(tmp_path, data)
    assert found(report) == {"ties": 3}
    assert report.findings.notes["ties"] == (
        "ties in 3 of 4 topics; within the first 10 in 2 (across that cut-off in 1); within the "
        "first 100 in 3; within the first 1,000 in 3"
    )


def test_ties_that_cannot_change_a_measure_say_so(tmp_path: Path) -> None:
    """With judgements: only tied documents of different grades can; unjudged is not relevant."""
    data = row(1) + row(2, score="-1") + row(3)
    qrels = tmp_path / "qrels"
    for text, note in (
        ("1 0 d3 1\n", "all tied documents have the same grade: no measure can change"),
        ("1 0 d1 1\n1 0 d2 1\n", "all tied documents have the same grade"),
        ("1 0 d1 1\n1 0 d2 0\n", "differ in grade in 1, within the first 10 in 1"),
        ("1 0 d1 2\n", "differ in grade in 1, within the first 10 in 1"),
    ):
        qrels.write_text(text)
        assert note in checked(tmp_path, data, qrels=qrels).findings.notes["ties"]


def test_missing_and_unknown_topics(tmp_path: Path) -> None:
    """Against topics both are errors; against judgements, topics of the run alone are a warning."""
    (tmp_path / "topics").write_text("1\tone\n3\tthree\n")
    (tmp_path / "qrels").write_text("1 0 a 1\n4 0 a 1\n")
    report = checked(tmp_path, GOOD, topics=tmp_path / "topics")
    assert found(report) == {"missing-topic": 1, "unknown-topic": 1}
    assert any("topic '3' of" in finding.message for finding in report.findings)
    report = checked(tmp_path, GOOD, qrels=tmp_path / "qrels")
    assert found(report) == {"missing-topic": 1, "unjudged-topic": 1}


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    """One error instead of one for each topic, with the likely reason."""
    (tmp_path / "topics").write_text("001\tone\n002\ttwo\n")
    report = checked(tmp_path, GOOD, topics=tmp_path / "topics")
    assert found(report) == {"no-topic": 1}
    assert "but for zeros in front" in next(iter(report.findings)).message


def test_unknown_documents(tmp_path: Path) -> None:
    """Against a collection; ids beyond ASCII and long ones are compared whole."""
    long = "d" * 40
    (tmp_path / "c.tsv").write_text(f"a\tone\n{long}1\ttwo\né\tthree\n", encoding="utf-8")
    data = (
        row(1, docid="a") + row(2, docid=f"{long}1") + row(3, docid="é") + row(4, docid=f"{long}2")
    )
    report = checked(tmp_path, data, collection=str(tmp_path / "c.tsv"))
    assert found(report) == {"unknown-document": 1}
    assert next(iter(report.findings)).line == 4


@pytest.mark.jvm
def test_unknown_documents_of_an_index(tmp_path: Path) -> None:
    """The same against a Lucene index."""
    from pipeline.index import IndexSettings, index

    (tmp_path / "c.tsv").write_text("a\tone\nb\ttwo\nx\tthree\n")
    index(IndexSettings(tmp_path / "c.tsv", tmp_path / "index"))
    report = checked(tmp_path, GOOD, index=tmp_path / "index")
    assert found(report) == {"unknown-document": 1}
    assert "document 'y' of topic '2'" in next(iter(report.findings)).message


# ---------------------------------------------------------------- however the file is cut


def test_findings_do_not_depend_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics, lines and CRLF across the border of two blocks are found alike."""
    chance = random.Random(3)
    data = "".join(
        row(i, qid=str(q), docid=f"d{chance.randrange(60)}", score=f"{chance.randrange(40)}")
        + ("\n" if chance.random() < 0.02 else "")
        for q in range(40)
        for i in range(1, 30)
    ).replace("d7 ", "d7\u00a0 ")
    whole = checked(tmp_path, data, shown=10_000).record()
    assert len(whole["kinds"]) > 5
    read = streaming.chunks
    for size in (37, 501, 4096):
        monkeypatch.setattr(streaming, "chunks", lambda *a, size=size: read(*a, size))
        assert checked(tmp_path, data, shown=10_000).record() == whole


def test_a_topic_of_any_size_is_one_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a million documents there is one error, and reading goes on in bounded memory."""
    monkeypatch.setattr(streaming, "MAX_DOCS", 1000)
    report = checked(tmp_path, "".join(row(i) for i in range(1, 60_000)), depth=100_000)
    assert found(report)["huge"] >= 1
    assert report.errors == found(report)["huge"]


def test_scattered_topics_are_checked_whole(tmp_path: Path) -> None:
    """Duplicates and ties are found between lines that lie far apart."""
    lines = [row(i, qid=str(q)) for q in range(30) for i in range(1, 40)]
    random.Random(5).shuffle(lines)
    report = checked(tmp_path, "".join(lines))
    assert report.errors == 0
    assert report.facts["topics"] == 30
    assert report.facts["depth"] == "39"
    report = checked(tmp_path, "".join([*lines, row(9, qid="3", score="-5")]))
    assert found(report)["duplicate"] == 1
    assert found(report)["ties"] == 1
    assert next(iter(report.findings)).message.startswith("document 'd9' again in topic '3'")


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.integers(-(10**18), 10**18).map(str),
    st.decimals(-1000, 1000, places=6).map(str),
    st.text("0123456789.-+e", min_size=1, max_size=25),
)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_numbers_are_read_as_python_reads_them(words: list[str]) -> None:
    """To the last bit, in every spelling; what float() refuses is no number."""
    import numpy as np

    from pipeline.columns import in_columns

    block = in_columns("".join(f"x {w}\n" for w in words).encode(), 2, np.arange(len(words)))
    values, none = block.decimals(1)
    for line, word in enumerate(words):
        try:
            expected = float(word)
        except ValueError:
            assert line in none
            continue
        assert line not in none
        assert values[line] == expected
        assert np.signbit(values[line]) == np.signbit(expected)


ROWS = st.tuples(
    st.sampled_from(["1", "2", "03", "q"]),
    st.sampled_from(["a", "b", "c", "NA", "é", "d" * 9]),
    st.sampled_from(["1", "2", "0", "x"]),
    st.sampled_from(["1.0", "1", "0.5", "nan", "1e39", "16777217", "16777216", "1_0", "x"]),
)


@given(st.lists(ROWS, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_a_run_without_errors_is_read_by_everybody(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], end: str
) -> None:
    """No error found: pytrec_eval and our reader take the file; refused by ours: an error found."""
    path = tmp_path_factory.mktemp("runs") / "run"
    data = "".join(f"{q} Q0 {d} {r} {s} t{end}" for q, d, r, s in rows)
    path.write_bytes(data.encode())
    report = check(path)
    if not report.errors:
        pytrec_eval.parse_run(io.StringIO(data))
    try:
        list(read_run(path))
        problem = ""
    except InputError as error:
        problem = error.message
    if "again after other topics" not in problem:
        assert bool(report.errors) == bool(problem)


@given(st.binary(max_size=300))
def test_any_bytes_are_checked(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Nothing from a stranger's file crashes the checker or reaches a terminal unescaped."""
    path = tmp_path_factory.mktemp("bytes") / "run"
    path.write_bytes(data)
    for kind in (None, "trec", "msmarco", "qrels", "topics"):
        try:
            report = check(path, format=kind)
        except PipelineError as error:
            pytest.fail(f"{kind}: {error.message}")
        assert all(line.isprintable() for line in report.findings.lines(path))
        assert report.summary().isprintable()
