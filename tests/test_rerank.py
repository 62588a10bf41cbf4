"""Any run, its topics and its texts -> a run in another order; every option does what it says."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from folders import file_of
from killing import contents
from refusal import refused

from pipeline.errors import InputError, StorageError
from pipeline.models.overlap import Overlap
from pipeline.models.scorer import Scored
from pipeline.pace import UNKNOWN
from pipeline.rerank import RerankSettings, rerank
from pipeline.stage import Outcome, parts_path, sidecar_path
from pipeline.trec import Ranking, read_run


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        pass


@pytest.fixture
def chosen(tiny: Path, tmp_path: Path) -> RerankSettings:
    """The tiny collection, its run of BM25, and the scorer that counts shared words."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    return RerankSettings(
        run=folder / "bm25.run",
        topics=folder / "topics.tsv",
        model="overlap",
        output=folder / "new.run",
        collection=folder / "corpus.jsonl",
    )


def ranked(settings: RerankSettings) -> dict[str, list[str]]:
    """Rerank, and say which documents each topic has, best first."""
    rerank(settings)
    return {one.qid: [doc.docid for doc in one.docs] for one in read_run(settings.output)}


def by_topic(path: Path) -> dict[str, Ranking]:
    return {one.qid: one for one in read_run(path)}


# ---------------------------------------------------------------- depth and tail


def test_candidates_below_the_depth_follow_in_their_order(chosen: RerankSettings) -> None:
    """So recall stays true; their scores are strictly lower than any that was given."""
    first = {qid: one.docs for qid, one in by_topic(chosen.run).items()}
    whole = ranked(chosen)
    cut = ranked(replace(chosen, depth=2))

    assert {qid: set(docs) for qid, docs in cut.items()} == {q: set(d) for q, d in whole.items()}
    for qid, docs in cut.items():
        assert set(docs[:2]) == {doc.docid for doc in first[qid][:2]}
        assert docs[2:] == [doc.docid for doc in first[qid][2:]]
        scores = [doc.score for doc in by_topic(chosen.output)[qid].docs]
        assert scores == sorted(set(scores), reverse=True)


def test_a_dropped_tail_changes_nothing_above_it(chosen: RerankSettings) -> None:
    """`--tail drop` leaves out what was not scored."""
    kept = ranked(replace(chosen, depth=2))
    dropped = ranked(replace(chosen, depth=2, tail="drop"))
    assert dropped == {qid: docs[:2] for qid, docs in kept.items()}


def test_a_deeper_rerank_scores_everything_again_and_says_so(chosen: RerankSettings) -> None:
    """Counts and details tell pairs of the run from pairs of this execution."""
    assert outcome_pairs(rerank(replace(chosen, depth=2))) == (12, 12, 0)
    assert outcome_pairs(rerank(replace(chosen, depth=2, force=True))) == (12, 12, 0)
    assert not rerank(replace(chosen, depth=2)).computed
    assert outcome_pairs(rerank(chosen)) == (17, 11, 6)  # three topics have no more than two


def outcome_pairs(outcome: Outcome) -> tuple[int, int, int]:
    done = outcome.details
    return outcome.counts["pairs"], done["pairs_scored"], done["pairs_reused"]


# ---------------------------------------------------------------- both scores


def test_interpolation_goes_from_the_first_stage_to_the_model(chosen: RerankSettings) -> None:
    """0 is the first stage, 1 the model, and between them both have a say."""
    first = {qid: [doc.docid for doc in one.docs] for qid, one in by_topic(chosen.run).items()}
    model = ranked(chosen)
    assert ranked(replace(chosen, interpolate=0.0)) == first
    assert ranked(replace(chosen, interpolate=1.0)) == model
    mixed = by_topic(chosen.output)
    rerank(replace(chosen, interpolate=0.5))
    assert by_topic(chosen.output) != mixed


# ---------------------------------------------------------------- what it cost


def test_the_share_of_padding_is_in_the_sidecar(chosen: RerankSettings, tmp_path: Path) -> None:
    """Of a model that says so; of one that does not it is not available."""
    assert rerank(chosen).pace["padding"] == UNKNOWN
    model = str(tiny_models.make(tmp_path / "model"))
    share = rerank(replace(chosen, model=model, device="cpu")).pace["padding"]
    assert 0 < share < 0.5
    sidecar = json.loads(sidecar_path(chosen.output).read_text())
    assert sidecar["pace"]["padding"] == share


