"""Tables and figures of scripts/reproduce: usage: reproduce_report.py WORK [DEV [FIGURES]]

Reads the runs in WORK/DEV (default: dev) and the models in WORK/runs, writes WORK/report/tables.md
and the figures (SVG; to FIGURES where it is named). Each topic's value of each run is kept in
WORK/DEV.tsv, and what that file has of runs that are not there counts as well. Each arm is tested
against BM25 and against the teacher on every development set: the randomisation test over topics,
each topic's value averaged over the arm's seeds first, Holm's correction over all arms of a table.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import statistics
from pipeline.measures import evaluate_rankings
from pipeline.store import write_bytes
from pipeline.trec import read_qrels, read_run

MEASURES = {
    "msmarco": "RR@10", "nfcorpus": "nDCG@10", "cranfield": "nDCG@10", "scifact": "nDCG@10",
}  # fmt: skip
LABEL = re.compile(r"(?P<arm>.+)-(?P<tag>\d+(?:-t\d+)?(?:-cross)?)-(?P<seed>\d+)")
LEVEL, SAMPLES = 0.05, 100_000
TOKENS = 96  # a pair, where multiply-adds are counted
DEEPER = "six-layers"  # trained as the students are, and no student

Values = dict[str, dict[str, float]]  # development set -> topic -> value


def main() -> None:
    work = Path(sys.argv[1])
    report = work / "report"
    report.mkdir(exist_ok=True)
    dev = sys.argv[2] if sys.argv[2:] else "dev"
    kept = work / f"{dev}.tsv"
    values = read_values(kept) | measured(work, dev)
    write_values(kept, values)
    arms = by_arm(values)
    tags = sorted({tag for tag, _ in arms if tag}, key=lambda t: (len(t), t))
    lines = []
    for tag in tags:
        others, teacher = ("", "-cross") if tag.endswith("-cross") else ("-cross", "")
        shown = {
            "teacher" if name == f"teacher{teacher}" else name: seeds
            for (own, name), seeds in arms.items()
            if own in (tag, "") and name != f"teacher{others}"
        }
        lines += [f"## {tag} pairs an arm", "", *table(shown), "", *ties(shown), "",
                  *models(work, tag, shown), ""]  # fmt: skip
        draw(shown, (Path(sys.argv[3]) if sys.argv[3:] else report) / f"arms-{tag}.svg")
    text = "\n".join(lines)
    (report / "tables.md").write_text(text, "utf-8")
    print(text)


def measured(work: Path, dev: str) -> dict[str, Values]:
    """Values of every run that is there, by its label: ARM-PAIRS-SEED, or bm25, or teacher.

    A judged topic that a run leaves out has 0.
    """
    found: dict[str, Values] = defaultdict(dict)
    for name, measure in MEASURES.items():
        qrels = read_qrels(work / "data" / f"{dev}-{name}.qrels")
        for path in sorted((work / dev).glob(f"*.{name}.run")):
            values = evaluate_rankings(qrels, read_run(path), [measure]).per_topic
            one = found[path.name.removesuffix(f".{name}.run")]
            one[name] = {qid: round(values.get(qid, {measure: 0.0})[measure], 5) for qid in qrels}
    return {label: values for label, values in found.items() if len(values) == len(MEASURES)}


def read_values(path: Path) -> dict[str, Values]:
    """Read what `write_values` wrote; a file that is not there has nothing."""
    if not path.exists():
        return {}
    head, *rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    labels = head[2:]
    found: dict[str, Values] = {label: {name: {} for name in MEASURES} for label in labels}
    for name, qid, *values in rows:
        for label, value in zip(labels, values, strict=True):
            found[label][name][qid] = float(value)
    return found


def write_values(path: Path, values: dict[str, Values]) -> None:
    """One line a topic, one column a run."""
    labels = sorted(values)
    lines = ["\t".join(["set", "topic", *labels])]
    for name in MEASURES:
        topics = sorted({qid for each in values.values() for qid in each[name]})
        for qid in topics:
            row = [f"{values[label][name][qid]:g}" for label in labels]
            lines.append("\t".join([name, qid, *row]))
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def by_arm(values: dict[str, Values]) -> dict[tuple[str, str], dict[int, Values]]:
    """(tag, arm) -> seed -> values; arms without a tag (BM25, the teacher) belong to all."""
    found: dict[tuple[str, str], dict[int, Values]] = defaultdict(dict)
    for label, each in values.items():
        match = LABEL.fullmatch(label)
        if match is None:
            found["", label][1] = each
        else:
            found[match["tag"], match["arm"]][int(match["seed"])] = each
    return found


def mean(values: Values, name: str) -> float:
    return float(np.mean(list(values[name].values())))


def over_seeds(seeds: dict[int, Values], name: str) -> np.ndarray:
    """Each topic's value, averaged over seeds, topics in the order of their ids."""
    rows = [[values[name][qid] for qid in sorted(values[name])] for values in seeds.values()]
    return np.mean(rows, axis=0)


def overall(seeds: dict[int, Values]) -> float:
    return float(np.mean([over_seeds(seeds, name).mean() for name in MEASURES]))


