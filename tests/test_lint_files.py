"""Checking MS MARCO runs, judgements and topics; mending runs; the command."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import ENVIRONMENT
from killing import contents, run
from refusal import refused

from pipeline.errors import CheckFailedError, PipelineError
from pipeline.lint.check import LintSettings, lint, told
from pipeline.lint.findings import Report
from pipeline.lint.lines import rereadable
from pipeline.trec import read_run

MARCO = "".join(f"{q}\t{1000 + p}\t{p}\n" for q in (7, 9) for p in range(1, 1001))


def check(path: Path, **settings: object) -> Report:
    (report,) = lint([path], LintSettings(**settings))  # type: ignore[arg-type]
    return report


def checked(tmp_path: Path, data: str, **settings: object) -> dict[str, int]:
    path = tmp_path / "file"
    path.write_text(data, encoding="utf-8")
    return check(path, **settings).findings.counts


# ---------------------------------------------------------------- telling files apart


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1 Q0 a 1 2.0 t\n", "trec"),
        ("\n# comment\n1 0 a 1 2.0 t\n", "trec"),
        ("1\tQ0\ta\t1\t2.0\tt\n", "trec"),
        ("1 Q0 a\n", "trec"),
        ("", "trec"),
        ("7\t12\t1\n", "msmarco"),
        ("1 0 a 1\n", "qrels"),
        ("1\t0\ta\t-1\n", "qrels"),
        ("query-id\tcorpus-id\tscore\n1\ta\t1\n", "qrels"),
        ("1\twhat is it\n", "topics"),
        ("1\twhat is 3\n", "topics"),
        ("1\ta question of five words\n", "topics"),
        ('{"_id": "1", "text": "what"}\n', "topics"),
        ("<top>\n<num> 1\n", "topics"),
    ],
)
def test_files_are_told_apart_by_their_first_line(tmp_path: Path, text: str, kind: str) -> None:
    """Runs of TREC and of MS MARCO, judgements, topics."""
    (tmp_path / "file").write_text(text)
    with rereadable(tmp_path / "file") as again:
        assert told(again) == kind


# ---------------------------------------------------------------- MS MARCO


def test_a_good_msmarco_run_has_nothing(tmp_path: Path) -> None:
    """A thousand passages for each query, tabs between."""
    assert checked(tmp_path, MARCO) == {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("7\t1003\t3\n", "7\t1003\t2\n"), {"rank-twice": 1}),
        (("7\t1003\t3\n", "7\t1003\t1001\n"), {"rank-limit": 1, "rank-gaps": 1}),
        (("7\t1003\t3\n", "7\t1003\t0\n"), {"rank-limit": 1, "rank-gaps": 1}),
        (("7\t1003\t3\n", ""), {"rank-gaps": 1, "shallow": 1}),
        (("7\t1003\t3\n", "7\t1002\t3\n"), {"pid-twice": 1}),
        (("7\t1003\t3\n", "7\tx3\t3\n"), {"not-integer": 1}),
        (("7\t1003\t3\n", "q\t1003\t3\n"), {"not-integer": 1, "rank-gaps": 2, "scattered": 1,
                                            "shallow": 1}),
        (("7\t1003\t3\n", "7 1003 3\n"), {"tabs": 1}),
        (("7\t1003\t3\n", "7\t1003\n"), {"columns": 1, "rank-gaps": 1, "shallow": 1}),
    ],
)  # fmt: skip
def test_what_ms_marcos_evaluator_would_trip_over(
    tmp_path: Path, change: tuple[str, str], found: dict[str, int]
) -> None:
    """Ranks that overwrite each other, stop it, or leave holes; words where it wants numbers."""
    assert checked(tmp_path, MARCO.replace(*change)) == found


def test_documents_of_ms_marco_begin_with_d(tmp_path: Path) -> None:
    """Runs over documents go to depth 100."""
    data = "".join(f"7\tD{p}\t{p}\n" for p in range(1, 101))
    assert checked(tmp_path, data) == {}


# ---------------------------------------------------------------- judgements and topics


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1 0 a 1\n1 0 b 0\n", {}),
        ("query-id\tcorpus-id\tscore\n1\ta\t1\n", {}),
        ("1 0 a 1\n1 0 a 1\n", {"judged-twice": 1}),
        ("1 0 a 1\n1 0 b\n", {"qrels-columns": 1}),
        ("1 0 a 1\n1 0 b x\n1 0 c 1.5\n", {"grade": 2}),
        ("1 0 a 1\n1 0 b 9999999\n", {"grade": 1}),
        ("1 0 a 1\n1 0 b -2\n", {"negative": 1}),
        ("1 0 a 1\n2 0 b 0\n", {"no-relevant": 1}),
        ("1 0 a 1\n\n", {"blank": 1}),
        ("1 0  a 1\n", {"separators": 1}),
        ("1 0 a 1\r\n", {"crlf": 1}),
        ("007 0 a 1\n", {"pandas-id": 1}),
        ("1 0 a 1", {"last-line": 1}),
        ("query-id\tcorpus-id\tscore\n1 a 1\n", {"separators": 1}),
        ("1\t0\ta\t1\n1\t0\tb\t1\n", {}),
        ("1\t0\ta\t1\n1 0 b 1\n", {"separators": 1}),
    ],
)
def test_judgements(tmp_path: Path, text: str, found: dict[str, int]) -> None:
    """Whatever stops trec_eval, and what moves an average."""
    assert checked(tmp_path, text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1\tone\n2\ttwo\n", {}),
        ("1\tone\n1\ttwo\n", {"topic-twice": 1}),
        ("1\tone\n2 two\n3\t\n", {"topic": 2}),
        ("1\tone\n\n", {"blank-topic": 1}),
        ("1 a\tone\n", {"topic": 1}),
        ("NA\tone\n", {"pandas-id": 1}),
        ('{"id": "1", "text": "one"}\n{"id": "2"}\n{', {"topic": 2, "last-line": 1}),
        ("<top>\n<num> 1\n<title> one\n</top>\n", {}),
        ("<top>\n<num> 1\n<title> one\n", {"topic": 1}),
        ("<top>\n<title> one\n</top>\n", {"topic": 1}),
    ],
)
def test_topics(tmp_path: Path, text: str, found: dict[str, int]) -> None:
    """TSV, JSONL and TREC; all faults of the first two, the first one of the last."""
    assert checked(tmp_path, text) == found


def test_what_is_no_run_is_not_mended_by_fix(tmp_path: Path) -> None:
    """The advice says what can be done with judgements and topics."""
    (tmp_path / "qrels").write_bytes(b"# made by hand\n1 0 a 1\r\n\n1 0  b 1")
    (report,) = lint([tmp_path / "qrels"], LintSettings())
    assert len(report.findings.counts) == 5
    lines = list(report.findings.lines("q"))
    assert not any("--fix" in line for line in lines), lines
    assert not any(kind["fixed"] for kind in report.record()["kinds"].values())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("qid\tpid\trank\n7\t1\t1\n", "MS MARCO run"),
        ("7\tsome\t0.5\n", "MS MARCO run"),
        ("qid\titer\tdocno\trank\tsim\trun\n1\tQ0\ta\t1\t2\tt\n", "TREC run"),
        ("1 Q0 a 1\n", "TREC run"),
        ("1\t0\ta\thigh\n", "judgements"),
        ("1\tone query\tof two\n", "topics"),
        ("1\tthree words here\n", "topics"),
    ],
)
def test_tables_are_told_from_topics(tmp_path: Path, text: str, kind: str) -> None:
    """A file of columns is not taken for topics because it has tabs: all would seem well."""
    (tmp_path / "file").write_text(text)
    (report,) = lint([tmp_path / "file"], LintSettings())
    assert report.kind == kind


def test_missing_topics_are_named_in_the_order_of_their_file(tmp_path: Path) -> None:
    """The same call prints the same lines."""
    (tmp_path / "topics").write_text("".join(f"{q}\tsome words\n" for q in (5, 30, 4, 1)))
    (tmp_path / "run").write_text("1 Q0 a 1 1 t\n")
    (report,) = lint([tmp_path / "run"], LintSettings(topics=tmp_path / "topics"))
    assert [f.message.split()[1] for f in report.findings] == ["'5'", "'30'", "'4'"]


def test_real_judgements_and_topics_are_well(collections: Path) -> None:
    """The real collections' own files hold no error."""
    files = [*sorted(collections.glob("*/qrels*.txt")), *sorted(collections.glob("*/topics*.tsv"))]
    assert files
    for report in lint(files, LintSettings()):
        assert report.errors == 0, list(report.findings.lines(report.path))


