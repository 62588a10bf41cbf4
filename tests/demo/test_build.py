"""The demo's folder: its files are written there, and nobody else's are written over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from folders import file_of, names
from killing import contents
from refusal import refused

from pipeline.demo.build import lay_out
from pipeline.experiment import load
from pipeline.topics import read_topics

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_of_the_demo_is_completed_and_mended(tmp_path: Path) -> None:
    """An edited file is put right again, so that the printed table means the same everywhere."""
    folder = tmp_path / "demo"
    laid = lay_out(folder)
    before = contents(folder)
    assert names(folder) == ["collection.jsonl", "experiment.toml", "qrels.txt", "topics.tsv"]
    assert laid.topics == len(read_topics(folder / "topics.tsv"))
    assert [step.name for step in load(laid.experiment).steps][-2:] == ["small", "evaluate"]

    (folder / "topics.tsv").write_text("1\tedited\n")
    (folder / "qrels.txt").unlink()
    assert lay_out(folder) == laid
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["experiment.toml", "topics.tsv", "qrels.txt", "collection.jsonl"])
def test_files_of_others_are_not_written_over(tmp_path: Path, name: str) -> None:
    """`pipeline demo .` where somebody keeps topics of their own leaves them alone."""
    mine = file_of(tmp_path, "precious\n", name)
    with refused(f"{mine}: exists already and is not the demo's", "pipeline demo DIR"):
        lay_out(tmp_path)
    assert contents(tmp_path) == {name: b"precious\n"}


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """A file of that name is said so."""
    mine = file_of(tmp_path, "precious\n")
    with refused(str(mine)):
        lay_out(mine)
    assert mine.read_text() == "precious\n"
