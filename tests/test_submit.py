"""Packing runs for venues: verdicts of their own rules, exactly the files to upload, or nothing."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from killing import run
from refusal import refused

from pipeline.admission import Mends, admit
from pipeline.errors import CheckFailedError
from pipeline.irmetadata import chain, metadata, yaml
from pipeline.rerank import RerankSettings, rerank
from pipeline.submit import Packed, SubmitSettings, submit, with_docno
from pipeline.trec import read_run
from pipeline.venues import VENUES, venue_of

TOPICS = [str(number) for number in range(100, 106)]


DOCIDS = {
    "trec": "LA01-{:04d}", "trec-covid": "{:08d}", "msmarco-passage": "{}", "beir": "doc{}",
    "msmarco-document": "D{}", "tira": "doc-{}",
    "trec-dl-2019-passage": "{}", "trec-dl-2020-document": "D{}",
    "trec-dl-2021-document": "msmarco_doc_03_{}", "trec-dl-2022-passage": "msmarco_passage_03_{}",
}  # fmt: skip


def lines_of(venue: str, documents: int = 4, tag: str = "mine") -> list[str]:
    return [
        f"{qid} Q0 {DOCIDS[venue].format(rank)} {rank} {50 - rank} {tag}"
        for qid in TOPICS
        for rank in range(1, documents + 1)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "topics.tsv").write_text("".join(f"{qid}\tsome words\n" for qid in TOPICS))
    return tmp_path


def settings_of(folder: Path, venue: str, lines: list[str], **more: object) -> SubmitSettings:
    (folder / "a.run").write_text("".join(line + "\n" for line in lines))
    settings = SubmitSettings(
        venue_of(venue), folder / "a.run", folder / "out", topics=folder / "topics.tsv"
    )
    return replace(settings, **more)  # type: ignore[arg-type]


def messages(packed: Packed) -> list[str]:
    return [finding.message for _, found in packed.admissions for finding in found.findings]


MARCO = {"id": "20260101-mine", "team": "us", "description": "a model", "type": "reranking"}


# ---------------------------------------------------------------- verdicts

Rule = Callable[[list[str]], bool]


def nist_2022(lines: list[str]) -> bool:
    """NIST's check_input.pl of Deep Learning 2022, written from its stated rules alone."""
    documents: dict[str, set[str]] = {qid: set() for qid in TOPICS}
    tags = set()
    for line in lines:
        words = line.split()
        if len(words) != 6:
            return False
        qid, q0, docno, rank, _, tag = words
        tags.add(tag)
        if not re.match(r"^[A-Za-z0-9_-]{1,25}$", tag) or len(tags) > 1:
            return False
        if qid not in documents or q0 != "Q0" or not re.match(r"^-?\d+$", rank):
            return False
        if not re.match(r"^msmarco_passage_\d\d_\d+$", docno) or docno in documents[qid]:
            return False
        documents[qid].add(docno)
    return all(1 <= len(some) <= 100 for some in documents.values())


def nist_newer(lines: list[str]) -> bool:
    """NIST's newer checker with a track's own ids, likewise."""
    documents: dict[str, set[str]] = {}
    tags = set()
    for line in lines:
        words = line.split()
        if len(words) != 6 or words[1] != "Q0" or not re.fullmatch(r"\d+", words[3]):
            return False
        if words[0] not in TOPICS or not re.fullmatch(r"\w+", words[2]):
            return False
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,20}", words[5]):
            return False
        tags.add(words[5])
        some = documents.setdefault(words[0], set())
        if words[2] in some:
            return False
        some.add(words[2])
    enough = documents.keys() == set(TOPICS)
    return enough and len(tags) == 1 and all(len(some) <= 1000 for some in documents.values())


def tira(lines: list[str]) -> bool:
    """TIRA's check_format of run.txt, likewise."""
    pairs, topics = set(), set()
    for line in lines:
        words = line.split()
        if len(words) != 6:
            return False
        try:
            int(words[3])
            float(words[4])
        except ValueError:
            return False
        if (words[0], words[2]) in pairs:
            return False
        pairs.add((words[0], words[2]))
        topics.add(words[0])
    return len(lines) >= 5 and len(topics) >= 3


