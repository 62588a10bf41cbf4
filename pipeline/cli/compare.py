"""The command compare: tables, one topic, depths and figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pipeline.cli.console import plain_table, print_json, reporting
from pipeline.cli.stages import Field, Json, Quiet, one_of
from pipeline.errors import PipelineError, one_line, shown
from pipeline.textfile import STREAM

if TYPE_CHECKING:
    from pipeline.compare import CompareSettings
    from pipeline.comparison import Comparisons
    from pipeline.depths import Depths
    from pipeline.statistics import Correction, Test


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(compare)


def compare(
    qrels: Annotated[Path, typer.Argument(metavar="QRELS", help="The judgements; - is stdin.")],
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Two or more; the first is the baseline.")
    ],
    measures: Annotated[
        list[str] | None,
        typer.Option("--measure", "-m", help="As ir_measures spells it; may be repeated."),
    ] = None,
    tests: Annotated[
        list[str] | None,
        typer.Option(
            "--test",
            help="randomisation (default), t, wilcoxon, bootstrap; may be repeated, marks go by "
            "the first.",
        ),
    ] = None,
    correction: Annotated[
        str, typer.Option(help="For the number of comparisons: holm, bonferroni or none.")
    ] = "holm",
    level: Annotated[float, typer.Option(help="Level of significance.")] = 0.05,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Every run with every other.")
    ] = False,
    samples: Annotated[
        int, typer.Option(help="Random samples; the bootstrap takes a tenth.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 42,
    moved: Annotated[int, typer.Option(metavar="N", help="Show the N topics that moved most.")] = 5,
    per_topic: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Differences of each topic: .csv, .csv.gz.")
    ] = None,
    by_depth: Annotated[
        bool,
        typer.Option("--by-depth", help="The other runs rerank the first: show every depth."),
    ] = False,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw figures into a folder.")
    ] = None,
    plot_format: Annotated[str, typer.Option(help="pdf, png or svg.")] = "pdf",
    topic: Annotated[
        str | None, typer.Option(metavar="QID", help="Show what changed in one topic, instead.")
    ] = None,
    top: Annotated[int, typer.Option(help="With --topic: down to this rank.")] = 10,
    topics: Annotated[
        Path | None, typer.Option("--topics", "-t", help="With --topic: for the query.")
    ] = None,
    field: Field = "title",
    index: Annotated[
        Path | None, typer.Option("--index", "-i", metavar="DIR", help="With --topic: for texts,")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", metavar="PATH", help="or a collection.")
    ] = None,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs topic by topic, with tests and corrections: which differences are real."""
    from pipeline import statistics
    from pipeline.compare import MEASURES, CompareSettings, compare_runs

    if as_json + as_markdown + as_latex > 1:
        raise PipelineError("more than one of --json, --markdown and --latex", "choose one")
    if topic is not None:
        if as_markdown or as_latex:
            raise PipelineError("--topic prints for the terminal or as --json", "leave that out")
        _topic(qrels, runs, topic, top, (topics, field), (index, collection), as_json=as_json)
        return
    chosen = tuple(one_of("--test", test, statistics.TESTS) for test in tests or ["randomisation"])
    settings = CompareSettings(
        measures=tuple(measures or MEASURES),
        tests=cast("tuple[Test, ...]", tuple(dict.fromkeys(chosen))),
        correction=cast("Correction", one_of("--correction", correction, statistics.CORRECTIONS)),
        level=level,
        all_pairs=all_pairs,
        samples=samples,
        seed=seed,
        curves=plots is not None,
    )
    if by_depth and STREAM in map(str, (qrels, *runs)):
        raise PipelineError("--by-depth reads runs twice", "give files, not standard input")
    _check_files(per_topic, plots, plot_format)
    with reporting("compare", quiet=quiet) as console:
        found = compare_runs(qrels, runs, settings, console)
        depths = _depths(qrels, runs, found, settings) if by_depth else {}
    _write(found, per_topic, plots, plot_format, depths)
    _print(
        found,
        moved,
        depths,
        "json" if as_json else "markdown" if as_markdown else "latex" if as_latex else "",
    )


def _check_files(per_topic: Path | None, plots: Path | None, plot_format: str) -> None:
    """Refuse what could not be written, before anything is computed."""
    from pipeline import plots as figures

    if per_topic is not None and not per_topic.name.removesuffix(".gz").endswith(".csv"):
        raise PipelineError(
            f"{shown(str(per_topic))}: differences are written as CSV",
            "let the name end in .csv or .csv.gz",
        )
    if plots is not None:
        one_of("--plot-format", plot_format, figures.FORMATS)
        figures.check_matplotlib()


def _depths(
    qrels: Path, runs: list[Path], found: Comparisons, settings: CompareSettings
) -> dict[str, Depths]:
    from pipeline.depths import by_depth
    from pipeline.evaluate import Ground

    ground = Ground(qrels, settings.measures)
    return {
        row.name: by_depth(ground.judged, runs[0], path, ground.measures)
        for row, path in zip(found.table.rows[1:], runs[1:], strict=True)
    }


