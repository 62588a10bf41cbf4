"""How fast a GPU reranks: in the engine, and by the whole command, beside sentence-transformers.

usage: [PIPELINE_COLLECTIONS=FOLDER] python scripts/bench/gpu.py [--rehearse]
                                          [MODEL] [TOPICS] [PASSAGES] [REPEATS]

Same weights, same card, same run, in turns, all repeats shown; needs no network. Candidates are
passages of the MS MARCO pool, or without that collection of the demo, drawn by a fixed seed.

engine     token ids at hand -> scores, topic by topic; the next topics are launched before the
           scores of the first are fetched
texts      the same from texts, each met for the first time
command    `pipeline rerank --tokens`, from run file to run file: once on the clock with everything
           (Python, torch and the model loaded, the run read and written), and once as the command
           itself counts, from the first topic to the last
rival      sentence-transformers' CrossEncoder.predict in bfloat16, all pairs of some topics in one
           call, at the batch size that is its best on this card

Without a GPU it says so and exits with 1. `--rehearse` runs everything on the CPU instead, to see
that the script works; its numbers mean nothing.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import pipeline.demo
from pipeline.collection import documents
from pipeline.demo.docstrings import passages
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.folder import locate
from pipeline.models.scorer import Limits, Scored, Wishes
from pipeline.tokenize import TokenizeSettings, tokenize
from pipeline.tokens import PassageTokens
from pipeline.topics import read_topics

SEED = 7
SIZES = (32, 64, 128, 256, 512, 1024, 2048)
RIVAL_PAIRS = 20_000  # at most: its rate does not depend on more
Scores = NDArray[np.float32]


class Contest:
    """Topics, candidates and their texts, in files and in memory."""

    def __init__(self, folder: Path, model: str, topics: int, count: int, device: str) -> None:
        self.folder, self.model, self.device = folder, model, device
        draw = random.Random(SEED)
        texts, queries = _texts()
        self.queries = {f"q{n}": text for n, text in enumerate(islice(cycle(queries), topics))}
        self.texts = {f"d{n}": text for n, text in enumerate(texts)}
        docids = list(self.texts)
        self.candidates = {
            qid: draw.sample(docids, min(count, len(docids))) for qid in self.queries
        }
        self.pairs = sum(map(len, self.candidates.values()))
        self._write()
        started = time.perf_counter()
        tokenize(TokenizeSettings(model, folder / "tokens", None, folder / "corpus.jsonl"))
        print(f"tokenised {len(texts):,} passages in {time.perf_counter() - started:.1f} s")
        self.tokens = PassageTokens(folder / "tokens")
        precision = "bf16" if device == "cuda" else "auto"
        self.ranker = CrossEncoder(locate(model), Wishes(device, precision), Limits())  # type: ignore[arg-type]
        self.most = self.ranker.limits["max_tokens"]
        some = max(1, RIVAL_PAIRS // count)
        self.few = dict(islice(self.queries.items(), some))

    def _write(self) -> None:
        with (self.folder / "corpus.jsonl").open("w") as file:
            for docid, text in self.texts.items():
                file.write(json.dumps({"id": docid, "contents": text}) + "\n")
        with (self.folder / "topics.tsv").open("w") as file:
            file.writelines(f"{qid}\t{text}\n" for qid, text in self.queries.items())
        with (self.folder / "first.run").open("w") as file:
            for qid, docids in self.candidates.items():
                file.writelines(
                    f"{qid} Q0 {docid} {rank} {-rank} first\n"
                    for rank, docid in enumerate(docids, 1)
                )

    def engine(self, from_texts: bool) -> float:
        """Pairs a second; everything but the model's own work hidden as far as it can be."""
        ranker = self.ranker
        if from_texts:
            precision = "bf16" if self.device == "cuda" else "auto"
            ranker = CrossEncoder(locate(self.model), Wishes(self.device, precision), Limits())  # type: ignore[arg-type]
            ranker.score("warm up", ["a few words " * n for n in range(1, 24)])
        given = {
            qid: [self.texts[docid] for docid in docids]
            if from_texts
            else self.tokens.find(docids, self.most)[0]
            for qid, docids in self.candidates.items()
        }
        waiting: deque[Callable[[], Scored]] = deque()
        started = time.perf_counter()
        for qid, query in self.queries.items():
            waiting.append(ranker.launch(query, given[qid]))
            if len(waiting) > ranker.ahead:
                waiting.popleft()()
        while waiting:
            waiting.popleft()()
        return self.pairs / (time.perf_counter() - started)

    def command(self) -> tuple[float, float]:
        """Pairs a second on the clock, and as the command counts."""
        folder = self.folder
        words = ["rerank", "--model", self.model, "--run", folder / "first.run", "--topics",
                 folder / "topics.tsv", "--collection", folder / "corpus.jsonl", "--tokens",
                 folder / "tokens", "--output", folder / "new.run", "--device", self.device,
                 "--depth", "1000000", "--force", "--json", "--quiet"]  # fmt: skip
        if self.device == "cuda":
            words += ["--precision", "bf16"]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, words)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        return self.pairs / seconds, float(json.loads(done.stdout)["pace"]["pairs_per_second"])

    def rival(self) -> Callable[[int], tuple[float, Scores]]:
        """Make what scores some topics in batches of a size: pairs a second, and the scores."""
        from sentence_transformers import CrossEncoder as Theirs

        model = Theirs(
            str(locate(self.model)), device=self.device, max_length=self.most,
            activation_fn=torch.nn.Identity(), model_kwargs={"dtype": torch.bfloat16},
        )  # fmt: skip
        pairs = [(query, self.texts[docid]) for qid, query in self.few.items()
                 for docid in self.candidates[qid]]  # fmt: skip

        def run(size: int) -> tuple[float, Scores]:
            started = time.perf_counter()
            scores = model.predict(pairs, batch_size=size, show_progress_bar=False)
            seconds = time.perf_counter() - started
            return len(pairs) / seconds, np.asarray(scores, np.float32)

        return run

    def agreement(self, theirs: Scores) -> float:
        """Correlation of our scores with theirs."""
        ours = [self.ranker.score(query, self.tokens.find(self.candidates[qid], self.most)[0])
                for qid, query in self.few.items()]  # fmt: skip
        return float(np.corrcoef(np.concatenate([one.scores for one in ours]), theirs)[0, 1])


