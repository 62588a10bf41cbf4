"""How fast pairs are scored, beside CrossEncoder.predict, ONNX Runtime and OpenVINO.

usage: [PIPELINE_COLLECTIONS=FOLDER] python scripts/bench/reranking.py [MODEL] [TOPICS] [PASSAGES]
                                                                       [REPEATS] [RIVALS]

Same weights, same pairs, same threads, one process; everything is timed from texts to scores, in
turn, and all repeats are shown. Pairs are topics of the MS MARCO pool with their BM25 candidates,
or without that collection topics of the demo with passages of the demo, drawn by a fixed seed.
CrossEncoder is given all pairs in one call: at its defaults (the precision of the saved weights,
batches of 32), in float32, and in bfloat16 with several batch sizes, the settings its documentation
names for speed that need no other package; and with OpenVINO as its back end, in float32, bfloat16
and int8, where optimum-intel and nncf are installed (which want versions of their own: put them on
PYTHONPATH for this alone, and leave the other rivals out). ONNX Runtime and OpenVINO (where
it is installed) also run what `pipeline export --onnx --int8` writes, our own shorter graph, pairs
sorted by length in batches of 32: no rival of ours, but what becomes of it elsewhere. Ours scores
topic by topic, as `pipeline rerank` does, and has met no passage before, in bf16, and in int8 where
the processor has that. RIVALS, a word in their names, leaves the others out (`OpenVINO bf16`), for
many pairs.

At the end the roof: the operations that the pairs need, padding not counted, and the rate at which
oneDNN multiplies matrices of the model's shapes in the same precision, measured after each turn.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import pipeline.demo
from pipeline.bm25 import BM25, Searcher
from pipeline.demo.docstrings import passages
from pipeline.export import INT8, ONNX, ExportSettings, export
from pipeline.index import IndexSettings, index
from pipeline.lucene import Index
from pipeline.machine import cpus
from pipeline.models import int8
from pipeline.models.folder import advice, locate
from pipeline.models.reranker import Reranker
from pipeline.topics import read_topics

SEED = 7
THEIRS = "CrossEncoder.predict"
GRAPHS = tuple(
    f"our graph, {kind}" for kind in ("ONNX fp32", "ONNX int8", "OpenVINO f32", "OpenVINO bf16")
)
BATCHES = (8, 16, 32, 64)
OURS, OURS_INT8 = "ours, bf16", "ours, int8"
OURS_READ = "ours, bf16, tokens at hand"
Scores = NDArray[np.float32]


class Contest:
    """The same pairs for everybody."""

    def __init__(self, model: str, topics: int, count: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from sentence_transformers import CrossEncoder

        draw = random.Random(SEED)
        self.pairs = _pool(draw, topics, count) or _demo(draw, topics, count)
        self._folder = str(locate(model))
        self.length = advice(locate(model)).max_tokens or 512
        self._theirs = {
            name: CrossEncoder(
                self._folder,
                device="cpu",
                max_length=self.length,
                activation_fn=torch.nn.Identity(),
                model_kwargs=settings,
            )
            for name, settings in (
                ("defaults", {}),
                ("fp32", {"dtype": torch.float32}),
                ("bf16", {"dtype": torch.bfloat16}),
            )
        }

    def with_openvino(self) -> dict[str, Callable[[], Scores]]:
        """CrossEncoder with OpenVINO as its back end, at each precision and batch size.

        In int8 scales are fixed beforehand, as its documentation advises, by nncf; here by the very
        pairs that are scored, and what is not in int8 is in bf16.
        """
        if not (find_spec("optimum") and find_spec("optimum.intel")):
            print("CrossEncoder with OpenVINO: left out (needs optimum-intel)", file=sys.stderr)
            return {}
        from sentence_transformers import CrossEncoder

        made: dict[str, Callable[[], Scores]] = {}
        for precision in ("f32", "bf16", "int8"):
            if precision == "int8" and not find_spec("nncf"):
                print("CrossEncoder with OpenVINO int8: left out (needs nncf)", file=sys.stderr)
                continue
            name = f"OpenVINO {precision}"
            self._theirs[name] = CrossEncoder(
                self._folder,
                backend="openvino",
                device="cpu",
                max_length=self.length,
                activation_fn=torch.nn.Identity(),
                model_kwargs={
                    "ov_config": {"INFERENCE_PRECISION_HINT": precision.replace("int8", "bf16")}
                },
            )
            if precision == "int8":
                self._round(name)
            for size in BATCHES:
                made[f"{THEIRS}, {name}, {size}"] = partial(self.theirs, name, size)
        return made

    def _round(self, name: str) -> None:
        """Put a model of OpenVINO into int8."""
        import nncf

        loaded: Any = self._theirs[name]
        wanted = {given.any_name for given in loaded.model.model.inputs}
        texts = [(query, text) for query, texts in self.pairs.items() for text in texts]
        some = [
            loaded.tokenizer(
                [query], [text], truncation=True, max_length=self.length, return_tensors="np"
            )
            for query, text in texts[:: -(-len(texts) // 300)]
        ]
        loaded.model.model = nncf.quantize(
            loaded.model.model,
            nncf.Dataset([{key: one[key] for key in wanted} for one in some]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(some),
        )
        loaded.model.request = None
        loaded.model.compile()

    def our_graph(self, exported: Path) -> dict[str, Callable[[], Scores]]:
        """What we exported, in ONNX Runtime and, where it is installed, in OpenVINO."""
        fp32, rounded, *in_openvino = GRAPHS
        made = {fp32: self.onnx(exported / ONNX), rounded: self.onnx(exported / INT8)}
        for label, precision in zip(in_openvino, ("f32", "bf16"), strict=True):
            try:
                made[label] = self.openvino(exported / ONNX, precision)
            except ImportError as missing:
                print(f"{label}: left out ({missing})", file=sys.stderr)
        return made

    def onnx(self, file: Path) -> Callable[[], Scores]:
        """Make what ONNX Runtime scores all pairs with."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpus()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = {given.name for given in session.get_inputs()}
        return self._sorted(names, lambda given: session.run(None, given)[0])

    def openvino(self, file: Path, precision: str) -> Callable[[], Scores]:
        """Make what OpenVINO scores all pairs with, from the same graph.

        Raises:
            ImportError: it is not installed.
        """
        from openvino import Core

        wishes = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": cpus()}
        compiled = Core().compile_model(str(file), "CPU", wishes)
        request = compiled.create_infer_request()
        names = {given.any_name for given in compiled.inputs}
        return self._sorted(names, lambda given: request.infer(given)[compiled.output(0)])

    def _sorted(
        self, names: set[str], score: Callable[[dict[str, NDArray[np.int64]]], Scores]
    ) -> Callable[[], Scores]:
        """Tokenise and score all pairs in batches of 32 of like length, longest first."""
        tokenizer = self._theirs["fp32"].tokenizer
        pairs = [(query, text) for query, texts in self.pairs.items() for text in texts]

        def run() -> Scores:
            order = sorted(range(len(pairs)), key=lambda at: -len(pairs[at][1]))
            scores = np.empty(len(pairs), np.float32)
            for start in range(0, len(order), 32):
                some = order[start : start + 32]
                made = tokenizer(
                    [pairs[at][0] for at in some], [pairs[at][1] for at in some],
                    padding=True, truncation=True, max_length=self.length, return_tensors="np",
                )  # fmt: skip
                given = {name: made[name].astype(np.int64) for name in names}
                scores[some] = score(given)[:, 0]
            return scores

        return run

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each pair."""
        tokenizer = self._theirs["fp32"].tokenizer
        found: list[int] = []
        for query, texts in self.pairs.items():
            made = tokenizer([query] * len(texts), texts, truncation=True, max_length=self.length)
            found += map(len, made["input_ids"])
        return np.asarray(found)

    def theirs(self, precision: str, batch_size: int) -> Scores:
        """All pairs in one call, which lets it sort them all by length."""
        pairs = [(query, text) for query, texts in self.pairs.items() for text in texts]
        scores = self._theirs[precision].predict(
            pairs, batch_size=batch_size, show_progress_bar=False
        )
        return np.asarray(scores, np.float32)

    def ours(self, precision: str, *, read: bool = False) -> Callable[[], Scores]:
        """Make a reranker that has met no passage, and what scores with it, topic by topic.

        Args:
            read: texts are tokenised beforehand, as `rerank` finds them where tokens are kept.
        """
        reranker = Reranker.load(self._folder, device="cpu", precision=precision)  # type: ignore[arg-type]
        # As predict's own warm-up: the first pass in a process prepares kernels.
        reranker.score("warm up", ["a few words " * n for n in range(1, 24)])
        for query, texts in self.pairs.items() if read else ():
            reranker.scorer.read(query, texts)
        return lambda: np.concatenate(list(reranker.score_each(self.pairs.items())))


def _demo(draw: random.Random, topics: int, count: int) -> dict[str, list[str]]:
    texts = [text for _, text in passages()]
    file = Path(pipeline.demo.__file__).parent / "topics.tsv"
    queries = draw.sample(sorted(read_topics(file).values()), topics)
    return {query: draw.sample(texts, count) for query in queries}


def _pool(draw: random.Random, topics: int, count: int) -> dict[str, list[str]]:
    """BM25 candidates of topics of the MS MARCO pool; none without it."""
    place = Path(os.environ.get("PIPELINE_COLLECTIONS", "")) / "msmarco-pool"
    if not (place / "corpus.jsonl.gz").exists():
        return {}
    known = read_topics(place / "topics.dev600.tsv")
    some = {qid: known[qid] for qid in draw.sample(sorted(known), topics)}
    with tempfile.TemporaryDirectory() as scratch:
        index(IndexSettings(place / "corpus.jsonl.gz", Path(scratch) / "index"))
        with Index(Path(scratch) / "index") as opened:
            found = Searcher(opened, BM25(hits=count)).search(list(some.values()))
            return {
                query: [text or "" for text in opened.texts(doc.docid for doc in docs)]
                for query, docs in zip(some.values(), found, strict=True)
            }


def operations(
    lengths: NDArray[np.int64], hidden: int, wide: int, layers: int, heads: int
) -> float:
    """Multiplications and additions that all pairs need.

    The last layer is for the first token alone, and projects no keys and values: each head's query,
    seen through the key's weights, meets all hidden states, and they are averaged once for it.
    """
    each = 4 * hidden * hidden + 2 * hidden * wide  # weights of one layer
    n = lengths.astype(float)
    whole = 2 * n * each + 4 * n * n * hidden
    last = 2 * each + 4 * n * hidden * heads
    return float(((layers - 1) * whole + last).sum())


def roof(hidden: int, wide: int, threads: int) -> float:
    """Operations a second of oneDNN in bf16 on the shapes of a layer.

    The best of three forms: threads share a multiplication, of plain or of laid out weights, or
    each has its own.
    """
    shared = max(_rate(hidden, wide, lay_out) for lay_out in (False, True))
    together = Barrier(threads)

    def alone(_: int) -> float:
        torch.set_num_threads(1)
        return _rate(hidden, wide, True, together.wait)

    with ThreadPoolExecutor(threads) as crew:
        apart = sum(crew.map(alone, range(threads)))
    torch.set_num_threads(threads)
    return max(shared, apart)


def _rate(
    hidden: int,
    wide: int,
    lay_out: bool,
    begin: Callable[[], object] = int,
    rows: int = 1024,
    repeats: int = 40,
) -> float:
    """Operations a second of one caller, the median of each shape's repeats."""
    seconds = 0.0
    with torch.inference_mode():
        for into, out in ((hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden)):
            x, weight = torch.randn(rows, into).bfloat16(), torch.randn(out, into).bfloat16()
            if lay_out:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # noqa: SLF001
                multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
                run = partial(multiply, x, packed, None, "none", [], "")
            else:
                run = partial(torch.nn.functional.linear, x, weight)
            run()
            begin()
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
            seconds += statistics.median(times)
    return 2 * rows * (4 * hidden * hidden + 2 * hidden * wide) / seconds


