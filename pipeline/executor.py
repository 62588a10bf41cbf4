"""Who makes the parts of a stage: this process, or workers of an engine; what they tell each other.

A stage gives a worker a maker, which it opens once (a model, an index), and then one part after
another. Nothing else passes, so any engine that can carry these will do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.errors import PipelineError, did_you_mean, one_line, shown

ENGINES = ("ray",)
MOST_WORKERS = 1 << 16
CONNECT = 20.0  # seconds
HOST_PORT = re.compile(r"(?:ray://)?\[?([^/\]]+)\]?:([0-9]{1,5})")


@dataclass(frozen=True)
class Executor:
    """Which engine, where it is, and how many workers are to be had of it."""

    kind: Literal["ray"] = "ray"
    address: str | None = (
        None  # of a cluster; None: what RAY_ADDRESS names, else one is started here
    )
    workers: int = 0  # 0: as many as there is room for

    def check(self) -> None:
        """Fail over what cannot be.

        Raises:
            PipelineError: so it is.
        """
        if not 0 <= self.workers <= MOST_WORKERS:
            raise PipelineError(
                f"--workers {self.workers} is out of range",
                f"choose a number from 1 to {MOST_WORKERS}; 0 takes as many as there is room for",
            )

    @classmethod
    def read(cls, text: str, workers: int = 0) -> Executor:
        """Read `ray` or `ray:ADDRESS`.

        Raises:
            PipelineError: it is spelled otherwise.
        """
        kind, colon, address = text.partition(":")
        if kind not in ENGINES or (colon and not address):
            raise PipelineError(
                f"--executor {shown(text)} is not known",
                f"ray, or ray:ADDRESS of a cluster; {did_you_mean(kind, list(ENGINES))}",
            )
        return cls("ray", address or None, workers)


def need_listener(address: str | None) -> None:
    """Fail at once where nobody listens: an engine of its own accord tries for minutes.

    Args:
        address: HOST:PORT; anything else is left to the engine.

    Raises:
        PipelineError: there is no such host, or nobody listens there.
    """
    import socket

    found = HOST_PORT.fullmatch(address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise PipelineError(
            f"nobody answers at {address}: {one_line(str(error))}",
            "check the address of the cluster, and that it is up: ray status",
        ) from error


class Item(NamedTuple):
    """One part to be made."""

    key: str  # its name among the parts
    label: str  # for people: the first of its topics, or its place
    size: int  # pairs, topics or passages
    what: Any  # for the maker; travels to the worker
    # Where its facts will lie beside the part; "": it has none; None: they travel with it alone.
    note: str | None = None


class Made(NamedTuple):
    """One part that was made."""

    data: bytes
    facts: dict[str, Any]
    note: str = ""  # under which the facts are kept beside the part; nothing: they are not


class Maker(Protocol):
    """Makes parts on a worker; travels there once, unopened."""

    def open(self) -> dict[str, Any]:
        """Load what is needed, and say what determines bytes: equal on all workers, or refused."""

    def make(self, what: Any) -> Made:
        """Make one part."""
