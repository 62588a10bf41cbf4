"""An experiment file -> the stages in order, their folder, their dependencies.

Paths in the file are relative to it. Outputs go to `runs/<name>/` beside it, except the index,
whose place the file names because experiments share indexes.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import plots, stage
from pipeline.config import fill, only, read_experiment, text
from pipeline.errors import InputError, shown
from pipeline.executor import Executor
from pipeline.plan import TRAINING, Experiment, Step
from pipeline.textfile import IR_DATASETS
from pipeline.trec import TAG

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.distill.settings import DistillConfig, TeachConfig
    from pipeline.report import Reporter
    from pipeline.stage import Outcome

STAGES = ("index", "retrieve", "rerank", "evaluate", *TRAINING)
TABLES = ("schema", "name", "collection", "topics", "executor", *STAGES)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SCHEMA = 1


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and lay out its stages; nothing is run and nothing written.

    Raises:
        InputError: an unknown or missing key, a value of the wrong type, two stages of one name.
    """
    tables = only(read_experiment(path, overrides), TABLES, "", path)
    if tables.get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            path,
            None,
            f"schema {shown(tables['schema'])} is not known",
            f"this version reads schema {SCHEMA}",
        )
    name = text(tables, "name", "", path) if "name" in tables else path.stem
    if not NAME.fullmatch(name):
        raise InputError(
            path, None, f"name {shown(name)} cannot be a folder", "use letters, digits, . _ and -"
        )
    folder = path.parent / "runs" / name
    return Experiment(name, path, folder, tuple(_Layout(path, folder, tables).steps()))


