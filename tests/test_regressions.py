"""What docs/regressions.md claims: its scores, its reference runs, and that we still make them."""

from __future__ import annotations

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import pytest
from killing import run

from pipeline.evaluate import evaluate_runs
from pipeline.trec import read_run

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "runs" / "reference"
MEASURES = ("nDCG@10", "RR@10", "AP", "R@100")
SAMPLE = None if os.environ.get("PIPELINE_SOAK") else 8

pytestmark = [pytest.mark.jvm, pytest.mark.slow]


def table() -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Rows of the page: collection, split, run, printed scores."""
    rows = []
    for line in (ROOT / "docs" / "regressions.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 + len(MEASURES) and cells[2] in ("bm25", "small"):
            rows.append((cells[0], cells[1], cells[2], tuple(cells[3:])))
    return rows


ROWS = table()
IDS = [f"{name}-{split}-{system}" for name, split, system, _ in ROWS]


def test_the_page_has_its_table() -> None:
    assert len(ROWS) == 6


@pytest.mark.parametrize(("name", "split", "system", "scores"), ROWS, ids=IDS)
def test_reference_runs_reach_the_scores(
    collections: Path, name: str, split: str, system: str, scores: tuple[str, ...]
) -> None:
    """To the digit printed."""
    qrels = collections / name / f"qrels.{split}.txt"
    measured = evaluate_runs(qrels, [REFERENCE / f"{name}.{split}.{system}.run.gz"], MEASURES)

    assert measured.cells()[1][1:] == list(scores)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("regressions")


@pytest.mark.parametrize(
    ("name", "split"), sorted({(name, split) for name, split, _, _ in ROWS}), ids="-".join
)
def test_we_still_make_them(collections: Path, work: Path, name: str, split: str) -> None:
    """BM25 byte for byte; the student's scores within what another processor's bf16 may change."""
    topics = collections / name / f"topics.{split}.tsv"
    corpus = collections / name / "corpus.jsonl.gz"
    index = work / f"{name}.index"
    assert run("index", "--collection", corpus, "--index", index, cwd=work).returncode == 0
    found = work / f"{name}.{split}.bm25.run"
    search = ("retrieve", "--index", index, "--topics", topics, "--hits", "100")
    done = run(*search, "--output", found, cwd=work)
    assert done.returncode == 0, done.stderr

    assert found.read_bytes() == gzip.decompress(
        (REFERENCE / f"{name}.{split}.bm25.run.gz").read_bytes()
    )

    some = [ranking.qid for ranking in islice(read_run(found), SAMPLE)]
    few = work / f"{name}.{split}.few.run"
    lines = found.read_text().splitlines(keepends=True)
    few.write_text("".join(line for line in lines if line.split(" ", 1)[0] in set(some)))
    ours = work / f"{name}.{split}.small.run"
    done = run(
        "rerank", "--run", few, "--topics", topics, "--index", index, "--model", "small",
        "--output", ours, "--json", cwd=work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["pairs_scored"] > 0
    reference = {r.qid: dict(r.docs) for r in read_run(REFERENCE / f"{name}.{split}.small.run.gz")}
    for ranking in read_run(ours):
        assert dict(ranking.docs) == pytest.approx(reference[ranking.qid], abs=0.1)
