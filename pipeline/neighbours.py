"""Nearest vectors without looking at all of them: an HNSW graph by faiss, kept beside the vectors.

faiss, and not the HNSW of Lucene, which Pyserini has anyway: the numbers are in docs/systems.md.
A graph finds most of the nearest vectors, not all; their scores are computed by who asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline import vectors
from pipeline.errors import PipelineError
from pipeline.report import SILENT, Reporter
from pipeline.stage import Recipe, producing
from pipeline.store import write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.vectors import PassageVectors

    Rows = PassageVectors | NDArray[np.float32]

VERSION = 1
LINKS, WIDTH = 32, 200  # of each vector; of the search for them while the graph is made
LEAST = 256  # places that a search looks at; for more hits, as many
BLOCK = 4096  # vectors added at a time
SETTINGS = {"method": "hnsw", "links": LINKS, "width": WIDTH, "least": LEAST}
"""All that determines which neighbours are found, but for the library's version"""


def need_faiss() -> None:
    """Fail before any work.

    Raises:
        PipelineError: faiss is not installed.
    """
    try:
        import faiss  # noqa: F401 - asked for, not used
    except ImportError:
        raise PipelineError(
            "--ann needs the package faiss-cpu, which is not installed",
            "pip install 'trec-pipeline[ann]', or leave --ann out: exact search needs nothing",
        ) from None


def place(folder: Path) -> Path:
    """`my.vectors` -> `my.vectors.hnsw`, where the graph is kept."""
    folder = folder if folder.name else folder.absolute()  # `.`
    return folder.with_name(f"{folder.name}.hnsw")


class Graph:
    """The graph of one folder of vectors; made if it is not there or belongs to others.

    Raises:
        PipelineError: faiss is missing, a file that is no graph of ours is in the way, or it is
            damaged.
    """

    def __init__(self, found: PassageVectors, reporter: Reporter = SILENT) -> None:
        need_faiss()
        import faiss

        path = place(found.folder)
        with producing(path, lambda: _recipe(found.folder), reporter=reporter) as job:
            if not job.fresh:
                reporter.notice(f"building the graph {path}, once for these vectors")
                index = built(found, found.size, found.count, reporter)
                data = bytes(faiss.serialize_index(index).tobytes())
                with job.commit({"passages": found.count}, {"faiss": str(faiss.__version__)}):
                    write_bytes(path, data)
            try:
                self._index: Any = faiss.read_index(str(path))
            except RuntimeError as error:
                raise PipelineError(
                    f"{path}: faiss cannot read it", "delete it, and it is made again"
                ) from error
        self._count = found.count

    def nearest(self, queries: NDArray[np.float32], count: int) -> Iterator[NDArray[np.int64]]:
        """Find rows of about the `count` highest products with each query, in no useful order."""
        yield from nearest_in(self._index, queries, min(count, self._count))


def _recipe(folder: Path) -> Recipe:
    return Recipe("neighbours", VERSION, SETTINGS, {"vectors": vectors.digest(folder)})


def built(found: Rows, size: int, count: int, reporter: Reporter = SILENT) -> Any:
    """Build an index on one thread: with several, the graph would be another each time.

    Args:
        found: float32 rows by slices, `count` of `size` numbers.
    """
    import faiss

    half = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexHNSWSQ(size, half, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = WIDTH
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.train(found[slice(0, BLOCK)])
        for start in range(0, count, BLOCK):
            index.add(found[slice(start, start + BLOCK)])
            reporter.advance(min(start + BLOCK, count), count, "passages linked")
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def nearest_in(index: Any, queries: NDArray[np.float32], count: int) -> Iterator[NDArray[np.int64]]:
    """Search an index that was built here."""
    import faiss
    import numpy as np

    wanted = faiss.SearchParametersHNSW(efSearch=max(LEAST, count))
    for query in queries:  # one at a time: what is found must not depend on the others
        _, rows = index.search(np.ascontiguousarray(query[None]), count, params=wanted)
        yield rows[0][rows[0] >= 0]
