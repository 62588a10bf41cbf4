"""What comparing runs found, and its forms: cells with marks, Markdown, LaTeX, JSON, CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import one_line
from pipeline.store import write_bytes
from pipeline.tables import (
    Table,
    latex_grid,
    latex_text,
    markdown_grid,
    markdown_text,
    shown_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.statistics import Correction, Interval, Test

SCHEMA = 1
NAMES = {
    "randomisation": "paired randomisation test",
    "t": "paired t-test",
    "wilcoxon": "Wilcoxon signed-rank test",
    "bootstrap": "paired bootstrap test",
}
CORRECTED = {"holm": "Holm", "bonferroni": "Bonferroni", "none": "uncorrected"}


class Difference(NamedTuple):
    """One topic in two runs."""

    qid: str
    base: float
    run: float

    @property
    def value(self) -> float:
        """How much better the second run is; what rounding errors leave of nothing is 0."""
        return round(self.run - self.base, 12) + 0.0


class Agreement(NamedTuple):
    """How alike two runs rank, averaged over the topics that both answer."""

    base: int
    run: int
    topics: int
    kendall: float | None
    rbo: float


@dataclass(frozen=True)
class Comparison:
    """One run (`run`, its row in the table) against another (`base`) by one measure."""

    measure: str
    base: int
    run: int
    differences: tuple[Difference, ...]
    mean: float
    interval: Interval  # of the mean, by Student's t, or of the bootstrap where it was asked for
    effect: float  # Cohen's d of paired differences
    detectable: float
    p: Mapping[Test, float]
    adjusted: Mapping[Test, float]  # over all comparisons of the call

    @property
    def wins(self) -> int:
        """Topics in which `run` is better."""
        return sum(each.value > 0 for each in self.differences)

    @property
    def losses(self) -> int:
        """Topics in which `run` is worse."""
        return sum(each.value < 0 for each in self.differences)

    @property
    def ties(self) -> int:
        """Topics without a difference."""
        return len(self.differences) - self.wins - self.losses

    def moved(self, most: int) -> list[Difference]:
        """Topics that moved most, the largest change first; none that did not move."""
        changed = [each for each in self.differences if each.value]
        return sorted(changed, key=lambda each: (-abs(each.value), each.qid))[:most]


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of one call: the family over which p-values are corrected."""

    table: Table
    tests: tuple[Test, ...]  # marks go by the first
    correction: Correction
    level: float
    samples: Mapping[str, int]  # of each test that draws any
    seed: int
    found: tuple[Comparison, ...]
    agreements: tuple[Agreement, ...]
    curves: Mapping[str, Mapping[str, float]]  # run -> IPrec@0.0 … IPrec@1.0 -> mean
    warnings: tuple[str, ...]

    def letter(self, row: int) -> str:
        """Give a run the mark that stands for it."""
        return chr(ord("a") + row) if len(self.table.rows) <= 26 else f"({row + 1})"

    def beaten(self, row: int, measure: str) -> str:
        """Return the letters of the runs that this one beats beyond doubt, by this measure."""
        beaten = set()
        for each in self.found:
            if each.measure != measure or each.adjusted[self.tests[0]] > self.level:
                continue
            if row == each.run and each.mean > 0:
                beaten.add(each.base)
            elif row == each.base and each.mean < 0:
                beaten.add(each.run)
        return "".join(map(self.letter, sorted(beaten)))

    @property
    def note(self) -> str:
        """Say what was tested, in a sentence that fits under a table."""
        test = self.tests[0]
        drawn = (
            f" of {self.samples[test]:,} samples, seed {self.seed}" if test in self.samples else ""
        )
        family = len(self.found)
        corrected = (
            "not corrected for the number of comparisons"
            if self.correction == "none"
            else f"{CORRECTED[self.correction]}'s correction over {family} comparisons"
        )
        if family == 1:
            corrected = "one comparison"
        return (
            f"{self.table.topics} topics; a letter marks a run that is beaten: two-sided "
            f"{NAMES[test]}{drawn}, level {self.level:g}, {corrected}"
        )

    def title(self, each: Comparison | Agreement) -> str:
        """Name the two runs of a comparison."""
        names = [one_line(row.name) for row in self.table.rows]
        return f"{names[each.run]} - {names[each.base]}"


# ---------------------------------------------------------------- cells


def means(found: Comparisons) -> list[list[str]]:
    """Runs down, measures across, marks behind the values."""
    rows = [["", "run", *found.table.measures]]
    for number, (name, values) in enumerate(_means(found)):
        width = len(found.table.rows)
        cells = [f"{value}{mark:<{width}}" for value, mark, _ in values]
        rows.append([found.letter(number), one_line(name), *cells])
    return rows


def details(found: Comparisons) -> list[list[str]]:
    """A line for each comparison: difference, interval, effect size, topics, p-values."""
    header = ["measure", "runs", "diff", *_interval_names(found), "d", "wins", "ties", "losses"]
    for test in found.tests:
        name = "p" if len(found.tests) == 1 else f"p {test}"
        header.append(name)
        if found.correction != "none":
            header.append(f"{name} ({CORRECTED[found.correction]})")
    rows = [header]
    for each in found.found:
        row = [each.measure, found.title(each), f"{each.mean:+.4f}"]
        row += [f"{end:+.4f}" for end in each.interval]
        row += [f"{each.effect:+.2f}", f"{each.wins}", f"{each.ties}", f"{each.losses}"]
        for test in found.tests:
            row.append(shown_p(each.p[test]))
            if found.correction != "none":
                row.append(shown_p(each.adjusted[test]))
        rows.append(row)
    return rows


