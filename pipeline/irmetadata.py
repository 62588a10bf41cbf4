"""ir_metadata (Breuer et al., SIGIR 2022; schema 0.1) from the sidecars of a run and of its stages.

YAML is written here: maps, lists, text and numbers are all there is, and every text is quoted.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

from pipeline.stage import find_place, read_sidecar
from pipeline.store import digest_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = "0.1"
# Keys that need no quotes; YAML reads the words below as something else.
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[a-z](?:[a-z0-9 _-]*[a-z0-9])?")
MOST = 20  # stages behind a run; a sidecar that names its own run would go on for ever


def chain(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Follow a run back to its first stage by the sidecars: the first stage first.

    It ends where a run has no sidecar of ours, or where its candidates are no longer those.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    path: Path | None = run
    while path is not None and len(found) < MOST:
        sidecar = read_sidecar(path) if path.exists() else None
        if sidecar is None or sidecar.get("state") != "finished":
            break
        found.append((path, sidecar))
        place = _map(sidecar["details"], "places").get("run")
        before = find_place(path, place) if isinstance(place, str) else None
        path = None
        if not isinstance(before, str) and before is not None and before.is_file():
            same = digest_file(before) == sidecar["recipe"]["inputs"].get("run")
            path = before if same else None
    return found[::-1]


def metadata(run: Path, tag: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Describe a run: what its sidecars know, and what the user says of it.

    Args:
        given: `team`, `description`, `repository`, `data` (the test collection) and `name` (of the
            method), where they are known; what is not known is left out.
    """
    stages = chain(run)
    found: dict[str, Any] = {"schema-version": SCHEMA, "run-version": "1.0", "tag": tag}
    platform = _platform(stages[-1][1]) if stages else {}
    source = {"repository": given["repository"]} if "repository" in given else {}
    commands = [_command(sidecar) for _, sidecar in stages]
    method: dict[str, Any] = {
        "name": given.get("name", tag),
        "description": given.get("description"),
        "automatic": True,
        "score ties": "none: scores are strictly decreasing",
        "indexing": _indexing(stages) if stages else None,
        "retrieval": [_stage(place, stages) for place in range(len(stages))],
    }
    found |= {
        "platform": platform,
        "implementation": {"executable": {"cmd": " && ".join(filter(None, commands))},
                           "source": source},
        "method": method,
        "actor": {"team": given.get("team")},
        "data": {"test collection": {"name": given.get("data")} | _collection(stages)},
    }  # fmt: skip
    return dict(_filled(found))


