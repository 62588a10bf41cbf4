"""Finished slices of a long stage: whole or absent, bound to what made them, never made twice."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from pipeline.ahead import ahead
from pipeline.columns import Block as Lines
from pipeline.columns import in_columns, separators
from pipeline.errors import InputError, StorageError, storage_error
from pipeline.report import SILENT, Reporter
from pipeline.store import digest_bytes, digest_file, remove, write_bytes, write_json
from pipeline.textfile import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

OPEN_FILES = 64
STEP = 8  # so many more parts with the next order of magnitude
SYNC_AFTER = 1.0  # seconds since the part before
COLUMNS, QID, DOCID = 6, 0, 2  # of run lines
PIECE = 1 << 18  # bytes of a part that are looked at together
WHOLE = 1 << 64


def bucket(qid: str, count: int) -> int:
    """Give a topic's part, 0 to `count` - 1: of its id alone, so a new topic moves no other."""
    return int.from_bytes(hashlib.sha256(qid.encode()).digest()[:8]) % count


def part_count(topics: int, least: int, size: int) -> int:
    """How many parts topics are cut into; it changes with their order of magnitude only.

    Args:
        least: parts there may be in any case.
        size: topics of a part on average, at most.
    """
    count = least
    while topics > count * size:
        count *= STEP
    return count


class Parts:
    """Finished slices of a stage, each a small file named by what made it and by its own digest.

    A name is `<key>-<digest>.part`: the key says for which settings, inputs and topics it holds,
    the digest that it is whole, so a torn or edited part is noticed, named and made again.
    """

    def __init__(self, folder: Path, reporter: Reporter = SILENT) -> None:
        self.folder = folder
        self._reporter = reporter
        self._names: dict[str, str] | None = None
        self._saved = float("-inf")  # when the last part was

    def find(self, key: str, note: str = "") -> Path | None:
        """Return the finished part of this key, or None if it has to be made.

        Args:
            note: what is kept beside it under this name, if anything is, has to be readable.
        """
        if self._names is None:
            self._names = {name[:32]: name for name in sorted(_listed(self.folder))}
        name = self._names.get(key[:32])
        if name is None:
            return None
        path = self.folder / name
        whole = path.is_file() and digest_file(path)[:32] == path.stem[33:]
        if whole and not (note and self._damaged(note)):
            return path
        if not whole:
            self._reporter.notice(f"{path}: torn or edited; this part is made again")
        remove(path)
        del self._names[key[:32]]
        return None

    def save(self, key: str, data: bytes) -> Path:
        """Keep a finished part; from here on a kill does not cost it."""
        path = self.folder / f"{key[:32]}-{digest_bytes(data)[:32]}.part"
        # What a power cut takes, or tears, is noticed and made again: where parts come fast that
        # costs less than to wait for the disk each time.
        now = time.monotonic()
        write_bytes(path, data, sync=now - self._saved >= SYNC_AFTER)
        self._saved = now
        if self._names is not None:
            self._names[key[:32]] = path.name
        return path

    def arrived(self, key: str, name: str) -> Path:
        """Take a part that another process wrote here under `name`, whole, a moment ago."""
        if self._names is not None:
            self._names[key[:32]] = name
        return self.folder / name

    def note(self, name: str) -> dict[str, Any] | None:
        """Read a small fact kept beside the parts, such as the numeric signature."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        value = _json(path)
        if isinstance(value, dict):
            return value
        self._reporter.notice(f"{path}: damaged; written again")
        return None

    def _damaged(self, name: str) -> bool:
        path = self.folder / f"{name}.json"
        if not path.is_file() or isinstance(_json(path), dict):
            return False
        self._reporter.notice(f"{path}: damaged; its part is made again")
        remove(path)
        return True

    def keep_note(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a small fact beside the parts."""
        write_json(self.folder / f"{name}.json", dict(value))

    def clear(self) -> None:
        """Forget everything."""
        remove(self.folder)
        self._names = None


def facts_name(key: str) -> str:
    """Name the note of what is worth knowing about the part of this key."""
    return f"{key[:32]}-facts"


def counted(note: Mapping[str, Any] | None, name: str) -> int:
    """Read a count out of a note; whatever is wrong with it is 0."""
    value = (note or {}).get(name)
    return value if type(value) is int and value > 0 else 0


def _listed(folder: Path) -> list[str]:
    """Names of parts; none where nothing was begun."""
    try:
        return [path.name for path in folder.iterdir() if path.name.endswith(".part")]
    except FileNotFoundError:
        return []
    except OSError as error:  # which Path.glob takes for an empty folder
        raise storage_error(folder, error) from error


def _json(path: Path) -> object:
    try:
        return read_json(path)
    except InputError:
        return None


@dataclass(frozen=True)
class Block:
    """Where the lines of one topic lie in a part."""

    path: Path
    start: int
    length: int


