"""Texts to token ids, and pairs of them to the input of a cross-encoder.

Queries and passages are tokenised by themselves, in bulk, so that a passage met again costs
nothing, and put together here: `[CLS] query [SEP] passage [SEP]` or whatever the tokenizer itself
would make of a pair. A query is capped, a passage is cut (`only_second`), and what a user writes
never becomes a special token: "[SEP]" in a text is the five characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.models.engine import Batch
from pipeline.models.words import Words
from pipeline.store import digest_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CACHED_TOKENS = 1 << 23  # of passages, 32 MB
CHARACTERS = 12  # a token; a text of more than this for each token wanted is cut before


@dataclass(frozen=True)
class Template:
    """What stands around and between two texts, and the segment id of each stretch."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int, int, int, int]  # before, first, between, second, after

    @property
    def size(self) -> int:
        """Tokens that are added to a pair."""
        return len(self.before) + len(self.between) + len(self.after)


class Tokenizer:
    """Bulk tokenisation without special tokens, and the template of a pair."""

    def __init__(self, tokenizer: Any, where: object) -> None:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self.template = _template(backend, where)
        self.around = _around(backend)
        backend.encode_special_tokens = True  # as plain text
        self._backend = backend
        # As transformers and sentence-transformers feed a model: a tokenizer says whether it does.
        self.segmented = "token_type_ids" in tokenizer.model_input_names
        self.pad = int(tokenizer.pad_token_id or 0)
        self._control = np.array(
            sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}), np.int32
        )
        self._leaks, self._words = False, None
        literals = [str(token) for token in tokenizer.all_special_tokens]
        self._leaks = any(
            np.isin(tokens, self._control).any()
            for tokens in self._encode([*literals, *(f"a {token} b" for token in literals)])
        )
        self._words = None if self._leaks else Words.of(backend)
        self._cache: dict[bytes, NDArray[np.int32]] = {}
        self._cached = 0

    @property
    def digest(self) -> str:
        """Digest of all that decides the token ids of a text, the library's version included."""
        control = self._control.tolist() if self._leaks else []
        return digest_json([metadata.version("tokenizers"), self._backend.to_str(), control])

    def tokens_anew(self, texts: Sequence[str], limit: int) -> list[NDArray[np.int32]]:
        """Token ids as `tokens` gives them, without keeping any."""
        return self._cut(list(texts), limit)

    def tokens(self, texts: Sequence[str], limit: int) -> list[NDArray[np.int32]]:
        """Token ids of texts, without special tokens; `limit + 1` of them where there are more."""
        keys = [_key(text, limit) for text in texts]
        found = [self._cache.get(key) for key in keys]
        missing = [place for place, tokens in enumerate(found) if tokens is None]
        made = self._cut([texts[place] for place in missing], limit)
        for place, tokens in zip(missing, made, strict=True):
            found[place] = tokens
            self._keep(keys[place], tokens)
        return [tokens for tokens in found if tokens is not None]

    def _keep(self, key: bytes, tokens: NDArray[np.int32]) -> None:
        if self._cached > CACHED_TOKENS:
            self._cache.clear()
            self._cached = 0
        self._cache[key] = tokens
        self._cached += len(tokens) + 16

    def _cut(self, texts: list[str], limit: int) -> list[NDArray[np.int32]]:
        """Tokenise as much of each text as can matter: whole words, until there are enough."""
        reach = CHARACTERS * (limit + 2)
        heads = [text if len(text) <= reach else _whole_words(text, reach) for text in texts]
        made = self._encode(heads)
        for place, (text, head) in enumerate(zip(texts, heads, strict=True)):
            # The last token of a head may be another one in the whole text.
            if len(head) < len(text) and len(made[place]) < limit + 2:
                made[place] = self._encode([text])[0]
        return [tokens[: limit + 1].copy() for tokens in made]

    def _encode(self, texts: list[str]) -> list[NDArray[np.int32]]:
        if self._words is None:
            return self._encode_whole(texts)
        made = self._words.ids(texts)
        rest = [place for place, ids in enumerate(made) if ids is None]
        whole = self._encode_whole([texts[place] for place in rest])
        for place, ids in zip(rest, whole, strict=True):
            made[place] = ids
        return [ids for ids in made if ids is not None]

    def _encode_whole(self, texts: list[str]) -> list[NDArray[np.int32]]:
        if not texts:
            return []
        try:
            encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # half a surrogate pair, as JSON may hold it
            texts = [text.encode("utf-8", "replace").decode() for text in texts]
            encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        made = [np.array(one.ids, np.int32) for one in encoded]
        if self._leaks:
            made = [tokens[~np.isin(tokens, self._control)] for tokens in made]
        return made


