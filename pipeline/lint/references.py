"""What a run is held against: topics, judgements, and the documents there are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pipeline.columns import word_hashes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.columns import Block
    from pipeline.lucene import Index
    from pipeline.trec import Qrels

BATCH = 10_000
TRAPS = ("NA", "N/A", "NaN", "nan", "null", "NULL", "None")  # nothing, to pandas


def trapped(qid: str) -> bool:
    """Whether pandas would read another id than this."""
    return qid in TRAPS or (len(qid) > 1 and qid[0] == "0" and qid.isdigit())


@dataclass
class References:
    """Given by the user, each or none."""

    topics: tuple[str, ...] | None = None  # in the order of their file
    qrels: Qrels | None = None
    documents: Documents | None = None
    depth: int = 1000
    names: dict[str, str] = field(default_factory=dict)  # of the files, for messages


def hashes(words: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of each word, as `Block.hashes` has them."""
    return word_hashes([word.encode() for word in words])


class Documents:
    """The ids of a collection or an index, eight bytes for each."""

    def __init__(self, known: NDArray[np.uint64], index: Index | None = None) -> None:
        self._known = known
        self._index = index
        self._close = ExitStack()

    @classmethod
    def of_collection(cls, path: str) -> Self:
        """Read the ids of a collection.

        Raises:
            PipelineError: as `collection.documents`.
        """
        import numpy as np

        from pipeline.collection import documents

        parts = [np.zeros(0, np.uint64)]
        parts += map(hashes, _batches(document.docid for document in documents(path)))
        return cls(np.unique(np.concatenate(parts)))

    @classmethod
    def of_index(cls, path: Path) -> Self:
        """Look documents up in an index as they come.

        Raises:
            PipelineError: it is no index, or stores no text.
        """
        import numpy as np

        from pipeline.lucene import Index

        index = Index(path)
        found = cls(np.zeros(0, np.uint64), index)
        found._close.enter_context(index)
        return found

    def close(self) -> None:
        """Close the index."""
        self._close.close()

    def unknown(self, block: Block, column: int) -> NDArray[np.int64]:
        """Lines of a block whose document does not exist."""
        import numpy as np

        asked = block.hashes(column)
        absent = np.flatnonzero(~self._has(asked))
        if self._index is None or not len(absent):
            return absent
        _, some = np.unique(asked[absent], return_index=True)  # each document once
        lines = absent[some]
        docids = [block.token(i, column).decode("utf-8", "replace") for i in lines.tolist()]
        texts = self._index.texts(docids)
        here = np.array([text is not None for text in texts], bool)
        self._known = np.union1d(self._known, asked[lines[here]])
        return absent[~self._has(asked[absent])]

    def _has(self, asked: NDArray[np.uint64]) -> NDArray[np.bool_]:
        import numpy as np

        if not len(self._known):
            return np.zeros(len(asked), bool)
        at = np.searchsorted(self._known, asked)
        found: NDArray[np.bool_] = self._known[np.minimum(at, len(self._known) - 1)] == asked
        return found


def _batches(words: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for word in words:
        held.append(word)
        if len(held) == BATCH:
            yield held
            held = []
    if held:
        yield held
