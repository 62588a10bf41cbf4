"""Quality against cost: one pass per model, every depth, what nobody beats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from refusal import refused

from pipeline.errors import PipelineError
from pipeline.evaluate import evaluate_runs
from pipeline.plots import draw_sweep
from pipeline.rerank import RerankSettings, rerank
from pipeline.stage import read_sidecar, sidecar_path
from pipeline.sweep import FIRST, Point, _marked, _milliseconds, run_names, sweep


@pytest.fixture
def settings(tiny: Path, tmp_path: Path) -> RerankSettings:
    """The tiny collection, and a folder for what comes out."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    return RerankSettings(
        run=folder / "bm25.run",
        topics=folder / "topics.tsv",
        model="",
        output=tmp_path / "swept",
        collection=folder / "corpus.jsonl",
        interpolate=1.0,
    )


def qrels_of(settings: RerankSettings) -> Path:
    """The tiny collection's judgements."""
    return next(settings.run.parent.glob("qrels*"))


def test_every_depth_from_one_pass(settings: RerankSettings, tmp_path: Path) -> None:
    """The values are those of a run that was reranked to that depth; times grow with pairs."""
    found = sweep(qrels_of(settings), settings, ["overlap"], [1, 2, 100], ["AP", "RR"])
    assert [(p.model, p.depth) for p in found.points] == [
        (FIRST, 0), ("overlap", 1), ("overlap", 2), ("overlap", 100),
    ]  # fmt: skip
    for point in found.points[1:]:
        path = tmp_path / f"{point.depth}.run"
        shallow = RerankSettings(
            **{**vars(settings), "model": "overlap", "depth": point.depth, "output": path}
        )
        rerank(shallow)
        table = evaluate_runs(qrels_of(settings), [path], ["AP", "RR"])
        assert point.means == pytest.approx(table.rows[0].evaluation.mean)
        low, high = point.intervals["AP"]
        assert low <= point.means["AP"] <= high
    first = evaluate_runs(qrels_of(settings), [settings.run], ["AP", "RR"])
    assert found.points[0].means == pytest.approx(first.rows[0].evaluation.mean)
    times = [point.ms for point in found.points[1:]]
    assert all(ms is not None and ms > 0 for ms in times)
    assert times == sorted(times, key=lambda ms: ms or 0.0)
    assert found.points[0].ms is None
    assert "first stage" in found.notes[0]
    sidecar = read_sidecar(settings.output / "overlap.run")
    assert sidecar is not None
    assert sidecar["pace"]["pairs"] == sidecar["counts"]["pairs"]


def test_figures_and_a_table(settings: RerankSettings) -> None:
    """One line a point, one figure a measure; the same sweep gives the same bytes."""
    found = sweep(qrels_of(settings), settings, ["overlap"], [1, 2], ["AP", "nDCG@10"])
    assert found.cells()[0] == ["model", "depth", "ms/topic", "AP", "nDCG@10"]
    assert len(found.cells()) == 4
    json.dumps(found.record(), allow_nan=False)
    for kind in ("png", "svg"):
        written = draw_sweep(found, settings.output, kind)
        assert [path.name for path in written] == [f"sweep-AP.{kind}", f"sweep-nDCG@10.{kind}"]
        before = written[0].read_bytes()
        draw_sweep(found, settings.output, kind)
        assert written[0].read_bytes() == before


def test_the_time_of_a_worker_is_that_of_its_topics(settings: RerankSettings) -> None:
    """More workers do not make a model cheaper: of a run by workers, their own time counts."""
    run = settings.output.with_name("a.run")
    rerank(RerankSettings(**{**vars(settings), "model": "overlap", "output": run}))
    sidecar = json.loads(sidecar_path(run).read_text())
    sidecar["counts"] |= {"topics": 4, "pairs": 400}
    sidecar["pace"]["topics_per_second"] = 1000.0
    sidecar_path(run).write_text(json.dumps(sidecar))
    assert _milliseconds(run) == pytest.approx(1.0)
    sidecar["details"] |= {"executor": {"kind": "ray"}, "ms_per_1000": 50.0}
    sidecar_path(run).write_text(json.dumps(sidecar))
    assert _milliseconds(run) == pytest.approx(5.0)


def test_what_nobody_beats() -> None:
    """A point is beaten by one as fast and better, or faster and as good; equals both stay."""
    given = [(1.0, 0.3), (2.0, 0.5), (2.0, 0.4), (3.0, 0.5), (4.0, 0.6), (4.0, 0.6)]
    points = [Point("m", 1, ms, {"AP": value}, {}, frozenset()) for ms, value in given]
    best = [bool(point.best) for point in _marked(points, ["AP"])]
    assert best == [True, True, False, False, True, True]


def test_names_of_runs() -> None:
    """By the model, letters that a file name takes, and no two alike."""
    assert run_names(["small", "a/b c", "x/small"]) == ["small-1", "b-c", "small-2"]
    assert run_names(["a/m", "b/m", "m-1"]) == ["m-2", "m-3", "m-1"]


@pytest.mark.parametrize(
    ("models", "depths", "said"),
    [([], [1], "nothing to sweep"), (["overlap"], [0], "nothing to sweep"),
     (["overlap", "overlap"], [1], "named twice")],
)  # fmt: skip
def test_what_is_refused(
    settings: RerankSettings, models: list[str], depths: list[int], said: str
) -> None:
    """Before anything is computed."""
    with pytest.raises(PipelineError, match=said):
        sweep(qrels_of(settings), settings, models, depths)
    assert not settings.output.exists()


def test_a_time_that_nobody_measured(settings: RerankSettings) -> None:
    """A run whose parts were all there says nothing of its time, and is not given one."""
    qrels = qrels_of(settings)
    sweep(qrels, settings, ["overlap"], [1])
    (settings.output / "overlap.run").unlink()

    found = sweep(qrels, settings, ["overlap"], [1])

    first, model = found.points
    assert (model.model, model.ms, model.best) == ("overlap", None, frozenset())
    assert first.best
    assert found.cells()[2][2] == "-"
    assert any("how long overlap took is not known" in note for note in found.notes)
    assert draw_sweep(found, settings.output, "svg")


def test_judgements_of_other_topics_are_refused_before_anything_is_scored(
    settings: RerankSettings, tmp_path: Path
) -> None:
    """As `evaluate` refuses them."""
    (tmp_path / "other.qrels").write_text("nobody 0 d1 1\n")
    with refused(f"{settings.run}: nothing to evaluate", "the right judgements"):
        sweep(tmp_path / "other.qrels", settings, ["overlap"], [1])
    assert not settings.output.exists()


def test_one_topic_has_no_interval(settings: RerankSettings, tmp_path: Path) -> None:
    """What is infinite is no number in JSON, nor in a table or a figure."""
    lines = qrels_of(settings).read_text().splitlines(keepends=True)
    qrels = tmp_path / "one.qrels"
    qrels.write_text("".join(line for line in lines if line.split()[0] == lines[0].split()[0]))

    found = sweep(qrels, settings, ["overlap"], [1], ["AP"])

    text = json.dumps(found.record(), allow_nan=False)
    assert json.loads(text)["points"][0]["intervals"] == {"AP": [None, None]}
    assert "[-]" in found.cells()[1][3]
    assert draw_sweep(found, settings.output, "svg")
