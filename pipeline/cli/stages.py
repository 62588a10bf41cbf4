"""Commands that take files: index, retrieve, fuse; and what such commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from pipeline.cli.console import outcome_record, print_json, reporting
from pipeline.errors import PipelineError, did_you_mean, shown
from pipeline.fuse import FuseSettings, Method
from pipeline.index import IndexSettings
from pipeline.retrieve import RetrieveSettings
from pipeline.textfile import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.report import Reporter
    from pipeline.stage import Outcome

Output = Annotated[
    Path, typer.Option("--output", "-o", help="What to write; - is stdout, .gz is compressed.")
]
Topics = Annotated[
    Path, typer.Option("--topics", "-t", help="Topics: TSV, JSONL or TREC; - is stdin.")
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
    for command in (index, retrieve, fuse):
        app.command()(command)


def index(
    collection: Annotated[
        str,
        typer.Option(
            "--collection", "-c", metavar="PATH", help="A file, a folder, or ir_datasets:ID."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--index", "-i", metavar="DIR", help="The index to build.")
    ],
    language: Annotated[
        str, typer.Option(help="Language of the text, as Anserini names its analyzers.")
    ] = IndexSettings.language,
    stemmer: Annotated[str, typer.Option(help="porter, krovetz or none.")] = IndexSettings.stemmer,
    stopwords: Annotated[
        str, typer.Option(help="default, keep, or a file with one word a line.")
    ] = str(IndexSettings.stopwords),
    threads: Threads = IndexSettings.threads,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build a Lucene index of a collection: whole, or not at all."""
    from pipeline import index as stage

    settings = IndexSettings(
        collection=Path(collection),
        output=output,
        language=language,
        stemmer=one_of("--stemmer", stemmer, ("porter", "krovetz", "none")),  # type: ignore[arg-type]
        stopwords=stopwords if stopwords in ("default", "keep") else Path(stopwords),  # type: ignore[arg-type]
        threads=threads,
        force=force,
    )
    run_stage(
        "index", lambda reporter: stage.index(settings, reporter), quiet=quiet, as_json=as_json
    )


def retrieve(
    index: Annotated[Path, typer.Option("--index", "-i", metavar="DIR", help="The index.")],
    topics: Topics,
    output: Output,
    field: Field = RetrieveSettings.field,
    hits: Annotated[int, typer.Option(help="Documents a topic.")] = RetrieveSettings.hits,
    k1: Annotated[float, typer.Option(help="BM25's k1.")] = RetrieveSettings.k1,
    b: Annotated[float, typer.Option(help="BM25's b.")] = RetrieveSettings.b,
    rm3: Annotated[bool, typer.Option("--rm3", help="Expand the query by RM3.")] = False,
    rocchio: Annotated[
        bool, typer.Option("--rocchio", help="Expand the query by Rocchio's feedback.")
    ] = False,
    language: Annotated[
        str | None, typer.Option(help="For an index of others that does not say it.")
    ] = RetrieveSettings.language,
    stemmer: Annotated[
        str | None, typer.Option(help="Likewise: porter, krovetz or none.")
    ] = RetrieveSettings.stemmer,
    tag: Tag = RetrieveSettings.tag,
    threads: Threads = RetrieveSettings.threads,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Retrieve the first stage's candidates: BM25, in Anserini's order."""
    from pipeline import retrieve as stage

    if rm3 and rocchio:
        raise PipelineError("--rm3 and --rocchio together", "choose one")
    if stemmer is not None:
        one_of("--stemmer", stemmer, ("porter", "krovetz", "none"))
    settings = RetrieveSettings(
        topics=topics,
        index=index,
        output=output,
        field=field,
        hits=hits,
        k1=k1,
        b=b,
        feedback="rm3" if rm3 else "rocchio" if rocchio else "none",
        language=language,
        stemmer=stemmer,  # type: ignore[arg-type]
        tag=tag,
        threads=threads,
        force=force,
    )
    check_json(output, as_json)
    run_stage(
        "retrieve",
        lambda reporter: stage.retrieve(settings, reporter),
        quiet=quiet,
        as_json=as_json,
    )


def fuse(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Two runs or more; - is stdin.")
    ],
    output: Output,
    method: Annotated[
        str, typer.Option(help="rrf (reciprocal ranks) or weighted (standardised scores).")
    ] = FuseSettings.method,
    weights: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Of each run, in their order; default: all equal."),
    ] = None,
    k: Annotated[float, typer.Option("--k", help="The constant of rrf.")] = FuseSettings.k,
    hits: Annotated[int, typer.Option(help="Documents a topic.")] = FuseSettings.hits,
    tag: Tag = FuseSettings.tag,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fuse runs over the same topics into one: by their ranks, or by a weighted sum of scores."""
    from pipeline import fuse as stage

    settings = FuseSettings(
        runs=tuple(runs),
        output=output,
        method=cast("Method", one_of("--method", method, get_args(Method))),
        weights=tuple(weights or ()),
        k=k,
        hits=hits,
        tag=tag,
        force=force,
    )
    check_json(output, as_json)
    run_stage("fuse", lambda reporter: stage.fuse(settings, reporter), quiet=quiet, as_json=as_json)


def run_stage(
    name: str, work: Callable[[Reporter], Outcome], *, quiet: bool, as_json: bool
) -> None:
    """Run one stage with its progress, and say what it did."""
    with reporting(name, quiet=quiet) as console:
        outcome = work(console)
        console.done(outcome)
    if as_json:
        print_json(outcome_record(outcome))


def one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    """Return `value` if it is one of those known to an option."""
    if value not in known:
        raise PipelineError(f"{option} {shown(value)} is not known", did_you_mean(value, [*known]))
    return value


def check_json(output: Path, as_json: bool) -> None:
    """Refuse to print two things on one stream."""
    if as_json and str(output) == STREAM:
        raise PipelineError("--json and --output - would share standard output", "choose one")
