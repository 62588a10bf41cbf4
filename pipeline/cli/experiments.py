"""Commands that take an experiment file: run, status, explain, clean, teach, distill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.plan import Experiment, Step
    from pipeline.stage import Outcome

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT", help="The experiment file (TOML).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, as in --set retrieve.hits=100."
    ),
]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Do this share of the stage named by --until, alone."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless it fails.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(run)
    app.command()(status)
    app.command()(explain)
    app.command()(clean)
    app.command()(teach)
    app.command()(distill)


def run(
    experiment: ExperimentFile,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
    force: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Do this stage again though fresh.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    shard: ShardOf = None,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do what is stale, in order, and print the table of measures.

    Kill it whenever you like and run it again: finished parts are not done twice.
    """
    from pipeline import experiment as experiments
    from pipeline.cli.console import outcome_record, print_json

    plan = experiments.load(experiment, overrides or [])
    steps = plan.until(until) if shard is None else (plan.to_share(until),)
    forced = _forced(plan, steps, force or [])
    if shard is not None:
        outcomes = _run_shard(steps[0], shard, forced, quiet=quiet)
        if as_json:
            print_json({name: outcome_record(outcome) for name, outcome in outcomes.items()})
        return
    if dry_run:
        _print_plan(plan, until, forced, as_json=as_json)
        return
    outcomes = run_steps(steps, forced, quiet=quiet)
    if as_json:
        print_json({name: outcome_record(outcome) for name, outcome in outcomes.items()})
    elif "evaluate" in outcomes and not quiet:
        print_measures(plan.step("evaluate"))


def _forced(plan: Experiment, steps: tuple[Step, ...], names: list[str]) -> set[str]:
    """Check that the stages to be forced are among those that run."""
    from pipeline.errors import PipelineError

    forced = {plan.step(name).name for name in names}
    if idle := sorted(forced - {step.name for step in steps}):
        raise PipelineError(
            f"--force {idle[0]}: this stage is not among those that would run",
            f"name it with --until {idle[0]}, or leave it out",
        )
    return forced


def run_steps(steps: tuple[Step, ...], forced: set[str], *, quiet: bool) -> dict[str, Outcome]:
    """Run the stages that are stale or forced; say one line about each."""
    from pipeline.cli.console import reporting
    from pipeline.store import need_path

    for path in (path for step in steps for path in step.given):
        need_path(path, "file")  # now, and not after the stages before it
    for step in steps:
        step.check()
    outcomes = {}
    for step in steps:
        with reporting(step.name, quiet=quiet) as console:
            outcomes[step.name] = step.run(console, step.name in forced)
            console.done(outcomes[step.name])
    return outcomes


def _run_shard(step: Step, shard: str, forced: set[str], *, quiet: bool) -> dict[str, Outcome]:
    """Do one share of one stage."""
    from pipeline.cli.console import reporting
    from pipeline.cli.stages import shard_of

    share, number = step.share, shard_of(shard)
    if share is None or number is None:
        raise AssertionError("asked for a share of what is done whole")
    step.check()
    with reporting(step.name, quiet=quiet) as console:
        outcome = share(console, step.name in forced, number)
        console.done(outcome)
    return {step.name: outcome}


def print_measures(step: Step) -> None:
    """Print the table that the evaluation stage wrote."""
    from pipeline.cli.console import plain_table
    from pipeline.tables import read_table

    header, *rows = read_table(step.output).cells()
    print(plain_table(header, rows))


def _print_plan(plan: Experiment, until: str | None, forced: set[str], *, as_json: bool) -> None:
    from pipeline.cli.console import print_json

    wanted = {step.name for step in plan.until(until)}
    todo: dict[str, list[str]] = {}
    for step, now in plan.statuses():
        if step.name in wanted:
            todo[step.name] = list(now.reasons) or (["forced"] if step.name in forced else [])
    if as_json:
        print_json({"schema": 1, "plan": todo})
        return
    for name, reasons in todo.items():
        print(f"{name}: {'would run: ' + ', '.join(reasons) if reasons else 'fresh'}")


