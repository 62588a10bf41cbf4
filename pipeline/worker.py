"""A worker's side of an executor: one maker in a process of its own, and what it says of itself."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import telemetry
from pipeline.errors import PipelineError, shown
from pipeline.parts import Parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.executor import Made, Maker

TOKEN = "executor"  # noqa: S105 - the name of a note, by which workers know the folder


class Bench:
    """A worker's process: one maker, opened once."""

    def __init__(self, maker: Maker, folder: str, token: str) -> None:
        telemetry.switch_off()
        self._maker = maker
        self._parts: Parts | None = None
        parts = Parts(Path(folder))
        with suppress(PipelineError, OSError):
            if (parts.note(TOKEN) or {}).get("token") == token:
                self._parts = parts

    def open(self) -> dict[str, Any]:
        """Say where this is, which versions, and what determines bytes; or why it cannot be."""
        from importlib import metadata  # its own imports would slow every start

        said: dict[str, Any] = {
            "node": platform.node(),
            "pid": os.getpid(),
            "shared": self._parts is not None,
            "versions": {
                "python": platform.python_version(),
                "trec-pipeline": metadata.version("trec-pipeline"),
            },
        }
        try:
            return said | {"facts": self._maker.open()}
        except PipelineError as error:
            return said | {"error": (error.message, error.hint)}

    def make(self, key: str, what: Any) -> tuple[str | bytes, dict[str, Any], str, float]:
        """Make a part: (its name in the shared folder, or its bytes; facts; note; seconds)."""
        began = time.monotonic()
        made: Made = self._maker.make(what)
        if self._parts is None:
            return made.data, made.facts, made.note, time.monotonic() - began
        name = keep(self._parts, key, made).name
        return name, made.facts, "", time.monotonic() - began


def keep(parts: Parts, key: str, made: Made) -> Path:
    """Keep a part, the facts beside it first."""
    if made.note and made.facts:
        parts.keep_note(made.note, made.facts)
    return parts.save(key, made.data)


def need_alike(said: Mapping[str, Any], first: Mapping[str, Any] | None, name: str) -> None:
    """Refuse a worker whose parts would not be those of another.

    Raises:
        PipelineError: with all that differs: versions, the model, the processor.
    """
    if first is None:
        return
    ours, theirs = (_flat({k: one[k] for k in ("versions", "facts")}) for one in (first, said))
    changed = [
        f"{key} ({shown(ours.get(key))} and {shown(theirs.get(key))})"
        for key in {**ours, **theirs}
        if ours.get(key) != theirs.get(key)
    ]
    if changed:
        raise PipelineError(
            f"{name} is not like the one on {first.get('node')}: {', '.join(changed)}",
            "give all nodes the same versions, model and kind of processor",
        )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
