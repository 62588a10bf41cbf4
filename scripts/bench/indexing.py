"""How long indexing takes, beside Anserini's own IndexCollection on the same passages and threads.

usage: PIPELINE_COLLECTIONS=FOLDER python scripts/bench/indexing.py [REPEATS] [COPIES]

All collections of the folder are put together, once as one large file and once cut into eight, and
`COPIES` times over. Every program starts anew, its own start included, in turn, so that a busy
moment hits all. Anserini reads one file with one thread; its documentation says to cut large ones.
Both indexes keep the text; at the end the same topics are searched in both and compared.
"""

import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import java, machine
from pipeline.bm25 import BM25, Searcher
from pipeline.lucene import Index

FILES = 8
TOPICS = 200
OURS = """
import sys
from pathlib import Path
from pipeline.index import IndexSettings, index
source, output, threads = sys.argv[1:]
index(IndexSettings(Path(source), Path(output), threads=int(threads)))
"""


def passages(folder: Path, copies: int) -> Iterator[str]:
    """Records of all collections, under ids that stay different."""
    for copy in range(copies):
        for file in sorted(folder.glob("*/corpus.jsonl.gz")):
            with gzip.open(file, "rt", encoding="utf-8") as source:
                for line in source:
                    record = json.loads(line)
                    docid = f"{copy}-{file.parent.name}-{record['id']}"
                    yield json.dumps({"id": docid, "contents": record["contents"]}) + "\n"


def prepare(folder: Path, work: Path, copies: int) -> int:
    """Write the input as one file, and as several; return the number of passages."""
    one, many = work / "one", work / "many"
    one.mkdir()
    many.mkdir()
    count = 0
    outputs = [(many / f"{n}.jsonl").open("w", encoding="utf-8") for n in range(FILES)]
    with (one / "all.jsonl").open("w", encoding="utf-8") as whole:
        for count, record in enumerate(passages(folder, copies), 1):
            whole.write(record)
            outputs[count * FILES // 10_000 % FILES].write(record)
    for output in outputs:
        output.close()
    return count


def anserini(source: Path, output: Path, threads: int) -> list[str]:
    """The command that the documentation of Anserini gives, the text stored."""
    return [
        str(java.home() / "bin" / "java"), "-cp", str(java.jar()),
        "io.anserini.index.IndexCollection", "-collection", "JsonCollection",
        "-input", str(source), "-index", str(output), "-generator",
        "DefaultLuceneDocumentGenerator", "-threads", str(threads), "-storeRaw",
    ]  # fmt: skip


def ours(source: Path, output: Path, threads: int) -> list[str]:
    """The index stage, checks and digests included, in a new Python."""
    return [sys.executable, "-c", OURS, str(source), str(output), str(threads)]


def seconds(command: list[str], output: Path) -> float:
    """Run one of them from start to end, into a folder that is not there."""
    shutil.rmtree(output, ignore_errors=True)
    output.with_name(output.name + ".json").unlink(missing_ok=True)
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def same_results(first: Path, second: Path, folder: Path) -> tuple[int, int]:
    """Search topics of every collection in both indexes; (topics with equal hits, topics)."""
    topics = []
    for file in sorted(folder.glob("*/topics.*.tsv")):
        rows = file.read_text(encoding="utf-8").splitlines()
        topics += [row.partition("\t")[2] for row in rows[:20]]
    topics = topics[:TOPICS]
    with Index(first) as one, Index(second) as other:
        found = [Searcher(index, BM25(hits=100)).search(topics) for index in (one, other)]
    return sum(a == b for a, b in zip(*found, strict=True)), len(topics)


def compared(ours: list[float], theirs: list[float], what: str) -> float:
    """Print the ratio of the medians, and the ratios of the turns; return the first."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    turns = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    spread = f"in a turn {min(turns):.2f} to {max(turns):.2f}"
    print(f"ratio, {what}: {ratio:.2f} ({spread}, their median {statistics.median(turns):.2f})")
    return ratio


def main() -> int:
    """Print the table; 1 if ours takes more than 1.2 times as long on one large file."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    copies = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    folder = Path(os.environ["PIPELINE_COLLECTIONS"])
    threads = machine.cpus()
    with tempfile.TemporaryDirectory(prefix="bench-indexing-") as place:
        work = Path(place)
        count = prepare(folder, work, copies)
        one, many = work / "one", work / "many"
        runs = {
            "ours, one file": (ours, one, threads),
            "Anserini, one file": (anserini, one, threads),
            "Anserini, one file, its default of 4 threads": (anserini, one, 4),
            f"ours, {FILES} files": (ours, many, threads),
            f"Anserini, {FILES} files": (anserini, many, threads),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for number, (name, (command, source, with_threads)) in enumerate(runs.items()):
                output = work / f"index{number}"
                taken[name].append(seconds(command(source, output, with_threads), output))
        print(
            f"{count:,} passages, {threads} threads, {repeats} repeats, seconds from start to end"
        )
        for name, times in taken.items():
            middle = statistics.median(times)
            each = " ".join(f"{t:.1f}" for t in times)
            print(f"{name:46} median {middle:5.1f}  {count / middle:7,.0f}/s  all: {each}")
        ratio = compared(taken["ours, one file"], taken["Anserini, one file"], "one large file")
        many = [taken[f"{name}, {FILES} files"] for name in ("ours", "Anserini")]
        many_ratio = compared(*many, f"{FILES} files")
        equal, topics = same_results(work / "index0", work / "index1", folder)
        print(f"hits and scores equal in both indexes: {equal} of {topics} topics")
    return int(ratio > 1.2 or many_ratio > 1.2 or equal < topics)


if __name__ == "__main__":
    sys.exit(main())