def mutated(lines: list[str], generator: random.Random, venue: str) -> list[str]:
    """Break a run in none, one or two of the ways in which runs are broken."""
    lines = list(lines)

    def at(column: int, word: str) -> None:
        place = generator.randrange(len(lines))
        words = lines[place].split(" ")
        if len(words) > column:
            words[column] = word
        lines[place] = " ".join(words)

    def drop_topic() -> None:
        qid = generator.choice(TOPICS)
        lines[:] = [line for line in lines if not line.startswith(f"{qid} ")] or lines

    def deepen() -> None:
        count = generator.choice((96, 97, 500))
        new = (DOCIDS[venue].format(1000 + n) for n in range(count))
        lines.extend(f"{TOPICS[0]} Q0 {docno} {n} {-n} mine" for n, docno in enumerate(new))

    def retag() -> None:
        tag = generator.choice(("x" * 20, "x" * 21, "x" * 25, "x" * 26, "a.b", "a-b", "ü"))
        lines[:] = [line.rsplit(" ", 1)[0] + f" {tag}" for line in lines]

    ways: list[Callable[[], None]] = [
        lambda: at(1, generator.choice(("0", "q0", "Q1"))),
        lambda: at(3, generator.choice(("x", "1.5", "0", "007", "-1", "99999"))),
        lambda: at(5, generator.choice(("other", "mine"))),
        lambda: at(0, generator.choice(("999", "0100", "100"))),
        lambda: at(2, generator.choice(("bad id", "msmarco_doc_1_2", "ab-c", "msmarco_passage_1_1",
                                        DOCIDS[venue].format(2)))),
        lambda: lines.append(generator.choice(lines)),
        lambda: lines.insert(generator.randrange(len(lines)), generator.choice(("", "# note"))),
        lambda: lines.append(generator.choice(("100 Q0 a 1 2", "100 Q0 a 1 2 mine more"))),
        lambda: generator.shuffle(lines),
        lambda: lines.__delitem__(slice(generator.choice((2, 4, 5, 9, 12)), None)),
        drop_topic, deepen, retag,
    ]  # fmt: skip
    for way in generator.sample(ways, generator.choice((0, 1, 1, 2))):
        way()
    return lines


@pytest.mark.parametrize(
    ("venue", "rule", "docno"),
    [
        ("trec-dl-2022-passage", nist_2022, None),
        ("trec", nist_newer, r"\w+"),
        ("tira", tira, None),
    ],
)
def test_verdicts_are_those_of_the_venue(
    folder: Path, venue: str, rule: Rule, docno: str | None, record_property: Callable[..., None]
) -> None:
    """A thousand runs, broken in every way the venues' checkers look for."""
    generator = random.Random(venue)
    profile = with_docno(venue_of(venue), docno, None)
    path = folder / "fuzzed.run"
    passed = 0
    for number in range(1000):
        name = venue if venue != "trec" else "trec-dl-2022-passage"  # ids without a hyphen
        lines = mutated(lines_of(name), generator, name)
        path.write_text("".join(line + "\n" for line in lines))
        found = admit(path, profile, TOPICS)
        assert found.admitted == rule(lines), f"run {number}: {found.findings[:3]}"
        passed += found.admitted
    record_property("admitted", passed)
    assert 100 < passed < 900


@pytest.mark.parametrize("venue", sorted(DOCIDS))
def test_a_good_run_is_packed(folder: Path, venue: str) -> None:
    """Exactly the files to upload; the written run reads back in the same order."""
    about = MARCO if "msmarco" in venue else {}
    packed = submit(settings_of(folder, venue, lines_of(venue), about=about))
    expected = {
        "msmarco": ["submissions/20260101-mine-metadata.json",
                    "submissions/20260101-mine/dev.txt.bz2"],
        "tira": ["run.txt"],
        "beir": ["a.trec", "a.trec.ir-metadata.yml"],
    }.get(venue.partition("-")[0], ["mine", "mine.ir-metadata.yml"])  # fmt: skip
    assert list(packed.files) == expected
    written = [p for p in (folder / "out").rglob("*") if p.is_file()]
    assert sorted(p.relative_to(folder / "out").as_posix() for p in written) == expected
    if "msmarco" not in venue:
        name = next(file for file in expected if not file.endswith(".yml"))
        assert list(read_run(folder / "out" / name)) == list(read_run(folder / "a.run"))


