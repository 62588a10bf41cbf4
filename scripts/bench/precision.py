"""Whether `--precision auto`, or another, ranks as float32 does: nDCG@10 on judged collections.

usage: PIPELINE_COLLECTIONS=FOLDER python scripts/bench/precision.py [MODEL] [DEPTH] [PRECISION]

Every collection of the folder that has topics and judgements of `all`, `dev` or `dev600` is
indexed, its first DEPTH (20) candidates by BM25 are reranked with either precision, all else by
default, and the mean of nDCG@10 over all judged topics is compared. Ends with 1 if one differs by
more than 0.001, which is what `auto` promises.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.evaluate import evaluate_runs
from pipeline.index import IndexSettings, index
from pipeline.rerank import RerankSettings, rerank
from pipeline.retrieve import RetrieveSettings, retrieve
from pipeline.stage import read_sidecar

if TYPE_CHECKING:
    from pipeline.models.scorer import Precision

SPLITS = ("all", "dev", "dev600")
MEASURE = "nDCG@10"
MOST = 0.001


def main() -> int:
    """Print a line for each collection."""
    model, depth, wish = [*sys.argv[1:], *("small", "20", "auto")[len(sys.argv) - 1 :]]
    both = cast("Precision", wish), cast("Precision", "fp32")
    furthest = 0.0
    for topics in sorted(Path(os.environ["PIPELINE_COLLECTIONS"]).glob("*/topics.*.tsv")):
        split = topics.name.split(".")[1]
        qrels = topics.parent / f"qrels.{split}.txt"
        if split not in SPLITS or not qrels.exists():
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            index(IndexSettings(topics.parent / "corpus.jsonl.gz", folder / "index"))
            bm25 = folder / "bm25.run"
            retrieve(RetrieveSettings(topics, folder / "index", bm25, hits=int(depth)))
            runs = []
            for precision in both:
                runs.append(folder / f"{precision}.run")
                rerank(
                    RerankSettings(
                        bm25, topics, model, runs[-1], index=folder / "index",
                        precision=precision,
                    )
                )  # fmt: skip
            sidecar = read_sidecar(runs[0]) or {}
            tried, exact = (
                row.evaluation.mean[MEASURE] for row in evaluate_runs(qrels, runs, [MEASURE]).rows
            )
        furthest = max(furthest, abs(tried - exact))
        print(
            f"{topics.parent.name:22} {wish} is {sidecar['details']['signature']['precision']}: "
            f"{MEASURE} {tried:.4f}, fp32 {exact:.4f}, difference {tried - exact:+.5f}",
            flush=True,
        )
    return int(furthest > MOST)


if __name__ == "__main__":
    sys.exit(main())
