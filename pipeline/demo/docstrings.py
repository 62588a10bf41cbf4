"""The demo's collection: the docstrings of the standard library of the running interpreter.

A passage is one documented module, class, function, method or attribute. Python code is read as
source and never imported, so nothing runs; only modules written in C are imported, because their
docstrings exist nowhere else. The docid is the name under which people use the object
(`csv.reader`, not `_csv.reader`; `str.split`, not `builtins.str.split`).

Docstrings change from one Python version to the next. Judgements therefore carry a digest of the
text that was read when they were made, and `applicable` keeps those whose text is still the same.
"""

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

# Judgements were made against the docstrings of this version.
JUDGED_UNDER = "3.12.1"

# Names under which no user would look, and folders that are not the library.
_SKIPPED_FOLDERS = frozenset({"test", "tests", "__pycache__", "site-packages", "dist-packages"})
_SKIPPED_MODULES = frozenset(
    {"antigravity", "ensurepip", "idlelib", "lib2to3", "ntpath", "pydoc_data", "test", "this"}
    | {"turtledemo"}
)
# Importing readline may write an escape sequence to the terminal, _tkinter needs a display's
# libraries; the others are test helpers and examples of CPython itself.
_NOT_IMPORTED = re.compile(r"readline|_tkinter|_test.*|_ctypes_test|_?xx.*|_interp.*|_crypt|nis")

# Modules that implement another one, where the source does not say so by an import.
_KNOWN_AS = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "concurrent.futures.process": "concurrent.futures",
    "concurrent.futures.thread": "concurrent.futures",
    "genericpath": "os.path",
    "posix": "os",
    "posixpath": "os.path",
}
# Names with an underscore that are nevertheless documented for everybody.
_PUBLIC_ALL_THE_SAME = re.compile(r"(_thread|os\._exit|sys\._getframe)(\.[a-zA-Z]\w*)*")
# Types that no C module lists but which a pure Python module, always loaded, gives a name.
_NAMED_TYPES = ("re.Match", "re.Pattern")