def main() -> int:
    """Print the table; 1 if scores of the same precision are not the same but for rounding."""
    given = [*sys.argv[1:], *(["small", "4", "250", "3", ""])[len(sys.argv) - 1 :]]
    model, only, (topics, count, repeats) = given[0], given[4], map(int, given[1:4])
    torch.set_num_threads(cpus())
    contest = Contest(model, topics, count)
    taken: dict[str, list[float]] = {}
    scores: dict[str, Scores] = {}
    scratch = tempfile.TemporaryDirectory()
    output = Path(scratch.name) / "exported"
    if any(only in label for label in GRAPHS):
        export(ExportSettings(model, output, onnx=True, int8=True))
    rivals: dict[str, Callable[[], Scores]] = {
        f"{THEIRS} (defaults)": lambda: contest.theirs("defaults", 32),
        f"{THEIRS}, fp32, 32": lambda: contest.theirs("fp32", 32),
        **(contest.with_openvino() if not only or "OpenVINO" in only else {}),
    }
    for size in BATCHES:
        rivals[f"{THEIRS}, bf16, {size}"] = partial(contest.theirs, "bf16", size)
    if output.exists():
        rivals |= contest.our_graph(output)
    rivals = {label: run for label, run in rivals.items() if only in label}
    if not rivals:
        sys.exit(f"no rival has {only!r} in its name")
    shape = json.loads((locate(model) / "config.json").read_text())
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    roofs: list[float] = []
    for repeat in range(repeats + 1):  # the first warms up, and is not counted
        runs = {**rivals}
        if not only:
            runs["ours, fp32"] = contest.ours("fp32")
        if int8.works():
            runs[OURS_INT8] = contest.ours("int8")
        runs[OURS_READ] = contest.ours("bf16", read=True)
        runs[OURS] = contest.ours("bf16")
        for label, run in runs.items():
            started = time.perf_counter()
            scores[label] = run()
            if repeat:
                taken.setdefault(label, []).append(time.perf_counter() - started)
        if repeat:
            roofs.append(roof(hidden, wide, cpus()))
    print_rates(f"{model}: {topics} topics", contest, taken)
    needed = operations(contest.lengths(), hidden, wide, layers, heads)
    for label in (OURS, OURS_READ):
        print_roof(label, contest, needed, taken[label], roofs)
    return 0 if only else print_differences(scores)  # what scores are compared with may be left out


