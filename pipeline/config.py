"""Experiment files: TOML -> frozen dataclasses; unknown keys are errors with a suggestion."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, PipelineError, did_you_mean, shown, storage_error
from pipeline.textfile import IR_DATASETS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def read_experiment(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read an experiment file as plain tables, `--set KEY=VALUE` already applied.

    Raises:
        InputError: it is not TOML (with the line), or an override names no table.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        tables = _parsed(text)
    except OSError as error:
        raise storage_error(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(path, None, "not UTF-8", "save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            path, None, f"not TOML: {error}", "see the example in the README"
        ) from error
    for override in overrides:
        _override(path, tables, override)
    return tables


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML; what Python's parser raises over monstrous values is an error of TOML here."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # thousands of digits
        raise tomllib.TOMLDecodeError("a number that is too long") from None


def _override(path: Path, tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        raise PipelineError(
            f"--set {shown(override)}: not KEY=VALUE", "for example: --set retrieve.hits=100"
        )
    try:
        value = _parsed(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    place: Any = tables
    for step in steps[:-1]:
        place = _descend(path, place, step, override)
    if not isinstance(place, dict):
        several = isinstance(place, list)
        raise PipelineError(
            f"--set {shown(override)}: {shown('.'.join(steps[:-1]))} "
            f"{'holds several stages' if several else 'is not a table'}",
            "name one: --set rerank.NAME.depth=100" if several else "check the key",
        )
    place[steps[-1]] = value


def _descend(path: Path, place: Any, step: str, override: str) -> Any:
    """Go one table down; a list of tables is entered by the `name` of one, or its number from 1."""
    if isinstance(place, dict):
        return place.setdefault(step, {})
    if isinstance(place, list):
        for number, table in enumerate(place, 1):
            if isinstance(table, dict) and step in (table.get("name"), str(number)):
                return table
    raise InputError(
        path, None, f"--set {shown(override)}: there is no {shown(step)}", "check the key"
    )


def fill[T](
    kind: type[T],
    table: object,
    where: str,
    path: Path,
    *,
    given: dict[str, Any] | None = None,
    extra: Collection[str] = (),
) -> T:
    """Make a settings dataclass from a TOML table, checking every key and type.

    Args:
        kind: a frozen dataclass; its fields are the keys, its defaults hold where a key is absent.
        where: the table's name, for messages.
        given: fields set by the caller (inputs and outputs), which the table may not name.
        extra: keys the table may have beside those of `kind`.

    Raises:
        InputError: an unknown key, a value of the wrong type, or a missing key.
    """
    if not isinstance(table, dict):
        raise InputError(path, None, f"[{where}] is not a table", f"write [{where}] and its keys")
    given = given or {}
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    free = [name for name in fields if name not in given]
    values: dict[str, Any] = dict(given)
    for key, value in table.items():
        if key in free:
            values[key] = _typed(value, hints[key], f"{where}.{key}", path)
        elif key not in extra:
            raise InputError(
                path,
                None,
                f"unknown key {shown(key)} in [{where}]",
                did_you_mean(key, [*free, *extra]),
            )
    for name, spec in fields.items():
        required = (
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise InputError(path, None, f"[{where}] lacks {name}", f"add {name} = ...")
    return kind(**values)


def text(table: object, key: str, where: str, path: Path) -> str:
    """Return a required string of a table."""
    value = table.get(key) if isinstance(table, dict) else None
    if value is not None and not isinstance(value, str):
        name = f"{where}.{key}" if where else key
        raise InputError(path, None, f"{name} = {shown(value)} is not text in quotes", "quote it")
    if not value:
        place = f"[{where}]" if where else "the file"
        raise InputError(path, None, f"{place} lacks {key}", f'add {key} = "..."')
    return value


def only(table: object, known: Collection[str], where: str, path: Path) -> dict[str, Any]:
    """Return a table after checking that it has no other keys than `known`."""
    if not isinstance(table, dict):
        raise InputError(path, None, f"[{where}] is not a table", f"write [{where}] and its keys")
    for key in table:
        if key not in known:
            label = f"in [{where}]" if where else "in the file"
            raise InputError(
                path, None, f"unknown key {shown(key)} {label}", did_you_mean(key, list(known))
            )
    return table


def _too_large(value: object) -> bool:
    """Whether a whole number is none of floating point's."""
    return isinstance(value, int) and abs(value) > sys.float_info.max


def _typed(value: object, hint: Any, name: str, path: Path) -> Any:
    """Check a TOML value against a field's type; whole numbers pass as floats, text as paths."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not type(None)]
        for kind in kinds[:-1]:
            try:
                return _typed(value, kind, name, path)
            except InputError:
                continue
        return _typed(value, kinds[-1], name, path)
    if origin is typing.Literal:
        if value in arguments:
            return value
        expected = "one of " + ", ".join(map(str, arguments))
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_typed(item, arguments[0], name, path) for item in value)
        expected = "a list"
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return fill(hint, value, name, path)
    elif hint is float and type(value) in (int, float) and not _too_large(value):
        return float(value)  # type: ignore[arg-type]
    elif hint is Path and isinstance(value, str) and value:
        return Path(value) if value.startswith(IR_DATASETS) else path.parent / value
    elif hint in (bool, int, str) and type(value) is hint:
        return value
    else:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(
            hint, "text in quotes"
        )
    raise InputError(path, None, f"{name} = {shown(value)} is not {expected}", "check the value")
