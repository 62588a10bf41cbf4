"""What every refusal owes its user: one line of what happened and one of what to do."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def refused(
    message: str, hint: str = "", kind: type[PipelineError] = PipelineError
) -> Iterator[None]:
    """Expect a `PipelineError` whose two lines contain these texts, literally."""
    # Not pytest.raises: it would keep the error, its frames and so the files they read from.
    try:
        yield
    except kind as error:
        check_two_lines(error, message, hint)
    else:
        pytest.fail(f"nothing was refused; expected: {message}")


def check_two_lines(error: PipelineError, message: str = "", hint: str = "") -> None:
    """Neither line may be empty, break, drive a terminal, end in a full stop or run on."""
    assert message in error.message
    assert hint in error.hint
    for line in (error.message, error.hint):
        assert line
        assert line.isprintable()
        assert not re.search(r"[^.]\.$", line)
        assert len(line) < 600
    assert str(error) == error.message