@pytest.mark.parametrize(
    ("venue", "change", "message"),
    [
        ("trec", (0, " mine", " a.b"), "tag 'a.b': it must match"),
        ("trec", (3, " mine", " your"), "tag 'your' after 'mine'"),
        ("trec", (3, " Q0 ", " 0 "), "'0' instead of Q0"),
        ("trec", (3, " 4 46", " x 46"), "rank 'x'"),
        ("trec", (3, " 4 46", " 4 nan"), "score 'nan' is not a finite number"),
        ("trec", (3, " 4 46", " 4 1e39"), "score '1e39' is not a finite number"),
        ("trec", (3, " 4 46", " 4 high"), "score 'high' is not a finite number"),
        ("trec", (3, "0004", "0003"), "document 'LA01-0003' twice in topic '100'"),
        ("trec", (0, "100 ", "099 "), "topic '099' is not among the topics"),
        ("trec", (3, " mine", ""), "5 columns instead of 6"),
        ("trec", (3, "LA", "L A"), "7 columns instead of 6"),
        ("trec-covid", (3, "00000004", "0000000-"), "'0000000-' is none of TREC-COVID"),
        ("trec-dl-2019-passage", (3, " 4 4 ", " D4 4 "), "document 'D4' is none of TREC 2019"),
        ("trec-dl-2020-document", (3, " D4 ", " 4 "), "document '4' is none of TREC 2020"),
        ("trec-dl-2021-document", (3, "_03_4", "_3_4"), "document 'msmarco_doc_3_4' is none"),
        ("msmarco-passage", (0, "100 ", "1x "), "topic '1x' is none of MS MARCO passage"),
    ],
)
def test_each_rule_has_its_words(
    folder: Path, venue: str, change: tuple[int, str, str], message: str
) -> None:
    """What is wrong, on which line; nothing is written."""
    lines = lines_of(venue)
    place, old, new = change
    assert old in lines[place]
    lines[place] = lines[place].replace(old, new, 1)
    about = MARCO if "msmarco" in venue else {}
    packed = submit(settings_of(folder, venue, lines, about=about))
    found = packed.admissions[0][1]
    assert [f.line for f in found.findings if message in f.message] == [place + 1], found.findings
    assert packed.files == ()
    assert not (folder / "out").exists()


@pytest.mark.parametrize("name", VENUES)
def test_the_depth_of_a_venue(folder: Path, name: str) -> None:
    """One document more is an error, and --cut leaves it out."""
    venue = replace(venue_of(name), docno=r"\S+", full=False)
    path = folder / "deep.run"
    for more in (0, 1):
        path.write_text(
            "".join(
                f"{qid} Q0 d{n} {n} {-n} mine\n"
                for qid in TOPICS
                for n in range(1, venue.depth + 1 + more * (qid == "103"))
            )
        )
        found = admit(path, venue, TOPICS)
        assert (found.errors, found.warnings) == ((more, 0) if venue.needs_topics else (0, more))
    assert admit(path, venue, TOPICS, Mends(cut=True)).admitted
    about = MARCO if venue.kind == "msmarco" else {}
    packed = submit(
        SubmitSettings(
            venue, path, folder / "out", folder / "topics.tsv", mends=Mends(cut=True), about=about
        )
    )
    if venue.kind != "msmarco":
        file = next(f for f in packed.files if not f.endswith(".yml"))
        assert {len(r.docs) for r in read_run(folder / "out" / file)} == {venue.depth}


def test_a_missing_topic_and_its_filler(folder: Path) -> None:
    """An error for TREC, a warning for TIRA, which does not look; --filler puts a document in."""
    lines = [line for line in lines_of("trec") if not line.startswith("103 ")]
    packed = submit(settings_of(folder, "trec", lines))
    assert messages(packed) == ["topic '103' has no document"]
    assert packed.files == ()
    packed = submit(settings_of(folder, "tira", lines))
    assert (packed.admissions[0][1].warnings, packed.files) == (1, ("run.txt",))
    shutil.rmtree(folder / "out")
    packed = submit(settings_of(folder, "trec", lines, mends=Mends(filler="LA01-0000")))
    assert packed.files
    last = (folder / "out" / "mine").read_text().splitlines()[-1]
    assert last == "103 Q0 LA01-0000 1 0.0 mine"


