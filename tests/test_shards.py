"""Sixteen machines that share a stage, three of them killed, write the bytes of one process."""

from __future__ import annotations

import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from killing import run, watched
from refusal import refused

from pipeline import encode
from pipeline.encode import EncodeSettings
from pipeline.merge import MergeSettings, merge
from pipeline.rerank import RerankSettings, rerank
from pipeline.retrieve import RetrieveSettings, retrieve
from pipeline.shards import Shard, beside

SOAK = bool(os.environ.get("PIPELINE_SOAK"))
OF = 16
KILLED = (1, 6, 16)
TOPICS = 40


def test_every_topic_belongs_to_one_shard_for_good() -> None:
    """Of its id alone: another topic moves none; all shards get their share."""
    qids = [f"q{number}" for number in range(2000)]
    for of in (1, 2, 7, 16):
        shards = [Shard(number, of) for number in range(1, of + 1)]
        held = [[qid for qid in qids if shard.holds(qid)] for shard in shards]
        assert sorted(qid for some in held for qid in some) == sorted(qids)
        assert min(map(len, held)) > 0.7 * len(qids) / of
        assert [sum(shard.takes(part) for shard in shards) for part in range(20)] == [1] * 20
    assert [qid for qid in qids[:12] if Shard(1, 2).holds(qid)] == ["q1", "q9", "q10", "q11"]


@pytest.mark.parametrize("text", ["3", "0/16", "17/16", "3/0", "-1/2", "a/b", "1/2/3", "1 /2", ""])
def test_a_share_is_spelled_in_one_way(text: str) -> None:
    """With what to write instead."""
    with refused("--shard", "1/16 is the first"):
        Shard.read(text)
    assert str(Shard.read("16/16")) == "16/16"


def test_shards_of_one_output_know_each_other_only(tmp_path: Path) -> None:
    """By their names; neither the whole nor sidecars nor shards of `other.run` are among them."""
    whole = tmp_path / "small.run.gz"
    mine = [Shard(number, 10).output(whole) for number in (1, 2, 10)]
    for name in (*[path.name for path in mine], "small.run", "shard-1-of-10.small.run.json",
                 "shard-1-of-2.other.run", "shard-1-of-2.small.run.parts"):  # fmt: skip
        (tmp_path / name).touch()
    assert sorted(beside(whole)) == sorted(mine)
    assert beside(tmp_path / "nowhere" / "x.run") == []


# ---------------------------------------------------------------- the whole way


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's collection, some of its topics, an index, and both runs as one process made."""
    from pipeline.demo import build
    from pipeline.index import IndexSettings, index

    folder = tmp_path_factory.mktemp("ready")
    build.lay_out(folder)
    topics = (folder / "topics.tsv").read_text().splitlines(keepends=True)[:TOPICS]
    topics.insert(7, "lost\tzqxwv\n")  # no document has it
    (folder / "topics.tsv").write_text("".join(topics))
    index(IndexSettings(folder / "collection.jsonl", folder / "index"))
    retrieve(first_stage(folder))
    rerank(second_stage(folder))
    return folder


def first_stage(folder: Path) -> RetrieveSettings:
    return RetrieveSettings(
        folder / "topics.tsv", folder / "index", folder / "bm25.run", hits=20, threads=2
    )


def second_stage(folder: Path) -> RerankSettings:
    return RerankSettings(
        folder / "bm25.run", folder / "topics.tsv", "small", folder / "small.run",
        collection=folder / "collection.jsonl", depth=6, threads=2,
    )  # fmt: skip


COMMANDS = {
    "bm25.run": ("retrieve", "--index", "index", "--hits", "20"),
    "small.run": ("rerank", "--model", "small", "--collection", "collection.jsonl",
                  "--run", "bm25.run", "--depth", "6"),
}  # fmt: skip


