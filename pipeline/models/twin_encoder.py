"""Two towers: query and passage are encoded apart, the score is the dot product of the vectors.

Reads bi-encoder folders of sentence-transformers (Transformer, Pooling by mean or first token,
perhaps Normalize). A passage is encoded once, however many topics it is a candidate of, so its
vector must not depend on what happens to be encoded with it: sequences are computed in batches
whose shape is a function of the sequence's own length, filled up where there are too few. Each row
of such a batch is then the same whatever the other rows hold.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import InputError, PipelineError, shown
from pipeline.models.engine import resolve, within_memory
from pipeline.models.folder import check, digest, natural, read_table, read_value, reading
from pipeline.models.loading import load_tokenizer, load_weights, longest_input, takes_segments
from pipeline.models.pairs import Tokenizer, to_device
from pipeline.models.scorer import Scored
from pipeline.models.vectors import KEY, Vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.models.scorer import Limits, Wishes
    from pipeline.parts import Parts

MODULES = ("Transformer", "Pooling", "Normalize")
QUERY_NAMES = ("query",)
PASSAGE_NAMES = ("document", "passage", "corpus")  # as sentence-transformers looks for them
WIDTHS = 16  # sequences are padded to a multiple of this
MOST_ROWS = 256
QUERY_ROWS = 4  # a topic has one query; a batch of many rows would be spent on filling
PIECE = 4096  # passages encoded and kept at a time


class TwinEncoder:
    """A loaded bi-encoder.

    Args:
        folder: of sentence-transformers, with its `modules.json`.
        limits: `max_tokens` and `max_query_tokens` cap each text; without them the folder does.
        begun: numeric signature of a stage that goes on.

    Raises:
        PipelineError: the folder holds no such model.
    """

    def __init__(
        self, folder: Path, wishes: Wishes, limits: Limits, begun: Mapping[str, Any] | None = None
    ) -> None:
        inner, pooling, self._normalize = _modules(folder)
        check(inner)
        self.folder = folder
        self.digest = digest(folder)
        self.engine = resolve(wishes, begun)
        about = _optional(folder / "config_sentence_transformers.json")
        self._normalize |= about.get("similarity_fn_name") == "cosine"
        self._prompts = _prompt(about, QUERY_NAMES), _prompt(about, PASSAGE_NAMES)
        self._by_first_token = _pools_first_token(pooling, any(self._prompts))
        text_settings = _optional(inner / "sentence_bert_config.json")
        self._lower = text_settings.get("do_lower_case") is True
        model = load_weights(inner, "AutoModel", heads=False)
        with reading(folder):
            saved = load_tokenizer(inner, model.config.vocab_size)
            self._tokenizer = Tokenizer(saved, folder)
            longest = longest_input(model.config.to_dict(), saved)
        most = min(longest, natural(text_settings.get("max_seq_length")) or longest)
        self._query_limit = self._limit(
            limits.max_query_tokens or limits.max_tokens or most, longest
        )
        self._passage_limit = self._limit(limits.max_tokens or most, longest)
        self._segmented = self._tokenizer.segmented and takes_segments(model)
        for weights in model.parameters():  # not the buffers: rotary angles want float32
            weights.data = weights.data.to(self.engine.dtype)
        self._model = model.to(self.engine.device)
        self._size = int(model.config.hidden_size)
        self._budget = self.engine.token_budget
        self._waiting: dict[bytes, str] = {}
        self._vectors = self._memory(None)

    def _limit(self, wanted: int, longest: int) -> int:
        around = sum(map(len, self._tokenizer.around))
        if not around < wanted <= longest:
            raise PipelineError(
                f"{self.folder}: at most {wanted} tokens of a text cannot be",
                f"this model takes {longest} tokens, {around} of them its own",
            )
        return wanted - around

    @property
    def signature(self) -> Mapping[str, Any]:
        """The numeric signature, with the way the forward pass is computed."""
        return {**self.engine.signature(), "forward": f"rows of {WIDTHS}"}

    @property
    def limits(self) -> Mapping[str, int]:
        """Tokens of a query and of a passage."""
        around = sum(map(len, self._tokenizer.around))
        return {
            "max_query_tokens": self._query_limit + around,
            "max_tokens": self._passage_limit + around,
        }

    # ------------------------------------------------------------ scoring

    def score(self, query: str, passages: Sequence[str]) -> Scored:
        """Score the passages of one topic; those without a vector are encoded first."""
        if not passages:
            return Scored(np.empty(0, np.float32))
        keys = self._encoded(passages)
        vectors, cut = self._vectors.take(keys)
        wanted, query_cut = self._encode([self._prompts[0] + query], self._query_limit, _query_rows)
        # Not a product of matrices, whose last bits depend on the number of threads.
        scores = (vectors * wanted).sum(axis=1, dtype=np.float32)
        lowered = self._budget if self._budget != self.engine.token_budget else None
        return Scored(scores, bool(query_cut[0]), int(cut.sum()), lowered)

    def encode(self, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
        """Vectors of texts, shape (texts, size); of passages they are kept for later calls."""
        if queries:
            prompted = [self._prompts[0] + text for text in texts]
            return self._encode(prompted, self._query_limit, _query_rows)[0]
        return self._vectors.take(self._encoded(texts))[0]

    def _encoded(self, passages: Sequence[str]) -> list[bytes]:
        keys = [_key(passage) for passage in passages]
        places = self._vectors.missing(keys)
        if places:
            self._store({keys[place]: passages[place] for place in places})
        return keys

    # ------------------------------------------------------------ ahead of scoring

    def keep_vectors(self, parts: Parts) -> None:
        """Keep vectors of passages in a folder, and use those that lie there already."""
        self._vectors = self._memory(parts)

    def foresee(self, passages: Sequence[str]) -> None:
        """Take passages that will be scored; they are encoded when enough have come together."""
        keys = [_key(passage) for passage in passages]
        for place in self._vectors.missing(keys):
            self._waiting[keys[place]] = passages[place]
        while len(self._waiting) >= PIECE:
            some = list(self._waiting)[:PIECE]
            self._store({key: self._waiting.pop(key) for key in some})

    def settle(self) -> None:
        """Encode what has been foreseen and not been encoded yet."""
        if self._waiting:
            self._store(self._waiting)
            self._waiting = {}

    def _memory(self, parts: Parts | None) -> Vectors:
        limits = [self._passage_limit, self._prompts[1]]
        return Vectors(self._size, [self.digest, self.signature, limits], parts)

    def _store(self, passages: Mapping[bytes, str]) -> None:
        prompted = [self._prompts[1] + passage for passage in passages.values()]
        vectors, cut = self._encode(prompted, self._passage_limit, _passage_rows)
        self._vectors.add(list(passages), vectors, cut)

    # ------------------------------------------------------------ the model

    def _encode(
        self, texts: Sequence[str], limit: int, rows_of: Callable[[int, int], int]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Encode texts in batches of fixed shapes: vectors, and 1 where a text was cut."""
        if self._lower:
            texts = [text.lower() for text in texts]
        before, after = self._tokenizer.around
        tokens = self._tokenizer.tokens(texts, limit)
        cut = np.array([len(one) > limit for one in tokens], np.uint8)
        lengths = np.array([min(len(one), limit) for one in tokens], np.int64)
        lengths += len(before) + len(after)
        # One more, so that something is always masked: without a mask other kernels run.
        widths = lengths // WIDTHS * WIDTHS + WIDTHS
        vectors = np.empty((len(texts), self._size), np.float32)
        for width in np.unique(widths)[::-1]:
            places = np.flatnonzero(widths == width)
            ids = np.full((len(places), width), self._tokenizer.pad, np.int64)
            for row, place in enumerate(places):
                one = np.concatenate([before, tokens[place][:limit], after])
                ids[row, : len(one)] = one
            self._fill(vectors, places, ids, lengths[places], rows_of)
        return vectors, cut

    def _fill(
        self,
        vectors: NDArray[np.float32],
        places: NDArray[np.int64],
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        rows_of: Callable[[int, int], int],
    ) -> None:
        """Compute the vectors of sequences of one width."""
        done = 0
        while done < len(places):

            def compute(budget: int, done: int = done) -> tuple[int, NDArray[np.float32]]:
                rows = rows_of(ids.shape[1], budget)
                chosen = np.minimum(np.arange(done, done + rows), len(places) - 1)
                made = self._forward(ids[chosen], lengths[chosen])
                return min(rows, len(places) - done), made

            (count, made), self._budget = within_memory(self._budget, compute)
            vectors[places[done : done + count]] = made[:count]
            done += count

    def _forward(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        self.engine.use_threads()
        batch = to_device(ids, np.zeros_like(ids), lengths, self.engine.device)
        assert batch.mask is not None  # noqa: S101 - every row is padded
        segments = {"token_type_ids": batch.segments} if self._segmented else {}
        with torch.inference_mode():
            mask = batch.mask.long()
            output = self._model(input_ids=batch.ids, attention_mask=mask, **segments)
            hidden = output.last_hidden_state.float()
            if self._by_first_token:
                pooled = hidden[:, 0]
            else:
                weight = batch.mask[:, :, None].float()
                pooled = (hidden * weight).sum(1) / weight.sum(1)
            if self._normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            return pooled.cpu().numpy()  # type: ignore[no-any-return]


def _query_rows(_width: int, budget: int) -> int:
    return min(QUERY_ROWS, budget)


def _passage_rows(width: int, budget: int) -> int:
    return max(1, min(MOST_ROWS, budget // width))


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY).digest()


# ---------------------------------------------------------------- the folder


def _modules(folder: Path) -> tuple[Path, Mapping[str, Any], bool]:
    """Return the encoder's folder, the settings of the pooling, and whether vectors have length 1.

    Raises:
        PipelineError: the folder asks for something else than transformer, pooling, normalisation.
    """
    path = folder / "modules.json"
    modules = read_value(path)
    found: dict[str, Path] = {}
    for module in modules if isinstance(modules, list) else [None]:
        kind = module.get("type") if isinstance(module, dict) else None
        place = module.get("path") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not isinstance(place, str):
            raise InputError(path, None, "not a list of modules", "fetch or save the model again")
        name = kind.rpartition(".")[2]
        if name not in MODULES or not kind.startswith("sentence_transformers."):
            raise InputError(
                path,
                None,
                f"the module {shown(kind)} is not supported",
                "two towers are read that consist of Transformer, Pooling and Normalize",
            )
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise InputError(
                path, None, f"{shown(place)} lies outside the model folder", "do not trust it"
            )
        found[name] = folder / place
    if [name for name in MODULES if name in found] != list(found) or "Pooling" not in found:
        raise InputError(
            path,
            None,
            f"consists of {', '.join(found) or 'nothing'}",
            "two towers are read that consist of Transformer, Pooling and perhaps Normalize",
        )
    return found["Transformer"], read_table(found["Pooling"] / "config.json"), "Normalize" in found


def _optional(path: Path) -> dict[str, Any]:
    return read_table(path) if path.is_file() else {}


def _prompt(about: Mapping[str, Any], names: Sequence[str]) -> str:
    prompts = about.get("prompts")
    if not isinstance(prompts, dict):
        return ""
    for name in (*names, about.get("default_prompt_name")):
        prompt = prompts.get(name)
        if isinstance(prompt, str) and prompt:
            return prompt
    return ""


def _pools_first_token(pooling: Mapping[str, Any], prompted: bool) -> bool:
    """Tell pooling by the first token from pooling by the mean; there are two spellings of both."""
    mode = pooling.get("pooling_mode")
    if mode is None:
        modes = [
            key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
            for key, value in pooling.items()
            if key.startswith("pooling_mode_") and value is True
        ]
        mode = modes[0] if len(modes) == 1 else modes
    if mode not in ("mean", "cls") or (prompted and pooling.get("include_prompt") is False):
        raise PipelineError(
            f"pooling {shown(mode)} is not supported",
            "two towers are read that pool by mean or by first token, the prompt included",
        )
    return bool(mode == "cls")
