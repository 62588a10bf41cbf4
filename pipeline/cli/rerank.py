"""The command with the most options: rerank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from pipeline.cli.stages import (
    DeviceName,
    Field,
    Force,
    Json,
    MaxWindows,
    On,
    Output,
    PrecisionName,
    Quiet,
    ShardOf,
    Stride,
    Tag,
    TextsIndexes,
    Threads,
    TokenBudget,
    Window,
    Workers,
    check_json,
    device_of,
    executor_of,
    one_of,
    precision_of,
    run_stage,
    shard_of,
)
from pipeline.errors import PipelineError
from pipeline.indexes import place
from pipeline.passages import Aggregation
from pipeline.rerank import RerankSettings

if TYPE_CHECKING:
    from pipeline.report import Reporter
    from pipeline.stage import Outcome


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(rerank)


def rerank(
    model: Annotated[
        str, typer.Option("--model", "-m", help="small, a folder, or a Hugging Face id.")
    ],
    output: Output,
    run: Annotated[
        Path | None, typer.Option("--run", "-r", help="The candidates: any TREC run; - is stdin.")
    ] = None,
    topics: Annotated[
        Path | None, typer.Option("--topics", "-t", help="Topics: TSV, JSONL or TREC; - is stdin.")
    ] = None,
    tira: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="TIRA's $inputDataset, for candidates, topics, texts."),
    ] = None,
    index: TextsIndexes = None,
    collection: Annotated[
        Path | None, typer.Option("--collection", "-c", help="or a collection to read them from.")
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of two towers: passages encoded by pipeline encode."),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Passages tokenised by pipeline tokenize."),
    ] = None,
    field: Field = RerankSettings.field,
    depth: Annotated[
        int, typer.Option(help="Candidates of a topic that are scored.")
    ] = RerankSettings.depth,
    tail: Annotated[
        str, typer.Option(help="Candidates below: keep them last, or drop them.")
    ] = RerankSettings.tail,
    interpolate: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="Weight of the model beside the first stage, both standardised by topic; "
            "1 is the model alone; default: what the model's folder recommends.",
        ),
    ] = RerankSettings.interpolate,
    aggregation: Annotated[
        str,
        typer.Option(
            "--windows",
            metavar="HOW",
            help="Cut long documents into windows: maxp, firstp, topk or sump.",
        ),
    ] = RerankSettings.aggregation,
    window: Window = RerankSettings.window,
    stride: Stride = RerankSettings.stride,
    windows: MaxWindows = RerankSettings.windows,
    top: Annotated[int, typer.Option(help="Windows that topk averages.")] = RerankSettings.top,
    max_query_tokens: Annotated[
        int | None, typer.Option(help="Where a query is cut; default: the model's advice.")
    ] = RerankSettings.max_query_tokens,
    max_tokens: Annotated[
        int | None, typer.Option(help="Where a pair is cut; default: the model's advice.")
    ] = RerankSettings.max_tokens,
    positive: Annotated[
        int | None, typer.Option(help="Of a two-logit model: which one means relevant.")
    ] = RerankSettings.positive,
    device: DeviceName = RerankSettings.device,
    precision: PrecisionName = RerankSettings.precision,
    token_budget: TokenBudget = RerankSettings.token_budget,
    tag: Tag = RerankSettings.tag,
    threads: Threads = RerankSettings.threads,
    shard: ShardOf = None,
    executor: On = None,
    workers: Workers = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rerank candidates with a model and write a run; killed, it goes on where it was."""
    from pipeline import rerank as stage
    from pipeline.tira import opened

    if tira is None:
        for option, value in (("--run / -r", run), ("--topics / -t", topics)):
            if value is None:
                raise typer.BadParameter(f"Missing option {option}.")
    elif any(each is not None for each in (run, topics, index, collection)):
        raise PipelineError(
            "--tira brings candidates, topics and texts itself",
            "leave --run, --topics, --index and --collection out",
        )
    settings = RerankSettings(
        run=run or Path(),
        topics=topics or Path(),
        model=model,
        output=output,
        index=place(index),
        collection=collection,
        vectors=vectors,
        tokens=tokens,
        field=field,
        depth=depth,
        tail=one_of("--tail", tail, ("keep", "drop")),  # type: ignore[arg-type]
        interpolate=interpolate,
        aggregation=cast("Aggregation", one_of("--windows", aggregation, get_args(Aggregation))),
        window=window,
        stride=stride,
        windows=windows,
        top=top,
        max_query_tokens=max_query_tokens,
        max_tokens=max_tokens,
        positive=positive,
        device=device_of(device),
        precision=precision_of(precision),
        threads=threads,
        token_budget=token_budget,
        tag=tag,
        force=force,
        shard=shard_of(shard),
        executor=executor_of(executor, workers),
    )
    check_json(output, as_json)

    def work(reporter: Reporter) -> Outcome:
        if tira is None:
            return stage.rerank(settings, reporter)
        with opened(tira) as given:
            return stage.rerank(replace(settings, **given._asdict()), reporter)

    run_stage("rerank", work, quiet=quiet, as_json=as_json)
