"""Evaluation: qrels and runs -> one table, its forms, and the stage of an experiment."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.assumptions import of_run, of_table
from pipeline.errors import InputError, PipelineError, StorageError
from pipeline.evaluate import EvaluateSettings, evaluate, evaluate_runs, recipe, run_names
from pipeline.stage import status
from pipeline.store import digest_file
from pipeline.tables import (
    as_json,
    check_per_topic,
    check_replaceable,
    latex,
    markdown,
    read_table,
    write_per_topic,
)
from pipeline.trec import read_qrels

QRELS = "1 0 a 1\n1 0 b 0\n2 0 x 2\n2 0 y 1\n3 0 n 0\n"
BEST = "1 Q0 a 1 2.0 best\n1 Q0 b 2 1.0 best\n2 Q0 x 1 2.0 best\n2 Q0 y 2 1.0 best\n"
WORSE = "2 Q0 u 1 3 w\n2 Q0 y 2 2 w\n9 Q0 a 1 1 w\n"


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Qrels and two runs in a folder."""
    (tmp_path / "qrels.txt").write_text(QRELS)
    (tmp_path / "best.run").write_text(BEST)
    with gzip.open(tmp_path / "worse.txt.gz", "wt") as packed:
        packed.write(WORSE)
    return tmp_path


def test_one_table_for_any_number_of_runs(files: Path) -> None:
    """Rows in the order given, means over all three judged topics, what is missing named."""
    heard = Heard()
    runs = [files / "best.run", files / "worse.txt.gz"]
    table = evaluate_runs(files / "qrels.txt", runs, ["RR@10", "NumRet", "AP"], heard)
    assert table.cells() == [
        ["run", "RR@10", "NumRet", "AP"],
        ["best", "0.6667", "4", "0.6667"],
        ["worse", "0.1667", "2", "0.0833"],
    ]
    assert table.topics == 3
    assert heard.notices == []
    assert list(of_table(table)) == [
        "qrels.txt: means over all 3 judged topics; 1 without a relevant document count 0 for "
        "every run: '3'",
        "relevant from grade 1 on in RR@10, AP, the default",
        "in every run ties change no measure",
    ]
    assert [sentence for row in table.rows for sentence in of_run(row)] == [
        "best: 1 of 3 judged topics have no answer and count zero: '3'",
        "best: Judged@10 is 0.6667",
        "best: at most 2 documents a topic, fewer than RR@10 look at",
        "worse: 2 of 3 judged topics have no answer and count zero: '1', '3'",
        "worse: 1 topics without judgements are ignored: '9'",
        "worse: Judged@10 is 0.1667",
        "worse: at most 2 documents a topic, fewer than RR@10 look at",
    ]
    assert heard.steps == [(1, 2, "runs"), (2, 2, "runs")]


def test_how_much_is_judged_is_said_whatever_is_asked(files: Path) -> None:
    """At the first rank that a measure cuts at, with the value that the measure Judged has."""
    runs = [files / "best.run", files / "worse.txt.gz"]
    table = evaluate_runs(files / "qrels.txt", runs, ["nDCG@2", "R@100"])
    asked = evaluate_runs(files / "qrels.txt", runs, ["nDCG@2", "Judged@2"])
    for row, same in zip(table.rows, asked.rows, strict=True):
        assert row.judged == (2, pytest.approx(same.evaluation.mean["Judged@2"]))
        value = f"{same.evaluation.mean['Judged@2']:.4f}"
        assert f"{row.name}: Judged@2 is {value}" in list(of_run(row))
        assert not any("Judged" in sentence for sentence in of_run(same))


def test_what_is_well_is_said_too(tmp_path: Path) -> None:
    """Topics that all are answered and have something relevant; no tie that matters."""
    (tmp_path / "q").write_text("1 0 a 1\n2 0 a 1\n")
    (tmp_path / "r").write_text("1 Q0 a 1 2 t\n2 Q0 a 1 2 t\n2 Q0 b 2 1 t\n")
    sentences = list(of_table(evaluate_runs(tmp_path / "q", [tmp_path / "r"])))
    assert sentences[0] == "q: means over all 2 judged topics, each with a relevant document"
    assert sentences[2] == "in the run every topic is answered and ties change no measure"


def test_default_measures(files: Path) -> None:
    """Without a choice: nDCG@10, RR@10, AP, R@1000 and Judged@10."""
    table = evaluate_runs(files / "qrels.txt", [files / "best.run"])
    assert table.measures == ("nDCG@10", "RR@10", "AP", "R@1000", "Judged@10")