# ---------------------------------------------------------------- mending

MESSY = (
    "\ufeff# made by hand\r\n"
    "2 q0 b 0 1.0 my_tag\r\n"
    "1\tQ0\ta\t7\t16777216\tother\r\n"
    "\r\n"
    "2 Q0  a 5 1.0 my_tag\r\n"
    "1 Q0 b 7 16777217 my_tag\r\n"
    "2 Q0 c x 2.5 my_tag\r\n"
    "2 Q0 a 9 0.5 my_tag"
)


def mend(tmp_path: Path, data: str, **settings: object) -> Path:
    path, out = tmp_path / "file", tmp_path / "fixed.run"
    path.write_bytes(data.encode())
    list(lint([path], LintSettings(fix=out, **settings)))  # type: ignore[arg-type]
    return out


def test_everything_a_program_can_mend_is_mended(tmp_path: Path) -> None:
    """trec_eval 9's order, falling scores, ranks, one tag, one blank, topics as first seen."""
    out = mend(tmp_path, MESSY)
    assert out.read_text() == (
        "2 Q0 c 1 2.5 my_tag\n"
        "2 Q0 b 2 1.0 my_tag\n"
        "2 Q0 a 3 0.99999994 my_tag\n"
        "1 Q0 b 1 1.6777216e+07 my_tag\n"
        "1 Q0 a 2 1.6777215e+07 my_tag\n"
    )
    assert check(out).findings.counts == {}