def _write(
    found: Comparisons,
    per_topic: Path | None,
    plots: Path | None,
    plot_format: str,
    depths: dict[str, Depths],
) -> None:
    from pipeline import comparison
    from pipeline import plots as figures

    if per_topic is not None:
        comparison.write_differences(found, per_topic)
    if plots is not None:
        figures.draw(found, plots, plot_format, depths)


def _print(found: Comparisons, most: int, depths: dict[str, Depths], form: str) -> None:
    from pipeline import comparison

    if form == "json":
        record = comparison.as_json(found, most)
        record["by_depth"] = {
            name: {
                "depths": list(each.depths),
                "exact": each.exact,
                "means": {measure: list(values) for measure, values in each.means.items()},
            }
            for name, each in depths.items()
        }
        print_json(record)
        return
    if form:
        print(getattr(comparison, form)(found), end="")
        return
    _show(comparison.means(found), left=2)
    print(f"{found.note}\n")
    _show(comparison.details(found), left=2)
    for each in found.found if most > 0 else ():
        if rows := comparison.moved(found, each, most)[1:]:
            print(f"\ntopics that moved most, {each.measure}, {found.title(each)}:")
            _show([comparison.moved(found, each, most)[0], *rows])
    print("\nthe first 100 documents, whatever was judged:")
    _show(comparison.agreement(found))
    for name, table in depths.items():
        print(f"\n{one_line(name)} by depth of reranking:")
        _show(table.cells(), left=0)
        if not table.exact:
            print("approximate: this run mixes in the scores of the first stage")
    if found.warnings:
        print()
    for text in found.warnings:
        print(f"warning: {text}")


def _show(rows: list[list[str]], left: int = 1) -> None:
    print(plain_table(rows[0], rows[1:], left))


# ---------------------------------------------------------------- one topic


def _topic(
    qrels: Path,
    runs: list[Path],
    qid: str,
    depth: int,
    topics: tuple[Path | None, str],
    places: tuple[Path | None, str | None],
    *,
    as_json: bool,
) -> None:
    from pipeline import movement
    from pipeline.evaluate import Ground, run_names
    from pipeline.topics import read_topics

    if len(runs) < 2:
        raise PipelineError("nothing to compare", "name two runs or more: compare QRELS RUN RUN")
    ground = Ground(qrels)
    judged = ground.judged.get(qid, {})
    query = ""
    if topics[0] is not None:
        query = read_topics(topics[0], topics[1]).get(qid, "")
    names = run_names(runs)
    base, *others = [movement.find_ranking(path, qid) for path in runs]
    found = [movement.movement(base, ranking, depth, judged) for ranking in others]
    texts = _texts(places, list(dict.fromkeys(m.docid for one in found for m in one.documents)))
    pairs = [(names[0], name) for name in names[1:]]
    if as_json:
        records = [
            movement.as_json(one, pair, texts, query)
            for one, pair in zip(found, pairs, strict=True)
        ]
        print_json({"schema": 1, "qid": qid, "query": query, "runs": records})
        return
    relevant = sum(grade >= ground.level.grade for grade in judged.values())
    print(f"topic {one_line(qid)}{': ' * bool(query)}{one_line(query)}")
    print(f"{len(judged)} documents judged, {relevant} relevant")
    for one, pair in zip(found, pairs, strict=True):
        tau = "-" if one.kendall is None else f"{one.kendall:.3f}"
        title = f"{one_line(pair[1])} - {one_line(pair[0])}"
        print(f"\n{title}: {one.cause}; Kendall {tau}, RBO {one.rbo:.3f}")
        _show_documents(movement.cells(one, pair, texts, query), bool(texts))


def _show_documents(rows: list[list[str]], with_text: bool) -> None:
    """Set a table whose last column may be text, which goes to the left."""
    column = [row.pop() for row in rows] if with_text else [""] * len(rows)
    table = plain_table(rows[0], rows[1:]).split("\n")
    width = max(map(len, table))
    column.insert(1, "-" * max(map(len, column)))
    for line, text in zip(table, column, strict=True):
        print(f"{line.ljust(width)}  {text}".rstrip())


def _texts(places: tuple[Path | None, str | None], docids: list[str]) -> dict[str, str]:
    """Look up texts where some place to look is named."""
    index, collection = places
    if index is not None and collection is not None:
        raise PipelineError("texts come from an index or from a collection", "name one of them")
    if index is not None:
        from pipeline import lucene

        with lucene.Index(index) as opened:
            found = opened.texts(docids)
        return {docid: text for docid, text in zip(docids, found, strict=True) if text is not None}
    if collection is not None:
        from pipeline.collection import load_texts

        return load_texts(collection, docids)
    return {}
