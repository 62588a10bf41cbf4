"""Fresh or stale, and why; what a crash leaves; what is never replaced."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from crashing import killed_everywhere
from elsewhere import refusal_on_small_disk, refusal_unprivileged
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from pipeline import store
from pipeline.errors import BusyError, StorageError
from pipeline.stage import (
    SCHEMA,
    Outcome,
    Recipe,
    Status,
    parts_path,
    producing,
    read_sidecar,
    sidecar_path,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECIPE = Recipe(
    "retrieve",
    1,
    {"hits": 1000, "k1": 0.9, "tag": "bm25", "fields": ("title", "text"), "rm3": None},
    {"index": "sha-of-index", "topics": "sha-of-topics"},
)
NEVER = Status(("never finished",))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bm25.run"


def make(output: Path, recipe: Recipe = RECIPE, text: bytes = b"run", **more: Any) -> Outcome:
    """Run a stage that writes these bytes."""
    with producing(output, lambda: recipe, **more) as job:
        if not job.fresh:
            with job.commit({"topics": 3}, {"pairs": 5}):
                store.write_bytes(output, text)
        return job.outcome


def edit(output: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a sidecar by hand."""
    path = sidecar_path(output)
    sidecar = json.loads(path.read_text())
    change(sidecar)
    path.write_text(json.dumps(sidecar, indent=2))


# ---------------------------------------------------------------- fresh or stale


def test_what_was_finished_is_fresh(output: Path) -> None:
    """And left alone, byte by byte, sidecar and all."""
    assert status(output, RECIPE) == NEVER
    done = make(output)
    assert (done.computed, done.reasons) == (True, ("never finished",))
    assert status(output, RECIPE) == Status(())
    assert status(output, RECIPE).fresh
    before = [(p.name, p.stat().st_mtime_ns) for p in sorted(output.parent.iterdir())]
    again = make(output, text=b"other")
    assert (again.computed, again.reasons) == (False, ())
    assert (again.counts, again.details) == ({"topics": 3}, {"pairs": 5})
    assert [(p.name, p.stat().st_mtime_ns) for p in sorted(output.parent.iterdir())] == before


def settings(**changes: Any) -> Recipe:
    return replace(RECIPE, settings={**RECIPE.settings, **changes})


def inputs(**changes: str) -> Recipe:
    return replace(RECIPE, inputs={**RECIPE.inputs, **changes})