_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_SELF = re.compile(r"^\(\$?(?:self|module|type|cls)(?:,\s*/)?(?:,\s*|(?=\)))")

Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One documented object: where it is defined, what it is and what is said about it."""

    module: str
    path: str  # the name inside the module, dotted; empty for the module itself
    kind: str
    signature: str
    doc: str
    in_c: bool  # source code comes first where both give the same name: its signatures are whole


@dataclass(slots=True)
class _Module:
    """What one source file contributes: entries, and the names it takes from other modules."""

    name: str
    entries: list[_Entry] = field(default_factory=list)
    taken: list[tuple[str, str, str]] = field(default_factory=list)  # module, name, new name
    stars: list[str] = field(default_factory=list)
    exported: list[str] | None = None  # __all__, where it is a literal
    defined: list[str] = field(default_factory=list)


def passages() -> Iterator[tuple[str, str]]:
    """Yield (docid, text) for every documented object, sorted by docid.

    The order, the ids and the texts depend on the interpreter alone. Docids are ASCII without
    white space; texts are one line. Takes about three seconds, most of it parsing.
    """
    sources = list(_read_sources())
    compiled = list(_walk_compiled())
    public = _public_names(sources, compiled)
    entries = [entry for module in sources for entry in module.entries] + compiled
    named: dict[str, _Entry] = {}
    for entry in sorted(entries, key=lambda e: (e.in_c, e.module, e.path)):
        docid = _docid(entry, public)
        if not _is_hidden(docid):
            named.setdefault(docid, entry)
    seen: set[tuple[str, str]] = set()
    kept: dict[str, str] = {}
    for docid in sorted(named, key=_least_surprising):
        entry = named[docid]
        # The same words under the same last name: one object reached by two names, or a method
        # that a class repeats from its parent.
        key = (docid.rpartition(".")[2], entry.doc)
        if key not in seen:
            seen.add(key)
            kept[docid] = _text(docid, entry)
    yield from sorted(kept.items())


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of the text's SHA-256, as in `judged.tsv`."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def judged() -> dict[str, str]:
    """docid -> digest of the text that the assessor read."""
    lines = resources.files(__package__).joinpath("judged.tsv").read_text("utf-8").splitlines()
    return {docid: mark for docid, _, mark in (line.partition("\t") for line in lines)}


def applicable(
    qrels: Qrels, texts: Mapping[str, str], digests: Mapping[str, str] | None = None
) -> tuple[Qrels, int]:
    """Keep the judgements whose text is still the one that was judged.

    `texts` is docid -> text of the collection at hand, `digests` docid -> digest of the text
    judged (by default the demo's). Returns the qrels that apply, every topic kept even when it
    has lost all its judgements, and the number of judgements dropped.
    """
    marks = judged() if digests is None else digests
    same = {
        docid for docid, mark in marks.items() if docid in texts and digest(texts[docid]) == mark
    }
    kept = {
        qid: {docid: grade for docid, grade in grades.items() if docid in same}
        for qid, grades in qrels.items()
    }
    return kept, sum(map(len, qrels.values())) - sum(map(len, kept.values()))


# --- source code ---------------------------------------------------------------------------


def _read_sources() -> Iterator[_Module]:
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names - _SKIPPED_MODULES):
        files = sorted((root / top).rglob("*.py")) or [root / f"{top}.py"]
        for file in files:
            parts = file.relative_to(root).with_suffix("").parts
            if not file.is_file() or _SKIPPED_FOLDERS.intersection(parts):
                continue
            is_package = parts[-1] == "__init__"
            yield _read_source(file, ".".join(parts[:-1] if is_package else parts), is_package)


def _read_source(file: Path, name: str, is_package: bool) -> _Module:
    module = _Module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own doubtful escapes are not our matter
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return module  # templates and the like
    if doc := ast.get_docstring(tree):
        module.entries.append(_Entry(name, "", "module", "", _tidy(doc), False))
    _read_block(tree.body, module, "", is_package)
    return module


def _read_block(body: list[ast.stmt], module: _Module, owner: str, is_package: bool) -> None:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                _read_definition(node, module, owner, is_package)
            case ast.If() | ast.Try():
                _read_block(node.body, module, owner, is_package)
                for handler in getattr(node, "handlers", []):
                    _read_block(handler.body, module, owner, is_package)
                _read_block(node.orelse, module, owner, is_package)
            case ast.ImportFrom() if not owner:
                origin = _origin(node, module.name, is_package)
                for alias in node.names:
                    if alias.name == "*":
                        module.stars.append(origin)
                    else:
                        module.taken.append((origin, alias.name, alias.asname or alias.name))
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value) if not owner:
                module.exported = _literal_names(value)


def _read_definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    module: _Module,
    owner: str,
    is_package: bool,
) -> None:
    path = f"{owner}.{node.name}" if owner else node.name
    if not owner:
        module.defined.append(node.name)
    if isinstance(node, ast.ClassDef):
        kind = "class"
        signature = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    else:
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        is_attribute = any(d.endswith(("property", "property.getter")) for d in decorators)
        kind = "attribute" if owner and is_attribute else "method" if owner else "function"
        signature = "" if kind == "attribute" else _written(node.args, bool(owner), decorators)
    if doc := ast.get_docstring(node):
        module.entries.append(_Entry(module.name, path, kind, signature, _tidy(doc), False))
    if isinstance(node, ast.ClassDef):
        _read_block(node.body, module, path, is_package)


def _written(arguments: ast.arguments, is_method: bool, decorators: set[str]) -> str:
    written = f"({ast.unparse(arguments)})"
    if is_method and "staticmethod" not in decorators:
        written = _SELF.sub("(", written)
    return written


def _origin(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The absolute name of the module that an import statement names."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)


def _literal_names(value: ast.expr) -> list[str] | None:
    try:
        names = ast.literal_eval(value)
    except ValueError:
        return None
    return [str(name) for name in names]


# --- objects written in C ------------------------------------------------------------------


def _walk_compiled() -> Iterator[_Entry]:
    for name in sorted(sys.stdlib_module_names - _SKIPPED_MODULES):
        if _NOT_IMPORTED.fullmatch(name) or not _is_compiled(name):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some modules announce that they will go
                module = importlib.import_module(name)
        except ImportError:
            continue  # listed, but its C library is not on this machine
        if doc := _own_doc(module):
            yield _Entry(name, "", "module", "", doc, True)
        for attribute, value in sorted(vars(module).items()):
            second_name = isinstance(value, type) and hasattr(module, value.__name__)
            if not (second_name and value.__name__ != attribute):  # IOError is OSError
                yield from _walk_object(name, attribute, value)
    for attribute, value in sorted(vars(types).items()):
        if isinstance(value, type) and value.__module__ == "builtins":
            yield from _walk_object("types", attribute, value)
    for dotted in _NAMED_TYPES:
        name, _, attribute = dotted.partition(".")
        yield from _walk_object(name, attribute, getattr(sys.modules[name], attribute))


def _is_compiled(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module that lacks its spec, like __main__
        return False
    if spec is None:
        return False
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return spec.origin == "built-in" or (spec.origin or "").endswith(suffixes)


def _walk_object(module: str, name: str, value: object) -> Iterator[_Entry]:
    if name.startswith("__") and name != "__import__":
        return
    if isinstance(value, type):
        home = value.__module__ if value.__module__ != "builtins" else module
        base = value.__base__
        signature = f"({base.__name__})" if base not in (None, object) else ""
        if doc := _own_doc(value):
            yield _Entry(home, name, "class", _signature(value) or signature, doc, True)
        for member, part in sorted(vars(value).items()):
            yield from _walk_member(home, f"{name}.{member}", part)
    elif isinstance(value, types.BuiltinFunctionType) and (doc := _own_doc(value)):
        yield _Entry(module, name, "function", _signature(value), doc, True)


def _walk_member(module: str, path: str, part: object) -> Iterator[_Entry]:
    methods = (
        types.MethodDescriptorType,
        types.ClassMethodDescriptorType,
        types.BuiltinFunctionType,
        staticmethod,
    )
    attributes = (types.GetSetDescriptorType, types.MemberDescriptorType)
    # Slot wrappers are left out: their words are the same in every type ("Return repr(self).").
    if isinstance(part, methods) and (doc := _own_doc(part)):
        yield _Entry(module, path, "method", _signature(part), doc, True)
    elif isinstance(part, attributes) and not path.endswith("__") and (doc := _own_doc(part)):
        yield _Entry(module, path, "attribute", "", doc, True)


def _own_doc(value: object) -> str:
    doc = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    if isinstance(value, type) and not isinstance(doc, str):
        doc = type.__dict__["__doc__"].__get__(value)
    return _tidy(inspect.cleandoc(doc)) if isinstance(doc, str) else ""


def _signature(value: object) -> str:
    written = getattr(value, "__text_signature__", None)
    return _SELF.sub("(", _tidy(written)) if isinstance(written, str) else ""


# --- names and texts -----------------------------------------------------------------------


def _public_names(sources: list[_Module], compiled: list[_Entry]) -> dict[tuple[str, str], str]:
    """(module, name) -> the module through which people reach that name."""
    offered: dict[str, set[str]] = {}
    for entry in compiled:
        offered.setdefault(entry.module, set()).add(entry.path.partition(".")[0])
    for module in sources:
        names = module.exported
        if names is None:
            names = [name for name in module.defined if not name.startswith("_")]
        offered.setdefault(module.name, set()).update(names)
    for _ in range(2):  # a star may pass on what another star brought
        for module in sources:
            for origin in module.stars:
                names = [name for name in offered.get(origin, ()) if not name.startswith("_")]
                offered[module.name].update(names)
    found: dict[tuple[str, str], set[str]] = {}
    for module in sources:
        taken = [(origin, name) for origin, name, new in module.taken if name == new]
        taken += [(origin, name) for origin in module.stars for name in offered.get(origin, ())]
        for origin, name in taken:
            is_inner = origin.startswith(f"{module.name}.")
            is_relative = origin.lstrip("_").startswith(module.name.partition(".")[0])
            if name and (is_inner or (_is_hidden(origin) and is_relative)):
                found.setdefault((origin, name), set()).add(module.name)
    return {key: min(names, key=_least_surprising) for key, names in found.items()}


def _docid(entry: _Entry, public: dict[tuple[str, str], str]) -> str:
    path, module = entry.path, entry.module
    top = path.partition(".")[0]
    while top and module not in _KNOWN_AS and public.get((module, top), module) != module:
        module = public[module, top]  # sqlite3.dbapi2 takes from _sqlite3, sqlite3 from there
    module = _KNOWN_AS.get(module, module)
    if path and module.startswith("_") and module[1:] in sys.stdlib_module_names:
        module = module[1:]  # a base class or a set of functions taken at run time
        path = path.removeprefix("openssl_")  # _hashlib.openssl_sha256 is hashlib.sha256
    if module == "builtins" and path:
        return path
    return f"{module}.{path}" if path else module


def _is_hidden(docid: str) -> bool:
    private = any(p.startswith("_") and not p.endswith("__") for p in docid.split("."))
    return private and not _PUBLIC_ALL_THE_SAME.fullmatch(docid)


def _least_surprising(docid: str) -> tuple[int, int, str]:
    return docid.count("."), len(docid), docid


def _text(docid: str, entry: _Entry) -> str:
    """One line: what it is, where it lives, and its docstring.

    The name is written in pieces ("method split(sep) of str") because word-based search would
    take `str.split` for one word.
    """
    if entry.kind == "module":
        return f"module {docid}: {entry.doc}"
    owner, _, last = docid.rpartition(".")
    place = ""
    if entry.kind in ("method", "attribute"):
        owner, _, holder = owner.rpartition(".")
        place = f" of {holder}"
    place += f" in {owner}" if owner else ""
    return f"{entry.kind} {last}{_tidy(entry.signature)}{place}: {entry.doc}"


def _tidy(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _BLANKS.sub(" ", text).strip()
