"""Training groups: a topic, a handful of its candidates, the teacher's scores.

A teacher is an ordinary run, so is every other source of scores: several are averaged after they
are standardised within each topic. What is drawn depends on (seed, epoch, qid) and nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.errors import PipelineError, shown
from pipeline.passages import document_of
from pipeline.trec import read_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.topics import Topics
    from pipeline.trec import Qrels


@dataclass(frozen=True)
class TeacherRun:
    """A run whose scores are learnt, and its weight in the average with the others."""

    run: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Stratum:
    """Draw `count` candidates from the teacher's ranks `first` to `last` (from 1, inclusive)."""

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class Row:
    """The candidates of one topic in the teacher's order: places in `Pool.docids`, and scores."""

    docs: NDArray[np.int32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """Everything that may be drawn: the candidates of each topic, and the ids they point to."""

    docids: list[str]
    rows: dict[str, Row]


@dataclass(frozen=True)
class Group:
    """What one topic gives to one step: `docs`, `scores` and `labels` have the group's length."""

    qid: str
    docs: NDArray[np.int32]
    scores: NDArray[np.float32]
    labels: NDArray[np.float32]


def standardised(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and standard deviation 1 over one topic; all equal gives zeros."""
    spread = float(scores.std())
    centred: NDArray[np.float32] = scores - scores.mean()
    return centred / np.float32(spread) if spread > 1e-12 else centred * np.float32(0)


def read_pool(teachers: Sequence[TeacherRun], topics: Topics, *, raw: bool = False) -> Pool:
    """Read teacher runs and average them.

    The first run decides which candidates there are; a candidate that another run lacks gets the
    lowest score of its topic there. Standardising makes runs comparable but also makes a topic
    without any good candidate look as clear-cut as the others; so the average gets back the
    spread that the topic has in the first run, relative to that run's mean spread.

    Args:
        raw: scores are logits of like scale, and averaged as they are.

    Raises:
        PipelineError: a topic of the first run is unknown, or two runs share no topic or candidate.
    """
    on_one_scale = (lambda scores: scores) if raw else standardised
    places: dict[str, int] = {}
    first: dict[str, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}
    total: dict[str, NDArray[np.float32]] = {}
    for number, teacher in enumerate(teachers):
        met = shared = 0
        for ranking in read_run(teacher.run):
            if number == 0:
                if ranking.qid not in topics:
                    raise PipelineError(
                        f"{teacher.run}: topic {shown(ranking.qid)} is not among the topics",
                        "give the topics that the teacher has scored",
                    )
                docs = np.fromiter(
                    (places.setdefault(d.docid, len(places)) for d in ranking.docs), np.int32
                )
                scores = np.fromiter((d.score for d in ranking.docs), np.float32)
                first[ranking.qid] = docs, scores
                total[ranking.qid] = np.float32(teacher.weight) * on_one_scale(scores)
            elif ranking.qid in first:
                other = {places.get(d.docid, -1): d.score for d in ranking.docs}
                shared += len(other.keys() - {-1})
                lowest = min(other.values())
                docs = first[ranking.qid][0]
                scores = np.fromiter((other.get(int(d), lowest) for d in docs), np.float32)
                total[ranking.qid] += np.float32(teacher.weight) * on_one_scale(scores)
            met += ranking.qid in first
        if met < len(first):
            raise PipelineError(
                f"{teacher.run}: {len(first) - met} topics of the first teacher run are missing",
                "give runs over the same topics",
            )
        if number and not shared:
            raise PipelineError(
                f"{teacher.run}: shares no candidate with the first teacher run",
                "give runs over the same passages",
            )
    spreads = {qid: 1.0 if raw else float(scores.std()) for qid, (_, scores) in first.items()}
    mean_spread = float(np.mean(list(spreads.values()))) or 1.0
    weights = sum(teacher.weight for teacher in teachers)
    rows = {}
    for qid, (docs, _) in first.items():
        scores = total[qid] * np.float32(spreads[qid] / mean_spread / weights)
        order = np.argsort(-scores, kind="stable")
        rows[qid] = Row(docs[order], scores[order])
    return Pool(list(places), rows)


def draw(row: Row, positives: set[int], strata: Sequence[Stratum], generator: Any) -> list[int]:
    """Choose places in `row`: one known relevant candidate if there is any, then by strata.

    The relevant one takes a place of the first stratum, so the group's size is that of the strata.
    A stratum that the row is too short for is filled from the whole row.
    """
    size = len(row.docs)
    known = [place for place, doc in enumerate(row.docs.tolist()) if doc in positives]
    chosen = [known[int(generator.integers(len(known)))]] if known else []
    missing = 0
    for number, stratum in enumerate(strata):
        wanted = stratum.count - (len(chosen) if number == 0 else 0) + missing
        ranks = [r for r in range(stratum.first - 1, min(stratum.last, size)) if r not in chosen]
        drawn = generator.permutation(ranks)[: max(wanted, 0)].tolist()
        chosen += drawn
        missing = wanted - len(drawn)
    if missing > 0:
        rest = [rank for rank in range(size) if rank not in chosen]
        chosen += generator.permutation(rest)[:missing].tolist()
    return chosen


def group(
    qid: str, pool: Pool, positives: set[int], strata: Sequence[Stratum], seed: int, epoch: int
) -> Group:
    """Draw the group of a topic for one epoch: a function of (seed, epoch, qid) alone."""
    row = pool.rows[qid]
    key = hashlib.sha256(f"{seed}\t{epoch}\t{qid}".encode()).digest()
    places = draw(row, positives, strata, np.random.default_rng(int.from_bytes(key[:16], "big")))
    docs = row.docs[places]
    labels = np.fromiter((doc in positives for doc in docs.tolist()), np.float32)
    return Group(qid, docs, row.scores[places], labels)


def epoch_order(qids: Sequence[str], seed: int, epoch: int) -> list[str]:
    """Shuffle the topics of one epoch, whatever order they come in."""
    return sorted(
        qids, key=lambda q: hashlib.sha256(f"{seed}\t{epoch}\t{q}".encode()).digest()[16:]
    )


def relevant(pool: Pool, qrels: Qrels, least: int = 1) -> dict[str, set[int]]:
    """Judged relevant candidates of each topic, as places in `pool.docids`."""
    places = {docid: place for place, docid in enumerate(pool.docids)}
    return {
        qid: {
            places[d] for d, grade in qrels.get(qid, {}).items() if grade >= least and d in places
        }
        for qid in pool.rows
    }


def relevant_windows(
    pool: Pool, qrels: Qrels, keep: int, run: Path, least: int = 1
) -> tuple[Pool, dict[str, set[int]]]:
    """Label windows by the judgements of their documents, and take noisy ones out.

    A document is relevant because something in it is; of its windows the `keep` that come first in
    the teacher's order inherit the label. The others are neither relevant nor surely not, so no
    group has them (Simplified TinyBERT, 2009.07531: noisy positive passages are filtered).

    Args:
        pool: of windows, named as `passages.window_id` does.
        qrels: of documents.
        run: where the candidates are from, for the error.

    Returns:
        The pool without the noisy windows, and the relevant ones as places in `Pool.docids`.

    Raises:
        PipelineError: a candidate that is no window.
    """
    documents = [window_of(docid, run)[0] for docid in pool.docids]
    rows, positives = {}, {}
    for qid, row in pool.rows.items():
        grades = qrels.get(qid, {})
        found: dict[str, list[int]] = {}
        for place in row.docs.tolist():
            if grades.get(documents[place], 0) >= least:
                found.setdefault(documents[place], []).append(place)
        positives[qid] = {place for some in found.values() for place in some[:keep]}
        noisy = [place for some in found.values() for place in some[keep:]]
        stays = ~np.isin(row.docs, noisy)
        rows[qid] = Row(row.docs[stays], row.scores[stays])
    return Pool(pool.docids, rows), positives


def window_of(candidate: str, run: Path) -> tuple[str, int]:
    """Return the document of a candidate of a run, and which of its windows it is.

    Raises:
        PipelineError: the candidate is no window.
    """
    try:
        return document_of(candidate)
    except ValueError:
        raise PipelineError(
            f"{run}: {shown(candidate)} is no window of a document",
            "positive_windows and windows of a dev set are for runs of what pipeline windows cut",
        ) from None


def with_relevant(pool: Pool, qrels: Qrels, least: int = 1) -> Pool:
    """Append to each topic's candidates what is judged relevant and was not found, scored last."""
    docids = list(pool.docids)
    places = {docid: place for place, docid in enumerate(docids)}
    rows = {}
    for qid, row in pool.rows.items():
        found = {docids[place] for place in row.docs.tolist()}
        missing = sorted(d for d, g in qrels.get(qid, {}).items() if g >= least and d not in found)
        for docid in missing:
            if docid not in places:
                places[docid] = len(docids)
                docids.append(docid)
        docs = np.array([places[docid] for docid in missing], np.int32)
        scores = np.full(len(missing), row.scores.min(), np.float32)
        rows[qid] = Row(np.concatenate([row.docs, docs]), np.concatenate([row.scores, scores]))
    return Pool(docids, rows)


# ---------------------------------------------------------------- tokens


class Rows(Protocol):
    """Token ids of many texts, by their place."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[NDArray[Any]]: ...
    def __getitem__(self, place: int, /) -> NDArray[Any]: ...


class Tokens:
    """Token ids of many texts, without special tokens, flat in one array of uint16 or uint32."""

    def __init__(self, tokenizer: Any, texts: Iterable[str], limit: int, block: int = 4096) -> None:
        """Tokenise `texts` by a fast tokenizer of transformers, cutting each at `limit` tokens."""
        wide = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
        # "[SEP]" in a text must not end a segment: markup in texts becomes the unknown token.
        special = np.array(sorted(tokenizer.all_special_ids), dtype=wide)
        if tokenizer.unk_token_id is None:
            raise PipelineError(
                "the base's tokenizer has no unknown token, which markup in texts becomes",
                "choose another base",
            )
        unknown = wide(tokenizer.unk_token_id)
        pieces, lengths = [], [0]
        for texts_block in _blocks(texts, block):
            encoded = tokenizer(
                texts_block,
                add_special_tokens=False,
                truncation=True,
                max_length=limit,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            lengths += [len(ids) for ids in encoded]
            flat = np.fromiter((i for ids in encoded for i in ids), wide)
            flat[np.isin(flat, special)] = unknown
            pieces.append(flat)
        self._ids = np.concatenate(pieces) if pieces else np.zeros(0, wide)
        self._ends = np.cumsum(np.array(lengths, np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> NDArray[Any]:
        return self._ids[self._ends[place] : self._ends[place + 1]]


def _blocks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