@pytest.mark.parametrize("tag", ["..", ".", ".mine"])
def test_a_tag_that_is_no_name_of_a_file(folder: Path, tag: str) -> None:
    """TREC-COVID's tags may hold points, and the file is named as the tag."""
    lines = [line.replace("mine", tag) for line in lines_of("trec-covid")]
    with refused("would be hidden", "choose another"):
        submit(settings_of(folder, "trec-covid", lines))
    assert not (folder / "out").exists()


def test_what_is_written_has_one_order(folder: Path) -> None:
    """Ties, lines out of order and topics apart: one block a topic, scores that decrease."""
    lines = [
        "100 Q0 a 1 1.0 mine", "101 Q0 a 1 5 mine", "100 Q0 b 9 1.0 mine", "100 Q0 c 3 7 mine",
        *[f"{qid} Q0 a 1 1 mine" for qid in TOPICS[2:]],
    ]  # fmt: skip
    packed = submit(settings_of(folder, "trec", lines))
    assert messages(packed) == ["the lines of a topic lie apart"]
    written = (folder / "out" / "mine").read_text().splitlines()
    assert [line.split()[:4] for line in written[:3]] == [
        ["100", "Q0", "c", "1"], ["100", "Q0", "b", "2"], ["100", "Q0", "a", "3"],
    ]  # fmt: skip
    scores = [float(line.split()[4]) for line in written[:3]]
    assert scores[0] > scores[1] > scores[2]


def test_a_duplicate_is_found_however_far_apart(folder: Path) -> None:
    """Also where other topics lie between."""
    lines = [*lines_of("trec"), "100 Q0 LA01-0002 9 1 mine"]
    assert "document 'LA01-0002' twice in topic '100'" in messages(
        submit(settings_of(folder, "trec", lines))
    )


def test_only_25_errors_are_named_and_all_are_counted(folder: Path) -> None:
    """As NIST's checker stops after 25."""
    lines = [line.replace("Q0", "0") for line in lines_of("trec", documents=20)]
    found = submit(settings_of(folder, "trec", lines)).admissions[0][1]
    assert (len(found.findings), found.errors) == (25, 120)


def test_tag_gz_and_a_tracks_own_rules(folder: Path) -> None:
    """A tag in the place of mixed ones, compressed, ids and depth as a track asks for them."""
    lines = lines_of("trec")
    lines[5] = lines[5].replace("mine", "b.c")
    venue = with_docno(venue_of("trec"), r"LA01-[0-9]{4}", 4)
    settings = settings_of(folder, "trec", lines, mends=Mends(tag="new"), gz=True)
    assert submit(replace(settings, venue=venue)).files == ("new.gz", "new.gz.ir-metadata.yml")
    with gzip.open(folder / "out" / "new.gz", "rt") as packed:
        assert {line.split()[5] for line in packed} == {"new"}
    with refused("--docno '[': unterminated"):
        with_docno(venue, "[", None)
    with refused("--depth 0 is out of range"):
        with_docno(venue, None, 0)


# ---------------------------------------------------------------- MS MARCO


