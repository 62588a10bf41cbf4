"""Scoring a sample of a run again: the same bits, or what changed since."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny_models
from killing import run
from refusal import refused
from staging import edit

from pipeline.rerank import RerankSettings, rerank
from pipeline.verify import VerifySettings, verify


@pytest.fixture
def made(tiny: Path, tmp_path: Path) -> Path:
    """A run reranked by a scorer that is everywhere the same, with what it was made from."""
    folder = Path(shutil.copytree(tiny, tmp_path / "made"))
    settings = RerankSettings(
        run=folder / "bm25.run",
        topics=folder / "topics.tsv",
        model="overlap",
        output=folder / "out.run",
        collection=folder / "corpus.jsonl",
        depth=5,
    )
    rerank(settings)
    return folder


def check(folder: Path, **more: object) -> object:
    return verify(VerifySettings(folder / "out.run", **more))  # type: ignore[arg-type]


def test_a_run_that_nothing_happened_to(made: Path) -> None:
    """Every topic again, tails too: no difference, no rank changed, nothing changed since."""
    found = verify(VerifySettings(made / "out.run", sample=1000))
    assert found.well
    assert found.topics == len(found.checked) > 2
    assert (found.worst.difference, found.moved) == (0.0, 0)
    assert (found.changed, found.surroundings) == ((), ())
    lines = (made / "out.run").read_text().count("\n")
    assert sum(each.documents for each in found.checked) == lines


def test_the_sample_is_that_of_the_seed(made: Path) -> None:
    """The same seed takes the same topics, in whatever order the run has them."""
    first = [each.qid for each in verify(VerifySettings(made / "out.run", 2)).checked]
    again = [each.qid for each in verify(VerifySettings(made / "out.run", 2)).checked]
    every = {
        tuple(each.qid for each in verify(VerifySettings(made / "out.run", 2, seed)).checked)
        for seed in range(8)
    }
    assert first == again
    assert len(first) == 2
    assert len(every) > 1


def test_the_folder_may_move(made: Path, tmp_path: Path) -> None:
    """Inputs are found beside the run, wherever both went."""
    made.rename(tmp_path / "elsewhere")
    assert verify(VerifySettings(tmp_path / "elsewhere" / "out.run")).well


def test_a_changed_text_is_named_and_felt(made: Path) -> None:
    """Which input changed, by how much the scores differ, and what moved."""
    corpus = made / "corpus.jsonl"
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    key = "contents" if "contents" in lines[0] else "text"
    corpus.write_text("".join(json.dumps({**line, key: "other words"}) + "\n" for line in lines))
    found = verify(VerifySettings(made / "out.run", sample=1000))
    assert not found.well
    assert found.changed == ("input collection changed",)
    assert found.worst.difference > 0.5
    assert found.moved > 0
    assert found.record()["verified"] is False


def test_an_edit_outside_the_sample_is_noticed(made: Path) -> None:
    """The scores of the sample are the same, but this is not the run that was written."""
    (checked,) = verify(VerifySettings(made / "out.run", 1)).checked
    lines = (made / "out.run").read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if line.split()[0] != checked.qid)
    words = lines[place].split()
    words[4] = str(float(words[4]) + 0.5)
    lines[place] = " ".join(words) + "\n"
    (made / "out.run").write_text("".join(lines))
    found = verify(VerifySettings(made / "out.run", 1))
    assert (found.worst.difference, found.moved) == (0.0, 0)
    assert (found.changed, found.edited, found.well) == (("output edited",), True, False)


def test_an_edited_run_is_noticed(made: Path) -> None:
    """A score changed by hand is found where the sample holds its topic, and the digest always."""
    path = made / "out.run"
    lines = path.read_text().splitlines(keepends=True)
    words = lines[0].split()
    words[4] = str(float(words[4]) + 0.25)
    path.write_text(" ".join(words) + "\n" + "".join(lines[1:]))
    found = verify(VerifySettings(path, sample=1000))
    assert found.changed == ("output edited",)
    assert found.worst.difference == pytest.approx(0.25)
    assert (found.worst.qid, found.worst.docid) == (words[0], words[2])
    assert found.moved == 0
    assert not found.well
    tolerant = verify(VerifySettings(path, sample=1000, tolerance=0.3))
    assert (tolerant.edited, tolerant.well) == (True, False)


def test_what_moved_can_be_named(made: Path, tmp_path: Path) -> None:
    """Inputs that are not where they lay are asked for by their option."""
    (made / "topics.tsv").rename(tmp_path / "t.tsv")
    with refused("out.run: its file of topics cannot be found", "--topics FILE"):
        check(made)
    assert verify(VerifySettings(made / "out.run", places={"topics": tmp_path / "t.tsv"})).well
    (made / "bm25.run").rename(tmp_path / "b.run")
    with refused("its candidates cannot be found", "--run FILE"):
        verify(VerifySettings(made / "out.run", places={"topics": tmp_path / "t.tsv"}))


def test_older_sidecars_say_less(made: Path) -> None:
    """Without places, everything is asked for, and then it works."""
    edit(made / "out.run", lambda s: s["details"].pop("places"))
    with refused("does not say which model made it", "--model NAME"):
        check(made)
    with refused("does not say where its texts are", "--index DIR or --collection PATH"):
        check(made, places={"model": "overlap"})
    places = {
        "model": "overlap", "collection": str(made / "corpus.jsonl"), "run": made / "bm25.run",
        "topics": made / "topics.tsv",
    }  # fmt: skip
    assert verify(VerifySettings(made / "out.run", places=places)).well


def test_other_versions_are_named(made: Path) -> None:
    """They may change last bits; they are not a fault of the run."""

    def older(sidecar: dict[str, object]) -> None:
        sidecar["provenance"]["packages"]["numpy"] = "1.0"  # type: ignore[index]
        sidecar["details"]["signature"]["token_budget"] = 64  # type: ignore[index]

    edit(made / "out.run", older)
    found = verify(VerifySettings(made / "out.run"))
    assert found.well
    assert found.surroundings[0] == "token_budget: 64 -> None"
    assert found.surroundings[1].startswith("package 'numpy': '1.0' -> ")


def test_what_cannot_be_verified(made: Path) -> None:
    """Runs of others, unfinished ones, tables, streams."""
    with refused("no finished sidecar beside it"):
        verify(VerifySettings(made / "bm25.run"))
    with refused("no such run"):
        verify(VerifySettings(made / "nothing.run"))
    with refused("a stream has no sidecar"):
        verify(VerifySettings(Path("-")))
    with refused("--sample 0"):
        check(made, sample=0)
    with refused("--tolerance -1"):
        check(made, tolerance=-1.0)
    edit(made / "out.run", lambda s: s["recipe"].update(stage="fuse"))
    with refused("was made by stage 'fuse'"):
        check(made)
    edit(made / "out.run", lambda s: s.update(state="unfinished"))
    with refused("no finished sidecar"):
        check(made)


@pytest.mark.parametrize("value", [["a"], {"a": 1}])
def test_a_sidecar_edited_to_nonsense_is_refused(made: Path, value: object) -> None:
    """Nothing in it is believed beyond its type."""
    edit(made / "out.run", lambda s: s["recipe"]["settings"].update(tag=value))
    with refused("the recipe of this run has no usable tag"):
        check(made)


def test_a_topic_that_went_away_is_refused(made: Path) -> None:
    """Scores of another topic are not compared."""
    (made / "topics.tsv").write_text("other\tsome words\n")
    with refused("is not there any more", "that the run was made from"):
        check(made)


def test_the_command(made: Path) -> None:
    """0 and `verified`, or 3 with what moved; JSON for machines."""
    done = run("verify", "out.run", cwd=made)
    assert (done.returncode, done.stderr) == (0, "")
    assert "largest difference of a score: 0\n" in done.stdout
    assert done.stdout.endswith("\nverified\n")
    corpus = (made / "corpus.jsonl").read_text()
    (made / "corpus.jsonl").write_text(corpus.replace("the", "the a b c d e f"))
    done = run("verify", "out.run", "--json", cwd=made)
    assert done.returncode == 3
    value = json.loads(done.stdout)
    assert value["schema"] == 1
    assert value["changed"] == ["input collection changed"]
    assert "not verified" in run("verify", "out.run", cwd=made).stdout


def test_a_model_gives_the_same_bits(tiny: Path, tmp_path: Path) -> None:
    """A cross-encoder on the processor, under the signature that the run was made with."""
    folder = Path(shutil.copytree(tiny, tmp_path / "made"))
    tiny_models.make(folder / "model")
    settings = RerankSettings(
        run=folder / "bm25.run",
        topics=folder / "topics.tsv",
        model=str(folder / "model"),
        output=folder / "out.run",
        collection=folder / "corpus.jsonl",
        device="cpu",
        threads=1,
    )
    rerank(settings)
    found = verify(VerifySettings(folder / "out.run", sample=1000))
    assert found.well
    assert found.surroundings == ()
    other = tiny_models.make(tmp_path / "other", labels=2)
    found = verify(VerifySettings(folder / "out.run", places={"model": str(other)}))
    assert found.changed == ("input model changed",)
    assert not found.well


@pytest.mark.jvm
def test_a_first_stage_is_searched_again(tiny: Path, tmp_path: Path) -> None:
    """BM25 runs too: the same scores from the same index."""
    folder = Path(shutil.copytree(tiny, tmp_path / "made"))
    steps = [
        ["index", "--collection", "corpus.jsonl", "--index", "the.index"],
        ["retrieve", "--index", "the.index", "--topics", "topics.tsv", "--output", "first.run"],
        ["rerank", "--run", "first.run", "--topics", "topics.tsv", "--index", "the.index",
         "--model", "overlap", "--output", "second.run"],
    ]  # fmt: skip
    for step in steps:
        done = run(*step, cwd=folder)
        assert done.returncode == 0, done.stderr
    for name in ("first.run", "second.run"):
        done = run("verify", name, "--sample", "100", cwd=folder)
        assert done.returncode == 0, done.stderr + done.stdout
    edit(folder / "first.run", lambda s: s["recipe"]["settings"].update(k1=2.0))
    done = run("verify", "first.run", "--sample", "100", cwd=folder)
    assert done.returncode == 3, sys.stdout
    assert "not verified" in done.stdout