def print_rates(title: str, contest: Contest, taken: dict[str, list[float]]) -> None:
    """Print pairs a second of all turns, and how many times as fast ours are, in bf16 and int8."""
    pairs = sum(map(len, contest.pairs.values()))
    print(f"{title}, {pairs:,} pairs, {cpus()} threads, torch {torch.__version__}")
    rates = {label: pairs / statistics.median(times) for label, times in taken.items()}
    for label, times in taken.items():
        each = " ".join(f"{pairs / seconds:.0f}" for seconds in times)
        print(f"{label:40} {rates[label]:6,.0f} pairs/s   all: {each}")
    for ours in (mine for mine in (OURS, OURS_INT8) if mine in taken):
        for label in sorted(set(taken) - {ours}, key=lambda label: -rates[label]):
            ratios = [a / b for a, b in zip(taken[label], taken[ours], strict=True)]
            print(
                f"{ours}, beside {label}: {statistics.median(ratios):.2f} times as fast "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


def print_roof(
    label: str, contest: Contest, needed: float, seconds: list[float], roofs: list[float]
) -> None:
    """Print what share of the possible rate was reached, in each turn."""
    lengths = contest.lengths()
    reached = [needed / turn for turn in seconds]
    shares = " ".join(f"{a / b:.0%}" for a, b in zip(reached, roofs, strict=True))
    print(
        f"{label}, roof: {needed / len(lengths) / 1e9:.2f} GFLOP a pair of "
        f"{lengths.mean():.0f} tokens; "
        f"{statistics.median(reached) / 1e9:.0f} of {statistics.median(roofs) / 1e9:.0f} GFLOP/s "
        f"reached; in turn {shares}"
    )


def print_differences(scores: dict[str, Scores]) -> int:
    """Print by how much scores differ; 1 if those of float32 do but for rounding."""
    reference = scores[f"{THEIRS}, fp32, 32"]
    spread = float(reference.std())
    worst = float(np.abs(scores["ours, fp32"] - reference).max())
    print(
        f"largest difference of scores, both fp32: {worst:.2e} (deviation of scores {spread:.3f})"
    )
    openvino = f"{THEIRS}, OpenVINO int8, {BATCHES[0]}"
    for label in (f"{THEIRS}, bf16, {BATCHES[0]}", GRAPHS[1], openvino, OURS, OURS_INT8):
        if label in scores:
            off = np.abs(scores[label] - reference)
            print(
                f"{label}: off from fp32 by {off.mean():.2e}, {off.max():.2e} at most, "
                f"{distinct(scores[label])}"
            )
    return int(worst > 1e-3 * spread)


def distinct(scores: Scores) -> str:
    """Count the scores that can be told apart."""
    return f"{len(np.unique(scores)):,} of {len(scores):,} scores distinct"


if __name__ == "__main__":
    sys.exit(main())
