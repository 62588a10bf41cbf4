"""Finished slices of a stage: found again, noticed when damaged, joined in any order."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from elsewhere import refusal_unprivileged
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from pipeline import parts as parts_module
from pipeline.errors import StorageError
from pipeline.parts import (
    Block,
    Parts,
    bucket,
    contents,
    counted,
    docid_sums,
    joined,
    part_count,
    topic_blocks,
)
from pipeline.store import digest_bytes, digest_json
from pipeline.trec import Ranking, ScoredDoc, run_lines

if TYPE_CHECKING:
    from collections.abc import Callable

KEY, OTHER = digest_json("one"), digest_json("other")


class Listener:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        """Not of interest here."""


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def parts(tmp_path: Path, listener: Listener) -> Parts:
    return Parts(tmp_path / "bm25.run.parts", listener)


# ---------------------------------------------------------------- buckets


def test_a_bucket_is_of_the_id_alone() -> None:
    """Pinned: were these to change, every unfinished stage on every disk would start again."""
    pinned = {"1": 1, "007": 12, "7": 14, "NA": 8, "naïve": 10, "301": 4}
    assert {qid: bucket(qid, 16) for qid in pinned} == pinned


@given(st.sets(st.text(st.characters(codec="utf-8")), max_size=30), st.text(), st.integers(1, 64))
def test_an_added_topic_moves_no_other(qids: set[str], added: str, count: int) -> None:
    """Membership is no matter of order, number or neighbours."""
    added = added.encode("utf-8", "replace").decode()
    before = {qid: bucket(qid, count) for qid in qids}
    after = {qid: bucket(qid, count) for qid in sorted(qids | {added}, reverse=True)}
    assert all(after[qid] == before[qid] for qid in qids)
    assert all(0 <= part < count for part in after.values())


def test_buckets_are_of_like_size() -> None:
    """Numbers in a row are spread evenly."""
    sizes = Counter(bucket(str(qid), 20) for qid in range(10_000))
    assert min(sizes.values()) > 430
    assert max(sizes.values()) < 570


@pytest.mark.parametrize(
    ("topics", "count"), [(0, 10), (1, 10), (50, 10), (51, 80), (400, 80), (401, 640)]
)
def test_more_topics_are_more_parts_of_like_size(topics: int, count: int) -> None:
    """By steps that few topics more or less never cross."""
    assert part_count(topics, 10, 5) == count


# ---------------------------------------------------------------- finding


def test_a_part_is_found_again(parts: Parts, listener: Listener) -> None:
    """By the process that made it and by the next one; an empty one is a part, too."""
    assert parts.find(KEY) is None
    made = parts.save(KEY, b"1 Q0 a 1 1.0 t\n")
    assert made.name == f"{KEY[:32]}-{digest_bytes(b'1 Q0 a 1 1.0 t\n')[:32]}.part"
    parts.save(OTHER, b"")
    for again in (parts, Parts(parts.folder, listener)):
        assert again.find(KEY) == made
        empty = again.find(OTHER)
        assert empty is not None
        assert topic_blocks(empty) == {}
        assert again.find(digest_json("third")) is None
    assert listener.notices == []


@pytest.mark.parametrize("data", [b"", b"1 Q0 a 1 1.", b"1 Q0 a 1 2.0 t\n", bytes(15)])
@pytest.mark.parametrize("known", [True, False])
def test_a_torn_or_edited_part_is_noticed_and_made_again(
    parts: Parts, listener: Listener, data: bytes, known: bool
) -> None:
    """Named to the user and thrown away; no other part is touched."""
    made = parts.save(KEY, b"1 Q0 a 1 1.0 t\n")
    kept = parts.save(OTHER, b"2 Q0 a 1 1.0 t\n")
    again = parts if known else Parts(parts.folder, listener)
    if known:
        assert parts.find(KEY) == made
    made.write_bytes(data)
    assert again.find(KEY) is None
    assert listener.notices == [f"{made}: torn or edited; this part is made again"]
    assert not made.exists()
    assert again.find(KEY) is None
    assert again.find(OTHER) == kept
    assert again.save(KEY, b"1 Q0 a 1 1.0 t\n") == made
    assert again.find(KEY) == made
    assert len(listener.notices) == 1


def test_a_part_that_went_away_is_made_again(parts: Parts, listener: Listener) -> None:
    """Deleted by somebody while the stage is at work."""
    made = parts.save(KEY, b"x")
    assert parts.find(KEY) == made
    made.unlink()
    assert parts.find(KEY) is None


def test_a_renamed_part_is_no_part(parts: Parts, listener: Listener) -> None:
    """A file cannot pass for what it is not: its digest is in its name."""
    made = parts.save(KEY, b"x")
    made.rename(made.with_name(made.name.replace(KEY[:32], OTHER[:32]).replace("-", "-0")))
    assert Parts(parts.folder, listener).find(OTHER) is None
    assert len(listener.notices) == 1


def test_what_is_no_part_is_left_alone(parts: Parts) -> None:
    """Temporary files of others and notes are not taken for parts."""
    parts.keep_note("signature", {"precision": "fp32"})
    (parts.folder / f".{KEY[:32]}-abc.part.1-0123abcd.tmp").write_bytes(b"half")
    (parts.folder / f"{KEY[:32]}-abc.part").mkdir()
    fresh = Parts(parts.folder)
    assert fresh.find(OTHER) is None
    assert len(list(parts.folder.iterdir())) == 3


def test_a_folder_in_the_place_of_a_part_is_removed(parts: Parts, listener: Listener) -> None:
    """Whatever bears the name of a part and is none."""
    (parts.folder / f"{KEY[:32]}-abc.part").mkdir(parents=True)
    assert parts.find(KEY) is None
    assert len(listener.notices) == 1
    assert list(parts.folder.iterdir()) == []


def test_notes_are_kept_beside_the_parts(parts: Parts, listener: Listener) -> None:
    """A numeric signature comes back; a damaged one is named and counts as absent."""
    assert parts.note("signature") is None
    parts.keep_note("signature", {"precision": "bf16", "threads": 2})
    assert Parts(parts.folder).note("signature") == {"precision": "bf16", "threads": 2}
    path = parts.folder / "signature.json"
    for damage in (b"", b'{"precision', b"[]"):
        path.write_bytes(damage)
        assert parts.note("signature") is None
    assert listener.notices == [f"{path}: damaged; written again"] * 3


def test_clearing_forgets_everything(parts: Parts) -> None:
    """Also what this process knew; clearing nothing is fine."""
    parts.clear()
    parts.save(KEY, b"x")
    parts.keep_note("signature", {})
    parts.clear()
    assert not parts.folder.exists()
    assert parts.find(KEY) is None


def test_parts_nobody_may_read_or_write(shared_path: Path) -> None:
    """No permission is no torn part: it is said, and nothing is thrown away."""
    parts = Parts(shared_path / "parts")
    made = parts.save(KEY, b"x")
    made.chmod(0o000)
    before = "from pipeline.parts import Parts, joined, Block\n"
    for mode, script in (
        (0o555, f"Parts(Path('parts')).find({KEY!r})"),
        (0o333, f"Parts(Path('parts')).find({KEY!r})"),  # a folder that only seems empty
        (0o555, f"Parts(Path('parts')).save({OTHER!r}, b'x')"),
        (0o555, f"list(joined([Block(Path('parts/{made.name}'), 0, 1)]))"),
    ):
        parts.folder.chmod(mode)
        refusal = refusal_unprivileged(before + script, shared_path)
        assert refusal is not None
        assert refusal[0] == "StorageError"
        assert "no permission" in refusal[1]
    assert made.exists()


@pytest.mark.parametrize(("after", "synced"), [(0.0, 6), (1e9, 2)])
def test_parts_that_come_fast_are_not_waited_for(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, after: float, synced: int
) -> None:
    """A power cut may take those; of the first bytes and name are on the disk in any case."""
    calls = []
    monkeypatch.setattr(parts_module, "SYNC_AFTER", after)
    monkeypatch.setattr(os, "fsync", calls.append)
    for number in range(3):
        parts.save(digest_json(number), b"x")
    assert len(calls) == synced


# ---------------------------------------------------------------- documents

IDS = ["d1", "d2", "naïve", "a-very-long-name-of-a-document", "\x0b", "\x85"]


@given(st.lists(st.lists(st.sampled_from(IDS), min_size=1), min_size=1, max_size=5))
def test_sums_tell_documents_not_their_order(topics: list[list[str]]) -> None:
    """Those of several topics at once are those of each, control characters or not."""
    asked = ["\n".join(docids).encode() for docids in topics]
    sums = docid_sums(asked)
    assert sums == [docid_sums([docids])[0] for docids in asked]
    for docids, found in zip(topics, sums, strict=True):
        again = "\n".join(reversed(docids)).encode()
        assert docid_sums([again]) == [found]
        for others in (docids[1:] or ["d3"], [*docids, docids[0]], ["d3", *docids[1:]]):
            assert docid_sums(["\n".join(others).encode()]) != [found]


def test_a_part_holds_the_documents_that_were_asked_for(parts: Parts) -> None:
    """Whatever their ids, and wherever a topic's lines were cut into pieces."""
    many = [f"d{n}" for n in range(20_000)]
    topics = {"1": many, "2": ["x"], "3": IDS, "naïve": many[::-1]}
    for qids in (["1", "2", "naïve"], list(topics)):
        lines = "".join(f"{qid} Q0 {docid} 1 1.0 t\n" for qid in qids for docid in topics[qid])
        found = contents([parts.save(digest_json(qids), lines.encode())])
        asked = docid_sums(["\n".join(topics[qid]).encode() for qid in qids])
        assert [found[qid].documents for qid in qids] == asked


