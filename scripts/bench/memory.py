"""How much memory `rerank` and `evaluate` take as topics grow, beside pytrec_eval.

usage: python scripts/bench/memory.py [TOPICS] [DEPTH]

A synthetic run of TOPICS (2,000) x DEPTH (1,000) candidates, and its first quarter and half. The
scorer counts shared words, so that what is measured is the pipeline and not a model. Every figure
is the peak of one process that did nothing else, its Python and libraries included.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

PASSAGES = 20_000
SEED = 11
BOUND = 40  # MiB that ours may take more over four times the topics
RIVAL = """
import sys, pytrec_eval
with open(sys.argv[1]) as qrels, open(sys.argv[2]) as run:
    qrel, found = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
print(len(pytrec_eval.RelevanceEvaluator(qrel, {"ndcg_cut_10"}).evaluate(found)))
"""


def write_input(folder: Path, topics: int, depth: int) -> None:
    """Write a collection, topics, judgements and a run, all drawn by one seed."""
    draw = random.Random(SEED)
    words = [f"w{number}" for number in range(3_000)]
    with (folder / "collection.jsonl").open("w") as out:
        for number in range(PASSAGES):
            text = " ".join(draw.choices(words, k=40))
            out.write(f'{{"id": "d{number}", "contents": "{text}"}}\n')
    with (
        (folder / "topics.tsv").open("w") as queries,
        (folder / "qrels.txt").open("w") as judgements,
        (folder / "bm25.run").open("w") as run,
    ):
        for topic in range(topics):
            queries.write(f"q{topic}\t{' '.join(draw.choices(words, k=6))}\n")
            for rank, passage in enumerate(draw.sample(range(PASSAGES), depth), 1):
                run.write(f"q{topic} Q0 d{passage} {rank} {depth - rank} bm25\n")
                if rank % 50 == 1:
                    judgements.write(f"q{topic} 0 d{passage} {rank % 3}\n")


def peak(command: list[str]) -> float:
    """Run a process to its end and return its peak memory in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}")
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return used.ru_maxrss / unit


def main() -> int:
    """Print the table; 1 if memory grows with the topics."""
    topics, depth = map(int, [*sys.argv[1:], *(["2000", "1000"])[len(sys.argv) - 1 :]])
    pipeline = [sys.executable, "-m", "pipeline"]
    table: dict[str, list[float]] = {}
    counts = [topics // 4, topics // 2, topics]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_input(folder, topics, depth)
        lines = (folder / "bm25.run").read_text().splitlines(keepends=True)
        for count in counts:
            run, output = folder / f"{count}.run", folder / f"{count}.reranked.run"
            run.write_text("".join(lines[: count * depth]))
            rerank = [
                *pipeline, "rerank", "-q", "--run", str(run), "--topics",
                str(folder / "topics.tsv"), "--collection", str(folder / "collection.jsonl"),
                "--model", "overlap", "--output", str(output),
            ]  # fmt: skip
            qrels = str(folder / "qrels.txt")
            for label, command in (
                ("rerank", rerank),
                ("evaluate", [*pipeline, "evaluate", "-q", qrels, str(output)]),
                ("pytrec_eval", [sys.executable, "-c", RIVAL, qrels, str(output)]),
            ):
                table.setdefault(label, []).append(peak(command))
    print(f"peak memory in MiB, {depth:,} candidates a topic, {PASSAGES:,} passages\n")
    print(f"{'topics':12}" + "".join(f"{count:>8,}" for count in counts))
    for label, peaks in table.items():
        print(f"{label:12}" + "".join(f"{mib:8,.0f}" for mib in peaks))
    growth = max(peaks[-1] - peaks[0] for label, peaks in table.items() if label != "pytrec_eval")
    print(f"\nours grow by at most {growth:.0f} MiB over four times the topics (bound {BOUND})")
    print(f"evaluate beside pytrec_eval: {table['evaluate'][-1] / table['pytrec_eval'][-1]:.2f}")
    return int(growth > BOUND)


if __name__ == "__main__":
    sys.exit(main())
