"""How much faster a student scores pairs than a teacher of BERT-Base's size.

usage: python scripts/bench/speedup.py [MODEL] [PAIRS] [REPEATS] [TOKENS] [THREADS]

The teacher has random weights (12 layers, 768 wide, 12 heads, 3,072 within) and the student's
vocabulary: speed does not depend on what weights say. Both run through the same engine over the
same real pairs, in turn; the median of the repeats is taken, and all of them are shown: by the
clock, and in seconds of processor time, which on one thread other programs disturb less.
"""

import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from pipeline.export import real_pairs
from pipeline.machine import cpus
from pipeline.models.folder import locate
from pipeline.models.reranker import Reranker

BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # fmt: skip


def teacher(folder: Path, student: Path) -> str:
    """Save a BERT-Base of random weights with the student's tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    config = AutoConfig.from_pretrained(student)
    config.update(BASE)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    return str(folder)


def main() -> None:
    given = [*sys.argv[1:], *("small", "64", "5", "128", "0")[len(sys.argv) - 1 :]]
    model, count, repeats, tokens, threads = given[0], *map(int, given[1:5])
    os.environ["HF_HUB_OFFLINE"] = "1"
    pairs = list(islice(((q, p) for q, texts in real_pairs() for p in texts), count))
    by_query = {query: [p for q, p in pairs if q == query] for query, _ in pairs}
    with tempfile.TemporaryDirectory() as name:
        names = {"BERT-Base": teacher(Path(name), locate(model)), model: model}
        loaded = {who: Reranker.load(where, max_tokens=tokens, threads=threads)
                  for who, where in names.items()}  # fmt: skip
        took: dict[str, list[tuple[float, float]]] = {who: [] for who in names}
        for repeat in range(repeats + 1):  # the first warms up
            for who, reranker in loaded.items():
                started, used = time.perf_counter(), time.process_time()
                for query, texts in by_query.items():
                    reranker.score(query, texts)
                if repeat:
                    now, now_used = time.perf_counter(), time.process_time()
                    took[who].append((now - started, now_used - used))
    print(f"{len(pairs)} pairs of at most {tokens} tokens, {threads or cpus()} threads")
    for place, clock in enumerate(("clock", "processor")):
        for who, times in took.items():
            one = [each[place] for each in times]
            shown = " ".join(f"{seconds:.2f}" for seconds in one)
            rate = len(pairs) / statistics.median(one)
            print(f"{clock:10} {who:10} {rate:8.1f} pairs/s   seconds: {shown}")
        slow, fast = (statistics.median(each[place] for each in times) for times in took.values())
        print(f"{clock:10} speed-up {slow / fast:.1f}")


if __name__ == "__main__":
    main()
