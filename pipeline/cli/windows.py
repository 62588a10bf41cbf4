"""The command that cuts long documents for whoever needs their windows one by one: windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.stages import (
    Force,
    Json,
    MaxWindows,
    Quiet,
    Stride,
    Tag,
    TextsCollection,
    TextsIndexes,
    Window,
    run_stage,
)
from pipeline.indexes import place
from pipeline.windows import WindowsSettings


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(windows)


def windows(
    run: Annotated[
        Path, typer.Option("--run", "-r", help="The candidates: any TREC run; - is stdin.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="The folder to make: texts and a run."),
    ],
    index: TextsIndexes = None,
    collection: TextsCollection = None,
    depth: Annotated[
        int, typer.Option(help="Candidates of a topic that are cut.")
    ] = WindowsSettings.depth,
    window: Window = WindowsSettings.window,
    stride: Stride = WindowsSettings.stride,
    most: MaxWindows = WindowsSettings.windows,
    tag: Tag = WindowsSettings.tag,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut the candidates of a run into windows: a collection and a run, to teach and learn from."""
    from pipeline import windows as stage

    settings = WindowsSettings(
        run, output, place(index), collection, depth, window, stride, most, tag, force
    )
    run_stage(
        "windows",
        lambda reporter: stage.windows(settings, reporter),
        quiet=quiet,
        as_json=as_json,
    )
