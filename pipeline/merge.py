"""Join the shards of a run, or of vectors, into what one process would have written.

The sidecars say all: shards fit together if they have one recipe and one numeric signature, and
fill every place of the whole once. The whole then has the recipe, the bytes and the sidecar of an
output that was never cut, so the stages after it do not know the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path  # noqa: TC003 - settings are filled by their types at run time
from typing import TYPE_CHECKING, Any

from pipeline import encode
from pipeline.errors import PipelineError, shown
from pipeline.parts import joined, topic_blocks
from pipeline.report import SILENT, Reporter
from pipeline.shards import Shard, beside
from pipeline.stage import (
    Outcome,
    Recipe,
    differences,
    find_place,
    need_apart,
    places,
    producing,
    read_sidecar,
)
from pipeline.store import atomic_file, atomic_folder, digest_file, need_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.parts import Block

ADDED = ("pairs", "queries_cut", "passages_cut", "empty_passages", "passages", "cut")
ADDED_DETAILS = ("pairs_scored", "pairs_reused")
LISTS = ("without_hits", "without_candidates")
NAMED = 5  # shards that are missing


@dataclass(frozen=True)
class MergeSettings:
    """Which shards, and what they make."""

    output: Path
    shards: tuple[Path, ...] = ()  # none named: those that lie beside the output
    force: bool = False


@dataclass(frozen=True)
class Piece:
    """A finished shard, and what its sidecar says."""

    path: Path
    shard: Shard
    total: int
    places: tuple[int, ...]  # of the whole, in the order in which the shard holds them
    without: tuple[int, ...]
    sidecar: Mapping[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """That of the whole: the shard left out."""
        found: dict[str, Any] = self.sidecar["recipe"]
        settings = {name: v for name, v in found["settings"].items() if name != "shard"}
        return {**found, "settings": settings}


def merge(settings: MergeSettings, reporter: Reporter = SILENT) -> Outcome:
    """Join shards unless the whole is fresh.

    Raises:
        PipelineError: a shard is missing, there twice, unfinished or edited, or was made otherwise
            than the others.
    """
    paths = settings.shards or tuple(beside(settings.output))
    if not paths:
        raise PipelineError(
            f"{settings.output}: no shards of it lie beside it",
            "make them with --shard 1/N and so on, under the same --output; or name them",
        )
    need_apart(settings.output, *paths)
    pieces = sorted(map(_read, paths), key=lambda piece: piece.shard.number)
    _need_all(pieces)
    _need_facts(pieces)
    _need_alike(pieces)
    _need_every_place(pieces)
    first = pieces[0].recipe
    vectors = first["stage"] == "encode"
    recipe = Recipe(first["stage"], first["version"], first["settings"], first["inputs"])
    digest = encode.digest if vectors else digest_file
    with producing(
        settings.output, lambda: recipe, force=settings.force, digest=digest, reporter=reporter
    ) as job:
        if job.fresh:
            return job.outcome
        counts, details = _counts(pieces), _details(pieces, settings.output)
        if vectors:
            _write_vectors(pieces, job, counts, details)
            return job.outcome
        blocks = _blocks(pieces)
        with job.commit(counts, details), atomic_file(settings.output) as out:
            for lines in joined(blocks):
                out.write(lines)
        return job.outcome


# ---------------------------------------------------------------- what was given


def _read(path: Path) -> Piece:
    need_path(path, "shard")
    sidecar = read_sidecar(path)
    if sidecar is None or sidecar.get("state") != "finished":
        raise PipelineError(
            f"{path}: this shard was never finished", "run its command again; it goes on"
        )
    try:
        facts = sidecar["counts"]["shard"]
        shard, total = Shard.read(facts["shard"]), int(facts["total"])
        filled, without = (tuple(map(int, facts[name].split())) for name in ("places", "without"))
    except PipelineError:  # it speaks of an option
        raise _edited(path, "shard") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PipelineError(
            f"{path}: is no shard of anything", "name outputs of --shard, as shard-1-of-16.x.run"
        ) from None
    digest = encode.digest if sidecar["recipe"].get("stage") == "encode" else digest_file
    if digest(path) != sidecar["output"].get("sha256"):
        raise PipelineError(
            f"{path}: was edited or damaged after it was made", "run its command again"
        )
    return Piece(path, shard, total, filled, without, sidecar)


def _need_all(pieces: Sequence[Piece]) -> None:
    """Refuse what cannot be the shards of one whole, by name."""
    found: dict[int, Piece] = {}
    first = pieces[0]
    for piece in pieces:
        if piece.shard.of != first.shard.of:
            raise PipelineError(
                f"{first.path} is a shard of {first.shard.of}, and {piece.path} of "
                f"{piece.shard.of}: they overlap",
                "name the shards of one cut",
            )
        if (other := found.setdefault(piece.shard.number, piece)) is not piece:
            raise PipelineError(
                f"{other.path} and {piece.path} overlap: both are shard {piece.shard}",
                "name one of them",
            )
    missing = [number for number in range(1, first.shard.of + 1) if number not in found]
    if missing:
        names = ", ".join(f"{number}/{first.shard.of}" for number in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise PipelineError(
            f"{first.path.parent}: there is a gap: shard {names}{more} is missing",
            f"run its command: --shard {missing[0]}/{first.shard.of}",
        )


def _need_facts(pieces: Sequence[Piece]) -> None:
    """Refuse a sidecar that lacks what is taken from it, which no shard's does of itself."""
    wanted: dict[tuple[str, str], Any] = {
        ("recipe", "stage"): str,
        ("recipe", "version"): int,
        ("details", "signature"): dict,
        ("details", "lowered_budgets"): dict,
        ("details", "ms_per_1000"): (int, float),
        ("details", "places"): dict,
    }
    wanted |= {("counts", name): int for name in ADDED}
    wanted |= {("counts", name): list for name in LISTS}
    wanted |= {("details", name): int for name in ADDED_DETAILS}
    for (table, name), kind in wanted.items():
        if table != "recipe" and not any(name in piece.sidecar[table] for piece in pieces):
            continue  # no fact of this stage
        for piece in pieces:
            value = piece.sidecar[table].get(name)
            short = kind is list and isinstance(value, list) and len(value) != len(piece.without)
            if not isinstance(value, kind) or short:
                raise _edited(piece.path, f"{table}.{name}")
    for piece in pieces:
        if not isinstance(piece.sidecar.get("provenance"), dict):
            raise _edited(piece.path, "provenance")
        if piece.total != pieces[0].total:
            raise PipelineError(
                f"{piece.path} is a shard of {piece.total:,} places, and {pieces[0].path} of "
                f"{pieces[0].total:,}",
                "make both again from the same inputs, with --force",
            )


