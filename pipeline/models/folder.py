"""Model folders: where a model's name leads, what it is, its digest. Nothing here needs torch.

A folder may come from a stranger. Weights are read from safetensors alone, never unpickled; code
that comes with a model is never run; whatever else is wrong with a folder, it can only fail.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import (
    InputError,
    Interrupted,
    PipelineError,
    did_you_mean,
    shown,
    storage_error,
)
from pipeline.store import digest_file, digest_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHIPPED = ("small", "tiny")
OVERLAP = "overlap"  # counts shared words: for tests and measurements of everything but models
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
READ = (".json", ".safetensors", ".txt", ".model")  # what loading may look at
NOT_READ = ("onnx", "openvino")  # the same model again, for other engines
TWIN = "twin.json"
MAX_JSON = 1 << 28  # bytes; vocabularies of large models reach 35 MB
SCHEMA = 1


@dataclass(frozen=True)
class Advice:
    """What a model folder says about its use, in the optional file `pipeline.json`."""

    max_query_tokens: int | None = None
    max_tokens: int | None = None  # of the whole pair
    interpolate: float | None = None  # weight of the model beside the first stage, 0 to 1
    positive: int | None = None  # which of two logits speaks for relevance


def locate(model: str) -> Path:
    """Find the folder behind a shipped name, a path or a Hugging Face id (`org/name[@revision]`).

    An id is looked up in the local cache first; only what is not there is fetched.

    Raises:
        PipelineError: there is no such model.
    """
    if model in SHIPPED:
        from importlib.resources import files

        shipped = Path(str(files("pipeline.demo"))) / model
        if not shipped.is_dir():
            raise PipelineError(
                f"{model}: the shipped student is not in this installation",
                "install the package again, or name a model folder",
            )
        return shipped
    path = Path(model)
    if model and path.is_dir():
        return path
    if model and path.exists():
        raise PipelineError(f"{path}: is a file", "name the folder that holds the model")
    if HUB_ID.fullmatch(model):
        if not path.parent.is_dir():
            return _from_hub(model)
        raise PipelineError(
            f"{shown(model)}: no such model, and no id of Hugging Face as long as the folder "
            f"{path.parent} is here",
            "check the path; if the id is meant, work in another folder",
        )
    raise PipelineError(
        f"{shown(model)}: no such model",
        f"name a folder or a Hugging Face id (org/name); {did_you_mean(model, list(SHIPPED))}",
    )


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")

    def fetch(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=[f"*{suffix}" for suffix in READ],
                ignore_patterns=[f"{folder}/*" for folder in NOT_READ],
                local_files_only=local,
            )
        )

    cached: Path | None = None
    try:
        cached = fetch(local=True)
        if _whole(cached):
            return cached
    except Interrupted:
        raise
    except Exception:  # noqa: S110 - not in the cache, in the hub's many words for it
        pass
    try:
        return fetch(local=False)
    except Interrupted:
        raise
    except Exception as error:  # the hub's client raises whatever its transport raises
        if cached is not None and _has_weights(cached):
            return cached
        raise PipelineError(
            f"{name}: neither a folder nor in the local cache, and the hub did not give it "
            f"({_first_line(error)})",
            "check the name and the network; or fetch it elsewhere and name its folder",
        ) from error


def digest(folder: Path) -> str:
    """Digest of what loading may look at; a model card may be edited at will."""
    found = sorted(
        relative.as_posix()
        for path in folder.rglob("*")
        if path.suffix in READ and path.is_file()
        for relative in [path.relative_to(folder)]
        if relative.parts[0] not in NOT_READ and not any(p[0] == "." for p in relative.parts)
    )
    return digest_json([[name, digest_file(folder / name)] for name in found])


def is_twin(folder: Path) -> bool:
    """Tell a bi-encoder of sentence-transformers from a cross-encoder."""
    if not (folder / "modules.json").is_file():
        return False
    about = folder / "config_sentence_transformers.json"
    return not (about.is_file() and read_table(about).get("model_type") == "CrossEncoder")


def is_twinbert(folder: Path) -> bool:
    """Tell the two towers that this program trains, which say so in `twin.json`."""
    return (folder / TWIN).is_file()


def check(folder: Path) -> dict[str, Any]:
    """Return `config.json` of a folder that may be loaded.

    Raises:
        PipelineError: no config or no safetensors, or the model asks for code of its own.
    """
    if not (folder / "config.json").is_file():
        raise PipelineError(
            f"{folder}: no config.json in this folder", "name the folder of a saved model"
        )
    if (folder / "adapter_config.json").exists():
        raise PipelineError(
            f"{folder}: an adapter, not a whole model", "merge it into its model and save that"
        )
    config = read_table(folder / "config.json")
    tokenizer = folder / "tokenizer_config.json"
    for table in (config, read_table(tokenizer) if tokenizer.is_file() else {}):
        if "auto_map" in table:
            raise PipelineError(
                f"{folder}: the model wants to run code of its own (auto_map), which is never done",
                "use a model whose kind transformers knows, or export it as one",
            )
    if "quantization_config" in config:
        raise PipelineError(
            f"{folder}: quantised weights are not read", "use the model as it was before"
        )
    if not _has_weights(folder):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise PipelineError(
            f"{folder}: no model.safetensors"
            + (", and pickled weights are never loaded: they can run code" if pickled else ""),
            "save it again with model.save_pretrained(folder, safe_serialization=True)"
            if pickled
            else "name the folder of a saved model",
        )
    return config


def _whole(folder: Path) -> bool:
    """Whether a cached folder has all that is read.

    transformers fetches two towers without their `modules.json`: what is no classifier is asked for
    again.
    """
    if not (_has_weights(folder) and (folder / "config.json").is_file()):
        return False
    kinds = read_table(folder / "config.json").get("architectures")
    classifier = isinstance(kinds, list) and "ForSequenceClassification" in str(kinds)
    return classifier or is_twin(folder) or is_twinbert(folder)


def _has_weights(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json")
    return any((folder / name).is_file() for name in names)


def advice(folder: Path) -> Advice:
    """Read the optional `pipeline.json`; keys it does not know are for people.

    Raises:
        InputError: a value that cannot be, or a newer schema.
    """
    path = folder / "pipeline.json"
    if not path.is_file():
        return Advice()
    table = read_table(path)
    if table.get("schema") != SCHEMA:
        raise InputError(
            path, None, f"schema {shown(table.get('schema'))}", f"this version reads {SCHEMA}"
        )
    return Advice(
        _count(path, table, "max_query_tokens", 1, 1 << 20),
        _count(path, table, "max_tokens", 8, 1 << 20),
        _weight(path, table, "interpolate"),
        _count(path, table, "positive", 0, 1),
    )


def _count(path: Path, table: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = table.get(key)
    if value is None or (type(value) is int and least <= value <= most):
        return value
    raise InputError(path, None, f"{key} = {shown(value)}", f"{least} to {most} would be right")


def _weight(path: Path, table: Mapping[str, Any], key: str) -> float | None:
    value = table.get(key)
    if value is None or (type(value) in (int, float) and 0 <= value <= 1):
        return None if value is None else float(value)
    raise InputError(path, None, f"{key} = {shown(value)}", "0 to 1 would be right")


def read_table(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        InputError: it is none.
    """
    value = read_value(path)
    if not isinstance(value, dict):
        raise InputError(path, None, "not a JSON object", "fetch or save the model again")
    return value


def read_value(path: Path) -> Any:
    """Read a JSON value of a model folder.

    Raises:
        InputError: it is not JSON, or far too long.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise InputError(path, None, "too long to be read", "is this a model folder?")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(
            path, None, f"not JSON ({error})", "fetch or save the model again"
        ) from error
    except OSError as error:
        raise storage_error(path, error) from error


def natural(value: object) -> int | None:
    """Return a value of a stranger's config if it is a usable length, else None.

    Tokenizers write 1e30 for "no limit".
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 1 <= value < 1e6 else None


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn whatever libraries raise over a stranger's folder into two lines."""
    try:
        yield
    except (PipelineError, Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise PipelineError(
            f"{folder}: the model does not fit into memory", "use a smaller model or machine"
        ) from error
    except BaseException as error:  # a panic of the Rust libraries is no Exception
        raise PipelineError(
            f"{folder}: this model cannot be loaded ({_first_line(error)})",
            "fetch or save it again; it must load in transformers' AutoModel classes",
        ) from error


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text if len(text) <= 160 else text[:159] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
