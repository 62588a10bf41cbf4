"""What a collection costs: rates measured on this machine, and a small model that carries them on.

usage: python scripts/scale_model.py measure SIZE... [--folder DIR]   writes docs/scale.json
       python scripts/scale_model.py predict [--topics 6980] [--depth 1000]   prints tables

`measure` builds indexes of synthetic passages (words drawn by Zipf's law, lengths like MS MARCO's),
searches them, scores pairs with the shipped student, and notes what each took. Times are of the
processor, over all threads, so that other work on the machine does not count; a whole core does one
second of it a second. `predict` fits the model to all sizes but the largest, says how far off it
was there, and carries it on to MS MARCO's collections and to a billion passages.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RATES = Path(__file__).resolve().parent.parent / "docs" / "scale.json"
WORDS = 56  # of a passage, on average
SPREAD = 0.45  # of the logarithm of a passage's length
EXPONENT = 1.07  # of Zipf's law
VOCABULARY = 20_000_000
QUERIES = 500
QUERY_WORDS = 6
HITS = 1000
PAIRS = 1500
BLOCK = 20_000  # passages made together
LOOKED_UP = 20_000  # texts
LINE = 46  # bytes of a run's line
COLLECTIONS = {
    "MS MARCO v1": 8_841_823,
    "MS MARCO v2": 138_364_198,
    "web scale": 1_000_000_000,
}


# ---------------------------------------------------------------- measuring


def ranks(choose: np.random.Generator, count: int) -> np.ndarray:
    """Draw words by the inverse of a power law's distribution, cut at the vocabulary."""
    power = 1 - EXPONENT
    top = VOCABULARY**power
    return ((1 + choose.random(count) * (top - 1)) ** (1 / power)).astype(np.int64)


def spelled(rank: int) -> str:
    """Spell a word; the ending makes words about as long as those of English."""
    return np.base_repr(rank, 36).lower() + "eo"


def write_passages(path: Path, count: int) -> int:
    """Write a collection; the number of its characters."""
    choose = np.random.default_rng(4)
    characters = 0
    with path.open("w", encoding="ascii") as out:
        for start in range(0, count, BLOCK):
            some = min(BLOCK, count - start)
            lengths = np.exp(choose.normal(math.log(WORDS) - SPREAD**2 / 2, SPREAD, some))
            ends = np.cumsum(np.maximum(lengths.astype(int), 5))
            words = [spelled(rank) for rank in ranks(choose, int(ends[-1]))]
            begin = 0
            for number, end in enumerate(ends.tolist()):
                text = " ".join(words[begin:end])
                characters += len(text)
                out.write(f'{{"id": "{start + number}", "contents": "{text}"}}\n')
                begin = end
    return characters


def write_topics(path: Path, count: int) -> None:
    """Queries of words that are neither among the fifty most frequent nor all rare."""
    choose = np.random.default_rng(5)
    with path.open("w", encoding="ascii") as out:
        for number in range(count):
            found: list[str] = []
            while len(found) < QUERY_WORDS:
                (rank,) = ranks(choose, 1)
                if 50 < rank < 200_000:
                    found.append(spelled(rank))
            out.write(f"{number}\t{' '.join(found)}\n")


def timed(work: Any) -> tuple[float, float, Any]:
    """Seconds of the processor, seconds on the clock, and what the work returned."""
    cpu, wall = time.process_time(), time.monotonic()
    result = work()
    return time.process_time() - cpu, time.monotonic() - wall, result


