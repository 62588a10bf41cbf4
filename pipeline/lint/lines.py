"""From a stranger's bytes to lines in order, and what is wrong with the bytes on the way."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pipeline.columns import count
from pipeline.errors import InputError, shown, storage_error
from pipeline.store import scratch_file
from pipeline.textfile import BLOCK, MAX_LINE, STREAM, UTF8_MARK, UTF16_MARKS, open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pipeline.lint.findings import Findings

LONGEST_ID = 1000  # bytes
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # \t \n \v \f are white space to every reader
COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}  # fmt: skip
UNICODE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


@contextmanager
def rereadable(path: Path | str) -> Iterator[Callable[[], AbstractContextManager[BinaryIO]]]:
    """Give a function that opens the file from its beginning, as often as wanted.

    What can be read only once (standard input, a pipe) is copied to a file without a name first.

    Raises:
        StorageError: it cannot be read.
    """
    if str(path) != STREAM and Path(path).is_file():
        yield lambda: open_stream(path)
        return
    with scratch_file(STREAM) as copy:
        with open_stream(path) as stream:
            try:
                shutil.copyfileobj(stream, copy, BLOCK)
            except OSError as error:
                raise storage_error(path, error) from error

        def again() -> AbstractContextManager[BinaryIO]:
            copy.seek(0)
            return nullcontext(copy)

        yield again


def chunks(
    stream: BinaryIO, path: Path | str, findings: Findings, size: int = BLOCK
) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines, each ended by a line feed), a block at a time.

    A byte order mark, UTF-16, CRLF, bytes that are not UTF-8, an unended last line, damaged gzip
    data and an endless line are found here; the last three end the reading where they are.
    """
    first, rest, start = 1, b"", True
    while True:
        try:
            read = stream.read(size)
        except InputError as error:
            findings.add("unreadable", first, str(error).partition(": ")[2])
            return
        except OSError as error:
            raise storage_error(path, error) from error
        if start and read.startswith(UTF16_MARKS):
            findings.add("unreadable", 1, "UTF-16: convert it with iconv -f utf-16 -t utf-8")
            return
        if start and (packed := _packing(read)):
            name = "name it .gz" if packed == "gzip" else "unpack it first"
            findings.add("unreadable", 1, f"{packed} data: {name}")
            return
        if start and read.startswith(UTF8_MARK):
            findings.add("bom", 1, "a byte order mark")
            read = read[len(UTF8_MARK) :]
        start = False
        whole, feed, tail = (rest + read).rpartition(b"\n")
        if not read:
            if not tail:
                return
            findings.add("last-line", first, f"no line feed at the end of {shown(_text(tail))}")
            whole, feed, tail = tail, b"\n", b""
        if feed:
            text = _looked_at(whole + feed, first, findings)
            yield first, text
            first += count(text, b"\n")
        rest = tail
        if len(rest) > MAX_LINE:
            findings.add("unreadable", first, f"a line longer than {MAX_LINE:,} bytes")
            return


def _packing(start: bytes) -> str:
    return next((name for mark, name in COMPRESSED.items() if start.startswith(mark)), "")


def _looked_at(text: bytes, first: int, findings: Findings) -> bytes:
    """Report what is no plain text, and give lines their plain ends."""
    if b"\r" in text and b"\r\n" in text:
        line = first + text.count(b"\n", 0, text.index(b"\r\n"))
        findings.add("crlf", line, "lines end in CR LF", text.count(b"\r\n"))
        text = text.replace(b"\r\n", b"\n")
    if not text.isascii():
        try:
            odd = bool(UNICODE_SPACE.search(text.decode()))
        except UnicodeDecodeError:
            odd = True
        if odd:
            for number, raw in enumerate(text.split(b"\n"), first):
                _look_at_line(raw, number, findings)
    return text


def _look_at_line(line: bytes, number: int, findings: Findings) -> None:
    try:
        found = UNICODE_SPACE.search(line.decode())
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
        findings.add("encoding", number, f"not UTF-8 ({byte})")
        return
    if found:
        findings.add("unicode-space", number, f"{shown(found[0])} in {shown(line.decode())}")


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


class Layout(NamedTuple):
    """How lines of a format are made."""

    columns: int
    kind: str  # of the finding where the number of columns is another
    separator: bytes = b" "
    separators: str = "separators"  # kind of the finding where the white space is another
    numbers: tuple[int, ...] = ()  # columns none of which is a number in a header line


def in_order(
    text: bytes, first: int, layout: Layout, findings: Findings
) -> tuple[bytes, list[int] | range]:
    """Bring lines to the layout, one separator each; what cannot be is reported and left out."""
    kept, numbers = [], []
    for number, line in enumerate(text.split(b"\n")[:-1], first):
        words = line.split()
        if CONTROL.search(line):
            findings.add("control", number, f"a control character in {shown(_text(line))}")
        elif b"\r" in line:
            findings.add("return", number, f"a carriage return in {shown(_text(line))}")
        elif len(words) != layout.columns or line.lstrip().startswith(b"#"):
            _misfit(line, number, words, layout, findings)
        elif len(line) > LONGEST_ID and max(map(len, words)) > LONGEST_ID:
            findings.add("long-id", number, f"a word of {max(map(len, words)):,} bytes")
        else:
            plain = layout.separator.join(words)
            if plain != line:
                message = (
                    f"white space is not one {_NAMES[layout.separator]} in {shown(_text(line))}"
                )
                findings.add(layout.separators, number, message)
            kept.append(plain)
            numbers.append(number)
    kept.append(b"")
    return b"\n".join(kept), numbers


def header(text: bytes, layout: Layout) -> bytes:
    """Return the first line with its end if it names the columns, else nothing."""
    line = text[: text.find(b"\n") + 1]
    words = line.split()
    if len(words) != layout.columns or line.lstrip().startswith(b"#") or not layout.numbers:
        return b""
    return b"" if any(_NUMBER.match(words[column]) for column in layout.numbers) else line


_NUMBER = re.compile(rb"[+-]?(\.?[0-9]|nan|inf)", re.IGNORECASE)
_NAMES = {b" ": "blank", b"\t": "tab"}


def _misfit(
    line: bytes, number: int, words: list[bytes], layout: Layout, findings: Findings
) -> None:
    if not words:
        findings.add("blank", number, "an empty line")
    elif words[0].startswith(b"#"):
        findings.add("comment", number, f"a comment: {shown(_text(line))}")
    else:
        message = f"{len(words)} columns instead of {layout.columns} in {shown(_text(line))}"
        findings.add(layout.kind, number, message)