class _Layout:
    """Turns the tables of one file into steps; each method makes the step its table describes."""

    def __init__(self, path: Path, folder: Path, tables: dict[str, Any]) -> None:
        self._path = path
        self._folder = folder
        self._tables = tables
        index = tables.get("index", {})
        self._index = self._beside(
            text(index, "path", "index", path)
            if isinstance(index, dict) and "path" in index
            else f"indexes/{folder.name}"
        )
        self._topics: dict[str, Any] = {}
        self._executor = None
        if "executor" in tables:
            self._executor = fill(Executor, tables["executor"], "executor", path)

    def steps(self) -> Iterator[Step]:
        """Yield the steps in the order in which they run."""
        training = self._tables.get("distill")
        if isinstance(training, dict) and training.get("raw_text") is True:
            only(self._tables, ("schema", "name", "collection", "distill"), "", self._path)
            yield self._distill_step([])
            return
        built: tuple[str, ...] = ()
        if "collection" in self._tables:
            yield self._index_step()
            built = ("index",)
        elif "index" not in self._tables:
            raise InputError(
                self._path, None, "neither [collection] nor [index]", "name what is searched"
            )
        else:  # it is there already, and was analysed as it was
            only(self._table("index"), ("path",), "index", self._path)
        table = only(self._table("topics"), ("path", "field"), "topics", self._path)
        self._topics = {
            "topics": self._beside(text(table, "path", "topics", self._path)),
            "field": text({"field": "title"} | table, "field", "topics", self._path),
        }
        last = self._retrieve_step(built)
        yield last
        runs = [last]
        for table in self._rerank_tables():
            last = self._rerank_step(table, last, built, {step.name for step in runs})
            runs.append(last)
            yield last
        if "evaluate" in self._tables:
            yield self._evaluate_step(runs)
        if "teach" in self._tables:
            yield self._teach_step(runs)
        if "distill" in self._tables:
            yield self._distill_step(runs)

    def _index_step(self) -> Step:
        from pipeline import index

        collection = self._collection()
        settings = fill(
            index.IndexSettings,
            self._tables.get("index", {}),
            "index",
            self._path,
            given={"collection": collection, "output": self._index, "force": False},
            extra=("path",),
        )
        return Step(
            "index",
            self._index,
            (),
            lambda: index.recipe(settings),
            lambda reporter, force: index.index(replace(settings, force=force), reporter),
            index.digest,
            check=lambda: index.check(settings),
            given=() if str(collection).startswith(IR_DATASETS) else (collection,),
        )

    def _retrieve_step(self, needs: tuple[str, ...]) -> Step:
        from pipeline import retrieve

        settings = fill(
            retrieve.RetrieveSettings,
            self._tables.get("retrieve", {}),
            "retrieve",
            self._path,
            given={
                **self._topics,
                "index": self._index,
                "output": self._folder / "bm25.run",
                "force": False,
                "shard": None,
                "executor": self._executor,
            },
        )
        return Step(
            "retrieve",
            settings.output,
            needs,
            lambda: retrieve.recipe(settings),
            lambda reporter, force: retrieve.retrieve(replace(settings, force=force), reporter),
            given=(settings.topics,),
            check=lambda: retrieve.check(settings),
            share=lambda reporter, force, shard: retrieve.retrieve(
                replace(settings, force=force, shard=shard), reporter
            ),
        )

    def _rerank_step(
        self, table: dict[str, Any], last: Step, built: tuple[str, ...], taken: set[str]
    ) -> Step:
        from pipeline import rerank

        name = text(table, "name", "[rerank]", self._path)
        if not NAME.fullmatch(name) or name in {*taken, "bm25", *TABLES}:
            raise InputError(
                self._path,
                None,
                f"[[rerank]] name {shown(name)} cannot be used",
                "give each reranking stage a name of its own, fit for a file",
            )
        options = {key: value for key, value in table.items() if key != "name"}
        if TAG.fullmatch(name):
            options.setdefault("tag", name)  # the runs of one experiment can be told apart
        model = text(options, "model", f"rerank {name}", self._path)
        if self._beside(model).is_dir():
            options["model"] = str(self._beside(model))
        settings = fill(
            rerank.RerankSettings,
            options,
            f"rerank {name}",
            self._path,
            given={
                **self._topics,
                "run": last.output,
                "index": self._index,
                "collection": None,
                "output": self._folder / f"{name}.run",
                "force": False,
                "shard": None,
                "executor": self._executor,
            },
        )
        return Step(
            name,
            settings.output,
            (last.name, *built),
            lambda: rerank.recipe(settings),
            lambda reporter, force: rerank.rerank(replace(settings, force=force), reporter),
            check=lambda: rerank.check(settings),
            share=lambda reporter, force, shard: rerank.rerank(
                replace(settings, force=force, shard=shard), reporter
            ),
        )

    def _evaluate_step(self, runs: list[Step]) -> Step:
        from pipeline import evaluate

        settings = fill(
            evaluate.EvaluateSettings,
            self._table("evaluate"),
            "evaluate",
            self._path,
            given={
                "runs": tuple(step.output for step in runs),
                "output": self._folder / "measures.json",
                "force": False,
            },
        )
        return Step(
            "evaluate",
            settings.output,
            tuple(step.name for step in runs),
            lambda: evaluate.recipe(settings),
            lambda reporter, force: evaluate.evaluate(replace(settings, force=force), reporter),
            beside=(evaluate.per_topic_path(settings.output),),
            given=(settings.qrels,),
        )

    def _distill_step(self, runs: list[Step]) -> Step:
        """Training; a teacher run may be named by the stage of this file that makes it."""
        from pipeline.distill.settings import DistillConfig

        options = dict(self._table("distill"))
        teachers = options.get("teacher_runs", [])
        if isinstance(teachers, list):
            options["teacher_runs"] = [self._made(name, runs) for name in teachers]
        return self._training_step(DistillConfig, options, "student", runs)

    def _teach_step(self, runs: list[Step]) -> Step:
        """Fine-tuning of a teacher, on the first stage's candidates unless others are named."""
        from pipeline.distill.settings import TeachConfig

        options = {"candidates": "bm25", **self._table("teach")}
        options["candidates"] = self._made(options["candidates"], runs)
        return self._training_step(TeachConfig, options, "teacher", runs)

    def _made(self, name: object, runs: list[Step]) -> object:
        """Turn the name of a stage of this file into the run it makes."""
        made = {step.name: str(step.output.absolute()) for step in runs}
        if runs:
            made["bm25"] = made["retrieve"]
        return made.get(name, name) if isinstance(name, str) else name

    def _training_step(
        self,
        kind: type[DistillConfig | TeachConfig],
        options: dict[str, Any],
        output: str,
        runs: list[Step],
    ) -> Step:
        """Training needs the stages that make its runs; none, where all of them are given."""
        from pipeline.distill import stage as training
        from pipeline.distill.settings import TeachConfig

        folder = self._folder / output
        settings = fill(
            kind,
            options,
            kind.table,
            self._path,
            given={
                "topics": self._topics.get("topics"),
                "field": self._topics.get("field", "title"),
                "collection": self._collection(),
                "output": folder,
                "work": stage.parts_path(folder),
            },
        )
        given = (
            (settings.candidates,) if isinstance(settings, TeachConfig) else settings.teacher_runs
        )
        read = {path.absolute() for path in given}
        both = {"teach", "distill"} <= self._tables.keys()
        curve = self._folder / (f"{output}-loss.png" if both else "loss.png")

        def run(reporter: Reporter, force: bool) -> Outcome:
            outcome = training.distill(settings, reporter, force=force)
            metrics = settings.work / "metrics.jsonl"
            if metrics.is_file() and (outcome.computed or not curve.exists()):
                plots.loss_curve(metrics, curve)
            return outcome

        return Step(
            kind.table,
            folder,
            tuple(step.name for step in runs if step.output.absolute() in read),
            lambda: training.recipe(settings),
            run,
            training.digest,
            beside=(curve,),
        )

    def _collection(self) -> Path:
        """Where the collection lies, or its name in ir_datasets."""
        table = only(self._table("collection"), ("path",), "collection", self._path)
        place = text(table, "path", "collection", self._path)
        return Path(place) if place.startswith(IR_DATASETS) else self._beside(place)

    def _rerank_tables(self) -> list[dict[str, Any]]:
        tables = self._tables.get("rerank", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise InputError(
                self._path, None, "[rerank] is not a list of stages", "write [[rerank]]"
            )
        return tables

    def _table(self, name: str) -> dict[str, Any]:
        if name not in self._tables:
            raise InputError(self._path, None, f"there is no [{name}]", f"add [{name}]")
        table: dict[str, Any] = self._tables[name]
        return table

    def _beside(self, place: object) -> Path:
        return self._path.parent / str(place)
