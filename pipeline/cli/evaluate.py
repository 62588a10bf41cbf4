"""The command that measures: evaluate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import Console, plain_table, print_json, reporting
from pipeline.cli.stages import Json, Quiet
from pipeline.errors import PipelineError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.tables import Average, Table

AND = "+"  # between the collections of one call


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(evaluate)


def evaluate(
    qrels: Annotated[
        Path, typer.Argument(metavar="QRELS", help="Judgements; a BEIR folder; - is stdin.")
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN... [+ QRELS RUN...]", help="Runs; after + another collection."),
    ],
    measures: Annotated[
        list[str] | None,
        typer.Option("--measure", "-m", help="As ir_measures spells it; may be repeated."),
    ] = None,
    rel: Annotated[
        int | None,
        typer.Option(
            "--rel",
            metavar="GRADE",
            help="From which grade on documents are relevant; default: as the test set asks, or 1.",
        ),
    ] = None,
    tie_bounds: Annotated[
        bool, typer.Option("--tie-bounds", help="Show each run at its worst and best tie-breaks.")
    ] = False,
    split: Annotated[str, typer.Option(help="Of a BEIR folder.")] = "test",
    identical_ids: Annotated[
        bool | None,
        typer.Option(
            "--identical-ids/--no-identical-ids",
            help="Count documents with the id of their topic; not in a BEIR folder.",
        ),
    ] = None,
    per_topic: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Values of each topic: .csv or .json.")
    ] = None,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure runs against judgements: one table, averaged over every judged topic."""
    from pipeline import tables
    from pipeline.evaluate import Basis, evaluate_runs

    if as_json + as_markdown + as_latex > 1:
        raise PipelineError("more than one of --json, --markdown and --latex", "choose one")
    collections = _collections(qrels, runs)
    if per_topic is not None:
        tables.check_per_topic(per_topic)
        tables.check_replaceable(per_topic)
        if len(collections) > 1:
            raise PipelineError("--per-topic with several collections", "name one collection")
    basis = Basis(rel, split, identical_ids)
    with reporting("evaluate", quiet=quiet) as console:
        found = [evaluate_runs(q, some, measures, console, basis) for q, some in collections]
        if len({table.qrels for table in found}) < len(found):
            found = [replace(t, qrels=str(q)) for t, (q, _) in zip(found, collections, strict=True)]
        mean = tables.average(found) if len(found) > 1 else None
        if as_markdown or as_latex:
            _tell(found, console)
    if per_topic is not None:
        tables.write_per_topic(found[0], per_topic)
    if as_json:
        records = [tables.as_json(table) for table in found]
        print_json(records[0] if mean is None else tables.several(records, mean))
    elif as_markdown or as_latex:
        show = tables.markdown if as_markdown else tables.latex
        _print(found, mean, show, "% " if as_latex else "", tie_bounds=tie_bounds)
    else:
        _print(found, mean, _plain, "", tie_bounds=tie_bounds, said=not quiet)


def _print(
    found: Sequence[Table],
    mean: Average | None,
    show: Callable[[list[list[str]]], str],
    comment: str,
    *,
    tie_bounds: bool,
    said: bool = False,
) -> None:
    """Print each table, under what it rests on or under its name, and the average."""
    for number, table in enumerate(found):
        if number:
            print()
        if said:
            print("\n".join(_sentences(table)) + "\n")
        elif mean is not None:
            _print_title(table.qrels, comment)
        print(show(table.cells(tie_bounds=tie_bounds)), end="")
    if mean is not None:
        print()
        _print_title(f"mean over {len(found)} collections", comment)
        print(show(mean.cells()), end="")


def _print_title(title: str, comment: str) -> None:
    print(f"{comment}{one_line(title)}" + ("" if comment else "\n"))


def _collections(qrels: Path, runs: Sequence[Path]) -> list[tuple[Path, list[Path]]]:
    """Cut the words of the command at each `+`."""
    groups: list[list[Path]] = [[qrels]]
    for word in runs:
        if str(word) == AND:
            groups.append([])
        else:
            groups[-1].append(word)
    if any(len(group) < 2 for group in groups):
        raise PipelineError(
            "a collection without judgements or without a run",
            "write: QRELS RUN... + QRELS RUN...",
        )
    if sum(str(word) == "-" for group in groups for word in group) > 1:
        raise PipelineError(
            "standard input is named twice", "give one file as - and the others by name"
        )
    return [(group[0], group[1:]) for group in groups]


def _plain(cells: list[list[str]]) -> str:
    return plain_table(cells[0], cells[1:]) + "\n"


def _sentences(table: Table) -> list[str]:
    from pipeline.assumptions import of_run, of_table

    return [*of_table(table), *(sentence for row in table.rows for sentence in of_run(row))]


def _tell(found: Sequence[Table], console: Console) -> None:
    for table in found:
        for sentence in _sentences(table):
            console.notice(sentence)
