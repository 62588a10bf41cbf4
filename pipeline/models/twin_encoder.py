"""Bi-encoders of sentence-transformers: one tower for both sides, scored by the dot product.

Reads folders that consist of Transformer, Pooling by mean or first token, and perhaps Normalize.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import InputError, PipelineError, shown
from pipeline.models import bert
from pipeline.models.engine import resolve
from pipeline.models.folder import check, digest, natural, read_table, read_value, reading
from pipeline.models.loading import (
    load_tokenizer,
    load_weights,
    longest_input,
    positions,
    takes_segments,
)
from pipeline.models.pairs import Tokenizer, to_device
from pipeline.models.towers import Towers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.models.engine import Batch
    from pipeline.models.scorer import Limits, Wishes

AGREEMENT = 1e-4  # of the largest activation, between two float32 passes of one model
TEXT_SETTINGS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
MODULES = ("Transformer", "Pooling", "Normalize")
QUERY_NAMES = ("query",)
PASSAGE_NAMES = ("document", "passage", "corpus")  # as sentence-transformers looks for them


class TwinEncoder(Towers):
    """A loaded bi-encoder.

    Args:
        folder: of sentence-transformers, with its `modules.json`.
        limits: `max_tokens` and `max_query_tokens` cap each text; without them the folder does.
        begun: numeric signature of a stage that goes on.

    Raises:
        PipelineError: the folder holds no such model.
    """

    searchable = True

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
        text_settings = _text_settings(inner)
        self._lower = text_settings.get("do_lower_case") is True
        model = load_weights(inner, "AutoModel", heads=False)
        with reading(folder):
            saved = load_tokenizer(inner, model.config.vocab_size)
            self._tokenizer = Tokenizer(saved, folder)
            longest = longest_input(model.config.to_dict(), saved)
            self.positions = positions(model.config.to_dict())
        most = min(longest, natural(text_settings.get("max_seq_length")) or longest)
        self._query_limit = self._limit(
            limits.max_query_tokens or limits.max_tokens or most, longest
        )
        self._passage_limit = self._limit(limits.max_tokens or most, longest)
        self._segmented = self._tokenizer.segmented and takes_segments(model)
        self.size = int(model.config.hidden_size)
        self.pad = self._tokenizer.pad
        self._model = model
        self._short = self._shortened()
        if self._short is not None:
            self._forward_kind = "first token" if self._by_first_token else "all tokens"
            model.encoder = None  # its weights were prepared anew
        for weights in model.parameters():  # not the buffers: rotary angles want float32
            weights.data = weights.data.to(self.engine.dtype)
        model.to(self.engine.device)
        self._begin()

    def _limit(self, wanted: int, longest: int) -> int:
        around = sum(map(len, self._tokenizer.around))
        if not around < wanted <= longest:
            raise PipelineError(
                f"{self.folder}: at most {wanted} tokens of a text cannot be",
                f"this model takes {longest} tokens, {around} of them its own",
            )
        return wanted - around

    @property
    def limits(self) -> Mapping[str, int]:
        """Tokens of a query and of a passage."""
        around = sum(map(len, self._tokenizer.around))
        return {
            "max_query_tokens": self._query_limit + around,
            "max_tokens": self._passage_limit + around,
        }

    # ------------------------------------------------------------ the model

    def _made_by(self) -> list[Any]:
        return [self.digest, self.signature, [self._passage_limit, self._prompts[1]]]

    def _ids(
        self, texts: Sequence[str], queries: bool
    ) -> tuple[list[NDArray[Any]], NDArray[np.uint8]]:
        limit = self._query_limit if queries else self._passage_limit
        texts = [self._prompts[0 if queries else 1] + text for text in texts]
        if self._lower:
            texts = [text.lower() for text in texts]
        before, after = self._tokenizer.around
        tokens = self._tokenizer.tokens(texts, limit)
        cut = np.array([len(one) > limit for one in tokens], np.uint8)
        return [np.concatenate([before, one[:limit], after]) for one in tokens], cut

    def _forward(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], queries: bool
    ) -> NDArray[np.float32]:
        del queries  # both towers are one
        batch = to_device(ids, np.zeros_like(ids), lengths, self.engine.device)
        assert batch.mask is not None  # noqa: S101 - every row is padded
        with torch.inference_mode():
            own = self._hidden if self._short is None else self._short.hidden
            hidden = own(batch).float()
            if self._by_first_token:
                pooled = hidden[:, 0]
            else:
                weight = batch.mask[:, :, None].float()
                pooled = (hidden * weight).sum(1) / weight.sum(1)
            if self._normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            return pooled.cpu().numpy()

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden state by the model's own forward pass."""
        segments = {"token_type_ids": batch.segments} if self._segmented else {}
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
        output = self._model(input_ids=batch.ids, attention_mask=mask, **segments)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _shortened(self) -> bert.FirstToken | None:
        """Prepare the faster pass, if in float32 it says what the model's own says."""
        if self._model.config.model_type not in bert.KINDS:
            return None
        alone = self._by_first_token
        size = self._model.config.vocab_size
        ids = np.random.default_rng(0).integers(size // 2, size, (3, 16))
        lengths = np.array([15, 9, 2])
        ids[np.arange(16) >= lengths[:, None]] = self.pad
        batch = to_device(ids, np.zeros_like(ids), lengths, "cpu")
        exact = replace(self.engine, device="cpu", precision="fp32")
        with torch.inference_mode():
            try:
                short = bert.FirstToken(self._model, exact, alone=alone).hidden(batch)
                own = self._hidden(batch)
                whole = torch.from_numpy(np.arange(16) < lengths[:, None])
                if alone:
                    own, whole = own[:, :1], whole[:, :1]
                if not torch.allclose(short[whole], own[whole], rtol=AGREEMENT, atol=AGREEMENT):
                    return None
                return bert.FirstToken(self._model, self.engine, alone=alone)
            except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
                return None  # a version of transformers that builds this model otherwise


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


def _text_settings(folder: Path) -> dict[str, Any]:
    """How texts are cut; older versions named the file after the kind of model."""
    for kind in TEXT_SETTINGS:
        if (path := folder / f"sentence_{kind}_config.json").is_file():
            return read_table(path)
    return {}


def _prompt(about: Mapping[str, Any], names: Sequence[str]) -> str:
    prompts = about.get("prompts")
    if not isinstance(prompts, dict):
        return ""
    for name in (*names, about.get("default_prompt_name")):
        prompt = prompts.get(name)
        if isinstance(prompt, str):
            return prompt  # though it be empty
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