def test_a_mended_run_is_the_run_that_trec_eval_saw(tmp_path: Path) -> None:
    """Same documents in the same order as our reader, which goes by trec_eval 9, has them."""
    chance = random.Random(1)
    rows = [
        f"{qid} Q0 d{docid} 0 {chance.randrange(10) / 3} t\n"
        for qid in range(20)
        for docid in chance.sample(range(100), 30)
    ]
    out = mend(tmp_path, "".join(rows))
    before, after = ([(r.qid, [d.docid for d in r.docs]) for r in read_run(path)]
                     for path in (tmp_path / "file", out))  # fmt: skip
    assert before == after
    assert check(out).findings.counts == {}
    first = out.read_bytes()
    chance.shuffle(rows)
    order = list(dict.fromkeys(line.split()[0] for line in rows))
    out = mend(tmp_path, "".join(rows))
    assert sorted(out.read_bytes().splitlines()) == sorted(first.splitlines())
    assert [ranking.qid for ranking in read_run(out)] == order


@pytest.mark.parametrize(
    "bad", ["1 Q0 a 1 nan t\n", "1 Q0 a t\n", "1 Q0 a 1 x t\n", "1 Q0 \0 1 1 t\n"]
)
def test_what_only_its_author_can_mend_stops_the_mending(tmp_path: Path, bad: str) -> None:
    """Nothing is written, and an older file stays."""
    (tmp_path / "fixed.run").write_text("before\n")
    with refused(
        "nothing written: 1 errors that only you can mend", "mend these", CheckFailedError
    ):
        mend(tmp_path, "1 Q0 z 1 1 t\n" + bad)
    assert (tmp_path / "fixed.run").read_text() == "before\n"


