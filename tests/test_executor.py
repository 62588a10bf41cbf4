"""What a stage and its workers tell each other, without any engine."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline import experiment
from pipeline.cluster import Crew
from pipeline.errors import PipelineError
from pipeline.executor import Executor, Item, Made, need_listener
from pipeline.makers import Load, RerankMaker
from pipeline.models.reranker import model_digest
from pipeline.models.scorer import Limits, Wishes
from pipeline.parts import Parts
from pipeline.rerank import RerankSettings, how_of
from pipeline.worker import TOKEN, Bench, need_alike


class Doubling:
    """A maker of parts that are twice what they are made from."""

    def open(self) -> dict[str, object]:
        return {"factor": 2}

    def make(self, what: bytes) -> Made:
        return Made(what * 2, {"bytes": len(what)}, "facts-of-it")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ray", Executor("ray", None, 3)),
        ("ray:auto", Executor("ray", "auto", 3)),
        ("ray:ray://head:10001", Executor("ray", "ray://head:10001", 3)),
    ],
)
def test_an_engine_is_named_with_or_without_its_place(text: str, expected: Executor) -> None:
    """What follows the first colon is the address."""
    assert Executor.read(text, 3) == expected


def test_an_address_where_nobody_listens_is_named_at_once() -> None:
    """An engine by itself would try for minutes; what is no host and port is left to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "auto", "local", None):
            need_listener(address)
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with refused(f"nobody answers at {address}: ", "that it is up"):
            need_listener(address)


def test_engines_that_are_not_known_are_refused() -> None:
    """With what is known."""
    for text in ("spark", "ray:", "Ray", ""):
        with refused("--executor", "ray"):
            Executor.read(text)
    with refused("--workers -1 is out of range"):
        Executor(workers=-1).check()


def test_a_worker_that_sees_the_folder_writes_its_parts_there(tmp_path: Path) -> None:
    """Known by a note of the driver's, not by the path alone: another machine may have one too."""
    parts = Parts(tmp_path / "parts")
    parts.keep_note(TOKEN, {"token": "abc"})
    bench = Bench(Doubling(), str(parts.folder), "abc")
    said = bench.open()
    assert (said["shared"], said["facts"]) == (True, {"factor": 2})
    name, facts, note, seconds = bench.make("k" * 64, b"part")
    assert isinstance(name, str)
    assert parts.arrived("k" * 64, name).read_bytes() == b"partpart"
    assert Parts(parts.folder).find("k" * 64) is not None
    assert (facts, note) == ({"bytes": 4}, "")
    assert parts.note("facts-of-it") == {"bytes": 4}
    assert seconds >= 0


@pytest.mark.parametrize("note", ["facts-of-it", "never-kept", ""])
def test_a_part_whose_worker_was_lost_after_it_is_taken(tmp_path: Path, note: str) -> None:
    """With its facts, where it has any; a part without a place for facts is made again."""
    parts = Parts(tmp_path / "parts")
    parts.keep_note("facts-of-it", {"bytes": 4})
    path = parts.save("k" * 64, b"part")
    crew = object.__new__(Crew)  # no cluster is needed to look into a folder
    crew._parts = Parts(parts.folder)
    item = Item("k" * 64, "it", 1, b"", note)
    found = crew._lying(item)
    assert found is not None
    assert (found.path, found.facts) == (path, {"bytes": 4} if note == "facts-of-it" else {})
    assert crew._lying(item._replace(note=None)) is None
    assert crew._lying(item._replace(key="n" * 64)) is None


@pytest.mark.parametrize("token", ["other", None])
def test_a_worker_that_does_not_sends_them(tmp_path: Path, token: str | None) -> None:
    """Nothing is written where it is."""
    parts = Parts(tmp_path / "parts")
    if token:
        parts.keep_note(TOKEN, {"token": token})
    bench = Bench(Doubling(), str(parts.folder), "abc")
    assert bench.open()["shared"] is False
    assert bench.make("k", b"part")[:3] == (b"partpart", {"bytes": 4}, "facts-of-it")
    assert not list(tmp_path.rglob("*.part"))


