"""Comparing runs: differences, marks, warnings, tables, one topic, depths and figures."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline import comparison, depths, movement, plots
from pipeline.compare import CompareSettings, compare_runs
from pipeline.evaluate import evaluate_runs
from pipeline.rerank import RerankSettings, rerank
from pipeline.trec import Ranking, ScoredDoc, read_qrels

TOPICS = 40


def run_file(path: Path, ranks: dict[str, list[str]], tag: str = "t") -> Path:
    lines = [
        f"{qid} Q0 {docid} {rank} {100 - rank} {tag}\n"
        for qid, docids in ranks.items()
        for rank, docid in enumerate(docids, 1)
    ]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """40 topics with one relevant document each, which three runs find at ranks of their own."""
    qids = [f"q{number:02d}" for number in range(TOPICS)]
    (tmp_path / "qrels").write_text("".join(f"{qid} 0 good 1\n" for qid in qids))

    def ranked(at: int) -> list[str]:
        return [f"d{n}" for n in range(1, at)] + ["good"] + [f"d{n}" for n in range(at, 10)]

    # base: rank 2 everywhere; better: rank 1 in 30 topics, 4 in 10; worse: the last, but in one.
    run_file(tmp_path / "base.run", {qid: ranked(2) for qid in qids})
    better = {qid: ranked(1 if place < 30 else 4) for place, qid in enumerate(qids)}
    run_file(tmp_path / "better.run", better)
    worse = {qid: ranked(10 if place else 1) for place, qid in enumerate(qids)}
    run_file(tmp_path / "worse.run", worse)
    return tmp_path


def runs_of(files: Path, *names: str) -> list[Path]:
    return [files / f"{name}.run" for name in names]


def test_differences_wins_ties_losses(files: Path) -> None:
    """Each run against the first, over every judged topic, by the values of `evaluate`."""
    paths = runs_of(files, "base", "better", "worse")
    found = compare_runs(files / "qrels", paths, CompareSettings(measures=("RR@10", "P@1")))
    table = evaluate_runs(files / "qrels", paths, ["RR@10", "P@1"])
    assert [(e.measure, e.base, e.run) for e in found.found] == [
        ("RR@10", 0, 1), ("RR@10", 0, 2), ("P@1", 0, 1), ("P@1", 0, 2),
    ]  # fmt: skip
    better, worse, first, _ = found.found
    assert (better.wins, better.ties, better.losses) == (30, 0, 10)
    assert (worse.wins, worse.ties, worse.losses) == (1, 0, 39)
    assert (first.wins, first.ties, first.losses) == (30, 10, 0)
    means = [row.evaluation.mean["RR@10"] for row in table.rows]
    assert better.mean == pytest.approx(means[1] - means[0])
    assert better.mean == pytest.approx((30 * 0.5 - 10 * 0.25) / 40)
    assert better.interval.low < better.mean < better.interval.high
    assert found.table.rows == tuple(table.rows)


def test_marks_name_the_runs_that_are_beaten(files: Path) -> None:
    """A letter stands for the run beaten, in whichever direction the pair was compared."""
    paths = runs_of(files, "base", "better", "worse")
    settings = CompareSettings(measures=("RR@10",))
    found = compare_runs(files / "qrels", paths, settings)
    assert [found.beaten(row, "RR@10") for row in range(3)] == ["c", "a", ""]
    every = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",), all_pairs=True))
    assert [every.beaten(row, "RR@10") for row in range(3)] == ["c", "ac", ""]
    assert [(e.base, e.run) for e in every.found] == [(0, 1), (0, 2), (1, 2)]


def test_the_correction_is_over_all_comparisons_of_the_call(files: Path) -> None:
    """Two runs and two measures are four tests; Holm multiplies the smallest p by four."""
    paths = runs_of(files, "base", "better", "worse")
    settings = CompareSettings(("RR@10", "nDCG@10"), tests=("t", "wilcoxon"))
    found = compare_runs(files / "qrels", paths, settings)
    least = min(found.found, key=lambda each: each.p["t"])
    assert least.adjusted["t"] == pytest.approx(4 * least.p["t"])
    assert "Holm's correction over 4 comparisons" in found.note
    plain = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",), correction="none"))
    assert [e.adjusted for e in plain.found] == [e.p for e in plain.found]
    assert "not corrected" in plain.note


def test_what_is_infinite_is_null_in_json(files: Path) -> None:
    """A difference that is the same in every topic has no finite effect size."""
    run_file(files / "first.run", {f"q{n:02d}": ["good"] for n in range(TOPICS)})
    paths = runs_of(files, "base", "first")
    found = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",)))
    assert math.isinf(found.found[0].effect)
    record = json.loads(json.dumps(comparison.as_json(found, 3), allow_nan=False))
    assert record["comparisons"][0]["effect_size"] is None
    assert record["comparisons"][0]["p"]["randomisation"] == pytest.approx(1 / 100_001)


def test_the_topics_that_moved_most(files: Path) -> None:
    """Largest change first, of either sign, then by id; none that stayed."""
    paths = runs_of(files, "base", "worse")
    found = compare_runs(files / "qrels", paths, CompareSettings(("RR@10", "P@1")))
    moved = found.found[0].moved(3)
    assert [topic.qid for topic in moved] == ["q00", "q01", "q02"]
    assert [round(topic.value, 3) for topic in moved] == [0.5, -0.4, -0.4]
    assert [topic.qid for topic in found.found[1].moved(3)] == ["q00"]


def test_missing_topics_are_named_and_count_zero(files: Path) -> None:
    """A run that leaves topics out is warned about, and loses them."""
    lines = (files / "base.run").read_text().splitlines(keepends=True)
    (files / "part.run").write_text("".join([*lines[:350], "x9 Q0 a 1 1 t\n"]))
    paths = runs_of(files, "base", "part")
    found = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",)))
    assert found.found[0].losses == 5
    assert found.warnings[0] == (
        "part: 5 of 40 judged topics have no answer; they count zero, and so as differences"
    )
    assert found.warnings[1] == "part: 1 topics without judgements are ignored"
    assert found.agreements[0].topics == 35


def test_too_few_topics_are_warned_about(tmp_path: Path) -> None:
    """Under 25 topics, and under six that differ."""
    (tmp_path / "qrels").write_text("".join(f"{q} 0 a 1\n" for q in range(8)))
    run_file(tmp_path / "one.run", {f"{q}": ["a", "b"] for q in range(8)})
    run_file(tmp_path / "two.run", {f"{q}": ["b", "a"] if q < 3 else ["a"] for q in range(8)})
    paths = runs_of(tmp_path, "one", "two")
    few, signs = compare_runs(tmp_path / "qrels", paths, CompareSettings(("RR@10",))).warnings
    assert few.startswith("8 topics are too few to trust a difference")
    assert "by RR@10 only one of about 0.298 would be found" in few
    assert signs.startswith("by RR@10 fewer than 6 topics differ")


def test_how_alike_the_runs_rank(files: Path) -> None:
    """The same run is alike, one with nothing in common is not."""
    other = {f"q{n:02d}": [f"x{d}" for d in range(10)] for n in range(TOPICS)}
    run_file(files / "other.run", other)
    (files / "same.run").write_bytes((files / "base.run").read_bytes())
    found = compare_runs(files / "qrels", runs_of(files, "base", "same", "other"))
    same, apart = found.agreements
    assert (same.kendall, same.rbo) == (1.0, pytest.approx(1.0))
    assert (apart.kendall, apart.rbo) == (None, 0.0)
    assert comparison.agreement(found)[2] == ["other - base", "40", "-", "0.000"]


def test_latex_and_markdown_have_marks_and_what_they_mean(files: Path) -> None:
    """Best values are bold, marks are superscripts, the note says which test and correction."""
    (files / "better.run").rename(files / "my_better|run.run")
    paths = runs_of(files, "base", "my_better|run")
    found = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",)))
    assert r"b & my\_better|run & \textbf{0.8125}\textsuperscript{a} \\" in comparison.latex(found)
    assert "RR@10 & my" in comparison.latex(found)
    assert "& $+0.3125$ &" in comparison.latex(found)
    assert comparison.latex(found).startswith("% 40 topics; a letter marks a run that is beaten")
    text = comparison.markdown(found)
    assert "| b | my_better\\|run | **0.8125**<sup>a</sup> |" in text
    assert "randomisation test of 100,000 samples, seed 42, level 0.05, one comparison." in text


def test_differences_of_every_topic_as_csv(files: Path) -> None:
    """One line for each topic and comparison."""
    paths = runs_of(files, "base", "better")
    found = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",)))
    comparison.write_differences(found, files / "d.csv")
    rows = list(csv.DictReader(io.StringIO((files / "d.csv").read_text())))
    assert len(rows) == TOPICS
    assert rows[0] == {
        "measure": "RR@10", "base": "base", "run": "better", "qid": "q00",
        "base_value": "0.5", "run_value": "1.0", "difference": "0.5",
    }  # fmt: skip


def test_more_than_26_runs_are_numbered(files: Path) -> None:
    """Letters run out at z."""
    for number in range(27):
        (files / f"r{number}.run").write_bytes((files / "base.run").read_bytes())
    paths = [files / "worse.run", *(files / f"r{number}.run" for number in range(27))]
    found = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",), tests=("t",)))
    assert comparison.means(found)[2][0] == "(2)"
    assert found.beaten(1, "RR@10") == "(1)"


# ---------------------------------------------------------------- one topic

BASE = Ranking("1", tuple(ScoredDoc(d, 9.0 - i) for i, d in enumerate("abcdef")))
RUN = Ranking("1", tuple(ScoredDoc(d, 5.0 - i) for i, d in enumerate("bafxcd")))


def test_documents_that_entered_left_and_moved() -> None:
    """In the order of the second run, what it dropped last; grades beside them."""
    found = movement.movement(BASE, RUN, 3, {"f": 2, "c": 0})
    assert [(m.docid, m.change, m.grade) for m in found.documents] == [
        ("b", "up 1", None), ("a", "down 1", None), ("f", "entered", 2), ("c", "left", 0),
    ]  # fmt: skip
    assert found.documents[2].base == (6, 4.0)
    assert found.documents[2].run == (3, 3.0)
    assert found.cause == "5 documents in common, of 6 and 6"


def test_what_changed_a_topic() -> None:
    """Order, documents, or an answer that is not there."""
    again = Ranking("1", BASE.docs[::-1])
    nothing = Ranking("1", ())
    assert movement.movement(BASE, BASE, 3, {}).cause == "the same 6 documents in the same order"
    assert movement.movement(BASE, again, 3, {}).cause == "the same 6 documents in another order"
    none = movement.movement(BASE, nothing, 3, {})
    assert none.cause == "the second run does not answer this topic"
    assert [m.change for m in none.documents] == ["left"] * 3
    with refused("no run answers topic '1'"):
        movement.movement(nothing, nothing, 3, {})
    with refused("--top 0 is out of range"):
        movement.movement(BASE, RUN, 0, {})


def test_a_snippet_holds_the_words_of_the_query() -> None:
    """One safe line: the piece of a text with most of them."""
    text = "nothing here. " * 30 + "A lock file keeps two\nprocesses apart. " + "more of it. " * 30
    piece = movement.snippet(text, "lock file", 60)
    assert "lock file" in piece
    assert piece.startswith("… ")
    assert piece.endswith(" …")
    assert len(piece) <= 64
    assert movement.snippet("short\x1b[31m text", "x") == "short\\x1b[31m text"
    assert movement.snippet("", "x") == ""


def test_one_topic_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    """Ranks and scores in both runs, grades, snippets of the texts."""
    first = next(iter((tiny / "topics.tsv").read_text().splitlines()))
    qid, query = first.split("\t")
    lines = [
        line for line in (tiny / "bm25.run").read_text().splitlines() if line.split()[0] == qid
    ]
    docids = [line.split()[2] for line in lines]
    run_file(tmp_path / "turned.run", {qid: docids[::-1]})
    common = ["compare", str(tiny / "qrels.txt"), str(tiny / "bm25.run"), "turned.run",
              "--topic", qid, "--topics", str(tiny / "topics.tsv"),
              "--collection", str(tiny / "corpus.jsonl")]  # fmt: skip
    done = run(*common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"topic {qid}: {query}\n")
    assert "turned - bm25: the same" in done.stdout
    value = json.loads(run(*common, "--json", cwd=tmp_path).stdout)
    documents = value["runs"][0]["documents"]
    assert {d["docid"] for d in documents} >= set(docids[:10])
    assert all(d["text"] for d in documents)


# ---------------------------------------------------------------- depths


def test_one_reranking_gives_every_depth(tmp_path: Path) -> None:
    """By hand: the relevant document is third of the candidates, and first once it is looked at."""
    (tmp_path / "qrels").write_text("1 0 c 1\n2 0 z 1\n3 0 n 1\n")
    run_file(tmp_path / "first.run", {"1": ["a", "b", "c", "d"], "2": ["z", "y"]})
    run_file(tmp_path / "again.run", {"1": ["c", "d", "b", "a"], "2": ["y", "z"]})
    found = depths.by_depth(
        read_qrels(tmp_path / "qrels"), *runs_of(tmp_path, "first", "again"), ["RR@10"]
    )
    assert found.depths == (0, 1, 2, 4)
    assert found.exact
    expected = [(1 / 3 + 1) / 3, (1 / 3 + 1) / 3, (1 / 3 + 1 / 2) / 3, (1 + 1 / 2) / 3]
    assert found.means["RR@10"] == pytest.approx(expected)


def test_depths_and_topics_take_the_level_of_the_test_set(tmp_path: Path) -> None:
    """As the table above them does: of TREC Deep Learning's passages grade 1 is not relevant."""
    low, high = "msmarco_passage_00_1", "msmarco_passage_00_2"
    (tmp_path / "qrels").write_text(f"1 0 {low} 1\n1 0 {high} 3\n")
    run_file(tmp_path / "first.run", {"1": [low, high]})
    run_file(tmp_path / "again.run", {"1": [high, low]})
    command = ("compare", "qrels", "first.run", "again.run")

    value = json.loads(run(*command, "-m", "AP", "--by-depth", "--json", cwd=tmp_path).stdout)
    said = run(*command, "--topic", "1", cwd=tmp_path).stdout

    assert value["by_depth"]["again"]["means"] == {"AP(rel=2)": [0.5, 0.5, 1.0]}
    assert "2 documents judged, 1 relevant" in said


