"""Figures, labelled for a paper; matplotlib draws them if it is installed."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, one_line
from pipeline.store import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.comparison import Comparison, Comparisons
    from pipeline.depths import Depths
    from pipeline.sweep import Sweep

FORMATS = ("pdf", "png", "svg")
# Okabe and Ito's colours, which all eyes tell apart; lines differ in print without colours too.
COLOURS = ["0072B2", "D55E00", "009E73", "CC79A7", "E69F00", "56B4E9", "000000"]
LINES = ["-", "--", "-.", ":", "-", "--", "-."]
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "figure.constrained_layout.use": True, "pdf.fonttype": 42, "svg.hashsalt": "pipeline",
    "axes.prop_cycle": f"cycler('color', {COLOURS}) + cycler('ls', {LINES})",
}  # fmt: skip
TITLE, LEGEND = 26, 32  # characters of a run's name that a figure holds
NO_DATES = {
    "pdf": {"CreationDate": None, "ModDate": None}, "png": {"Software": None},
    "svg": {"Date": None},
}  # fmt: skip


def check_matplotlib() -> None:
    """Make sure that figures can be drawn, before anything is computed.

    Raises:
        PipelineError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - asked for, not used
    except ImportError:
        raise PipelineError(
            "figures need the package matplotlib, which is not installed",
            "pip install 'trec-pipeline[plots]', or leave --plots out",
        ) from None


def draw(found: Comparisons, folder: Path, kind: str, depths: dict[str, Depths]) -> list[Path]:
    """Write all figures of a comparison into a folder; the same comparison gives the same bytes.

    Args:
        kind: `pdf`, `png` or `svg`.
        depths: effectiveness by depth, by name of the reranked run.

    Returns:
        The files: `differences-MEASURE-RUN`, `precision-recall`, `depth-MEASURE`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    written = []

    def save(name: str, figure: Any) -> None:
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=200, metadata=NO_DATES[kind])
        path = folder / f"{re.sub(r'[^A-Za-z0-9.@_-]+', '-', name)}.{kind}"
        write_bytes(path, data.getvalue())
        written.append(path)

    with mpl.rc_context(STYLE):
        for each in found.found:
            names = [found.table.rows[place].name for place in (each.run, each.base)]
            save(f"differences-{each.measure}-{names[0]}-{names[1]}", _bars(Figure, each, names))
        if found.curves:
            save("precision-recall", _precision_recall(Figure, found))
        for measure in found.table.measures if depths else ():
            save(f"depth-{measure}", _by_depth(Figure, measure, depths))
    return written


def loss_curve(metrics: Path, output: Path) -> bool:
    """Draw what a training wrote into its `metrics.jsonl`, as a PNG; False without matplotlib.

    The loss and each of its terms, and above them what was measured on development data.
    """
    try:
        check_matplotlib()
    except PipelineError:
        return False
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    known = ("step", "epoch", "learning_rate", "dev", "loss")
    terms = ["loss", *(name for name in rows[-1] if name not in known)]
    measured = [row for row in rows if row.get("dev")]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 4.2 if measured else 2.6))
        *above, below = figure.subplots(1 + bool(measured), 1, sharex=True, squeeze=False)[:, 0]
        for name in terms if len(terms) > 2 else terms[:1]:
            below.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
        below.set_xlabel("step")
        below.set_ylabel("loss")
        for axes in above:
            for name in measured[0]["dev"]:
                values = [row["dev"][name] for row in measured]
                axes.plot([row["step"] for row in measured], values, marker=".", label=_label(name))
            axes.set_ylabel("development data")
        for axes in (*above, below):
            axes.legend(frameon=False)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=150, metadata=NO_DATES["png"])
    write_bytes(output, data.getvalue())
    return True


def draw_sweep(found: Sweep, folder: Path, kind: str) -> list[Path]:
    """Write `sweep-MEASURE` for each measure: effectiveness against milliseconds a topic.

    Bars are intervals of confidence of 95 per cent; the line joins the points that nobody beats.

    Args:
        kind: `pdf`, `png` or `svg`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    written = []
    with mpl.rc_context(STYLE):
        for measure in found.measures:
            data = io.BytesIO()
            figure = _sweep(Figure, found, measure)
            figure.savefig(data, format=kind, dpi=200, metadata=NO_DATES[kind])
            written.append(
                folder / f"{re.sub(r'[^A-Za-z0-9.@_-]+', '-', f'sweep-{measure}')}.{kind}"
            )
            write_bytes(written[-1], data.getvalue())
    return written