def _texts() -> tuple[list[str], list[str]]:
    place = Path(os.environ.get("PIPELINE_COLLECTIONS", "")) / "msmarco-pool"
    if (place / "corpus.jsonl.gz").exists():
        texts = [document.text for document in documents(place / "corpus.jsonl.gz")]
        return texts, sorted(read_topics(place / "topics.dev600.tsv").values())
    topics = Path(pipeline.demo.__file__).parent / "topics.tsv"
    return [text for _, text in passages()], sorted(read_topics(topics).values())


def show(label: str, rates: list[float], beside: float | None = None) -> None:
    """One line: the median, all repeats, and the ratio to the rival's median."""
    middle = statistics.median(rates)
    ratio = f"   {middle / beside:.1f} times as fast as the rival" if beside else ""
    print(f"{label:34} {middle:9,.0f} pairs/s   all: {' '.join(f'{r:,.0f}' for r in rates)}{ratio}")


def main() -> int:
    """Print the table; 1 without a GPU, or if the scores are not those of the rival."""
    words = [word for word in sys.argv[1:] if word != "--rehearse"]
    rehearsal = "--rehearse" in sys.argv
    defaults = ["small", "3", "20", "1"] if rehearsal else ["small", "500", "1000", "5"]
    model, *numbers = [*words, *defaults[len(words) :]]
    topics, count, repeats = map(int, numbers)
    if not rehearsal and not torch.cuda.is_available():
        print(
            "no GPU here: torch finds none that it can use; nothing was measured", file=sys.stderr
        )
        return 1
    os.environ["HF_HUB_OFFLINE"] = "1"
    device = "cpu" if rehearsal else "cuda"
    name = "rehearsal on the CPU" if rehearsal else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; {model}: {topics} topics x {count} passages")
    with tempfile.TemporaryDirectory() as scratch:
        contest = Contest(Path(scratch), model, topics, count, device)
        signature = contest.ranker.signature
        print(f"forward pass: {signature['forward']}, {signature['precision']}")
        first = next(iter(contest.queries))
        found, _ = contest.tokens.find(contest.candidates[first], contest.most)
        scored = contest.ranker.score(contest.queries[first], found)
        print(f"{scored.tokens / len(scored.scores):.0f} tokens a pair")
        rival = contest.rival()
        sizes = SIZES[:2] if rehearsal else SIZES
        rival(sizes[0])
        tried = {size: rival(size)[0] for size in sizes}
        best = max(tried, key=lambda size: tried[size])
        print("rival by batch size: " + ", ".join(f"{s}: {r:,.0f}" for s, r in tried.items()))
        taken: dict[str, list[float]] = {}
        scores = rival(best)[1]
        for repeat in range(repeats + 1):  # the first warms up, and is not counted
            rates = {
                "engine, from tokens": contest.engine(from_texts=False),
                "engine, from texts": contest.engine(from_texts=True),
            }
            whole, counted = contest.command()
            rates |= {"command, with its start": whole, "command, as it counts": counted}
            rates[f"rival, bf16, batches of {best}"] = rival(best)[0]
            if repeat:
                for label, rate in rates.items():
                    taken.setdefault(label, []).append(rate)
        *ours, last = taken
        beside = statistics.median(taken[last])
        for label in ours:
            show(label, taken[label], beside)
        show(last, taken[last])
        alike = contest.agreement(scores)
        print(f"correlation of scores with the rival's: {alike:.5f}")
        return int(alike < 0.99)


if __name__ == "__main__":
    sys.exit(main())
