"""Parts per second against the number of workers, beside one process without any.

usage: python scripts/bench/executor.py [MODEL] [TOPICS] [DEPTH] [REPEATS]

The same candidates are reranked by one process and by 1, 2, ... workers of a Ray that is started
here, each with one thread; in turn, all repeats shown. Rates are of the work alone: what starting
takes, of which there is one however long the work, is in a column of its own. The overhead of one
worker against one process is the price of handing parts to another process.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pipeline.demo
from pipeline.demo.docstrings import passages
from pipeline.machine import cpus
from pipeline.topics import read_topics

SEED = 7


def lay_out(folder: Path, topics: int, depth: int) -> None:
    """Topics of the demo, each with passages of the demo, drawn by a fixed seed."""
    draw = random.Random(SEED)
    texts = list(passages())
    known = read_topics(Path(pipeline.demo.__file__).parent / "topics.tsv")
    with (folder / "corpus.jsonl").open("w") as out:
        for docid, text in texts:
            out.write(json.dumps({"id": docid, "contents": text}) + "\n")
    with (folder / "topics.tsv").open("w") as out, (folder / "bm25.run").open("w") as run:
        for number in range(topics):
            out.write(f"{number}\t{draw.choice(sorted(known.values()))}\n")
            for rank, (docid, _) in enumerate(draw.sample(texts, depth), 1):
                run.write(f"{number} Q0 {docid} {rank} {9999 - rank} bm25\n")


def rerank(folder: Path, model: str, workers: int) -> tuple[float, float, bytes]:
    """Run the command; (seconds of the work, seconds of everything, the run)."""
    more = ["--executor", "ray", "--workers", str(workers)] if workers else []
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "rerank", "--run", "bm25.run", "--topics", "topics.tsv",
         "--collection", "corpus.jsonl", "--model", model, "--output", "x.run", "--threads", "1",
         "--force", "--json", *more],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    whole = time.monotonic() - began
    if done.returncode:
        sys.exit(done.stderr)
    parts = sorted((folder / "x.run.parts").glob("*.part"), key=lambda p: p.stat().st_mtime_ns)
    first, last = parts[0].stat().st_mtime_ns, parts[-1].stat().st_mtime_ns
    share = (len(parts) - 1) / len(parts)  # the first part ends where the clock starts
    return (last - first) / 1e9 / share, whole, (folder / "x.run").read_bytes()


def main() -> None:
    given = sys.argv[1:]
    model = given[0] if given else "small"
    topics, depth, repeats = (int(n) for n in [*given[1:], *("60", "40", "3")[len(given[1:]) :]])
    counts = [0, *range(1, cpus() + 1)]
    work: dict[int, list[float]] = {count: [] for count in counts}
    starting: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder, topics, depth)
        runs = set()
        for _ in range(repeats):
            for count in counts:
                seconds, whole, run = rerank(folder, model, count)
                work[count].append(topics / seconds)
                starting[count].append(whole - seconds)
                runs.add(run)
        if len(runs) > 1:
            sys.exit("the runs differ")
    print(f"{topics} parts of {depth} pairs, {model}, {cpus()} processors")
    for count in counts:
        label = f"{count} workers" if count else "one process"
        best = max(work[count])
        each = " ".join(f"{rate:.2f}" for rate in work[count])
        print(
            f"{label:12} {best:7.2f} parts/s   all: {each}   starting {min(starting[count]):.1f} s"
        )
    print(f"overhead of one worker: {max(work[0]) / max(work[1]) - 1:+.1%}")


if __name__ == "__main__":
    main()
