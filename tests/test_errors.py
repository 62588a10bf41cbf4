"""The two lines of a failure, and the codes a command exits with."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import check_two_lines

from pipeline.errors import (
    BusyError,
    CheckFailedError,
    InputError,
    Interrupted,
    PipelineError,
    StorageError,
    did_you_mean,
    one_line,
    shown,
    shown_path,
    storage_error,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates, too


@given(ANY_TEXT)
def test_a_message_is_one_line_whatever_a_stranger_wrote(text: str) -> None:
    """Line ends, escape sequences and what UTF-8 cannot hold never reach a terminal."""
    error = PipelineError(f"a{text}b", f"c{text}d")
    assert error.message.isprintable()
    assert error.hint.isprintable()
    assert str(error) == error.message
    error.message.encode()
    shown(text).encode()


def test_escapes_are_readable() -> None:
    """What is escaped can still be told."""
    assert one_line("a\nb\x1b[31m\u2028\udcff é") == r"a\nb\x1b[31m\u2028\udcff é"


@given(ANY_TEXT, st.integers(5, 80))
def test_a_piece_of_a_file_is_cut(text: str, limit: int) -> None:
    """However long a line is, its quotation is short."""
    assert len(shown(text, limit)) <= limit


def test_a_cut_is_visible_and_a_long_line_costs_nothing() -> None:
    """An ellipsis marks the cut; short texts stand whole."""
    assert shown("x" * 100) == "'" + "x" * 58 + "…"
    assert shown(b"x" * 100).endswith("…")
    assert shown("x" * 58) == "'" + "x" * 58 + "'"
    assert shown(["a", "b"]) == "['a', 'b']"
    tracemalloc.start()
    shown("\0" * 10_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 11_000_000  # the text itself


def test_an_input_error_names_path_and_line() -> None:
    """`path:line: problem`, and standard input by its name."""
    error = InputError("runs/a.run", 7, "five columns", "write six")
    assert (error.message, error.path, error.line) == (
        "runs/a.run:7: five columns",
        "runs/a.run",
        7,
    )
    assert InputError("-", 7, "five columns", "x").message == "standard input:7: five columns"
    assert InputError("a.run", None, "empty", "x").message == "a.run: empty"
    assert shown_path("-") == "standard input"


@pytest.mark.parametrize(
    "error",
    [
        PipelineError("what\nhappened", "what to do"),
        InputError("a.run", 3, "a problem", "a hint"),
        StorageError("full", "free"),
    ],
)
def test_an_error_crosses_a_process_boundary(error: PipelineError) -> None:
    """A worker's error arrives with both its lines."""
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own
        assert type(other) is type(error)
        assert vars(other) == vars(error)
        assert str(other) == str(error)


def test_exit_codes() -> None:
    """1 the work failed, 3 a checker found errors, 130 and 143 interrupted."""
    assert {kind.exit_code for kind in (PipelineError, InputError, StorageError, BusyError)} == {1}
    assert CheckFailedError.exit_code == 3
    assert (Interrupted(2).exit_code, Interrupted(15).exit_code) == (130, 143)


@pytest.mark.parametrize(
    ("number", "message", "hint"),
    [
        (errno.ENOSPC, "the disk is full", "free some space"),
        (errno.EDQUOT, "the disk is full", "finished parts are kept"),
        (errno.EFBIG, "the disk is full", "free some space"),
        (errno.EACCES, "no permission (Permission denied)", "owner and mode"),
        (errno.EROFS, "no permission (Read-only file system)", "another place"),
        (errno.ENOENT, "no such file or folder", "check the path"),
        (errno.ENOTDIR, "no such file or folder", "check the path"),
        (errno.EISDIR, "is a folder", "name a file"),
        (errno.EEXIST, "is a file, not a folder", "another place"),
        (errno.EIO, "Input/output error", "check the path and the disk"),
    ],
)
def test_a_refusal_of_the_system_is_explained(number: int, message: str, hint: str) -> None:
    """Each error of the system says what to do about it."""
    error = storage_error("a.run", OSError(number, os.strerror(number)))
    check_two_lines(error)
    assert error.message == f"a.run: {message}"
    assert hint in error.hint


def test_a_typo_gets_a_suggestion() -> None:
    """The nearest known word, or all of them."""
    assert did_you_mean("dept", ["hits", "depth"]) == "did you mean 'depth'?"
    assert did_you_mean("zzz", ["hits", "depth"]) == "known: depth, hits"
