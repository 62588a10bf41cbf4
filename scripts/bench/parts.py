"""How many lines a second become parts and are joined into a run, beside plain writers.

usage: python scripts/bench/parts.py [TOPICS] [REPEATS] [DOCUMENTS A TOPIC]

Ours is what `pipeline rerank` does behind the model: scores are ordered and printed; topics are put
into parts, as many to a part as in a run of 6,980, a part is written while the next is put
together, and is not synced where parts come so fast; they are read again, held against their
digests and joined into a run, which is synced. They stay, as they do until `pipeline clean`.
Printing, then writing and joining, then all of it are measured by themselves, and writing and
joining once more as if all parts had been found: then they are looked through, and their documents
compared with those asked for. The rivals write one file, once,
unsynced, and check nothing: a loop of f-strings with six decimals, as Pyserini's own writer of runs
does, and pandas' `to_csv`. As a measure of speed pytrec_eval parses and evaluates the run, in this
process too. Each takes its turn; shown are lines a second of every turn, on the clock and of the
processors (which wait for no disk), and ratios to pytrec_eval: median, least, most.
"""

import random
import shutil
import statistics
import sys
import tempfile
import time
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytrec_eval

from pipeline.ahead import Behind
from pipeline.parts import Block, Parts, bucket, contents, docid_sums, joined, need_whole
from pipeline.reranking import CHECKED, PARTS, _Group, _save
from pipeline.store import atomic_file, digest_json
from pipeline.trec import scored_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SEED = 7
PARTS_FOLDER = "ours.run.parts"
WHOLE = 6980  # topics of the run whose parts these are like
Topic = tuple[str, list[str], "NDArray[np.float32]"]


def drawn(topics: int, documents: int) -> list[Topic]:
    """Topics with documents of MS MARCO in some order, and scores like logits."""
    draw, generator = random.Random(SEED), np.random.default_rng(SEED)
    return [
        (
            str(1_000_000 + number),
            [str(docid) for docid in draw.sample(range(8_841_823), documents)],
            generator.normal(0, 4, documents).astype(np.float32),
        )
        for number in range(topics)
    ]


def printed(topic: Topic) -> bytes:
    """The lines of one topic, as the stage makes them from scores."""
    qid, docids, scores = topic
    order = np.argsort(-scores, kind="stable")
    return scored_lines(qid, [docids[place] for place in order.tolist()], scores[order], "bench")


def printing(topics: list[Topic], _: Path) -> None:
    """Print everything, in memory."""
    b"".join(map(printed, topics))


class Writing:
    """Keep lines as parts, read them again, check, join, sync.

    Args:
        lines: of each topic, made before; without them they are printed on the way.
        found: take the parts for ones that another process made.
    """

    def __init__(
        self, topics: list[Topic], lines: dict[str, bytes] | None = None, *, found: bool = False
    ) -> None:
        self._lines, self._found = lines, found
        # The command has them as bytes, from the run that it reads.
        self._wanted = {qid: "\n".join(docids).encode() for qid, docids, _ in topics}

    def __call__(self, topics: list[Topic], folder: Path) -> None:
        """Make the run."""
        parts = Parts(folder / PARTS_FOLDER)

        def save(group: _Group) -> tuple[Path, dict[str, Block]]:
            return _save(parts, group)

        groups: dict[int, list[Topic]] = {}
        for topic in topics:
            groups.setdefault(bucket(topic[0], PARTS * len(topics) // WHOLE or 1), []).append(topic)
        with Behind(save) as saving:
            for group in groups.values():
                qids = [qid for qid, _, _ in group]
                given = self._lines
                made = [printed(topic) if given is None else given[topic[0]] for topic in group]
                saving.give(_Group(digest_json(qids), qids, made))
            places = dict(saving.results())
        blocks = self._looked_through(places) if self._found else self._known(places)
        with atomic_file(folder / "ours.run") as out:
            for lines in joined(blocks[qid] for qid, _, _ in topics):
                out.write(lines)

    def _known(self, places: dict[Path, dict[str, Block]]) -> dict[str, Block]:
        need_whole(places)
        return {qid: block for blocks in places.values() for qid, block in blocks.items()}

    def _looked_through(self, places: dict[Path, dict[str, Block]]) -> dict[str, Block]:
        found = contents(places)
        for some in batched(self._wanted.items(), CHECKED):
            sums = docid_sums([docids for _, docids in some])
            if sums != [found[qid].documents for qid, _ in some]:
                sys.exit("a topic has other documents")
        return {qid: content.block for qid, content in found.items()}


def loop(topics: list[Topic], folder: Path) -> None:
    """Write a line after the other."""
    with (folder / "loop.run").open("w") as out:
        for qid, docids, scores in topics:
            order = np.argsort(-scores, kind="stable")
            for rank, place in enumerate(order.tolist(), 1):
                out.write(f"{qid} Q0 {docids[place]} {rank} {scores[place]:.6f} bench\n")


def frames(topics: list[Topic], folder: Path) -> None:
    """Write a table for each topic."""
    with (folder / "pandas.run").open("w") as out:
        for qid, docids, scores in topics:
            order = np.argsort(-scores, kind="stable")
            table = pd.DataFrame(
                {
                    "qid": qid, "q0": "Q0", "docid": [docids[place] for place in order.tolist()],
                    "rank": np.arange(1, len(docids) + 1), "score": scores[order], "tag": "bench",
                }
            )  # fmt: skip
            table.to_csv(out, sep=" ", header=False, index=False)


def evaluation(topics: list[Topic], folder: Path) -> None:
    """Parse and evaluate, one judgement a topic."""
    with (folder / "ours.run").open() as file:
        run = pytrec_eval.parse_run(file)
    qrels = {qid: {docids[0]: 1} for qid, docids, _ in topics}
    names = {"ndcg_cut.10", "recip_rank", "map", "recall.1000"}
    pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)


def main() -> None:
    """Measure in turns, print."""
    given = [*map(int, sys.argv[1:])]
    count, repeats, documents = [*given, *(1000, 3, 1000)[len(given) :]]
    topics = drawn(count, documents)
    lines = count * documents
    made = {topic[0]: printed(topic) for topic in topics}
    turns: dict[str, Callable[[list[Topic], Path], None]] = {
        "printing, in memory": printing,
        "writing and joining of parts": Writing(topics, made),
        "writing, joining of found parts": Writing(topics, made, found=True),
        "all of it": Writing(topics),
        "loop of f-strings": loop,
        "pandas to_csv": frames,
        "pytrec_eval, parse and evaluate": evaluation,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    with tempfile.TemporaryDirectory(prefix="bench-parts-", dir=".") as name:
        for _ in range(repeats):
            for label, turn in turns.items():
                clock, used = time.perf_counter(), time.process_time()
                turn(topics, Path(name))
                taken[label].append((time.perf_counter() - clock, time.process_time() - used))
                shutil.rmtree(Path(name) / PARTS_FOLDER, ignore_errors=True)
    print(f"{count:,} topics of {documents:,} documents, million lines a second")
    for place, kind in enumerate(("clock", "processors")):
        rival = [times[place] for times in taken["pytrec_eval, parse and evaluate"]]
        for label, both in taken.items():
            times = [one[place] for one in both]
            each = " ".join(f"{lines / seconds / 1e6:.2f}" for seconds in times)
            ratios = [other / mine for other, mine in zip(rival, times, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            middle = statistics.median(ratios)
            print(f"{kind:10} {label:32} {each}, {middle:.2f} ({spread}) times pytrec_eval's rate")


if __name__ == "__main__":
    main()
