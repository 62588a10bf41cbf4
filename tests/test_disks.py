"""Full disks and missing permission: said in two lines, and nothing is half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from elsewhere import refusal_on_small_disk, refusal_unprivileged
from folders import names
from refusal import refused

from pipeline import store
from pipeline.errors import PipelineError, StorageError


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


def test_a_full_disk_is_said_of_a_scratch_file(tmp_path: Path) -> None:
    """It is named by its folder, for it has no name of its own."""
    refusal = refusal_on_small_disk(
        """
        with store.scratch_file("disk/a.run") as scratch:
            scratch.write(os.urandom(300_000))
            scratch.flush()
        """,
        tmp_path,
        "128k",
    )
    assert refusal is not None
    assert refusal[:2] == ["StorageError", f"{tmp_path / 'disk'}: the disk is full"]


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


@pytest.mark.jvm
def test_an_index_that_does_not_fit_is_no_fault_of_java(tmp_path: Path) -> None:
    """Whichever of its threads meets the disk, the disk is named, and the index by its name."""
    refusal = refusal_on_small_disk(
        """
        from pipeline.index import IndexSettings, index
        with open("corpus.jsonl", "w") as out:
            for number in range(6000):
                words = " ".join(os.urandom(4).hex() for _ in range(60))
                print(json.dumps({"id": str(number), "contents": words}), file=out)
        try:
            index(IndexSettings(Path("corpus.jsonl"), Path("disk/index"), threads=4))
        finally:
            assert os.listdir("disk") == [], os.listdir("disk")
        """,
        tmp_path,
        "300k",
    )
    assert refusal is not None
    assert refusal[:2] == ["StorageError", "disk/index: the disk is full"]


def test_a_lock_needs_no_space(tmp_path: Path) -> None:
    """Nothing stays behind on a disk without a free byte."""
    refusal = refusal_on_small_disk(
        """
        try:
            Path("disk/full").write_bytes(bytes(300_000))
        except OSError:
            pass
        with store.locked(Path("disk/a.run")):
            pass
        assert os.listdir("disk") == ["full"]
        """,
        tmp_path,
        "128k",
    )
    assert refusal is None


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
