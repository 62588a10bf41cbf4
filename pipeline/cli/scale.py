"""Commands for work that several machines do: merge, slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.experiments import ExperimentFile, Overrides
from pipeline.cli.stages import Force, Json, Quiet, run_stage


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(merge)
    app.command()(slurm)


def merge(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The whole, as each --shard was given it.")
    ],
    shards: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SHARD...]", help="Default: those that lie beside the output."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Join the shards of a run or of vectors: the bytes of one process, or a refusal."""
    from pipeline import merge as stage

    settings = stage.MergeSettings(output, tuple(shards or ()), force)
    run_stage(
        "merge", lambda reporter: stage.merge(settings, reporter), quiet=quiet, as_json=as_json
    )


def slurm(
    experiment: ExperimentFile,
    shards: Annotated[int, typer.Option(help="Jobs that share a stage.")] = 16,
    output: Annotated[Path, typer.Option("--output", "-o", help="The script; - is stdout.")] = Path(
        "-"
    ),
    overrides: Overrides = None,
) -> None:
    """Write the script that runs an experiment as arrays of Slurm jobs, which may be requeued."""
    from pipeline import experiment as experiments
    from pipeline import slurm as scripts

    given = overrides or []
    scripts.write(experiments.load(experiment, given), shards, output, given)
