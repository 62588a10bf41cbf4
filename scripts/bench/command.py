"""How much of the engine's rate the whole `pipeline rerank` command reaches.

usage: [PIPELINE_COLLECTIONS=FOLDER] python scripts/bench/command.py [TOPICS] [REPEATS] [THREADS]
                                                                     [MODEL] [DEPTH]

TOPICS (2,000) of the MS MARCO pool, then of the other collections there, with their DEPTH (100)
best passages of the pool by BM25; without the pool topics of the demo with passages of the demo,
drawn by a fixed seed. The engine is `Reranker.load(...).score_each`, topic by topic, over texts
that are in memory and were met by no tokenizer, timed after it was loaded and warm. The command
reads run, topics and index, looks the texts up, scores, keeps parts, joins and commits, and is
timed from the start of Python to its end; without its start it is shown as well: the rate that its
sidecar has, from the first topic's begin to the last one's end. Each is a process of its own, in
turn, the other one first in every second repeat; all repeats are shown, and ratios are those of
neighbours.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import pipeline.demo
from pipeline.candidates import Candidates
from pipeline.demo.docstrings import passages
from pipeline.index import IndexSettings, index
from pipeline.lucene import Index
from pipeline.retrieve import RetrieveSettings, retrieve
from pipeline.topics import read_topics

SEED = 7
AIM = 0.85
ENGINE = """
import json, sys, time
from pipeline.models.reranker import Reranker
file, model, threads = sys.argv[1:]
with open(file) as lines:
    topics = [json.loads(line) for line in lines]
reranker = Reranker.load(model, threads=int(threads))
reranker.score("warm up", ["a few words " * n for n in range(1, 24)])
began = time.perf_counter()
for _ in reranker.score_each(topics):
    pass
print(time.perf_counter() - began)
"""


class Rates(NamedTuple):
    """Pairs a second of one repeat."""

    engine: float
    command: float  # its start and end included
    work: float  # from the first topic's begin to the last one's end


def lay_out(folder: Path, topics: int, depth: int) -> None:
    """Write an index, topics and a run, and the same texts for the engine."""
    collections = Path(os.environ.get("PIPELINE_COLLECTIONS", ""))
    corpus, names = collections / "msmarco-pool" / "corpus.jsonl.gz", folder / "topics.tsv"
    real = corpus.exists()
    if real:
        files = sorted(
            collections.glob("*/topics.*.tsv"), key=lambda f: (f.parent != corpus.parent, f)
        )
        queries = chain.from_iterable(read_topics(file).values() for file in files)
        chosen = list(islice(dict.fromkeys(queries), topics))
    else:
        draw = random.Random(SEED)
        known = sorted(read_topics(Path(pipeline.demo.__file__).parent / "topics.tsv").values())
        chosen = [draw.choice(known) for _ in range(topics)]
        corpus, texts = folder / "corpus.jsonl", list(passages())
        with corpus.open("w") as out:
            for docid, text in texts:
                out.write(json.dumps({"id": docid, "contents": text}) + "\n")
        with (folder / "bm25.run").open("w") as run:
            for qid in range(topics):
                for rank, (docid, _) in enumerate(draw.sample(texts, depth), 1):
                    run.write(f"{qid} Q0 {docid} {rank} {depth - rank} bench\n")
    names.write_text("".join(f"{qid}\t{query}\n" for qid, query in enumerate(chosen)))
    index(IndexSettings(corpus, folder / "index"))
    if real:
        retrieve(RetrieveSettings(names, folder / "index", folder / "bm25.run", hits=depth))
    with (
        Index(folder / "index") as opened,
        tempfile.TemporaryFile() as scratch,
        (folder / "pairs.jsonl").open("w") as out,
    ):
        candidates = Candidates(folder / "bm25.run", None, scratch)
        for qid in candidates.qids:
            texts_of = opened.texts(doc.docid for doc in candidates.ranking(qid).docs)
            out.write(json.dumps([chosen[int(qid)], texts_of]) + "\n")


def engine(folder: Path, model: str, threads: int) -> float:
    """Score everything; seconds."""
    command = [sys.executable, "-c", ENGINE, str(folder / "pairs.jsonl"), model, str(threads)]
    return float(subprocess.check_output(command, text=True))


def command(folder: Path, model: str, threads: int) -> tuple[float, dict[str, float]]:
    """Run the command; seconds from start to end, and what its sidecar says it cost."""
    given = [
        "--run", "bm25.run", "--topics", "topics.tsv", "--index", "index", "--model", model,
        "--threads", str(threads), "--output", "x.run", "--force", "--quiet",
    ]  # fmt: skip
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipeline", "rerank", *given], cwd=folder, check=True)
    seconds = time.perf_counter() - began
    return seconds, json.loads((folder / "x.run.json").read_text())["pace"]


def shown(label: str, values: list[float], form: str) -> str:
    """One line: the median, and all."""
    each = " ".join(form.format(value) for value in values)
    return f"{label:36} {form.format(statistics.median(values))}   all: {each}"


def main() -> int:
    """Print the table; 1 if the command stays below the aim."""
    given = [*sys.argv[1:], *("2000", "3", "0", "small", "100")[len(sys.argv) - 1 :]]
    topics, repeats, threads, model, depth = *map(int, given[:3]), given[3], int(given[4])
    rates: list[Rates] = []
    with tempfile.TemporaryDirectory(prefix="bench-command-") as name:
        folder = Path(name)
        lay_out(folder, topics, depth)
        with (folder / "bm25.run").open() as lines:
            pairs = sum(1 for _ in lines)
        for repeat in range(repeats):
            alone = engine(folder, model, threads) if repeat % 2 == 0 else 0.0
            whole, pace = command(folder, model, threads)
            alone = alone or engine(folder, model, threads)
            rates.append(Rates(pairs / alone, pairs / whole, pace["pairs_per_second"]))
    print(f"{topics:,} topics, {pairs:,} pairs, {model}, threads: {threads or 'all'}")
    print(shown("engine, pairs/s", [rate.engine for rate in rates], "{:,.0f}"))
    print(shown("command, pairs/s", [rate.command for rate in rates], "{:,.0f}"))
    print(shown("command less its start, pairs/s", [rate.work for rate in rates], "{:,.0f}"))
    whole_ratios = [rate.command / rate.engine for rate in rates]
    print(shown("command beside engine", whole_ratios, "{:.1%}"))
    print(shown("less its start", [rate.work / rate.engine for rate in rates], "{:.1%}"))
    return int(statistics.median(whole_ratios) < AIM)


if __name__ == "__main__":
    sys.exit(main())
