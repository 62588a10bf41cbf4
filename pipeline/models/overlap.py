"""A scorer without a model: how many of the query's words a passage shares.

For tests and measurements of everything around the model; `--model overlap`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline.models.scorer import Scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WORD = re.compile(r"\w+")


class Overlap:
    """Counts shared words; more words of the query first, then shorter passages."""

    digest = "overlap-1"

    @property
    def signature(self) -> Mapping[str, Any]:
        """Plain counting has no last bits."""
        return {"backend": "overlap"}

    @property
    def limits(self) -> Mapping[str, int]:
        """Everything is read."""
        return {}

    def score(self, query: str, passages: Sequence[str]) -> Scored:
        """Score by the number of shared words, less a little for every word."""
        import numpy as np

        wanted = set(_WORD.findall(query.lower()))
        scores = np.empty(len(passages), np.float32)
        for place, passage in enumerate(passages):
            words = _WORD.findall(passage.lower())
            scores[place] = len(wanted.intersection(words)) - len(words) / (len(words) + 100)
        return Scored(scores)