def test_depth_0_is_the_first_stage_and_the_last_the_reranking(tiny: Path, tmp_path: Path) -> None:
    """Equal to what `evaluate` says of the two runs."""
    rows: dict[str, list[str]] = {}
    for line in (tiny / "bm25.run").read_text().splitlines():
        rows.setdefault(line.split()[0], []).append(line.split()[2])
    run_file(tmp_path / "again.run", {qid: docids[::-1] for qid, docids in rows.items()})
    measures = ["nDCG@10", "AP", "RR@10", "NumRet"]
    paths = [tiny / "bm25.run", tmp_path / "again.run"]
    found = depths.by_depth(read_qrels(tiny / "qrels.txt"), paths[0], paths[1], measures)
    first, last = evaluate_runs(tiny / "qrels.txt", paths, measures).rows
    for measure in measures:
        assert found.means[measure][0] == pytest.approx(first.evaluation.mean[measure])
        assert found.means[measure][-1] == pytest.approx(last.evaluation.mean[measure])


def test_depths_end_where_reranking_ended(tiny: Path, tmp_path: Path) -> None:
    """As the sidecar of the run says; the last depth is the run itself."""
    folder = Path(shutil.copytree(tiny, tmp_path / "made"))
    rerank(
        RerankSettings(
            run=folder / "bm25.run", topics=folder / "topics.tsv", model="overlap",
            output=folder / "out.run", collection=folder / "corpus.jsonl", depth=2,
        )
    )  # fmt: skip
    qrels = folder / "qrels.txt"
    found = depths.by_depth(read_qrels(qrels), folder / "bm25.run", folder / "out.run", ["AP"])
    assert found.depths == (0, 1, 2)
    (row,) = evaluate_runs(qrels, [folder / "out.run"], ["AP"]).rows
    assert found.means["AP"][-1] == pytest.approx(row.evaluation.mean["AP"])