# ---------------------------------------------------------------- joining


def test_topics_are_joined_in_any_order(parts: Parts) -> None:
    """Each topic's lines are copied byte by byte from wherever they lie."""
    lines = {
        qid: run_lines(
            Ranking(qid, tuple(ScoredDoc(f"d{i}", float(-i)) for i in range(count))), "t"
        )
        for qid, count in {"7": 2, "007": 3, "naïve": 1, "70": 4, "1": 1}.items()
    }
    one = parts.save(KEY, lines["7"] + lines["70"] + lines["naïve"])
    two = parts.save(OTHER, lines["007"] + lines["1"])
    blocks = {**topic_blocks(one), **topic_blocks(two)}
    assert blocks.keys() == lines.keys()
    for order in (sorted(lines), sorted(lines, reverse=True), list(lines)):
        assert list(joined(blocks[qid] for qid in order)) == [lines[qid] for qid in order]


def test_few_files_are_open_at_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of thousands of parts stays far below the limit of open files."""
    monkeypatch.setattr(parts_module, "OPEN_FILES", 3)
    paths = [parts.save(digest_json(i), f"{i} Q0 a 1 1.0 t\n".encode()) for i in range(20)]
    blocks = [topic_blocks(path)[str(i)] for i, path in enumerate(paths)]
    order = [*range(20), *range(20), 5, 5, 5]
    opened, before, read = 0, len(list(Path("/dev/fd").iterdir())), b""
    for data in joined(blocks[i] for i in order):
        opened = max(opened, len(list(Path("/dev/fd").iterdir())) - before)
        read += data
    assert read.split()[::6] == [b"%d" % i for i in order]
    assert opened == 3


def test_joining_holds_one_topic(parts: Parts) -> None:
    """Memory does not grow with the number of topics."""
    line = b" Q0 d 1 1.0 t\n" * 10_000
    whole = b"".join(b"%d Q0 d 1 1.0 t\n" % topic * 10_000 for topic in range(30))
    blocks = list(topic_blocks(parts.save(KEY, whole)).values())
    size = len(whole)
    del whole
    tracemalloc.start()
    assert sum(len(data) for data in joined(blocks)) == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(line)


def test_a_part_that_is_gone_when_joined_is_named(tmp_path: Path) -> None:
    """Somebody cleaned up meanwhile: two lines, no traceback."""
    with refused(f"{tmp_path / 'x.part'}: no such file", kind=StorageError):
        list(joined([Block(tmp_path / "x.part", 0, 5)]))


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: data.replace(b" 1 ", b" 2 "),
    ],
    ids=["emptied", "torn", "zeros", "edited"],
)
def test_a_part_that_changed_since_it_was_found_is_joined_to_nothing(
    parts: Parts, listener: Listener, edit: Callable[[bytes], bytes]
) -> None:
    """Neither one that was found nor one that was just made; the next command makes it again."""
    made = parts.save(KEY, b"7 Q0 a 1 1.0 t\n7 Q0 b 2 0.5 t\n")
    block = contents([made])["7"]
    made.write_bytes(edit(made.read_bytes()))
    with refused(f"{made}: was changed or torn", kind=StorageError):
        contents([made])
    if made.stat().st_size < block.block.length:
        with refused(f"{made}: became shorter", kind=StorageError):
            list(joined([block.block]))
    assert Parts(parts.folder, listener).find(KEY) is None
    assert not made.exists()


@pytest.mark.parametrize(
    ("note", "count"),
    [({"n": 3}, 3), ({"n": "abc"}, 0), ({"n": None}, 0), ({"n": -1}, 0), ({}, 0), (None, 0)],
)
def test_a_count_that_is_none_is_nothing(note: dict[str, object] | None, count: int) -> None:
    """A note that somebody edited costs its count, not the stage."""
    assert counted(note, "n") == count
