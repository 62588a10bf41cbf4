"""Quality against cost: models and depths, each model having scored the candidates once.

A reranking to the greatest depth gives the order at every other (`depths.py`). Its time is
measured; that of a lesser depth is the same share of it as of its pairs, since a pass costs what
its pairs cost. To it comes the time of the first stage, where the sidecar of its run knows it.
Where workers score, a topic costs what one of them takes for it, however many there are.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import machine, statistics
from pipeline.depths import values_at
from pipeline.errors import PipelineError
from pipeline.evaluate import Ground
from pipeline.report import SILENT, Reporter
from pipeline.rerank import RerankSettings, rerank
from pipeline.stage import read_sidecar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.statistics import Interval

MEASURES = ("nDCG@10",)
DEPTHS = (10, 20, 50, 100)
FIRST = "first stage"
SCHEMA = 1


class Point(NamedTuple):
    """One model at one depth."""

    model: str
    depth: int  # 0: the first stage as it is
    ms: float | None  # a topic, first stage included; None where nobody measured
    means: dict[str, float]
    intervals: dict[str, Interval]  # 95 per cent, by Student's t over topics; infinite of one
    best: frozenset[str]  # measures by which no point is as fast and better, or faster and as good

    @property
    def timed(self) -> bool:
        """Whether it can be compared: a first stage whose time is not known takes none."""
        return self.ms is not None or not self.depth


@dataclass(frozen=True)
class Sweep:
    """All points, the first stage first."""

    points: tuple[Point, ...]
    measures: tuple[str, ...]
    topics: int
    machine: str
    notes: tuple[str, ...]

    def cells(self) -> list[list[str]]:
        """Points down, measures across; a star marks what nobody beats."""
        rows = [["model", "depth", "ms/topic", *self.measures]]
        for point in self.points:
            time = "-" if point.ms is None else f"{point.ms:,.1f}"
            rows.append([point.model, f"{point.depth}", time])
            for name in self.measures:
                ends = [f"{end:.4f}" for end in point.intervals[name] if math.isfinite(end)]
                star = "*" if name in point.best else " "
                rows[-1].append(f"{point.means[name]:.4f} [{', '.join(ends) or '-'}]{star}")
        return rows

    def record(self) -> dict[str, Any]:
        """For machines."""
        points = [
            {
                **point._asdict(),
                "intervals": {
                    name: [end if math.isfinite(end) else None for end in ends]
                    for name, ends in point.intervals.items()
                },
                "best": sorted(point.best),
            }
            for point in self.points
        ]
        return {
            "schema": SCHEMA,
            "topics": self.topics,
            "machine": self.machine,
            "measures": list(self.measures),
            "points": points,
            "notes": list(self.notes),
        }


def sweep(
    qrels: Path,
    settings: RerankSettings,
    models: Sequence[str],
    depths: Sequence[int] = DEPTHS,
    measures: Sequence[str] = MEASURES,
    reporter: Reporter = SILENT,
) -> Sweep:
    """Rerank with each model once, to the greatest depth, and measure at all.

    Runs are outputs like others, `<model>.run` in the folder that `settings.output` names: kept,
    resumable, fresh the next time. Model and depth of `settings` are not looked at.

    Raises:
        PipelineError: as `rerank` and `evaluate_runs`.
    """
    if not models or not depths or min(depths) < 1:
        raise PipelineError("nothing to sweep", "name models, and depths from 1 on")
    if len(set(models)) < len(models):
        raise PipelineError("a model is named twice", "name each once")
    ground = Ground(qrels, measures)
    ground.row(FIRST, settings.run)  # before anything is scored: are these its judgements?
    depths = sorted(set(depths))
    first_ms = _milliseconds(settings.run)
    notes = (
        [] if first_ms is not None else ["the time of the first stage is not known, and left out"]
    )
    if settings.executor is not None:
        notes.append("times are those of one worker, beside the others")
    points: list[Point] = []
    for place, (model, name) in enumerate(zip(models, run_names(models), strict=True)):
        output = settings.output / f"{name}.run"
        one = replace(settings, model=model, depth=depths[-1], output=output, tag="sweep")
        rerank(one, reporter)
        whole = _milliseconds(output)
        if whole is None:
            notes.append(
                f"how long {name} took is not known, since every part was there already (--force "
                "scores all again)"
            )
        every = [0, *depths] if not place else depths
        found = values_at(ground.judged, settings.run, output, ground.measures, every)
        if not found.exact:
            notes.append(
                f"{name} mixes in the scores of the first stage: depths below {depths[-1]:,} are "
                "approximate (--interpolate 1 is exact)"
            )
        for depth in every:
            share = found.pairs[depth] / max(found.pairs[depths[-1]], 1)
            ms = first_ms
            if depth:
                ms = None if whole is None else (first_ms or 0.0) + share * whole
            points.append(_point(name if depth else FIRST, depth, ms, found.values[depth]))
        reporter.advance(place + 1, len(models), "models")
    return Sweep(
        tuple(_marked(points, ground.measures)),
        ground.measures,
        len(ground.judged),
        f"{machine.name()}, {machine.cpus()} processors",
        tuple(notes),
    )


def run_names(models: Sequence[str]) -> list[str]:
    """Name runs by their models: the last part of a path, told apart where two are alike."""
    names = [re.sub(r"[^A-Za-z0-9.@_-]+", "-", Path(model).name) or "model" for model in models]
    found: list[str] = []
    for place, name in enumerate(names):
        number = names[: place + 1].count(name)
        one = name if names.count(name) == 1 else f"{name}-{number}"
        while one in found or (one != name and one in names):
            number += 1
            one = f"{name}-{number}"
        found.append(one)
    return found


def _milliseconds(run: Path) -> float | None:
    """How long a topic of a run took, as its sidecar has it; of workers, how long one of them."""
    sidecar = read_sidecar(run) or {}
    pace, details = sidecar.get("pace"), sidecar.get("details") or {}
    if "executor" in details and (ms := details.get("ms_per_1000")):
        counts = sidecar["counts"]
        return float(ms * counts["pairs"] / counts["topics"] / 1000)
    rate = pace.get("topics_per_second") if isinstance(pace, dict) else None
    return 1000 / rate if isinstance(rate, int | float) and rate > 0 else None


def _point(model: str, depth: int, ms: float | None, values: dict[str, dict[str, float]]) -> Point:
    import numpy as np

    columns = {name: np.array(list(some.values())) for name, some in values.items()}
    return Point(
        model,
        depth,
        ms,
        {name: float(column.mean()) for name, column in columns.items()},
        {name: statistics.t_interval(column) for name, column in columns.items()},
        frozenset(),
    )


def _marked(points: Sequence[Point], measures: Sequence[str]) -> list[Point]:
    """Say by which measures a point is beaten by none.

    A first stage whose time is not known takes none: it is left out of the other points as well. A
    model whose time is not known beats nobody, and is marked nowhere.
    """
    timed = [point for point in points if point.timed]

    def beaten(point: Point, name: str) -> bool:
        mine = (point.ms or 0.0, -point.means[name])
        others = [(other.ms or 0.0, -other.means[name]) for other in timed]
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)

    return [
        point._replace(
            best=frozenset(name for name in measures if point.timed and not beaten(point, name))
        )
        for point in points
    ]
