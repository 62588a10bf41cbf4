"""What does not fit together is not joined, and the refusal names it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline.merge import MergeSettings, merge
from pipeline.rerank import RerankSettings, rerank
from pipeline.shards import Shard
from pipeline.stage import sidecar_path


@pytest.fixture
def settings(tiny: Path, tmp_path: Path) -> RerankSettings:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    return RerankSettings(
        tmp_path / "bm25.run", tmp_path / "topics.tsv", "overlap", tmp_path / "x.run",
        collection=tmp_path / "corpus.jsonl",
    )  # fmt: skip


def cut(settings: RerankSettings, of: int, *numbers: int) -> list[Path]:
    """Make some shards."""
    made = []
    for number in numbers or range(1, of + 1):
        rerank(replace(settings, shard=Shard(number, of)))
        made.append(Shard(number, of).output(settings.output))
    return made


def joined(settings: RerankSettings, *shards: Path) -> None:
    merge(MergeSettings(settings.output, shards))


def edit(shard: Path, change) -> None:
    path = sidecar_path(shard)
    sidecar = json.loads(path.read_text())
    change(sidecar)
    path.write_text(json.dumps(sidecar))


def test_shards_may_be_named_and_lie_anywhere(settings: RerankSettings, tmp_path: Path) -> None:
    """In any order; where inputs lay is said as seen from the whole."""
    made = cut(settings, 3)
    (tmp_path / "far").mkdir()
    far = [Path(shutil.move(path, tmp_path / "far")) for path in made]
    for path in made:
        shutil.move(sidecar_path(path), tmp_path / "far")
    rerank(replace(settings, output=tmp_path / "one.run"))
    with refused("no shards of it lie beside it"):
        joined(settings)
    joined(settings, *reversed(far))
    assert settings.output.read_bytes() == (tmp_path / "one.run").read_bytes()
    one, several = (
        json.loads(sidecar_path(tmp_path / name).read_text()) for name in ("one.run", "x.run")
    )
    assert one["recipe"] == several["recipe"]
    assert one["counts"] == several["counts"]


def test_gaps_are_named(settings: RerankSettings) -> None:
    """With the command that fills the first; nothing is written."""
    made = cut(settings, 8, 1, 2, 4, 7)
    with refused("shard 3/8, 5/8, 6/8, 8/8 is missing", "--shard 3/8"):
        joined(settings)
    with refused("shard 1/8, 3/8, 4/8, 5/8, 6/8 and 1 more is missing"):
        joined(settings, made[1], made[3])
    assert not settings.output.exists()


def test_overlaps_are_named(settings: RerankSettings, tmp_path: Path) -> None:
    """The same shard twice, and shards of two cuts."""
    made = cut(settings, 2)
    (tmp_path / "copy").mkdir()
    again = tmp_path / "copy" / made[1].name
    shutil.copy(made[1], again)
    shutil.copy(sidecar_path(made[1]), sidecar_path(again))
    with refused(f"{made[1]} and {again} overlap: both are shard 2/2"):
        joined(settings, *made, again)
    cut(settings, 3, 2)
    with refused("of 3: they overlap", "of one cut"):
        joined(settings)


def test_different_recipes_are_named(settings: RerankSettings, tmp_path: Path) -> None:
    """A setting, an input."""
    made = cut(settings, 2)
    rerank(replace(settings, depth=2, shard=Shard(2, 2)))
    with refused(f"{made[1]} and {made[0]} have different recipes: depth changed (1000 -> 2)"):
        joined(settings)
    with (tmp_path / "topics.tsv").open("a") as file:
        file.write("new\tbread\n")
    cut(settings, 2, 2)
    with refused("different recipes: input topics changed"):
        joined(settings)


def test_different_processors_are_named(settings: RerankSettings) -> None:
    """Their scores differ in the last bits: parts of two signatures are never mixed."""
    first, second = cut(settings, 2)
    edit(first, lambda sidecar: sidecar["details"]["signature"].update(token_budget=512))
    edit(second, lambda sidecar: sidecar["details"]["signature"].update(token_budget=1024))
    with refused("differ in the last bits: token_budget (512 and 1024)", "same processor"):
        joined(settings)


def test_unfinished_edited_and_foreign_files_are_named(
    settings: RerankSettings, tmp_path: Path
) -> None:
    """Each with what to do."""
    made = cut(settings, 2)
    with refused("no such shard"):
        joined(settings, made[0], tmp_path / "none.run")
    with refused(f"{tmp_path / 'bm25.run'}: this shard was never finished"):
        joined(settings, made[0], tmp_path / "bm25.run")
    edit(made[0], lambda sidecar: sidecar.update(state="unfinished"))
    with refused(f"{made[0]}: this shard was never finished", "it goes on"):
        joined(settings)
    cut(settings, 2)
    made[1].write_bytes(made[1].read_bytes()[:-10])
    with refused(f"{made[1]}: was edited or damaged"):
        joined(settings)
    rerank(replace(settings, output=tmp_path / "whole.run"))
    with refused("whole.run: is no shard of anything"):
        joined(settings, tmp_path / "whole.run")


def test_sidecars_that_lie_about_places_are_refused(settings: RerankSettings) -> None:
    """Places held twice, by nobody, or not by the topics that are there."""
    first, second = cut(settings, 2)

    def facts(sidecar) -> dict:
        return sidecar["counts"]["shard"]

    total = facts(json.loads(sidecar_path(first).read_text()))["total"]
    for shard in (first, second):
        edit(shard, lambda sidecar: facts(sidecar).update(total=total + 1))
    with refused(f"1 of {total + 1} places of the whole are in no shard"):
        joined(settings)
    for shard in (first, second):
        edit(shard, lambda sidecar: facts(sidecar).update(total=total, places="0"))
    with refused("overlap: both hold place 0"):
        joined(settings)
    edit(second, lambda sidecar: facts(sidecar).update(places=" ".join(map(str, range(1, total)))))
    with refused("topics, and its sidecar says"):
        joined(settings)
    assert not settings.output.exists()


def test_the_command_merges_what_the_command_made(settings: RerankSettings, tmp_path: Path) -> None:
    """`--shard 1/2`, `--shard 2/2`, `merge`; an output of others is left alone."""
    common = ("rerank", "--run", "bm25.run", "--topics", "topics.tsv", "--collection",
              "corpus.jsonl", "--model", "overlap", "--output", "x.run")  # fmt: skip
    for shard in ("1/2", "2/2"):
        assert run(*common, "--shard", shard, cwd=tmp_path).returncode == 0
    settings.output.write_text("mine\n")
    done = run("merge", "--output", "x.run", cwd=tmp_path)
    assert done.returncode == 1
    assert "was not written by this program" in done.stderr
    done = run("merge", "--output", "x.run", "--force", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["shards"] == 2
    rerank(replace(settings, output=tmp_path / "one.run"))
    assert settings.output.read_bytes() == (tmp_path / "one.run").read_bytes()


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("counts", "pairs", None),
        ("counts", "without_candidates", ["a", "b", "c"]),
        ("counts", "shard", {"shard": "9/2", "total": 1, "places": "", "without": ""}),
        ("details", "pairs_scored", "many"),
        ("details", "signature", "abc"),
        ("recipe", "stage", None),
        ("recipe", "version", "new"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_edited_sidecars_are_named(
    table: str, name: str, value: object, which: int, settings: RerankSettings
) -> None:
    """Whatever is missing or of another kind, in the first shard or a later one."""
    made = cut(settings, 2)
    edit(made[which], lambda sidecar: sidecar[table].update({name: value}))
    with refused(f"{made[which]}: its sidecar was edited", "again with --force"):
        joined(settings)
    assert not settings.output.exists()


def test_shards_of_wholes_of_two_sizes_are_refused(settings: RerankSettings) -> None:
    """Though every place is filled."""
    made = cut(settings, 2)
    edit(made[1], lambda sidecar: sidecar["counts"]["shard"].update(total=99))
    with refused(f"{made[1]} is a shard of 99 places"):
        joined(settings)
