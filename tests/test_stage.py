"""Fresh or stale, and why; what a crash leaves; what is never replaced."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from elsewhere import refusal_unprivileged
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused
from staging import RECIPE, edit, inputs, make, settings

from pipeline import store
from pipeline.stage import (
    SCHEMA,
    Recipe,
    Status,
    producing,
    read_sidecar,
    sidecar_path,
    status,
)

if TYPE_CHECKING:
    from pathlib import Path

NEVER = Status(("never finished",))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bm25.run"


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


def test_a_sidecar_in_the_way_is_named(output: Path) -> None:
    """And not the output beside it, with which nothing is wrong."""
    make(output)
    sidecar_path(output).write_text("{")
    with refused("bm25.run.json: exists already", "--force"):
        make(output)
    sidecar_path(output).unlink()
    with refused("bm25.run: exists already", "--force"):
        make(output)


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
        "schema", "state", "recipe", "output", "counts", "details", "pace", "provenance",
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
