"""Tiny models, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a tiny model of a kind; it is shared, so it may not be changed."""
    made: dict[object, Path] = {}

    def get(kind: str = "bert", labels: int = 1) -> Path:
        if (kind, labels) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}{labels}")
            made[kind, labels] = tiny_models.make(folder, kind, labels)
        return made[kind, labels]

    return get


@pytest.fixture(scope="session")
def tiny_twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bi-encoder; it is shared, so it may not be changed."""
    return tiny_models.make_twin(tmp_path_factory.mktemp("twin"))


@pytest.fixture
def own_model(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the tiny BERT to be spoilt."""
    return Path(shutil.copytree(tiny_model(), tmp_path / "model"))
