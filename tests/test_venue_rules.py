"""Every venue's verdict against a checker of its own, written from the stated rules alone.

The three venues whose checkers are known in detail are in test_submit.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from test_submit import DOCIDS, TOPICS, lines_of, mutated

from pipeline.admission import admit
from pipeline.venues import VENUES, venue_of

RUNS = 1000

# Deep Learning: (characters of a tag, documents of a topic, docno) by year and task, as the
# guidelines of each year have them.
DEEP_LEARNING = {
    "2019-passage": (15, 1000, r"\d+"), "2019-document": (15, 1000, r"D\d+"),
    "2020-passage": (15, 1000, r"\d+"), "2020-document": (15, 100, r"D\d+"),
    "2021-passage": (15, 100, r"msmarco_passage_\d\d_\d+"),
    "2021-document": (15, 100, r"msmarco_doc_\d\d_\d+"),
    "2022-passage": (25, 100, r"msmarco_passage_\d\d_\d+"),
    "2022-document": (25, 100, r"msmarco_doc_\d\d_\d+"),
    "2023-passage": (25, 100, r"msmarco_passage_\d\d_\d+"),
    "2023-document": (25, 100, r"msmarco_doc_\d\d_\d+"),
}  # fmt: skip
IDS = {r"\d+": "{}", r"D\d+": "D{}"}


def trec(lines: list[str], tag: str, docno: str, depth: int, rank: str = r"-?\d+") -> bool:
    """What all TREC checkers do, with the numbers of a track."""
    documents: dict[str, list[str]] = {}
    tags = set()
    for line in lines:
        fields = line.split()
        if len(fields) != 6:
            return False
        documents.setdefault(fields[0], []).append(fields[2])
        tags.add(fields[5])
        if fields[1] != "Q0" or not re.fullmatch(rank, fields[3]):
            return False
    if len(tags) != 1 or not re.fullmatch(tag, tags.pop(), re.ASCII):
        return False
    if documents.keys() != set(TOPICS):
        return False
    for some in documents.values():
        if len(some) > depth or len(set(some)) < len(some):
            return False
        if not all(re.fullmatch(docno, each, re.ASCII) for each in some):
            return False
    return True


@pytest.mark.parametrize("task", DEEP_LEARNING)
def test_deep_learning_of_every_year(tmp_path: Path, task: str) -> None:
    """Tags by length, documents by form and number; 1,000 runs over all years."""
    name, (length, depth, docno) = f"trec-dl-{task}", DEEP_LEARNING[task]
    pattern = IDS.get(docno) or re.sub(r"\\d\\d_\\d\+", "03_{}", docno)
    DOCIDS.setdefault(name, pattern)
    generator = random.Random(task)
    passed = 0
    for number in range(RUNS // len(DEEP_LEARNING)):
        lines = mutated(lines_of(name), generator, name)
        (tmp_path / "r").write_text("".join(f"{line}\n" for line in lines))
        found = admit(tmp_path / "r", venue_of(name), TOPICS)
        expected = trec(lines, rf"[A-Za-z0-9_-]{{1,{length}}}", docno, depth)
        assert found.admitted == expected, (number, found.findings[:3])
        passed += expected
    assert 5 < passed < 95


def test_trec_covid(tmp_path: Path) -> None:
    """Tags of up to twenty characters, a point among them; eight letters or digits."""
    generator = random.Random("covid")
    passed = 0
    for number in range(RUNS):
        lines = mutated(lines_of("trec-covid"), generator, "trec-covid")
        (tmp_path / "r").write_text("".join(f"{line}\n" for line in lines))
        found = admit(tmp_path / "r", venue_of("trec-covid"), TOPICS)
        expected = trec(lines, r"[\w.-]{1,20}", r"[a-z0-9]{8}", 1000)
        assert found.admitted == expected, (number, found.findings[:3])
        passed += expected
    assert 100 < passed < 900


def test_beir(tmp_path: Path) -> None:
    """Nothing but a readable run: six columns, numbers, each document once in a topic."""

    def readable(lines: list[str]) -> bool:
        pairs = set()
        for line in lines:
            fields = line.split()
            if len(fields) != 6 or not re.fullmatch(r"-?\d+", fields[3]):
                return False
            pairs.add((fields[0], fields[2]))
        return len(pairs) == len(lines) > 0

    generator = random.Random("beir")
    passed = 0
    for number in range(RUNS):
        lines = mutated(lines_of("beir"), generator, "beir")
        (tmp_path / "r").write_text("".join(f"{line}\n" for line in lines))
        found = admit(tmp_path / "r", venue_of("beir"), TOPICS)
        assert found.admitted == readable(lines), (number, found.findings[:3])
        passed += found.admitted
    assert 100 < passed < 900


def msmarco(lines: list[str], prefix: str, depth: int) -> bool:
    """The official evaluator, and what it loses without a word.

    It splits at tabs, reads whole numbers, stops at a rank above 1000, writes each document into
    the place of its rank and counts on every topic.
    """
    places: dict[int, list[int]] = {}
    for line in lines:
        fields = line.strip().split("\t")
        if len(fields) != 3 or not fields[1].startswith(prefix):
            return False
        try:
            qid, pid, rank = int(fields[0]), int(fields[1].removeprefix(prefix)), int(fields[2])
        except ValueError:
            return False
        slots = places.setdefault(qid, [0] * 1000)
        if not 1 <= rank <= 1000 or slots[rank - 1]:
            return False
        slots[rank - 1] = pid
    for slots in places.values():
        ranked = [pid for pid in slots if pid]
        if len(set(ranked)) < len(ranked) or len(ranked) > depth:
            return False
    return places.keys() == {int(qid) for qid in TOPICS}


def broken(lines: list[str], generator: random.Random, prefix: str) -> list[str]:
    """Break a run of ranks in none, one or two ways."""
    lines = list(lines)

    def at(column: int, *words: str) -> None:
        place = generator.randrange(len(lines))
        fields = lines[place].split("\t")
        if len(fields) > column:
            fields[column] = generator.choice(words)
        lines[place] = "\t".join(fields)

    def deepen() -> None:
        first = generator.choice((5, 101, 901))
        lines.extend(f"{TOPICS[0]}\t{prefix}{5000 + n}\t{n}" for n in range(first, first + 97))

    def drop() -> None:
        qid = generator.choice(TOPICS)
        lines[:] = [line for line in lines if not line.startswith(qid)]

    ways: list[Callable[[], None]] = [
        lambda: at(0, "999", "x", TOPICS[0], ""),
        lambda: at(1, "x", f"{prefix}2", f"{prefix}77", "D77x", "1.5"),
        lambda: at(2, "0", "1000", "1001", "-1", "1", "2", "1.0", "first", "99999999999"),
        lambda: lines.append(generator.choice(lines)),
        lambda: lines.append(f"{TOPICS[0]}\t{prefix}9"),
        lambda: lines.append(f"{TOPICS[0]}\t{prefix}9\t9\t9"),
        lambda: generator.shuffle(lines),
        deepen, drop,
    ]  # fmt: skip
    for way in generator.sample(ways, generator.choice((0, 1, 1, 2))):
        way()
    return lines


@pytest.mark.parametrize(("name", "prefix"), [("msmarco-passage", ""), ("msmarco-document", "D")])
def test_ms_marco(tmp_path: Path, name: str, prefix: str) -> None:
    """Runs of ranks: what its evaluator stops at, overwrites or misses is refused."""
    generator = random.Random(name)
    venue = venue_of(name)
    passed = 0
    for number in range(RUNS):
        good = [f"{qid}\t{prefix}{n}\t{n}" for qid in TOPICS for n in range(1, 5)]
        lines = broken(good, generator, prefix)
        (tmp_path / "r").write_text("".join(f"{line}\n" for line in lines))
        found = admit(tmp_path / "r", venue, TOPICS)
        assert found.admitted == msmarco(lines, prefix, venue.depth), (number, found.findings[:3])
        passed += found.admitted
    assert 100 < passed < 900


def test_every_venue_has_a_checker() -> None:
    """Those here, and the three of test_submit.py."""
    here = {f"trec-dl-{task}" for task in DEEP_LEARNING}
    here |= {"trec-covid", "beir", "msmarco-passage", "msmarco-document"}
    assert here | {"trec", "tira"} == VENUES.keys()
