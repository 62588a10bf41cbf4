"""Evaluation tables: runs down, measures across; as Markdown, LaTeX, JSON, and per topic as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, PipelineError, one_line, shown
from pipeline.measures import Evaluation
from pipeline.notation import is_count
from pipeline.store import write_bytes, write_json
from pipeline.textfile import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One run of a table."""

    name: str
    evaluation: Evaluation


@dataclass(frozen=True)
class Table:
    """Runs against one qrels."""

    qrels: str
    measures: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def topics(self) -> int:
        """Number of judged topics, over which every mean runs."""
        return len(self.rows[0].evaluation.per_topic) if self.rows else 0

    def cells(self) -> list[list[str]]:
        """What to show: a header, then a line for each run; four decimals, counts whole."""
        header = ["run", *self.measures]
        return [
            header,
            *(
                [one_line(row.name), *(shown_value(m, row.evaluation.mean[m]) for m in header[1:])]
                for row in self.rows
            ),
        ]


def shown_value(measure: str, value: float) -> str:
    """Four decimals, as trec_eval prints; a count as a whole number."""
    return f"{value:.0f}" if is_count(measure) else f"{value:.4f}"


def markdown(table: Table) -> str:
    """A table for a README or an issue."""
    return markdown_grid([[markdown_text(cell) for cell in row] for row in table.cells()])


def markdown_text(text: str) -> str:
    """Escape what a cell of a Markdown table may not hold."""
    return text.replace("\\", r"\\").replace("|", r"\|")


def markdown_grid(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """Set a header and rows of Markdown: `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_aligned(row, widths, left) for row in cells]
    rule = ["-" * width for width in widths[:left]]
    rule += ["-" * (width - 1) + ":" for width in widths[left:]]
    return "\n".join([lines[0], _aligned(rule, widths, left), *lines[1:]]) + "\n"


def _aligned(row: Sequence[str], widths: Sequence[int], left: int) -> str:
    both = list(zip(row, widths, strict=True))
    cells = [cell.ljust(width) for cell, width in both[:left]]
    cells += [cell.rjust(width) for cell, width in both[left:]]
    return f"| {' | '.join(cells)} |"


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def latex(table: Table) -> str:
    r"""A `tabular` for a paper, with the rules of `\usepackage{booktabs}`."""
    return latex_grid([[latex_text(cell) for cell in row] for row in table.cells()])


def latex_text(text: str) -> str:
    """Escape what LaTeX would read as a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex_grid(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """Set a header and rows of LaTeX as a `tabular`: `left` columns to the left, others right."""
    lines = [" & ".join(row) + r" \\" for row in cells]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(cells[0]) - left)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def as_json(table: Table, *, per_topic: bool = False) -> dict[str, Any]:
    """A table for machines, in full precision; `read_table` reads one with values per topic."""
    return {
        "schema": SCHEMA,
        "qrels": table.qrels,
        "topics": table.topics,
        "measures": list(table.measures),
        "runs": [_run(row, per_topic) for row in table.rows],
    }


def _run(row: Row, per_topic: bool) -> dict[str, Any]:
    evaluation = row.evaluation
    run: dict[str, Any] = {"name": row.name, "mean": _values(evaluation.mean)}
    if per_topic:
        run["per_topic"] = {qid: _values(each) for qid, each in evaluation.per_topic.items()}
    run["unanswered"] = list(evaluation.unanswered)
    run["unjudged"] = list(evaluation.unjudged)
    return run


def _values(values: dict[str, float]) -> dict[str, float]:
    return {name: int(value) if is_count(name) else value for name, value in values.items()}


def read_table(path: Path) -> Table:
    """Read what the evaluation of an experiment wrote.

    Raises:
        InputError: it is not such a file.
    """
    value = read_json(path)
    try:
        if value["schema"] != SCHEMA:
            raise ValueError
        rows = [
            Row(
                str(run["name"]),
                Evaluation(
                    dict(run["per_topic"]),
                    dict(run["mean"]),
                    tuple(run["unanswered"]),
                    tuple(run["unjudged"]),
                ),
            )
            for run in value["runs"]
        ]
        return Table(str(value["qrels"]), tuple(value["measures"]), tuple(rows))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            path, None, "no table of measures", "delete the file; evaluation writes it again"
        ) from None


def write_per_topic(table: Table, path: Path) -> None:
    """Write every run's value for every judged topic: CSV or JSON by the file's ending, or `.gz`.

    CSV has the columns `run`, `qid` and one per measure, and no line of means.

    Raises:
        PipelineError: another ending.
    """
    check_per_topic(path)
    if _ending(path) == ".json":
        write_json(path, as_json(table, per_topic=True))
    else:
        write_bytes(path, _csv(table).encode())


def check_per_topic(path: Path) -> None:
    """Make sure that the ending says what to write, before anything is computed.

    Raises:
        PipelineError: it is neither `.csv` nor `.json`.
    """
    if _ending(path) not in (".csv", ".json"):
        raise PipelineError(
            f"{shown(str(path))}: values per topic are written as CSV or JSON",
            "let the name end in .csv or .json",
        )


def _ending(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "qid", *table.measures])
    for row in table.rows:
        for qid, values in row.evaluation.per_topic.items():
            numbers = _values(values)
            writer.writerow([row.name, qid, *(numbers[name] for name in table.measures)])
    return text.getvalue()
