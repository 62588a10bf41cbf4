"""The evaluation stage: runs and qrels -> one table, overall and per topic.

Every mean runs over every judged topic, whatever a run answers; topics without an answer count zero
and are named. Documents are ordered as trec_eval 9 orders them: float32 score, then docid, both
descending.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, shown, shown_path
from pipeline.measures import Evaluator, computable_measures
from pipeline.notation import DEFAULT_MEASURES
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, producing
from pipeline.store import digest_file, write_json
from pipeline.tables import Row, Table, as_json, read_table, write_per_topic
from pipeline.textfile import STREAM
from pipeline.trec import read_qrels, read_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.measures import Evaluation

VERSION = 1
ENDINGS = (".gz", ".run", ".txt", ".trec")
NAMED = 10  # topics named in a notice; all of them are in the JSON


@dataclass(frozen=True)
class EvaluateSettings:
    """What an experiment's evaluation reads, measures and writes."""

    qrels: Path
    runs: tuple[Path, ...]
    output: Path  # measures.json; values per topic go to measures.csv beside it
    measures: tuple[str, ...] = DEFAULT_MEASURES
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown measure when the experiment is read, hours before it is computed."""
        computable_measures(self.measures)


def recipe(settings: EvaluateSettings) -> Recipe:
    """Say what determines the table: the measures, the judgements and the runs, by content."""
    names = run_names(settings.runs)
    inputs = {"qrels": digest_file(settings.qrels)}
    inputs |= {
        f"run {name}": digest_file(path) for name, path in zip(names, settings.runs, strict=True)
    }
    measures = [measure.name for measure in computable_measures(settings.measures)]
    return Recipe("evaluate", VERSION, {"measures": measures}, inputs)


def per_topic_path(output: Path) -> Path:
    """`measures.json` -> `measures.csv`, the values of every topic."""
    return output.with_suffix(".csv")


def evaluate(settings: EvaluateSettings, reporter: Reporter = SILENT) -> Outcome:
    """Bring an experiment's `measures.json` up to date; `tables.read_table` reads it.

    Raises:
        PipelineError: a run or the qrels cannot be read, or have no topic in common.
    """
    per_topic = per_topic_path(settings.output)
    with producing(
        settings.output, lambda: recipe(settings), force=settings.force, reporter=reporter
    ) as job:
        if job.fresh:
            if not per_topic.exists():
                write_per_topic(read_table(settings.output), per_topic)
            return job.outcome
        table = evaluate_runs(settings.qrels, settings.runs, settings.measures, reporter)
        counts = {
            "topics": table.topics,
            "unanswered": {row.name: len(row.evaluation.unanswered) for row in table.rows},
        }
        with job.commit(counts):
            write_per_topic(table, per_topic)
            write_json(settings.output, as_json(table, per_topic=True))
        return job.outcome


def evaluate_runs(
    qrels: Path | str,
    runs: Sequence[Path | str],
    measures: Iterable[str] = DEFAULT_MEASURES,
    reporter: Reporter = SILENT,
) -> Table:
    """Measure runs against qrels, one ranking in memory at a time; `-` reads standard input.

    Raises:
        PipelineError: an unknown measure, a file that cannot be read, or no topic in common.
    """
    if not runs:
        raise PipelineError("no run to evaluate", "name at least one: pipeline evaluate QRELS RUN")
    if [str(path) for path in (qrels, *runs)].count(STREAM) > 1:
        raise PipelineError(
            "standard input is named twice", "give one file as - and the others by name"
        )
    names = run_names(runs)
    computable_measures(measures := tuple(measures))  # before anything is read
    evaluator = Evaluator(read_qrels(qrels), measures)
    rows = []
    for done, (name, path) in enumerate(zip(names, runs, strict=True), 1):
        try:
            evaluation = evaluator.evaluate(read_run(path))
        except PipelineError as error:
            if type(error) is not PipelineError:  # it names its file already
                raise
            raise PipelineError(f"{shown_path(path)}: {error.message}", error.hint) from error
        _tell(reporter, name, evaluation)
        rows.append(Row(name, evaluation))
        reporter.advance(done, len(runs), "runs")
    return Table(Path(qrels).name, evaluator.names, tuple(rows))


def run_names(runs: Sequence[Path | str]) -> list[str]:
    """Name runs for a table: the file's name without endings, with folders where two are alike."""
    paths = ["stdin" if str(run) == STREAM else _without_endings(Path(run)) for run in runs]
    names = [Path(path).name for path in paths]
    for depth in range(2, max(len(Path(path).parts) for path in paths) + 1 if paths else 0):
        if len(set(names)) == len(names):
            break
        names = [
            "/".join(Path(path).parts[-depth:]) if names.count(name) > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    same = {name for name in names if names.count(name) > 1}
    names = [str(run) if name in same else name for name, run in zip(names, runs, strict=True)]
    return [
        name if names.count(name) == 1 else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def _without_endings(path: Path) -> str:
    while path.suffix in ENDINGS:
        path = path.with_suffix("")
    return str(path)


def _tell(reporter: Reporter, name: str, evaluation: Evaluation) -> None:
    if evaluation.unanswered:
        total = len(evaluation.per_topic)
        reporter.notice(
            f"{name}: {len(evaluation.unanswered)} of {total} judged topics have no answer and "
            f"count zero: {_some(evaluation.unanswered)}"
        )
    if evaluation.unjudged:
        reporter.notice(
            f"{name}: {len(evaluation.unjudged)} topics without judgements are ignored: "
            f"{_some(evaluation.unjudged)}"
        )


def _some(qids: Sequence[str]) -> str:
    more = len(qids) - NAMED
    return ", ".join(map(shown, qids[:NAMED])) + (f" and {more} more" if more > 0 else "")
