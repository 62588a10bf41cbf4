"""Windows of long documents as a collection and a run of their own."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from elsewhere import refusal_on_small_disk, refusal_unprivileged
from refusal import check_two_lines, refused
from typer.testing import CliRunner

from pipeline import passages, store
from pipeline.cli.main import app
from pipeline.collection import documents
from pipeline.errors import InputError, PipelineError
from pipeline.index import IndexSettings, index
from pipeline.rerank import RerankSettings, rerank
from pipeline.stage import read_sidecar, sidecar_path
from pipeline.trec import read_run
from pipeline.windows import WindowsSettings, digest, windows

LONG = " ".join(f"word{n}" for n in range(23))


@pytest.fixture
def chosen(tmp_path: Path) -> WindowsSettings:
    """Three documents, two topics that share one of them; windows of 10 words every 5."""
    texts = {"long": LONG, "a#b": "a short text\twith a tab", "empty": ""}
    rows = ({"id": docid, "contents": text} for docid, text in texts.items())
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bm25.run").write_text(
        "q2 Q0 long 1 7.5 x\nq2 Q0 a#b 2 7.25 x\nq1 Q0 empty 1 3 x\nq1 Q0 long 2 2 x\n"
    )
    return WindowsSettings(
        run=tmp_path / "bm25.run",
        output=tmp_path / "cut",
        collection=tmp_path / "corpus.jsonl",
        window=10,
        stride=5,
    )


def texts_of(folder: Path) -> dict[str, str]:
    return {document.docid: document.text for document in documents(folder)}


def ranked(folder: Path) -> dict[str, list[str]]:
    rankings = read_run(folder / "candidates.run")
    return {ranking.qid: [doc.docid for doc in ranking.docs] for ranking in rankings}


def test_documents_are_cut_and_stay_in_their_order(chosen: WindowsSettings):
    """Every window once, in the order of the run; a short document is its only window."""
    done = windows(chosen)
    words = LONG.split()
    assert texts_of(chosen.output) == {
        "long#0": " ".join(words[:10]),
        "long#1": " ".join(words[5:15]),
        "long#2": " ".join(words[10:20]),
        "long#3": " ".join(words[15:23]),
        "a#b#0": "a short text\twith a tab",
        "empty#0": "",
    }
    assert ranked(chosen.output) == {
        "q2": ["long#0", "long#1", "long#2", "long#3", "a#b#0"],
        "q1": ["empty#0", "long#0", "long#1", "long#2", "long#3"],
    }
    assert done.counts == {
        "topics": 2,
        "documents": 3,
        "windows": 6,
        "deepest": 5,
        "documents_cut": 0,
    }
    assert list(map(passages.document_of, ranked(chosen.output)["q2"]))[-1] == ("a#b", 0)


def test_scores_are_those_of_the_documents_as_far_as_an_order_allows(chosen: WindowsSettings):
    windows(chosen)
    (first, _) = read_run(chosen.output / "candidates.run")
    scores = [doc.score for doc in first.docs]
    assert scores == pytest.approx([7.5, 7.5, 7.5, 7.5, 7.25], abs=1e-5)
    assert len(set(scores)) == 5


def test_what_lies_behind_depth_and_last_window_is_left_out(chosen: WindowsSettings):
    """And the second is told."""
    done = windows(replace(chosen, depth=1, windows=2))
    assert ranked(chosen.output) == {"q2": ["long#0", "long#1"], "q1": ["empty#0"]}
    assert done.counts == {
        "topics": 2,
        "documents": 2,
        "windows": 3,
        "deepest": 2,
        "documents_cut": 1,
    }


@pytest.mark.jvm
def test_texts_come_from_an_index_as_well(chosen: WindowsSettings, tmp_path: Path):
    """But for empty documents, which no index has."""
    lines = (tmp_path / "bm25.run").read_text().splitlines(keepends=True)
    (tmp_path / "bm25.run").write_text("".join(line for line in lines if "empty" not in line))
    windows(chosen)
    index(IndexSettings(tmp_path / "corpus.jsonl", tmp_path / "my.index"))
    other = replace(chosen, collection=None, index=tmp_path / "my.index", output=tmp_path / "other")
    windows(other)
    assert texts_of(other.output) == texts_of(chosen.output)
    assert ranked(other.output) == ranked(chosen.output)


def test_the_best_window_is_what_maxp_finds(tiny: Path, tmp_path: Path):
    """Reranking windows, then the best of each document: `rerank --windows maxp`."""
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    cut = windows(
        WindowsSettings(
            run=folder / "bm25.run",
            output=tmp_path / "cut",
            collection=folder / "corpus.jsonl",
            window=4,
            stride=2,
        )
    )
    assert cut.counts["windows"] > cut.counts["documents"]
    settings = RerankSettings(
        run=folder / "bm25.run",
        topics=folder / "topics.tsv",
        model=str(tiny_models.make(tmp_path / "model")),
        output=tmp_path / "documents.run",
        collection=folder / "corpus.jsonl",
        interpolate=1.0,
        aggregation="maxp",
        window=4,
        stride=2,
        precision="fp32",
        device="cpu",
    )
    rerank(settings)
    rerank(
        replace(
            settings,
            run=tmp_path / "cut/candidates.run",
            collection=tmp_path / "cut",
            output=tmp_path / "windows.run",
            aggregation="none",
        )
    )
    expected = {
        (ranking.qid, doc.docid): doc.score
        for ranking in read_run(tmp_path / "documents.run")
        for doc in ranking.docs
    }
    best: dict[tuple[str, str], float] = {}
    for ranking in read_run(tmp_path / "windows.run"):
        for doc in ranking.docs:
            best.setdefault((ranking.qid, passages.document_of(doc.docid)[0]), doc.score)
    assert best == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------- a stage like the others


def test_it_is_fresh_until_something_changes(chosen: WindowsSettings, tmp_path: Path):
    assert windows(chosen).computed
    assert not windows(chosen).computed
    assert windows(replace(chosen, stride=4)).reasons == ("stride changed (5 -> 4)",)
    (chosen.output / "collection.jsonl").write_text("{}")
    assert windows(replace(chosen, stride=4)).computed
    with (tmp_path / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"id": "new", "contents": "text"}\n')
    assert windows(replace(chosen, stride=4)).computed


def test_after_a_crash_what_is_called_finished_is(
    chosen: WindowsSettings, monkeypatch: pytest.MonkeyPatch
):
    """At whatever write it comes; the next execution does the rest."""
    windows(chosen)
    other = replace(chosen, window=7)
    real, fatal = store.os.fsync, 0
    while fatal < 30:
        count, fatal = 0, fatal + 1

        def failing(descriptor: int, last: int = fatal) -> None:
            nonlocal count
            count += 1
            if count == last:
                raise KeyboardInterrupt
            real(descriptor)

        monkeypatch.setattr(store.os, "fsync", failing)
        try:
            windows(other)
            break
        except KeyboardInterrupt:
            sidecar = read_sidecar(chosen.output)
            if sidecar is not None and sidecar["state"] == "finished":
                assert digest(chosen.output) == sidecar["output"]["sha256"]
    assert fatal > 4
    monkeypatch.undo()
    windows(other)
    again = replace(other, output=chosen.output.parent / "again")
    windows(again)
    assert store.digest_folder(other.output) == store.digest_folder(again.output)
    assert sorted(path.name for path in chosen.output.parent.iterdir()) == sorted(
        ["bm25.run", "corpus.jsonl", "cut", "cut.json", "again", "again.json"]
    )


def test_the_command_says_what_it_did(chosen: WindowsSettings):
    command = [
        *("windows", "--run", str(chosen.run), "--collection", str(chosen.collection)),
        *("--output", str(chosen.output), "--window", "10", "--stride", "5", "--max-windows", "2"),
    ]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"]["windows"] == 4
    told = CliRunner().invoke(app, [*command, "--force"])
    assert "1 documents go on behind their last window (--max-windows)" in told.stderr
    assert "a topic has up to 3 windows: to score all of them, rerank --depth 3" in told.stderr
    assert sidecar_path(chosen.output).exists()


def test_a_run_may_come_from_standard_input(
    chosen: WindowsSettings, monkeypatch: pytest.MonkeyPatch
):
    windows(chosen)
    piped = replace(chosen, run=Path("-"), output=chosen.output.parent / "piped")
    for _ in range(2):
        text = io.BytesIO(chosen.run.read_bytes())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(text))
        done = windows(piped)
    assert not done.computed
    assert store.digest_folder(piped.output) == store.digest_folder(chosen.output)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 0}, "--depth 0 is out of range"),
        ({"window": 0}, "--window 0 is out of range"),
        ({"window": 10**23}, f"--window {10**23} is out of range"),
        ({"stride": 11}, "--stride 11 is out of range"),
        ({"windows": 0}, "--max-windows 0 is out of range"),
        ({"windows": 1_000_000}, "--max-windows 1000000 is out of range"),
        ({"tag": "two words"}, "two words"),
        ({"collection": None}, "collection"),
        ({"output": Path("-")}, "no folder"),
    ],
)
def test_settings_that_cannot_be(chosen: WindowsSettings, changes: dict[str, Any], said: str):
    with pytest.raises(PipelineError) as raised:
        windows(replace(chosen, **changes))
    check_two_lines(raised.value, said)


def test_a_document_without_text_is_named_with_its_line(chosen: WindowsSettings):
    with chosen.run.open("a") as run:
        run.write("q3 Q0 nowhere 1 1 x\n")
    with refused(f"{chosen.run}:5: topic 'q3': no document 'nowhere'", "made from", InputError):
        windows(chosen)
    assert not chosen.output.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q1 Q0 long 1\n", "4 columns"),
        ("q1 Q0 long 1 nan x\n", "nan"),
        ("q1 Q0 long 1 2 x\nq1 Q0 long 2 1 x\n", "twice"),
    ],
)
def test_a_run_that_is_none(chosen: WindowsSettings, line: str, said: str):
    chosen.run.write_text(line)
    with refused(said, kind=InputError):
        windows(chosen)
    assert not chosen.output.exists()


def test_what_others_put_beside_the_windows_is_not_lost(chosen: WindowsSettings):
    """It makes nothing stale, and stops a folder from being replaced."""
    windows(chosen)
    (chosen.output / "mine.run").write_text("work of hours")
    assert not windows(chosen).computed
    with refused("'mine.run' lies there, and would be lost", "--force"):
        windows(replace(chosen, stride=4))
    assert (chosen.output / "mine.run").exists()
    assert windows(replace(chosen, stride=4, force=True)).computed


def test_inputs_that_are_not_there(chosen: WindowsSettings):
    with refused("no such run"):
        windows(replace(chosen, run=Path("nowhere.run")))
    with refused("no such collection"):
        windows(replace(chosen, collection=Path("nowhere.jsonl")))


def test_what_is_not_ours_is_not_replaced(chosen: WindowsSettings):
    chosen.output.mkdir()
    (chosen.output / "thesis.tex").write_text("years of work")
    with refused("was not written by this program", "--force"):
        windows(chosen)
    with refused("overlap"):
        windows(replace(chosen, output=chosen.run.parent))
    assert (chosen.output / "thesis.tex").exists()


CUT = """
run, collection = Path("big.run"), Path("big.tsv")
windows.windows(windows.WindowsSettings(run, Path("{place}/cut"), collection=collection))
"""


def big(folder: Path) -> None:
    """Documents whose windows do not fit on a small disk."""
    (folder / "big.run").write_text("".join(f"q Q0 d{n} {n + 1} {-n} x\n" for n in range(20)))
    text = "many words " * 1500
    (folder / "big.tsv").write_text("".join(f"d{n}\t{text}\n" for n in range(20)))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path):
    big(tmp_path)
    refusal = refusal_on_small_disk(CUT.format(place="disk"), tmp_path, "512k")
    assert refusal is not None
    assert refusal[0] == "StorageError"
    assert "the disk is full" in refusal[1]


def test_a_folder_that_may_not_be_written_to(shared_path: Path):
    big(shared_path)
    (shared_path / "closed").mkdir(0o755)
    refusal = refusal_unprivileged(CUT.format(place="closed"), shared_path)
    assert refusal is not None
    assert refusal[0] == "StorageError"
    assert "closed" in refusal[1]


@pytest.mark.parametrize(
    "name", ["", "a", "#1", "a#", "a#b", "a#-1", "a#\N{ARABIC-INDIC DIGIT ONE}"]
)
def test_names_that_are_no_windows(name: str):
    with pytest.raises(ValueError, match="no window"):
        passages.document_of(name)
