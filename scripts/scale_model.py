"""What a collection costs: rates measured on this machine, and a small model that carries them on.

usage: python scripts/scale_model.py measure SIZE... [--folder DIR]   writes docs/scale.json
       python scripts/scale_model.py rates [--folder DIR]   models and the disk alone, anew
       python scripts/scale_model.py predict [--topics 6980] [--depth 1000]   prints tables

`measure` builds indexes of synthetic passages (words drawn by Zipf's law, lengths like MS MARCO's),
searches them, and notes what each took; it scores pairs and encodes passages with models of several
sizes, and writes and reads a large file. Times are of the processor, over all threads, so that
other work on the machine does not count; a whole core does one second of it a second. `predict`
fits the model to all sizes but the largest, says how far off it was there, and carries it on to MS
MARCO's collections and to a billion passages.
"""

import argparse
import json
import math
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
BLOCK = 20_000  # passages made together
LOOKED_UP = 20_000  # texts
TOKENS = 192  # of a pair or a passage at most, as `small` advises
KEPT = 208  # bytes of the token ids of a passage, measured on the MS MARCO pool
GPU = {"small, a GPU at the rate asked of it (not measured)": 100_000.0}
LINE = 46  # bytes of a run's line
DISK_BLOCK, DISK_BLOCKS = 1 << 24, 64  # a gigabyte
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
    forget(place)
    fetched = bytes_read()
    _, cold_wall, _ = timed(lambda: search(settings, topics))
    fetched = bytes_read() - fetched
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
        "query_cold_wall_ms": round(1000 * cold_wall / QUERIES, 3),
        "query_cold_bytes": round(fetched / QUERIES),
        "hits": round(lines / QUERIES, 1),
        "texts_per_cpu_s": round(len(texts) / looking),
    }


def demo_texts(count: int) -> list[str]:
    """Draw real passages that every machine has."""
    from pipeline.demo.docstrings import passages

    everything = [text for _, text in passages()]
    return random.Random(8).sample(everything, count)


