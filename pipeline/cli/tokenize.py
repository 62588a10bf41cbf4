"""The command that keeps token ids: tokenize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.stages import Force, Json, Quiet, TextsCollection, TextsIndex, run_stage
from pipeline.tokenize import TokenizeSettings


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(tokenize)


def tokenize(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Whose tokenizer: small, a folder, or a Hugging Face id."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder of tokens to make.")
    ],
    index: TextsIndex = None,
    collection: TextsCollection = None,
    max_tokens: Annotated[
        int, typer.Option(help="Where a passage is cut: the longest pair that will be read.")
    ] = TokenizeSettings.max_tokens,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tokenise passages once, for rerank; killed, it goes on where it was."""
    from pipeline import tokenize as stage

    settings = TokenizeSettings(model, output, index, collection, max_tokens, force)
    run_stage(
        "tokenize",
        lambda reporter: stage.tokenize(settings, reporter),
        quiet=quiet,
        as_json=as_json,
    )
