"""A masked language model: words that could stand in the place of another."""

from __future__ import annotations

import re
from itertools import batched
from typing import TYPE_CHECKING

import torch

from pipeline.errors import PipelineError
from pipeline.models import loading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOKENS = 2048  # of a forward pass, each with a logit for every token of the vocabulary
CONTINUES = "##"  # what a word piece begins with that begins no word
WORD = re.compile(r"\w+")


class MaskedModel:
    """A BERT with its masked-language-model head, in float32."""

    def __init__(self, folder: Path) -> None:
        """Load a model, onto a GPU if there is one.

        Raises:
            PipelineError: it cannot be loaded, has no such head, or its tokens are no word pieces.
        """
        from transformers import AutoModelForMaskedLM

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, missing, _ = loading.from_folder(folder, AutoModelForMaskedLM)
        # What an encoder on its own lacks; a decoder is the embeddings again, and rarely saved.
        if lacking := [name for name in missing if "decoder" not in name]:
            raise PipelineError(
                f"{folder}: no weights for {lacking[0]}, so this is no masked language model",
                "name a model that was saved with its head, as BERT was published",
            )
        self._model = model.eval().to(device)
        self._tokenizer = loading.load_tokenizer(folder, model.config.vocab_size)
        pieces = type(self._tokenizer.backend_tokenizer.model).__name__
        if pieces != "WordPiece" or self._tokenizer.mask_token_id is None:
            raise PipelineError(
                f"{folder}: its tokens are no word pieces, or none of them is a mask ({pieces})",
                "choose a model of BERT's kind",
            )
        self._longest = loading.longest_input(model.config.to_dict(), self._tokenizer)
        self._device, self._folder = device, folder
        self._special = frozenset(self._tokenizer.all_special_ids)
        words = [
            place
            for token, place in self._tokenizer.get_vocab().items()
            if place not in self._special and not token.startswith(CONTINUES) and token.isalnum()
        ]
        self._no_word = torch.ones(model.config.vocab_size, dtype=torch.bool)
        self._no_word[words] = False

    def replacements(self, pieces: Sequence[str], count: int) -> list[list[str]]:
        """Give the most probable words for the place of each piece of a text.

        Args:
            pieces: words, and what stands between them; joined they are the text.
            count: words for each place, other than the one that stands there.

        Returns:
            For each piece, probable words first; none for what is no word, for a word of several
            tokens (the model fills single ones) or that it does not know, and for what is behind
            the longest input.
        """
        ids = [self._tokenizer.cls_token_id]
        places: dict[int, int] = {}  # piece -> where its token stands
        for number, piece in enumerate(pieces):
            tokens = self._tokenizer.encode(piece, add_special_tokens=False)
            known = len(tokens) == 1 and tokens[0] not in self._special
            if known and WORD.fullmatch(piece) and len(ids) < self._longest - 1:
                places[number] = len(ids)
            ids += tokens
        ids = [*ids[: self._longest - 1], self._tokenizer.sep_token_id]
        found: list[list[str]] = [[] for _ in pieces]
        for some in batched(places, max(1, TOKENS // len(ids))):
            best = self._best(ids, [places[number] for number in some], count)
            for number, words in zip(some, best, strict=True):
                found[number] = words
        return found

    @torch.inference_mode()
    def _best(self, ids: Sequence[int], places: Sequence[int], count: int) -> list[list[str]]:
        """Mask one place of the text after the other; the best words for each."""
        rows, columns = torch.arange(len(places)), torch.tensor(places)
        masked = torch.tensor(ids).repeat(len(places), 1)
        original = masked[rows, columns]
        masked[rows, columns] = self._tokenizer.mask_token_id
        logits = self._model(input_ids=masked.to(self._device)).logits.float().cpu()[rows, columns]
        if not bool(logits.isfinite().all()):
            raise PipelineError(
                f"{self._folder}: its numbers are not finite", "fetch or save the model again"
            )
        logits[:, self._no_word] = -torch.inf
        logits[rows, original] = -torch.inf
        best = logits.topk(min(count, logits.shape[1]))
        return [
            self._tokenizer.convert_ids_to_tokens(tokens[scores > -torch.inf].tolist())
            for tokens, scores in zip(best.indices, best.values, strict=True)
        ]
