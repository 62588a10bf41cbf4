"""The commit of a stage: what failures and crashes leave, and how it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from crashing import killed_everywhere
from elsewhere import refusal_on_small_disk, refusal_unprivileged
from refusal import refused
from staging import RECIPE, inputs, make, settings

from pipeline import store
from pipeline.errors import BusyError, StorageError
from pipeline.stage import (
    Recipe,
    Status,
    parts_path,
    producing,
    sidecar_path,
    status,
)

if TYPE_CHECKING:
    from pathlib import Path

NEVER = Status(("never finished",))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bm25.run"


def test_an_input_that_changes_meanwhile_stops_the_commit(output: Path) -> None:
    """Nothing is committed: the output would carry a recipe that it was not made from."""
    make(output, text=b"old")
    before = sidecar_path(output).read_bytes()
    digests = iter(["new", "newer"])
    wrote = False
    with (
        refused(
            f"{output}: input topics changed while the stage was at work",
            "run the same command again",
        ),
        producing(output, lambda: inputs(topics=next(digests))) as job,
        job.commit({}),
    ):
        wrote = True
    assert not wrote
    assert (output.read_bytes(), sidecar_path(output).read_bytes()) == (b"old", before)
    assert status(output, RECIPE).fresh


def test_an_input_that_goes_away_meanwhile_stops_the_commit(output: Path) -> None:
    """The error is the one of the missing input."""
    recipes = iter([RECIPE])

    def recipe() -> Recipe:
        for one in recipes:
            return one
        raise StorageError("topics.tsv: no such file", "check the path")

    with refused("topics.tsv: no such file"), producing(output, recipe) as job, job.commit({}):
        pass
    assert not output.exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StorageError])
def test_a_failure_while_writing_is_never_finished(
    output: Path, error: type[BaseException]
) -> None:
    """The old output stands, is not trusted, and is made again without force."""
    make(output, text=b"old")
    problem = StorageError("a", "b") if error is StorageError else error()

    def failing() -> None:
        with (
            producing(output, lambda: settings(hits=1)) as job,
            job.commit({}),
            store.atomic_file(output) as out,
        ):
            out.write(b"half")
            raise problem

    with pytest.raises(error):
        failing()
    assert output.read_bytes() == b"old"
    assert status(output, RECIPE) == NEVER
    assert make(output).computed


def test_a_failure_before_the_commit_changes_nothing(output: Path) -> None:
    """What was fresh is fresh; finished parts stay."""
    make(output)

    def failing() -> None:
        with producing(output, lambda: settings(hits=1)) as job:
            job.parts.save("k" * 64, b"part")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert status(output, RECIPE).fresh
    with producing(output, lambda: settings(hits=1)) as job:
        part = job.parts.find("k" * 64)
        assert part is not None
        assert part.read_bytes() == b"part"


def test_a_block_that_writes_nothing_is_no_commit(output: Path) -> None:
    """A stage that forgets its output is told so."""
    with (
        refused(f"{output}: no such file"),
        producing(output, lambda: RECIPE) as job,
        job.commit({}),
    ):
        pass
    assert status(output, RECIPE) == NEVER


def test_an_outcome_is_there_after_the_commit_only(output: Path) -> None:
    """Asking earlier is a mistake of the programmer."""
    with producing(output, lambda: RECIPE) as job, pytest.raises(AssertionError):
        _ = job.outcome


def test_killed_at_any_step_it_is_never_finished_or_done(tmp_path: Path) -> None:
    """Before each change on the disk: old and fresh, never finished, or new."""
    found = killed_everywhere(
        """
        import os, sys
        from pathlib import Path
        from pipeline import store
        from pipeline.stage import Recipe, producing, status, read_sidecar
        sys.argv = ["pipeline"]
        output = Path("bm25.run")
        old, new = (Recipe("retrieve", 1, {"hits": n}, {"topics": "x"}) for n in (1, 2))
        key = new.key(part=1)
        counted = 0
        def make(recipe):
            global counted
            with producing(output, lambda: recipe) as job:
                if job.fresh:
                    return
                part = job.parts.find(recipe.key(part=1))
                if part is None:
                    counted += 1
                    part = job.parts.save(recipe.key(part=1), repr(recipe).encode())
                with job.commit({}):
                    store.write_bytes(output, part.read_bytes())
        def start():
            for path in Path().glob("*.parts"):
                store.remove(path)
            make(old)
        def work(): make(new)
        def look():
            global counted
            before = [status(output, recipe).reasons for recipe in (old, new)]
            saved = any(p.name.startswith(key[:32]) for p in Path("bm25.run.parts").iterdir())
            data = output.read_bytes().decode()
            counted = 0
            make(new)
            fresh = status(output, new).fresh and output.read_text() == repr(new)
            litter = [str(p) for p in Path().rglob("*") if p.suffix in (".tmp", ".lock")]
            return [before, "old" if data == repr(old) else "new" if data == repr(new) else data,
                    saved, counted, fresh, litter]
        """,
        tmp_path,
    )
    assert len(found) > 10
    changed, back = ["hits changed (1 -> 2)"], ["hits changed (2 -> 1)"]
    unfinished = [["never finished"], ["never finished"]]
    phases = []
    for before, data, saved, computed, fresh, litter in found:
        assert fresh
        assert litter == []
        assert computed == (0 if saved else 1)  # a part that was finished is not made again
        assert data in ("old", "new")
        if before == [[], changed]:
            phases.append("before")
            assert data == "old"
        elif before == unfinished:
            phases.append("unfinished, " + data)
        else:
            phases.append("after")
            assert before == [back, []]
            assert data == "new"
    order = ["before", "unfinished, old", "unfinished, new", "after"]
    assert sorted(phases, key=order.index) == phases
    assert set(phases) == set(order)


def test_a_full_disk_is_resumable(tmp_path: Path) -> None:
    """Two lines, the old output untouched, finished parts kept."""
    refusal = refusal_on_small_disk(
        """
        output = Path("disk/bm25.run")
        recipe = stage.Recipe("retrieve", 1, {}, {})
        store.write_bytes(Path("disk/ballast"), bytes(80_000))
        def make(size):
            with stage.producing(output, lambda: recipe) as job:
                if job.parts.find("k" * 64) is None:
                    job.parts.save("k" * 64, b"part")
                with job.commit({}):
                    store.write_bytes(output, os.urandom(size))
        try:
            make(300_000)
        finally:
            assert not output.exists()
            assert stage.status(output, recipe).reasons == ("never finished",)
            with stage.producing(output, lambda: recipe) as job:
                assert job.parts.find("k" * 64).read_bytes() == b"part"
            make(1000)
            assert stage.status(output, recipe).fresh
        """,
        tmp_path,
        "200k",
    )
    assert refusal is not None
    assert refusal[:2] == ["StorageError", "disk/bm25.run: the disk is full"]


def test_a_stage_without_permission_is_refused(shared_path: Path) -> None:
    """Where nothing may be written, and where nothing may be looked at."""
    (shared_path / "closed").mkdir(0o000)
    shared_path.chmod(0o555)
    for name in ("bm25.run", "closed/bm25.run"):
        for script in (
            f"with stage.producing(Path({name!r}), lambda: stage.Recipe('a', 1, {{}}, {{}})): pass",
            f"stage.status(Path({name!r}), stage.Recipe('a', 1, {{}}, {{}}))",
        ):
            refusal = refusal_unprivileged(script, shared_path)
            if name == "bm25.run" and script.startswith("stage.status"):
                assert refusal is None  # nothing there: looking is allowed
                continue
            assert refusal is not None, script
            assert refusal[0] == "StorageError"
            assert "no permission" in refusal[1]
    assert [p.name for p in shared_path.iterdir()] == ["closed"]


def test_two_jobs_on_one_output(output: Path) -> None:
    """The second is refused; another output of the same folder is not touched by it."""
    with producing(output, lambda: RECIPE) as job:
        with refused("another process", "wait until it ends", BusyError):
            make(output)
        make(output.with_name("bm25.run.gz"))
        with job.commit({}):
            store.write_bytes(output, b"run")
    assert status(output, RECIPE).fresh


def test_leftovers_among_the_parts_are_swept(output: Path) -> None:
    """What a killed writer of a part left does not stay for ever."""
    parts = parts_path(output)
    parts.mkdir()
    (parts / ".abc-def.part.77-0123abcd.tmp").touch()
    (parts / "abc-def.part").touch()
    (parts / ".other").touch()
    make(output)
    assert sorted(p.name for p in parts.iterdir()) == [".other", "abc-def.part"]
