"""The tiny collection, the real ones where they are at hand, and what tests share."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("quick", max_examples=60, deadline=None)
settings.register_profile("soak", max_examples=1000, deadline=None)
settings.load_profile("soak" if os.environ.get("PIPELINE_SOAK") else "quick")

ROOT = Path(__file__).parent.parent

# A shell that starts the tests in the background has them, and their children, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _beside(variable: str, name: str) -> Path | None:
    """Find a folder named by a variable, or `shared/<name>` beside the checkout."""
    named = os.environ.get(variable)
    candidates = [Path(named)] if named else [ROOT.parent / "shared" / name]
    return next((path for path in candidates if path.is_dir()), None)


@pytest.fixture(scope="session")
def collections() -> Path:
    """The folder of real test collections."""
    folder = _beside("PIPELINE_COLLECTIONS", "collections")
    if folder is None:
        pytest.skip("no real collections: set PIPELINE_COLLECTIONS to their folder")
    return folder


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of NIST's test files with expected outputs."""
    folder = _beside("PIPELINE_FIXTURES", "fixtures")
    if folder is None:
        pytest.skip("no trec_eval fixtures: set PIPELINE_FIXTURES to their folder")
    return folder


@pytest.fixture(scope="session")
def teachers() -> Path:
    """The folder of two real pre-trained encoders."""
    named = os.environ.get("PIPELINE_TEACHERS")
    if not named or not Path(named).is_dir():
        pytest.skip("no teachers: set PIPELINE_TEACHERS to the folder of the two encoders")
    return Path(named)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of a collection small enough to check by hand."""
    return ROOT / "tests" / "data" / "tiny"


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A folder like `tmp_path`, which every user of the machine may enter and none but us write."""
    with tempfile.TemporaryDirectory(prefix="pipeline-tests-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