def test_a_run_that_reranks_something_else_is_refused(tmp_path: Path) -> None:
    run_file(tmp_path / "first.run", {"1": ["a", "b"]})
    run_file(tmp_path / "again.run", {"1": ["a", "x"]})
    paths = runs_of(tmp_path, "first", "again")
    with refused("document 'x' is not among its candidates", "name the run that was reranked"):
        depths.by_depth({"1": {"a": 1}}, *paths, ["AP"])


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("kind", plots.FORMATS)
def test_figures(files: Path, kind: str) -> None:
    """Whole files, the same bytes again, whatever stands in a name."""
    pytest.importorskip("matplotlib")
    (files / "better.run").rename(files / "a$b_c d.run")
    paths = runs_of(files, "base", "a$b_c d")
    found = compare_runs(files / "qrels", paths, CompareSettings(("RR@10",), curves=True))
    every = depths.by_depth(read_qrels(files / "qrels"), *paths, ["RR@10"])
    first = plots.draw(found, files / "one", kind, {"a$b_c d": every})
    assert [path.name for path in first] == [
        f"differences-RR@10-a-b_c-d-base.{kind}", f"precision-recall.{kind}", f"depth-RR@10.{kind}",
    ]  # fmt: skip
    again = plots.draw(found, files / "two", kind, {"a$b_c d": every})
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    magic = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}[kind]
    assert all(path.read_bytes().startswith(magic) for path in first)


