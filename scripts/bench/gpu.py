"""How fast a GPU reranks: in the engine, and by the whole command, beside sentence-transformers.

usage: [PIPELINE_COLLECTIONS=FOLDER] python scripts/bench/gpu.py [--rehearse]
                                          [MODEL] [TOPICS] [PASSAGES] [REPEATS] [TOKENS]

Same weights, same card, same run, in turns, all repeats shown, and the ratio to the rival in each;
needs no network. Candidates are passages of the MS MARCO pool, or without that collection of the
demo, drawn by a fixed seed; the longest are left out until a pair has TOKENS (67) on average.

engine     token ids at hand -> scores, topic by topic; the next topics are launched before the
           scores of the first are fetched
texts      the same from texts, each of them met once and for the first time, so of fewer topics
command    `pipeline rerank --tokens`, from run file to run file: once on the clock with everything
           (Python, torch and the model loaded, the run read and written), and once as the command
           itself counts, from the first topic to the last
rival      sentence-transformers' CrossEncoder.predict in bfloat16, all pairs of some topics in one
           call, at the batch size that is its best on this card

The aims are 100,000 pairs a second in the engine and 60,000 by the command, with the shipped
student on an H100 or H200. Without a GPU, or where sequences have to be padded, it says so and
exits with 1. `--rehearse` runs everything on the CPU instead, to see that the script works; its
numbers mean nothing.
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
from itertools import batched, cycle, islice
from pathlib import Path
from typing import Any

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
AIMS = {"engine, from tokens": 100_000, "command, with its start": 60_000}  # pairs a second
Scores = NDArray[np.float32]


class Contest:
    """Topics, candidates and their texts, in files and in memory."""

    def __init__(
        self, folder: Path, model: str, topics: int, count: int, device: str, tokens: int
    ) -> None:
        self.folder, self.model, self.device = folder, model, device
        draw = random.Random(SEED)
        texts, queries = _texts()
        self.queries = {f"q{n}": text for n, text in enumerate(islice(cycle(queries), topics))}
        self.texts = {f"d{n}": text for n, text in enumerate(texts)}
        self._write_texts()
        started = time.perf_counter()
        tokenize(TokenizeSettings(model, folder / "tokens", None, folder / "corpus.jsonl"))
        print(f"tokenised {len(texts):,} passages in {time.perf_counter() - started:.1f} s")
        self.tokens = PassageTokens(folder / "tokens")
        self.ranker = self._ranker()
        self.most = self.ranker.limits["max_tokens"]
        docids = self._of_length(tokens)
        self.candidates = {
            qid: draw.sample(docids, min(count, len(docids))) for qid in self.queries
        }
        self.pairs = sum(map(len, self.candidates.values()))
        # Each passage once: a ranker keeps the tokens of texts that it has met.
        draw.shuffle(docids)
        self.once = dict(zip(self.queries, map(list, batched(docids, count)), strict=False))
        self._write_run()
        some = max(1, RIVAL_PAIRS // count)
        self.few = dict(islice(self.queries.items(), some))

    def _ranker(self) -> CrossEncoder:
        precision = "bf16" if self.device == "cuda" else "auto"
        return CrossEncoder(locate(self.model), Wishes(self.device, precision), Limits())  # type: ignore[arg-type]

    def _of_length(self, tokens: int) -> list[str]:
        """Leave the longest passages out until a pair has so many tokens on average."""
        docids = list(self.texts)
        lengths = np.array([len(ids) for ids in self.tokens.find(docids, self.most)[0]])
        empty = sum(self.ranker.score(q, [""]).tokens for q in self.queries.values())
        order = np.argsort(lengths, kind="stable")
        means = np.cumsum(lengths[order]) / np.arange(1, len(order) + 1)
        most = max(1, int(np.searchsorted(means, tokens - empty / len(self.queries), "right")))
        return [docids[place] for place in sorted(order[:most].tolist())]

    def _write_texts(self) -> None:
        with (self.folder / "corpus.jsonl").open("w") as file:
            for docid, text in self.texts.items():
                file.write(json.dumps({"id": docid, "contents": text}) + "\n")
        with (self.folder / "topics.tsv").open("w") as file:
            file.writelines(f"{qid}\t{text}\n" for qid, text in self.queries.items())

    def _write_run(self) -> None:
        with (self.folder / "first.run").open("w") as file:
            for qid, docids in self.candidates.items():
                file.writelines(
                    f"{qid} Q0 {docid} {rank} {-rank} first\n"
                    for rank, docid in enumerate(docids, 1)
                )

    def engine(self) -> float:
        """Pairs a second; everything but the model's own work hidden as far as it can be."""
        given = {
            qid: self.tokens.find(docids, self.most)[0] for qid, docids in self.candidates.items()
        }
        return self._launched(self.ranker, given)

    def from_texts(self) -> float:
        """Pairs a second of a ranker that has met none of the texts."""
        ranker = self._ranker()
        ranker.score("warm up", ["a few words " * n for n in range(1, 24)])
        given = {qid: [self.texts[docid] for docid in ids] for qid, ids in self.once.items()}
        return self._launched(ranker, given)

    def _launched(self, ranker: CrossEncoder, given: dict[str, Any]) -> float:
        waiting: deque[Callable[[], Scored]] = deque()
        tokens = 0
        started = time.perf_counter()
        for qid, passages_of in given.items():
            waiting.append(ranker.launch(self.queries[qid], passages_of))
            if len(waiting) > ranker.ahead:
                tokens += waiting.popleft()().tokens
        while waiting:
            tokens += waiting.popleft()().tokens
        seconds = time.perf_counter() - started
        pairs = sum(map(len, given.values()))
        self.tokens_a_pair = tokens / pairs
        return pairs / seconds

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
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"pipeline rerank failed:\n{done.stderr}")
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


