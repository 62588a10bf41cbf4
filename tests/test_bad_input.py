# ruff: noqa: E501 - the table of cases reads best with a case on a line
"""Every bad input: what happened with its place, what to do, exit code 1, an unchanged folder.

Each case goes through the installed command in a process of its own, on copies of the tiny
collection; `{folder}` in a message is the folder of the case.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from killing import contents, run

pytestmark = [pytest.mark.jvm]

INDEX = ("index", "--collection", "corpus.jsonl", "--index", "new.index")
RETRIEVE = ("retrieve", "--index", "index", "--topics", "topics.tsv", "--output", "new.run")
RERANK = (
    "rerank", "--run", "bm25.run", "--topics", "topics.tsv", "--index", "index",
    "--model", "overlap", "--output", "new.run",
)  # fmt: skip
EVALUATE = ("evaluate", "qrels.txt", "bm25.run")
RUN = ("run", "e.toml")

EXPERIMENT = """
name = "e"
[collection]
path = "corpus.jsonl"
[topics]
path = "topics.tsv"
[index]
path = "index2"
[[rerank]]
name = "cheap"
model = "overlap"
[evaluate]
qrels = "qrels.txt"
"""


@dataclass(frozen=True)
class Case:
    name: str
    command: tuple[str, ...]
    spoil: Callable[[Path], object]
    happened: str  # regular expressions
    todo: str


def write(name: str, data: bytes | str) -> Callable[[Path], object]:
    raw = data.encode() if isinstance(data, str) else data
    return lambda folder: (folder / name).write_bytes(raw)


def append(name: str, data: bytes | str) -> Callable[[Path], object]:
    raw = data.encode() if isinstance(data, str) else data
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + raw)


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def nothing(_folder: Path) -> None:
    pass


def bomb(name: str) -> Callable[[Path], object]:
    """A small gzip file of 400 MB of zeros."""

    def spoil(folder: Path) -> None:
        with gzip.open(folder / name, "wb", 9) as out:
            for _ in range(400):
                out.write(bytes(1 << 20))

    return spoil


def line_bomb(name: str) -> Callable[[Path], object]:
    """A small gzip file of 400 MB of short lines."""

    def spoil(folder: Path) -> None:
        with gzip.open(folder / name, "wb", 9) as out:
            for _ in range(400):
                out.write(b"x\ty\n" * (1 << 18))

    return spoil


def swap(command: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    at = command.index(option) + 1
    return (*command[:at], value, *command[at + 1 :])


def model(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "model").mkdir()
        spoil(folder / "model")

    return make


MODEL = swap(RERANK, "--model", "model")
BERT = json.dumps({"model_type": "bert", "architectures": ["BertForSequenceClassification"]})


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_dir())


CASES = [
    # collections
    Case("missing collection", INDEX, gone("corpus.jsonl"), r"corpus\.jsonl: no such", "file"),
    Case("empty collection", INDEX, write("corpus.jsonl", ""), "there are no documents", "format"),
    Case("line of no JSON", INDEX, append("corpus.jsonl", '{"id": "x", \n'), r"corpus\.jsonl:21: not JSON", "one object"),
    Case("line without id", INDEX, append("corpus.jsonl", '{"contents": "x"}\n'), ":21: no id", "id and contents"),
    Case("id with a space", INDEX, append("corpus.jsonl", '{"id": "a b", "contents": "x"}\n'), ":21: document id 'a b'", "white space"),
    Case("document twice", INDEX, append("corpus.jsonl", '{"id": "tomato1", "contents": "x"}\n'), r":21: document 'tomato1' again \(first in .*corpus\.jsonl:1\)", "delete|own"),
    Case("collection not UTF-8", INDEX, append("corpus.jsonl", b'{"id": "x", "contents": "\xe9"}\n'), ":21: not UTF-8", "iconv"),
    Case("folder without files", swap(INDEX, "--collection", "empty"), lambda f: (f / "empty").mkdir(), "no collection files", "jsonl"),
    Case("gzip bomb", swap(INDEX, "--collection", "c.jsonl.gz"), bomb("c.jsonl.gz"), "longer than|gzip bomb", "unpack|format"),
    Case("torn gzip", swap(INDEX, "--collection", "c.jsonl.gz"), lambda f: (f / "c.jsonl.gz").write_bytes(gzip.compress(os.urandom(9999))[:5000]), "gzip|UTF-8", "."),
    Case("index over a foreign folder", swap(INDEX, "--index", "mine"), lambda f: ((f / "mine").mkdir(), (f / "mine" / "thesis.txt").write_text("x")), "mine: .*not written by this program", "force"),
    # topics
    Case("missing topics", RETRIEVE, gone("topics.tsv"), r"topics\.tsv: no such", "path"),
    Case("empty topics", RETRIEVE, write("topics.tsv", ""), "there are no topics", "."),
    Case("topic without tab", RETRIEVE, append("topics.tsv", "x y\n"), r"topics\.tsv:\d+: no tab", "TAB"),
    Case("topic twice", RETRIEVE, append("topics.tsv", "1\tagain\n"), r"topic '1' again \(first on line 1\)", "own"),
    Case("topic without text", RETRIEVE, append("topics.tsv", "x\t \n"), "topic 'x' has no text", "query"),
    Case("topics not UTF-8", RETRIEVE, append("topics.tsv", b"x\t\xe9\n"), "not UTF-8", "iconv"),
    Case("endless line", RETRIEVE, write("topics.tsv", b"x" * (3 << 20)), ":1: a line longer", "format"),
    Case("topics gzip bomb", swap(RETRIEVE, "--topics", "t.tsv.gz"), line_bomb("t.tsv.gz"), "again|gzip bomb", "."),
    Case("topics is a folder", swap(RETRIEVE, "--topics", "index"), nothing, "is a folder", "file"),
    # index and first stage
    Case("missing index", swap(RETRIEVE, "--index", "none"), nothing, "none: no such", "index|path"),
    Case("folder that is no index", swap(RETRIEVE, "--index", "empty"), lambda f: (f / "empty").mkdir(), "empty: .*index", "segments"),
    Case("index with a torn file", RETRIEVE, lambda f: next((f / "index").glob("segments_*")).write_bytes(b"x" * 99), "index", "index|build"),
    Case("no hits wanted", (*RETRIEVE, "--hits", "0"), nothing, "hits", "1"),
    Case("illegal tag", (*RETRIEVE, "--tag", "a b"), nothing, "'a b' is no legal run tag", "letters"),
    Case("output is not ours", RETRIEVE, write("new.run", "precious\n"), "new.run: .*not written by this program", "force"),
    Case("output in no folder", swap(RETRIEVE, "--output", "topics.tsv/new.run"), nothing, "topics.tsv", "."),
    # runs and reranking
    Case("missing run", RERANK, gone("bm25.run"), r"bm25\.run: no such", "path"),
    Case("empty run", RERANK, write("bm25.run", ""), "the run is empty", "."),
    Case("five columns", RERANK, append("bm25.run", "9 Q0 tomato1 1 2.0\n"), r"bm25\.run:\d+: 5 columns", "qid Q0"),
    Case("NaN score", RERANK, append("bm25.run", "9 Q0 tomato1 1 nan t\n"), r":\d+: score 'nan' is not a finite", "float32"),
    Case("score too large", RERANK, append("bm25.run", "9 Q0 tomato1 1 1e39 t\n"), "1e39", "float32"),
    Case("document twice in a topic", RERANK, write("bm25.run", "1 Q0 tomato1 1 2 t\n1 Q0 tomato1 2 1 t\n"), r"bm25\.run:2: document 'tomato1' twice", "one line"),
    Case("topic in two places", RERANK, append("bm25.run", "1 Q0 bread1 9 0.1 t\n"), "topic '1' appears again", "sort"),
    Case("unknown document", RERANK, append("bm25.run", "5 Q0 nobody 9 0.1 t\n"), "nobody", "."),
    Case("unknown topic", RERANK, append("bm25.run", "zz Q0 tomato1 1 0.1 t\n"), "'zz'", "topic"),
    Case("no depth", (*RERANK, "--depth", "0"), nothing, "depth", "1"),
    Case("unknown model", swap(RERANK, "--model", "nowhere/at-all"), nothing, "nowhere/at-all", "."),
    Case("model folder is empty", MODEL, model(nothing), "model", "."),
    Case("model is a pickle", MODEL, model(lambda f: (write("config.json", BERT)(f), write("pytorch_model.bin", b"\x80\x04")(f))), "safetensors", "."),
    Case("model with garbage for weights", MODEL, model(lambda f: (write("config.json", BERT)(f), write("model.safetensors", b"x" * 99)(f))), "model", "."),
    Case("model config is no JSON", MODEL, model(write("config.json", "{")), "config.json", "."),
    Case("texts from a collection that lacks one", (*RERANK[:5], "--collection", "other.jsonl", *RERANK[7:]), write("other.jsonl", '{"id": "tomato1", "contents": "x"}\n'), "no document", "."),
    # evaluation
    Case("missing qrels", EVALUATE, gone("qrels.txt"), r"qrels\.txt: no such", "path"),
    Case("empty qrels", EVALUATE, write("qrels.txt", "\n"), r"qrels\.txt", "."),
    Case("grade in words", EVALUATE, append("qrels.txt", "1 0 x high\n"), r"qrels\.txt:\d+: grade 'high'", "grades"),
    Case("judged twice", EVALUATE, append("qrels.txt", "1 0 tomato1 1\n"), "judged twice", "one judgement"),
    Case("no topic in common", EVALUATE, write("qrels.txt", "zz 0 x 1\n"), "no judged topic", "right judgements"),
    Case("unknown measure", (*EVALUATE, "-m", "nDGC@10"), nothing, "nDGC", "nDCG"),
    Case("terminal codes in a run", EVALUATE, append("bm25.run", "9 Q0 \x1b[31mred 1 x\x1b[0m t\n"), r"\\x1b", "."),
    # experiments
    Case("missing experiment", RUN, gone("e.toml"), r"e\.toml: no such", "path"),
    Case("experiment of no TOML", RUN, append("e.toml", "[broken\n"), r"e\.toml.*not TOML.*line", "README"),
    Case("unknown key", RUN, append("e.toml", 'mesures = ["AP"]\n'), r"unknown key 'mesures'", "measures"),
    Case("value of the wrong type", (*RUN, "--set", "retrieve.hits=many"), nothing, "retrieve.hits = 'many'", "."),
    Case("a number of a thousand digits", (*RUN, "--set", "retrieve.k1=" + "9" * 1000), nothing, "retrieve.k1 = 9.* is not", "."),
    Case("a number no parser takes", (*RUN, "--set", "retrieve.k1=" + "9" * 5000), nothing, "retrieve.k1 = '9.* is not a number", "."),
    Case("bad topics for an output in a new folder", swap(RETRIEVE, "--output", "new/deep/new.run"), append("topics.tsv", "no tab\n"), "no tab", "."),
    Case("unknown stage", (*RUN, "--until", "rerankk"), nothing, "'rerankk'", "."),
    Case("experiment without topics file", RUN, gone("topics.tsv"), r"topics\.tsv", "path"),
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny collection, its index, and an experiment file."""
    folder = tmp_path_factory.mktemp("prepared") / "p"
    shutil.copytree(tiny, folder)
    (folder / "e.toml").write_text(EXPERIMENT)
    built = run("index", "--collection", "corpus.jsonl", "--index", "index", cwd=folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, prepared: Path, tmp_path: Path) -> None:
    """One line of what happened, one of what to do, exit code 1, nothing half-written."""
    folder = tmp_path / "case"
    shutil.copytree(prepared, folder)
    case.spoil(folder)
    before, folders_before = contents(folder), folders(folder)

    done = run(*case.command, cwd=folder, timeout=120)

    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert said[-2].startswith("pipeline: "), done.stderr
    assert said[-1].startswith("  "), done.stderr
    assert re.search(case.happened, said[-2]), done.stderr
    assert re.search(case.todo, said[-1]), done.stderr
    assert contents(folder) == before
    assert folders(folder) == folders_before