def test_workers_that_are_not_alike_are_refused() -> None:
    """All that differs is named, wherever it stands."""
    one = {
        "node": "a", "pid": 1,
        "versions": {"python": "3.12.1"},
        "facts": {"model": "m", "signature": {"threads": 1, "versions": {"torch": "2.9"}}},
    }  # fmt: skip
    other = {
        "node": "b", "pid": 2,
        "versions": {"python": "3.12.1"},
        "facts": {"model": "m", "signature": {"threads": 2, "versions": {"torch": "2.8"}}},
    }  # fmt: skip
    need_alike(one, None, "worker 1 on a")
    need_alike({**one, "node": "c"}, one, "worker 3 on c")
    with refused("worker 2 on b is not like the one on a: facts.signature.threads (1 and 2), "
                 "facts.signature.versions.torch ('2.9' and '2.8')", "same versions"):  # fmt: skip
        need_alike(other, one, "worker 2 on b")


def test_a_model_that_is_missing_or_another_on_a_worker_is_named(tmp_path: Path) -> None:
    """The worker says so instead of ending."""
    settings = RerankSettings(tmp_path, tmp_path, "overlap", tmp_path, collection=tmp_path)
    missing = Load(str(tmp_path / "nowhere"), Wishes(), Limits())
    maker = RerankMaker(missing, how_of(settings), None, "digest")
    message, hint = Bench(maker, str(tmp_path), "").open()["error"]
    assert "no such model" in message
    assert "name a folder" in hint
    maker = RerankMaker(Load("overlap", Wishes(), Limits()), how_of(settings), None, "digest")
    assert "is another model here" in Bench(maker, str(tmp_path), "").open()["error"][0]
    right = model_digest("overlap")
    maker = RerankMaker(Load("overlap", Wishes(), Limits()), how_of(settings), None, right)
    assert Bench(maker, str(tmp_path), "").open()["facts"]["model"] == right


def test_workers_find_folders_from_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of shipped and of Hugging Face models are left alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    found = Load("model", Wishes(), Limits(), Path("v")).from_anywhere()
    assert (found.model, found.vectors) == (str(tmp_path / "model"), tmp_path / "v")
    assert Load("small", Wishes(), Limits()).from_anywhere().model == "small"


def test_without_ray_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two lines."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused("ray is not installed", "trec-pipeline[ray]"):
        Crew(Executor(), Doubling(), Parts(tmp_path), cpus=1)


def test_an_experiment_names_its_executor(tiny: Path) -> None:
    """In a table of its own; unknown keys are errors."""
    text = '[topics]\npath = "topics.tsv"\n[index]\npath = "i"\n[executor]\n'
    path = tiny / "e.toml"  # never written
    assert Executor(address="auto", workers=2) != Executor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: (text + "nodes = 3\n").encode())
        with refused("unknown key 'nodes' in [executor]"):
            experiment.load(path)
        patch.setattr(Path, "read_bytes", lambda self: (text + 'kind = "spark"\n').encode())
        with refused("executor.kind = 'spark' is not one of ray"):
            experiment.load(path)
        patch.setattr(Path, "read_bytes", lambda self: (text + "workers = 3\n").encode())
        assert [step.name for step in experiment.load(path).steps] == ["index", "retrieve"][1:]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workers", "2"), "--workers without --executor"),
        (("--executor", "dask"), "--executor 'dask' is not known"),
        (("--executor", "ray", "--output", "-"), "parts need a place"),
        (("--executor", "ray", "--workers", "-2"), "--workers -2 is out of range"),
    ],
)
def test_the_command_says_what_cannot_be(words: tuple[str, ...], said: str, tiny: Path) -> None:
    """Before anything is started."""
    common = ("rerank", "--run", "bm25.run", "--topics", "topics.tsv", "--model", "overlap",
              "--collection", "corpus.jsonl", "--output", "never.run")  # fmt: skip
    done = run(*common, *words, cwd=tiny)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tiny / "never.run").exists()


def test_a_failure_of_a_worker_keeps_its_two_lines() -> None:
    """It crosses processes whole."""
    import pickle

    error = PipelineError("what happened", "what to do")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (again.message, again.hint) == (error.message, error.hint)