def marks(shown: dict[str, dict[int, Values]], base: str) -> dict[tuple[str, str], str]:
    """(arm, set) -> + or -, where the difference from `base` is significant."""
    if base not in shown:
        return {}
    found = {}
    arms = [name for name in shown if name != base]
    family, p = [(arm, name) for name in MEASURES for arm in arms], []
    for name in MEASURES:
        before = over_seeds(shown[base], name)
        differences = np.array([over_seeds(shown[arm], name) - before for arm in arms]).T
        p += statistics.randomisation(differences, SAMPLES, 42).tolist()
    for (arm, name), value in zip(family, statistics.adjusted(p, "holm"), strict=True):
        if value < LEVEL:
            better = over_seeds(shown[arm], name).mean() > over_seeds(shown[base], name).mean()
            found[arm, name] = "+" if better else "-"
    return found


def table(shown: dict[str, dict[int, Values]]) -> list[str]:
    """One line an arm, the best first; spread is the largest minus the smallest seed's mean."""
    against = {base: marks(shown, base) for base in ("bm25", "teacher")}
    heads = [f"{name} {measure}" for name, measure in MEASURES.items()]
    lines = [f"| arm | seeds | {' | '.join(heads)} | mean | spread |",
             f"|---|---:|{'---:|' * (len(heads) + 2)}"]  # fmt: skip
    for arm, seeds in sorted(shown.items(), key=lambda item: -overall(item[1])):
        cells = []
        for name in MEASURES:
            mark = against["bm25"].get((arm, name), "")
            other = against["teacher"].get((arm, name), "")
            told = [f"b{mark}" if mark else "", f"t{other}" if other else ""]
            cells.append(" ".join(filter(None, (f"{over_seeds(seeds, name).mean():.3f}", *told))))
        means = [overall({1: values}) for values in seeds.values()]
        spread = f"{max(means) - min(means):.3f}" if len(means) > 1 else ""
        cells += [f"{overall(seeds):.3f}", spread]
        lines.append(f"| {arm} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def ties(shown: dict[str, dict[int, Values]]) -> list[str]:
    """Trained arms whose means lie closer together than the widest spread of seeds."""
    spreads = [max(means) - min(means) for seeds in shown.values()
               if len(means := [overall({1: v}) for v in seeds.values()]) > 1]  # fmt: skip
    if not spreads:
        return ["One seed an arm: nothing is known of the spread of seeds."]
    widest = max(spreads)
    ranked = sorted(((overall(s), arm) for arm, s in shown.items()
                     if trained(arm) and arm != DEEPER), reverse=True)  # fmt: skip
    groups: list[list[tuple[float, str]]] = []
    for each in ranked:
        if groups and groups[-1][0][0] - each[0] <= widest:
            groups[-1].append(each)
        else:
            groups.append([each])
    named = "; then ".join(", ".join(arm for _, arm in group) for group in groups)
    return [f"Widest spread of seeds {widest:.3f}. Ties within it: {named}."]


def trained(arm: str) -> bool:
    return arm not in ("bm25", "teacher") and not arm.startswith("untrained")


def models(work: Path, tag: str, shown: dict[str, dict[int, Values]]) -> list[str]:
    """Parameters and multiply-adds of the trained arms whose models are there."""
    lines = ["| arm | parameters | multiply-adds a pair |", "|---|---:|---:|"]
    for arm in filter(trained, shown):
        folder = work / "runs" / f"{arm}-{tag}-{min(shown[arm])}"
        if not (folder / "student").exists():
            continue
        config = json.loads((folder / "student/config.json").read_text("utf-8"))
        lines.append(f"| {arm} | {parameters(folder / 'student'):.1f} M | "
                     f"{multiply_adds(config) / 1e6:.0f} M |")  # fmt: skip
    return lines


def parameters(folder: Path) -> float:
    """Millions of numbers in the weights; the header of a safetensors file says their shapes."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [each["shape"] for name, each in header.items() if name != "__metadata__"]
    return sum(int(np.prod(shape)) for shape in shapes) / 1e6


def multiply_adds(config: dict[str, Any]) -> float:
    """L (4 n H^2 + 2 n^2 H + 2 n H F), embeddings and head left out."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    n, wide = TOKENS, config["intermediate_size"]
    each = 4 * n * hidden**2 + 2 * n**2 * hidden + 2 * n * hidden * wide
    return float(layers * each)


def draw(shown: dict[str, dict[int, Values]], path: Path) -> None:
    """A row for each arm, a panel for each development set; BM25 and the teacher as lines."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib.figure import Figure

    arms = sorted((arm for arm in shown if arm not in ("bm25", "teacher")),
                  key=lambda arm: overall(shown[arm]))  # fmt: skip
    with mpl.rc_context({"font.size": 8, "svg.hashsalt": "arms", "svg.fonttype": "none",
                         "figure.constrained_layout.use": True}):  # fmt: skip
        figure = Figure(figsize=(9, 0.5 + 0.22 * len(arms)))
        for axes, (name, measure) in zip(
            figure.subplots(1, len(MEASURES), sharey=True), MEASURES.items(), strict=True
        ):
            for row, arm in enumerate(arms):
                means = [mean(values, name) for values in shown[arm].values()]
                colour = "#0072B2" if trained(arm) else "#999999"
                axes.plot(means, [row] * len(means), "o", color=colour, markersize=4)
            for base, colour in (("bm25", "#D55E00"), ("teacher", "#009E73")):
                if base in shown:
                    axes.axvline(mean(shown[base][1], name), color=colour, label=base, lw=1)
            axes.set_title(f"{name}: {measure}", fontsize=8)
            axes.grid(axis="y", lw=0.3)
        axes.legend(frameon=False)
        figure.axes[0].set_yticks(range(len(arms)), arms)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
