"""Whole files and folders or none: under exceptions, kills, full disks and missing permission."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crashing import killed_everywhere
from elsewhere import refusal_on_small_disk, refusal_unprivileged, start_python
from refusal import refused

from pipeline import store
from pipeline.errors import BusyError, PipelineError, StorageError

SOAK = bool(os.environ.get("PIPELINE_SOAK"))


class BoomError(Exception):
    """Something of ours that goes wrong in the middle."""


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


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
    for _ in range(100 if SOAK else 12):
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
    assert seen > 0
    assert len(written) > 1
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


# ---------------------------------------------------------------- disks and permissions


@pytest.mark.parametrize("name", ["a.run", "a.run.gz"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """The old file stands, the half one is gone, and one can go on once there is space."""
    refusal = refusal_on_small_disk(
        f"""
        path = Path("disk/{name}")
        store.write_bytes(path, b"old")
        old = path.read_bytes()
        try:
            store.write_bytes(path, os.urandom(300_000))
        finally:
            assert os.listdir("disk") == ["{name}"], os.listdir("disk")
            assert path.read_bytes() == old
            store.write_bytes(path, os.urandom(10_000))
        """,
        tmp_path,
        "128k",
    )
    assert refusal is not None
    assert refusal[:2] == ["StorageError", f"disk/{name}: the disk is full"]
    assert "finished parts are kept" in refusal[2]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    """A folder that does not fit is gone without a trace."""
    refusal = refusal_on_small_disk(
        """
        path = Path("disk/index")
        with store.atomic_folder(path) as folder:
            (folder / "a").write_bytes(b"old")
        try:
            with store.atomic_folder(path) as folder:
                (folder / "a").write_bytes(os.urandom(300_000))
        finally:
            assert os.listdir("disk") == ["index"]
            assert (path / "a").read_bytes() == b"old"
        """,
        tmp_path,
        "128k",
    )
    assert refusal is not None
    assert refusal[:2] == ["StorageError", "disk/index: the disk is full"]


@pytest.mark.parametrize(
    "script",
    [
        "store.write_bytes(Path('a.run'), b'x')",
        "store.write_json(Path('new/a.json'), {})",
        "store.remove(Path('kept'))",
        "with store.locked(Path('a.run')): pass",
        "with store.atomic_folder(Path('index')): pass",
        "store.digest_file(Path('secret'))",
        "store.need_path('closed/inside', 'topics file')",
        "store.free_bytes(Path('closed/inside'))",
    ],
)
def test_missing_permission_is_said_and_changes_nothing(shared_path: Path, script: str) -> None:
    """Every writer, and every look at what is closed to us, is refused in two lines."""
    (shared_path / "kept").write_text("kept")
    (shared_path / "secret").touch(0o000)
    (shared_path / "closed").mkdir(0o000)
    before = names(shared_path)
    shared_path.chmod(0o555)
    refusal = refusal_unprivileged(script, shared_path)
    shared_path.chmod(0o755)
    assert refusal is not None
    assert refusal[0] == "StorageError"
    assert refusal[1].endswith("no permission (Permission denied)")
    assert "owner and mode" in refusal[2]
    assert names(shared_path) == before


def test_too_little_space_is_said_before_the_work(tmp_path: Path) -> None:
    """A preflight names what is needed and what is there."""
    store.need_free(tmp_path / "not" / "there" / "yet", 1)
    with refused("needs about 1,000,000,000,000 MB and ", "another disk", StorageError):
        store.need_free(tmp_path / "a.run", 10**18)


def test_a_missing_input_is_said_before_the_work(tmp_path: Path) -> None:
    """Standard input is always there."""
    store.need_path("-", "topics file")
    store.need_path(tmp_path, "index")
    with refused(f"{tmp_path / 'no'}: no such topics file", "check the path", PipelineError):
        store.need_path(tmp_path / "no", "topics file")


# ---------------------------------------------------------------- locks

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
        worker.communicate(timeout=60)
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


# ---------------------------------------------------------------- digests and JSON


def test_digests_are_sha256(tmp_path: Path) -> None:
    """As `sha256sum` prints them, of the bytes on the disk."""
    store.write_bytes(tmp_path / "a.gz", b"text")
    expected = hashlib.sha256((tmp_path / "a.gz").read_bytes()).hexdigest()
    assert store.digest_file(tmp_path / "a.gz") == expected
    with refused("no such file", kind=StorageError):
        store.digest_file(tmp_path / "no")


def test_a_digest_of_json_is_that_of_its_value() -> None:
    """Keys in any order; pinned, for parts and sidecars on disks carry it."""
    one = store.digest_json({"b": [1, 2.5, None], "a": "é"})
    assert one == store.digest_json({"a": "é", "b": [1, 2.5, None]})
    assert one == hashlib.sha256('{"a":"é","b":[1,2.5,null]}'.encode()).hexdigest()


def test_json_holds_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A file name of odd bytes, in a setting or a command line, never stops the last write."""
    value = {"path": os.fsdecode(b"caf\xe9"), "text": "é"}
    store.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value
    assert (tmp_path / "a.json").read_bytes().endswith(b'"text": "\xc3\xa9"\n}\n')
    assert store.digest_json(value) != store.digest_json({**value, "path": "caf"})


def test_a_digest_of_a_folder_sees_names_and_bytes(tmp_path: Path) -> None:
    """Every change of a visible file counts, hidden ones do not."""
    fill(tmp_path / "index", "one")
    seen = {store.digest_folder(tmp_path / "index")}
    (tmp_path / "index" / ".hidden").touch()
    assert store.digest_folder(tmp_path / "index") in seen
    (tmp_path / "index" / "deep" / "0").write_text("two")
    seen.add(store.digest_folder(tmp_path / "index"))
    (tmp_path / "index" / "deep" / "0").rename(tmp_path / "index" / "0")
    seen.add(store.digest_folder(tmp_path / "index"))
    (tmp_path / "index" / "empty").touch()
    seen.add(store.digest_folder(tmp_path / "index"))
    assert len(seen) == 4


def test_what_is_absent_is_removed_already(tmp_path: Path) -> None:
    """A folder with all it holds, a link but not what it points to, nothing at all."""
    fill(tmp_path / "index", "one")
    (tmp_path / "link").symlink_to(tmp_path / "index")
    store.remove(tmp_path / "link")
    assert content(tmp_path / "index") == ["one"] * 3
    store.remove(tmp_path / "index")
    store.remove(tmp_path / "index")
    assert names(tmp_path) == []
