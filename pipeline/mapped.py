"""Folders of files that are read through memory maps, and what says that they are whole.

Each has an `about.json`, which names the digest of the others as its `content`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.errors import storage_error
from pipeline.store import digest_file, digest_json, digest_together

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ABOUT = "about.json"


def digest_read(folder: Path, names: Iterable[str]) -> str:
    """Digest of `about.json`, after all files were read; another one if they are not what it says.

    Raises:
        StorageError: one cannot be read.
    """
    try:
        content = json.loads((folder / ABOUT).read_bytes())["content"]
    except (ValueError, KeyError, TypeError):
        content = None
    except OSError as error:
        raise storage_error(folder / ABOUT, error) from error
    paths = [folder / name for name in names]
    whole = all(path.is_file() for path in paths) and digest_together(paths) == content
    digest = digest_file(folder / ABOUT)
    return digest if whole else digest_json([digest, "damaged"])
