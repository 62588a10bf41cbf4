"""Commands that take files: index, retrieve, rerank, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.evaluate import DEFAULT_MEASURES
from pipeline.index import IndexSettings
from pipeline.rerank import RerankSettings
from pipeline.retrieve import RetrieveSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.report import Reporter
    from pipeline.stage import Outcome

Output = Annotated[
    Path, typer.Option("--output", "-o", help="What to write; - is stdout, .gz is compressed.")
]
Topics = Annotated[
    Path, typer.Option("--topics", help="Topics: TSV, JSONL or TREC; - is stdin.")
]
Field = Annotated[
    str, typer.Option("--field", help="Of TREC topics: title, desc, narr, or title+desc.")
]
Tag = Annotated[str, typer.Option("--tag", help="The run's tag: letters, digits, _ and -.")]
Threads = Annotated[int, typer.Option("--threads", help="Threads; 0 takes every processor.")]
Force = Annotated[
    bool, typer.Option("--force", help="Do it though fresh, and replace what is not ours.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless it fails.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(index)
    app.command()(retrieve)
    app.command()(rerank)
    app.command()(evaluate)