def measure_size(folder: Path, count: int) -> dict[str, float]:
    """Index so many passages and search them."""
    from pipeline import lucene
    from pipeline.index import IndexSettings, index
    from pipeline.retrieve import RetrieveSettings, search
    from pipeline.topics import read_topics

    corpus, place = folder / f"{count}.jsonl", folder / f"{count}.index"
    characters = write_passages(corpus, count)
    write_topics(folder / "topics.tsv", QUERIES)
    cpu, wall, _ = timed(lambda: index(IndexSettings(corpus, place)))
    size = sum(file.stat().st_size for file in place.iterdir())
    settings = RetrieveSettings(
        folder / "topics.tsv", place, folder / "never.run", hits=HITS, threads=1
    )
    topics = read_topics(folder / "topics.tsv")
    search(settings, topics)  # until Java has compiled what it will
    searching, search_wall, found = timed(lambda: search(settings, topics))
    lines = b"".join(found.values()).count(b"\n")
    choose = np.random.default_rng(6)
    docids = [str(number) for number in choose.choice(count, min(LOOKED_UP, count), replace=False)]
    with lucene.Index(place) as opened:
        opened.texts(docids[:100])
        looking, _, texts = timed(lambda: opened.texts(docids))
    corpus.unlink()
    return {
        "passages": count,
        "characters": characters,
        "index_bytes": size,
        "index_cpu_s": round(cpu, 2),
        "index_wall_s": round(wall, 2),
        "query_cpu_ms": round(1000 * searching / QUERIES, 3),
        "query_wall_ms": round(1000 * search_wall / QUERIES, 3),
        "hits": round(lines / QUERIES, 1),
        "texts_per_cpu_s": round(len(texts) / looking),
    }


def measure_pairs() -> dict[str, Any]:
    """Score pairs of the demo with the shipped student, one thread."""
    from pipeline.demo.docstrings import passages
    from pipeline.models.reranker import Reranker

    reranker = Reranker.load("small", threads=1)
    texts = [text for _, text in passages()][:PAIRS]
    reranker.score("how to read a csv file", texts[:64])
    cpu, wall, _ = timed(lambda: reranker.score("how to read a csv file", texts))
    return {
        "model": "small",
        "pairs": len(texts),
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "precision": reranker.signature["precision"],
    }


def measure_travel() -> float:
    """Bytes that a pair takes on its way to a worker, its text of MS MARCO's length."""
    import pickle

    from pipeline.rescore import Task
    from pipeline.trec import ScoredDoc

    docs = tuple(ScoredDoc(str(1_000_000 + rank), 20 - rank / 100) for rank in range(1000))
    texts = tuple(f"{rank:04}{'x' * 331}" for rank in range(1000))
    task = Task("1048585", "how long do cats sleep", docs, (), texts)
    return len(pickle.dumps(task, 5)) / 1000


def measure(sizes: list[int], place: Path | None, kept: Path = RATES) -> None:
    """Measure, and keep the rates as they come."""
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "sizes": [],
        "pairs": measure_pairs(),
        "bytes_per_pair": measure_travel(),
    }
    for count in sorted(sizes):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            found["sizes"].append(measure_size(Path(folder), count))
        print(json.dumps(found["sizes"][-1]), flush=True)
        kept.write_text(json.dumps(found, indent=2) + "\n")


# ---------------------------------------------------------------- the model


class Model:
    """Each cost is what a stage takes in any case, and a power of the number of passages.

    An index has no cost of the first kind, and indexing is linear in the second; with the first
    stage both are fitted, because Lucene skips the more, the longer the lists are.
    """

    costs = ("index_bytes", "index_cpu_s", "query_cpu_ms")
    powers = {  # noqa: RUF012 - a table
        "index_bytes": np.arange(0.90, 1.10, 0.001),
        "index_cpu_s": np.array([1.0]),
        "query_cpu_ms": np.arange(0.30, 1.01, 0.01),
    }

    def __init__(self, sizes: list[dict[str, float]]) -> None:
        known = [name for name in self.costs if all(name in size for size in sizes)]
        self.fits = {name: self._fit(name, sizes) for name in known}

    def _fit(self, name: str, sizes: list[dict[str, float]]) -> tuple[float, float, float]:
        counts = np.array([size["passages"] for size in sizes], float)
        real = np.array([size[name] for size in sizes], float)
        best = (math.inf, 0.0, 0.0, 1.0)
        for power in self.powers[name]:
            columns = [counts**power]
            if name != "index_bytes":
                columns.append(np.ones_like(counts))
            rows = np.stack(columns, 1) / real[:, None]  # errors relative to what was measured
            found, *_ = np.linalg.lstsq(rows, np.ones_like(real), rcond=None)
            factor, fixed = float(found[0]), float(found[1]) if len(found) > 1 else 0.0
            error = float(((rows @ found - 1) ** 2).sum())
            if factor > 0 and fixed >= 0 and error < best[0]:
                best = (error, fixed, factor, float(power))
        return best[1:]

    def at(self, name: str, passages: float) -> float:
        """One cost at a size."""
        fixed, factor, power = self.fits[name]
        return fixed + factor * passages**power


