"""How fast pairs are scored, beside sentence-transformers' CrossEncoder.predict.

usage: python scripts/bench/reranking.py [MODEL] [TOPICS] [PASSAGES] [REPEATS]

Same weights, same pairs, same threads, one process; everything is timed from texts to scores, in
turn, and all repeats are shown. Pairs are topics of the demo with passages of the demo, drawn by a
fixed seed. CrossEncoder is given all pairs in one call: at its defaults (the precision of the saved
weights, batches of 32), in float32, and in bfloat16 with several batch sizes, the settings its
documentation names for speed that need no other package. Ours scores topic by topic, as `pipeline
rerank` does, and has met no passage before.
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import pipeline.demo
from pipeline.demo.docstrings import passages
from pipeline.machine import cpus
from pipeline.models.folder import advice, locate
from pipeline.models.reranker import Reranker
from pipeline.topics import read_topics

SEED = 7
BATCHES = (8, 16, 32, 64)
Scores = NDArray[np.float32]


class Contest:
    """The same pairs for everybody."""

    def __init__(self, model: str, topics: int, count: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from sentence_transformers import CrossEncoder

        draw = random.Random(SEED)
        texts = [text for _, text in passages()]
        file = Path(pipeline.demo.__file__).parent / "topics.tsv"
        queries = draw.sample(sorted(read_topics(file).values()), topics)
        self.pairs = {query: draw.sample(texts, count) for query in queries}
        self._folder = str(locate(model))
        length = advice(locate(model)).max_tokens or 512
        self._theirs = {
            name: CrossEncoder(
                self._folder,
                device="cpu",
                max_length=length,
                activation_fn=torch.nn.Identity(),
                model_kwargs=settings,
            )
            for name, settings in (
                ("defaults", {}),
                ("fp32", {"dtype": torch.float32}),
                ("bf16", {"dtype": torch.bfloat16}),
            )
        }

    def theirs(self, precision: str, batch_size: int) -> Scores:
        """All pairs in one call, which lets it sort them all by length."""
        pairs = [(query, text) for query, texts in self.pairs.items() for text in texts]
        scores = self._theirs[precision].predict(
            pairs, batch_size=batch_size, show_progress_bar=False
        )
        return np.asarray(scores, np.float32)

    def ours(self, precision: str) -> Callable[[], Scores]:
        """Make a reranker that has met no passage, and what scores with it, topic by topic."""
        reranker = Reranker.load(self._folder, device="cpu", precision=precision)  # type: ignore[arg-type]
        # As predict's own warm-up: the first pass in a process prepares kernels.
        reranker.score("warm up", ["a few words " * n for n in range(1, 24)])
        return lambda: np.concatenate([reranker.score(q, p) for q, p in self.pairs.items()])


def main() -> int:
    """Print the table; 1 if scores of the same precision are not the same but for rounding."""
    model, *numbers = [*sys.argv[1:], *(["small", "4", "250", "3"])[len(sys.argv) - 1 :]]
    topics, count, repeats = map(int, numbers)
    torch.set_num_threads(cpus())
    contest = Contest(model, topics, count)
    taken: dict[str, list[float]] = {}
    scores: dict[str, Scores] = {}
    theirs = "CrossEncoder.predict"
    for repeat in range(repeats + 1):  # the first warms up, and is not counted
        runs = {
            f"{theirs} (defaults)": lambda: contest.theirs("defaults", 32),
            f"{theirs}, fp32, 32": lambda: contest.theirs("fp32", 32),
        }
        for size in BATCHES:
            runs[f"{theirs}, bf16, {size}"] = lambda size=size: contest.theirs("bf16", size)
        runs["ours, fp32"] = contest.ours("fp32")
        runs["ours, bf16"] = contest.ours("bf16")
        for label, run in runs.items():
            started = time.perf_counter()
            scores[label] = run()
            if repeat:
                taken.setdefault(label, []).append(time.perf_counter() - started)
    pairs = topics * count
    print(
        f"{model}: {topics} topics x {count} passages, {cpus()} threads, torch {torch.__version__}"
    )
    rates = {label: pairs / statistics.median(times) for label, times in taken.items()}
    for label, times in taken.items():
        each = " ".join(f"{pairs / seconds:.0f}" for seconds in times)
        print(f"{label:40} {rates[label]:6,.0f} pairs/s   all: {each}")
    labels = list(taken)
    best = max(rates[label] for label in labels[:-2])
    print(f"ours beside its defaults: {rates['ours, bf16'] / rates[labels[0]]:.1f} times as fast")
    print(f"ours beside its best: {rates['ours, bf16'] / best:.2f} times as fast")
    print(f"ours in fp32 beside its fp32: {rates['ours, fp32'] / rates[labels[1]]:.2f} times")
    exact, reference = scores["ours, fp32"], scores[labels[1]]
    spread = float(reference.std())
    worst = float(np.abs(exact - reference).max())
    print(
        f"largest difference of scores, both fp32: {worst:.2e} (deviation of scores {spread:.3f})"
    )
    for label in (labels[2], "ours, bf16"):
        error = float(np.abs(scores[label] - reference).max())
        print(f"{label}: largest difference from fp32 {error:.2e}, {distinct(scores[label])}")
    return int(worst > 1e-3 * spread)


def distinct(scores: Scores) -> str:
    """Count the scores that can be told apart."""
    return f"{len(np.unique(scores)):,} of {len(scores):,} scores distinct"


if __name__ == "__main__":
    sys.exit(main())
