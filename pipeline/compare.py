"""Compare runs: differences topic by topic, tests over them, and how alike the rankings are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from pipeline import statistics
from pipeline.comparison import Agreement, Comparison, Comparisons, Difference
from pipeline.correlation import kendall, rbo
from pipeline.errors import PipelineError, one_line
from pipeline.evaluate import Ground, need_one_stream, run_names
from pipeline.report import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.statistics import Correction, Test
    from pipeline.tables import Table
    from pipeline.trec import Qrels, Ranking

MEASURES = ("nDCG@10", "RR@10", "AP", "R@1000")
RECALLS = tuple(f"IPrec@{step / 10}" for step in range(11))
ALIKE = 100  # ranks of each topic that are kept for the comparison of rankings
TOPICS = 25  # fewer are too few (Voorhees and Buckley, SIGIR 2002)
SIGNED = 6  # with five topics that differ, no test of signs or ranks can reach 0.05


@dataclass(frozen=True)
class CompareSettings:
    """What is compared with what, by which measures and tests."""

    measures: tuple[str, ...] = MEASURES
    tests: tuple[Test, ...] = ("randomisation",)
    correction: Correction = "holm"
    level: float = 0.05
    all_pairs: bool = False  # else each run with the first
    samples: int = 100_000  # of signs; the bootstrap takes a tenth of them
    seed: int = 42
    curves: bool = False  # whether precision at eleven levels of recall is wanted

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not 0 < self.level < 1:
            raise PipelineError(f"--level {self.level:g} is out of range", "0.05 is the custom")
        if not 100 <= self.samples <= 100_000_000:
            raise PipelineError(
                f"--samples {self.samples} is out of range", "choose from 100 to 100,000,000"
            )
        if self.seed < 0:
            raise PipelineError(f"--seed {self.seed} is negative", "choose 0 or more")


def compare_runs(
    qrels: Path | str,
    runs: Sequence[Path | str],
    settings: CompareSettings | None = None,
    reporter: Reporter = SILENT,
) -> Comparisons:
    """Compare runs over every judged topic; one that a run does not answer counts zero there.

    Raises:
        PipelineError: fewer than two runs, or as `evaluate_runs`.
    """
    settings = settings or CompareSettings()
    if len(runs) < 2:
        raise PipelineError("nothing to compare", "name two runs or more: compare QRELS RUN RUN")
    need_one_stream(qrels, runs)
    ground = Ground(qrels, settings.measures, also=RECALLS if settings.curves else ())
    rows, tops = [], []
    for done, (name, path) in enumerate(zip(run_names(runs), runs, strict=True), 1):
        top = _Top(ground.judged)
        rows.append(ground.row(name, path, top.keep))
        tops.append(top.docs)
        reporter.advance(done, len(runs), "runs")
    table = ground.table(rows)
    places = range(len(rows))
    pairs = list(combinations(places, 2)) if settings.all_pairs else [(0, i) for i in places[1:]]
    found = _tested(table, pairs, settings)
    return Comparisons(
        table=table,
        tests=settings.tests,
        correction=settings.correction,
        level=settings.level,
        samples={test: _samples(settings, test) for test in settings.tests if test in DRAWING},
        seed=settings.seed,
        found=found,
        agreements=tuple(_agreement(base, run, tops) for base, run in pairs),
        curves={row.name: {m: row.evaluation.mean[m] for m in RECALLS} for row in rows}
        if settings.curves
        else {},
        warnings=tuple(_warnings(table, found, settings)),
    )


class _Top:
    """The first documents of judged topics, as one text for each."""

    def __init__(self, judged: Qrels) -> None:
        self._judged = judged
        self.docs: dict[str, str] = {}

    def keep(self, ranking: Ranking) -> None:
        """Keep what the agreement of two runs is computed from."""
        if ranking.qid in self._judged:
            self.docs[ranking.qid] = "\n".join(doc.docid for doc in ranking.docs[:ALIKE])


# ---------------------------------------------------------------- statistics

DRAWING: tuple[Test, ...] = ("randomisation", "bootstrap")


def _samples(settings: CompareSettings, test: Test) -> int:
    return settings.samples if test == "randomisation" else max(100, settings.samples // 10)


def _tested(
    table: Table, pairs: Sequence[tuple[int, int]], settings: CompareSettings
) -> tuple[Comparison, ...]:
    """Test every pair by every measure; one family for the correction."""
    family = [(m, base, run, _differences(table, m, base, run))
              for m in table.measures for base, run in pairs]  # fmt: skip
    values = np.array([[each.value for each in topics] for _, _, _, topics in family]).T
    p: dict[Test, list[float]] = {}
    intervals = [statistics.t_interval(column, 1 - settings.level) for column in values.T]
    for test in settings.tests:
        if test == "t":
            p[test] = [statistics.t_test(column) for column in values.T]
        elif test == "wilcoxon":
            p[test] = [statistics.wilcoxon(column) for column in values.T]
        elif test == "randomisation":
            samples = _samples(settings, test)
            p[test] = statistics.randomisation(values, samples, settings.seed).tolist()
        else:
            samples = _samples(settings, test)
            drawn = statistics.bootstrap(values, samples, settings.seed, 1 - settings.level)
            p[test], intervals = drawn.p.tolist(), drawn.intervals
    raised = {test: statistics.adjusted(some, settings.correction) for test, some in p.items()}
    return tuple(
        Comparison(
            measure, base, run, topics,
            mean=float(values[:, place].mean()),
            interval=intervals[place],
            effect=statistics.effect_size(values[:, place]),
            detectable=statistics.detectable(values[:, place], settings.level),
            p={test: p[test][place] for test in settings.tests},
            adjusted={test: raised[test][place] for test in settings.tests},
        )
        for place, (measure, base, run, topics) in enumerate(family)
    )  # fmt: skip


def _differences(table: Table, measure: str, base: int, run: int) -> tuple[Difference, ...]:
    before = table.rows[base].evaluation.per_topic
    after = table.rows[run].evaluation.per_topic
    return tuple(Difference(qid, before[qid][measure], after[qid][measure]) for qid in before)


def _warnings(
    table: Table, found: Sequence[Comparison], settings: CompareSettings
) -> Iterator[str]:
    """Say what a reader of these numbers has to know."""
    for row in table.rows:
        if missing := len(row.evaluation.unanswered):
            yield (
                f"{one_line(row.name)}: {missing} of {table.topics} judged topics have no answer; "
                "they count zero, and so as differences"
            )
        if row.evaluation.unjudged:
            yield (
                f"{one_line(row.name)}: {len(row.evaluation.unjudged)} topics without judgements "
                "are ignored"
            )
    if table.topics < TOPICS:
        least = found[0]
        yield (
            f"{table.topics} topics are too few to trust a difference, significant or not (25 are "
            f"the least, 50 better): by {least.measure} only one of about "
            f"{least.detectable:.3f} would be found 4 times in 5"
        )
    few = {each.measure for each in found if 0 < each.wins + each.losses < SIGNED}
    if few and settings.tests != ("t",) and settings.level <= 0.05:
        yield (
            f"by {', '.join(sorted(few))} fewer than {SIGNED} topics differ: no test of signs or "
            "ranks can reach 0.05"
        )


# ---------------------------------------------------------------- rankings


def _agreement(base: int, run: int, tops: Sequence[dict[str, str]]) -> Agreement:
    """Average over the topics that both runs answer, their first hundred documents."""
    taus, overlaps = [], []
    for qid in tops[base].keys() & tops[run].keys():
        first, second = tops[base][qid].split("\n"), tops[run][qid].split("\n")
        tau = kendall(first, second)
        if tau is not None:
            taus.append(tau)
        overlaps.append(rbo(first, second))
    count = len(overlaps)
    return Agreement(
        base,
        run,
        count,
        sum(sorted(taus)) / len(taus) if taus else None,
        sum(sorted(overlaps)) / count if count else 0.0,
    )
