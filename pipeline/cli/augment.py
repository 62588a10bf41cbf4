"""The command that makes more topics out of those there are: augment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.augment import AugmentSettings
from pipeline.cli.stages import Field, Force, Json, Quiet, run_stage


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(augment)


def augment(
    topics: Annotated[Path, typer.Option("--topics", "-t", help="Topics: TSV, JSONL or TREC.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="A masked language model: a folder, or a Hugging Face id."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the topics and their variants go, as TSV.")
    ],
    field: Field = AugmentSettings.field,
    copies: Annotated[
        int, typer.Option(help="Variants of a topic, at most.")
    ] = AugmentSettings.copies,
    probability: Annotated[
        float, typer.Option(help="That a word is replaced.")
    ] = AugmentSettings.probability,
    words: Annotated[
        int, typer.Option(help="Likely words that the replacement is drawn from.")
    ] = AugmentSettings.words,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = AugmentSettings.seed,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Vary topics by a masked language model, to train on; killed, it goes on where it was."""
    from pipeline import augment as stage

    settings = AugmentSettings(
        topics, model, output, field, copies, probability, words, seed, force
    )
    run_stage(
        "augment",
        lambda reporter: stage.augment(settings, reporter),
        quiet=quiet,
        as_json=as_json,
    )
