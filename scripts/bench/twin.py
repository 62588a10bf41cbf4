"""What 1,000 candidates cost from cached vectors, beside the query's encoding and plain arrays.

usage: python scripts/bench/twin.py MODEL [REPEATS] [COUNT...]

MODEL is a folder of two towers. For each COUNT (41,000 and 2,000,000) a folder of vectors is laid
out as `pipeline encode` writes it: random ones of length 1 in float16 (1.5 GB for two million of
384 numbers), removed at the end. Then, in turns, all repeats shown, for topics of 1,000 random
candidates:

  by docid      rows looked up by docid, gathered and crossed, as `rerank --vectors` does where the
                vectors were made of the index that is given;
  by text       the same by the digest of each text, as it does elsewhere;
  numpy         a dictionary of docids and one float32 array in memory: `array[rows] @ query`;
  cos_sim       the same with sentence-transformers' util.cos_sim;
  query ...     the query's encoding: alone, as one of 32 that are known, by SentenceTransformer;
  the command   what one more topic costs `pipeline rerank --vectors` from run file to run file,
                the query's encoding included: twice as many topics, less as many.

Times are milliseconds a topic, first of the processor, then on the clock, which other programs
share; one thread.
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import pipeline.demo
from pipeline.collection import digest
from pipeline.machine import name
from pipeline.models.reranker import load_towers
from pipeline.models.scorer import Limits, Wishes
from pipeline.models.towers import Towers
from pipeline.store import digest_text
from pipeline.topics import read_topics
from pipeline.vectors import PassageVectors

SEED = 7
TOPICS, DEPTH = 20, 1000
WHOLE = 100  # topics of the command, and as many again
BLOCK = 1 << 14
WORDS = ("a passage of some length, about as long as those that people search in; " * 5)[:330]
Times = dict[str, list[tuple[float, float]]]


def text(row: int) -> str:
    """Text of a row."""
    return f"{row} {WORDS}"


def lay_out(folder: Path, count: int, model: Towers, corpus: Path) -> None:
    """Write a folder of vectors."""
    draw = np.random.default_rng(SEED)
    folder.mkdir()
    with (
        (folder / "vectors.bin").open("wb") as vectors,
        (folder / "keys.bin").open("wb") as keys,
        (folder / "docids.txt").open("w") as docids,
    ):
        for start in range(0, count, BLOCK):
            rows = range(start, min(start + BLOCK, count))
            some = draw.standard_normal((len(rows), model.size), np.float32)
            some /= np.linalg.norm(some, axis=1, keepdims=True)
            vectors.write(some.astype(np.float16).tobytes())
            keys.write(b"".join(digest_text(text(row)) for row in rows))
            docids.write("".join(f"doc{row}\n" for row in rows))
    (folder / "scales.bin").write_bytes(b"")
    about = {
        "schema": 1, "model": model.digest, "limits": dict(model.limits), "dtype": "fp16",
        "size": model.size, "count": count, "content": f"{count}", "texts": digest(corpus),
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about))


def timed(times: Times, label: str, topics: int, run: Callable[[], object]) -> None:
    """Add milliseconds a topic: of the processor, and on the clock."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    times.setdefault(label, []).append(
        (
            1e3 * (time.process_time() - processor) / topics,
            1e3 * (time.perf_counter() - clock) / topics,
        )
    )


class Contest:
    """The same topics, candidates and vectors for everybody."""

    def __init__(self, folder: Path, count: int, model: Towers, queries: list[str]) -> None:
        from sentence_transformers import util

        self._cos_sim = util.cos_sim
        draw = random.Random(SEED)
        self._rows = [[draw.randrange(count) for _ in range(DEPTH)] for _ in range(TOPICS)]
        self._docids = [[f"doc{row}" for row in rows] for rows in self._rows]
        self._texts = [[text(row) for row in rows] for rows in self._rows]
        self._nothing = [""] * DEPTH
        self._queries, self._model = queries[:TOPICS], model
        began = time.perf_counter()
        self._found = PassageVectors(folder)
        self._found.rows(["doc0"])
        self.opening = time.perf_counter() - began
        model.use_vectors(self._found)
        model.foresee_queries(self._queries)
        self._vectors = model.encode(self._queries, queries=True)
        self._place = {docid: row for row, docid in enumerate(self._found.docids())}
        self._array = np.empty((count, model.size), np.float32)
        for start in range(0, count, BLOCK):
            self._array[start : start + BLOCK] = self._found[slice(start, start + BLOCK)]

    def by_docid(self) -> list[np.ndarray]:
        """Ours, as the stage does it."""
        return [
            self._model.score_rows(query, self._found.rows(docids), self._nothing).scores
            for query, docids in zip(self._queries, self._docids, strict=True)
        ]

    def by_text(self) -> list[np.ndarray]:
        """Ours, where docids say nothing."""
        return [
            self._model.score(query, texts).scores
            for query, texts in zip(self._queries, self._texts, strict=True)
        ]

    def numpy(self) -> list[np.ndarray]:
        """A dictionary and an array."""
        return [
            self._array[[self._place[docid] for docid in docids]] @ query
            for query, docids in zip(self._vectors, self._docids, strict=True)
        ]

    def cos_sim(self) -> list[np.ndarray]:
        """The same, and sentence-transformers' function."""
        return [
            self._cos_sim(query, self._array[[self._place[docid] for docid in docids]])[0].numpy()
            for query, docids in zip(self._vectors, self._docids, strict=True)
        ]


