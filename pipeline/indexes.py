"""What identifies a Lucene index, without Java: its folders, its digest, whether there is one.

An index is one folder of Lucene's files, or a folder of several such (`1`, `2`, ...), which are
searched as one. Several indexes may be named together; each document is then in one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, storage_error
from pipeline.stage import read_sidecar
from pipeline.store import digest_bytes, digest_json

if TYPE_CHECKING:
    from collections.abc import Sequence

Place = Path | tuple[Path, ...]

FOOTER = 16  # bytes; every Lucene file ends in its own checksum


def paths(named: Place) -> tuple[Path, ...]:
    """Return the indexes that were named."""
    return (named,) if isinstance(named, Path) else named


def place(named: Sequence[Path] | None) -> Place | None:
    """Return what was named: nothing, one index, or several."""
    return (named[0] if len(named) == 1 else tuple(named)) if named else None


def shown_place(named: Place) -> str:
    """Name one index or several in a message."""
    return ", ".join(map(str, paths(named)))


def folders(path: Path) -> tuple[Path, ...]:
    """Find the folders with Lucene's files: that of the index, or those it is made of.

    Raises:
        PipelineError: there is no index.
    """
    need_index(path)
    return (path,) if _segments(path) else tuple(_pieces(path))


def files_digest(path: Path) -> str:
    """Digest of an index's files, cheaply: names, sizes, each file's own checksum, the segments.

    Notices a file that is missing, cut, or from another index; not a byte changed by hand in the
    middle of one, which Lucene's checksums find when asked.
    """
    facts = []
    try:
        for folder in (path, *_pieces(path)):
            for file in sorted(folder.iterdir()):
                if file.name.startswith(".") or file.name == "write.lock" or not file.is_file():
                    continue
                with file.open("rb") as data:
                    size = data.seek(0, 2)
                    data.seek(0 if file.name.startswith("segments") else max(0, size - FOOTER))
                    name = file.relative_to(path).as_posix()
                    facts.append([name, size, digest_bytes(data.read())])
    except OSError as error:
        raise storage_error(path, error) from error
    return digest_json(facts)


def index_digest(named: Place) -> str:
    """Digest of what an index holds, for the recipes of stages that read it.

    Ours say in their sidecar what documents they hold and how these were analysed, which is the
    same for every build, in one piece or in several; of others, their files are taken. Of several
    indexes, in whatever order, all are.

    Raises:
        PipelineError: there is no index, it was never finished, or its files changed since.
    """
    digests = [_digest(path) for path in paths(named)]
    return digests[0] if len(digests) == 1 else digest_json(sorted(digests))


def _digest(path: Path) -> str:
    need_index(path)
    sidecar = read_sidecar(path)
    files = files_digest(path)
    if sidecar is None:
        return files
    if sidecar.get("state") != "finished":
        raise PipelineError(f"{path}: this index was never finished", "run pipeline index again")
    if sidecar["output"].get("sha256") != files:
        raise PipelineError(
            f"{path}: files of this index changed after it was built",
            "build it again: pipeline index",
        )
    return str(sidecar["counts"].get("content", files))


def need_index(named: Place) -> None:
    """Fail early where there is no Lucene index.

    Raises:
        PipelineError: with what is there instead.
    """
    for path in paths(named):
        try:
            if _segments(path) or _pieces(path):
                continue
        except FileNotFoundError:
            raise PipelineError(
                f"{path}: no such index", "build it with pipeline index, or check the path"
            ) from None
        except NotADirectoryError:
            raise PipelineError(
                f"{path}: is a file, and an index is a folder", "name the folder of the index"
            ) from None
        except OSError as error:
            raise storage_error(path, error) from error
        raise PipelineError(
            f"{path}: no Lucene index in this folder",
            "name the folder that has the segments_N file",
        )


def part_of(path: Path) -> Path | None:
    """Return the index of which this is one folder of several, or None."""
    whole = path.absolute().parent
    if not path.name.isdecimal():
        return None
    sidecar = read_sidecar(whole) or {}
    cut = sidecar.get("recipe", {}).get("settings", {}).get("shards", 1)
    return whole if cut != 1 and sidecar["recipe"].get("stage") == "index" else None


def _segments(path: Path) -> bool:
    return any(file.name.startswith("segments_") for file in path.iterdir())


def _pieces(path: Path) -> list[Path]:
    """Folders of an index that is made of several, in order."""
    numbered = [folder for folder in path.iterdir() if folder.name.isdecimal() and folder.is_dir()]
    return sorted((one for one in numbered if _segments(one)), key=lambda one: int(one.name))
