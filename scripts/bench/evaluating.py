"""How long `pipeline evaluate` and `pipeline lint` take beside pytrec_eval, and their memory.

usage: python scripts/bench/evaluating.py [TOPICS] [REPEATS] [DOCUMENTS A TOPIC]

Three runs are written: falling scores; scores of two decimals, so that most topics have ties; lines
in no order of score. One judged document a topic, as MS MARCO has. Each program starts anew and
takes its turn, so that a busy moment hits all. pytrec_eval reads run and judgements with its own
readers and computes the same measures, less Judged@10, which it lacks; `parse` only reads. Shown
are seconds on the clock and of the processors, start included, of every turn; ratios are those of
neighbours in turn: median, least, most.
"""

import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

OURS = "import sys; sys.argv[0] = 'pipeline'; from pipeline.cli.main import main; main()"
PARSE = """
import sys, pytrec_eval
with open(sys.argv[1]) as file:
    run = pytrec_eval.parse_run(file)
"""
THEIRS = f"""{PARSE}
with open(sys.argv[2]) as file:
    qrels = pytrec_eval.parse_qrel(file)
names = {{"ndcg_cut.10", "recip_rank", "map", "recall.1000"}}
found = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
print(sum(values["ndcg_cut_10"] for values in found.values()) / len(qrels))
"""
MEASURE = """
import resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
clock = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(clock, used.ru_utime + used.ru_stime, used.ru_maxrss, code)
"""
KIB = 1 if sys.platform.startswith("linux") else 1024


def write(folder: Path, topics: int, documents: int, kind: str) -> tuple[str, str]:
    """A run as of MS MARCO, and its judgements."""
    chance = random.Random(7)
    form = "{:.2f}" if kind == "ties" else "{:.6f}"
    with (folder / "run").open("w") as run, (folder / "qrels").open("w") as qrels:
        for qid in range(1_000_000, 1_000_000 + topics):
            scores = [30.0 - 20 * chance.random() for _ in range(documents)]
            if kind != "unordered":
                scores.sort(reverse=True)
            docids = chance.sample(range(8_841_823), documents)
            run.writelines(
                f"{qid} Q0 {docid} {rank} {form.format(score)} bench\n"
                for rank, (docid, score) in enumerate(zip(docids, scores, strict=True), 1)
            )
            place = int(chance.expovariate(1 / 30))
            qrels.write(f"{qid} 0 {docids[place % documents]} 1\n")
    return str(folder / "run"), str(folder / "qrels")


class Cost(NamedTuple):
    """Of a new Python, its start included."""

    clock: float  # seconds
    processors: float  # seconds
    mib: int


def measured(code: str, *arguments: str) -> Cost:
    """Run a program and wait for it."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-c", code, *arguments]
    clock, used, kib, status = subprocess.check_output(command, text=True).split()
    if status != "0":
        sys.exit(f"exit code {status}: {' '.join(arguments)}")
    return Cost(float(clock), float(used), int(kib) // KIB // 1024)


def ratio(rival: list[float], ours: list[float]) -> str:
    """Median, least and most of neighbours."""
    each = [a / b for a, b in zip(rival, ours, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def main() -> None:
    """Write the runs, measure, print."""
    given = [*map(int, sys.argv[1:])]
    topics, repeats, documents = [*given, *(6980, 3, 1000)[len(given) :]]
    for kind in ("falling", "ties", "unordered"):
        with tempfile.TemporaryDirectory() as folder:
            run, qrels = write(Path(folder), topics, documents, kind)
            size = Path(run).stat().st_size / 2**20
            print(f"{kind}: {topics:,} topics of {documents:,} documents, {size:,.0f} MiB")
            turns = {
                "pytrec_eval, parse": (PARSE, run),
                "pytrec_eval, parse and evaluate": (THEIRS, run, qrels),
                "pipeline evaluate": (OURS, "evaluate", qrels, run),
                "pipeline lint": (OURS, "lint", run),
            }
            taken: dict[str, list[Cost]] = {name: [] for name in turns}
            for _ in range(repeats):
                for name, (code, *arguments) in turns.items():
                    taken[name].append(measured(code, *arguments))
        for name, each in taken.items():
            clock = " ".join(f"{cost.clock:.2f}" for cost in each)
            used = " ".join(f"{cost.processors:.2f}" for cost in each)
            memory = max(cost.mib for cost in each)
            print(f"  {name:32} {clock} s, of the processors {used} s, {memory:,} MiB")
        rival = taken["pytrec_eval, parse and evaluate"]
        for name in ("pipeline evaluate", "pipeline lint"):
            clock = ratio([c.clock for c in rival], [c.clock for c in taken[name]])
            used = ratio([c.processors for c in rival], [c.processors for c in taken[name]])
            print(f"  {name}: {clock} times as fast on the clock, {used} of the processors")


if __name__ == "__main__":
    main()