def test_only_ten_topics_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    """A notice stays readable; the JSON has every topic."""
    (tmp_path / "q").write_text("".join(f"{q:03d} 0 a 1\n" for q in range(40)))
    (tmp_path / "r").write_text("000 Q0 a 1 1 t\n")
    table = evaluate_runs(tmp_path / "q", [tmp_path / "r"])
    assert next(of_run(table.rows[0])).endswith("'010' and 29 more")
    assert len(as_json(table)["runs"][0]["unanswered"]) == 39


def test_markdown(files: Path) -> None:
    """Columns aligned, numbers to the right, a bar in a name escaped."""
    (files / "best.run").rename(files / "a|b.run")
    table = evaluate_runs(files / "qrels.txt", [files / "a|b.run"], ["AP", "NumQ"])
    assert markdown(table.cells()) == (
        "| run  |     AP | NumQ |\n"
        "| ---- | -----: | ---: |\n"
        "| a\\|b | 0.6667 |    3 |\n"
    )  # fmt: skip


def test_latex(files: Path) -> None:
    """A tabular with booktabs' rules; what LaTeX would read as a command is escaped."""
    (files / "best.run").rename(files / "a_b&c.run")
    table = evaluate_runs(files / "qrels.txt", [files / "a_b&c.run"], ["AP"])
    assert latex(table.cells()) == (
        "\\begin{tabular}{lr}\n\\toprule\nrun & AP \\\\\n\\midrule\n"
        "a\\_b\\&c & 0.6667 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def test_json_has_a_schema_and_full_precision(files: Path) -> None:
    """For machines: a schema version, numbers as computed, counts as whole numbers."""
    table = evaluate_runs(files / "qrels.txt", [files / "best.run"], ["AP", "NumQ"])
    value = json.loads(json.dumps(as_json(table)))
    assert value["schema"] == 1
    assert value["qrels"] == "qrels.txt"
    assert value["topics"] == 3
    assert value["measures"] == ["AP", "NumQ"]
    assert value["runs"] == [
        {
            "name": "best", "mean": {"AP": 2 / 3, "NumQ": 3}, "unanswered": ["3"], "unjudged": [],
            "ties": {}, "ties_unbounded": [], "identical_ids_left_out": 0, "depth": 2,
                "judged": {"rank": 10, "share": pytest.approx(2 / 3)},
        }
    ]  # fmt: skip
    assert value["without_relevant"] == ["3"]
    assert value["relevant_from_grade"] == {"level": 1, "why": "the default"}


def test_per_topic_as_csv(files: Path) -> None:
    """One line for each run and judged topic, unanswered ones too; ids that look like null stay."""
    (files / "qrels.txt").write_text('NA 0 a 1\n007 0 a 1\n"x,y" 0 a 1\n')
    (files / "best.run").write_text("NA Q0 a 1 1 t\n007 Q0 b 1 2 t\n007 Q0 a 2 1 t\n")
    table = evaluate_runs(files / "qrels.txt", [files / "best.run"], ["RR", "NumRet"])
    write_per_topic(table, files / "topics.csv")
    rows = list(csv.reader(io.StringIO((files / "topics.csv").read_text())))
    assert rows == [
        ["run", "qid", "RR", "NumRet"],
        ["best", "NA", "1.0", "1"],
        ["best", "007", "0.5", "2"],
        ["best", '"x,y"', "0.0", "0"],
    ]


def test_per_topic_as_json_reads_back(files: Path) -> None:
    """JSON by the ending, compressed by `.gz`, and the same table when read again."""
    runs = [files / "best.run", files / "worse.txt.gz"]
    table = evaluate_runs(files / "qrels.txt", runs)
    write_per_topic(table, files / "topics.json.gz")
    assert read_table(files / "topics.json.gz") == table


@pytest.mark.parametrize("name", ["topics", "topics.txt", "topics.gz", "-"])
def test_per_topic_needs_an_ending(files: Path, name: str) -> None:
    """Whatever is neither CSV nor JSON is refused before anything is computed."""
    with pytest.raises(PipelineError, match="CSV or JSON"):
        check_per_topic(Path(name))


def test_values_per_topic_replace_nothing_but_their_like(files: Path) -> None:
    """Least of all the judgements, whose name somebody gave by mistake."""
    table = evaluate_runs(files / "qrels.txt", [files / "best.run"])
    for name in ("topics.csv", "topics.json.gz", "topics.csv.gz"):
        check_replaceable(files / name)
        write_per_topic(table, files / name)
        check_replaceable(files / name)
    (files / "q.csv").write_text(QRELS)
    command = [sys.executable, "-m", "pipeline", "evaluate", "q.csv", "best.run"]

    done = subprocess.run(
        [*command, "--per-topic", "q.csv"], cwd=files, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert "q.csv: exists already" in done.stderr
    assert (files / "q.csv").read_text() == QRELS


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["runs/bm25.run", "small.txt.gz", "dense"], ["bm25", "small", "dense"]),
        (["-", "x.run.gz"], ["stdin", "x"]),
        (["a/bm25.run", "b/bm25.run", "c.run"], ["a/bm25", "b/bm25", "c"]),
        (["a/x/r.run", "b/x/r.run", "b/y/r.run"], ["a/x/r", "b/x/r", "y/r"]),
        (["bm25.run", "bm25.run.gz"], ["bm25.run", "bm25.run.gz"]),
        (["bm25.run", "bm25.run"], ["bm25.run (1)", "bm25.run (2)"]),
        (["v1.5.run", ".run"], ["v1.5", ".run"]),
    ],
)
def test_runs_are_named_by_their_files(runs: list[str], names: list[str]) -> None:
    """The file's name without endings; folders, endings or a number where two are alike."""
    assert run_names(runs) == names