def _edited(path: Path, what: str) -> PipelineError:
    return PipelineError(
        f"{path}: its sidecar was edited: {what} is not what it was",
        "run its command again with --force",
    )


def _need_alike(pieces: Sequence[Piece]) -> None:
    first = pieces[0]
    for piece in pieces[1:]:
        reasons = differences(first.recipe, piece.recipe)
        if reasons:
            raise PipelineError(
                f"{piece.path} and {first.path} have different recipes: {', '.join(reasons)}",
                "make them again with the same settings and inputs",
            )
        ours, theirs = (dict(one.sidecar["details"].get("signature", {})) for one in (first, piece))
        changed = [
            f"{name} ({shown(ours.get(name))} and {shown(theirs.get(name))})"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if changed:
            raise PipelineError(
                f"{first.path} and {piece.path} were computed differently, and their scores "
                f"differ in the last bits: {', '.join(changed)}",
                "make one again like the other, with --force: same processor and versions, and "
                "--precision",
            )


def _need_every_place(pieces: Sequence[Piece]) -> None:
    """Look at the places themselves: every one of the whole once."""
    first = pieces[0]
    holder: dict[int, Piece] = {}
    for piece in pieces:
        # Topics without candidates are in no run to be reranked, and have no place there.
        retrieved = first.recipe["stage"] == "retrieve"
        for place in chain(piece.places, piece.without if retrieved else ()):
            if (other := holder.setdefault(place, piece)) is not piece:
                raise PipelineError(
                    f"{other.path} and {piece.path} overlap: both hold place {place} of the whole",
                    "make both again from the same inputs, with --force",
                )
    if len(holder) != first.total or not holder.keys() <= set(range(first.total)):
        raise PipelineError(
            f"{first.path.parent}: {first.total - len(holder):,} of {first.total:,} places of the "
            "whole are in no shard",
            "make the shards again from the same inputs, with --force",
        )


# ---------------------------------------------------------------- what is made


def _blocks(pieces: Sequence[Piece]) -> list[Block]:
    """Topics of all shards, in the order of the whole.

    Raises:
        PipelineError: a shard has not the topics that its sidecar counts, or another's.
    """
    blocks: dict[int, Block] = {}
    seen: dict[str, Piece] = {}
    for piece in pieces:
        found = topic_blocks(piece.path)
        if len(found) != len(piece.places):
            raise PipelineError(
                f"{piece.path}: {len(found):,} topics, and its sidecar says {len(piece.places):,}",
                "run its command again with --force",
            )
        for qid in found:
            if (other := seen.setdefault(qid, piece)) is not piece:
                raise PipelineError(
                    f"{other.path} and {piece.path} overlap: both have topic {shown(qid)}",
                    "make both again from the same inputs, with --force",
                )
        blocks.update(zip(piece.places, found.values(), strict=True))
    return [blocks[place] for place in sorted(blocks)]


def _write_vectors(
    pieces: Sequence[Piece], job: Any, counts: dict[str, Any], details: dict[str, Any]
) -> None:
    from pipeline.vectors import part_docids, write_vectors

    parts = {
        place: piece.path / encode.part_name(place) for piece in pieces for place in piece.places
    }
    ordered = [parts[place] for place in sorted(parts)]
    seen: set[str] = set()
    for part in ordered:
        for docid in part_docids(part):
            if docid in seen:
                raise PipelineError(
                    f"{part}: overlaps with another shard: both have document {shown(docid)}",
                    "let every shard read one collection, or one copy of the index",
                )
            seen.add(docid)
    with job.commit(counts, details), atomic_folder(job.output) as new:
        write_vectors(new, ordered, details["about"])


def _counts(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Facts about the whole, as one process would have counted them."""
    counts = {name: v for name, v in pieces[0].sidecar["counts"].items() if name != "shard"}
    of_all = [piece.sidecar["counts"] for piece in pieces]
    for name in ADDED:
        if name in counts:
            counts[name] = sum(int(one[name]) for one in of_all)
    for name in LISTS:
        if name in counts:
            placed = [
                (place, qid)
                for piece, one in zip(pieces, of_all, strict=True)
                for place, qid in zip(piece.without, one[name], strict=True)
            ]
            counts[name] = [qid for _, qid in sorted(placed)]
    if "topics" in counts:
        counts["topics"] = pieces[0].total
    return counts


def _details(pieces: Sequence[Piece], output: Path) -> dict[str, Any]:
    """Facts about all executions; places as seen from the whole."""
    first = pieces[0]
    details = {name: v for name, v in first.sidecar["details"].items() if name != "executor"}
    of_all = [piece.sidecar["details"] for piece in pieces]
    for name in ADDED_DETAILS:
        if name in details:
            details[name] = sum(int(one[name]) for one in of_all)
    if "lowered_budgets" in details:
        details["lowered_budgets"] = dict(_items(one["lowered_budgets"] for one in of_all))
    if "ms_per_1000" in details:
        pairs = max(details["pairs_scored"], 1)
        spent = sum(one["ms_per_1000"] * one["pairs_scored"] for one in of_all)
        details["ms_per_1000"] = round(spent / pairs, 3)
    if "places" in details:
        found = {name: find_place(first.path, place) for name, place in details["places"].items()}
        details["places"] = places(output, **found)
    seconds = [piece.sidecar["provenance"].get("seconds", 0) for piece in pieces]
    return details | {"shards": len(pieces), "shard_seconds": seconds}


def _items(tables: Iterator[dict[str, int]] | Any) -> Iterator[tuple[str, int]]:
    for table in tables:
        yield from table.items()
