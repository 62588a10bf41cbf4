"""Pack a run for a venue: its rules checked first, then exactly the files to upload, or nothing."""

from __future__ import annotations

import bz2
import datetime
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline import irmetadata
from pipeline.admission import Admission, Mends, admit, rows
from pipeline.errors import CheckFailedError, PipelineError, shown
from pipeline.store import atomic_file, atomic_folder, locked, need_path, write_bytes, write_json
from pipeline.textfile import STREAM
from pipeline.topics import read_topics
from pipeline.trec import Ranking, ScoredDoc, ordered, run_lines
from pipeline.venues import MEGABYTE, Venue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ID = re.compile(r"([0-9]{8})-[A-Za-z0-9_.-]+")
EMBARGO = 275  # days: nine months at most
TYPES = ("full ranking", "reranking")
TIRA_PLAIN = 75 * MEGABYTE  # of a run without metadata
TIRA_NEEDS = ("team", "repository", "data", "description")


@dataclass(frozen=True)
class SubmitSettings:
    """What is packed for whom."""

    venue: Venue
    run: Path
    output: Path  # a folder that is not there yet, or empty
    topics: Path | None = None
    topic_field: str = "title"  # of TREC topic files
    mends: Mends = field(default_factory=Mends)
    gz: bool = False
    about: Mapping[str, str] = field(default_factory=dict)
    """team, description, repository, data, name; for MS MARCO id, paper, code, type, embargo."""
    eval_run: Path | None = None  # MS MARCO's second set of topics
    eval_topics: Path | None = None


@dataclass(frozen=True)
class Packed:
    """What was checked and written."""

    admissions: tuple[tuple[Path, Admission], ...]  # one for each run
    files: tuple[str, ...]  # relative to the folder; none where a rule was broken


def submit(settings: SubmitSettings) -> Packed:
    """Check a run by the venue's rules, and write what is to be uploaded if all are kept.

    The run is written anew: in trec_eval's order, with scores that decrease strictly, ranks from 1.

    Raises:
        PipelineError: a file that cannot be read, something missing that the venue asks for, or a
            folder that is not empty.
        CheckFailedError: the files would be larger than the venue takes.
    """
    _check(settings)
    found = [(settings.run, _admitted(settings, settings.run, settings.topics))]
    if settings.eval_run is not None:
        second = _admitted(settings, settings.eval_run, settings.eval_topics)
        found.append((settings.eval_run, second))
    if not all(admission.admitted for _, admission in found):
        return Packed(tuple(found), ())
    with locked(settings.output), atomic_folder(settings.output) as folder:
        if settings.venue.kind == "msmarco":
            _pack_msmarco(settings, found, folder)
        else:
            _pack_trec(settings, found[0][1], folder)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return Packed(tuple(found), tuple(files))


def _admitted(settings: SubmitSettings, run: Path, topics: Path | None) -> Admission:
    known = None if topics is None else list(read_topics(topics, settings.topic_field))
    return admit(run, settings.venue, known, settings.mends)


def _check(settings: SubmitSettings) -> None:
    """Refuse what could not be packed, before a long run is read."""
    venue, mends = settings.venue, settings.mends
    for path, what in ((settings.run, "run"), (settings.eval_run, "run"),
                       (settings.topics, "file of topics"),
                       (settings.eval_topics, "file of topics")):  # fmt: skip
        if path is not None and str(path) == STREAM:
            raise PipelineError("a submission is read twice", "name files, not standard input")
        if path is not None:
            need_path(path, what)
    if settings.topics is None and (venue.needs_topics or mends.filler is not None):
        raise PipelineError(
            f"{venue.title} wants a document for every topic, and no topics are named",
            "name the file of topics: --topics FILE",
        )
    if mends.tag is not None and not re.fullmatch(venue.tag, mends.tag):
        raise PipelineError(f"--tag {shown(mends.tag)}: must match {venue.tag}", "choose another")
    if mends.filler is not None and not re.fullmatch(venue.docno, mends.filler):
        raise PipelineError(
            f"--filler {shown(mends.filler)} is no document of {venue.title}",
            f"its ids match {venue.docno}",
        )
    output = settings.output
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise PipelineError(f"{output}: exists already", "name a folder that is not there yet")
    if venue.kind == "msmarco":
        _check_msmarco(settings)
    elif settings.eval_run is not None:
        raise PipelineError(f"{venue.title} takes one run", "leave --eval out")


# ---------------------------------------------------------------- rankings


def _rankings(
    run: Path, settings: SubmitSettings, found: Admission, topics: Path | None
) -> Iterator[Ranking]:
    """Read an admitted run as it is to be written; topics without a document get the filler."""
    venue = settings.venue
    limit = venue.depth if settings.mends.cut else None
    for qid, docs in _topics(run, found):
        if venue.drops_itself:
            docs = [doc for doc in docs if doc.docid != qid]
        if docs:
            ranking = ordered(qid, docs)
            yield ranking._replace(docs=ranking.docs[:limit])
    if settings.mends.filler is not None and topics is not None:
        for qid in found.missing:
            yield Ranking(qid, (ScoredDoc(settings.mends.filler, 0.0),))


