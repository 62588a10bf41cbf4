"""The student: a BERT cross-encoder with one logit, cut out of a deeper encoder.

One head in training and in ranking: the plain head of `BertForSequenceClassification` (pooler,
tanh, linear), so that the saved folder scores the same in transformers, in sentence-transformers'
`CrossEncoder` and here. Dropout is off: targets are soft, each group is seen about once, so there
is nothing to memorise, and the function that is trained is the one that ranks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import store
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

RANKER = "BertForSequenceClassification"
PAD_TO = 8  # sequence lengths are rounded up to this, for few shapes and aligned rows


@dataclass(frozen=True)
class Limits:
    """Tokens kept of a query, and of the whole pair `[CLS] query [SEP] passage [SEP]`."""

    query: int = 32
    pair: int = 192


def initial_student(base: str | Path, layers: Sequence[int], seed: int) -> tuple[Any, Any]:
    """Build a student from chosen layers (counted from 0) of a BERT encoder, and its tokenizer.

    Embeddings, pooler and the chosen layers are copied; only the final linear layer is new, drawn
    from `seed`, unless the base is a student itself: then its own is kept, and training goes on.

    Raises:
        PipelineError: `base` is no BERT encoder or has no such layer.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoTokenizer,
        BertForSequenceClassification,
    )

    try:
        config = AutoConfig.from_pretrained(base)
        ranker = config.architectures == [RANKER] and config.num_labels == 1
        kind = BertForSequenceClassification if ranker else AutoModel
        deep = kind.from_pretrained(base, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{base}: cannot be loaded ({error})", "name a BERT encoder") from error
    if config.model_type != "bert":
        raise PipelineError(
            f"{base}: is of type {config.model_type}, not bert",
            "students are cut out of BERT encoders; others can be teachers",
        )
    depth = config.num_hidden_layers
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise PipelineError(
            f"{base}: has layers 0 to {depth - 1}, not {list(layers)}", "choose layers it has"
        )
    config.num_hidden_layers = len(layers)
    config.num_labels = 1
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.id2label, config.label2id = {0: "relevance"}, {"relevance": 0}
    torch.manual_seed(seed)
    student = BertForSequenceClassification(config)
    kept = {f"encoder.layer.{old}.": f"encoder.layer.{new}." for new, old in enumerate(layers)}
    weights = {}
    for name, tensor in (deep.bert if ranker else deep).state_dict().items():
        if not name.startswith("encoder.layer."):
            weights[name] = tensor
        for old, new in kept.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = tensor
    student.bert.load_state_dict(weights, strict=True)
    if ranker:
        student.classifier.load_state_dict(deep.classifier.state_dict())
    return student.eval(), tokenizer


def load_student(folder: Path) -> Any:
    """Load a saved student in float32, ready to score."""
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def save_student(
    student: Any, tokenizer: Any, folder: Path, settings: dict[str, Any], card: str
) -> None:
    """Write the student as fp16 safetensors with its tokenizer, `pipeline.json` and model card.

    Raises:
        PipelineError: a weight is not finite in fp16.
    """
    from safetensors.torch import save

    weights = {
        name: tensor.detach().half().contiguous() for name, tensor in student.state_dict().items()
    }
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise PipelineError(
            f"weights of {broken[0]} are not finite in fp16", "train with a lower learning rate"
        )
    config = student.config.to_dict() | {
        "dtype": "float16",
        "architectures": [RANKER],
    }
    # sentence-transformers squashes single logits unless the model says otherwise.
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    config.pop("_name_or_path", None)
    tokenizer_config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": bool(getattr(tokenizer, "do_lower_case", True)),
        "model_max_length": config["max_position_embeddings"],
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {
        "truncation": None,
        "padding": None,
    }
    with store.atomic_folder(folder) as new:
        store.write_bytes(new / "model.safetensors", save(weights, metadata={"format": "pt"}))
        store.write_json(new / "config.json", config)
        store.write_bytes(
            new / "tokenizer.json",
            json.dumps(backend, ensure_ascii=False, separators=(",", ":")).encode(),
        )
        store.write_json(new / "tokenizer_config.json", tokenizer_config)
        store.write_json(new / "pipeline.json", {"schema": 1} | settings)
        store.write_bytes(new / "README.md", card.encode())


def save_weights(path: Path, student: Any) -> None:
    """Write all weights as they are, for this program to go on with."""
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in student.state_dict().items()}
    store.write_bytes(path, save(tensors))


