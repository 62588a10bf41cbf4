"""The command verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import plain_table, print_json, reporting
from pipeline.cli.stages import Json, Quiet
from pipeline.errors import one_line

if TYPE_CHECKING:
    from pipeline.verify import Verification

SHOWN = 10  # documents that moved


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(verify)


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of ours, beside its RUN.json.")],
    sample: Annotated[int, typer.Option(help="Topics that are scored again.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 42,
    tolerance: Annotated[float, typer.Option(help="Of scores; 0 asks for the same bits.")] = 0.0,
    candidates: Annotated[
        Path | None, typer.Option("--run", "-r", help="The candidates, if they moved since,")
    ] = None,
    topics: Annotated[
        Path | None, typer.Option("--topics", "-t", help="the topics likewise,")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="the model,")] = None,
    index: Annotated[
        Path | None, typer.Option("--index", "-i", metavar="DIR", help="the index,")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", metavar="PATH", help="or the collection.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 takes every processor.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score some topics of a run again: 0 the same, 3 another score or rank."""
    from pipeline.verify import VerifySettings
    from pipeline.verify import verify as check

    given = {"run": candidates, "topics": topics, "model": model, "index": index,
             "collection": collection}  # fmt: skip
    places = {name: place for name, place in given.items() if place is not None}
    settings = VerifySettings(run, sample, seed, tolerance, places, threads)
    with reporting("verify", quiet=quiet) as console:
        found = check(settings, console)
    if as_json:
        print_json(found.record())
    else:
        _print(found)
    if not found.well:
        raise typer.Exit(3)


def _print(found: Verification) -> None:
    documents = sum(each.documents for each in found.checked)
    print(
        f"{one_line(found.run)}: {len(found.checked)} of {found.topics:,} topics scored again, "
        f"{documents:,} documents"
    )
    worst = found.worst
    where = f" (topic {worst.qid}, document {worst.docid})" if worst.difference else ""
    print(f"largest difference of a score: {worst.difference:.3g}{one_line(where)}")
    print(f"documents with another rank:   {found.moved:,}")
    rows = [
        [one_line(each.qid), one_line(docid), f"{before or '-'}", f"{after or '-'}"]
        for each in found.checked
        for docid, before, after in each.moved
    ]
    if rows:
        print(f"\n{plain_table(['topic', 'document', 'was', 'is'], rows[:SHOWN], 2)}")
        if len(rows) > SHOWN:
            print(f"and {len(rows) - SHOWN:,} more")
    if found.changed:
        print(f"\nchanged since: {'; '.join(map(one_line, found.changed))}")
    if found.surroundings:
        print("\nanother machine or other versions, which may change last bits:")
        for text in found.surroundings:
            print(f"  {one_line(text)}")
    print(f"\n{'verified' if found.well else 'not verified'}")
