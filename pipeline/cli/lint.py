"""The command that checks files: lint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pipeline.cli.console import print_json
from pipeline.cli.stages import Json, one_of
from pipeline.errors import PipelineError, one_line
from pipeline.textfile import STREAM
from pipeline.trec import check_tag

if TYPE_CHECKING:
    from pipeline.lint.mend import Mended

SCHEMA = 1
FORMATS = ("trec", "msmarco", "qrels", "topics")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(lint)


def lint(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Runs, judgements, topics; - is stdin.")
    ],
    topics: Annotated[
        Path | None, typer.Option("--topics", "-t", help="Topics that a run must answer.")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements: topics missing, ties that matter.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option("--index", "-i", metavar="DIR", help="Where documents must be,")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", metavar="PATH", help="or a collection.")
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(FORMATS)}; default: told by the first line."),
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Documents a topic may have.")] = 1000,
    named: Annotated[
        int, typer.Option("--max", min=1, help="Findings of a kind to name; others are counted.")
    ] = 3,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the canonical run; - is stdout, .gz compressed."),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="The tag of the canonical run.")] = None,
    as_json: Json = False,
) -> None:
    """Check runs, judgements and topics of anybody: 0 well or warnings, 3 errors."""
    from pipeline.lint.check import LintSettings
    from pipeline.lint.check import lint as check
    from pipeline.stage import need_apart

    if file_format is not None:
        one_of("--format", file_format, FORMATS)
    _need_sense(files, [topics, qrels], fix, tag, as_json)
    if index is not None and collection is not None:
        raise PipelineError("--index and --collection together", "choose one")
    if fix is not None:
        need_apart(fix, *files, topics, qrels, index, collection)
    settings = LintSettings(
        topics, qrels, index, collection, cast("None", file_format), depth, named, fix, tag
    )
    to = sys.stderr if fix is not None and str(fix) == STREAM else sys.stdout
    records, mended = [], list["Mended"]()
    errors = unmended = 0
    for report in check(files, settings, mended.append):
        errors += report.errors
        unmended += report.unmended
        records.append(report.record())
        if not as_json:
            for line in report.findings.lines(report.path):
                print(line, file=to)
            print(report.summary(), file=to, flush=True)
    for each in mended:
        records[0]["fixed"] = {"output": str(fix), **each._asdict()}
        if not as_json:
            print(_written(cast("Path", fix), each), file=to)
    if as_json:
        print_json({"schema": SCHEMA, "errors": errors, "files": records})
    if unmended if mended else errors:
        raise typer.Exit(3)


def _need_sense(
    files: list[Path], others: list[Path | None], fix: Path | None, tag: str | None, as_json: bool
) -> None:
    if [str(path) for path in [*files, *others]].count(STREAM) > 1:
        raise PipelineError(
            "standard input is named twice", "give one file as - and the others by name"
        )
    if fix is None:
        if tag is not None:
            raise PipelineError("--tag without --fix", "name what to write: --fix OUT")
        return
    if len(files) > 1:
        raise PipelineError("--fix writes one run", "name one file, and call once for each")
    if as_json and str(fix) == STREAM:
        raise PipelineError("--json and --fix - would share standard output", "choose one")
    if tag is not None:
        check_tag(tag)


def _written(output: Path, mended: Mended) -> str:
    dropped = f", {mended.dropped:,} repeated documents left out" if mended.dropped else ""
    name = "standard output" if str(output) == STREAM else str(output)
    return f"{one_line(name)}: written: {mended.topics:,} topics, {mended.lines:,} lines{dropped}"
