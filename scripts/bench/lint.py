"""How long `pipeline lint` takes beside pytrec_eval reading the same run, and its memory.

usage: python scripts/bench/lint.py [LINES] [REPEATS] [DOCUMENTS A TOPIC]

Three runs are written: falling scores; scores of four digits, so that most topics have ties; and
lines in no order of score. Each program starts anew and takes its turn, so that a busy moment hits
all. pytrec_eval only reads (its `parse_run`); lint reads, checks and reports. Shown: every repeat,
the smallest processor time of each, their ratio, the largest memory.
"""

import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = "import sys; sys.argv[0] = 'pipeline'; from pipeline.cli.main import main; main()"
THEIRS = """
import sys, pytrec_eval
with open(sys.argv[1]) as run:
    pytrec_eval.parse_run(run)
"""
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, code)
"""
KIB = 1 if sys.platform.startswith("linux") else 1024


def write(path: Path, lines: int, documents: int, kind: str) -> None:
    """A run as of MS MARCO: numbers for documents, six decimals."""
    chance = random.Random(7)
    with path.open("w") as out:
        for topic in range(max(lines // documents, 1)):
            scores = [30.0 - 20 * chance.random() for _ in range(documents)]
            if kind != "unordered":
                scores.sort(reverse=True)
            form = "{:.2f}" if kind == "ties" else "{:.6f}"
            docids = chance.sample(range(8_841_823), documents)
            for rank, (docid, score) in enumerate(zip(docids, scores, strict=True), 1):
                out.write(f"{1_000_000 + topic} Q0 {docid} {rank} {form.format(score)} bench\n")


def measured(code: str, *arguments: str) -> tuple[float, int]:
    """Seconds of the processor and MiB of memory of a new Python, its start included."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-c", code, *arguments]
    seconds, kib, status = subprocess.check_output(command, text=True).split()
    if status != "0":
        sys.exit(f"exit code {status}: {' '.join(arguments)}")
    return float(seconds), int(kib) // KIB // 1024


def main() -> None:
    """Write the runs, measure, print."""
    lines, repeats, documents = [*map(int, sys.argv[1:]), *(700_000, 3, 1000)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        write(one := Path(folder) / "one.run", 1, 1, "falling")
        start = [
            min(measured(code, *arguments)[0] for _ in range(repeats))
            for code, *arguments in ((OURS, "lint", str(one)), (THEIRS, str(one)))
        ]
        print(f"{lines:,} lines; one line: lint {start[0]:.2f} s, pytrec_eval {start[1]:.2f} s")
        for kind in ("falling", "ties", "unordered"):
            path = Path(folder) / f"{kind}.run"
            write(path, lines, documents, kind)
            ours, theirs = [], []
            for _ in range(repeats):
                ours.append(measured(OURS, "lint", str(path)))
                theirs.append(measured(THEIRS, str(path)))
            print(f"{kind}, {path.stat().st_size / 2**20:,.0f} MiB")
            for name, each in (("lint", ours), ("pytrec_eval", theirs)):
                seconds = " ".join(f"{s:.2f}" for s, _ in each)
                print(f"  {name:12} {seconds} s, {max(m for _, m in each):,} MiB")
            best, rival = min(s for s, _ in ours), min(s for s, _ in theirs)
            whole, work = rival / best, (rival - start[1]) / (best - start[0])
            print(f"  lint is {whole:.2f} times as fast, {work:.2f} without the start of Python")
            path.unlink()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