def command(
    scratch: Path, vectors: Path, model: str, queries: list[str], count: int
) -> list[float]:
    """Milliseconds of one more topic of the command: (of the processor, on the clock)."""
    draw = random.Random(SEED)
    seconds = []
    for topics in (WHOLE, 2 * WHOLE):
        with (scratch / "topics.tsv").open("w") as out, (scratch / "a.run").open("w") as run:
            for number in range(topics):
                out.write(f"{number}\t{queries[number % len(queries)]} {number}\n")
                for rank, row in enumerate(draw.sample(range(count), DEPTH), 1):
                    run.write(f"{number} Q0 doc{row} {rank} {9999 - rank} x\n")
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "rerank", "--run", "a.run", "--topics", "topics.tsv",
             "--collection", "corpus.jsonl", "--vectors", str(vectors), "--model", model,
             "--output", "b.run", "--threads", "1", "--force"],
            cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds.append((used, time.perf_counter() - clock))
    return [1e3 * (twice - once) / WHOLE for once, twice in zip(*seconds, strict=True)]


def main() -> int:
    """Print the tables; 1 if the scores are not those of plain arrays."""
    from sentence_transformers import SentenceTransformer

    folder = str(Path(sys.argv[1]).absolute())
    repeats, *counts = (
        int(n) for n in [*sys.argv[2:], *("5", "41000", "2000000")[len(sys.argv) - 2 :]]
    )
    torch.set_num_threads(1)
    queries = sorted(read_topics(Path(pipeline.demo.__file__).parent / "topics.tsv").values())
    model = load_towers(folder, Wishes("cpu", threads=1), Limits())
    theirs = SentenceTransformer(folder, device="cpu")
    print(f"{Path(folder).name}, {model.size} numbers in float16, {name()}, one thread")
    times: Times = {}
    wrong = 0.0
    some = queries[:32]
    for _ in range(repeats):
        one = load_towers(folder, Wishes("cpu", threads=1), Limits())
        timed(
            times,
            "query alone",
            8,
            lambda one=one: [one.encode([q], queries=True) for q in some[:8]],
        )
        timed(times, "query of 32", 32, lambda one=one: one.encode(some, queries=True))
        timed(times, "query, theirs", 8, lambda: [theirs.encode([q]) for q in some[:8]])
    show(times)
    for count in counts:
        with tempfile.TemporaryDirectory() as given:
            scratch = Path(given)
            (scratch / "corpus.jsonl").write_text('{"id": "x", "contents": "x"}\n')
            lay_out(scratch / "v", count, model, scratch / "corpus.jsonl")
            contest = Contest(scratch / "v", count, model, queries)
            times = {}
            runs = {"by docid": contest.by_docid, "by text": contest.by_text,
                    "numpy": contest.numpy, "cos_sim": contest.cos_sim}  # fmt: skip
            scores = {label: np.array(run()) for label, run in runs.items()}  # warms up, too
            for _ in range(repeats):
                for label, run in runs.items():
                    timed(times, label, TOPICS, run)
                more = command(scratch, scratch / "v", folder, queries, count)
                times.setdefault("the command", []).append((more[0], more[1]))
            wrong = max(wrong, *(float(np.abs(s - scores["numpy"]).max()) for s in scores.values()))
            print(f"{count:,} vectors; docids read in {contest.opening:.2f} s")
            show(times)
            del contest
    print(f"largest difference of scores: {wrong:.1e}")
    return int(wrong > 1e-4)  # cos_sim makes up for the rounding of lengths to float16


def show(times: Times) -> None:
    """Print a line for each label."""
    for label, found in times.items():
        of_processor, clock = (statistics.median(column) for column in zip(*found, strict=True))
        each = " ".join(f"{a:.2f}/{b:.2f}" for a, b in found)
        print(f"  {label:14} {of_processor:7.2f} ms {clock:7.2f} on the clock   all: {each}")


if __name__ == "__main__":
    sys.exit(main())
