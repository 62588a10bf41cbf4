"""Loading a model and its tokenizer with transformers, from a folder that may be a stranger's."""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.models.engine import ROUND_TO
from pipeline.models.folder import natural, reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Kinds whose positions start behind the padding token's number.
OFFSET_POSITIONS = frozenset(
    {
        "camembert",
        "mpnet",
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "longformer",
        "data2vec-text",
    }
)


_LAYER = re.compile(r"\blayers?\.[0-9]+\.")


def load_weights(folder: Path, auto_class: str, heads: bool) -> Any:
    """Load a model in float32 and evaluation mode.

    Args:
        auto_class: a class of transformers, `AutoModel` or `AutoModelForSequenceClassification`.
        heads: weights that the class needs and the folder lacks are an error, whatever they are.

    Raises:
        PipelineError: it cannot be loaded, lacks weights, or holds numbers that are not finite.
    """
    import transformers

    model, missing, unexpected = from_folder(folder, getattr(transformers, auto_class))
    if heads and missing:
        raise PipelineError(
            f"{folder}: no weights for {missing[0]}, so this is no trained reranker",
            "name a cross-encoder, or a folder of sentence-transformers with a modules.json",
        )
    if dropped := [name for name in unexpected if _LAYER.search(name)]:
        raise PipelineError(
            f"{folder}: weights for {dropped[0]}, a layer that its config.json does not have",
            "fetch or save the model again",
        )
    for name, weights in model.state_dict().items():
        if weights.is_floating_point() and not bool(weights.isfinite().all()):
            raise PipelineError(
                f"{folder}: the weights {name} are not finite", "fetch or save the model again"
            )
    return model.eval()


def from_folder(folder: Path, auto: Any, **more: Any) -> tuple[Any, list[str], list[str]]:
    """Load a model in float32: it, names of weights it lacks, names of weights it has no use for.

    Only a head and a pooler may be missing, or of another size where `more` lets them; they are
    drawn anew.

    Args:
        auto: the class of transformers.
        more: further settings of its `from_pretrained`.

    Raises:
        PipelineError: it cannot be loaded, or lacks others.
    """
    import torch

    settings: dict[str, Any] = {
        "local_files_only": True, "trust_remote_code": False, "use_safetensors": True,
        "dtype": torch.float32, "output_loading_info": True, **more,
    }  # fmt: skip
    with quiet(), reading(folder):
        # Never what the folder says: a config may name an attention kernel to fetch and run.
        try:
            model, info = auto.from_pretrained(folder, attn_implementation="sdpa", **settings)
        except (ValueError, ImportError) as error:
            if "attention" not in str(error):
                raise
            model, info = auto.from_pretrained(folder, attn_implementation="eager", **settings)
    # A head of another size may be asked for, whose weights then are as good as missing.
    resized = {name for name, *_ in info["mismatched_keys"]}
    missing = sorted({*info["missing_keys"], *resized})
    headless = not hasattr(model, model.base_model_prefix)
    for name in missing:
        inside = headless or name.startswith(f"{model.base_model_prefix}.")
        if inside and "pooler." not in name:
            problem = "weights of another size" if name in resized else "no weights"
            raise PipelineError(
                f"{folder}: {problem} for {name}", "the model is not whole: fetch or save it again"
            )
    return model, missing, sorted(info["unexpected_keys"])


def load_tokenizer(folder: Path, vocabulary: int) -> Any:
    """Load a tokenizer as transformers does; it must be a fast one.

    Args:
        vocabulary: the size of the model's, which the tokenizer's must fit.

    Raises:
        PipelineError: it cannot be loaded, or belongs to another model.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise PipelineError(
            f"{folder}: no tokenizer in this folder", "save the tokenizer beside the model"
        )
    with quiet(), reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        numbers = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values()
        size = max(numbers, default=0) + 1
    if not vocabulary // 2 <= size <= vocabulary:
        raise PipelineError(
            f"{folder}: the tokenizer knows {size:,} tokens and the model {vocabulary:,}",
            "save the tokenizer that the model was trained with beside it",
        )
    return tokenizer


VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "spm.model", "sentencepiece.model",
)  # fmt: skip


def takes_segments(model: Any) -> bool:
    """Whether a model's forward pass takes segment ids and makes something of them."""
    accepted = inspect.signature(model.forward).parameters
    return "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1


def longest_input(config: Mapping[str, Any], tokenizer: Any) -> int:
    """Tokens that a model can take, as far as its folder says; 512 where it does not.

    Of positions it takes a multiple of `ROUND_TO`, as sequences are padded to one.
    """
    limits = [natural(getattr(tokenizer, "model_max_length", None))]
    if count := positions(config):
        limits.append(count // ROUND_TO * ROUND_TO or count)
    return min((limit for limit in limits if limit), default=512)


def positions(config: Mapping[str, Any]) -> int | None:
    """Positions that a model has, for tokens and padding; None where its folder says nothing."""
    count = natural(config.get("max_position_embeddings")) or 0
    if config.get("model_type") in OFFSET_POSITIONS:
        count -= (natural(config.get("pad_token_id")) or 0) + 1
    return count if count > 0 else None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and reports while it loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
