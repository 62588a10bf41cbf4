"""Vectors of a collection's passages on the disk: one folder, read through memory maps.

`vectors.bin` holds count x size numbers (float32, float16, or int8 with a float32 scale a row in
`scales.bin`), `docids.txt` a docid a line, `keys.bin` the digest of each text, `about.json` the
rest: which model made them, of which index or collection, and the digest of all of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import mapped
from pipeline.errors import InputError, PipelineError, shown, storage_error
from pipeline.mapped import ABOUT
from pipeline.rows import KEY, ByDocid, ByKey
from pipeline.store import atomic_file, digest_file, digest_together, write_json
from pipeline.textfile import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SCHEMA = 1
DTYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
FILES = ("docids.txt", "keys.bin", "vectors.bin", "scales.bin")
AGAIN = "encode again"


def packed(vectors: NDArray[np.float32], dtype: str) -> tuple[bytes, bytes]:
    """Numbers and, of int8, scales: the largest number of each vector becomes 127."""
    if dtype != "int8":
        return vectors.astype(DTYPES[dtype]).tobytes(), b""
    scales = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float32) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(vectors / scales).astype(np.int8).tobytes(), scales.tobytes()


def part_bytes(
    docids: Sequence[str], keys: Sequence[bytes], vectors: NDArray[np.float32], dtype: str
) -> bytes:
    """One finished slice: a line that says how long its four pieces are, and the pieces."""
    pieces = ["".join(f"{docid}\n" for docid in docids).encode(), b"".join(keys)]
    pieces += packed(vectors, dtype)
    head = json.dumps([len(docids), *map(len, pieces)]).encode() + b"\n"
    return head + b"".join(pieces)


def part_docids(part: Path) -> list[str]:
    """Docids of a finished slice."""
    with part.open("rb") as file:
        _, length, *_ = json.loads(file.readline())
        return file.read(length).decode().split("\n")[:-1]


def write_vectors(folder: Path, parts: Iterable[Path], about: dict[str, Any]) -> int:
    """Join finished slices in a folder that is being made; the number of vectors."""
    count = 0
    parts = list(parts)
    digest = hashlib.sha256()
    for place, name in enumerate(FILES):
        with atomic_file(folder / name) as out:
            for part in parts:
                with part.open("rb") as file:
                    number, *lengths = json.loads(file.readline())
                    file.seek(sum(lengths[:place]), 1)
                    data = file.read(lengths[place])
                digest.update(data)
                out.write(data)
                count += number if place == 0 else 0
    record = {"schema": SCHEMA, **about, "count": count, "content": digest.hexdigest()}
    write_json(folder / ABOUT, record)
    return count


def digest(folder: Path) -> str:
    """Digest of the vectors, as their `about.json` names it."""
    return digest_file(folder / ABOUT)


def digest_read(folder: Path) -> str:
    """The same after all files were read; another one if they are not what was written."""
    return mapped.digest_read(folder, FILES)


class PassageVectors:
    """The vectors of one folder.

    Raises:
        InputError: there are none, or a file is too short or too long for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / ABOUT).is_file():
            raise PipelineError(
                f"{folder}: no vectors in this folder", "make them: pipeline encode --output FOLDER"
            )
        try:
            about = read_json(folder / ABOUT)
        except InputError as error:
            error.hint = AGAIN
            raise
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            raise InputError(folder / ABOUT, None, "not of this version", AGAIN)
        self.model, self.content = about.get("model"), str(about.get("content"))
        self.texts = about.get("texts")  # digest of the index or collection they were made of
        limits = about.get("limits")
        self._limits: dict[str, Any] = limits if isinstance(limits, dict) else {}
        try:
            self.dtype = str(about["dtype"])
            self.size, self.count = int(about["size"]), int(about["count"])
            numbers = np.dtype(DTYPES[self.dtype])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(folder / ABOUT, None, "damaged", AGAIN) from error
        scale = 4 if self.dtype == "int8" else 0
        for name, width in (("vectors.bin", self.size * numbers.itemsize), ("scales.bin", scale),
                            ("keys.bin", KEY)):  # fmt: skip
            try:
                found = (folder / name).stat().st_size
            except FileNotFoundError as error:
                raise InputError(folder / name, None, "is missing", AGAIN) from error
            except OSError as error:
                raise storage_error(folder / name, error) from error
            if found != width * self.count:
                raise InputError(
                    folder / name, None, f"{found:,} bytes instead of {width * self.count:,}",
                    AGAIN,
                )  # fmt: skip
        self._vectors = _map(folder / "vectors.bin", numbers, (self.count, self.size))
        floats = np.dtype(np.float32)
        self._scales = _map(folder / "scales.bin", floats, (self.count, 1)) if scale else None
        self._docids: ByDocid | None = None
        self._keys: ByKey | None = None

    def need_whole(self) -> None:
        """Refuse files that are not what was written; they are read once for it.

        Raises:
            InputError: one was damaged or edited.
        """
        if digest_together(self.folder / name for name in FILES) != self.content:
            raise InputError(self.folder, None, "damaged or edited since it was made", AGAIN)

    def need_model(self, digest: str, model: str) -> None:
        """Refuse another model's queries.

        Raises:
            PipelineError: the vectors were made by a model of another digest.
        """
        if self.model != digest:
            raise PipelineError(
                f"{self.folder}: was not encoded by {shown(model)} as it is now",
                "encode the passages again, with this model",
            )

    def need_length(self, limits: Mapping[str, int]) -> None:
        """Refuse vectors of passages that were cut elsewhere than a model cuts them.

        Args:
            limits: of the model, as it was loaded.

        Raises:
            PipelineError: they were encoded with another `--max-tokens`.
        """
        kept, wanted = (each.get("max_tokens") for each in (self._limits, limits))
        if kept != wanted:
            raise PipelineError(
                f"{self.folder}: was encoded from {kept} tokens of a passage, and the model reads "
                f"{wanted}",
                f"use --max-tokens {kept} here, or {AGAIN} with --max-tokens {wanted}",
            )

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors as float32."""
        numbers, scales = self.kept(rows)
        found = numbers.astype(np.float32, copy=False)
        return found if scales is None else found * scales

    def kept(
        self, rows: slice | NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Vectors as they are kept, and the scale of each if they are int8."""
        return self._vectors[rows], None if self._scales is None else self._scales[rows]

    def rows(self, docids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each docid, or -1; the first call reads all docids."""
        if self._docids is None:
            self._docids = ByDocid((self.folder / "docids.txt").read_bytes())
            self._need_all(self._docids.count)
        return self._docids.find(docids)

    def rows_of_keys(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Row of each text by its digest, or -1; the first call reads all digests."""
        if self._keys is None:
            self._keys = ByKey((self.folder / "keys.bin").read_bytes())
        return self._keys.find(keys)

    def docids(self) -> list[str]:
        """Return the docid of each row."""
        found = (self.folder / "docids.txt").read_bytes().decode().split("\n")[:-1]
        self._need_all(len(found))
        return found

    def _need_all(self, count: int) -> None:
        if count != self.count:
            raise InputError(self.folder / "docids.txt", None, f"{count:,} docids", AGAIN)


def _map(path: Path, numbers: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
    if not shape[0]:
        return np.empty(shape, numbers)
    return np.memmap(path, numbers, "r", 0, shape).view(np.ndarray)


def best(
    scores: NDArray[np.float32], rows: NDArray[np.int64], docids: Sequence[str], hits: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Keep the `hits` highest scores, in order; equal ones by docid, ascending."""
    if len(scores) > hits:
        least = np.partition(scores, len(scores) - hits)[len(scores) - hits]
        among = np.flatnonzero(scores >= least)
        scores, rows = scores[among], rows[among]
    names = [docids[row].encode() for row in rows.tolist()]
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], names[at]))[:hits]
    return scores[order], rows[order]
