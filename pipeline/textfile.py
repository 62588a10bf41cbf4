"""Text files of strangers: `.gz` by name, `-` for stdin, bounded lines, errors with a place."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipeline.errors import InputError, storage_error

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM = "-"
BLOCK = 1 << 20
MAX_LINE = 1 << 20  # bytes; no line of a run, qrels or topic file comes near
BOMB_BYTES = 1 << 28  # gzip text is trusted up to this size whatever its ratio,
BOMB_RATIO = 200  # and past it up to this ratio: real collections reach 3 to 20


@contextmanager
def open_stream(path: Path | str) -> Iterator[BinaryIO]:
    """Open a file for reading as bytes: `.gz` by name, `-` for standard input."""
    if str(path) == STREAM:
        yield sys.stdin.buffer
        return
    path = Path(path)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise storage_error(path, error) from error
    with raw:
        if path.suffix != ".gz":
            yield raw
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            yield cast("BinaryIO", _Guarded(unpacked, raw, path))


class _Guarded(io.RawIOBase):
    """A gzip stream that gives up on a bomb, and names its file when it is damaged."""

    def __init__(self, unpacked: gzip.GzipFile, raw: BinaryIO, path: Path) -> None:
        self._unpacked, self._raw, self._path, self._total = unpacked, raw, path, 0

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._unpacked.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                self._path, None, f"damaged gzip data ({error})", "fetch or write the file again"
            ) from error
        self._total += len(data)
        if self._total > BOMB_BYTES and self._total > BOMB_RATIO * max(self._raw.tell(), 1):
            raise InputError(
                self._path,
                None,
                f"unpacks to more than {BOMB_RATIO} times its size, as only a gzip bomb does",
                "if you trust the file, unpack it first and name the unpacked one",
            )
        return data


def lines(path: Path | str, max_line: int = MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its end) in constant memory; CRLF counts as an end.

    Raises:
        InputError: a line is longer than `max_line` bytes, or the gzip data are damaged.
        StorageError: the file cannot be opened or read.
    """
    number, rest = 0, b""
    with open_stream(path) as stream:
        while True:
            try:
                block = stream.read(BLOCK)
            except OSError as error:
                raise storage_error(path, error) from error
            if not block:
                break
            pieces = (rest + block).split(b"\n") if rest else block.split(b"\n")
            rest = pieces.pop()
            for piece in pieces:
                number += 1
                if len(piece) > max_line:
                    raise _endless(path, number, max_line)
                yield number, piece[:-1] if piece.endswith(b"\r") else piece
            if len(rest) > max_line:
                raise _endless(path, number + 1, max_line)
    if rest:
        yield number + 1, rest[:-1] if rest.endswith(b"\r") else rest


def _endless(path: Path | str, number: int, max_line: int) -> InputError:
    return InputError(
        path,
        number,
        f"a line longer than {max_line:,} bytes",
        "this is no text file of the kind expected here; check the path and the format",
    )


def text_lines(path: Path | str, max_line: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """Like `lines`, decoded as UTF-8 (a byte order mark at the start is dropped), or an error."""
    for number, line in lines(path, max_line):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                path,
                number,
                f"not UTF-8 (byte {error.start + 1} of the line is 0x{line[error.start]:02x})",
                "convert the file: iconv -f latin1 -t utf-8",
            ) from error
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def read_json(path: Path) -> Any:
    """Read a whole JSON file of ours.

    Raises:
        InputError: it is not JSON.
    """
    try:
        with open_stream(path) as stream:
            return json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        raise InputError(
            path, None, f"not JSON ({error})", "delete the file; it is written again"
        ) from error
