"""Text files of strangers: `.gz` by name, `-` for stdin, bounded lines, errors with a place."""

from __future__ import annotations

import gzip
import html
import io
import json
import re
import sys
import zlib
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import InputError, shown, storage_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import WriteableBuffer

STREAM = "-"
IR_DATASETS = "ir_datasets:"  # before the name of a data set, where a collection may be named
BLOCK = 1 << 20
MAX_LINE = 1 << 20  # bytes; no line of a run, qrels or topic file comes near
MAX_EMPTY = 1000  # lines without text before the first one with some
BOMB_BYTES = 1 << 22  # gzip text is trusted up to this size whatever its ratio,
BOMB_RATIO = 100  # and past it up to this ratio: real collections reach 3 to 20
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_stream(path: Path | str) -> Iterator[BinaryIO]:
    """Open a file for reading as bytes: `.gz` by name, `-` for standard input."""
    if str(path) == STREAM:
        if sys.stdin is None:
            raise InputError(path, None, "is closed", "give it something to read: < FILE")
        yield sys.stdin.buffer
        return
    path = Path(path)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise storage_error(path, error) from error
    except ValueError as error:  # a null byte, which an experiment file can hold
        raise InputError(path, None, f"no legal path ({error})", "check the path") from error
    with raw:
        if path.suffix != ".gz":
            yield raw
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            yield io.BufferedReader(_Guarded(unpacked, raw, path), BLOCK)


class _Guarded(io.RawIOBase):
    """A gzip stream that gives up on a bomb, and names its file when it is damaged."""

    def __init__(self, unpacked: gzip.GzipFile, raw: BinaryIO, path: Path) -> None:
        self._unpacked, self._raw, self._path, self._total = unpacked, raw, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        try:
            count = self._unpacked.readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                self._path, None, f"damaged gzip data ({error})", "fetch or write the file again"
            ) from error
        self._total += count
        if self._total > BOMB_BYTES and self._total > BOMB_RATIO * max(self._raw.tell(), 1):
            raise InputError(
                self._path,
                None,
                f"unpacks to more than {BOMB_RATIO} times its size, as only a gzip bomb does",
                "if you trust the file, unpack it first and name the unpacked one",
            )
        return count


