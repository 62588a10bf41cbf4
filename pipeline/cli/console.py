"""What the user sees while a stage works: notices and progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import one_line
from pipeline.pace import summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.stage import Outcome

DRAW_EVERY = 0.1  # seconds


class Console:
    """A reporter for people: one line that is drawn over, on a terminal only."""

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self._name = name
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._drawn = False
        self._started: float | None = None
        self._offset = 0
        self._last = 0.0

    def notice(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            self.clear()
            print(f"{self._name}: {one_line(text)}", file=sys.stderr)

    def advance(self, done: int, total: int, unit: str) -> None:
        """Draw how far the work is, its rate, and the time left."""
        if not self._live:
            return
        now = time.monotonic()
        if self._started is None:
            # Finished parts arrive at once: they must not make the rate of the rest look better.
            self._started, self._offset = now, done
        if done < total and now - self._last < DRAW_EVERY:
            return
        self._last = now
        rate = (done - self._offset) / max(now - self._started, 1e-9)
        left = f", {_duration((total - done) / rate)} left" if rate > 0 and done < total else ""
        share = f"{done / total:4.0%} " if total else ""
        line = f"{self._name}: {share}{done:,} of {total:,} {unit}, {rate:,.0f}/s{left}"
        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def clear(self) -> None:
        """Take the progress line away."""
        if self._drawn:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._drawn = False

    def done(self, outcome: Outcome) -> None:
        """Say in one line what a stage did."""
        self.clear()
        if self._quiet:
            return
        facts = [
            f"{value:,} {name.replace('_', ' ')}"
            for name, value in outcome.counts.items()
            if isinstance(value, int) and not isinstance(value, bool) and value
        ]
        how = f"{_duration(outcome.seconds)}" if outcome.computed else "fresh, left alone"
        if outcome.computed and (cost := summary(outcome.pace)):
            how += f"; {cost}"
        print(f"{self._name}: {outcome.output}: {', '.join([*facts, how])}", file=sys.stderr)


@contextmanager
def reporting(name: str, *, quiet: bool = False) -> Iterator[Console]:
    """Give a console for one stage; its progress line is gone when the block ends, however."""
    console = Console(name, quiet=quiet)
    try:
        yield console
    finally:
        console.clear()


def print_json(value: object) -> None:
    """Print one JSON document on stdout, for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """Describe what a stage did, as `--json` prints it."""
    return {
        "schema": 1,
        "output": outcome.output,
        "computed": outcome.computed,
        "reasons": list(outcome.reasons),
        "seconds": round(outcome.seconds, 3),
        "counts": outcome.counts,
        "details": outcome.details,
        "pace": outcome.pace,
    }


def plain_table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Set a table in columns: the first `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = zip(row, widths, range(len(row)), strict=True)
        return "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width) for cell, width, i in cells
        ).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