@pytest.mark.parametrize(
    ("qrels", "run", "message", "hint"),
    [
        (QRELS, "", "run: the run is empty", "check"),
        (QRELS, "1 Q0 a 1 nan t\n", "run:1: score 'nan' is not a finite number", "evaluators"),
        (QRELS, "1 Q0 a 1 t\n", "run:1: 5 columns instead of 6", "a run line is"),
        (QRELS, "1 Q0 a 1 1 t\n1 Q0 a 2 0 t\n", "run:2: document 'a' twice in topic '1'", "keep"),
        (QRELS, "7 Q0 a 1 1 t\n", "the run answers no judged topic ('7', …)", "check that these"),
        ("", BEST, "qrels: there are no judgements", "check"),
        ("1 0 a\n", BEST, "qrels:1: 3 columns instead of 4", "a qrels line is"),
        ("1 0 a x\n", BEST, "qrels:1: grade 'x' is no whole number", "grades"),
        ("1 0 a 1\n1 0 a 2\n", BEST, "qrels:2: document 'a' judged twice", "keep"),
    ],
)
def test_bad_input_is_named_with_its_place(
    tmp_path: Path, qrels: str, run: str, message: str, hint: str
) -> None:
    """File and line, what is wrong and what to do, each on one line."""
    (tmp_path / "qrels").write_text(qrels)
    (tmp_path / "run").write_text(run)
    with pytest.raises(PipelineError) as caught:
        evaluate_runs(tmp_path / "qrels", [tmp_path / "run"])
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert hint in caught.value.hint


def test_missing_files_no_run_and_two_standard_inputs(files: Path) -> None:
    """Nothing is read when the command makes no sense."""
    with pytest.raises(StorageError, match="no such file"):
        evaluate_runs(files / "qrels.txt", [files / "absent.run"])
    with pytest.raises(PipelineError, match="no run to evaluate"):
        evaluate_runs(files / "qrels.txt", [])
    with pytest.raises(PipelineError, match="standard input is named twice"):
        evaluate_runs("-", ["-"])
    with pytest.raises(PipelineError, match="no measure is called 'ndgc@10'"):
        evaluate_runs(files / "absent.txt", [files / "best.run"], ["ndgc@10"])


def test_a_run_from_standard_input(files: Path) -> None:
    """`-` takes the run of a shell pipeline."""
    code = (
        "import sys; from pipeline.evaluate import evaluate_runs; "
        "print(evaluate_runs(sys.argv[1], ['-'], ['RR']).cells()[1])"
    )
    command = [sys.executable, "-c", code, str(files / "qrels.txt")]
    done = subprocess.run(command, input=BEST, capture_output=True, text=True, check=True)
    assert done.stdout == "['stdin', '0.6667']\n"


# ---------------------------------------------------------------- the stage


@pytest.fixture
def chosen(files: Path) -> EvaluateSettings:
    """An experiment's evaluation of two runs."""
    runs = (files / "best.run", files / "worse.txt.gz")
    output = files / "runs" / "measures.json"
    return EvaluateSettings(files / "qrels.txt", runs, output, ("AP", "MRR@10"))


def test_stage_writes_the_table_and_values_per_topic(chosen: EvaluateSettings) -> None:
    """measures.json holds everything, measures.csv the values per topic, the sidecar the counts."""
    outcome = evaluate(chosen)
    assert outcome.computed
    assert outcome.counts == {"topics": 3, "unanswered": {"best": 1, "worse": 2}}
    table = read_table(chosen.output)
    assert table == evaluate_runs(chosen.qrels, chosen.runs, chosen.measures)
    assert table.measures == ("AP", "RR@10")
    lines = chosen.output.with_suffix(".csv").read_text().splitlines()
    assert lines[:2] == ["run,qid,AP,RR@10", "best,1,1.0,1.0"]
    assert len(lines) == 1 + 2 * 3