def load_weights(path: Path, student: Any) -> None:
    """Read what `save_weights` wrote."""
    from safetensors.torch import load_file

    student.load_state_dict(load_file(path), strict=True)


# ---------------------------------------------------------------- scoring pairs


def logits(student: Any, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
    """Compute what the student's own forward pass does, float32 logits of shape (pairs,), faster.

    The head looks at [CLS] alone, so the last layer is computed for that position alone: of three
    layers that saves more than a quarter of the work. The head itself is always float32.
    """
    bert = student.bert
    hidden = bert.embeddings(input_ids=ids, token_type_ids=segments)
    bias = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -1e4)[:, None, None]
    for layer in bert.encoder.layer[:-1]:
        hidden = _layer(layer, hidden, hidden, bias)
    first = _layer(bert.encoder.layer[-1], hidden[:, :1], hidden, bias)
    with torch.autocast(ids.device.type, enabled=False):
        return student.classifier(bert.pooler(first.float()))[:, 0]  # type: ignore[no-any-return]


def _layer(layer: Any, at: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
    """Run one BERT layer for the positions `at`, attending to all of `hidden`."""
    attention = layer.attention.self
    heads, width = attention.num_attention_heads, attention.attention_head_size

    def split(tensor: Tensor) -> Tensor:
        return tensor.view(len(tensor), -1, heads, width).transpose(1, 2)

    query, key, value = (
        split(attention.query(at)),
        split(attention.key(hidden)),
        split(attention.value(hidden)),
    )
    scores = query @ key.transpose(-1, -2) / width**0.5
    context = (scores + bias.to(scores.dtype)).softmax(dim=-1).to(value.dtype) @ value
    context = context.transpose(1, 2).reshape(len(at), -1, heads * width)
    attended = layer.attention.output(context, at)
    return layer.output(layer.intermediate(attended), attended)  # type: ignore[no-any-return]


def batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Cut pairs into batches of similar length, longest first, at most `budget` padded tokens."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = -(-int(lengths[order[start]]) // PAD_TO) * PAD_TO
        count = max(1, budget // longest)
        yield order[start : start + count]
        start += count


def pair_logits(
    student: Any,
    queries: Sequence[NDArray[Any]],
    passages: Sequence[NDArray[Any]],
    special: tuple[int, int, int],
    limits: Limits,
    budget: int,
) -> Tensor:
    """Score pairs of token ids; float32 logits in the order given, differentiable if grad is on.

    Args:
        special: ids of [CLS], [SEP] and [PAD].
        budget: padded tokens of one forward pass.
    """
    cls, sep, pad = special
    queries = [q[: limits.query] for q in queries]
    passages = [p[: limits.pair - 3 - len(q)] for q, p in zip(queries, passages, strict=True)]
    lengths = np.array([len(q) + len(p) + 3 for q, p in zip(queries, passages, strict=True)])
    parts, order = [], []
    for places in batches(lengths, budget):
        width = -(-int(lengths[places].max()) // PAD_TO) * PAD_TO
        ids = np.full((len(places), width), pad, np.int64)
        segments = np.zeros_like(ids)
        mask = np.zeros_like(ids)
        for row, place in enumerate(places.tolist()):
            query, passage = queries[place], passages[place]
            start, end = len(query) + 2, int(lengths[place])
            ids[row, 0], ids[row, start - 1], ids[row, end - 1] = cls, sep, sep
            ids[row, 1 : start - 1], ids[row, start : end - 1] = query, passage
            segments[row, start:end] = 1
            mask[row, :end] = 1
        device = next(student.parameters()).device
        tensors = [torch.from_numpy(array).to(device) for array in (ids, mask, segments)]
        parts.append(logits(student, *tensors))
        order.append(places)
    back = np.empty(len(lengths), np.int64)
    back[np.concatenate(order)] = np.arange(len(lengths))
    return torch.cat(parts)[torch.from_numpy(back).to(parts[0].device)]


def special_ids(tokenizer: Any) -> tuple[int, int, int]:
    """Ids of [CLS], [SEP] and [PAD]."""
    return tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
