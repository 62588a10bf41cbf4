"""Where a stage tells its user what happens; the command line draws it, tests may ignore it."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """What a stage may say while it works."""

    def notice(self, text: str) -> None:
        """Say something once: a part redone, topics without hits."""

    def advance(self, done: int, total: int, unit: str) -> None:
        """Say how far the work is; `unit` is plural (`topics`, `pairs`, `documents`)."""


class Silent:
    """A reporter that says nothing."""

    def notice(self, text: str) -> None:
        """Say nothing."""

    def advance(self, done: int, total: int, unit: str) -> None:
        """Say nothing."""


SILENT = Silent()