def status(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    as_json: Json = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 3 if any stage is stale.")
    ] = False,
) -> None:
    """Print each stage with fresh or stale, and the reason."""
    from pipeline import experiment as experiments
    from pipeline import stage
    from pipeline.cli.console import plain_table, print_json
    from pipeline.errors import CheckFailedError

    plan = experiments.load(experiment, overrides or [])
    rows = [(step, now) for step, now in plan.statuses()]
    if as_json:
        print_json(
            {
                "schema": 1,
                "experiment": plan.name,
                "stages": [
                    {
                        "name": step.name,
                        "output": str(step.output),
                        "fresh": now.fresh,
                        "reasons": list(now.reasons),
                        "pace": (stage.read_sidecar(step.output) or {}).get("pace", {}),
                    }
                    for step, now in rows
                ],
            }
        )
    else:
        table = [
            [step.name, "fresh" if now.fresh else "stale", ", ".join(now.reasons), str(step.output)]
            for step, now in rows
        ]
        print(plain_table(["stage", "", "reason", "output"], table, left=4))
    if exit_code and not all(now.fresh for _, now in rows):
        raise CheckFailedError("some stages are stale", f"pipeline run {experiment}")


def explain(
    experiment: ExperimentFile,
    stage_name: Annotated[str, typer.Argument(metavar="STAGE", help="The stage to explain.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what went into a stage's output, and whether it still holds."""
    from pipeline import experiment as experiments
    from pipeline import stage
    from pipeline.cli.console import print_json

    plan = experiments.load(experiment, overrides or [])
    step = plan.step(stage_name)
    now = next(now for other, now in plan.statuses() if other is step)
    sidecar = stage.read_sidecar(step.output) or {}
    if as_json:
        print_json({"schema": 1, "fresh": now.fresh, "reasons": now.reasons, "sidecar": sidecar})
        return
    print(f"{step.output}: {'fresh' if now.fresh else 'stale: ' + ', '.join(now.reasons)}")
    recipe = sidecar.get("recipe", {})
    sections = {
        "settings": recipe.get("settings"),
        "inputs": {name: digest[:16] for name, digest in recipe.get("inputs", {}).items()},
        "output": sidecar.get("output"),
        "counts": sidecar.get("counts"),
        "details": sidecar.get("details"),
        "pace": sidecar.get("pace"),
        "provenance": sidecar.get("provenance"),
    }
    for title, content in sections.items():
        if content:
            print(f"\n{title}")
            _print_tree(content, 1)


def _print_tree(content: dict[str, Any], depth: int) -> None:
    for name, value in content.items():
        if isinstance(value, dict):
            print(f"{'  ' * depth}{name}")
            _print_tree(value, depth + 1)
        else:
            text = str(value)
            print(f"{'  ' * depth}{name:<20} {text if len(text) <= 160 else text[:159] + '…'}")


def clean(
    experiment: ExperimentFile,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Delete the outputs and their sidecars as well.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Delete the finished parts that resuming would use; the outputs stay unless asked."""
    from pipeline import experiment as experiments
    from pipeline import stage
    from pipeline.shards import begun
    from pipeline.store import locked, remove

    plan = experiments.load(experiment, overrides or [])
    made = [(step.output, step.beside) for step in plan.steps]
    made += [(one, ()) for step in plan.steps if step.share for one in begun(step.output)]
    for output, beside in made:
        doomed = [stage.parts_path(output)]
        if outputs and stage.read_sidecar(output) is not None:
            doomed += [stage.sidecar_path(output), output, *beside]
        doomed = [path for path in doomed if path.exists()]
        if not doomed:
            continue
        with locked(output):
            for path in doomed:
                remove(path)
                print(f"deleted {path}")


Again = Annotated[
    bool, typer.Option("--force", help="Train again though what was trained is fresh.")
]


def teach(
    experiment: ExperimentFile,
    force: Again = False,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune an encoder into a ranker, by labels, after the stages that find candidates."""
    _train("teach", experiment, overrides, force=force, as_json=as_json, quiet=quiet)


def distill(
    experiment: ExperimentFile,
    force: Again = False,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a student from teacher runs, after the stages that make them."""
    _train("distill", experiment, overrides, force=force, as_json=as_json, quiet=quiet)


def _train(
    stage: str,
    experiment: Path,
    overrides: list[str] | None,
    *,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from pipeline import experiment as experiments
    from pipeline.cli.console import outcome_record, print_json

    plan = experiments.load(experiment, overrides or [])
    forced = {stage} if force else set()
    outcomes = run_steps(plan.until(stage), forced, quiet=quiet)
    if as_json:
        print_json({name: outcome_record(outcome) for name, outcome in outcomes.items()})
