"""Evaluation tables: runs down, measures across; as Markdown, LaTeX, JSON, and per topic as CSV."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, PipelineError, one_line, shown, storage_error
from pipeline.measures import Evaluation
from pipeline.notation import is_count
from pipeline.store import write_bytes, write_json
from pipeline.textfile import BLOCK, open_stream, read_json
from pipeline.ties import Spread

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One run of a table."""

    name: str
    evaluation: Evaluation
    identical: int = 0  # documents left out because they have the id of their topic
    depth: int = 0  # documents of the longest ranking in the file
    judged: tuple[int, float] = (0, 0.0)  # a rank, and how much down to it is judged: Judged@k


@dataclass(frozen=True)
class Table:
    """Runs against one qrels."""

    qrels: str
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    level: int = 1  # from which grade on documents are relevant, where a measure does not say it
    why: str = "the default"
    barren: tuple[str, ...] = ()  # judged topics without a document that is relevant at that level

    @property
    def topics(self) -> int:
        """Number of judged topics, over which every mean runs."""
        return len(self.rows[0].evaluation.per_topic) if self.rows else 0

    def cells(self, *, tie_bounds: bool = False) -> list[list[str]]:
        """What to show: a header, then a line for each run; four decimals, counts whole.

        With `tie_bounds`, two more for a run whose ties matter: all broken against it, all for it.
        """
        cells = [["run", *self.measures]]
        for row in self.rows:
            mean, ties = row.evaluation.mean, row.evaluation.ties
            cells.append(self._line(row.name, mean))
            if tie_bounds and ties:
                worst = {name: spread.worst for name, spread in ties.items()}
                best = {name: spread.best for name, spread in ties.items()}
                cells.append(self._line(f"{row.name}, ties at worst", mean | worst))
                cells.append(self._line(f"{row.name}, ties at best", mean | best))
        return cells

    def _line(self, name: str, values: dict[str, float]) -> list[str]:
        return [one_line(name), *(shown_value(m, values[m]) for m in self.measures)]


def shown_value(measure: str, value: float) -> str:
    """Four decimals, as trec_eval prints; a count as a whole number."""
    return f"{value:.0f}" if is_count(measure) else f"{value:.4f}"


def markdown(cells: list[list[str]]) -> str:
    """A table for a README or an issue."""
    return markdown_grid([[markdown_text(cell) for cell in row] for row in cells])


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


def latex(cells: list[list[str]]) -> str:
    r"""A `tabular` for a paper, with the rules of `\usepackage{booktabs}`."""
    return latex_grid([[latex_text(cell) for cell in row] for row in cells])


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


@dataclass(frozen=True)
class Average:
    """Several collections as one: the mean of each measure's means, every collection alike."""

    measures: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, float]], ...]  # a system's name, and its values

    def cells(self) -> list[list[str]]:
        """What to show: a header, then a line for each system."""
        return [
            ["run", *self.measures],
            *(
                [one_line(name), *(shown_value(m, values[m]) for m in self.measures)]
                for name, values in self.rows
            ),
        ]


def average(tables: Sequence[Table]) -> Average:
    """Average tables of the same systems, matched by their place; counts are added up.

    Raises:
        PipelineError: not as many runs in each, or other measures.
    """
    first = tables[0]
    for table in tables[1:]:
        if len(table.rows) != len(first.rows):
            raise PipelineError(
                f"{len(first.rows)} runs for {first.qrels}, {len(table.rows)} for {table.qrels}",
                "give every collection the same systems in the same order",
            )
        if len(table.measures) != len(first.measures):
            raise PipelineError(
                f"the levels of {table.qrels} make one measure of two", "name levels: AP(rel=2)"
            )
    rows = []
    for some in zip(*(table.rows for table in tables), strict=True):
        values = {}
        for place, measure in enumerate(first.measures):
            means = [
                row.evaluation.mean[table.measures[place]]
                for table, row in zip(tables, some, strict=True)
            ]
            values[measure] = sum(means) / (1 if is_count(measure) else len(means))
        rows.append((common_name([row.name for row in some]), values))
    return Average(first.measures, tuple(rows))


def common_name(names: Sequence[str]) -> str:
    """What the names of one system's runs have in common: `bm25` of bm25.nf and bm25.scifact."""
    words = [re.split(r"[./_-]", name) for name in names]
    common = [word for word in words[0] if all(word in others for others in words)]
    return names[0] if len(set(names)) == 1 else ".".join(common) or names[0]


def as_json(table: Table, *, per_topic: bool = False) -> dict[str, Any]:
    """A table for machines, in full precision; `read_table` reads one with values per topic."""
    return {
        "schema": SCHEMA,
        "qrels": table.qrels,
        "topics": table.topics,
        "without_relevant": list(table.barren),
        "relevant_from_grade": {"level": table.level, "why": table.why},
        "measures": list(table.measures),
        "runs": [_run(row, per_topic) for row in table.rows],
    }


def several(records: list[dict[str, Any]], mean: Average) -> dict[str, Any]:
    """Several collections for machines, and their average."""
    return {
        "schema": SCHEMA,
        "collections": records,
        "mean": [{"name": name, "values": _values(values)} for name, values in mean.rows],
    }


def _run(row: Row, per_topic: bool) -> dict[str, Any]:
    evaluation = row.evaluation
    run: dict[str, Any] = {"name": row.name, "mean": _values(evaluation.mean)}
    if per_topic:
        run["per_topic"] = {qid: _values(each) for qid, each in evaluation.per_topic.items()}
    run["unanswered"] = list(evaluation.unanswered)
    run["unjudged"] = list(evaluation.unjudged)
    run["ties"] = {name: spread._asdict() for name, spread in evaluation.ties.items()}
    run["ties_unbounded"] = list(evaluation.unbounded)
    run["identical_ids_left_out"] = row.identical
    run["depth"] = row.depth
    run["judged"] = {"rank": row.judged[0], "share": row.judged[1]}
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
                    {name: Spread(**spread) for name, spread in run["ties"].items()},
                    tuple(run["ties_unbounded"]),
                ),
                int(run["identical_ids_left_out"]),
                int(run["depth"]),
                (int(run["judged"]["rank"]), float(run["judged"]["share"])),
            )
            for run in value["runs"]
        ]
        return Table(
            str(value["qrels"]),
            tuple(value["measures"]),
            tuple(rows),
            int(value["relevant_from_grade"]["level"]),
            str(value["relevant_from_grade"]["why"]),
            tuple(value["without_relevant"]),
        )
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


def rewrite_per_topic(table: Table, path: Path) -> bool:
    """Write the CSV of `write_per_topic` again unless it lies there as it should; say whether.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        whole = path.read_bytes() == _csv(table).encode()
    except FileNotFoundError:
        whole = False
    except OSError as error:
        raise storage_error(path, error) from error
    if not whole:
        write_per_topic(table, path)
    return not whole


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


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that does not begin as `write_per_topic` begins one.

    Raises:
        PipelineError: it is something else, such as the judgements themselves.
        StorageError: it cannot be read.
    """
    try:
        if not path.exists():
            return
    except OSError as error:
        raise storage_error(path, error) from error
    with open_stream(path) as stream:
        start = stream.read(BLOCK).lstrip()
    if start and not start.startswith(b"run,qid,") and not re.match(rb'\{\s*"schema"', start):
        raise PipelineError(
            f"{path}: exists already and holds no values per topic",
            "choose another name, or delete it first",
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