def test_long_names_fit_into_a_figure() -> None:
    """Both ends stay: they tell runs apart."""
    name = "runs-of-march-nfcorpus-bm25-then-small-depth-1000"
    assert plots.shorten(name, 26) == name[:12] + "…" + name[-12:]
    assert len(plots.shorten(name, 26)) <= 26
    assert plots.shorten("bm25", 26) == "bm25"


def test_precision_never_rises_with_recall(files: Path) -> None:
    """Eleven levels, interpolated."""
    paths = runs_of(files, "base", "better")
    curve = compare_runs(files / "qrels", paths, CompareSettings(curves=True)).curves["better"]
    values = list(curve.values())
    assert len(values) == 11
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx((30 + 10 / 4) / 40)


def test_without_matplotlib_only_figures_are_missed(files: Path) -> None:
    """The whole command works, and --plots says what to install before it computes anything."""
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "sys.argv = ['pipeline', 'compare', 'qrels', 'base.run', 'better.run', *sys.argv[1:]]\n"
        "from pipeline.cli.main import main; main()"
    )
    from elsewhere import ENVIRONMENT

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *more],
            cwd=files, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert call().returncode == 0
    done = call("--plots", "figures")
    assert done.returncode == 1
    assert "matplotlib, which is not installed" in done.stderr
    assert not (files / "figures").exists()


