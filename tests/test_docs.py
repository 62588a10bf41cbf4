"""What the documentation shows works as it is written."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli.main import app
from pipeline.trec import read_run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHIPPED = ROOT / "pipeline" / "demo" / "small" / "model.safetensors"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_python_page_runs_from_top_to_bottom(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the tiny collection, whose names it uses; without the student, by shared words."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks(ROOT / "docs" / "python.md", "python"))
    if not SHIPPED.exists():
        program = program.replace('"small"', '"overlap"')
    spaces: dict[str, Any] = {}

    exec(compile(program, "docs/python.md", "exec"), spaces)  # noqa: S102 - our own page

    said = capsys.readouterr().out
    assert "1 tomato1 2.78095" in said
    assert "topics.tsv:1: 4 columns instead of 6" in said
    (mine,) = read_run("mine.run")
    assert [doc.docid for doc in mine.docs] == ["tomato2", "tomato1", "rose"]
    assert "7.4999995" in Path("mine.run").read_text()
    assert {one.qid for one in read_run("reranked.run.gz")} == {"1", "2", "3", "007", "4", "5"}
    assert spaces["result"].unanswered


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file of the repository."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [
        link
        for link in links
        if "://" not in link
        and not (page.parent / link).exists()
        and ("/demo/small/" not in link or SHIPPED.exists())
    ]
    assert missing == []


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `pipeline ...` in the shell blocks of a page."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for piece in re.split(r"\s\|\|?\s?|\s&&\s|;|>|<\(", line.partition(" #")[0]):
                if piece.split()[:1] == ["pipeline"]:
                    yield shlex.split(piece)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_spelled_as_the_program_knows_them(page: Path) -> None:
    """Every command and every option that a page shows exists."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, *words in commands(page):
        assert name in known, (name, words)
        options = {spelling for one in known[name].params for spelling in one.opts}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= options, (name, used - options)


def test_the_pages_show_commands() -> None:
    """Or the test above would look at nothing."""
    assert sum(1 for page in PAGES for _ in commands(page)) > 30
