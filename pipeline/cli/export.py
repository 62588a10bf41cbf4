"""The command that makes a model ready for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import outcome_record, print_json, reporting

if TYPE_CHECKING:
    from pipeline.stage import Outcome


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(export)


def export(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A cross-encoder: small, a folder, or an id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")
    ],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="With an ONNX graph in float32 (BERT only).")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="With the ONNX graph in int8 as well.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do it though fresh, and replace what is not ours.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing unless it fails.")
    ] = False,
) -> None:
    """Write a model for other programs, checked against the original on real pairs."""
    from pipeline import export as stage

    settings = stage.ExportSettings(model, output, onnx, int8, force)
    with reporting("export", quiet=quiet) as console:
        outcome = stage.export(settings, console)
        console.done(outcome)
    if as_json:
        print_json(outcome_record(outcome))
    elif not quiet:
        _print_check(outcome)


def _print_check(outcome: Outcome) -> None:
    from pipeline.cli.console import plain_table

    counts = outcome.counts
    header = ["form", "MB", "max diff", "mean diff", "tau", "topics reordered", "first changed"]
    rows = [
        [
            form,
            f"{found['bytes'] / 1e6:.1f}",
            f"{found['largest']:.2g}",
            f"{found['mean']:.2g}",
            f"{found['tau']:.4f}",
            f"{found['reordered']} of {counts['topics']}",
            f"{found['first_changed']} of {counts['topics']}",
        ]
        for form, found in outcome.details["checked"].items()
    ]
    print(f"logits of {counts['pairs']:,} real pairs against the original's in float32:\n")
    print(plain_table(header, rows))
