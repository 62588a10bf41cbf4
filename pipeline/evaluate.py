"""The evaluation stage: runs and qrels -> one table, overall and per topic.

Every mean runs over every judged topic, whatever a run answers; topics without an answer count zero
and are named (assumptions.py has the sentences). Documents are ordered as trec_eval 9 orders them:
float32 score, then docid, both descending.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.assumptions import of_run
from pipeline.errors import PipelineError, did_you_mean, shown, shown_path
from pipeline.measures import Evaluator, computable_measures
from pipeline.notation import DEFAULT_MEASURES, MAX_GRADE
from pipeline.report import SILENT, Reporter
from pipeline.stage import Outcome, Recipe, producing
from pipeline.store import digest_file, sweep, write_json
from pipeline.tables import (
    Row,
    Table,
    as_json,
    check_replaceable,
    read_table,
    rewrite_per_topic,
    write_per_topic,
)
from pipeline.testsets import Level, level
from pipeline.textfile import STREAM
from pipeline.trec import Ranking, read_qrels, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

VERSION = 3
ENDINGS = (".gz", ".run", ".txt", ".trec")
JUDGED = 10  # the rank down to which it is said how much is judged, without a cutoff to go by
BEIR_MEASURES = ("nDCG@10", "R@100", "Judged@10")


@dataclass(frozen=True)
class EvaluateSettings:
    """What an experiment's evaluation reads, measures and writes."""

    qrels: Path
    runs: tuple[Path, ...]
    output: Path  # measures.json; values per topic go to measures.csv beside it
    measures: tuple[str, ...] = DEFAULT_MEASURES
    rel: int | None = None  # from which grade on a document is relevant; None: as the test set asks
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown measure when the experiment is read, hours before it is computed."""
        computable_measures(self.measures, need_level(self.rel))


def recipe(settings: EvaluateSettings) -> Recipe:
    """Say what determines the table: the measures, the judgements and the runs, by content."""
    names = run_names(settings.runs)
    inputs = {"qrels": digest_file(settings.qrels)}
    inputs |= {
        f"run {name}": digest_file(path) for name, path in zip(names, settings.runs, strict=True)
    }
    measures = [measure.name for measure in computable_measures(settings.measures)]
    return Recipe("evaluate", VERSION, {"measures": measures, "rel": settings.rel}, inputs)


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
        sweep(per_topic)
        if job.fresh:
            if rewrite_per_topic(read_table(settings.output), per_topic):
                reporter.notice(f"{per_topic}: missing or edited; written again")
            return job.outcome
        if not settings.force:
            check_replaceable(per_topic)
        basis = Basis(rel=settings.rel)
        table = evaluate_runs(settings.qrels, settings.runs, settings.measures, reporter, basis)
        for row in table.rows:
            for sentence in of_run(row):
                reporter.notice(sentence)
        counts = {
            "topics": table.topics,
            "unanswered": {row.name: len(row.evaluation.unanswered) for row in table.rows},
        }
        with job.commit(counts):
            write_per_topic(table, per_topic)
            write_json(settings.output, as_json(table, per_topic=True))
        return job.outcome


@dataclass(frozen=True)
class Basis:
    """What an evaluation takes for granted, where the user says it."""

    rel: int | None = None  # from which grade on a document is relevant; None: as the test set asks
    split: str = "test"  # of a BEIR folder
    identical: bool | None = None  # count documents with the id of their topic? None: not for BEIR


def evaluate_runs(
    qrels: Path | str,
    runs: Sequence[Path | str],
    measures: Iterable[str] | None = None,
    reporter: Reporter = SILENT,
    basis: Basis = Basis(),
) -> Table:
    """Measure runs against qrels, one ranking in memory at a time; `-` reads standard input.

    The qrels may be a BEIR folder: then those of the split count, documents that have the id of
    their topic do not, and the measures are BEIR's.

    Raises:
        PipelineError: an unknown measure, a file that cannot be read, or no topic in common.
    """
    if not runs:
        raise PipelineError("no run to evaluate", "name at least one: pipeline evaluate QRELS RUN")
    need_one_stream(qrels, runs)
    ground = Ground(qrels, measures, basis)
    rows = []
    for done, (name, path) in enumerate(zip(run_names(runs), runs, strict=True), 1):
        rows.append(ground.row(name, path))
        reporter.advance(done, len(runs), "runs")
    return ground.table(rows)


def need_one_stream(qrels: Path | str, runs: Sequence[Path | str]) -> None:
    """Refuse standard input twice.

    Raises:
        PipelineError: both qrels and a run, or two runs, are `-`.
    """
    if [str(path) for path in (qrels, *runs)].count(STREAM) > 1:
        raise PipelineError(
            "standard input is named twice", "give one file as - and the others by name"
        )


class Ground:
    """Judgements as a basis reads them: what any number of runs is measured on.

    Args:
        also: measures that rows hold beside those of the table.

    Raises:
        PipelineError: an unknown measure, or judgements that cannot be read.
    """

    def __init__(
        self,
        qrels: Path | str,
        measures: Iterable[str] | None = None,
        basis: Basis = Basis(),
        also: Sequence[str] = (),
    ) -> None:
        beir = str(qrels) != STREAM and Path(qrels).is_dir()
        if measures is None:
            measures = BEIR_MEASURES if beir else DEFAULT_MEASURES
        measures = tuple(measures)
        computable_measures(measures, need_level(basis.rel))  # before anything is read
        self.judged = read_qrels(_beir_qrels(Path(qrels), basis.split) if beir else qrels)
        self.level = level(self.judged) if basis.rel is None else Level(basis.rel, "as asked")
        at_level = computable_measures(measures, self.level.grade)
        self.measures = tuple(measure.name for measure in at_level)
        cutoffs = [measure["cutoff"] for measure in at_level if measure["cutoff"]]
        self._rank = min(cutoffs, default=JUDGED)
        self._evaluator = Evaluator(self.judged, (*self.measures, *also))
        self._keep_identical = not beir if basis.identical is None else basis.identical
        self._title = Path(qrels).resolve().name if beir else Path(qrels).name

    def table(self, rows: Iterable[Row]) -> Table:
        """Put rows of this ground under its name."""
        grade = self.level.grade
        barren = (qid for qid, some in self.judged.items() if max(some.values()) < grade)
        return Table(self._title, self.measures, tuple(rows), *self.level, tuple(barren))

    def row(
        self, name: str, path: Path | str, look: Callable[[Ranking], None] | None = None
    ) -> Row:
        """Measure one run; `look` sees each ranking as it is measured.

        Raises:
            PipelineError: the run cannot be read, or has no topic in common with the judgements.
        """
        if look is None:
            quick = self._evaluator.evaluate_file(path, identical=self._keep_identical)
            if quick is not None:
                evaluation, found = quick
                share = found.judged(self._rank) / len(self.judged)
                return Row(name, evaluation, 0, found.depth, (self._rank, share))
        left_out = depth = 0
        judged = 0.0

        def rankings() -> Iterator[Ranking]:
            nonlocal left_out, depth, judged
            for ranking in read_run(path):
                depth = max(depth, len(ranking.docs))
                if not self._keep_identical:
                    docs = tuple(doc for doc in ranking.docs if doc.docid != ranking.qid)
                    left_out += len(ranking.docs) - len(docs)
                    ranking = Ranking(ranking.qid, docs)
                top = ranking.docs[: self._rank]
                if top and (known := self.judged.get(ranking.qid)):
                    judged += sum(doc.docid in known for doc in top) / len(top)
                if look is not None:
                    look(ranking)
                yield ranking

        try:
            evaluation = self._evaluator.evaluate(rankings())
        except PipelineError as error:
            if type(error) is not PipelineError:  # it names its file already
                raise
            raise PipelineError(f"{shown_path(path)}: {error.message}", error.hint) from error
        share = judged / len(self.judged)
        return Row(name, evaluation, left_out, depth, (self._rank, share))


def need_level(rel: int | None) -> int | None:
    """Return a level of relevance that can be asked for.

    Raises:
        PipelineError: it is below 1.
    """
    if rel is not None and not 1 <= rel <= MAX_GRADE:
        raise PipelineError(f"no level of relevance is {rel}", "grades are 1, 2, 3, ...")
    return rel


def _beir_qrels(folder: Path, split: str) -> Path:
    """The judgements of a BEIR folder.

    Raises:
        PipelineError: the folder has none for this split.
    """
    found = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if not found:
        raise PipelineError(
            f"{folder}: a folder without qrels/*.tsv",
            "name a file of judgements, or a BEIR folder with corpus.jsonl, queries.jsonl, qrels",
        )
    if split not in found:
        raise PipelineError(
            f"{folder}: no judgements for the split {shown(split)}",
            f"--split: {did_you_mean(split, found)}",
        )
    return folder / "qrels" / f"{split}.tsv"


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
