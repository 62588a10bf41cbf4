"""Experiment files become checked settings, or an error that names the key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pipeline.config import fill, only, read_experiment
from pipeline.errors import InputError, PipelineError


@dataclass(frozen=True)
class Inner:
    first: int
    last: int = 9


@dataclass(frozen=True)
class Settings:
    output: Path
    depth: int = 1000
    weight: float | None = None
    tail: Literal["keep", "drop"] = "keep"
    measures: tuple[str, ...] = ("AP",)
    model: str = "small"
    force: bool = False
    where: Path | None = None
    strata: tuple[Inner, ...] = ()


FILE = Path("folder/experiment.toml")


def filled(table: dict[str, object]) -> Settings:
    return fill(Settings, table, "rerank", FILE, given={"output": Path("out")})


def test_keys_become_fields_and_absent_keys_keep_their_defaults() -> None:
    """A table names some settings; the others keep the one place where defaults live."""
    settings = filled({"depth": 5, "measures": ["nDCG@10"], "tail": "drop"})

    assert settings == Settings(Path("out"), depth=5, measures=("nDCG@10",), tail="drop")


def test_a_whole_number_passes_as_a_float_and_paths_are_relative_to_the_file() -> None:
    settings = filled({"weight": 1, "where": "x/y"})

    assert settings.weight == 1.0
    assert isinstance(settings.weight, float)
    assert settings.where == Path("folder/x/y")


def test_tables_nest() -> None:
    assert filled({"strata": [{"first": 1}]}).strata == (Inner(1, 9),)


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ({"dept": 5}, "unknown key 'dept' in [rerank]", "did you mean 'depth'?"),
        ({"output": "x"}, "unknown key 'output'", "known:"),
        ({"depth": "5"}, "rerank.depth = '5' is not a whole number", "check"),
        ({"depth": True}, "is not a whole number", "check"),
        ({"force": 1}, "is not true or false", "check"),
        ({"tail": "x"}, "is not one of keep, drop", "check"),
        ({"measures": "AP"}, "is not a list", "check"),
        ({"measures": [1]}, "rerank.measures = 1 is not text in quotes", "check"),
        ({"strata": [{"last": 1}]}, "[rerank.strata] lacks first", "add first"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(
    table: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(InputError) as error:
        filled(table)

    assert message in error.value.message
    assert error.value.message.startswith(str(FILE))
    assert hint in error.value.hint


def test_unknown_tables_are_errors_with_a_suggestion() -> None:
    with pytest.raises(InputError) as error:
        only({"retreive": {}}, ("retrieve", "rerank"), "", FILE)

    assert error.value.hint == "did you mean 'retrieve'?"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "e.toml"
    path.write_text('[retrieve]\nhits = 10\n[[rerank]]\nname = "a"\n[[rerank]]\nname = "b"\n')
    return path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("retrieve.hits=7", {"hits": 7}),
        ("retrieve.tag=abc", {"hits": 10, "tag": "abc"}),
        ("retrieve.k1 = 0.5", {"hits": 10, "k1": 0.5}),
    ],
)
def test_overrides_are_toml_values_or_plain_text(
    file: Path, override: str, expected: dict[str, object]
) -> None:
    assert read_experiment(file, [override])["retrieve"] == expected


def test_an_override_finds_a_stage_of_a_list_by_name_or_number(file: Path) -> None:
    tables = read_experiment(file, ["rerank.b.depth=3", "rerank.1.depth=4"])

    assert tables["rerank"] == [{"name": "a", "depth": 4}, {"name": "b", "depth": 3}]


@pytest.mark.parametrize(
    "override",
    ["hits", "=1", "retrieve..x=1", "rerank.c.depth=1", "rerank.x=1", "retrieve.hits.x=1"],
)
def test_an_override_that_names_nothing_is_an_error(file: Path, override: str) -> None:
    with pytest.raises(PipelineError):
        read_experiment(file, [override])


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000])
def test_an_override_that_no_parser_can_hold_is_text(file: Path, text: str) -> None:
    """What is no value of TOML is taken as text, and refused where text is not wanted."""
    assert read_experiment(file, [f"retrieve.k1={text}"])["retrieve"]["k1"] == text


@pytest.mark.parametrize(
    "content",
    [
        b"name = ", b"\xff", b"[a\n", b"a = [" * 3000, b'a = "\x00"\n', b"a=1\na=2\n",
        b"a = " + b"9" * 5000,
    ],
)  # fmt: skip
def test_a_file_that_is_no_toml_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)

    with pytest.raises(InputError) as error:
        read_experiment(path)

    assert error.value.message.startswith(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such file"):
        read_experiment(tmp_path / "none.toml")