def moved(found: Comparisons, each: Comparison, most: int) -> list[list[str]]:
    """List the topics that moved most in one comparison."""
    names = [one_line(found.table.rows[place].name) for place in (each.base, each.run)]
    rows = [["topic", *names, "diff"]]
    for topic in each.moved(most):
        values = [shown_value(each.measure, value) for value in (topic.base, topic.run)]
        rows.append([one_line(topic.qid), *values, f"{topic.value:+.4f}"])
    return rows


def agreement(found: Comparisons) -> list[list[str]]:
    """How alike the runs rank, whatever was judged."""
    rows = [["runs", "topics", "Kendall", "RBO"]]
    for each in found.agreements:
        tau = "-" if each.kendall is None else f"{each.kendall:.3f}"
        rows.append([found.title(each), f"{each.topics}", tau, f"{each.rbo:.3f}"])
    return rows


def shown_p(p: float) -> str:
    """Four decimals; what would round to zero says so."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _interval_names(found: Comparisons) -> tuple[str, str]:
    share = f"{100 * (1 - found.level):g}"
    return f"{share}% from", "to"


def _means(found: Comparisons) -> Iterator[tuple[str, list[tuple[str, str, bool]]]]:
    """Yield each run with (value, marks, whether it is the best of its column)."""
    rows = found.table.rows
    best = {m: max(row.evaluation.mean[m] for row in rows) for m in found.table.measures}
    for number, row in enumerate(rows):
        values = []
        for measure in found.table.measures:
            value = row.evaluation.mean[measure]
            mark = found.beaten(number, measure)
            values.append((shown_value(measure, value), mark, value == best[measure]))
        yield row.name, values


# ---------------------------------------------------------------- forms


def markdown(found: Comparisons) -> str:
    """Both tables and their note; the best value of a column is bold, marks are superscripts."""
    grid = [["", "run", *map(markdown_text, found.table.measures)]]
    for number, (name, values) in enumerate(_means(found)):
        cells = []
        for value, mark, best in values:
            cells.append(
                (f"**{value}**" if best else value) + (f"<sup>{mark}</sup>" if mark else "")
            )
        grid.append([found.letter(number), markdown_text(one_line(name)), *cells])
    other = [[markdown_text(cell) for cell in row] for row in details(found)]
    notes = "\n".join(f"{text}." for text in (found.note, *found.warnings))
    return f"{markdown_grid(grid, 2)}\n{markdown_grid(other, 2)}\n{notes}\n"


def latex(found: Comparisons) -> str:
    r"""Both tables as `tabular`s (`\usepackage{booktabs}`), the note as a comment above."""
    grid = [["", "run", *map(latex_text, found.table.measures)]]
    for number, (name, values) in enumerate(_means(found)):
        cells = []
        for value, mark, best in values:
            shown = rf"\textbf{{{value}}}" if best else value
            cells.append(shown + (rf"\textsuperscript{{{mark}}}" if mark else ""))
        grid.append([found.letter(number), latex_text(one_line(name)), *cells])
    other = [[_minus(latex_text(cell)) for cell in row] for row in details(found)]
    other[0] = [latex_text(cell) for cell in details(found)[0]]
    notes = "".join(f"% {text}.\n" for text in (found.note, *found.warnings))
    return f"{notes}{latex_grid(grid, 2)}\n{latex_grid(other, 2)}"


def _minus(cell: str) -> str:
    """Numbers with a true minus sign, and `<` where LaTeX has it."""
    if cell.startswith("<"):
        return f"${cell}$"
    return f"${cell}$" if cell[:1] in "+-" and cell[1:2].isdigit() else cell


def as_json(found: Comparisons, most: int) -> dict[str, Any]:
    """Everything for machines, in full precision; what is infinite there is null."""
    names = [row.name for row in found.table.rows]
    return {
        "schema": SCHEMA,
        "qrels": found.table.qrels,
        "topics": found.table.topics,
        "measures": list(found.table.measures),
        "runs": [
            {"name": row.name, "mean": {m: row.evaluation.mean[m] for m in found.table.measures}}
            for row in found.table.rows
        ],
        "tests": list(found.tests),
        "correction": found.correction,
        "level": found.level,
        "samples": dict(found.samples),
        "seed": found.seed,
        "comparisons": [_record(each, names, most) for each in found.found],
        "agreement": [
            {"base": names[a.base], "run": names[a.run], "topics": a.topics,
             "kendall": a.kendall, "rbo": a.rbo}
            for a in found.agreements
        ],
        "warnings": list(found.warnings),
    }  # fmt: skip


def _record(each: Comparison, names: list[str], most: int) -> dict[str, Any]:
    return {
        "measure": each.measure,
        "base": names[each.base],
        "run": names[each.run],
        "difference": each.mean,
        "interval": [_finite(end) for end in each.interval],
        "effect_size": _finite(each.effect),
        "detectable": _finite(each.detectable),
        "wins": each.wins,
        "ties": each.ties,
        "losses": each.losses,
        "p": dict(each.p),
        "p_adjusted": dict(each.adjusted),
        "moved": [
            {"qid": topic.qid, "base": topic.base, "run": topic.run, "difference": topic.value}
            for topic in each.moved(most)
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_differences(found: Comparisons, path: Path) -> None:
    """Write CSV, or `.csv.gz`: a line for each topic of each comparison."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["measure", "base", "run", "qid", "base_value", "run_value", "difference"])
    names = [row.name for row in found.table.rows]
    for each in found.found:
        for topic in each.differences:
            runs = (names[each.base], names[each.run])
            writer.writerow([each.measure, *runs, *topic, topic.value])
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
