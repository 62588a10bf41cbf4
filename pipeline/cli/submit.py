"""The command submit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.console import print_json
from pipeline.cli.stages import Field, Json
from pipeline.errors import one_line

if TYPE_CHECKING:
    from pipeline.submit import Packed


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(submit)


def submit(
    profile: Annotated[
        str,
        typer.Argument(
            metavar="PROFILE",
            help="trec, trec-dl-YEAR-passage, trec-dl-YEAR-document, trec-covid, msmarco-passage, "
            "msmarco-document, beir or tira.",
        ),
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run, ours or not.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A folder to make.")
    ],
    topics: Annotated[
        Path | None, typer.Option("--topics", "-t", help="The venue's topics.")
    ] = None,
    field: Field = "title",
    tag: Annotated[str | None, typer.Option("--tag", help="Write this tag.")] = None,
    cut: Annotated[
        bool, typer.Option("--cut", help="Leave out what is below the venue's depth.")
    ] = False,
    filler: Annotated[
        str | None,
        typer.Option(metavar="DOCID", help="A document for each topic without any."),
    ] = None,
    gz: Annotated[bool, typer.Option("--gz", help="Compress the run.")] = False,
    docno: Annotated[
        str | None, typer.Option(metavar="REGEX", help="What a track's document ids look like.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Documents a topic that a track takes.")] = None,
    team: Annotated[str | None, typer.Option(help="Who submits.")] = None,
    description: Annotated[str | None, typer.Option(help="What was done.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the method.")] = None,
    repository: Annotated[str | None, typer.Option(help="Where the code is.")] = None,
    data: Annotated[str | None, typer.Option(help="Name of the test collection.")] = None,
    identity: Annotated[str | None, typer.Option("--id", help="MS MARCO: yyyymmdd-name.")] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="MS MARCO: full ranking, or reranking.")
    ] = None,
    paper: Annotated[str | None, typer.Option(help="MS MARCO: its address.")] = None,
    code: Annotated[str | None, typer.Option(help="MS MARCO: its address.")] = None,
    embargo: Annotated[str | None, typer.Option(help="MS MARCO: until yyyy/mm/dd.")] = None,
    eval_run: Annotated[
        Path | None, typer.Option("--eval", metavar="RUN", help="MS MARCO: the eval topics.")
    ] = None,
    eval_topics: Annotated[Path | None, typer.Option(help="MS MARCO: of --eval.")] = None,
    as_json: Json = False,
) -> None:
    """Check a run by a venue's rules and pack what is to be uploaded: 0 packed, 3 refused."""
    from pipeline.admission import Mends
    from pipeline.submit import SubmitSettings, with_docno
    from pipeline.submit import submit as pack
    from pipeline.venues import venue_of

    about = {
        "team": team, "description": description, "name": name, "repository": repository,
        "data": data, "id": identity, "type": kind, "paper": paper, "code": code,
        "embargo": embargo,
    }  # fmt: skip
    settings = SubmitSettings(
        venue=with_docno(venue_of(profile), docno, depth),
        run=run,
        output=output,
        topics=topics,
        topic_field=field,
        mends=Mends(tag, cut, filler),
        gz=gz,
        about={key: value for key, value in about.items() if value is not None},
        eval_run=eval_run,
        eval_topics=eval_topics,
    )
    packed = pack(settings)
    if as_json:
        print_json(_record(packed, profile, output))
    else:
        _print(packed, settings.venue.title, output)
    if not packed.files:
        raise typer.Exit(3)


def _print(packed: Packed, title: str, output: Path) -> None:
    for path, found in packed.admissions:
        for finding in found.findings:
            print(finding.text(path))
        named = len(found.findings)
        if more := found.errors + found.warnings - named:
            print(f"{one_line(str(path))}: {more:,} more")
        print(
            f"{one_line(str(path))}: {len(found.counts):,} topics, {found.lines:,} lines, "
            f"{found.errors:,} errors, {found.warnings:,} warnings"
        )
    if not packed.files:
        print(f"refused for {title}; nothing is written")
        return
    print(f"packed for {title}:")
    for name in packed.files:
        print(f"  {one_line(str(output / name))}")


def _record(packed: Packed, profile: str, output: Path) -> dict[str, Any]:
    return {
        "schema": 1,
        "profile": profile,
        "packed": bool(packed.files),
        "output": str(output),
        "files": list(packed.files),
        "runs": [
            {
                "path": str(path),
                "topics": len(found.counts),
                "lines": found.lines,
                "errors": found.errors,
                "warnings": found.warnings,
                "missing": list(found.missing),
                "findings": [finding._asdict() for finding in found.findings],
            }
            for path, found in packed.admissions
        ],
    }
