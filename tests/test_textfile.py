"""Text files of strangers: their lines, their ends, and what is refused in constant memory."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from itertools import chain, repeat
from typing import TYPE_CHECKING

import pytest
from elsewhere import ENVIRONMENT, refusal_unprivileged
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from pipeline import textfile
from pipeline.errors import InputError, StorageError
from pipeline.textfile import elements, from_first_text, lines, open_stream, read_json, text_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def write(path: Path, data: bytes) -> Path:
    """Write a file, packed if its name says so."""
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def stdin_of(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """Tell the peak of Python's memory since the test began, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\r\nb\r", [b"a", b"b"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"\n", [b""]),
        (b"\xef\xbb\xbfa\nb\n", [b"a", b"b"]),
        (b"\xef\xbb\xbfa", [b"a"]),
        (b"\xef\xbb\xbf\n\xef\xbb\xbfb", [b"", b"\xef\xbb\xbfb"]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "-"])
def test_lines_are_numbered_from_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: bytes,
    expected: list[bytes],
) -> None:
    """LF and CRLF end a line; a byte order mark at the start is no text; so from any source."""
    if name == "-":
        stdin_of(monkeypatch, data)
    source = name if name == "-" else write(tmp_path / name, data)
    assert list(lines(source)) == list(enumerate(expected, 1))


@given(st.binary(max_size=60).map(lambda b: b.replace(b"q", b"\n")), st.integers(1, 7))
def test_lines_do_not_depend_on_where_blocks_are_cut(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int
) -> None:
    """A line or its end may lie across any number of reads."""
    path = write(tmp_path_factory.getbasetemp() / "blocks.txt", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfile, "BLOCK", block)
        got = [line for _, line in lines(path)]
    text = data.removeprefix(textfile.UTF8_MARK)
    pieces = text.split(b"\n")
    if text.endswith(b"\n") or not text:
        pieces.pop()
    assert got == [piece.removesuffix(b"\r") for piece in pieces]


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """Standard input may come in drops; a line is whole nevertheless."""
    code = "from pipeline.textfile import lines; print([line for _, line in lines('-')])"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        for drop in (b"on", b"e\ntw", b"o"):
            process.stdin.write(drop)
            process.stdin.flush()
            time.sleep(0.02)
        process.stdin.close()
        assert process.stdout.read() == b"[b'one', b'two']\n"


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`<&-` leaves no stream at all."""
    monkeypatch.setattr(sys, "stdin", None)
    with refused("standard input: is closed", "< FILE"):
        list(lines("-"))


def test_gzip_members_may_follow_each_other(tmp_path: Path) -> None:
    """`cat a.gz b.gz` is a gzip file, as pigz and shells make them."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"c\n"))
    assert [line for _, line in lines(path)] == [b"a", b"bc"]


def test_a_packed_stream_is_a_stream_like_others(tmp_path: Path) -> None:
    """Who opens a `.gz` may read lines, blocks or everything."""
    path = write(tmp_path / "a.gz", b"a\nb\n" * 100_000)
    with open_stream(path) as stream:
        assert stream.readline() == b"a\n"
        assert stream.read(3) == b"b\na"
        assert len(stream.read()) == 400_000 - 5