def test_topics_are_given_to_a_device_before_scores_are_asked_of_it(
    chosen: RerankSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two more are launched before the first is waited for; the run is the same."""
    rerank(chosen)
    expected = chosen.output.read_bytes()
    events: list[str] = []

    def launch(self: Overlap, query: str, passages: Sequence[str]) -> Callable[[], Scored]:
        events.append("launch")

        def finish() -> Scored:
            events.append("finish")
            return self.score(query, passages)

        return finish

    monkeypatch.setattr(Overlap, "launch", launch, raising=False)
    monkeypatch.setattr(Overlap, "ahead", 2, raising=False)
    rerank(replace(chosen, force=True))

    assert chosen.output.read_bytes() == expected
    assert events == ["launch"] * 2 + ["launch", "finish"] * 4 + ["finish"] * 2

    def failing(self: Overlap, query: str, passages: Sequence[str]) -> Callable[[], Scored]:
        events.append("launch")
        if events.count("launch") == 5:
            raise MemoryError
        return lambda: self.score(query, passages)

    events.clear()
    monkeypatch.setattr(Overlap, "launch", failing)
    with pytest.raises(MemoryError):
        rerank(replace(chosen, force=True))
    monkeypatch.setattr(Overlap, "launch", launch)
    chosen.output.unlink(missing_ok=True)

    goes_on = rerank(chosen).details

    assert chosen.output.read_bytes() == expected
    assert goes_on["pairs_reused"] > 0
    assert goes_on["pairs_reused"] + goes_on["pairs_scored"] == len(expected.splitlines())


# ---------------------------------------------------------------- long documents


def test_windows_find_what_stands_at_the_end(chosen: RerankSettings, tmp_path: Path) -> None:
    """The best window of a long document beats a short one; its first window does not."""
    words = "filler " * 60
    chosen = replace(
        chosen,
        collection=file_of(tmp_path, f"long\t{words}tomato plants water\nshort\ttomato\n", "c.tsv"),
        run=file_of(tmp_path, "1 Q0 short 1 2 t\n1 Q0 long 2 1 t\n", "c.run"),
        topics=file_of(tmp_path, "1\twater tomato plants\n", "t.tsv"),
        window=20,
        stride=10,
    )
    assert ranked(replace(chosen, aggregation="maxp"))["1"] == ["long", "short"]
    assert ranked(replace(chosen, aggregation="firstp"))["1"] == ["short", "long"]
    assert ranked(replace(chosen, aggregation="topk", top=1))["1"] == ["long", "short"]
    assert ranked(replace(chosen, aggregation="maxp", windows=2))["1"] == ["short", "long"]


def test_documents_longer_than_their_windows_are_told(
    chosen: RerankSettings, tmp_path: Path
) -> None:
    """What stands behind the last window is not read, and that may cost a rank."""
    chosen = replace(
        chosen,
        collection=file_of(tmp_path, f"long\t{'word ' * 41}\nfits\t{'word ' * 40}\n", "c.tsv"),
        run=file_of(tmp_path, "1 Q0 fits 1 2 t\n1 Q0 long 2 1 t\n", "c.run"),
        topics=file_of(tmp_path, "1\tword\n", "t.tsv"),
        aggregation="maxp", window=20, stride=10, windows=3,
    )  # fmt: skip
    heard = Heard()
    assert rerank(chosen, heard).counts["documents_cut"] == 1
    assert "1 documents go on behind their last window (--max-windows)" in heard.notices
    assert "documents_cut" not in rerank(replace(chosen, windows=4, force=True)).counts


# ---------------------------------------------------------------- before the work


def test_what_the_run_names_must_be_there(chosen: RerankSettings) -> None:
    """A topic or document of the run that nobody knows is named by its line in the run."""
    text = chosen.run.read_text()
    chosen.run.write_text(text + "zz Q0 tomato1 1 1.0 t\n")
    with refused(f"{chosen.run}:18: topic 'zz' is not among the topics", kind=InputError):
        rerank(chosen)
    chosen.run.write_text(text.replace("2 Q0 cake", "2 Q0 ghost"))
    with refused(f"{chosen.run}:8: topic '2': no document 'ghost' in {chosen.collection}"):
        rerank(chosen)
    assert not chosen.output.exists()


def test_a_run_from_standard_input_has_no_lines_to_name(
    chosen: RerankSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"zz Q0 tomato1 1 1.0 t\n"))
    monkeypatch.setattr(sys, "stdin", stream)
    with refused("standard input: topic 'zz' is not among the topics"):
        rerank(replace(chosen, run=Path("-")))


def test_an_output_never_takes_the_place_of_an_input(chosen: RerankSettings) -> None:
    """Not even a run of ours, which a new recipe would replace; nor with --force."""
    rerank(chosen)
    again = replace(chosen, run=chosen.output, depth=2)
    before = contents(chosen.output.parent)
    with refused(f"{chosen.output}: is also an input", "another place"):
        rerank(again)
    for output in (chosen.topics, chosen.collection):
        assert output is not None
        with refused(f"{output}: is also an input"):
            rerank(replace(chosen, output=output, force=True))
    linked = chosen.output.with_name("link.run")
    linked.symlink_to(chosen.run)
    with refused(f"{linked}: is also an input"):
        rerank(replace(chosen, output=linked, force=True))
    linked.unlink()
    with refused("overlap", "another place"):
        rerank(replace(chosen, collection=chosen.output.parent, output=chosen.output))
    assert contents(chosen.output.parent) == before


def test_a_folder_never_becomes_a_run(chosen: RerankSettings) -> None:
    """Nor does what another stage keeps there lose its sidecar; nothing is scored before."""
    folder = chosen.output.with_name("kept.tokens")
    folder.mkdir()
    (folder / "a").write_text("b")
    sidecar_path(folder).write_text('{"schema": 1, "state": "finished", "recipe": {}}')
    before = contents(chosen.output.parent)
    for force in (False, True):
        with refused(f"{folder}: is a folder", "name a file"):
            rerank(replace(chosen, output=folder, force=force))
        with refused(f"{folder}: is also an input"):
            rerank(replace(chosen, output=folder, vectors=folder, force=force))
    assert contents(chosen.output.parent) == before


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\x1c", "\x85"])
def test_an_id_that_could_not_be_written_is_named_before_anything_is_scored(
    chosen: RerankSettings, space: str
) -> None:
    """Below the depth too, where no text is looked for."""
    text = chosen.run.read_text()
    chosen.run.write_text(text.replace("2 Q0 cake", f"2 Q0 ca{space}ke"))
    with refused(f"{chosen.run}:8: ", "no-break spaces", InputError):
        rerank(replace(chosen, depth=1))
    assert not chosen.output.exists()


def test_what_is_known_of_a_part_is_whole_or_the_part_is_made_again(
    chosen: RerankSettings,
) -> None:
    """So that counts in the sidecar are right; parts that have nothing to tell stay."""
    assert chosen.collection is not None
    text = chosen.collection.read_text()
    first = text.splitlines()[0]
    emptied = json.dumps(json.loads(first) | {"contents": ""})
    chosen.collection.write_text(text.replace(first, emptied))
    interrupted = []

    class Stopping(Heard):
        def advance(self, done: int, total: int, unit: str) -> None:
            if done == total:
                interrupted.append(done)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rerank(chosen, Stopping())
    notes = sorted(chosen.output.with_name("new.run.parts").glob("*-facts.json"))
    assert notes
    for note in notes:
        note.write_text("torn")
    heard = Heard()

    outcome = rerank(chosen, heard)

    assert outcome.counts["empty_passages"] == 1
    assert 0 < outcome.details["pairs_scored"] < outcome.counts["pairs"]
    assert f"{notes[0]}: damaged; its part is made again" in heard.notices


def test_a_part_that_changes_before_it_is_joined_makes_no_run(chosen: RerankSettings) -> None:
    """Made just now or found: a run is made of what was scored, and next time all is well."""
    undisturbed = replace(chosen, output=chosen.output.with_name("undisturbed.run"))
    rerank(undisturbed)
    whole = undisturbed.output.read_bytes()
    parts = parts_path(chosen.output)

    class Editing(Heard):
        def advance(self, done: int, total: int, unit: str) -> None:
            if done == total:  # the last part comes after this, those before it in a moment
                while not (there := sorted(parts.glob("*.part"))):
                    time.sleep(0.01)
                part = there[0]
                part.write_bytes(part.read_bytes().replace(b" 1 ", b" 7 "))

    for _ in range(2):  # then with parts that were there, but for the one that is made again
        with refused(f"{parts}/", "run the same command again", StorageError):
            rerank(chosen, Editing())
        assert not chosen.output.exists()
    rerank(chosen)
    assert chosen.output.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "--depth 0 is out of range"),
        ({"interpolate": 1.5}, "--interpolate 1.5 is out of range"),
        ({"window": 10, "stride": 20}, "--stride 20 is out of range"),
        ({"threads": -1}, "--threads -1 is out of range"),
        ({"token_budget": -1}, "--token-budget -1 is out of range"),
        ({"tag": "a b"}, "'a b' is no legal run tag"),
        ({"output": Path("a\0b")}, "embedded null"),
        ({"collection": None}, "neither is named"),
        ({"index": Path("i")}, "both are named"),
        ({"run": Path("-"), "topics": Path("-")}, "cannot both come from standard input"),
    ],
)
def test_settings_that_cannot_be(
    chosen: RerankSettings, change: dict[str, object], message: str
) -> None:
    """Refused before anything is read."""
    with refused(message):
        rerank(replace(chosen, **change))  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is said, and streams


def test_topics_without_candidates_and_empty_passages_are_told(
    chosen: RerankSettings, tmp_path: Path
) -> None:
    """By name and by number; nothing is dropped in silence."""
    heard = Heard()
    assert chosen.collection is not None
    empty = chosen.collection.read_text().replace("Bake the cake in a round tin for", "")
    chosen.collection.write_text(empty.replace(" forty minutes.", ""))

    outcome = rerank(chosen, heard)

    assert outcome.counts["without_candidates"] == ["6"]
    assert "1 topics without candidates are not in the run: 6" in heard.notices
    assert outcome.counts["empty_passages"] == 1


def test_a_pipe_gives_the_bytes_of_a_file(chosen: RerankSettings) -> None:
    """And leaves nothing beside it."""
    rerank(chosen)
    folder = chosen.output.parent
    before = contents(folder)
    words = ["rerank", "--run", "-", "--topics", "topics.tsv", "--collection", "corpus.jsonl"]

    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words, "--model", "overlap", "--output", "-"],
        cwd=folder,
        input=chosen.run.read_bytes(),
        capture_output=True,
        check=True,
    )

    assert done.stdout == chosen.output.read_bytes()
    assert contents(folder) == before
