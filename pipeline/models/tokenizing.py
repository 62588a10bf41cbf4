"""A model's tokenizer by itself: its digest, and the token ids it makes of passages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.models.folder import check, reading
from pipeline.models.loading import load_tokenizer, quiet
from pipeline.models.pairs import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class Vocabulary:
    """The tokenizer of a model's folder; its weights are not loaded.

    Raises:
        PipelineError: the folder holds no such model.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        check(folder)
        with quiet(), reading(folder):
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self.size = int(config.vocab_size)
            self._tokenizer = Tokenizer(load_tokenizer(folder, self.size), folder)

    @property
    def digest(self) -> str:
        """Digest of all that decides token ids: two models may share it."""
        return self._tokenizer.digest

    def tokens(self, texts: Sequence[str], limit: int) -> list[NDArray[np.int32]]:
        """Token ids without special ones; `limit + 1` of them where there are more."""
        return self._tokenizer.tokens_anew(texts, limit)