def _topics(run: Path, found: Admission) -> Iterator[tuple[str, list[ScoredDoc]]]:
    """Group lines by topic: a topic at a time, or all at once where they lie apart."""
    held: dict[str, list[ScoredDoc]] = {}
    for qid, docid, score in rows(run, found.columns):
        if qid not in held and held and not found.scattered:
            yield held.popitem()
        held.setdefault(qid, []).append(ScoredDoc(docid, score))
    yield from held.items()


# ---------------------------------------------------------------- TREC, BEIR, TIRA


def _pack_trec(settings: SubmitSettings, found: Admission, folder: Path) -> None:
    venue, about = settings.venue, settings.about
    tag = settings.mends.tag or found.tag
    name = {"tira": "run.txt", "beir": f"{_safe(about.get('data') or settings.run.stem)}.trec"}
    if tag.startswith(".") and venue.kind not in name:
        raise PipelineError(
            f"tag {shown(tag)}: a file of this name would be hidden", "choose another: --tag NAME"
        )
    path = folder / (name.get(venue.kind, tag) + ".gz" * settings.gz)
    with atomic_file(path) as out:
        for ranking in _rankings(settings.run, settings, found, settings.topics):
            out.write(run_lines(ranking, tag))
    described = venue.kind != "tira" or all(about.get(key) for key in TIRA_NEEDS)
    if venue.most_bytes is not None:
        limit = venue.most_bytes if described else TIRA_PLAIN
        if (size := path.stat().st_size) > limit:
            raise CheckFailedError(
                f"{path.name}: {size / 1e6:,.0f} MB where {venue.title} takes {limit / 1e6:,.0f}",
                "compress it (--gz), cut it (--cut)"
                + ("" if described else f", or describe it: --{', --'.join(TIRA_NEEDS)}"),
            )
    if described:
        name_of = "ir-metadata.yml" if venue.kind == "tira" else f"{path.name}.ir-metadata.yml"
        record = irmetadata.metadata(settings.run, tag, about)
        write_bytes(folder / name_of, irmetadata.yaml(record).encode("utf-8", "replace"))


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip(".") or "run"


# ---------------------------------------------------------------- MS MARCO


def _check_msmarco(settings: SubmitSettings) -> None:
    about = settings.about
    for key in ("id", "team", "description", "type"):
        if not about.get(key):
            raise PipelineError(f"{settings.venue.title} asks for its {key}", f"add --{key}")
    match = ID.fullmatch(about["id"])
    day = _date(match[1], "%Y%m%d") if match else None
    if day is None:
        raise PipelineError(
            f"--id {shown(about['id'])} is no submission's", "write it as yyyymmdd-name"
        )
    if about["type"] not in TYPES:
        raise PipelineError(f"--type {shown(about['type'])}", f"it is one of: {', '.join(TYPES)}")
    if embargo := about.get("embargo"):
        until = _date(embargo, "%Y/%m/%d")
        if until is None or not datetime.timedelta() <= until - day <= datetime.timedelta(EMBARGO):
            raise PipelineError(
                f"--embargo {shown(embargo)}: no day within nine months of the submission",
                "write it as yyyy/mm/dd",
            )
    if (settings.eval_run is None) != (settings.eval_topics is None):
        raise PipelineError("--eval and --eval-topics belong together", "give both or none")


def _date(text: str, form: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC)
    except ValueError:
        return None


def _pack_msmarco(
    settings: SubmitSettings, found: list[tuple[Path, Admission]], folder: Path
) -> None:
    about = settings.about
    names = ("dev", "eval")
    for name, (run, admission), topics in zip(
        names, found, (settings.topics, settings.eval_topics), strict=False
    ):
        _write_msmarco(
            folder / "submissions" / about["id"] / f"{name}.txt.bz2",
            _rankings(run, settings, admission, topics),
        )
    record: dict[str, Any] = {
        "team": about["team"],
        "model_description": about["description"],
        "paper": about.get("paper", ""),
        "code": about.get("code", ""),
        "type": about["type"],
    }
    if about.get("embargo"):
        record["embargo_until"] = about["embargo"]
    write_json(folder / "submissions" / f"{about['id']}-metadata.json", record)


def _write_msmarco(path: Path, rankings: Iterator[Ranking]) -> None:
    """Write `qid TAB pid TAB rank`, compressed."""
    packer = bz2.BZ2Compressor()
    with atomic_file(path) as out:
        for ranking in rankings:
            text = "".join(
                f"{ranking.qid}\t{doc.docid}\t{rank}\n" for rank, doc in enumerate(ranking.docs, 1)
            )
            out.write(packer.compress(text.encode()))
        out.write(packer.flush())


def with_docno(venue: Venue, pattern: str | None, depth: int | None) -> Venue:
    """Take a track's own rules into the general profile.

    Raises:
        PipelineError: the pattern is no regular expression, or the depth not positive.
    """
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise PipelineError(
                f"--docno {shown(pattern)}: {error}", "write a regular expression of Python"
            ) from None
        venue = replace(venue, docno=pattern)
    if depth is not None:
        if depth < 1:
            raise PipelineError(f"--depth {depth} is out of range", "choose 1 or more")
        venue = replace(venue, depth=depth)
    return venue
