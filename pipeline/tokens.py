"""Token ids of a collection's passages on the disk: one folder, read through memory maps.

`tokens.bin` holds the ids of all passages, one after the other (uint16, or uint32 where the
vocabulary needs it), `starts.bin` where each begins, `docids.bin` the digests of all docids in
order with the row of each, `texts.bin` the digest of each text, `about.json` the rest: which
tokenizer made them, of which texts, and the digest of the four files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.errors import InputError, PipelineError, shown, storage_error
from pipeline.mapped import ABOUT
from pipeline.store import (
    TEXT_DIGEST,
    atomic_file,
    digest_text,
    digest_together,
    write_bytes,
    write_json,
)
from pipeline.textfile import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SCHEMA = 2
FILES = ("tokens.bin", "starts.bin", "docids.bin", "texts.bin")
AGAIN = "make them again: pipeline tokenize"
WORD = 1 << 16  # vocabularies up to this size fit 16 bits


class Tokens(NamedTuple):
    """Token ids of the candidates of one topic."""

    ids: NDArray[np.integer]  # of all, one after the other
    lengths: NDArray[np.int64]  # of each
    keys: bytes  # digests of their texts, one after the other


def part_bytes(
    docids: Sequence[str], texts: Sequence[str], found: Sequence[NDArray[np.int32]], vocabulary: int
) -> bytes:
    """One finished slice: a line that says how long its four pieces are, and the pieces."""
    pieces = [
        b"".join(map(digest_text, docids)),
        b"".join(map(digest_text, texts)),
        np.array(list(map(len, found)), np.uint32).tobytes(),
        np.concatenate(found).astype(_numbers(vocabulary)).tobytes(),
    ]
    return json.dumps([*map(len, pieces)]).encode() + b"\n" + b"".join(pieces)


def write_tokens(folder: Path, parts: Iterable[Path], about: dict[str, Any]) -> int:
    """Join finished slices in a folder that is being made; the number of passages.

    Raises:
        PipelineError: a docid is there twice.
    """
    docids, lengths = [], []
    with atomic_file(folder / "tokens.bin") as tokens, atomic_file(folder / "texts.bin") as texts:
        for part in parts:
            with part.open("rb") as file:
                pieces = [file.read(length) for length in json.loads(file.readline())]
            docids.append(np.frombuffer(pieces[0], "<u8").reshape(-1, 2))
            texts.write(pieces[1])
            lengths.append(np.frombuffer(pieces[2], np.uint32))
            tokens.write(pieces[3])
    high, low = np.concatenate(docids).T if docids else np.empty((2, 0), np.uint64)
    rows = np.lexsort((low, high))
    high, low = high[rows], low[rows]
    if (high[1:] == high[:-1]).any():  # of half a digest: by chance once in a thousand lives
        raise PipelineError("two documents have one id", "give each an id of its own")
    write_bytes(
        folder / "docids.bin", b"".join(x.astype("<u8").tobytes() for x in (high, low, rows))
    )
    starts = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.uint64)
    write_bytes(folder / "starts.bin", starts.tobytes())
    record = {
        "schema": SCHEMA, **about, "count": len(rows), "tokens": int(starts[-1]),
        "content": digest_together(folder / name for name in FILES),
    }  # fmt: skip
    write_json(folder / ABOUT, record)
    return len(rows)


class PassageTokens:
    """The tokens of one folder.

    Raises:
        PipelineError: there are none, or a file is too short or too long for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            if not (folder / ABOUT).is_file():
                raise PipelineError(
                    f"{folder}: no tokens in this folder",
                    "make them: pipeline tokenize --output FOLDER",
                )
            about = read_json(folder / ABOUT)
        except InputError as error:
            error.hint = AGAIN
            raise
        except OSError as error:
            raise storage_error(folder / ABOUT, error) from error
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            raise InputError(folder / ABOUT, None, "not of this version", AGAIN)
        try:
            self.tokenizer, self.source = str(about["tokenizer"]), str(about["source"])
            self.limit, self.count = int(about["limit"]), int(about["count"])
            self._content = str(about["content"])
            self._vocabulary, total = int(about["vocabulary"]), int(about["tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(folder / ABOUT, None, "damaged", AGAIN) from error
        number = np.dtype(np.uint64)
        self._ids = self._map("tokens.bin", np.dtype(_numbers(self._vocabulary)), total)
        self._starts = self._map("starts.bin", number, self.count + 1)
        docids = self._map("docids.bin", number, 3 * self.count).reshape(3, -1)
        self._high, self._low, self._rows = docids
        digests = self._map("texts.bin", np.dtype(np.uint8), TEXT_DIGEST * self.count)
        self._texts = digests.reshape(-1, TEXT_DIGEST)

    def need_whole(self) -> None:
        """Refuse files that are not what was written; they are read once for it.

        Raises:
            InputError: one was damaged or edited.
        """
        if digest_together(self.folder / name for name in FILES) != self._content:
            raise InputError(self.folder, None, "damaged or edited since it was made", AGAIN)

    def need_texts(self, digest: str, where: object) -> None:
        """Refuse tokens of other texts.

        Args:
            digest: of the index or collection.

        Raises:
            PipelineError: they were not made of it as it is now.
        """
        if self.source != digest:
            raise PipelineError(
                f"{self.folder}: was not made of {where} as it is now",
                f"name the index or collection it was made of, or {AGAIN}",
            )

    def need_tokenizer(self, digest: str, model: str) -> None:
        """Refuse another tokenizer's numbers.

        Raises:
            PipelineError: another tokenizer made them, or another version of the library.
        """
        if self.tokenizer != digest:
            raise PipelineError(
                f"{self.folder}: was not made with the tokenizer of {shown(model)} as it is here",
                AGAIN,
            )

    def need_length(self, most: int) -> None:
        """Refuse tokens that were cut before a model would cut them.

        Raises:
            PipelineError: fewer tokens than the model reads were kept of a long passage.
        """
        if self.limit < most:
            raise PipelineError(
                f"{self.folder}: keeps {self.limit} tokens of a passage, and the model reads pairs "
                f"of {most}",
                f"use --max-tokens {self.limit} here, or {AGAIN} --max-tokens {most}",
            )

    def find(self, docids: Sequence[str], most: int) -> tuple[Tokens, list[int]]:
        """Look up passages: at most so many tokens of each, and the places of unknown docids.

        Raises:
            InputError: the files are damaged.
        """
        wanted = np.frombuffer(b"".join(map(digest_text, docids)), "<u8").reshape(-1, 2)
        at = np.searchsorted(self._high, wanted[:, 0])
        at[at == self.count] = 0
        if not self.count:
            return Tokens(self._ids[:0], np.zeros(0, np.int64), b""), list(range(len(docids)))
        known = (self._high[at] == wanted[:, 0]) & (self._low[at] == wanted[:, 1])
        rows = self._rows[at[known]].astype(np.int64)
        try:
            starts = self._starts[rows].astype(np.int64)
            lengths = np.minimum(self._starts[rows + 1].astype(np.int64) - starts, most)
            first = np.cumsum(lengths) - lengths
            places = np.arange(int(lengths.sum())) + np.repeat(starts - first, lengths)
            ids = self._ids[places]
            keys = self._texts[rows].tobytes()
        except (IndexError, ValueError) as error:
            raise InputError(self.folder / "starts.bin", None, "damaged", AGAIN) from error
        if len(ids) and int(ids.max()) >= self._vocabulary:
            raise InputError(self.folder / "tokens.bin", None, "damaged", AGAIN)
        return Tokens(ids, lengths, keys), np.flatnonzero(~known).tolist()

    def _map(self, name: str, numbers: np.dtype[Any], count: int) -> NDArray[Any]:
        path, size = self.folder / name, count * numbers.itemsize
        try:
            found = path.stat().st_size
            if found != size:
                raise InputError(path, None, f"{found:,} bytes instead of {size:,}", AGAIN)
            return np.memmap(path, numbers, "r", 0, (count,)) if count else np.empty(0, numbers)
        except FileNotFoundError as error:
            raise InputError(path, None, "is missing", AGAIN) from error
        except OSError as error:
            raise storage_error(path, error) from error


def _numbers(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocabulary <= WORD else np.uint32