class Content(NamedTuple):
    """One topic of a part."""

    block: Block
    documents: int  # as `docid_sums` has them


def topic_blocks(path: Path) -> dict[str, Block]:
    """Find the topics of a file of run lines, which need not be a part."""
    return {qid: content.block for qid, content in _contents(path, _read(path)).items()}


def need_whole(parts: Iterable[Path]) -> None:
    """Hold parts against their names.

    Raises:
        StorageError: as `contents` does.
    """
    for part in parts:
        _whole(part)


def contents(parts: Iterable[Path]) -> dict[str, Content]:
    """Find the topics of parts that hold run lines, and their documents.

    Raises:
        StorageError: a part went away or was changed since it was made, or cannot be read.
    """
    found: dict[str, Content] = {}
    with closing(ahead((part, _whole(part)) for part in parts)) as read:
        for part, data in read:
            found |= _contents(part, data)
    return found


def _whole(part: Path) -> bytes:
    data = _read(part)
    if digest_bytes(data)[:32] != part.stem[33:]:
        raise StorageError(
            f"{part}: was changed or torn since it was made",
            "run the same command again: this part is made again",
        )
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise storage_error(path, error) from error


def _contents(part: Path, data: bytes) -> dict[str, Content]:
    import numpy as np

    starts: dict[str, int] = {}
    sums: dict[str, int] = {}
    for begin, piece in _pieces(data):
        places = separators(piece, COLUMNS)
        if places is None:  # an id with a control character
            return _line_by_line(part, data)
        lines = Lines(piece, np.ascontiguousarray(places.T), np.arange(len(places)))
        begins, first_bytes = np.flatnonzero(lines.changes(QID)), lines.starts(QID)
        of_topics = np.add.reduceat(lines.hashes(DOCID), begins)
        for line, documents in zip(begins.tolist(), of_topics.tolist(), strict=True):
            qid = lines.token(line, QID).decode()
            starts.setdefault(qid, begin + int(first_bytes[line]))
            sums[qid] = (sums.get(qid, 0) + documents) % WHOLE
    stops = [*starts.values(), len(data)][1:]
    return {
        qid: Content(Block(part, start, stop - start), sums[qid])
        for (qid, start), stop in zip(starts.items(), stops, strict=True)
    }


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut whole lines into pieces that stay in a cache, each with its place."""
    begin = 0
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + PIECE) + 1 or data.find(b"\n", begin) + 1
        yield begin, data[begin : end or len(data)]
        begin = end or len(data)


def _line_by_line(part: Path, data: bytes) -> dict[str, Content]:
    blocks: dict[bytes, tuple[int, list[bytes]]] = {}
    position = 0
    for line in data.splitlines(keepends=True):
        qid, _, docid, _ = line.split(b" ", 3)
        blocks.setdefault(qid, (position, []))[1].append(docid)
        position += len(line)
    starts = [*(start for start, _ in blocks.values()), position]
    return {
        qid.decode(): Content(Block(part, start, stop - start), *docid_sums([b"\n".join(docids)]))
        for (qid, (start, docids)), stop in zip(blocks.items(), starts[1:], strict=True)
    }


def docid_sums(topics: Sequence[bytes]) -> list[int]:
    """For each topic 64 bits of its documents, whatever their order; one docid a line.

    What stands for a document are 64 bits of its id; they are added up.
    """
    import numpy as np

    text = b"".join(docids + b"\n" for docids in topics)
    if topics and separators(text, 1) is not None:
        ends = np.cumsum([docids.count(b"\n") + 1 for docids in topics])
        hashes = in_columns(text, 1, np.arange(ends[-1])).hashes(0)
        sums: list[int] = np.add.reduceat(hashes, np.append(0, ends[:-1])).tolist()
        return sums
    if len(topics) > 1:  # an id with a control character among all
        return [documents for docids in topics for documents in docid_sums([docids])]
    return [
        sum(int.from_bytes(hashlib.sha256(docid).digest()[:8]) for docid in docids.split(b"\n"))
        % WHOLE
        for docids in topics
    ]


def joined(blocks: Iterable[Block]) -> Iterator[bytes]:
    """Read topic after topic from their parts; a few files stay open, nothing else is held.

    Raises:
        StorageError: a part went away meanwhile, or cannot be read.
    """
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for block in blocks:
            try:
                if block.path not in files:
                    if len(files) >= OPEN_FILES:
                        stack.close()
                        files.clear()
                    file = cast("BinaryIO", block.path.open("rb", buffering=0))
                    files[block.path] = stack.enter_context(file)
                data = os.pread(files[block.path].fileno(), block.length, block.start)
            except OSError as error:
                raise storage_error(block.path, error) from error
            if len(data) != block.length:
                raise StorageError(
                    f"{block.path}: became shorter while it was read",
                    "run the same command again: what it lost is made again",
                )
            yield data
