"""The command line: its words, its exit codes, its streams, and what it loads."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from killing import contents, run

COMMANDS = (
    "index", "retrieve", "rerank", "fuse", "evaluate", "compare", "run", "status", "explain",
    "clean", "teach", "distill", "demo", "doctor", "lint", "encode", "submit", "verify",
)  # fmt: skip


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    target = tmp_path / "tiny"
    shutil.copytree(tiny, target)
    return target


def test_help_names_every_command(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)

    assert done.returncode == 0
    named = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(COMMANDS) <= named


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    done = run(command, "--help", cwd=tmp_path)

    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_the_version_is_printed(tmp_path: Path) -> None:
    from pipeline import __version__

    assert run("--version", cwd=tmp_path).stdout == f"trec-pipeline {__version__}\n"


@pytest.mark.parametrize("words", [["nonsense"], ["retrieve"], ["index", "--depth", "x"], ["run"]])
def test_wrong_usage_exits_with_2(words: list[str], tmp_path: Path) -> None:
    done = run(*words, cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_help_loads_no_heavy_library() -> None:
    script = (
        "import sys, pipeline.cli.main\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'jnius', 'rich', 'pytrec_eval'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


@pytest.mark.jvm
def test_the_four_stages_by_hand_and_as_a_pipe(folder: Path) -> None:
    """Explicit files have sidecars; the same through pipes gives the same bytes and none."""
    steps = [
        ("index", "--collection", "corpus.jsonl", "--index", "i"),
        ("retrieve", "--index", "i", "--topics", "topics.tsv", "--output", "a.run", "--hits", "9"),
        ("rerank", "--run", "a.run", "--topics", "topics.tsv", "--index", "i", "--model", "overlap",
         "--output", "b.run.gz", "--depth", "5"),
        ("rerank", "--run", "a.run", "--topics", "topics.tsv", "--collection", "corpus.jsonl",
         "--model", "overlap", "--output", "c.run", "--depth", "5"),
    ]  # fmt: skip
    for step in steps:
        done = run(*step, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
    assert {"i.json", "a.run.json", "b.run.gz.json", "c.run.json"} <= set(contents(folder))
    assert gzip.decompress((folder / "b.run.gz").read_bytes()) == (folder / "c.run").read_bytes()
    before = contents(folder)
    piped = (
        "cat topics.tsv | {p} retrieve --index i --topics - --output - --hits 9 | tee seen |"
        "{p} rerank --run - --topics topics.tsv --index i --model overlap --output - --depth 5"
    ).format(p=f"{sys.executable} -m pipeline")

    out = subprocess.run(["bash", "-c", piped], cwd=folder, capture_output=True, check=True).stdout

    assert (folder / "seen").read_bytes() == (folder / "a.run").read_bytes()
    assert out == (folder / "c.run").read_bytes()
    (folder / "seen").unlink()
    assert contents(folder) == before


@pytest.mark.jvm
def test_a_fresh_output_is_left_alone_and_json_says_so(folder: Path) -> None:
    command = ("index", "--collection", "corpus.jsonl", "--index", "i", "--json")
    first = json.loads(run(*command, cwd=folder).stdout)
    before = contents(folder)
    second = json.loads(run(*command, cwd=folder).stdout)

    assert first["computed"]
    assert first["counts"]["documents"] == 20
    assert not second["computed"]
    assert contents(folder) == before


def test_evaluate_prints_tables_for_people_papers_and_machines(folder: Path) -> None:
    shutil.copy(folder / "bm25.run", folder / "again.run")
    words = ("evaluate", "qrels.txt", "bm25.run", "again.run", "-m", "nDCG@10", "-m", "AP(rel=2)")
    plain = run(*words, "--per-topic", "topics.csv", cwd=folder)
    *said, blank, header, _, first, second = plain.stdout.splitlines()
    assert blank == ""
    assert said[0].startswith("qrels.txt: means over all ")
    assert said[1] == "relevant from grade 2 on in AP(rel=2), as asked; nDCG@10 by grade"
    assert run(*words, "--quiet", cwd=folder).stdout.splitlines()[0] == header
    assert header.split() == ["run", "nDCG@10", "AP(rel=2)"]
    assert first.split()[1:] == second.split()[1:]
    assert (folder / "topics.csv").read_text().startswith("run,qid,nDCG@10,AP(rel=2)\n")

    table = json.loads(run(*words, "--json", cwd=folder).stdout)

    assert table["schema"] == 1
    assert f"{table['runs'][0]['mean']['nDCG@10']:.4f}" == first.split()[1]
    assert run(*words, "--markdown", cwd=folder).stdout.startswith("| run")
    assert run(*words, "--latex", cwd=folder).stdout.startswith(r"\begin{tabular}")


@pytest.mark.parametrize(
    "made_of_it", ["RuntimeError('torch\\'s own words')", "PipelineError('a', 'b')"]
)
def test_an_interrupt_is_one_whatever_a_library_makes_of_it(made_of_it: str) -> None:
    """As libraries do that are interrupted while they load."""
    code = f"""
import os, signal, sys, time
from pipeline.cli.main import app, main
from pipeline.errors import PipelineError

@app.command()
def loads() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except Exception as error:
        raise {made_of_it} from error

sys.argv = ["pipeline", "loads"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 130
    assert done.stderr.startswith("\npipeline: interrupted; finished parts are kept\n")