@pytest.mark.jvm
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_shards_killed_and_restarted_merge_into_the_bytes_of_one_process(
    name: str, ready: Path, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    """Finished parts of a killed shard are kept; the whole is as fresh as any."""
    expected = (ready / name).read_bytes()
    folder = tmp_path / "shards"
    shutil.copytree(ready, folder, ignore=lambda _, names: {n for n in names if name in n})
    choose = random.Random(16)
    common = (*COMMANDS[name], "--topics", "topics.tsv", "--output", name, "--threads", "2")
    for number in range(1, OF + 1):
        shard = Shard(number, OF)
        if number in KILLED:
            words = (*common, "--shard", str(shard))
            fatal, when = choose.randint(5, 9), choose.choice(("before", "after"))
            killed, moments = watched(*words, cwd=folder, fatal=fatal, when=when)
            assert killed.returncode == -signal.SIGKILL, (number, fatal, killed.stderr)
            assert ".parts" in moments[0].target
            kept = parts(folder, shard, name)
            done = run(*words, cwd=folder)
            assert done.returncode == 0, done.stderr
            now = parts(folder, shard, name)
            assert {part: now[part] for part in kept} == kept
        elif name == "bm25.run":
            retrieve(replace(first_stage(folder), shard=shard))
        else:
            rerank(replace(second_stage(folder), shard=shard))
    record_property("shards killed", len(KILLED))

    outcome = merge(MergeSettings(folder / name))

    assert (folder / name).read_bytes() == expected
    assert outcome.counts["topics"] == (TOPICS + 1 if name == "bm25.run" else TOPICS)
    once = retrieve(first_stage(folder)) if name == "bm25.run" else rerank(second_stage(folder))
    assert not once.computed
    lost = once.counts["without_hits" if name == "bm25.run" else "without_candidates"]
    assert lost == ["lost"]
    assert not merge(MergeSettings(folder / name)).computed


def parts(folder: Path, shard: Shard, name: str) -> dict[str, int]:
    """Finished parts of a shard, with their inodes."""
    found = (folder / f"{shard.output(folder / name).name}.parts").glob("*.part")
    return {part.name: part.stat().st_ino for part in found}


@pytest.mark.jvm
def test_a_cut_that_no_part_knows_merges_as_well(ready: Path, tmp_path: Path) -> None:
    """Seven shards divide no number of parts; the whole may be compressed."""
    settings = replace(first_stage(ready), output=tmp_path / "a.run.gz")
    for number in range(1, 8):
        retrieve(replace(settings, shard=Shard(number, 7)))
    merge(MergeSettings(settings.output))
    retrieve(replace(settings, output=tmp_path / "b.run.gz"))
    assert (tmp_path / "a.run.gz").read_bytes() == (tmp_path / "b.run.gz").read_bytes()


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_vectors_are_encoded_by_shards(
    dtype: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the collection each: the merged vectors are those of one process."""
    from tiny_models import make_twin

    monkeypatch.setattr(encode, "PART", 3)
    settings = EncodeSettings(
        str(make_twin(tmp_path / "model")), tmp_path / "one", collection=tiny / "corpus.jsonl",
        dtype=dtype, device="cpu", precision="fp32", threads=1,
    )  # fmt: skip
    whole = encode.encode(settings)
    several = replace(settings, output=tmp_path / "several")
    for number in (1, 2, 3):
        encode.encode(replace(several, shard=Shard(number, 3)))
        assert not encode.encode(replace(several, shard=Shard(number, 3))).computed
    outcome = merge(MergeSettings(several.output))
    names = sorted(path.name for path in settings.output.iterdir())
    assert names == sorted(path.name for path in several.output.iterdir())
    for name in names:
        assert (settings.output / name).read_bytes() == (several.output / name).read_bytes(), name
    assert outcome.counts == whole.counts
    assert not encode.encode(several).computed


def test_a_shard_is_no_stream(tiny: Path) -> None:
    """And vectors are not searched by shards."""
    words = ("--topics", "topics.tsv", "--shard", "1/2", "--output")
    common = ("rerank", "--run", "bm25.run", "--collection", "corpus.jsonl", "--model", "overlap")
    done = run(*common, *words, "-", cwd=tiny)
    assert done.returncode == 1
    assert "name a file" in done.stderr
    done = run("retrieve", "--vectors", "v", "--model", "m", *words, "x.run", cwd=tiny)
    assert done.returncode == 1
    assert "--shard and --vectors" in done.stderr
