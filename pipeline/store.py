"""The only code that writes: whole files and folders or none, digests, fsync, the lock.

Everything is written under a hidden temporary name in the folder of its target, flushed, fsynced
and renamed, so a reader sees the old thing or the new one, never half of either, whatever is killed
and whenever. Parts that come fast are not fsynced (`parts.py`): a power cut may cost them.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from pipeline.errors import BusyError, PipelineError, StorageError, storage_error
from pipeline.textfile import STREAM

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TEXT_DIGEST = 16  # bytes
DIGESTED = 1 << 20  # bytes of a file at a time

# ---------------------------------------------------------------- writing


@contextmanager
def atomic_file(path: Path | str, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` only if the block ends well; `.gz` is compressed.

    Compressed bytes depend on the content alone (no name, no time). `-` writes to standard output
    instead, where nothing can be atomic.

    Args:
        sync: wait until bytes and name are on the disk, so that a power cut leaves them alone; a
            kill harms neither in any case.

    Raises:
        StorageError: no space, no permission, or what lies there is a folder or a device.
    """
    if str(path) == STREAM:
        if sys.stdout is None:
            raise StorageError("standard output: is closed", "send it somewhere: > FILE")
        with _storage_errors(Path("standard output")):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    path = Path(path)
    temporary = _temporary(path)
    with _storage_errors(path):
        _need_regular(path)
        with _folder_for(path):
            try:
                with temporary.open("xb") as raw:
                    if path.suffix == ".gz":
                        with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                            yield cast("BinaryIO", packed)
                    else:
                        yield cast("BinaryIO", raw)
                    raw.flush()
                    if sync:
                        os.fsync(raw.fileno())
                temporary.replace(path)
                if sync:
                    _sync_folder(path.parent)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the name `path` only if the block ends well.

    Raises:
        StorageError: no space, or no permission.
    """
    temporary = _temporary(path)
    try:
        with _storage_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            _sync_tree(temporary)
            if path.exists():
                # There is no portable exchange of folders: the old one steps aside, and the
                # sidecar, written last, tells who meets the gap that the stage never finished.
                aside = _temporary(path)
                try:
                    path.rename(aside)
                    temporary.rename(path)
                except BaseException:
                    if not path.exists():
                        aside.rename(path)
                    raise
                with suppress(StorageError):  # a leftover is for the next sweep
                    remove(aside)
            else:
                temporary.rename(path)
            _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def new_folder(path: Path) -> Path:
    """Make a folder inside one that is being made, and return it."""
    with _storage_errors(path):
        path.mkdir()
    return path


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a whole small file atomically, as `atomic_file` does."""
    with atomic_file(path, sync=sync) as out:
        out.write(data)


