"""What the numbers of a table rest on, in sentences: topics, levels of relevance, ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import one_line, shown
from pipeline.notation import parse_measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.tables import Row, Table

NAMED = 10  # topics named in a sentence; all of them are in the JSON


def of_table(table: Table) -> Iterator[str]:
    """What holds for every run of a table: one sentence each."""
    barren = len(table.barren)
    without = (
        f"; {barren:,} without a relevant document count 0 for every run: {some(table.barren)}"
        if barren
        else ", each with a relevant document"
    )
    yield one_line(f"{table.qrels}: means over all {table.topics:,} judged topics{without}")
    yield _relevance(table)
    evaluations = [row.evaluation for row in table.rows]
    well = ["every topic is answered"] * (not any(each.unanswered for each in evaluations))
    if not any(each.ties or each.unbounded for each in evaluations):
        well.append("ties change no measure")
    if well:
        yield f"in {'every run' if len(table.rows) > 1 else 'the run'} {' and '.join(well)}"


def _relevance(table: Table) -> str:
    levels: dict[int, list[str]] = {}
    graded = []
    for name in table.measures:
        measure = parse_measure(name)
        if measure["rel"] is not None:
            levels.setdefault(measure["rel"], []).append(name)
        elif measure.kind in ("nDCG", "ERR", "Compat"):
            graded.append(name)
    parts = []
    for level, names in levels.items():
        why = f", {table.why}" if level == table.level else ", as asked"
        parts.append(f"from grade {level} on in {', '.join(names)}{why}")
    told = ["relevant " + "; ".join(parts)] * bool(parts)
    told += [f"{', '.join(graded)} by grade"] * bool(graded)
    return "; ".join(told) or "no measure asks what is relevant"


def of_run(row: Row) -> Iterator[str]:
    """What holds for one run alone, where there is anything to say."""
    evaluation, total = row.evaluation, len(row.evaluation.per_topic)
    name = one_line(row.name)
    if evaluation.unanswered:
        yield (
            f"{name}: {len(evaluation.unanswered)} of {total} judged topics have no answer and "
            f"count zero: {some(evaluation.unanswered)}"
        )
    if evaluation.unjudged:
        yield (
            f"{name}: {len(evaluation.unjudged)} topics without judgements are ignored: "
            f"{some(evaluation.unjudged)}"
        )
    rank, share = row.judged
    if rank and not any(parse_measure(m).kind == "Judged" for m in evaluation.mean):
        yield f"{name}: Judged@{rank} is {share:.4f}"
    if row.identical:
        yield f"{name}: {row.identical:,} documents with the id of their topic are left out"
    beyond = [m for m in evaluation.mean if (parse_measure(m)["cutoff"] or 0) > row.depth]
    if beyond and row.depth:
        asked = ", ".join(beyond)
        yield f"{name}: at most {row.depth:,} documents a topic, fewer than {asked} look at"
    if evaluation.ties:
        moved = [f"{m} in {spread.topics:,}" for m, spread in evaluation.ties.items()]
        yield f"{name}: ties can change {', '.join(moved)} of {total:,} topics (--tie-bounds)"
    if evaluation.unbounded:
        yield f"{name}: has ties; what they do to {', '.join(evaluation.unbounded)} is not known"


def some(qids: Sequence[str]) -> str:
    """Name the first topics, and count the others."""
    more = len(qids) - NAMED
    return ", ".join(map(shown, qids[:NAMED])) + (f" and {more} more" if more > 0 else "")