def number(value: float) -> str:
    """Three digits and a prefix."""
    for step, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= step:
            return f"{value / step:.3g}{sign}"
    return f"{value:.3g}"


def check(sizes: list[dict[str, float]]) -> None:
    """Say how far off the model is at the largest size, which it has not seen."""
    *seen, largest = sizes
    model = Model(seen)
    print("| cost | predicted | measured | off by |\n|---|---:|---:|---:|")
    for name in model.fits:
        expected, real = model.at(name, largest["passages"]), largest[name]
        off = f"{expected / real - 1:+.0%}"
        print(f"| {name} at {number(largest['passages'])} | {number(expected)} | {number(real)} "
              f"| {off} |")  # fmt: skip


def predict(topics: int, depth: int) -> None:
    """Carry the model on."""
    found = json.loads(RATES.read_text())
    sizes = found["sizes"]
    print("| measured | " + " | ".join(number(size["passages"]) for size in sizes) + " |")
    print("|---|" + "---:|" * len(sizes))
    for name in ("characters", *Model(sizes).fits):
        print(f"| {name} | " + " | ".join(number(size[name]) for size in sizes) + " |")
    print()
    check(sizes)
    model = Model(sizes)
    rate = found["pairs"]["pairs"] / found["pairs"]["cpu_s"]
    rows: dict[str, list[str]] = {}

    def row(name: str, value: str) -> None:
        rows.setdefault(name, []).append(value)

    for passages in COLLECTIONS.values():
        row("passages", number(passages))
        row("index", number(model.at("index_bytes", passages)) + "B")
        row("indexing, core hours", f"{model.at('index_cpu_s', passages) / 3600:,.1f}")
        if "query_cpu_ms" in model.fits:
            query = model.at("query_cpu_ms", passages)
            row("first stage, queries/s a core", f"{1000 / query:,.1f}")
            row(f"first stage of {topics:,} topics, core hours", f"{topics * query / 3.6e6:,.2f}")
        row("pairs", number(topics * depth))
        row(f"reranking by `small` ({rate:,.0f}/s a core), core hours",
            f"{topics * depth / rate / 3600:,.1f}")  # fmt: skip
        row("texts to workers", number(topics * depth * found["bytes_per_pair"]) + "B")
        row("one run", number(topics * depth * LINE) + "B")
        row("vectors of 384, fp16", number(passages * (384 * 2 + 16 + 10)) + "B")
        row("vectors of 384, int8", number(passages * (384 + 4 + 16 + 10)) + "B")
        row("encoding by `small`'s size of tower, core hours", f"{passages / rate / 3600:,.0f}")
    print("\n| | " + " | ".join(COLLECTIONS) + " |\n|---|" + "---:|" * len(COLLECTIONS))
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("sizes", type=int, nargs="+")
    measuring.add_argument("--folder", type=Path)
    predicting = commands.add_parser("predict")
    predicting.add_argument("--topics", type=int, default=6980)
    predicting.add_argument("--depth", type=int, default=1000)
    given = parser.parse_args()
    if given.command == "measure":
        measure(given.sizes, given.folder)
    else:
        predict(given.topics, given.depth)


if __name__ == "__main__":
    main()