def write_json(path: Path, value: object) -> None:
    """Write JSON for people and machines: indented, keys in the order given, trailing newline."""
    write_bytes(path, _json_bytes(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def _json_bytes(text: str) -> bytes:
    # Names of files need not be UTF-8: Python holds such bytes as lone surrogates, and escaping
    # them with a backslash is what JSON does as well.
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def scratch_file(beside: Path | str) -> Iterator[BinaryIO]:
    """Give a file without a name, for what memory should not hold; it dies with its process.

    It takes its space on the disk of `beside`, or among the system's temporary files where that is
    a stream.
    """
    folder = Path(tempfile.gettempdir())
    if str(beside) != STREAM:
        folder = Path(beside).absolute().parent
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
    with _storage_errors(folder), tempfile.TemporaryFile(dir=folder) as scratch:
        yield cast("BinaryIO", scratch)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Give an empty folder among the system's temporary files; it goes when the block ends."""
    place = Path(tempfile.gettempdir())
    with _storage_errors(place), tempfile.TemporaryDirectory(prefix=f"pipeline-{name}-") as folder:
        yield Path(folder)


def remove(path: Path) -> None:
    """Delete a file or a folder we own; absent is fine."""
    with _storage_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Delete what killed writers of `path` and of its sidecar left; the caller holds its lock."""
    # Not `.{name}.*.tmp`: "a.run" is locked by us, and "a.run.gz" may be another's, at work.
    _sweep(path.parent, re.compile(rf"\.{re.escape(path.name)}(\.json)?{_TEMPORARY}", re.DOTALL))


def sweep_folder(path: Path) -> None:
    """Delete what killed writers left inside a folder that is ours alone, at any depth."""
    for folder, _, _ in os.walk(path):
        _sweep(Path(folder), re.compile(rf"\..+{_TEMPORARY}", re.DOTALL))


def _sweep(folder: Path, names: re.Pattern[str]) -> None:
    with suppress(OSError):
        for leftover in folder.iterdir():
            if names.fullmatch(leftover.name):
                with suppress(StorageError):
                    remove(leftover)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the kernel's lock of one output; it dies with its owner: a kill leaves nothing to clear.

    Raises:
        BusyError: another living process holds it.
    """
    lock_path = path.parent / f".{path.name}.lock"
    with ExitStack() as stack:
        with _storage_errors(path):
            _need_regular(path)
            stack.enter_context(_folder_for(path))
            stack.enter_context(_acquire(lock_path, path))
        try:
            sweep(path)
            yield
        finally:
            # Unlinked while held: who waits on the old file finds its name gone and starts again.
            with suppress(OSError):
                lock_path.unlink()


@contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """Make the folder of `path`; those made here go again if nothing comes to lie in them."""
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _acquire(lock_path: Path, path: Path) -> IO[str]:
    while True:
        file = lock_path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise BusyError(
                f"{path}: another process (pid {owner}) is working on this output",
                "wait until it ends, or give this one another --output",
            ) from None
        except OSError:
            file.close()
            raise
        with suppress(FileNotFoundError):
            if lock_path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                with suppress(OSError):  # the lock holds on a full disk too
                    os.ftruncate(file.fileno(), 0)
                    os.write(file.fileno(), str(os.getpid()).encode())
                return file
        file.close()


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


_TEMPORARY = r"\.[0-9]+-[0-9a-f]{8}\.tmp"


def meant(path: Path) -> Path:
    """Name what lies under a temporary name, or inside, as it will be called in the end."""
    hidden = re.compile(rf"\.(.+){_TEMPORARY}", re.DOTALL)
    return Path(*(found[1] if (found := hidden.fullmatch(p)) else p for p in path.parts))


def _need_regular(path: Path) -> None:
    """Refuse a device or a pipe: a file renamed onto /dev/null would replace it for everybody."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise StorageError(f"{path}: is no regular file", "name a file, or - for standard output")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)  # noqa: PTH118
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(folder))


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise storage_error(_culprit(path, error), error) from error


def _culprit(path: Path, error: OSError) -> Path:
    """Name what the system complained of, which may be a file read meanwhile; no hidden name."""
    if not isinstance(error.filename, str) or Path(error.filename).name.startswith("."):
        return path
    return Path(error.filename)


# ---------------------------------------------------------------- digests


def digest_bytes(data: bytes) -> str:
    """Return sha256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_text(text: str) -> bytes:
    """Short digest of one of very many texts or ids: `TEXT_DIGEST` bytes."""
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=TEXT_DIGEST).digest()


def digest_json(value: object) -> str:
    """Digest of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return digest_bytes(_json_bytes(text))


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes as they lie on the disk (a `.gz` is not unpacked)."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise storage_error(path, error) from error


def digest_together(paths: Iterable[Path]) -> str:
    """Digest of the bytes of some files, one after the other.

    Raises:
        StorageError: one cannot be read.
    """
    whole = hashlib.sha256()
    for path in paths:
        with _storage_errors(path), path.open("rb") as file:
            while block := file.read(DIGESTED):
                whole.update(block)
    return whole.hexdigest()


def digest_folder(path: Path) -> str:
    """Digest of a folder: names (relative) and bytes of every file in it, hidden ones left out."""
    with _storage_errors(path):
        names = sorted(
            p.relative_to(path).as_posix()
            for p in path.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
        )
    return digest_json([[name, digest_file(path / name)] for name in names])


def free_bytes(path: Path) -> int:
    """Space left where `path` is or will be."""
    with _storage_errors(path):
        path = path.absolute()
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free


def need_free(path: Path, need: int) -> None:
    """Fail now rather than in hour 40: `need` bytes must be free where `path` will be.

    Raises:
        StorageError: they are not.
    """
    free = free_bytes(path)
    if free < need:
        raise StorageError(
            f"{path}: needs about {need / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free",
            "free some space or choose another disk",
        )


def need_path(path: Path | str, what: str) -> None:
    """Fail early if an input is missing.

    Raises:
        PipelineError: there is nothing under that name, or it may not be looked at.
    """
    if str(path) == STREAM:
        return
    with _storage_errors(Path(path)):
        found = Path(path).exists()
    if not found:
        raise PipelineError(f"{path}: no such {what}", "check the path")
