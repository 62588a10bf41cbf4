"""Judgements: TREC's four columns, BEIR's three, and every bad line named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from folders import file_of
from refusal import refused

from pipeline.errors import InputError
from pipeline.trec import (
    read_qrels,
    read_run,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "text",
    [
        "1 0 a 2\n1 0 b 0\n2 0 a -1\n",
        "\ufeff1\t0\ta\t+2\r\n1\t0\tb\t00\r\n2\t0\ta\t-1\r\n",
        "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n2\ta\t-1\n",
        "\ufeffquery-id\tcorpus-id\tscore\r\n1\ta\t2\r\n1\tb\t0\r\n2\ta\t-1",
        "1 0 a 2\n2 0 a -1\n1 0 b 0",
    ],
)
@pytest.mark.parametrize("name", ["qrels.txt", "qrels.txt.gz"])
def test_qrels_as_they_come(tmp_path: Path, text: str, name: str) -> None:
    """TREC's four columns or BEIR's three under their header, in any order."""
    path = file_of(tmp_path, text, name)
    assert read_qrels(path) == {"1": {"a": 2, "b": 0}, "2": {"a": -1}}


BAD_QRELS = {
    "empty": (b"", "", "there are no judgements", "how the file was written"),
    "header only": (b"query-id corpus-id score\n", "", "there are no judgements", "written"),
    "three columns": (b"1 a 2\n", ":1", "3 columns instead of 4 in '1 a 2'", "need their header"),
    "run": (b"1 Q0 a 1 2.0 t\n", ":1", "6 columns instead of 4", "qid 0 docid grade"),
    "four under header": (
        b"query-id corpus-id score\n1 0 a 2\n",
        ":2",
        "4 columns instead of 3",
        "a qrels line is",
    ),
    "empty line": (b"1 0 a 2\n\n", ":2", "an empty line", "grep -v"),
    "no number": (b"1 0 a high\n", ":1", "grade 'high' is no whole number", "0, 1, 2"),
    "fraction": (b"1 0 a 1.0\n", ":1", "grade '1.0' is no whole number", "0, 1, 2"),
    "other digits": ("1 0 a ٣\n".encode(), ":1", "grade '٣' is no whole number", "0, 1, 2"),
    "huge": (b"1 0 a 99999999999\n", ":1", "is no whole number", "0, 1, 2"),
    "twice": (b"1 0 a 1\n1 0 b 1\n1 0 a 0\n", ":3", "document 'a' judged twice", "keep one"),
    "not UTF-8": (b"1 0 caf\xe9 1\n", ":1", r"id b'caf\xe9' is not UTF-8", "iconv"),
}


@pytest.mark.parametrize("case", BAD_QRELS)
def test_bad_qrels_are_refused_by_their_line(tmp_path: Path, case: str) -> None:
    """path:line: what is wrong; and what to do."""
    data, place, problem, hint = BAD_QRELS[case]
    path = file_of(tmp_path, data, "qrels.txt")
    with refused(f"{path}{place}: ", hint, InputError):
        read_qrels(path)
    with refused(problem, hint, InputError):
        read_qrels(path)


def test_runs_and_qrels_agree_on_what_an_id_is(tmp_path: Path) -> None:
    """White space is ASCII's in both: an odd space inside an id joins in both or in neither."""
    docid = "a\u00a0b\u2003c\x85d"
    (ranking,) = read_run(file_of(tmp_path, f"1 Q0 {docid} 1 1 t\n", "a.run"))
    qrels = read_qrels(file_of(tmp_path, f"1 0 {docid} 1\n", "qrels.txt"))
    assert ranking.docs[0].docid == docid
    assert qrels == {"1": {docid: 1}}


def test_the_tiny_qrels_fit_the_tiny_run(tiny: Path) -> None:
    """Every judged document of the tiny collection is spelled as in its run, or not retrieved."""
    qrels = read_qrels(tiny / "qrels.txt")
    assert qrels["5"] == {"NA": 1, "null": 1}
    assert qrels["6"] == {"naïve": 0}
    run = {r.qid: {d.docid for d in r.docs} for r in read_run(tiny / "bm25.run")}
    assert all(run[qid] & judged.keys() for qid, judged in qrels.items() if qid != "6")
    assert re.fullmatch("[1-6]", "".join(qrels.keys() - run.keys()))
