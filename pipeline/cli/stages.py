"""Commands that take files: index, retrieve, encode, fuse; and what such commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from pipeline.cli.console import outcome_record, print_json, reporting
from pipeline.encode import Dtype, EncodeSettings
from pipeline.errors import PipelineError, did_you_mean, shown
from pipeline.executor import Executor
from pipeline.fuse import FuseSettings, Method
from pipeline.index import IndexSettings
from pipeline.indexes import place
from pipeline.models.scorer import Device, Precision
from pipeline.retrieve import RetrieveSettings
from pipeline.shards import Shard
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
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto, fp32, bf16, fp16, or int8: cross-encoders on a CPU, faster, a little off.",
    ),
]
TokenBudget = Annotated[
    int,
    typer.Option("--token-budget", help="Tokens of one forward pass; 0: what suits the device."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Do it though fresh, and replace what is not ours.")
]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Do this share alone; pipeline merge joins them."),
]
On = Annotated[
    str | None,
    typer.Option(
        "--executor", metavar="ENGINE", help="ray, or ray:ADDRESS: workers that share the parts."
    ),
]
Workers = Annotated[int, typer.Option(help="Of the executor; 0: as many as there is room for.")]
TextsIndex = Annotated[
    Path | None, typer.Option("--index", "-i", metavar="DIR", help="Where the texts are,")
]
TextsIndexes = Annotated[
    list[Path] | None,
    typer.Option("--index", "-i", metavar="DIR", help="Where the texts are: one or several,"),
]
TextsCollection = Annotated[
    Path | None, typer.Option("--collection", "-c", help="or a collection to read them from.")
]
Window = Annotated[int, typer.Option(help="Words of a window.")]
Stride = Annotated[int, typer.Option(help="Words from one to the next.")]
MaxWindows = Annotated[int, typer.Option("--max-windows", help="Windows of one document, at most.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless it fails.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (index, retrieve, encode, fuse):
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
    shards: Annotated[
        int, typer.Option(help="Build so many indexes in one folder, searched as one.")
    ] = IndexSettings.shards,
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
        shards=shards,
        threads=threads,
        force=force,
    )
    run_stage(
        "index", lambda reporter: stage.index(settings, reporter), quiet=quiet, as_json=as_json
    )


def retrieve(
    topics: Topics,
    output: Output,
    index: Annotated[
        list[Path] | None,
        typer.Option("--index", "-i", metavar="DIR", help="The index, or several, for BM25,"),
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(metavar="DIR", help="or vectors, searched exactly with --model.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The two towers that made the vectors.")
    ] = None,
    ann: Annotated[
        bool, typer.Option("--ann", help="With vectors: by a graph, faster, and may miss some.")
    ] = False,
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
    tag: Annotated[
        str | None, typer.Option("--tag", help="The run's tag; bm25 or dense by default.")
    ] = None,
    threads: Threads = RetrieveSettings.threads,
    shard: ShardOf = None,
    executor: On = None,
    workers: Workers = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Retrieve the first stage's candidates: BM25 in Anserini's order, or by vectors."""
    from pipeline import dense
    from pipeline import retrieve as stage

    check_json(output, as_json)
    where = place(index)
    if vectors is not None or where is None:
        if shard is not None or executor is not None:
            raise PipelineError(
                f"{'--shard' if shard else '--executor'} and --vectors: such a search goes through "
                "every passage, for all topics together",
                "leave it out, or split the topics",
            )
        if vectors is None or model is None or where is not None:
            raise PipelineError(
                "a search goes through an index, or through vectors with the model that made them",
                "name --index DIR, or --vectors DIR and --model NAME",
            )
        by_vectors = dense.DenseSettings(
            vectors=vectors,
            topics=topics,
            model=model,
            output=output,
            field=field,
            hits=hits,
            ann=ann,
            tag=tag or dense.DenseSettings.tag,
            threads=threads,
            force=force,
        )
        run_stage(
            "retrieve",
            lambda reporter: dense.retrieve(by_vectors, reporter),
            quiet=quiet,
            as_json=as_json,
        )
        return
    if ann:
        raise PipelineError(
            "--ann with an index: BM25's search is exact", "name --vectors DIR and --model NAME"
        )
    if rm3 and rocchio:
        raise PipelineError("--rm3 and --rocchio together", "choose one")
    if stemmer is not None:
        one_of("--stemmer", stemmer, ("porter", "krovetz", "none"))
    settings = RetrieveSettings(
        topics=topics,
        index=where,
        output=output,
        field=field,
        hits=hits,
        k1=k1,
        b=b,
        feedback="rm3" if rm3 else "rocchio" if rocchio else "none",
        language=language,
        stemmer=stemmer,  # type: ignore[arg-type]
        tag=tag or RetrieveSettings.tag,
        threads=threads,
        force=force,
        shard=shard_of(shard),
        executor=executor_of(executor, workers),
    )
    run_stage(
        "retrieve",
        lambda reporter: stage.retrieve(settings, reporter),
        quiet=quiet,
        as_json=as_json,
    )


def encode(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Two towers: a folder or a Hugging Face id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder of vectors to make.")
    ],
    index: TextsIndex = None,
    collection: TextsCollection = None,
    dtype: Annotated[str, typer.Option(help="fp16, int8 or fp32.")] = EncodeSettings.dtype,
    max_tokens: Annotated[
        int | None, typer.Option(help="Where a passage is cut; default: the model's advice.")
    ] = EncodeSettings.max_tokens,
    device: DeviceName = EncodeSettings.device,
    precision: PrecisionName = EncodeSettings.precision,
    token_budget: TokenBudget = EncodeSettings.token_budget,
    threads: Threads = EncodeSettings.threads,
    shard: ShardOf = None,
    executor: On = None,
    workers: Workers = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode passages once, for retrieve and rerank; killed, it goes on where it was."""
    from pipeline import encode as stage

    settings = EncodeSettings(
        model=model,
        output=output,
        index=index,
        collection=collection,
        dtype=cast("Dtype", one_of("--dtype", dtype, get_args(Dtype))),
        max_tokens=max_tokens,
        device=device_of(device),
        precision=precision_of(precision),
        threads=threads,
        token_budget=token_budget,
        force=force,
        shard=shard_of(shard),
        executor=executor_of(executor, workers),
    )
    run_stage(
        "encode", lambda reporter: stage.encode(settings, reporter), quiet=quiet, as_json=as_json
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


def device_of(text: str) -> Device:
    """Read --device."""
    return cast("Device", one_of("--device", text, get_args(Device)))


def precision_of(text: str) -> Precision:
    """Read --precision."""
    return cast("Precision", one_of("--precision", text, get_args(Precision)))


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


def shard_of(text: str | None) -> Shard | None:
    """Read a share of the work."""
    return None if text is None else Shard.read(text)


def executor_of(text: str | None, workers: int) -> Executor | None:
    """Read who makes the parts.

    Raises:
        PipelineError: an engine that is not known, or workers without one.
    """
    if text is None:
        if workers:
            raise PipelineError("--workers without --executor", "add --executor ray")
        return None
    return Executor.read(text, workers)


def check_json(output: Path, as_json: bool) -> None:
    """Refuse to print two things on one stream."""
    if as_json and str(output) == STREAM:
        raise PipelineError("--json and --output - would share standard output", "choose one")