def save_random(folder: Path, shape: dict[str, int], *, ranker: bool) -> str:
    """Save a BERT of random weights: speed does not depend on what weights say."""
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification, BertModel

    from pipeline.models.folder import locate

    student = locate("small")
    config = AutoConfig.from_pretrained(student)
    config.update(shape)
    model = BertForSequenceClassification(config) if ranker else BertModel(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    if not ranker:  # as sentence-transformers lays out a tower
        kinds = {"": "Transformer", "1_Pooling": "Pooling"}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    return str(folder)


def shape(layers: int, wide: int, heads: int) -> dict[str, int]:
    """Settings of a BERT, its inner layers four times as wide."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": wide,
        "num_attention_heads": heads,
        "intermediate_size": 4 * wide,
    }


def middle(work: Callable[[list[str]], object], texts: list[str]) -> dict[str, float]:
    """Time some work on texts three times, after a few to warm up; the middle one."""
    work(texts[:64])
    cpu, wall = sorted(timed(partial(work, texts))[:2] for _ in range(3))[1]
    return {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}


RANKERS = {  # pairs to score, and the shape where it is not the shipped student's
    "2/128": (3000, shape(2, 128, 2)),
    "small": (1500, None),
    "6/384": (750, shape(6, 384, 12)),
    "12/768": (200, shape(12, 768, 12)),
}
TOWERS = {"6/384": (750, shape(6, 384, 12)), "12/768": (200, shape(12, 768, 12))}


def measure_pairs() -> list[dict[str, Any]]:
    """Score pairs of the demo with rankers of several sizes, one thread."""
    from pipeline.models.reranker import Reranker

    found = []
    for name, (count, settings) in RANKERS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = save_random(Path(folder), settings, ranker=True) if settings else name
            reranker = Reranker.load(model, threads=1, max_tokens=TOKENS)
        texts = demo_texts(count)
        seconds = middle(partial(reranker.score, "how to read a csv file"), texts)
        precision = reranker.signature["precision"]
        found.append({"model": name, "pairs": len(texts), **seconds, "precision": precision})
        print(json.dumps(found[-1]), flush=True)
    return found


def measure_passages() -> list[dict[str, Any]]:
    """Encode passages of the demo with towers of two sizes, one thread."""
    from pipeline.models.reranker import load_towers
    from pipeline.models.scorer import Limits, Wishes

    found = []
    for name, (count, settings) in TOWERS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = save_random(Path(folder), settings, ranker=False)
            towers = load_towers(model, Wishes("cpu", "auto", 1), Limits(max_tokens=TOKENS))
        texts = demo_texts(count)
        seconds = middle(towers.encode_anew, texts)
        precision = towers.signature["precision"]
        found.append({"model": name, "passages": len(texts), **seconds, "precision": precision})
        print(json.dumps(found[-1]), flush=True)
    return found


def measure_disk(place: Path | None) -> dict[str, float]:
    """Write a gigabyte until the disk has it, and read it when memory has forgotten it."""
    block = np.random.default_rng(7).bytes(DISK_BLOCK)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        path = Path(folder) / "file"
        start = time.monotonic()
        with path.open("wb", buffering=0) as file:
            for _ in range(DISK_BLOCKS):
                file.write(block)
            os.fsync(file.fileno())
        written = time.monotonic()
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.monotonic()
            while file.read(DISK_BLOCK):
                pass
        read = time.monotonic()
    size = DISK_BLOCK * DISK_BLOCKS / 1e6
    return {
        "write_mb_per_s": round(size / (written - start)),
        "read_mb_per_s": round(size / (read - begun)),
    }


def bytes_read() -> int:
    """What this process had to fetch from the disk so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def forget(folder: Path) -> None:
    """Take files out of memory that nobody has open."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_travel() -> float:
    """Bytes that a pair takes on its way to a worker, its text of MS MARCO's length."""
    import pickle

    from pipeline.rescore import Task
    from pipeline.trec import ScoredDoc

    docs = tuple(ScoredDoc(str(1_000_000 + rank), 20 - rank / 100) for rank in range(1000))
    texts = tuple(f"{rank:04}{'x' * 331}" for rank in range(1000))
    task = Task("1048585", "how long do cats sleep", docs, (), texts)
    return len(pickle.dumps(task, 5)) / 1000


def measure_rates(place: Path | None) -> dict[str, Any]:
    """Whatever does not depend on the size of a collection."""
    return {
        "pairs": measure_pairs(),
        "passages": measure_passages(),
        "disk": measure_disk(place),
        "bytes_per_pair": measure_travel(),
    }


def measure(sizes: list[int], place: Path | None, kept: Path = RATES) -> None:
    """Measure, and keep the rates as they come."""
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "sizes": [],
        **measure_rates(place),
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
    scoring = {of["model"]: of["pairs"] / of["cpu_s"] for of in found["pairs"]}
    speed = found["disk"]["read_mb_per_s"] * 1e6
    encoding = {of["model"]: of["passages"] / of["cpu_s"] for of in found["passages"]}
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
        for name, rate in scoring.items():
            row(f"reranking by {name} ({rate:,.0f} pairs/s a core), core hours",
                f"{topics * depth / rate / 3600:,.1f}")  # fmt: skip
        row("texts to workers", number(topics * depth * found["bytes_per_pair"]) + "B")
        row("one run", number(topics * depth * LINE) + "B")
        row("vectors of 384, fp16", number(passages * (384 * 2 + 16 + 10)) + "B")
        row("vectors of 384, int8", number(passages * (384 + 4 + 16 + 10)) + "B")
        row("token ids, kept", number(passages * KEPT) + "B")
        for name, rate in encoding.items():
            row(f"encoding by a tower of {name} ({rate:,.0f} passages/s a core), core hours",
                f"{passages / rate / 3600:,.0f}")  # fmt: skip
        row("the index read once from a disk like this one, minutes",
            f"{model.at('index_bytes', passages) / speed / 60:,.1f}")  # fmt: skip
    print("\n| a worker that scores with | pairs/s | takes from the network |\n|---|---:|---:|")
    workers = {f"{name}, a core": rate for name, rate in scoring.items()}
    for name, rate in (workers | GPU).items():
        print(f"| {name} | {rate:,.0f} | {number(rate * found['bytes_per_pair'])}B/s |")
    print("\n| | " + " | ".join(COLLECTIONS) + " |\n|---|" + "---:|" * len(COLLECTIONS))
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("sizes", type=int, nargs="+")
    measuring.add_argument("--folder", type=Path)
    rating = commands.add_parser("rates")
    rating.add_argument("--folder", type=Path)
    predicting = commands.add_parser("predict")
    predicting.add_argument("--topics", type=int, default=6980)
    predicting.add_argument("--depth", type=int, default=1000)
    given = parser.parse_args()
    if given.command == "measure":
        measure(given.sizes, given.folder)
    elif given.command == "rates":
        kept = json.loads(RATES.read_text())
        RATES.write_text(json.dumps(kept | measure_rates(given.folder), indent=2) + "\n")
    else:
        predict(given.topics, given.depth)


if __name__ == "__main__":
    main()
