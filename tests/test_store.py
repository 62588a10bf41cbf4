"""Whole files and folders or none: under exceptions, kills, full disks and missing permission."""

from __future__ import annotations

import errno
import gzip
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from crashing import killed_everywhere
from elsewhere import start_python
from folders import names
from refusal import refused

from pipeline import store
from pipeline.errors import StorageError

SOAK = bool(os.environ.get("PIPELINE_SOAK"))


class BoomError(Exception):
    """Something of ours that goes wrong in the middle."""


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["a.run", "a.run.gz", "new/deep/a.run"])
def test_a_file_appears_when_it_is_whole(tmp_path: Path, name: str) -> None:
    """Nothing under its name while it is written; folders are made; nothing else is left."""
    path = tmp_path / name
    with store.atomic_file(path) as out:
        out.write(b"one\n")
        out.write(b"two\n")
        assert not path.exists()
    data = path.read_bytes()
    assert (gzip.decompress(data) if name.endswith(".gz") else data) == b"one\ntwo\n"
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("name", ["a.run", "a.run.gz"])
def test_a_file_that_failed_leaves_the_old_one(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    """An exception in the middle: the old bytes stand, and no half file lies beside them."""
    path = tmp_path / name
    store.write_bytes(path, b"old")
    before = path.read_bytes()

    def half() -> None:
        with store.atomic_file(path) as out:
            out.write(os.urandom(1 << 20))
            raise error

    with pytest.raises(error):
        half()
    assert path.read_bytes() == before
    assert names(tmp_path) == [name]


def test_packed_bytes_depend_on_the_content_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the time nor the name is in a `.gz`."""
    store.write_bytes(tmp_path / "a.run.gz", b"text" * 100)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    store.write_bytes(tmp_path / "other.gz", b"text" * 100)
    assert (tmp_path / "a.run.gz").read_bytes() == (tmp_path / "other.gz").read_bytes()


def test_standard_output_takes_what_is_written() -> None:
    """`-` is a stream: no file of that name, and a full device is a refusal like any other."""
    code = """
        from pipeline.store import write_bytes
        from pipeline.errors import StorageError
        import os, sys
        try:
            write_bytes("-", b"text" * int(sys.argv[1]))
        except StorageError as error:
            print(error, file=sys.stderr)
            os._exit(1)
    """
    run = [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())]
    assert subprocess.check_output([*run, "2"]) == b"texttext"
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*run, "100000"], stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.stderr == b"standard output: the disk is full\n"


def test_a_closed_pipe_stays_a_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops reading our output has not filled the disk; the command line ends quietly."""
    with pytest.raises(BrokenPipeError), store.atomic_file("-"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    monkeypatch.setattr(sys, "stdout", None)
    with refused("standard output: is closed", "> FILE"):
        store.write_bytes(Path("-"), b"")


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    """Renaming a file onto /dev/null would take it from the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    with refused("pipe: is no regular file", "- for standard output", StorageError):
        store.write_bytes(tmp_path / "pipe", b"")
    with (
        refused("pipe: is no regular file", "- for standard output", StorageError),
        store.locked(tmp_path / "pipe"),
    ):
        pass
    assert names(tmp_path) == ["pipe"]


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    """A folder where a file should be, and a file where a folder should be."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    with refused(f"{tmp_path / 'folder'}: is a folder", "name a file", StorageError):
        store.write_bytes(tmp_path / "folder", b"")
    with refused(f"{tmp_path / 'file'}: is a file, not a folder", kind=StorageError):
        store.write_bytes(tmp_path / "file" / "a.run", b"")
    assert names(tmp_path) == ["file", "folder"]


def test_a_missing_input_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    """An input that goes away while an output is written is the one named."""
    with refused(f"{tmp_path / 'gone'}: no such file", kind=StorageError):  # noqa: SIM117
        with store.atomic_file(tmp_path / "out"):
            (tmp_path / "gone").open("rb")


@pytest.mark.parametrize("beside", ["a.run", "new/deep/a.run", "-"])
def test_a_scratch_file_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    """It holds what is written, lies on the disk of the output, and leaves nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with store.scratch_file(beside) as scratch:
        scratch.write(b"text")
        scratch.seek(0)
        assert scratch.read() == b"text"
        assert os.fstat(scratch.fileno()).st_dev == tmp_path.stat().st_dev
        assert names(tmp_path) == []
    assert names(tmp_path) == []


# ---------------------------------------------------------------- folders


def fill(path: Path, text: str, files: int = 3) -> None:
    with store.atomic_folder(path) as folder:
        (folder / "deep").mkdir()
        for i in range(files):
            (folder / "deep" / f"{i}").write_text(text)


def content(path: Path) -> list[str]:
    return [p.read_text() for p in sorted(path.glob("deep/*"))]


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    """It takes the place of an older one, or of a file, and nothing else is left."""
    path = tmp_path / "new" / "index"
    fill(path, "one")
    fill(path, "two", files=2)
    assert content(path) == ["two"] * 2
    (tmp_path / "file").write_text("in the way")
    fill(tmp_path / "file", "three")
    assert content(tmp_path / "file") == ["three"] * 3
    assert names(tmp_path) == ["file", "new"]
    assert names(path.parent) == ["index"]


def test_a_folder_that_failed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in the block, or a rename that is refused: the old one stands."""
    path = tmp_path / "index"
    fill(path, "old")

    def half() -> None:
        with store.atomic_folder(path) as folder:
            (folder / "half").touch()
            raise BoomError

    with pytest.raises(BoomError):
        half()
    assert content(path) == ["old"] * 3

    rename, refusals = Path.rename, [OSError(errno.EIO, "Input/output error")]

    def refusing(self: Path, target: Path) -> Path:
        if target == path and refusals:
            raise refusals.pop()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with refused(f"{path}: Input/output error", kind=StorageError):
        fill(path, "new")
    assert content(path) == ["old"] * 3
    assert names(tmp_path) == ["index"]


# ---------------------------------------------------------------- kills

WRITER = """
from pathlib import Path
from pipeline.store import atomic_file, atomic_folder
print("ready", flush=True)
for n in range(10**9):
    with atomic_file(Path("a.txt")) as out:
        for _ in range(50):
            out.write(b"%d\\n" % n)
    with atomic_folder(Path("index")) as folder:
        for i in range(5):
            (folder / str(i)).write_text(str(n))
"""


def test_a_killed_writer_leaves_whole_things(tmp_path: Path) -> None:
    """SIGKILL at random moments: a file is always there and whole, a folder whole or absent."""
    chance, seen, written = random.Random(7), 0, set()
    store.write_bytes(tmp_path / "a.txt", b"old\n" * 50)
    for killed in range(1000):
        if killed >= (100 if SOAK else 12) and seen and len(written) > 1:
            break
        with start_python(WRITER, tmp_path) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == "ready\n"
            time.sleep(chance.random() * 0.15)
            writer.kill()
        lines = (tmp_path / "a.txt").read_bytes().splitlines()
        assert len(lines) == 50
        assert len(set(lines)) == 1
        written |= set(lines)
        if (tmp_path / "index").exists():
            found = [path.read_text() for path in (tmp_path / "index").iterdir()]
            assert len(found) == 5
            assert len(set(found)) == 1
            seen += 1
    assert seen
    with store.locked(tmp_path / "a.txt"), store.locked(tmp_path / "index"):
        assert [n for n in names(tmp_path) if n.endswith(".tmp")] == []


def test_a_file_is_whole_after_a_kill_at_any_step(tmp_path: Path) -> None:
    """Killed before each change on the disk in turn: old or new, and swept when next locked."""
    found = killed_everywhere(
        """
        from pathlib import Path
        from pipeline import store
        path = Path("a.run.gz")
        def start(): store.write_bytes(path, b"old" * 1000)
        def work():
            with store.locked(path):
                store.write_bytes(path, b"new" * 2000)
        def look():
            import gzip, os
            with store.locked(path):
                return [gzip.decompress(path.read_bytes())[:3].decode(),
                        sorted(os.listdir())]
        """,
        tmp_path,
    )
    files = [".a.run.gz.lock", "a.run.gz"]
    assert found[0] == ["old", files]
    assert found[-1] == ["new", files]
    assert all(one in (["old", files], ["new", files]) for one in found)
    assert len(found) > 5


def test_a_folder_is_whole_after_a_kill_at_any_step(tmp_path: Path) -> None:
    """Killed before each change on the disk in turn: old, new or absent, never mixed."""
    found = killed_everywhere(
        """
        from pathlib import Path
        from pipeline import store
        path = Path("index")
        def fill(text):
            with store.locked(path), store.atomic_folder(path) as folder:
                (folder / "a").write_text(text)
                (folder / "b").write_text(text)
        def start(): fill("old")
        def work(): fill("new")
        def look():
            import os
            with store.locked(path):
                return ["+".join(p.read_text() for p in sorted(path.glob("*"))),
                        [name for name in os.listdir() if name.endswith(".tmp")]]
        """,
        tmp_path,
    )
    assert {one[0] for one in found} <= {"old+old", "new+new", ""}
    assert all(one[1] == [] for one in found)
    assert (found[0][0], found[-1][0]) == ("old+old", "new+new")