CHANGES: dict[str, tuple[Recipe, tuple[str, ...]]] = {
    "nothing": (RECIPE, ()),
    "list for tuple": (settings(fields=["title", "text"]), ()),
    "other order": (replace(RECIPE, settings=dict(reversed(RECIPE.settings.items()))), ()),
    "setting": (settings(hits=100), ("hits changed (1000 -> 100)",)),
    "two settings": (
        settings(k1=1.2, hits=10),
        ("hits changed (1000 -> 10)", "k1 changed (0.9 -> 1.2)"),
    ),
    "text": (settings(tag="x"), ("tag changed ('bm25' -> 'x')",)),
    "list": (settings(fields=["text"]), ("fields changed (['title', 'text'] -> ['text'])",)),
    "from nothing": (settings(rm3=True), ("rm3 changed (None -> True)",)),
    "new setting": (settings(b=0.4), ("b changed (none -> 0.4)",)),
    "new setting of nothing": (settings(b=None), ("b changed (none -> None)",)),
    "setting gone": (
        replace(RECIPE, settings={k: v for k, v in RECIPE.settings.items() if k != "k1"}),
        ("k1 changed (0.9 -> none)",),
    ),
    "long setting": (
        settings(tag="x" * 500),
        (f"tag changed ('bm25' -> '{'x' * 58}…)",),
    ),
    "input": (inputs(topics="other"), ("input topics changed",)),
    "inputs": (
        inputs(topics="other", index="other"),
        ("input index changed", "input topics changed"),
    ),
    "new input": (inputs(qrels="x"), ("input qrels changed",)),
    "input gone": (replace(RECIPE, inputs={"index": "sha-of-index"}), ("input topics changed",)),
    "version": (replace(RECIPE, version=2), ("stage version changed (1 -> 2)",)),
    "stage": (replace(RECIPE, stage="rerank"), ("made by stage 'retrieve'",)),
    "much": (
        replace(settings(hits=1), version=3, inputs={**RECIPE.inputs, "index": "x"}),
        ("stage version changed (1 -> 3)", "hits changed (1000 -> 1)", "input index changed"),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_changed_is_said(output: Path, case: str) -> None:
    """Every difference between the recipe on disk and the one that would be written."""
    recipe, reasons = CHANGES[case]
    make(output)
    assert status(output, recipe) == Status(reasons)
    done = make(output, recipe, b"new")
    assert done.computed == bool(reasons)
    assert done.reasons == reasons
    assert output.read_bytes() == (b"new" if reasons else b"run")
    assert status(output, recipe).fresh


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_recipe_comes_back_as_it_went(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    """Any settings survive the sidecar: nothing is stale without a change."""
    output = tmp_path_factory.getbasetemp() / "any.run"
    recipe = replace(RECIPE, settings=values)
    make(output, recipe, force=True)
    assert status(output, recipe).fresh
    assert recipe.key(part=1) == replace(RECIPE, settings=dict(values)).key(part=1)
    assert recipe.key(part=1) != recipe.key(part=2)


def damage(output: Path, how: str) -> None:
    sidecar = sidecar_path(output)
    text = sidecar.read_text()
    if how == "torn":
        sidecar.write_text(text[: len(text) // 2])
    elif how == "empty":
        sidecar.write_text("")
    elif how == "zeros":
        sidecar.write_bytes(bytes(len(text)))
    elif how == "recipe":
        edit(output, lambda s: s.update(recipe=[]))
    elif how == "settings":
        edit(output, lambda s: s["recipe"].update(settings=5))
    elif how == "inputs":
        edit(output, lambda s: s["recipe"].pop("inputs"))
    elif how == "output":
        edit(output, lambda s: s.update(output=None))
    elif how == "counts":
        edit(output, lambda s: s.pop("counts"))
    elif how == "schema":
        edit(output, lambda s: s.pop("schema"))
    elif how == "schema word":
        edit(output, lambda s: s.update(schema="one"))


@pytest.mark.parametrize(
    "how",
    ["torn", "empty", "zeros", "recipe", "settings", "inputs", "output", "counts", "schema",
     "schema word"],
)  # fmt: skip
def test_a_damaged_sidecar_is_noticed_and_the_stage_redone(output: Path, how: str) -> None:
    """Torn by a crash of the machine, or edited until it makes no sense."""
    make(output)
    damage(output, how)
    assert read_sidecar(output) is None
    assert status(output, RECIPE) == Status(("sidecar damaged",))
    assert make(output, text=b"new").reasons == ("sidecar damaged",)
    assert status(output, RECIPE).fresh


def test_an_edited_output_is_noticed(output: Path) -> None:
    """By its digest; one that is missing too, and one that was never finished."""
    make(output)
    output.write_bytes(b"rUn")
    assert status(output, RECIPE) == Status(("output edited",))
    output.unlink()
    assert status(output, RECIPE) == Status(("output missing",))
    make(output)
    edit(output, lambda s: s["output"].update(sha256="0" * 64))
    assert status(output, RECIPE) == Status(("output edited",))
    edit(output, lambda s: s.update(state="unfinished"))
    assert status(output, RECIPE) == NEVER
    edit(output, lambda s: s.pop("state"))
    assert status(output, RECIPE) == NEVER
    assert make(output).computed
    sidecar_path(output).unlink()
    output.unlink()
    assert status(output, RECIPE) == NEVER


def test_a_newer_version_is_not_undone(output: Path) -> None:
    """What a newer program wrote is neither trusted nor replaced, not even by force."""
    make(output)
    edit(output, lambda s: s.update(schema=SCHEMA + 1, recipe="of another kind"))
    before = output.read_bytes(), sidecar_path(output).read_bytes()
    for force in (False, True):
        with refused(f"written by a newer version (schema {SCHEMA + 1})", "update trec-pipeline"):
            make(output, force=force)
    with refused("written by a newer version"):
        read_sidecar(output)
    assert (output.read_bytes(), sidecar_path(output).read_bytes()) == before


# ---------------------------------------------------------------- what is not ours

FOREIGN = {
    "an output without sidecar": ("bm25.run", b"precious"),
    "JSON of somebody": ("bm25.run.json", b'{"my": "notes"}'),
    "a list": ("bm25.run.json", b"[1, 2]"),
    "JSON lines": ("bm25.run.json", b'{"id": "1"}\n{"id": "2"}\n'),
    "text": ("bm25.run.json", b"not JSON at all"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_ours_is_not_replaced(output: Path, case: str) -> None:
    """Neither as output nor under the sidecar's name; `--force` replaces it."""
    name, data = FOREIGN[case]
    theirs = output.parent / name
    theirs.write_bytes(data)
    assert status(output, RECIPE).foreign
    assert "written by something else" in status(output, RECIPE).reasons[0]
    with refused(f"{theirs}: exists already and was not written by this program", "--force"):
        make(output)
    assert theirs.read_bytes() == data
    assert [p.name for p in output.parent.iterdir()] == [name]
    assert make(output, force=True).reasons == ("forced",)
    assert status(output, RECIPE).fresh


def test_force_does_it_again_from_the_beginning(output: Path) -> None:
    """Though it is fresh, and without the parts of the last time."""
    make(output)
    with producing(output, lambda: RECIPE, force=True) as job:
        assert not job.fresh
        job.parts.save("k" * 64, b"part")
        with job.commit({}):
            store.write_bytes(output, b"again")
    with producing(output, lambda: RECIPE, force=True) as job:
        assert job.parts.find("k" * 64) is None
    assert output.read_bytes() == b"again"


def test_a_folder_is_an_output_too(tmp_path: Path) -> None:
    """With a digest of its own kind; no size is written down."""
    index = tmp_path / "index"
    with (
        producing(index, lambda: RECIPE, digest=store.digest_folder) as job,
        job.commit({"documents": 1}),
        store.atomic_folder(index) as folder,
    ):
        (folder / "a").write_text("a")
    assert status(index, RECIPE, store.digest_folder).fresh
    assert (read_sidecar(index) or {})["output"].keys() == {"sha256"}
    (index / "b").write_text("b")
    assert status(index, RECIPE, store.digest_folder) == Status(("output edited",))


# ---------------------------------------------------------------- crashes and failures


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


# ---------------------------------------------------------------- the sidecar


def test_what_a_sidecar_holds(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipe, digest and size of the output, counts, details, provenance; command as typed."""
    monkeypatch.setattr(
        sys, "argv", ["pipeline", "retrieve", "--tag", "my tag", os.fsdecode(b"\xe9")]
    )
    make(output)
    sidecar = read_sidecar(output)
    assert sidecar is not None
    assert list(sidecar) == [
        "schema", "state", "recipe", "output", "counts", "details", "provenance",
    ]  # fmt: skip
    assert sidecar["recipe"] == RECIPE.record()
    assert sidecar["output"] == {"sha256": store.digest_file(output), "bytes": 3}
    assert sidecar["provenance"]["command"] == "pipeline retrieve --tag 'my tag' '\udce9'"
    assert sidecar["provenance"]["packages"].keys() >= {"numpy"}
    assert sidecar["provenance"]["seconds"] >= 0


def test_provenance_is_never_compared(output: Path) -> None:
    """Another machine, command or version of a library makes nothing stale."""
    make(output)
    edit(output, lambda s: s.update(provenance={"python": "4.0"}, counts={}, details={}))
    assert status(output, RECIPE).fresh


def test_a_sidecar_nobody_may_read_is_said(shared_path: Path) -> None:
    """It is neither taken for damaged nor for absent."""
    make(shared_path / "a.run")
    sidecar_path(shared_path / "a.run").chmod(0o000)
    refusal = refusal_unprivileged("stage.read_sidecar(Path('a.run'))", shared_path)
    assert refusal is not None
    assert refusal[:2] == ["StorageError", "a.run.json: no permission (Permission denied)"]
    (shared_path / "b.run.json").mkdir()
    with refused("b.run.json: is a folder"):
        read_sidecar(shared_path / "b.run")
