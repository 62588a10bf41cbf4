"""The lock of an output: one owner, which it never outlives, and the sweep that goes with it."""

from __future__ import annotations

import gzip
import os
import signal
from pathlib import Path

import pytest
from elsewhere import start_python
from folders import names
from refusal import refused

from pipeline import store
from pipeline.errors import BusyError

SOAK = bool(os.environ.get("PIPELINE_SOAK"))


class BoomError(Exception):
    """Something of ours that goes wrong in the middle."""


HOLDER = """
import sys
from pathlib import Path
from pipeline.store import locked
with locked(Path("a.run")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    """The message names the owner's pid; when the owner ends, nothing is left."""
    with start_python(HOLDER, tmp_path) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):
            with (
                refused(f"another process (pid {holder.pid}) is", "wait until it ends", BusyError),
                store.locked(tmp_path / "a.run"),
            ):
                pass
        with store.locked(tmp_path / "b.run"):
            pass
        holder.communicate("")
    with store.locked(tmp_path / "a.run"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_dies_with_its_owner(tmp_path: Path, number: int) -> None:
    """A killed process leaves no lock to clear by hand."""
    with start_python(HOLDER, tmp_path) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(number)
    with store.locked(tmp_path / "a.run"):
        pass
    assert names(tmp_path) == []


def test_a_lock_is_refused_within_a_process_too(tmp_path: Path) -> None:
    """Two jobs of one process on one output are two jobs."""
    with store.locked(tmp_path / "a.run"):
        with (
            refused(f"(pid {os.getpid()})", kind=BusyError),
            store.locked(tmp_path / "a.run"),
        ):
            pass
        with store.locked(tmp_path / "a.run.gz"):
            pass


def test_a_lock_is_given_back_after_an_exception(tmp_path: Path) -> None:
    """Failing is no reason to keep others out."""
    with pytest.raises(BoomError), store.locked(tmp_path / "a.run"):
        raise BoomError
    with store.locked(tmp_path / "a.run"):
        pass
    assert names(tmp_path) == []


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    """A job that fails leaves no folders behind; one that wrote something keeps them."""
    with pytest.raises(BoomError), store.locked(tmp_path / "new" / "deep" / "a.run"):
        raise BoomError
    assert names(tmp_path) == []

    with store.locked(tmp_path / "new" / "deep" / "a.run"):
        store.write_bytes(tmp_path / "new" / "deep" / "a.run", b"x")
    assert (tmp_path / "new" / "deep" / "a.run").read_bytes() == b"x"


COUNTER = """
import sys, time
from pathlib import Path
from pipeline.errors import BusyError
from pipeline.store import locked
count, left = Path("count"), int(sys.stdin.readline())
while left:
    try:
        with locked(Path("a.run")):
            seen = int(count.read_text())
            time.sleep(0.0005)
            count.write_text(str(seen + 1))
            left -= 1
    except BusyError:
        time.sleep(0.0002)
"""


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    """Processes that take turns as fast as they can never count the same number twice."""
    (tmp_path / "count").write_text("0")
    times = 400 if SOAK else 60
    workers = [start_python(COUNTER, tmp_path) for _ in range(4)]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write(f"{times}\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=300)
        assert worker.returncode == 0
    assert (tmp_path / "count").read_text() == str(4 * times)
    assert names(tmp_path) == ["count"]


def test_locking_sweeps_only_what_is_its_own(tmp_path: Path) -> None:
    """Leftovers of this output and its sidecar go; another output's file at work stays."""
    ours = [".a.run.77-0123abcd.tmp", ".a.run.json.77-0123abcd.tmp"]
    others = [
        ".a.run.gz.77-0123abcd.tmp", ".a.runs.77-0123abcd.tmp", ".a.run.mine.tmp",
        "a.run.77-0123abcd.tmp", ".b.run.77-0123abcd.tmp", ".aXrun.77-0123abcd.tmp",
    ]  # fmt: skip
    for name in ours + others:
        (tmp_path / name).touch()
    (tmp_path / ".a.run.78-0123abcd.tmp").mkdir()
    with store.locked(tmp_path / "a.run"):
        pass
    assert names(tmp_path) == sorted(others)


def test_two_outputs_of_one_folder_are_written_at_once(tmp_path: Path) -> None:
    """One whose name begins with the other's is not disturbed in the middle of its work."""
    with store.locked(tmp_path / "a.run.gz"), store.atomic_file(tmp_path / "a.run.gz") as out:
        out.write(b"half")
        with store.locked(tmp_path / "a.run"):
            store.write_bytes(tmp_path / "a.run", b"whole")
        out.write(b" and half")
    assert gzip.decompress((tmp_path / "a.run.gz").read_bytes()) == b"half and half"
    assert names(tmp_path) == ["a.run", "a.run.gz"]


@pytest.mark.parametrize("name", ["[a]*.run", "a b.run", "naïve.run", "a\nb.run", "-a.run"])
def test_names_of_outputs_may_be_odd(tmp_path: Path, name: str) -> None:
    """No name is taken for a pattern."""
    (tmp_path / f".{name}.77-0123abcd.tmp").touch()
    with store.locked(tmp_path / name):
        store.write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]