def test_ms_marco_gets_ranks(folder: Path) -> None:
    """`qid TAB pid TAB rank`, packed, with the five fields; from a TREC run or one of ranks."""
    about = MARCO | {"paper": "p", "embargo": "2026/03/01"}
    lines = lines_of("msmarco-passage")
    packed = submit(settings_of(folder, "msmarco-passage", lines, about=about))
    assert packed.admissions[0][1].warnings == 1  # fewer than a thousand
    file = folder / "out" / "submissions" / "20260101-mine" / "dev.txt.bz2"
    text = bz2.decompress(file.read_bytes()).decode()
    assert text.splitlines()[:2] == ["100\t1\t1", "100\t2\t2"]
    record = json.loads((folder / "out/submissions/20260101-mine-metadata.json").read_text())
    assert record == {
        "team": "us", "model_description": "a model", "paper": "p", "code": "",
        "type": "reranking", "embargo_until": "2026/03/01",
    }  # fmt: skip
    shutil.rmtree(folder / "out")
    ranks = [f"{w[0]}\t{w[2]}\t{w[3]}" for w in map(str.split, lines)]
    more = {"eval_run": folder / "a.run", "eval_topics": folder / "topics.tsv"}
    packed = submit(settings_of(folder, "msmarco-passage", ranks[::-1], about=about, **more))
    assert len(packed.files) == 3
    assert sorted(bz2.decompress(file.read_bytes()).decode()) == sorted(text)
    assert (file.parent / "eval.txt.bz2").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("100\t9\t1", "rank '1' twice in topic '100'"),
        ("100\t9\t1001", "rank '1001'"),
        ("100\t9\t0", "rank '0'"),
        ("100\t9\tx", "rank 'x'"),
        ("100\tD9\t5", "document 'D9' is none of MS MARCO passage ranking"),
        ("100\t1\t5", "document '1' twice in topic '100'"),
        ("100 Q0 9 5 1 mine", "6 columns instead of 3"),
    ],
)
def test_runs_of_ranks_are_checked(folder: Path, line: str, message: str) -> None:
    """MS MARCO's evaluator stops at some of these, and lets documents vanish at others."""
    lines = [f"{qid}\t{rank}\t{rank}" for qid in TOPICS for rank in (1, 2, 3)]
    packed = submit(settings_of(folder, "msmarco-passage", [*lines, line], about=MARCO))
    assert message in messages(packed)
    assert packed.files == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "asks for its id"),
        ({"id": "20261301-x"}, "--id '20261301-x' is no submission's"),
        ({"id": "x"}, "--id 'x' is no submission's"),
        ({"id": "20260101-a/../b"}, "is no submission's"),
        ({"team": ""}, "asks for its team"),
        ({"type": "best"}, "--type 'best'"),
        ({"embargo": "2026-03-01"}, "no day within nine months"),
        ({"embargo": "2027/03/01"}, "no day within nine months"),
        ({"embargo": "2025/12/31"}, "no day within nine months"),
    ],
)
def test_what_ms_marco_must_be_told(folder: Path, change: dict[str, str], message: str) -> None:
    lines = lines_of("msmarco-passage")
    with refused(message):
        submit(settings_of(folder, "msmarco-passage", lines, about=MARCO | change))


# ---------------------------------------------------------------- BEIR, TIRA, metadata


def test_beir_leaves_a_topic_its_own_document_out(folder: Path) -> None:
    """As BEIR's evaluation does: in ArguAna and Quora a topic is a document."""
    lines = [*lines_of("beir"), "105 Q0 105 5 99 mine"]
    packed = submit(settings_of(folder, "beir", lines, about={"data": "arguana"}))
    assert packed.files == ("arguana.trec", "arguana.trec.ir-metadata.yml")
    assert "105 Q0 105 " not in (folder / "out" / "arguana.trec").read_text()