def blocks(path: Path | str, max_line: int = MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """Yield (number of its first line from 1, whole lines as they stand) in constant memory.

    A UTF-8 byte order mark at the start is no part of the first line; the last may lack its end.

    Raises:
        InputError: a line is much longer than `max_line` bytes, or the gzip data are damaged.
        StorageError: the file cannot be opened or read.
    """
    number, held, size = 1, [b""], 0  # `held`: pieces of a line whose end was not read yet
    with open_stream(path) as stream:
        while block := _read(stream, path):
            end = block.rfind(b"\n") + 1
            if end:
                whole = b"".join([*held, block[:end]])
                yield number, whole.removeprefix(UTF8_MARK) if number == 1 else whole
                number += whole.count(b"\n")
                held, size = [], 0
            held.append(block[end:])
            size += len(block) - end
            if size > max_line:
                raise _endless(path, number, max_line)
    if size:
        rest = b"".join(held)
        yield number, rest.removeprefix(UTF8_MARK) if number == 1 else rest


def lines(path: Path | str, max_line: int = MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its end) in constant memory.

    CRLF counts as an end, and a UTF-8 byte order mark at the start is no part of the first line.

    Raises:
        InputError: a line is longer than `max_line` bytes, or the gzip data are damaged.
        StorageError: the file cannot be opened or read.
    """
    for first, block in blocks(path, max_line):
        yield from cut(path, first, block, max_line)


def cut(path: Path | str, first: int, block: bytes, max_line: int) -> Iterator[tuple[int, bytes]]:
    """Cut a block into its lines, the first of which has the number `first`.

    Raises:
        InputError: a line is longer than `max_line` bytes.
    """
    pieces = block.split(b"\n")
    if not pieces[-1]:
        pieces.pop()
    for number, line in enumerate(pieces, first):
        if len(line) > max_line:
            raise _endless(path, number, max_line)
        yield number, line[:-1] if line.endswith(b"\r") else line


def _read(stream: BinaryIO, path: Path | str) -> bytes:
    try:
        return stream.read(BLOCK)
    except OSError as error:
        raise storage_error(path, error) from error


def _endless(path: Path | str, number: int, max_line: int) -> InputError:
    return InputError(
        path,
        number,
        f"a line longer than {max_line:,} bytes",
        "this is no text file of the kind expected here; check the path and the format",
    )


def text_lines(path: Path | str, max_line: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """Like `lines`, decoded as UTF-8, or an error that names the line and the byte."""
    return decoded(path, lines(path, max_line))


def decoded(path: Path | str, source: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
    """Decode numbered lines as UTF-8, or fail over the line and the byte."""
    for number, line in source:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                path,
                number,
                f"not UTF-8 (byte {error.start + 1} of the line is 0x{line[error.start]:02x})",
                to_utf8(number, line),
            ) from error
        yield number, text


def to_utf8(number: int, start: bytes) -> str:
    """Say how to convert a file, by how the line that is not UTF-8 begins."""
    utf16 = number == 1 and start.startswith(UTF16_MARKS)
    return f"convert the file: iconv -f {'utf-16' if utf16 else 'latin1'} -t utf-8"


def split_at_tab(path: Path | str, number: int, line: str, hint: str) -> tuple[str, str]:
    """Read the id and the text of a line `id TAB text`.

    Raises:
        InputError: there is no tab; `hint` says what such a line is.
    """
    name, tab, text = line.partition("\t")
    if not tab:
        problem = f"no tab in {shown(line)}" if line.strip() else "an empty line"
        raise InputError(path, number, problem, hint)
    return name.strip(), text


def from_first_text(
    path: Path | str, max_line: int = MAX_LINE
) -> tuple[str, Iterator[tuple[int, str]]]:
    """Return the first line that is not blank, by which a format is told, and all lines from there.

    Without any text, the line is empty and so is the rest.

    Raises:
        InputError: a thousand empty lines and nothing else: whatever follows is no list of things.
    """
    source = text_lines(path, max_line)
    for number, line in source:
        if line.strip():
            return line.lstrip(), chain([(number, line)], source)
        if number >= MAX_EMPTY:
            raise InputError(
                path,
                number,
                f"nothing but empty lines up to here ({MAX_EMPTY:,})",
                "check how the file was written",
            )
    return "", iter(())


def elements(
    path: Path | str, source: Iterable[tuple[int, str]], name: str, max_size: int
) -> Iterator[tuple[int, str, str]]:
    """Cut out what stands between `<name …>` and `</name>`: (line of its begin, attributes, text).

    Capitals do not matter, elements do not nest, and what stands between them is passed over.

    Raises:
        InputError: an element that never ends, or not within `max_size` characters, or an end
            without a beginning.
    """
    tag = re.compile(rf"<(/?){name}(\s[^<>]*)?>", re.IGNORECASE)
    attributes = ""
    held: list[str] = []
    start = size = 0  # start: the line of the open element, or 0
    for number, line in source:
        begin = 0
        for match in tag.finditer(line):
            if match[1] and not start:
                raise InputError(
                    path, number, f"a </{name}> without a <{name}>", f"open it with <{name}>"
                )
            if match[1]:
                held.append(line[begin : match.start()])
                yield start, attributes, "\n".join(held)
                start = 0
            elif start:
                raise _unclosed(path, start, name)
            else:
                start, size, begin, held = number, 0, match.end(), []
                attributes = match[2] or ""
        if start:
            held.append(line[begin:])
            size += len(line) + 1
            if size > max_size:
                break
    if start:
        raise _unclosed(path, start, name)


def plain(markup: str) -> str:
    """Drop tags, and read entities as what they stand for."""
    text = re.sub(r"<[^<>]*>", " ", markup)
    try:
        return html.unescape(text).strip()
    except ValueError:  # &#999…; with thousands of digits
        return text.strip()


def _unclosed(path: Path | str, number: int, name: str) -> InputError:
    return InputError(path, number, f"a <{name}> that never ends", f"close it with </{name}>")


def read_json(path: Path) -> Any:
    """Read a whole JSON file of ours.

    Raises:
        InputError: it is not JSON.
        StorageError: it cannot be read.
    """
    try:
        with open_stream(path) as stream:
            return json.loads(stream.read())
    except OSError as error:
        raise storage_error(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            path, None, f"not JSON ({error})", "delete the file; it is written again"
        ) from error