# ---------------------------------------------------------------- the command


def test_the_command(files: Path) -> None:
    """Means with marks, what was tested, differences, moved topics, agreement, warnings."""
    done = run("compare", "qrels", "base.run", "better.run", "-m", "RR@10", cwd=files)
    assert done.returncode == 0, done.stderr
    assert "b  better  0.8125a" in done.stdout
    assert "40 topics; a letter marks a run that is beaten" in done.stdout
    assert "better - base  +0.3125" in done.stdout
    assert (
        "topics that moved most, RR@10, better - base:\ntopic    base  better     diff"
        in done.stdout
    )
    value = json.loads(
        run("compare", "qrels", "base.run", "better.run", "--json", cwd=files).stdout
    )
    assert value["schema"] == 1
    assert [c["measure"] for c in value["comparisons"]] == ["nDCG@10", "RR@10", "AP", "R@1000"]
    assert value["comparisons"][1]["wins"] == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base.run"], "nothing to compare"),
        (["base.run", "better.run", "--test", "anova"], "--test 'anova' is not known"),
        (["base.run", "better.run", "--correction", "holms"], "--correction 'holms' is not known"),
        (["base.run", "better.run", "--level", "1.5"], "--level 1.5 is out of range"),
        (["base.run", "better.run", "--samples", "3"], "--samples 3 is out of range"),
        (["base.run", "better.run", "--seed", "-1"], "--seed -1 is negative"),
        (["base.run", "-", "-"], "standard input is named twice"),
        (["base.run", "-", "--by-depth"], "--by-depth reads runs twice"),
        (["base.run", "better.run", "-m", "nDGC@10"], "no measure is called 'nDGC@10'"),
        (["base.run", "better.run", "--per-topic", "d.txt"], "differences are written as CSV"),
        (["base.run", "better.run", "--json", "--latex"], "more than one of --json"),
        (["base.run", "missing.run"], "missing.run: no such file"),
        (["base.run", "qrels"], "qrels:1: 4 columns instead of 6"),
        (["base.run", "better.run", "--plots", "f", "--plot-format", "bmp"], "'bmp' is not known"),
        (["base.run", "better.run", "--topic", "zz"], "no run answers topic 'zz'"),
        (["base.run", "--topic", "q01"], "nothing to compare"),
        (["base.run", "better.run", "--topic", "q01", "--latex"], "--topic prints for the"),
        (
            ["base.run", "better.run", "--topic", "q01", "-c", "a", "-i", "b"],
            "texts come from an index or from a collection",
        ),
    ],
)
def test_what_cannot_be_compared(files: Path, words: list[str], message: str) -> None:
    """Two lines, exit code 1, nothing written, nothing on stdout."""
    before = sorted(files.iterdir())
    done = run("compare", "qrels", *words, cwd=files)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize("name", ["nfcorpus", "cranfield"])
def test_real_collections(collections: Path, tmp_path: Path, name: str) -> None:
    """Hundreds of topics take a second: a run that forgets every third document is worse."""
    qrels = next((collections / name).glob("qrels.*.txt"))
    judged = read_qrels(qrels)
    full = {qid: list(docs) for qid, docs in judged.items()}
    run_file(tmp_path / "full.run", full)
    some = {qid: [d for n, d in enumerate(docs) if n % 3] or ["none"] for qid, docs in full.items()}
    run_file(tmp_path / "some.run", some)
    found = compare_runs(qrels, runs_of(tmp_path, "full", "some"))
    assert found.table.topics == len(judged)
    assert {each.measure for each in found.found if each.adjusted["randomisation"] < 0.05} >= {
        "AP", "R@1000",
    }  # fmt: skip
