"""Small files to read, and what lies in a folder."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def file_of(folder: Path, text: str | bytes, name: str = "file.txt") -> Path:
    """Write a file, packed if its name says so, as somebody else would: without our own code."""
    data = text.encode() if isinstance(text, str) else text
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name
