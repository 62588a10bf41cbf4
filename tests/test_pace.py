"""What work cost: rates, percentiles, memory, and energy only where it is measured."""

from __future__ import annotations

import threading
import time
from array import array
from pathlib import Path

import pytest

from pipeline.pace import UNKNOWN, Pace, percentiles, summary


def test_rates_and_times_of_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's time is shared among its topics; rates run from the first begin to the last end."""
    ticks = iter((10.0, 10.2, 10.9, 11.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    pace = Pace(tmp_path)
    with pace.timing(topics=4, pairs=40):
        pass
    with pace.timing(pairs=10):
        pass
    record = pace.record()
    assert record["topics"] == record["topics_per_second"] == 5
    assert record["pairs"] == record["pairs_per_second"] == 50
    assert record["topic_ms"] == {"p50": 50.0, "p95": 100.0, "p99": 100.0}
    assert record["peak_memory_mib"] > 10
    assert record["padding"] == UNKNOWN
    times = "50.0 / 100.0 / 100.0 ms a topic (p50 / p95 / p99)"
    assert summary(record) == f"50 pairs/s, {times}, {record['peak_memory_mib']:,} MiB"


def test_topics_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told when they are done: the rate is that of all workers, the times are those of one."""
    ticks = iter((10.5, 10.6, 11.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    pace = Pace(tmp_path)
    pace.took(0.4, topics=2, pairs=20)
    pace.took(0.5, topics=1, pairs=10)
    pace.took(0.4, topics=1, pairs=10)
    record = pace.record()
    assert record["topics_per_second"] == pytest.approx(4 / 0.9, abs=0.01)
    assert record["pairs_per_second"] == pytest.approx(40 / 0.9, abs=0.1)
    assert record["topic_ms"]["p50"] == 200.0


def test_padding_is_the_share_of_all_tokens_computed(tmp_path: Path) -> None:
    """Of all topics together; where the model does not say, neither do we."""
    pace = Pace(tmp_path)
    with pace.timing(pairs=10):
        pass
    pace.add_tokens(0, 0)
    assert pace.record()["padding"] == UNKNOWN
    assert "padding" not in summary(pace.record())
    pace.add_tokens(60, 20)
    pace.add_tokens(30, 10)
    assert pace.record()["padding"] == 0.25
    assert summary(pace.record()).endswith(" MiB, 25.0% padding")
    full = Pace(tmp_path)
    with full.timing(pairs=1):
        full.add_tokens(8, 0)
    assert full.record()["padding"] == 0.0


def test_nothing_timed(tmp_path: Path) -> None:
    """Stages without topics say what memory they took, and nothing of topics."""
    record = Pace(tmp_path).record()
    assert record.keys() == {"peak_memory_mib", "joules"}
    assert record["joules"] == UNKNOWN
    assert summary(record) == ""


def test_percentiles_are_values_that_occurred() -> None:
    """The smallest that so many per cent do not exceed."""
    assert percentiles(array("f", range(1, 101))) == [50, 95, 99]
    assert percentiles(array("f", [7])) == [7, 7, 7]


def test_threads_overlap() -> None:
    """What happened at the same time counts once for the rate."""
    pace = Pace()

    def work() -> None:
        with pace.timing():
            time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pace.record()["topics_per_second"] > 25


def test_energy_where_there_is_a_meter(tmp_path: Path) -> None:
    """Packages are added up, parts of them are not, and a meter may begin anew."""

    def meter(name: str, count: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "energy_uj").write_text(f"{count}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")

    meter("intel-rapl:0", 1_000_000)
    meter("intel-rapl:1", 9_000_000)
    meter("intel-rapl:0:0", 1)
    pace = Pace(tmp_path)
    meter("intel-rapl:0", 3_500_000)
    meter("intel-rapl:1", 1_000_000)
    meter("intel-rapl:0:0", 5_000_000)
    assert pace.record()["joules"] == 4.5
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert pace.record()["joules"] == UNKNOWN
