"""How much memory each stage takes as topics grow, beside pytrec_eval.

usage: python scripts/bench/memory.py [TOPICS] [DEPTH] [FEWER]

Synthetic passages are indexed; TOPICS (2,000) and FEWER (500) topics go through retrieve (DEPTH, so
1,000 hits), rerank, fuse, lint and evaluate. The scorer counts shared words, so that what is
measured is the pipeline and not a model. Every figure is the peak of one process that did nothing
else, its Python and libraries included. Java takes what it may before it collects garbage, so it
may take 128 MiB here (PIPELINE_JAVA_HEAP); by itself it takes up to a quarter of the machine's.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

PASSAGES = 20_000
SEED = 11
BOUND = 40  # MiB that a stage of ours may take more over four times the topics
HEAP = "128m"
RIVAL = """
import sys, pytrec_eval
with open(sys.argv[1]) as qrels, open(sys.argv[2]) as run:
    qrel, found = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
print(len(pytrec_eval.RelevanceEvaluator(qrel, {"ndcg_cut_10"}).evaluate(found)))
"""


def write_input(folder: Path, counts: list[int]) -> None:
    """Write a collection, judgements, and topics of both sizes, all drawn by one seed."""
    draw = random.Random(SEED)
    words = [f"w{number}" for number in range(3_000)]
    with (folder / "collection.jsonl").open("w") as out:
        for number in range(PASSAGES):
            text = " ".join(draw.choices(words, k=40))
            out.write(f'{{"id": "d{number}", "contents": "{text}"}}\n')
    queries = [f"q{n}\t{' '.join(draw.choices(words, k=6))}\n" for n in range(max(counts))]
    for count in counts:
        (folder / f"{count}.tsv").write_text("".join(queries[:count]))
        with (folder / f"{count}.qrels").open("w") as out:
            for topic in range(count):
                for passage in draw.sample(range(PASSAGES), 20):
                    out.write(f"q{topic} 0 d{passage} {passage % 3}\n")


def peak(command: list[str], folder: Path) -> float:
    """Run a process to its end and return its peak memory in MiB."""
    environment = os.environ | {"PIPELINE_JAVA_HEAP": HEAP}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}")
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return used.ru_maxrss / unit


def stages(count: int, depth: int) -> dict[str, list[str]]:
    """The commands for so many topics, in their order."""
    first, second, topics, qrels = (f"{count}.{end}" for end in ("1", "2", "tsv", "qrels"))
    given = {
        "retrieve": ["--index", "index", "--topics", topics, "--hits", str(depth), "-o", first],
        "rerank": [
            "--run", first, "--topics", topics, "--index", "index", "--model", "overlap",
            "--output", second,
        ],
        "fuse": [first, second, "--output", f"{count}.3"],
        "lint": [second],
        "evaluate": [qrels, second],
    }  # fmt: skip
    pipeline = [sys.executable, "-m", "pipeline"]
    ours = {name: [*pipeline, name, *arguments] for name, arguments in given.items()}
    return ours | {"pytrec_eval": [sys.executable, "-c", RIVAL, qrels, second]}


def main() -> int:
    """Print the table; 1 if memory grows with the topics."""
    topics, depth, fewer = map(
        int, [*sys.argv[1:], *(["2000", "1000", "500"])[len(sys.argv) - 1 :]]
    )
    table: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as scratch:
        folder = Path(scratch)
        write_input(folder, [fewer, topics])
        indexing = ["index", "--collection", "collection.jsonl", "--index", "index"]
        whole = peak([sys.executable, "-m", "pipeline", *indexing], folder)
        for count in (fewer, topics):
            for label, command in stages(count, depth).items():
                table.setdefault(label, []).append(peak(command, folder))
    print(f"peak memory in MiB, {depth:,} candidates a topic, Java's heap {HEAP}\n")
    print(f"index of {PASSAGES:,} passages: {whole:,.0f}\n")
    print(f"{'topics':12}{fewer:>8,}{topics:>8,}{'more':>8}")
    for label, (few, many) in table.items():
        print(f"{label:12}{few:8,.0f}{many:8,.0f}{many - few:8,.0f}")
    growth = max(many - few for label, (few, many) in table.items() if label != "pytrec_eval")
    times = topics / fewer
    print(
        f"\nours grow by at most {growth:.0f} MiB over {times:g} times the topics (bound {BOUND})"
    )
    print(f"evaluate beside pytrec_eval: {table['evaluate'][-1] / table['pytrec_eval'][-1]:.2f}")
    return int(growth > BOUND)


if __name__ == "__main__":
    sys.exit(main())
