"""What the work of a stage cost: rates, times of topics, padding, memory, energy."""

from __future__ import annotations

import resource
import sys
import threading
import time
from array import array
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.machine import read

if TYPE_CHECKING:
    from collections.abc import Iterator

POWERCAP = Path("/sys/class/powercap")
UNKNOWN = "not available"
PERCENTILES = (50, 95, 99)


class Pace:
    """A watch that a stage starts for each topic or group of topics; safe for several threads."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._lock = threading.Lock()
        self._topics = array("f")  # seconds of each
        self._pairs = 0
        self._begin = self._end = 0.0
        self._meters = _energy(powercap)
        self._powercap = powercap
        self._tokens = self._padding = 0

    @contextmanager
    def timing(self, topics: int = 1, pairs: int = 0) -> Iterator[None]:
        """Time a group of topics; each counts for its share of the time."""
        begin = time.perf_counter()
        yield
        end = time.perf_counter()
        self.add(begin, end, end - begin, topics, pairs)

    def add(
        self, begin: float, end: float, seconds: float, topics: int = 1, pairs: int = 0
    ) -> None:
        """Take in a group of topics that were timed elsewhere, as `time.perf_counter` counts.

        Args:
            seconds: what was spent on them; less than from begin to end where others came between.
        """
        with self._lock:
            self._begin = min(self._begin, begin) if self._topics else begin
            self._end = max(self._end, end)
            self._topics.extend([seconds / max(topics, 1)] * topics)
            self._pairs += pairs

    def took(self, seconds: float, topics: int, pairs: int) -> None:
        """Count topics that a worker was done with just now, after so many seconds."""
        end = time.perf_counter()
        self.add(end - seconds, end, seconds, topics, pairs)

    def add_tokens(self, tokens: int, padding: int) -> None:
        """Count what went through a model: tokens of texts, and those that only filled rows."""
        with self._lock:
            self._tokens += tokens
            self._padding += padding

    def record(self) -> dict[str, Any]:
        """Describe what was timed, as sidecars and `--json` have it.

        Rates are over the time from the first topic's begin to the last one's end. Memory is the
        most this process ever held, energy that of the whole machine's processors since the watch
        was made.
        """
        found: dict[str, Any] = {}
        if self._topics:
            seconds = max(self._end - self._begin, 1e-9)
            found["topics"] = len(self._topics)
            found["topics_per_second"] = round(len(self._topics) / seconds, 2)
            if self._pairs:
                found["pairs"] = self._pairs
                found["pairs_per_second"] = round(self._pairs / seconds, 1)
            found["topic_ms"] = {
                f"p{p}": round(1000 * value, 3)
                for p, value in zip(PERCENTILES, percentiles(self._topics), strict=True)
            }
            if self._pairs:
                computed = self._tokens + self._padding
                found["padding"] = round(self._padding / computed, 4) if computed else UNKNOWN
        found["peak_memory_mib"] = peak_memory() >> 20
        found["joules"] = self._joules()
        return found

    def _joules(self) -> float | str:
        now = _energy(self._powercap)
        if not now or now.keys() != self._meters.keys():
            return UNKNOWN
        used = 0
        for name, (count, limit) in now.items():
            before = self._meters[name][0]
            used += count - before + (limit if count < before else 0)  # a meter that began anew
        return round(used / 1e6, 1)


def percentiles(values: array[float]) -> list[float]:
    """The p-th: the smallest value that p per cent of all do not exceed."""
    ordered = sorted(values)
    return [ordered[-(-p * len(ordered) // 100) - 1] for p in PERCENTILES]


def peak_memory() -> int:
    """Bytes that this process held at its most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summary(record: dict[str, Any]) -> str:
    """One line for people, or nothing where no topic was timed."""
    if "topic_ms" not in record:
        return ""
    unit = "pairs" if "pairs_per_second" in record else "topics"
    times = " / ".join(f"{value:,.1f}" for value in record["topic_ms"].values())
    return (
        f"{record[f'{unit}_per_second']:,.0f} {unit}/s, {times} ms a topic (p50 / p95 / p99), "
        f"{record['peak_memory_mib']:,} MiB{_padding(record.get('padding'))}"
    )


def _padding(share: object) -> str:
    return f", {share:.1%} padding" if isinstance(share, float) else ""


def _energy(powercap: Path) -> dict[str, tuple[int, int]]:
    """Microjoules of each package of processors, and where its meter begins anew; or nothing."""
    found = {}
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") > 1:
            continue  # a part of a package
        count, limit = (read(folder / name).strip() for name in _METER)
        if not count.isdecimal() or not limit.isdecimal():
            return {}
        found[folder.name] = (int(count), int(limit))
    return found


_METER = ("energy_uj", "max_energy_range_uj")
