"""One of several shares of a stage's work, for machines that know nothing of each other.

Which share a topic belongs to is a function of its id alone. A share is an output of its own, with
its own sidecar, parts and lock, beside the place of the whole: `shard-3-of-16.small.run`. Its
sidecar says which places of the whole it fills, so that joining needs nothing but the shares.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import PipelineError, shown
from pipeline.parts import bucket
from pipeline.textfile import STREAM

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MOST = 1 << 16
SPELLED = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class Shard:
    """Share `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> Self:
        """Read `3/16`.

        Raises:
            PipelineError: it is spelled otherwise, or there is no such share.
        """
        found = SPELLED.fullmatch(text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.number <= shard.of <= MOST:
            raise PipelineError(
                f"--shard {shown(text)} is no share of a whole",
                "write its number and how many there are: 1/16 is the first of sixteen",
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, qid: str) -> bool:
        """Whether a topic belongs to this share: of its id alone."""
        return bucket(qid, self.of) == self.number - 1

    def takes(self, part: int) -> bool:
        """Whether a part of a collection, numbered from 0, belongs to this share."""
        return part % self.of == self.number - 1

    def output(self, whole: Path) -> Path:
        """Where this share of an output lies.

        Raises:
            PipelineError: the output is a stream.
        """
        if str(whole) == STREAM:
            raise PipelineError(
                "--shard and --output -: a shard is merged with others later, from files",
                "name a file, the same for every shard",
            )
        return whole.with_name(f"shard-{self.number}-of-{self.of}.{plain(whole)}")

    def facts(
        self, total: int, places: Iterable[int], without: Iterable[int] = ()
    ) -> dict[str, Any]:
        """What a merge must know.

        Args:
            total: of all shards together, how much there is: topics, or parts of a collection.
            places: what of it this share holds, in the order in which it holds it, from 0.
            without: places of topics that have no lines.
        """
        return {
            "shard": str(self),
            "total": total,
            "places": " ".join(map(str, places)),
            "without": " ".join(map(str, without)),
        }


def beside(whole: Path) -> list[Path]:
    """Find the shards of an output that lie beside its place."""
    name = re.compile(rf"shard-[0-9]+-of-[0-9]+\.{re.escape(plain(whole))}")
    found = whole.parent.iterdir() if whole.parent.is_dir() else ()
    return sorted(path for path in found if name.fullmatch(path.name))


def begun(whole: Path) -> list[Path]:
    """Find the shards of an output of which anything lies beside its place, were it parts alone."""
    name = re.compile(rf"(shard-[0-9]+-of-[0-9]+\.{re.escape(plain(whole))})(?:\.json|\.parts)?")
    found = whole.parent.iterdir() if whole.parent.is_dir() else ()
    names = {match[1] for path in found if (match := name.fullmatch(path.name))}
    return [whole.with_name(one) for one in sorted(names)]


def plain(whole: Path) -> str:
    """Name of an output without `.gz`: shards are not compressed, the whole is."""
    return whole.name.removesuffix(".gz")
