"""What venues ask of a run: TREC tracks, MS MARCO's leaderboards, BEIR, TIRA.

Rules are those of the venues' own checkers and guidelines; docs/submit.md says where each is from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import PipelineError, did_you_mean, shown

Kind = Literal["trec", "msmarco", "beir", "tira"]
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Venue:
    """One venue's rules."""

    name: str
    title: str
    kind: Kind = "trec"
    tag: str = r"[A-Za-z0-9_-]{1,20}"  # what must match as a whole, here and below
    docno: str = r"\S+"
    qid: str = r"\S+"
    rank: str = r"-?[0-9]+"
    depth: int = 1000  # documents of a topic, at most
    full: bool = False  # whether so many are expected of every topic
    needs_topics: bool = True  # whether each topic must have a document
    q0: bool = True  # whether the second column must be Q0
    one_tag: bool = True
    least_lines: int = 1
    least_topics: int = 1
    most_bytes: int | None = None
    drops_itself: bool = False  # whether a topic's own document is left out


def _deep_learning() -> list[Venue]:
    """TREC Deep Learning: ids by collection, depths by the guidelines of the year."""
    depths = {
        2019: (1000, 1000), 2020: (1000, 100), 2021: (100, 100), 2022: (100, 100),
        2023: (100, 100),
    }  # fmt: skip
    found = []
    for year, (passages, documents) in depths.items():
        first = year < 2021
        length = 15 if year < 2022 else 25
        for task, docno, depth in (
            ("passage", r"[0-9]+" if first else r"msmarco_passage_[0-9]{2}_[0-9]+", passages),
            ("document", r"D[0-9]+" if first else r"msmarco_doc_[0-9]{2}_[0-9]+", documents),
        ):
            found.append(
                Venue(
                    f"trec-dl-{year}-{task}",
                    f"TREC {year} Deep Learning, {task} ranking",
                    tag=rf"[A-Za-z0-9_-]{{1,{length}}}",
                    docno=docno,
                    depth=depth,
                )
            )
    return found


VENUES = {
    venue.name: venue
    for venue in (
        Venue("trec", "a TREC track", rank=r"[0-9]+"),
        *_deep_learning(),
        Venue(
            "trec-covid", "TREC-COVID", tag=r"[A-Za-z0-9_.-]{1,20}", docno=r"[a-z0-9]{8}"
        ),
        Venue(
            "msmarco-passage", "MS MARCO passage ranking", "msmarco",
            docno=r"[0-9]+", qid=r"[0-9]+", rank=r"[0-9]+", full=True, q0=False, one_tag=False,
        ),
        Venue(
            "msmarco-document", "MS MARCO document ranking", "msmarco",
            docno=r"D[0-9]+", qid=r"[0-9]+", rank=r"[0-9]+", depth=100, full=True, q0=False,
            one_tag=False,
        ),
        Venue(
            "beir", "BEIR", "beir", tag=r"\S+", needs_topics=False, q0=False, one_tag=False,
            drops_itself=True,
        ),
        Venue(
            "tira", "TIRA", "tira", tag=r"\S+", needs_topics=False, q0=False, one_tag=False,
            least_lines=5, least_topics=3, most_bytes=250 * MEGABYTE,
        ),
    )
}  # fmt: skip


def venue_of(name: str) -> Venue:
    """Find a venue.

    Raises:
        PipelineError: there is none of that name.
    """
    if name not in VENUES:
        raise PipelineError(f"no venue {shown(name)}", did_you_mean(name, list(VENUES)))
    return VENUES[name]
