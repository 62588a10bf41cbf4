"""Work that Java does at one call: composed of its own method handles, or by a class of ours.

A call from Python into Java costs 5 to 10 microseconds, and a Java string some 45 nanoseconds a
character, so nothing may ask Java about one hit at a time. Instead, programs are composed of Java's
own method handles (`Program`), each of which does a whole topic or document on the Java side; what
goes in and comes out is bytes, which are copied whole. Little is worth Java code of our own: it
lies in `jvm`, as source and compiled (`scripts/build_java.py`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline import java
from pipeline.errors import PipelineError
from pipeline.java import java_class, view

if TYPE_CHECKING:
    from collections.abc import Iterable

HANDLE = "java.lang.invoke.MethodHandle"
METHOD_TYPE = "java.lang.invoke.MethodType"
OURS = "trecpipeline."  # the package of our own classes
PRIMITIVES = {
    "int": "Integer",
    "float": "Float",
    "boolean": "Boolean",
    "long": "Long",
    "void": "Void",
}
ARRAYS = {"byte[]": "[B", "float[]": "[F"}


def _type(name: str) -> Any:
    """Return the java.lang.Class of `int`, `java.lang.String` or `java.lang.Object[]`."""
    import jnius

    if name in PRIMITIVES:
        return java_class(f"java.lang.{PRIMITIVES[name]}").TYPE
    if name.startswith(OURS):
        return _our_loader().loadClass(name)
    path = ARRAYS.get(name, name.replace(".", "/"))
    return jnius.find_javaclass(f"[L{path[:-2]};" if path.endswith("[]") else path)


@cache
def _our_loader() -> Any:
    """Return what loads classes of ours, on the class path or not: Java may be up already."""
    jar = Path(__file__).with_name("jvm") / "ours.jar"
    if not jar.is_file():
        raise PipelineError(f"{jar} is missing", "install trec-pipeline again")
    place = java_class("java.io.File")(java.java_text(str(jar))).toURI().toURL()
    return java_class("java.net.URLClassLoader")([place])


def _boxed(value: Any) -> Any:
    """Make a Java object; pyjnius crashes on a bare number where Java takes any object."""
    for kind, name in ((bool, "Boolean"), (int, "Integer"), (float, "Float")):
        if isinstance(value, kind):
            return java_class(f"java.lang.{name}")(value)
    return java.java_text(value) if isinstance(value, str) else value


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
        lines = self.method(java.STRING, "lines", "java.util.stream.Stream")
        cut = lines.then(self.method("java.util.stream.Stream", "toList", "java.util.List"))
        everything = self._all()
        items = "java.util.ArrayList"
        add = self.method(items, "add", "boolean", "java.lang.Object")
        add = add.fed(self, at=1).takes(items, java.STRING).returns("void")
        same = everything.dropArguments(
            everything.identity(_type(items)), 1, _list(_type(java.STRING))
        )
        body = type(self)(everything.foldArguments(same, add.handle))
        return cut.then(body.over_all(self.new(items)))

    def __call__(self, *values: Any) -> Any:
        """Run, without Python's lock and without ours, in as many threads as there are."""
        with java.lock:
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
