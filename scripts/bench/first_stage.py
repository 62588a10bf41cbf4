"""How fast BM25 searches, beside the class behind Pyserini's LuceneSearcher.

usage: PIPELINE_COLLECTIONS=FOLDER python first_stage.py [REPEATS] [COLLECTION] [TOPICS] [PASSAGES]

COLLECTION is a folder's name, or `all`: every collection there joined into one, ids led by their
collection's name, topics of each in turn. With PASSAGES so many are made of them: each the first
half of one passage and the second half of another, drawn by a fixed seed.

The other is Anserini's SimpleSearcher. Both run in one process over one index, in turn, topics to
hits in Python (docid and score of each), 1000 hits a topic. SimpleSearcher is called as Pyserini
calls it: `search` topic by topic, its default, and `batch_search` with threads, its fastest
documented way. Our stage is shown as well: it also writes the run, in parts. In the end all hits
are compared: the same documents in the same order, and scores equal but for its rounding to four
decimals.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import batched, chain, islice, zip_longest
from pathlib import Path

from pipeline import java, machine
from pipeline.bm25 import BM25, Searcher
from pipeline.collection import documents
from pipeline.index import IndexSettings, index
from pipeline.lucene import Index
from pipeline.retrieve import CALL_TOPICS, RetrieveSettings, retrieve
from pipeline.threads import in_threads
from pipeline.topics import Topics, read_topics

HITS = 1000
SEED = 9
Hits = dict[str, list[tuple[str, float]]]


class Contest:
    """The searchers over one index, each turning topics into hits."""

    def __init__(self, work: Path, corpus: Path, topics: Topics) -> None:
        self.topics = topics
        self.threads = machine.cpus()
        self._work = work
        index(IndexSettings(corpus, work / "index"))
        self._searcher = Searcher(Index(work / "index"), BM25(hits=HITS))
        self._anserini = java.java_class("io.anserini.search.SimpleSearcher")(str(work / "index"))
        self._anserini.set_bm25(0.9, 0.4)

    def ours(self, threads: int) -> Hits:
        """Search in this process, without a file."""
        groups = list(batched(self.topics.items(), CALL_TOPICS))
        found = in_threads(
            lambda group: self._searcher.search([text for _, text in group]), groups, threads
        )
        hits: Hits = {}
        for group, rankings in zip(groups, found, strict=True):
            for (qid, _), docs in zip(group, rankings, strict=True):
                hits[qid] = [(doc.docid, doc.score) for doc in docs]
        return hits

    def stage(self, threads: int) -> None:
        """Search and write the run, as `pipeline retrieve` does."""
        topics = self._work / "topics.tsv"
        topics.write_text("".join(f"{qid}\t{text}\n" for qid, text in self.topics.items()))
        output = self._work / "bm25.run"
        settings = RetrieveSettings(topics, self._work / "index", output, threads=threads)
        retrieve(RetrieveSettings(**{**vars(settings), "force": True}))

    def search(self) -> Hits:
        """Pyserini's default: `LuceneSearcher.search`, one topic after the other."""
        return {
            qid: [
                (hit.docid, hit.score) for hit in self._anserini.search(java.java_text(text), HITS)
            ]
            for qid, text in self.topics.items()
        }

    def batch_search(self, threads: int) -> Hits:
        """Pyserini's fastest: `LuceneSearcher.batch_search`."""
        texts, qids = (java.java_class("java.util.ArrayList")() for _ in range(2))
        for qid, text in self.topics.items():
            texts.add(java.java_text(text))
            qids.add(java.java_text(qid))
        found = self._anserini.batch_search(texts, qids, HITS, threads)
        return {
            entry.getKey(): [(hit.docid, hit.score) for hit in entry.getValue()]
            for entry in found.entrySet().toArray()
        }