def test_tira_takes_more_with_metadata(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """75 MB of a run, 250 of one that is described; both tried with smaller numbers."""
    monkeypatch.setattr("pipeline.submit.TIRA_PLAIN", 100)
    about = {"team": "us", "repository": "r", "data": "d", "description": "w"}
    with refused("run.txt: 0 MB where TIRA takes 0", "or describe it: --team", CheckFailedError):
        submit(settings_of(folder, "tira", lines_of("tira")))
    assert not (folder / "out").exists()
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    packed = submit(settings_of(folder, "tira", lines_of("tira"), about=about))
    assert packed.files == ("ir-metadata.yml", "run.txt")


def test_metadata_tell_how_a_run_was_made(tiny: Path, tmp_path: Path) -> None:
    """From the run's own sidecar, in ir_metadata's words; what is not known is not there."""
    loaded = pytest.importorskip("yaml")
    made = Path(shutil.copytree(tiny, tmp_path / "made"))
    settings = RerankSettings(
        run=made / "bm25.run", topics=made / "topics.tsv", model="overlap",
        output=made / "one.run", collection=made / "corpus.jsonl", tag="one",
    )  # fmt: skip
    rerank(settings)
    rerank(replace(settings, run=made / "one.run", output=made / "two.run", tag="two",
                   interpolate=0.5))  # fmt: skip
    assert [path.name for path, _ in chain(made / "two.run")] == ["one.run", "two.run"]
    about = {"team": 'a "team": \x1b[31m', "description": "näive: #1", "repository": "https://r",
             "data": "tiny", "name": "two stages"}  # fmt: skip
    record = metadata(made / "two.run", "two", about)
    assert loaded.safe_load(yaml(record)) == record
    assert yaml(record).isprintable() or "\x1b" not in yaml(record)
    first, second = record["method"]["retrieval"]
    assert (first["name"], second["name"]) == ("one", "two")
    assert second["reranks"] == "one"
    assert (second["interpolates"], second["weight"]) == (["one", "two"], 0.5)
    assert second["model"] == {"name": "overlap", "sha256": "overlap-1"}
    assert record["actor"]["team"] == about["team"]
    data = record["data"]["test collection"]
    assert data["name"] == "tiny"
    assert data["source"]["file"] == "corpus.jsonl"
    assert data["topics"]["file"] == "topics.tsv"
    assert len(data["source"]["sha256"]) == len(data["topics"]["sha256"]) == 64
    assert "cpu" in record["platform"]["hardware"]
    assert any(line.startswith("numpy ") for line in record["platform"]["software"]["libraries"])
    assert record["method"]["description"] == "näive: #1"
    assert record["implementation"]["source"]["repository"] == "https://r"
    (made / "one.run").write_text("1 Q0 a 1 1 t\n")
    assert [path.name for path, _ in chain(made / "two.run")] == ["two.run"]


def test_a_run_without_a_sidecar_has_what_the_user_says(tmp_path: Path) -> None:
    """And nothing that would have to be believed."""
    assert metadata(tmp_path / "none.run", "t", {"team": "us"}) == {
        "schema-version": "0.1",
        "run-version": "1.0",
        "tag": "t",
        "method": {"name": "t", "automatic": True,
                   "score ties": "none: scores are strictly decreasing"},
        "actor": {"team": "us"},
    }  # fmt: skip


# ---------------------------------------------------------------- the command


def test_the_command(folder: Path) -> None:
    """0 and the files, or 3 and what is wrong; JSON for machines."""
    settings_of(folder, "trec", lines_of("trec"))
    words = ["submit", "trec", "a.run", "--topics", "topics.tsv", "-o"]
    done = run(*words, "one", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "packed for a TREC track:\n  one/mine\n  one/mine.ir-metadata.yml\n"
    )
    done = run(*words, "two", "--json", "--docno", "[0-9]+", cwd=folder)
    assert done.returncode == 3
    value = json.loads(done.stdout)
    assert (value["schema"], value["packed"], value["files"]) == (1, False, [])
    assert value["runs"][0]["errors"] == 24
    done = run(*words, "two", "--docno", "[0-9]+", cwd=folder)
    assert done.returncode == 3
    assert "a.run:1: error: document 'LA01-0001' is none of a TREC track; its ids" in done.stdout
    assert "refused for a TREC track; nothing is written" in done.stdout
    assert not (folder / "two").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trecs", "a.run"], "no venue 'trecs'"),
        (["trec", "none.run", "-t", "topics.tsv"], "none.run: no such run"),
        (["trec", "-", "-t", "topics.tsv"], "a submission is read twice"),
        (["trec", "a.run"], "a TREC track wants a document for every topic"),
        (["tira", "a.run", "--filler", "a"], "and no topics are named"),
        (["trec", "a.run", "-t", "topics.tsv", "--tag", "a b"], "--tag 'a b': must match"),
        (["trec-covid", "a.run", "-t", "topics.tsv", "--filler", "x"], "--filler 'x' is no docum"),
        (["trec", "a.run", "-t", "topics.tsv", "--eval", "a.run"], "a TREC track takes one run"),
        (["trec", "a.run", "-t", "a.run"], "a.run:1: no tab in"),
    ],
)
def test_what_cannot_be_packed(folder: Path, words: list[str], message: str) -> None:
    """Two lines, exit code 1, nothing written."""
    settings_of(folder, "trec", lines_of("trec"))
    done = run("submit", *words, "-o", "out", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert not (folder / "out").exists()


def test_a_folder_of_others_is_left_alone(folder: Path) -> None:
    """One that is empty is taken, as a sandbox gives it; one with a file is not."""
    settings = settings_of(folder, "trec", lines_of("trec"))
    settings.output.mkdir()
    assert submit(settings).files
    with refused("out: exists already"):
        submit(settings)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"\xff\xfe1\0", b"1 Q0 \xe9 1 1 t\n", b"1 Q0 a 1 1 \x1b[31mred\n", b"\0" * 100],
)
def test_files_of_strangers(folder: Path, data: bytes) -> None:
    """Refused in words that drive no terminal."""
    (folder / "odd.run").write_bytes(data)
    found = admit(folder / "odd.run", venue_of("trec"), TOPICS)
    assert not found.admitted
    assert all(finding.text("odd.run").isprintable() for finding in found.findings)