@pytest.mark.skipif(
    os.getuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere"
)
def test_no_permission(prepared: Path, tmp_path: Path) -> None:
    """A folder that may not be written is named, with what to check; nothing appears in it."""
    folder = tmp_path / "case"
    shutil.copytree(prepared, folder)
    folder.chmod(0o555)
    # Root keeps its name and loses its power over the modes of files.
    weaker = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    before = contents(folder)

    done = subprocess.run(
        [*weaker, sys.executable, "-m", "pipeline", *RETRIEVE],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    folder.chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert "no permission" in done.stderr
    assert "check the owner" in done.stderr
    assert contents(folder) == before


def test_a_closed_pipe_ends_quietly_with_141(prepared: Path) -> None:
    """`pipeline retrieve --output - | head -1` says nothing on stderr."""
    script = (
        f"{sys.executable} -m pipeline retrieve --index index --topics many.tsv --output - "
        "2>errors | head -1 >/dev/null; echo ${PIPESTATUS[0]}; cat errors"
    )
    topics = (prepared / "topics.tsv").read_text().splitlines()
    text = "".join(f"{n}x{t}\n" for n in range(3000) for t in topics)
    (prepared / "many.tsv").write_text(text)

    done = subprocess.run(
        ["bash", "-c", script], cwd=prepared, capture_output=True, text=True, check=False
    )
    (prepared / "many.tsv").unlink()
    (prepared / "errors").unlink()

    assert done.stdout.split() == ["141"]


@pytest.mark.skipif(
    os.getuid() == 0 and not shutil.which("setpriv"), reason="root may read everything"
)
@pytest.mark.parametrize(
    "command", [RETRIEVE, ["lint", "topics.tsv"], ["evaluate", "topics.tsv", "topics.tsv"]]
)
def test_a_file_that_may_not_be_read(prepared: Path, tmp_path: Path, command: list[str]) -> None:
    """It is named, with what to check; the command was right, so it is no error of usage."""
    folder = tmp_path / "case"
    shutil.copytree(prepared, folder)
    (folder / "topics.tsv").chmod(0)
    caps = "--bounding-set=-dac_override,-dac_read_search"
    weaker = ["setpriv", caps] if os.getuid() == 0 else []

    done = subprocess.run(
        [*weaker, sys.executable, "-m", "pipeline", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    happened, todo = done.stderr.splitlines()[-2:]
    assert "topics.tsv" in happened
    assert "no permission" in happened
    assert "check the owner" in todo
