"""How long `pipeline --help` takes, beside an empty Python and an empty Typer program.

usage: python scripts/bench/startup.py [REPEATS]

The aim is a quarter of a second. Every repeat is shown, because a mean hides a busy machine; the
seconds of CPU say what is left of it on a quiet one.
"""

import resource
import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "transformers", "pandas", "numpy", "jnius", "pyserini", "ir_measures")
AIM = 0.25  # seconds
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "pipeline --version": ["-m", "pipeline", "--version"],
    "pipeline --help": ["-m", "pipeline", "--help"],
    "pipeline rerank --help": ["-m", "pipeline", "rerank", "--help"],
}


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Run Python once, from start to end; seconds on the clock, seconds of CPU."""
    cpu = cpu_of_children()
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, cpu_of_children() - cpu


def cpu_of_children() -> float:
    """CPU seconds of all that ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def heavy_modules() -> list[str]:
    """Which of the big libraries does the start load? None should be."""
    program = (
        "import sys, pipeline.cli.main\n"
        f"print(*sorted(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def main() -> int:
    """Print the table; 1 if the aim is missed by the best repeat."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):  # in turn, so that a busy moment hits all
        for name, arguments in COMMANDS.items():
            taken[name].append(seconds(arguments))
    for name, pairs in taken.items():
        clock, cpu = [wall for wall, _ in pairs], min(cpu for _, cpu in pairs)
        each = " ".join(f"{1000 * t:.0f}" for t in clock)
        middle = statistics.median(clock)
        print(
            f"{name:24}  best {min(clock):.3f} s  median {middle:.3f} s  CPU {cpu:.3f} s  "
            f"all (ms): {each}"
        )
    print(f"heavy modules loaded at start: {' '.join(heavy_modules()) or 'none'}")
    return int(min(taken["pipeline --help"])[0] > AIM)


if __name__ == "__main__":
    sys.exit(main())
