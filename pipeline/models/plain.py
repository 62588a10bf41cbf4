"""BERT with a classifier, by torch alone, for folders that hold exactly that: our students.

What transformers imports before it builds any model takes two seconds, a third of a short command.
Modules have the names that they have there, so whatever is read off a model works with both. A
folder that differs in anything is left to transformers, and so are its error messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pipeline.errors import Interrupted
from pipeline.models.folder import read_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
# Settings that change what is computed, where they are not as here.
USUAL = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_act": "gelu",
    "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
    "is_encoder_decoder": False, "chunk_size_feed_forward": 0, "pruned_heads": {},
    "output_attentions": False, "output_hidden_states": False, "return_dict": True,
}  # fmt: skip
NEEDED = ("model_type", "architectures", "hidden_act", "layer_norm_eps", *SIZES)
# Settings that change nothing here: of training, of text generation, and for people.
IDLE = frozenset(
    {
        "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "problem_type",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
        "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache",
        "tie_word_embeddings", "gradient_checkpointing", "sentence_transformers", "_name_or_path",
        "num_labels", "sbert_ce_default_activation_function",
    }
)  # fmt: skip
META = "meta"  # where weights are before they are read: nowhere


def classifier(folder: Path) -> Classifier | None:
    """Load a checked folder in float32 and evaluation mode; None if it is another kind of model.

    Raises:
        InputError: its `config.json` is no JSON object.
    """
    table = read_table(folder / "config.json")
    config = _config(table)
    if config is None or (folder / "model.safetensors.index.json").exists():
        return None
    try:
        from safetensors.torch import load_file

        weights = load_file(folder / "model.safetensors")
        weights.pop("bert.embeddings.position_ids", None)  # 0, 1, 2, ..., of older versions
        model = Classifier(config)
        if not all(each.is_floating_point() for each in weights.values()):
            return None
        exact = {name: each.float() for name, each in weights.items()}
        model.load_state_dict(exact, assign=True)  # strictly: all names and sizes, and no more
    except Interrupted:
        raise
    except Exception:  # whatever is wrong, transformers says it
        return None
    if not all(bool(each.isfinite().all()) for each in exact.values()):
        return None
    return model.eval()


class Config(NamedTuple):
    """What decides the model's form; names are those of `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    num_labels: int
    model_type: str

    def to_dict(self) -> dict[str, Any]:
        """Give the settings by their names, as transformers' configs do."""
        return self._asdict()


def _config(table: Mapping[str, Any]) -> Config | None:
    """Read the form off a `config.json`; None if it says anything else."""
    known = {*USUAL, *IDLE, *NEEDED}
    if not known.issuperset(table) or not set(NEEDED).issubset(table):
        return None
    if any(table[name] != usual for name, usual in USUAL.items() if name in table):
        return None
    sizes: dict[str, Any] = {name: table[name] for name in SIZES}
    if not all(type(size) is int and 0 < size < 1 << 24 for size in sizes.values()):
        return None
    epsilon, labels = table["layer_norm_eps"], table.get("id2label", {"0": "", "1": ""})
    if type(epsilon) is not float or not 0 < epsilon < 1 or not isinstance(labels, dict):
        return None
    if table.get("num_labels", len(labels)) != len(labels):
        return None
    if table["hidden_size"] % table["num_attention_heads"]:
        return None
    return Config(**sizes, layer_norm_eps=epsilon, num_labels=len(labels), model_type="bert")


class Classifier(nn.Module):
    """What transformers calls BertForSequenceClassification, for scoring alone."""

    base_model_prefix = "bert"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.bert = _Bert(config)
        self.classifier = _Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> Output:
        """Logits of shape (sequences, labels), of three tensors of (sequences, positions)."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        return Output(hidden, self.classifier(self.bert.pooler(hidden)))


@dataclass
class Output:
    """What a forward pass returns."""

    last_hidden_state: torch.Tensor
    logits: torch.Tensor | None = None


class _Linear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, device=META)

    def reset_parameters(self) -> None:
        """Draw nothing, which even without memory takes a second of imports."""


class _Embedding(nn.Embedding):
    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width, device=META)

    def reset_parameters(self) -> None:
        """Draw nothing."""


class _Bert(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.encoder = _Encoder(config)
        self.pooler = _Pooler(config)

    def forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor | None
    ) -> Output:
        if segments is None:
            segments = torch.zeros_like(input_ids)
        hidden = self.embeddings(input_ids, segments)
        return Output(self.encoder(hidden, mask.bool()[:, None, None, :]))


class _Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            hidden = layer(hidden, mask)
        return hidden


class BertEmbeddings(nn.Module):
    """Sum of the embeddings of words, positions and segments, normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = _Embedding(config.vocab_size, width)
        self.position_embeddings = _Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps, device=META)

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of shape (sequences, positions, hidden)."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        words = self.word_embeddings(input_ids)
        total = words + self.token_type_embeddings(token_type_ids)
        return self.LayerNorm(total + self.position_embeddings(position_ids))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Added(config.intermediate_size, config)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        attended = self.attention(hidden, mask)
        return self.output(self.intermediate(attended), attended)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Added(config.hidden_size, config)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.output(self.self(hidden, mask), hidden)  # type: ignore[no-any-return]


class _SelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = width // config.num_attention_heads
        self.query, self.key, self.value = (_Linear(width, width) for _ in range(3))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shape = (*hidden.shape[:2], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            each(hidden).view(shape).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        context = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return context.transpose(1, 2).reshape(hidden.shape)


class _Intermediate(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = _Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(hidden))  # type: ignore[no-any-return]


class _Added(nn.Module):
    """A linear layer, and the normalised sum of it and of what came before."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.dense = _Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, device=META)

    def forward(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(hidden) + before)  # type: ignore[no-any-return]


class _Pooler(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = _Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Take (sequences, positions, hidden), give (sequences, hidden) of the first."""
        return torch.tanh(self.dense(hidden[:, 0]))
