"""How fast passages are encoded, beside SentenceTransformer.encode on the same texts.

usage: [PIPELINE_COLLECTIONS=FOLDER] python scripts/bench/encoding.py MODEL [PASSAGES] [REPEATS]

MODEL is a folder of two towers. The texts are passages of the MS MARCO pool, or without that
collection those of the demo, drawn by a fixed seed; one thread, in turns, all repeats shown. Ours
as `pipeline encode` does it: bf16 where the processor has it, and float32; theirs at its defaults
(batches of 32, sorted by length, the precision of the saved weights) and in bf16. Rates are texts
by seconds of the processor, and by seconds on the clock, which other programs share.
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from pipeline.collection import documents
from pipeline.demo.docstrings import passages
from pipeline.machine import name
from pipeline.models.reranker import load_towers
from pipeline.models.scorer import Limits, Precision, Wishes

SEED = 7


def texts(count: int) -> list[str]:
    """Draw passages."""
    place = Path(os.environ.get("PIPELINE_COLLECTIONS", "")) / "msmarco-pool" / "corpus.jsonl.gz"
    if place.exists():
        some = [document.text for document in islice(documents(place), 10_000)]
    else:
        some = [text for _, text in passages()]
    return random.Random(SEED).sample(some, count)


def main() -> int:
    """Print the table; 1 if float32 vectors are not theirs."""
    from sentence_transformers import SentenceTransformer

    folder = sys.argv[1]
    count, repeats = (int(n) for n in [*sys.argv[2:], *("400", "3")[len(sys.argv) - 2 :]])
    torch.set_num_threads(1)
    given = texts(count)
    theirs = SentenceTransformer(folder, device="cpu")
    narrow = SentenceTransformer(folder, device="cpu", model_kwargs={"torch_dtype": torch.bfloat16})

    def ours(precision: Precision) -> Callable[[], np.ndarray]:
        model = load_towers(folder, Wishes("cpu", precision, 1), Limits())
        model.encode_anew(["to warm up"])
        return lambda: model.encode_anew(given)[0]

    rates: dict[str, list[tuple[float, float]]] = {}
    vectors: dict[str, np.ndarray] = {}
    theirs.encode(given[:8])
    narrow.encode(given[:8])
    for _ in range(repeats):
        runs: dict[str, Callable[[], np.ndarray]] = {
            "theirs": lambda: np.asarray(theirs.encode(given)),
            "theirs, bf16": lambda: narrow.encode(given, convert_to_tensor=True).float().numpy(),
            "ours, fp32": ours("fp32"),
            "ours": ours("auto"),
        }
        for label, run in runs.items():
            clock, processor = time.perf_counter(), time.process_time()
            vectors[label] = run()
            used, passed = time.process_time() - processor, time.perf_counter() - clock
            rates.setdefault(label, []).append((count / used, count / passed))
    lengths = [len(ids) for ids in theirs.tokenizer(given, truncation=True)["input_ids"]]
    print(f"{count} passages of {np.mean(lengths):.0f} tokens, {Path(folder).name}, {name()}")
    for label, found in rates.items():
        median, clock = (statistics.median(column) for column in zip(*found, strict=True))
        each = " ".join(f"{a:.0f}/{b:.0f}" for a, b in found)
        print(f"{label:14} {median:6.1f} texts/s {clock:6.1f} on the clock   all: {each}")
    for label in ("theirs", "theirs, bf16"):
        ratios = [a[0] / b[0] for a, b in zip(rates["ours"], rates[label], strict=True)]
        middle = statistics.median(ratios)
        print(f"ours beside {label}: {middle:.1f} times ({min(ratios):.1f} to {max(ratios):.1f})")
    worst = float(np.abs(vectors["ours, fp32"] - vectors["theirs"]).max())
    print(f"largest difference of numbers, both float32: {worst:.1e}")
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