def test_a_full_disk_is_named_as_the_one_it_is(tmp_path: Path) -> None:
    """Standard output, not the folder of scratch files, whatever lies apart."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "apart.run").write_text("1 Q0 a 1 3 t\n2 Q0 a 1 3 t\n1 Q0 b 2 2 t\n")
    (tmp_path / "good.run").write_text(GOOD)
    for words in (["apart.run", "--fix", "-"], ["good.run", "--fix", "-"], ["good.run"],
                  ["good.run", "--json"]):  # fmt: skip
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "pipeline", "lint", *words],
                stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRONMENT, text=True,
                check=False,
            )  # fmt: skip
        assert done.returncode == 1
        *_, message, _hint = done.stderr.splitlines()
        assert message == "pipeline: standard output: the disk is full"
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_a_run_is_not_mended_in_its_own_place(tmp_path: Path) -> None:
    """What the mending leaves out could not be looked at any more."""
    (tmp_path / "my.run").write_text(TWICE)
    done = run("lint", "my.run", "--fix", "./my.run", cwd=tmp_path)
    assert done.returncode == 1
    assert "my.run: is also an input" in done.stderr
    assert (tmp_path / "my.run").read_text() == TWICE


def test_an_illegal_tag_needs_another(tmp_path: Path) -> None:
    """No tag is invented."""
    data = "1 Q0 a 1 1 my.run!\n"
    with refused("the run's tag 'my.run!' is not legal everywhere", "--tag NAME"):
        mend(tmp_path, data)
    assert mend(tmp_path, data, tag="mine").read_text() == "1 Q0 a 1 1.0 mine\n"


def test_msmarco_runs_are_mended_in_their_own_form(tmp_path: Path) -> None:
    """By rank, equal ranks by line, numbered from 1, each passage once."""
    out = mend(tmp_path, "7\t12\t3\n7\t11\t3\n7 10 1\n7\t12\t9\n")
    assert out.read_text() == "7\t10\t1\n7\t12\t2\n7\t11\t3\n"


def test_judgements_are_not_mended(tmp_path: Path) -> None:
    """--fix is for runs."""
    with refused("only runs are mended, and these are judgements", "leave --fix out"):
        mend(tmp_path, "1 0 a 1\n")


# ---------------------------------------------------------------- the command

GOOD = "1 Q0 a 1 3.5 t\n1 Q0 b 2 2.5 t\n"
TIED = "1 Q0 a 1 3.5 t\n1 Q0 b 2 3.5 t\n"
TWICE = "1 Q0 a 1 3.5 t\n1 Q0 a 2 2.5 t\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("good", GOOD), ("tied", TIED), ("twice", TWICE)):
        (tmp_path / f"{name}.run").write_text(text)
    (tmp_path / "qrels").write_text("1 0 a 1\n")
    return tmp_path


def test_exit_codes(folder: Path) -> None:
    """0 well, 0 warnings, 3 errors, 1 not readable, 2 usage; nothing is written."""
    before = contents(folder)
    for words, code in (
        (["good.run"], 0), (["tied.run"], 0), (["twice.run"], 3), (["good.run", "twice.run"], 3),
        (["absent.run"], 1), ([], 2), (["good.run", "--max", "0"], 2),
        (["good.run", "--format", "run"], 1), (["good.run", "--tag", "x"], 1),
        (["good.run", "tied.run", "--fix", "x"], 1), (["-", "--qrels", "-"], 1),
        (["good.run", "--index", "i", "--collection", "c"], 1),
        (["good.run", "--fix", "-", "--json"], 1),
        (["good.run", "--fix", "x", "--tag", "a b"], 1),
    ):  # fmt: skip
        done = run("lint", *words, cwd=folder)
        assert done.returncode == code, (words, done.stderr)
        assert "Traceback" not in done.stderr
    assert contents(folder) == before


def test_one_line_a_finding_and_one_a_file(folder: Path) -> None:
    """Findings, then what the file holds, on standard output."""
    done = run("lint", "good.run", "tied.run", "qrels", cwd=folder)
    lines = done.stdout.splitlines()
    assert lines[0] == "good.run: TREC run, 2 lines, 1 topics, depth 2, tag 't': all well"
    assert lines[1].startswith(
        "tied.run:2: warning [ties]: 2 documents of topic '1' from rank 1 on"
    )
    assert lines[2].startswith("tied.run: warning [ties]: ties in 1 of 1 topics")
    assert lines[3].endswith(": 1 warning")
    assert lines[4] == "qrels: judgements, 1 topics, 1 judgements, grades 1: all well"


def test_json(folder: Path) -> None:
    """Everything for machines, with a schema."""
    done = run("lint", "twice.run", "--json", cwd=folder)
    assert done.returncode == 3
    value = json.loads(done.stdout)
    assert (value["schema"], value["errors"]) == (1, 1)
    (file,) = value["files"]
    assert (file["path"], file["kind"], file["lines"]) == ("twice.run", "TREC run", 2)
    assert file["kinds"]["duplicate"]["count"] == 1
    assert file["kinds"]["duplicate"]["fixed"] is True
    assert file["findings"][0]["line"] == 2


def test_standard_input_and_output(folder: Path) -> None:
    """A run from a pipe, mended into a pipe; findings then go to standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "lint", "-", "--fix", "-"],
        input=TWICE + "2 Q0 a 1 1 t\n1 Q0 z 1 1 t\n",
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 Q0 a 1 3.5 t\n1 Q0 z 2 1.0 t\n2 Q0 a 1 1.0 t\n"
    assert "standard input:2: error [duplicate]" in done.stderr
    assert "standard output: written: 2 topics, 3 lines, 1 repeated documents" in done.stderr