def _key(text: str, limit: int) -> bytes:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
    return digest.digest() + limit.to_bytes(4)


def _whole_words(text: str, reach: int) -> str:
    at = max(text.rfind(" ", 0, reach), text.rfind("\n", 0, reach))
    return text[:at] if at > 0 else text


def _template(backend: Any, where: object) -> Template | None:
    """Read off an encoded pair what the tokenizer puts around two texts."""
    pair = backend.encode("a", "b", add_special_tokens=True)
    sides = pair.sequence_ids
    first = [i for i, side in enumerate(sides) if side == 0]
    second = [i for i, side in enumerate(sides) if side == 1]
    if not first or not second:
        raise PipelineError(
            f"{where}: the tokenizer makes nothing of the letters a and b",
            "save the tokenizer that the model was trained with beside it",
        )
    if first[-1] > second[0]:
        return None
    ids, types = pair.ids, pair.type_ids
    spans = [
        slice(0, first[0]),
        slice(first[0], first[-1] + 1),
        slice(first[-1] + 1, second[0]),
        slice(second[0], second[-1] + 1),
        slice(second[-1] + 1, len(ids)),
    ]
    kinds = [types[span][0] if types[span] else 0 for span in spans]
    return Template(
        tuple(ids[spans[0]]), tuple(ids[spans[2]]), tuple(ids[spans[4]]),
        (kinds[0], kinds[1], kinds[2], kinds[3], kinds[4]),
    )  # fmt: skip


def _around(backend: Any) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts before and after a single text."""
    whole = backend.encode("a", add_special_tokens=True)
    inside = [place for place, side in enumerate(whole.sequence_ids) if side == 0]
    return whole.ids[: inside[0]], whole.ids[inside[-1] + 1 :]


def pair_batch(
    template: Template,
    query: NDArray[np.int32],
    passages: Sequence[NDArray[np.integer]],
    width: int,
    pad: int,
    device: str,
) -> Batch:
    """Put one query and several passages together as padded tensors of (passages, width)."""
    head = np.concatenate([template.before, query, template.between]).astype(np.int64)
    count, start = len(passages), len(head)
    ids = np.full((count, width), pad, np.int64)
    segments = np.zeros((count, width), np.int64)
    lengths = np.empty(count, np.int64)
    ids[:, :start] = head
    borders = np.cumsum([len(template.before), len(query), len(template.between)])
    for kind, left, right in zip(template.segments, [0, *borders[:2]], borders, strict=False):
        segments[:, left:right] = kind
    for row, passage in enumerate(passages):
        end = start + len(passage)
        ids[row, start:end] = passage
        segments[row, start:end] = template.segments[3]
        lengths[row] = end + len(template.after)
        ids[row, end : lengths[row]] = template.after
        segments[row, end : lengths[row]] = template.segments[4]
    return to_device(ids, segments, lengths, device)


def to_device(
    ids: NDArray[np.int64], segments: NDArray[np.int64], lengths: NDArray[np.int64], device: str
) -> Batch:
    """Move padded sequences to their device, with a mask where something is padded."""
    mask = None
    if int(lengths.min()) < ids.shape[1]:
        mask = torch.from_numpy(np.arange(ids.shape[1])[None] < lengths[:, None]).to(device)
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(segments).to(device), mask)