def test_stage_is_fresh_until_something_changes(chosen: EvaluateSettings) -> None:
    """The same again does nothing; a measure, a judgement or a run that changes is the reason."""
    evaluate(chosen)
    before = digest_file(chosen.output)
    again = evaluate(chosen)
    assert not again.computed
    assert again.counts["topics"] == 3
    assert evaluate(replace(chosen, force=True)).reasons == ("forced",)
    assert digest_file(chosen.output) == before

    other = replace(chosen, measures=("AP",))
    assert "measures" in status(chosen.output, recipe(other)).reasons[0]
    chosen.qrels.write_text(QRELS + "3 0 z 1\n")
    assert status(chosen.output, recipe(chosen)).reasons == ("input qrels changed",)
    chosen.qrels.write_text(QRELS)
    chosen.runs[0].write_text(BEST + "3 Q0 n 1 1 best\n")
    assert status(chosen.output, recipe(chosen)).reasons == ("input run best changed",)
    assert evaluate(chosen).computed


def test_measures_in_another_spelling_stay_fresh(chosen: EvaluateSettings) -> None:
    """MRR@10 and RR@10 are one measure."""
    evaluate(chosen)
    assert not evaluate(replace(chosen, measures=("MAP", "RR@10"))).computed


def test_values_per_topic_come_back_when_deleted_or_edited(chosen: EvaluateSettings) -> None:
    """measures.csv is written again from measures.json, without reading a run."""
    evaluate(chosen)
    path = chosen.output.with_suffix(".csv")
    before = path.read_bytes()
    path.unlink()
    assert not evaluate(chosen).computed
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b"0", b"1"))
    assert not evaluate(chosen).computed
    assert path.read_bytes() == before


def test_another_table_beside_the_measures_is_not_replaced(chosen: EvaluateSettings) -> None:
    """A measures.csv of somebody else is left alone, as an output of somebody else is."""
    path = chosen.output.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine\n")
    with pytest.raises(PipelineError, match="holds no values per topic"):
        evaluate(chosen)
    assert path.read_text() == "mine\n"


def test_failure_leaves_the_old_table(chosen: EvaluateSettings) -> None:
    """A run torn since then fails with its line; the table of before is untouched."""
    evaluate(chosen)
    before = chosen.output.read_bytes()
    chosen.runs[0].write_text(BEST[:-10])
    with pytest.raises(InputError, match=r"best\.run:4"):
        evaluate(chosen)
    assert chosen.output.read_bytes() == before


def test_stage_sweeps_what_a_killed_one_left(chosen: EvaluateSettings) -> None:
    """Half-written values per topic do not stay beside the table."""
    chosen.output.parent.mkdir(exist_ok=True)
    left = chosen.output.parent / ".measures.csv.4234-ecaee2d6.tmp"
    left.write_text("run,qid")

    evaluate(chosen)

    assert not left.exists()


def test_unknown_measure_is_refused_when_the_settings_are_made(files: Path) -> None:
    """An experiment with a mistyped measure fails when it is read, not after the reranking."""
    with pytest.raises(PipelineError, match="no measure is called 'nDGC@10'"):
        EvaluateSettings(files / "q", (files / "r",), files / "o.json", ("nDGC@10",))


def test_damaged_table_is_named(tmp_path: Path) -> None:
    """A file that is no table gives an error with its path."""
    path = tmp_path / "measures.json"
    for text in ("{", "[]", '{"schema": 2}', '{"schema": 1, "runs": [{}]}', "null"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"measures\.json"):
            read_table(path)


def test_real_collection(collections: Path, tmp_path: Path) -> None:
    """On a real test collection, an ideal run has nDCG@10 1 wherever something is relevant."""
    path = collections / "nfcorpus" / "qrels.test.txt"
    qrels = read_qrels(path)
    lines = []
    for qid, judged in qrels.items():
        best = sorted(judged, key=lambda docid: judged[docid], reverse=True)
        lines += [f"{qid} Q0 {docid} {i} {-i} best\n" for i, docid in enumerate(best, 1)]
    (tmp_path / "best.run").write_text("".join(lines))
    row = evaluate_runs(path, [tmp_path / "best.run"], ["nDCG@10", "Judged@10"]).rows[0]
    assert math.isclose(row.evaluation.mean["nDCG@10"], 1.0)
    assert row.evaluation.mean["Judged@10"] == 1.0
    assert len(row.evaluation.per_topic) == len(qrels)


def test_a_cutoff_past_the_end_of_a_run_is_said(files: Path) -> None:
    """R@1000 of a run with two documents a topic is R@2: the sentence above the table says so."""
    table = evaluate_runs(files / "qrels.txt", [files / "best.run"], ["R@1000", "P@2", "AP"])
    assert "best: at most 2 documents a topic, fewer than R@1000 look at" in of_run(table.rows[0])
