"""The command that holds quality against cost: sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import plain_table, print_json, reporting
from pipeline.cli.stages import (
    DeviceName,
    Field,
    Force,
    Json,
    On,
    PrecisionName,
    Quiet,
    TextsCollection,
    TextsIndex,
    Threads,
    Workers,
    device_of,
    executor_of,
    one_of,
    precision_of,
)
from pipeline.errors import PipelineError
from pipeline.textfile import STREAM


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(sweep)


def sweep(
    qrels: Annotated[Path, typer.Argument(metavar="QRELS", help="The judgements.")],
    run: Annotated[Path, typer.Option("--run", "-r", help="The candidates: any TREC run.")],
    topics: Annotated[Path, typer.Option("--topics", "-t", help="Topics: TSV, JSONL or TREC.")],
    models: Annotated[
        list[str], typer.Option("--model", "-m", help="small, a folder, …; may be repeated.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="For runs, table and figures.")
    ],
    index: TextsIndex = None,
    collection: TextsCollection = None,
    depths: Annotated[
        list[int] | None,
        typer.Option("--depth", help="Candidates reranked; may be repeated; 10, 20, 50, 100."),
    ] = None,
    measures: Annotated[
        list[str] | None,
        typer.Option("--measure", help="As ir_measures spells it; may be repeated; nDCG@10."),
    ] = None,
    field: Field = "title",
    interpolate: Annotated[
        float | None,
        typer.Option(metavar="WEIGHT", help="Of the model beside the first stage; see rerank."),
    ] = None,
    device: DeviceName = "auto",
    precision: PrecisionName = "auto",
    plot_format: Annotated[
        list[str] | None,
        typer.Option(help="png, svg, pdf, or none; may be repeated; png and svg."),
    ] = None,
    threads: Threads = 0,
    executor: On = None,
    workers: Workers = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Models and depths: effectiveness against milliseconds a topic, and what nobody beats."""
    from pipeline import plots
    from pipeline.rerank import RerankSettings
    from pipeline.store import write_json
    from pipeline.sweep import DEPTHS, MEASURES
    from pipeline.sweep import sweep as swept

    kinds = [
        one_of("--plot-format", k, (*plots.FORMATS, "none")) for k in plot_format or ("png", "svg")
    ]
    kinds = [kind for kind in kinds if kind != "none"]
    if kinds:
        plots.check_matplotlib()
    if STREAM in map(str, (qrels, run, topics, output)):
        raise PipelineError("a sweep reads its files several times", "give files, not streams")
    if output.exists() and not output.is_dir():
        raise PipelineError(f"{output}: is a file", "name a folder, for runs and figures")
    settings = RerankSettings(
        run=run, topics=topics, model="", output=output, index=index, collection=collection,
        field=field, interpolate=interpolate, threads=threads, force=force,
        device=device_of(device),
        precision=precision_of(precision), executor=executor_of(executor, workers),
    )  # fmt: skip
    with reporting("sweep", quiet=quiet) as console:
        found = swept(qrels, settings, models, depths or DEPTHS, measures or MEASURES, console)
        for note in found.notes:
            console.notice(note)
        write_json(output / "sweep.json", found.record())
        for kind in kinds:
            for path in plots.draw_sweep(found, output, kind):
                console.notice(f"{path}: written")
    if as_json:
        print_json(found.record())
        return
    cells = found.cells()
    print(plain_table(cells[0], cells[1:]))
    print("\n* nobody is as fast and better, or faster and as good; [95% confidence interval]")
