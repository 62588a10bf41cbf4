"""What a stage and a model say to each other, whatever the model is made of; needs no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.parts import Parts
    from pipeline.tokens import Tokens

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True)
class Wishes:
    """What the user asks of the hardware; 0 and `auto` leave it to us."""

    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0
    token_budget: int = 0  # padded tokens of one forward pass


@dataclass(frozen=True)
class Limits:
    """What the user asks of the input; None leaves it to the model folder, and then to us."""

    max_query_tokens: int | None = None
    max_tokens: int | None = None  # of the whole pair; of a text, where texts are encoded alone
    positive: int | None = None  # which of two logits speaks for relevance


class Scored(NamedTuple):
    """Scores of the passages of one topic, and what had to be done to get them."""

    scores: NDArray[np.float32]  # raw: neither squashed nor normalised; shape (passages,)
    query_cut: bool = False
    passages_cut: int = 0
    lowered_budget: int | None = None  # the token budget that fitted, after running out of memory
    tokens: int = 0  # of all pairs; 0: not known
    padding: int = 0  # tokens that were computed beside them, for nothing


class Scorer(Protocol):
    """A model that scores passages for a query."""

    @property
    def digest(self) -> str:
        """Digest of its weights and of everything else in its folder that decides scores."""

    @property
    def signature(self) -> Mapping[str, Any]:
        """The numeric signature: equal ones give equal bytes."""

    @property
    def limits(self) -> Mapping[str, int]:
        """How much of a query and a passage is read, and what else was settled about the input."""

    def score(self, query: str, passages: Sequence[str]) -> Scored:
        """Score passages; equal passages of one call may get scores that differ in the last bit."""


@runtime_checkable
class Launching(Scorer, Protocol):
    """A model that can begin a topic before the scores of another have come back."""

    @property
    def ahead(self) -> int:
        """Topics that are worth launching before the scores of the first are asked for."""

    def launch(self, query: str, passages: Sequence[str] | Tokens) -> Callable[[], Scored]:
        """Begin to score one topic; what is returned gives the scores, once."""


def held_back[T](begun: Iterable[T], scorer: Scorer) -> Iterator[T]:
    """Yield topics that were begun, each after those that are worth beginning before its end."""
    ahead = scorer.ahead if isinstance(scorer, Launching) else 0
    waiting: deque[T] = deque()
    for each in begun:
        waiting.append(each)
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


@runtime_checkable
class Foreseeing(Scorer, Protocol):
    """A model that gains from knowing all passages before the first topic is scored."""

    def keep_vectors(self, parts: Parts) -> None:
        """Keep what is computed for passages in a folder, and use what lies there already."""

    def foresee(self, passages: Sequence[str]) -> None:
        """Take passages that will be scored."""

    def settle(self) -> None:
        """Finish with the passages that were foreseen."""

    def foresee_queries(self, queries: Sequence[str]) -> None:
        """Take queries in the order in which they will be asked."""

    def score_rows(self, query: str, rows: NDArray[np.int64], passages: Sequence[str]) -> Scored:
        """Score passages by their rows in given vectors; those of row -1 by their text."""

    @property
    def spent(self) -> Mapping[str, float]:
        """Seconds spent on `queries` and `passages` that were encoded, and on `crossing`."""


@runtime_checkable
class Reading(Scorer, Protocol):
    """A model that can read texts while it scores others."""

    def read(self, query: str, passages: Sequence[str]) -> None:
        """Tokenise what will be scored soon; may be called beside `score`, by one thread."""