def joined(work: Path, folders: list[Path], most: int, count: int) -> tuple[Path, Topics]:
    """One collection of several, or passages made of theirs; some topics of each in turn."""
    topics = [list(read_topics(min(f.glob("topics.*.tsv"))).items()) for f in folders]
    some = islice(chain.from_iterable(zip_longest(*topics)), most * len(folders))
    chosen = [pair for pair in some if pair is not None][:most]
    if len(folders) == 1 and not count:
        return folders[0] / "corpus.jsonl.gz", dict(chosen)
    records = (
        (f"{place.name}-{document.docid}", document.text)
        for place in folders
        for document in documents(str(place / "corpus.jsonl.gz"))
    )
    with (work / "corpus.jsonl").open("w") as out:
        for docid, text in made(records, count) if count else records:
            out.write(json.dumps({"id": docid, "contents": text}) + "\n")
    return work / "corpus.jsonl", {f"{i}": text for i, (_, text) in enumerate(chosen)}


def made(records: Iterable[tuple[str, str]], count: int) -> Iterator[tuple[str, str]]:
    """Passages out of halves of others."""
    draw = random.Random(SEED)
    words = [text.split() for _, text in records]
    for number in range(count):
        first, second = draw.choice(words), draw.choice(words)
        yield f"made-{number}", " ".join(first[: len(first) // 2] + second[len(second) // 2 :])


def compare(ours: Hits, theirs: Hits) -> tuple[int, float]:
    """Count topics with the same documents in the same order; the largest difference of scores."""
    same, worst = 0, 0.0
    for qid, hits in ours.items():
        other = theirs.get(qid, [])
        same += [docid for docid, _ in hits] == [docid for docid, _ in other]
        worst = max([worst, *(abs(a[1] - b[1]) for a, b in zip(hits, other, strict=False))])
    return same, worst


def main() -> int:
    """Print the table; 1 if an order differs."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    name = sys.argv[2] if len(sys.argv) > 2 else "nfcorpus"
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 300
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    folder = Path(os.environ["PIPELINE_COLLECTIONS"])
    folders = sorted(f.parent for f in folder.glob("*/topics.*.tsv")) if name == "all" else []
    with tempfile.TemporaryDirectory(prefix="bench-first-stage-") as place:
        corpus, topics = joined(
            Path(place), list(dict.fromkeys(folders)) or [folder / name], most, count
        )
        contest = Contest(Path(place), corpus, topics)
        many = contest.threads
        runs: dict[str, Callable[[], Hits | None]] = {
            "SimpleSearcher.search": contest.search,
            f"SimpleSearcher.batch_search, {many} threads": lambda: contest.batch_search(many),
            "ours, 1 thread": lambda: contest.ours(1),
            f"ours, {many} threads": lambda: contest.ours(many),
            f"ours, {many} threads, run written": lambda: contest.stage(many),
        }
        taken: dict[str, list[float]] = {label: [] for label in runs}
        hits: dict[str, Hits | None] = {}
        for repeat in range(repeats + 1):  # the first warms Java up, and is not counted
            for label, run in runs.items():
                started = time.perf_counter()
                hits[label] = run()
                if repeat:
                    taken[label].append(time.perf_counter() - started)
    size = f", {count:,} passages made of its" if count else ""
    print(
        f"{name}{size}: {len(topics)} topics, {HITS} hits, {repeats} repeats after one to warm up"
    )
    medians = {label: statistics.median(times) for label, times in taken.items()}
    for label, times in taken.items():
        each = " ".join(f"{1000 * t / len(topics):.2f}" for t in times)
        rate = len(topics) / medians[label]
        print(f"{label:40} {rate:6,.0f} topics/s   all (ms a topic): {each}")
    labels = list(runs)
    for threads, theirs, ours in ((1, labels[0], labels[2]), (many, labels[1], labels[3])):
        ratios = [a / b for a, b in zip(taken[theirs], taken[ours], strict=True)]
        print(
            f"ratio, {threads} threads: {statistics.median(ratios):.1f} times as fast "
            f"({min(ratios):.1f} to {max(ratios):.1f})"
        )
    same, worst = compare(hits[labels[3]] or {}, hits[labels[1]] or {})
    print(f"same documents in the same order: {same} of {len(topics)} topics")
    print(f"largest difference of scores: {worst:.6f} (theirs are rounded to 0.0001)")
    return int(same < len(topics))


if __name__ == "__main__":
    sys.exit(main())