def test_fixing_ends_well_unless_errors_remain(folder: Path) -> None:
    """A missing topic cannot be made up: the mended run is written, the exit code stays 3."""
    (folder / "topics").write_text("1\tone\n2\ttwo\n")
    assert run("lint", "twice.run", "--fix", "a.run.gz", cwd=folder).returncode == 0
    assert (folder / "a.run.gz").exists()
    done = run("lint", "twice.run", "--topics", "topics", "--fix", "b.run", cwd=folder)
    assert done.returncode == 3
    assert (folder / "b.run").read_text() == "1 Q0 a 1 3.5 t\n"


def test_errors_that_only_the_author_can_mend_exit_with_3(folder: Path) -> None:
    """The findings are printed first, then why nothing was written."""
    (folder / "nan.run").write_text("1 Q0 a 1 nan t\n")
    done = run("lint", "nan.run", "--fix", "x.run", cwd=folder)
    assert done.returncode == 3
    assert "nan.run:1: error [non-finite]" in done.stdout
    assert "nothing written" in done.stderr
    assert not (folder / "x.run").exists()


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    """References that cannot be read end the check before a line is read."""
    (tmp_path / "file").write_text(GOOD)
    with pytest.raises(PipelineError, match="no such"):
        check(tmp_path / "file", qrels=tmp_path / "absent")
    with pytest.raises(PipelineError, match="no such collection"):
        check(tmp_path / "file", collection=str(tmp_path / "absent"))


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """Ten times the lines take hardly more memory."""
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    used = []
    for topics in (40, 400):
        path = tmp_path / f"{topics}.run"
        with path.open("w") as out:
            for qid in range(topics):
                out.writelines(f"{qid} Q0 d{i}x{qid} {i} {-i} t\n" for i in range(1, 1001))
        command = [sys.executable, "-m", "pipeline", "lint", str(path)]
        measured = subprocess.check_output([sys.executable, "-c", measure, *command], text=True)
        used.append(int(measured))
    assert used[1] < 1.3 * used[0]