def show(label: str, rates: list[float], beside: list[float] | None = None) -> None:
    """One line: the median, all repeats, and the ratio to the rival in each turn."""
    line = f"{label:34} {statistics.median(rates):9,.0f} pairs/s   all: "
    line += " ".join(f"{rate:,.0f}" for rate in rates)
    if beside:
        ratios = [mine / other for mine, other in zip(rates, beside, strict=True)]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        line += f"   {statistics.median(ratios):.1f} ({spread}) times as fast as the rival"
    print(line)


def rates_by_size(rival: Callable[[int], tuple[float, Scores]]) -> dict[int, float]:
    """Try the rival's batch sizes, those that fit."""
    tried = {}
    rival(SIZES[0])
    for size in SIZES:
        try:
            tried[size] = rival(size)[0]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    return tried


def main() -> int:
    """Print the table; 1 without a GPU, with padding, or if the scores are not the rival's."""
    words = [word for word in sys.argv[1:] if word != "--rehearse"]
    rehearsal = "--rehearse" in sys.argv
    defaults = ["small", *("3 20 1 67" if rehearsal else "500 1000 5 67").split()]
    model, *numbers = [*words, *defaults[len(words) :]]
    topics, count, repeats, tokens = map(int, numbers)
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
        contest = Contest(Path(scratch), model, topics, count, device, tokens)
        signature = contest.ranker.signature
        print(f"forward pass: {signature['forward']}, {signature['precision']}")
        if not rehearsal and signature["forward"] != "flattened":
            print("sequences are padded: see docs/performance.md for when", file=sys.stderr)
            return 1
        rival = contest.rival()
        tried = rates_by_size(rival)
        best = max(tried, key=lambda size: tried[size])
        print("rival by batch size: " + ", ".join(f"{s}: {r:,.0f}" for s, r in tried.items()))
        taken: dict[str, list[float]] = {}
        scores = rival(best)[1]
        for repeat in range(repeats + 1):  # the first warms up, and is not counted
            rates = {"engine, from tokens": contest.engine()}
            mean = contest.tokens_a_pair
            rates["engine, from texts"] = contest.from_texts()
            whole, counted = contest.command()
            rates |= {"command, with its start": whole, "command, as it counts": counted}
            rates[f"rival, bf16, batches of {best}"] = rival(best)[0]
            if repeat:
                for label, rate in rates.items():
                    taken.setdefault(label, []).append(rate)
        print(
            f"{mean:.1f} tokens a pair; from texts: {sum(map(len, contest.once.values())):,} pairs"
        )
        *ours, last = taken
        for label in ours:
            show(label, taken[label], taken[last])
        show(last, taken[last])
        for label, aim in {} if rehearsal else AIMS.items():
            met = "met" if statistics.median(taken[label]) >= aim else "missed"
            print(f"{label}: {aim:,} pairs/s are {met}")
        alike = contest.agreement(scores)
        print(f"correlation of scores with the rival's: {alike:.5f}")
        return int(alike < 0.99)


if __name__ == "__main__":
    sys.exit(main())
