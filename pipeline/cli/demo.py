"""Commands for newcomers: the demo, and the doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.experiments import print_measures, run_steps

NEXT = """\
Next, a collection of your own: JSON lines with "id" and "contents", topics as `qid TAB text`.

  pipeline index    --collection my.jsonl --index my.index
  pipeline retrieve --index my.index --topics my.tsv --output bm25.run
  pipeline rerank   --run bm25.run --topics my.tsv --index my.index --model small --output small.run
  pipeline evaluate my.qrels bm25.run small.run

Or all of it from one file, resumable: copy {experiment} and `pipeline run` it.
"""


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(demo)
    app.command()(doctor)


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to build it.")] = Path(
        "demo"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the table alone.")] = False,
) -> None:
    """Rank Python's own documentation: BM25, then the student, side by side.

    Needs no network, no Java and no data; run it again and it says that all is fresh.
    """
    from pipeline import experiment as experiments
    from pipeline import stage
    from pipeline.cli.console import plain_table
    from pipeline.demo import build

    laid = build.lay_out(folder)
    if not quiet:
        print(
            f"{laid.passages:,} passages of this Python's standard library, {laid.topics} topics, "
            f"{laid.judgements:,} judgements ({laid.dropped} do not apply to this version)\n"
        )
    plan = experiments.load(laid.experiment)
    run_steps(plan.steps, set(), quiet=quiet)
    print()
    print_measures(plan.step("evaluate"))
    if quiet:
        return
    seconds = [
        [step.name, f"{(stage.read_sidecar(step.output) or {})['provenance']['seconds']:.1f}"]
        for step in plan.steps
    ]
    print(f"\n{plain_table(['stage', 'seconds'], seconds)}\n")
    print(NEXT.format(experiment=laid.experiment))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check Python, Java, memory, disk, devices, models and data, and say what to do."""
    from dataclasses import asdict

    from pipeline.cli.console import print_json
    from pipeline.doctor import examine
    from pipeline.errors import CheckFailedError

    findings = examine()
    if as_json:
        print_json({"schema": 1, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = {True: "ok  ", False: "FAIL", None: "note"}[finding.ok]
            print(f"{mark}  {finding.name}: {finding.what}")
            if finding.todo:
                print(f"      {finding.todo}")
    bad = sum(finding.ok is False for finding in findings)
    if bad:
        raise CheckFailedError(f"{bad} of {len(findings)} checks failed", "see what to do above")
