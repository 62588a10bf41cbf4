"""How much faster a student scores pairs than a teacher of BERT-Base's size.

usage: python scripts/bench/speedup.py [MODEL] [PAIRS] [REPEATS] [TOKENS]

The teacher has random weights (12 layers, 768 wide, 12 heads, 3,072 within) and the student's
vocabulary: speed does not depend on what weights say. Both run through the same engine over the
same real pairs, in turn; the median of the repeats is taken, and all of them are shown.
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
    given = [*sys.argv[1:], *("small", "64", "5", "128")[len(sys.argv) - 1 :]]
    model, count, repeats, tokens = given[0], *map(int, given[1:4])
    os.environ["HF_HUB_OFFLINE"] = "1"
    pairs = list(islice(((q, p) for q, texts in real_pairs() for p in texts), count))
    by_query = {query: [p for q, p in pairs if q == query] for query, _ in pairs}
    with tempfile.TemporaryDirectory() as name:
        names = {"BERT-Base": teacher(Path(name), locate(model)), model: model}
        loaded = {who: Reranker.load(where, max_tokens=tokens) for who, where in names.items()}
        took: dict[str, list[float]] = {who: [] for who in names}
        for repeat in range(repeats + 1):  # the first warms up
            for who, reranker in loaded.items():
                started = time.perf_counter()
                for query, texts in by_query.items():
                    reranker.score(query, texts)
                if repeat:
                    took[who].append(time.perf_counter() - started)
    print(f"{len(pairs)} pairs of at most {tokens} tokens, {cpus()} threads")
    for who, times in took.items():
        middle = statistics.median(times)
        shown = " ".join(f"{one:.2f}" for one in times)
        print(f"{who:12} {len(pairs) / middle:8.1f} pairs/s   seconds: {shown}")
    slow, fast = (statistics.median(times) for times in took.values())
    print(f"speed-up {slow / fast:.1f}")


if __name__ == "__main__":
    main()