def _platform(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    made = _map(sidecar, "provenance")
    machine, packages = _map(made, "machine"), _map(made, "packages")
    signature = _map(sidecar["details"], "signature")
    return {
        "hardware": {
            "cpu": {
                "architecture": machine.get("architecture"),
                "number of cores": machine.get("processors"),
            },
            "device": signature.get("device"),
            "precision": signature.get("precision"),
        },
        "operating system": {"kernel": machine.get("system")},
        "software": {
            "programming language": f"Python {made['python']}" if "python" in made else None,
            "libraries": [f"{name} {version}" for name, version in packages.items()],
        },
    }


def _index(stages: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any] | None:
    """Read the sidecar of the first index that a stage looked into, if it is still that one."""
    for path, sidecar in stages:
        place = _map(sidecar["details"], "places").get("index")
        index = find_place(path, place) if isinstance(place, str) else None
        made = read_sidecar(index) if index is not None and not isinstance(index, str) else None
        if made is not None and made.get("state") == "finished":
            same = _map(made, "counts").get("content") == sidecar["recipe"]["inputs"].get("index")
            return made if same else None
    return None


def _collection(stages: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """What was searched or read, and the topics: names of files, digests, number of documents."""
    found: dict[str, Any] = {}
    for _, sidecar in stages:
        inputs = sidecar["recipe"]["inputs"]
        where = _map(sidecar["details"], "places")
        for key, name in (("collection", "source"), ("topics", "topics")):
            if key in inputs and name not in found:
                found[name] = {"file": _name(where.get(key)), "sha256": inputs[key]}
    if made := _index(stages):
        digest = made["recipe"]["inputs"].get("collection")
        file = _name(_map(made["details"], "places").get("collection"))
        found["source"] = {"file": file, "sha256": digest}
        found["documents"] = _map(made, "counts").get("documents")
    return found


def _name(place: object) -> str | None:
    return place.rstrip("/").rpartition("/")[2] if isinstance(place, str) else None


def _indexing(stages: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any] | None:
    """Take the analysis from the sidecar of the index that was searched."""
    made = _index(stages)
    if made is None:
        return None
    settings = made["recipe"]["settings"]
    return {
        "language": settings.get("language"),
        "stemmer": settings.get("stemmer"),
        "stopwords": settings.get("stopwords"),
    }


def _stage(place: int, stages: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    path, sidecar = stages[place]
    recipe = sidecar["recipe"]
    settings = dict(recipe["settings"])
    name = settings.pop("tag", None)
    stage: dict[str, Any] = {"name": name, "method": recipe.get("stage"), "params": settings}
    if recipe.get("stage") == "retrieve":
        feedback = settings.get("feedback")
        stage["method"] = "BM25" if feedback in (None, "none") else f"BM25 with {feedback}"
    if "model" in recipe["inputs"]:
        model = _map(sidecar["details"], "places").get("model")
        stage["model"] = {"name": model, "sha256": recipe["inputs"]["model"]}
    if place:
        before = stages[place - 1][1]["recipe"]["settings"].get("tag")
        stage["reranks"] = before
        weight = settings.get("interpolate")
        if isinstance(weight, int | float) and weight < 1:
            stage["interpolates"] = [before, name]
            stage["weight"] = weight
    stage["seconds"] = _map(sidecar, "provenance").get("seconds")
    stage["inputs"] = {key: f"sha256 {digest}" for key, digest in recipe["inputs"].items()}
    stage["output"] = {"file": path.name, "sha256": sidecar["output"].get("sha256")}
    return stage


def _command(sidecar: Mapping[str, Any]) -> str:
    """Return the command as typed, without the folder in which the program lies."""
    value = _map(sidecar, "provenance").get("command")
    if not isinstance(value, str):
        return ""
    try:
        words = shlex.split(value)
    except ValueError:
        return ""
    return shlex.join([words[0].rpartition("/")[2], *words[1:]]) if words else ""


def _map(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table of a sidecar, whatever a stranger may have put in its place."""
    value = table.get(name)
    return value if isinstance(value, dict) else {}


def _filled(value: Any) -> Any:
    """Leave out what is not known: nothing is written that would have to be believed."""
    if isinstance(value, dict):
        found = {key: _filled(each) for key, each in value.items()}
        return {key: each for key, each in found.items() if each not in (None, "", {}, [])}
    if isinstance(value, list):
        return [_filled(each) for each in value]
    return value


def yaml(value: Mapping[str, Any]) -> str:
    """Write maps, lists, text and numbers as YAML."""
    return "\n".join(_yaml(value, "")) + "\n"


def _yaml(value: Any, indent: str) -> list[str]:
    found = []
    if isinstance(value, dict):
        for key, each in value.items():
            name = key if _PLAIN.fullmatch(key) else _scalar(str(key))
            if isinstance(each, dict | list) and each:
                found += [f"{indent}{name}:", *_yaml(each, indent + "  ")]
            else:
                found.append(f"{indent}{name}: {_scalar(each)}")
        return found
    for each in value:
        inner = _yaml(each, indent + "  ") if isinstance(each, dict | list) and each else []
        if inner:
            found += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
        else:
            found.append(f"{indent}- {_scalar(each)}")
    return found


def _scalar(value: Any) -> str:
    """JSON is YAML; what is not printable is escaped in a way that both read."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
        for c in text
    )