def _sweep(figure_of: Any, found: Sweep, measure: str) -> Any:
    import numpy as np

    figure = figure_of(figsize=(4.5, 3.2))
    axes = figure.add_subplot()
    for name in dict.fromkeys(point.model for point in found.points):
        some = [point for point in found.points if point.model == name and point.timed]
        if not some:  # whose time nobody measured
            continue
        times = [point.ms or 0.0 for point in some]
        means = [point.means[measure] for point in some]
        lows, highs = zip(*(point.intervals[measure] for point in some), strict=True)
        errors = np.abs(np.array([lows, highs]) - means)
        errors[~np.isfinite(errors)] = 0  # of one topic
        axes.errorbar(
            times, means, errors, marker="o", markersize=3, linestyle="none", linewidth=0.8,
            capsize=2, label=_label(name),
        )  # fmt: skip
        for point, x, y in zip(some, times, means, strict=True):
            if point.depth:
                axes.annotate(f"{point.depth}", (x, y), (3, 3), textcoords="offset points", size=6)
    best = sorted((p.ms or 0.0, p.means[measure]) for p in found.points if measure in p.best)
    axes.plot(*zip(*best, strict=True), color="0.6", linewidth=0.8, linestyle="-", zorder=0)
    axes.set_xscale("symlog", linthresh=1)
    axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("milliseconds a topic (numbers: candidates reranked)")
    axes.set_ylabel(_label(measure))
    axes.set_title(_label(f"{found.topics:,} topics, {found.machine}"), fontsize=7)
    axes.legend(frameon=False, fontsize=7)
    return figure


def _bars(figure_of: Any, each: Comparison, names: list[str]) -> Any:
    run, base = (_label(shorten(name, TITLE)) for name in names)
    values = sorted((topic.value for topic in each.differences), reverse=True)
    figure = figure_of(figsize=(4.5, 2.4))
    axes = figure.add_subplot()
    colours = ["#0072B2" if value > 0 else "#D55E00" for value in values]
    axes.bar(range(1, len(values) + 1), values, width=1.0, color=colours, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axhline(each.mean, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.set_xlabel(f"topics ({each.wins} better, {each.ties} equal, {each.losses} worse)")
    axes.set_ylabel(f"difference in {_label(each.measure)}")
    between = " " if len(run) + len(base) <= TITLE else "\n"
    axes.set_title(f"{run}{between}against {base}, mean {each.mean:+.4f}", fontsize=9)
    return figure


def _precision_recall(figure_of: Any, found: Comparisons) -> Any:
    figure = figure_of(figsize=(3.4, 2.8))
    axes = figure.add_subplot()
    for name, curve in found.curves.items():
        axes.plot(
            [step / 10 for step in range(11)],
            list(curve.values()),
            label=_label(shorten(name, LEGEND)),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("recall")
    axes.set_ylabel("interpolated precision")
    axes.legend(frameon=False)
    return figure


def _by_depth(figure_of: Any, measure: str, depths: dict[str, Depths]) -> Any:
    figure = figure_of(figsize=(3.4, 2.8))
    axes = figure.add_subplot()
    for name, each in depths.items():
        axes.plot(each.depths, each.means[measure], marker=".", label=_label(shorten(name, LEGEND)))
    axes.set_xscale("symlog", linthresh=1)
    ticks = [0, 1, 10, 100, 1000]
    axes.set_xticks([t for t in ticks if t <= max(max(d.depths) for d in depths.values())])
    axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("candidates reranked (0: first stage)")
    axes.set_ylabel(_label(measure))
    axes.legend(frameon=False)
    return figure


def shorten(name: str, most: int) -> str:
    """Keep both ends of a long name, which tell runs apart, so that a figure holds it."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _label(text: str) -> str:
    """Escape what matplotlib would read as mathematics, or a terminal as an order."""
    return one_line(text).replace("$", r"\$")
