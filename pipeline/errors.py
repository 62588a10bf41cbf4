"""What can go wrong, in two lines: what happened, and what to do.

PipelineError              1    the work could not be done
|- InputError              1    a file given to us is not what it should be (carries path and line)
|- StorageError            1    the disk is full, or a folder may not be written
|- BusyError               1    another process works on the same output
CheckFailedError           3    a checker found errors in what it checked
Interrupted           130/143   Ctrl-C or SIGTERM; finished parts are kept
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

SHOWN_CHARACTERS = 60
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PipelineError(Exception):
    """A failure the user can act on: one line of what happened, one line of what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[object, ...]:
        # An exception crosses a process boundary by its arguments; ours are not its attributes.
        return _unpickled, (type(self), self.args, self.__dict__)


class InputError(PipelineError):
    """A file is not what it should be; the message starts with ``path:line:``."""

    def __init__(
        self, path: str | PathLike[str], line: int | None, problem: str, hint: str
    ) -> None:
        where = f"{shown_path(path)}:{line}" if line else shown_path(path)
        super().__init__(f"{where}: {problem}", hint)
        self.path = str(path)
        self.line = line


class StorageError(PipelineError):
    """The disk is full, or a file or folder may not be read or written."""


class BusyError(PipelineError):
    """Another living process holds the lock of the same output."""


class CheckFailedError(PipelineError):
    """A checker ran to its end and found errors."""

    exit_code = 3


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """A signal asked us to stop; raised between parts so that nothing finished is lost."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.exit_code = 128 + signal_number


def _unpickled(
    kind: type[PipelineError], args: tuple[object, ...], state: dict[str, object]
) -> PipelineError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def one_line(text: str) -> str:
    """Escape what could break a line or drive a terminal; text may come from a stranger's file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Quote a piece of somebody's file for an error message: escaped, and cut to `limit`."""
    quoted = repr(text[:limit] if isinstance(text, str | bytes) else text)
    return quoted if len(quoted) <= limit else quoted[: limit - 1] + "…"


def shown_path(path: str | PathLike[str]) -> str:
    """Name a path in a message; standard input is called that."""
    text = str(path)
    return "standard input" if text == "-" else text


def did_you_mean(word: str, known: list[str]) -> str:
    """End a hint: `did you mean 'depth'?`, or the list of what is known."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def storage_error(path: str | PathLike[str], error: OSError) -> StorageError:
    """Say in two lines why the system refused a file: no space, no permission, not there."""
    name = shown_path(path)
    if error.errno in NO_SPACE:
        return StorageError(
            f"{name}: the disk is full",
            "free some space and run the same command again; finished parts are kept",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{name}: no permission ({error.strerror})",
            "check the owner and mode of the file and its folder, or choose another place",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return StorageError(f"{name}: no such file or folder", "check the path")
    if error.errno == errno.EEXIST:
        return StorageError(f"{name}: is a file, not a folder", "choose another place")
    if error.errno == errno.EISDIR:
        return StorageError(f"{name}: is a folder", "name a file")
    return StorageError(f"{name}: {error.strerror or error}", "check the path and the disk")
