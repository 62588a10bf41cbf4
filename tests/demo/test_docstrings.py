"""The demo's collection, topics and judgements."""

import re
import subprocess
import sys
from collections import Counter
from importlib import resources

import pytest

from pipeline.demo import docstrings

DEMO = resources.files("pipeline.demo")


@pytest.fixture(scope="module")
def passages() -> list[tuple[str, str]]:
    return list(docstrings.passages())


@pytest.fixture(scope="module")
def topics() -> dict[str, str]:
    return dict(line.split("\t") for line in DEMO.joinpath("topics.tsv").read_text().splitlines())


@pytest.fixture(scope="module")
def qrels() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in DEMO.joinpath("qrels.txt").read_text().splitlines():
        qid, iteration, docid, grade = line.split(" ")
        assert iteration == "0"
        assert docid not in found.setdefault(qid, {}), f"{qid} {docid} twice"
        found[qid][docid] = int(grade)
    return found


def test_ids_are_unique_tokens_in_order(passages):
    """Docids can stand in a TREC run: ASCII, no white space, no two alike; sorted."""
    docids = [docid for docid, _ in passages]
    assert all(re.fullmatch(r"[!-~]+", docid) for docid in docids)
    assert docids == sorted(set(docids))


def test_every_interpreter_has_about_as_many(passages):
    """The collection is of the size the documentation promises, whatever the Python version."""
    assert 6000 <= len(passages) <= 9000


def test_texts_are_one_tidy_line(passages):
    """No passage is empty, holds a line break or cannot be written as UTF-8; few are repeated."""
    for docid, text in passages:
        assert text == " ".join(text.split()), docid
        assert text.encode("utf-8")
        assert not re.search(r"[\x00-\x1f\x7f]", text), docid
    assert max(Counter(text for _, text in passages).values()) == 1


@pytest.mark.parametrize(
    ("docid", "words"),
    [
        (
            "str.split",
            "method split(sep=None, maxsplit=-1) of str: Return a list of the substrings",
        ),
        ("csv.reader", "function reader in csv: "),  # written in C, known through csv
        ("os.listdir", "function listdir(path=None) in os: "),  # posix
        ("os.path.join", "function join(a, *p) in os.path: "),  # posixpath
        ("os.path.exists", "function exists(path) in os.path: "),  # genericpath
        ("collections.abc.Mapping", "class Mapping(Collection) in collections.abc: "),
        ("collections.Counter.most_common", "method most_common(n=None) of Counter in collections"),
        ("sqlite3.connect", "function connect("),  # a star import of a star import
        ("asyncio.run", "function run(main, "),  # asyncio.runners
        ("datetime.datetime.strptime", "method strptime(date_string, format) of datetime"),
        ("re.Pattern.sub", "method sub(repl, string, count=0) of Pattern in re: "),
        ("json", "module json: "),
        ("len", "function len(obj, /): "),
        ("tkinter.Misc.after", "method after("),  # read, never imported
    ],
)
def test_objects_go_by_the_name_people_use(passages, docid, words):
    """Docids are public names, and the text begins with kind, name, signature and place."""
    assert dict(passages)[docid].startswith(words)


def test_what_nobody_looks_for_is_left_out(passages):
    """Private names, test packages and modules that do something when imported are not there."""
    docids = [docid for docid, _ in passages]
    hidden = ("test", "idlelib", "antigravity", "this", "posixpath", "_io", "_collections_abc")
    assert not [docid for docid in docids if docid.split(".")[0] in hidden]
    private = [d for d in docids if any(re.match(r"_(?!_)", part) for part in d.split("."))]
    assert not [docid for docid in private if not re.match(r"_thread|os\._|sys\._", docid)]


def test_reading_the_library_runs_none_of_it():
    """Nothing is written, nothing warned of, and no module with effects is imported."""
    script = (
        "import sys\n"
        "from pipeline.demo.docstrings import passages\n"
        "count = sum(1 for _ in passages())\n"
        "loaded = {'tkinter', 'turtle', 'antigravity', 'this', 'readline'} & set(sys.modules)\n"
        "assert count and not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_topics_are_enough_and_different(topics):
    """At least 60 topics, no two alike, as many lines as ids."""
    lines = DEMO.joinpath("topics.tsv").read_text().splitlines()
    assert len(topics) == len(lines) >= 60
    assert len(set(topics.values())) == len(topics)


def test_every_topic_can_be_answered(topics, qrels):
    """Judged topics are the topics, each with at least one passage that answers the question."""
    assert set(qrels) == set(topics)
    assert {grade for grades in qrels.values() for grade in grades.values()} == {0, 1, 2, 3}
    assert not [qid for qid, grades in qrels.items() if max(grades.values()) < 2]


def test_every_judgement_has_its_digest(qrels):
    """The digests cover exactly the judged passages, so that none applies to unknown text."""
    assert set(docstrings.judged()) == {docid for grades in qrels.values() for docid in grades}


@pytest.mark.skipif(sys.version_info[:2] != (3, 12), reason="judged under Python 3.12")
def test_judgements_apply_under_the_version_they_were_made_with(passages, qrels):
    """Under 3.12.1 on Linux all apply; another 3.12 may have mended a docstring or two."""
    kept, dropped = docstrings.applicable(qrels, dict(passages))
    total = sum(map(len, qrels.values()))
    assert sum(map(len, kept.values())) == total - dropped
    exact = sys.platform == "linux" and sys.version.startswith(f"{docstrings.JUDGED_UNDER} ")
    assert dropped <= (0 if exact else total // 20)


def test_changed_text_drops_its_judgement():
    """A judgement stays only while the text that was judged is there, letter by letter."""
    digests = {"a": docstrings.digest("one"), "b": docstrings.digest("two")}
    qrels = {"q1": {"a": 3, "b": 0}, "q2": {"b": 2}, "q3": {"unknown": 1}}
    assert docstrings.applicable(qrels, {"a": "one", "b": "two, changed"}, digests) == (
        {"q1": {"a": 3}, "q2": {}, "q3": {}},
        3,
    )
    assert docstrings.applicable(qrels, {"b": "two"}, digests)[1] == 2


def test_digest_is_of_the_utf8_bytes():
    """16 hexadecimal digits that any sha256 tool can check."""
    assert docstrings.digest("abc") == "ba7816bf8f01cfea"
    assert docstrings.digest("é") == "4a99557e4033c353"