# ---------------------------------------------------------------- what is refused


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No such file, a folder in its place, a name that no file can have."""
    with refused(f"{tmp_path / 'no'}: no such file or folder", "check the path", StorageError):
        list(lines(tmp_path / "no"))
    with refused(f"{tmp_path}: is a folder", "name a file", StorageError):
        list(lines(tmp_path))
    with refused(r"a\x00b: no legal path", "check the path", InputError):
        list(lines("a\0b"))


def test_an_unreadable_file_is_refused(shared_path: Path) -> None:
    """No permission to read it, or to look into its folder."""
    write(shared_path / "a.txt", b"a").chmod(0o000)
    (shared_path / "closed").mkdir(mode=0o700)
    write(shared_path / "closed" / "b.txt", b"b").chmod(0o644)
    if os.geteuid() != 0:
        (shared_path / "closed").chmod(0o000)
    for name in ("a.txt", "closed/b.txt"):
        refusal = refusal_unprivileged(f"list(textfile.lines({name!r}))", shared_path)
        assert refusal is not None
        assert refusal[:2] == ["StorageError", f"{name}: no permission (Permission denied)"]


def damaged(data: bytes) -> dict[str, bytes]:
    packed = gzip.compress(data)
    return {
        "torn": packed[:-9],
        "half": packed[: len(packed) // 2],
        "header only": packed[:7],
        "checksum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
        "middle": packed[:20] + bytes(40) + packed[60:],
        "no gzip": b"1 Q0 a 1 1.0 x\n" * 10,
        "rubbish after": packed + b"rubbish",
    }


@pytest.mark.parametrize("kind", damaged(b""))
def test_damaged_gzip_data_are_refused(tmp_path: Path, kind: str) -> None:
    """Torn, altered, followed by rubbish, or no gzip at all: the file is named."""
    path = tmp_path / "a.run.gz"
    path.write_bytes(damaged(os.urandom(3000))[kind])
    with refused(f"{path}: damaged gzip data (", "again", InputError):
        list(lines(path))


def bomb(path: Path, piece: bytes, times: int) -> Path:
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as out:
        for _ in range(times):
            out.write(packer.compress(piece))
        out.write(packer.flush())
    return path


def test_a_gzip_bomb_is_refused(tmp_path: Path, memory: Callable[[], int]) -> None:
    """A small file that unpacks to hundreds of megabytes is given up on, in little memory."""
    path = bomb(tmp_path / "bomb.gz", (b"x" * 999 + b"\n") * 1000, 100)
    assert path.stat().st_size < 1_000_000
    with refused("unpacks to more than 100 times its size", "unpack it first", InputError):
        for _ in lines(path):
            pass
    assert memory() < 10e6
    with refused("unpacks to more than 100 times its size", kind=InputError):
        read_json(path)
    assert memory() < 80e6


def test_text_that_packs_well_is_no_bomb(tmp_path: Path) -> None:
    """A repetitive file under 4 MB is read, whatever its ratio."""
    path = bomb(tmp_path / "even.gz", b"1 0 doc 1 1.5 tag\n" * 50_000, 4)
    assert path.stat().st_size * 100 < 36e5
    assert sum(1 for _ in lines(path)) == 200_000


@pytest.mark.parametrize("name", ["endless.txt", "endless.txt.gz"])
def test_an_endless_line_is_refused(tmp_path: Path, memory: Callable[[], int], name: str) -> None:
    """The line is named and memory stays small, though its end never comes."""
    if name.endswith(".gz"):
        path = bomb(tmp_path / name, b"one\n", 1)
        path = bomb(tmp_path / name, b"x" * 1_000_000, 60)
    else:
        path = tmp_path / name
        with path.open("wb") as out:
            out.write(b"one\n")
            out.truncate(1 << 32)  # a hole of 4 GB: null bytes
    with refused(":", "check the path and the format", InputError):
        list(lines(path))
    assert memory() < 12e6


def test_the_longest_line_is_as_long_as_said(tmp_path: Path) -> None:
    """A limit is the longest line allowed, not the first one refused; it is named by its number."""
    path = write(tmp_path / "a.txt", b"\n" + b"x" * 10 + b"\n")
    assert [len(line) for _, line in lines(path, 10)] == [0, 10]
    for data in (b"\n" + b"x" * 11 + b"\n", b"\n" + b"x" * 11):
        with refused(f"{path}:2: a line longer than 10 bytes", kind=InputError):
            list(lines(write(path, data), 10))


def test_a_long_line_is_put_together_in_linear_time(tmp_path: Path) -> None:
    """60 MB in one line: where each block is added to what came before, this takes many seconds."""
    path = write(tmp_path / "a.txt", b"x" * 60_000_000)
    start = time.process_time()
    assert [len(line) for _, line in lines(path, 1 << 26)] == [60_000_000]
    assert time.process_time() - start < 2


# ---------------------------------------------------------------- text


def test_text_is_utf8(tmp_path: Path) -> None:
    """What is not is refused with line and byte, and with the command that mends it."""
    path = write(tmp_path / "a.txt", "ok\ncafé\n".encode())
    assert list(text_lines(path)) == [(1, "ok"), (2, "café")]
    write(path, "ok\ncafé\n".encode("latin1"))
    with refused(f"{path}:2: not UTF-8 (byte 4 of the line is 0xe9)", "iconv -f latin1"):
        list(text_lines(path))
    write(path, "1\tcafé\n".encode("utf-16"))
    with refused(f"{path}:1: not UTF-8 (byte 1 of the line is 0xff)", "iconv -f utf-16"):
        list(text_lines(path))


def test_a_format_is_told_by_the_first_text(tmp_path: Path) -> None:
    """Blank lines come before it at most; the numbers of lines are those of the file."""
    path = write(tmp_path / "a.txt", b"\n \n  <top>\nb\n")
    start, rest = from_first_text(path)
    assert (start, list(rest)) == ("<top>", [(3, "  <top>"), (4, "b")])
    start, rest = from_first_text(write(path, b"\n\n"))
    assert (start, list(rest)) == ("", [])
    with refused(f"{path}:1000: nothing but empty lines", "how the file was written", InputError):
        from_first_text(write(path, b"\n" * 2_000_000))


# ---------------------------------------------------------------- elements


def test_elements_are_cut_out(tmp_path: Path) -> None:
    """On one line or many, in capitals or not; what stands between them is passed over."""
    text = "x <Doc>a</DOC> y <doc k='v'>\nb\n\n</doc>\n</DOCNO><DOCS>\n<doc></doc>"
    source = list(enumerate(text.split("\n"), 1))
    assert list(elements("f", source, "doc", 100)) == [
        (1, "", "a"),
        (1, " k='v'", "\nb\n\n"),
        (6, "", ""),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\n<doc>\na", "f:2: a <doc> that never ends"),
        ("\n<doc>\n<doc>", "f:2: a <doc> that never ends"),
        ("\n</doc>", "f:2: a </doc> without a <doc>"),
        ("<doc></doc></doc>", "f:1: a </doc> without a <doc>"),
    ],
)
def test_elements_without_a_partner_are_refused(text: str, problem: str) -> None:
    """By the line of the one that is there."""
    with refused(problem, kind=InputError):
        list(elements("f", enumerate(text.split("\n"), 1), "doc", 100))


@pytest.mark.parametrize("line", ["", "text", "<b>"])
def test_an_element_is_of_bounded_size(line: str) -> None:
    """It is given up on long before memory is full, though it be made of empty lines."""
    source = enumerate(chain(["<doc>"], repeat(line, 100_000)), 1)
    with refused("f:1: a <doc> that never ends", "</doc>", InputError):
        list(elements("f", source, "doc", 1000))
    assert next(source)[0] < 1100


# ---------------------------------------------------------------- JSON


def test_json_that_is_none_is_refused(tmp_path: Path) -> None:
    """Torn, nested beyond reason, not UTF-8, missing."""
    path = tmp_path / "a.json"
    for data in (b'{"a": ', b"[" * 200_000, b'"\xff"', b"", b"1" * 5000):
        with refused(f"{path}: not JSON", "delete the file", InputError):
            read_json(write(path, data))
    with refused("no such file", kind=StorageError):
        read_json(tmp_path / "no.json")
    assert read_json(write(path, b'{"a": [1, "\xc3\xa9"]}')) == {"a": [1, "é"]}
