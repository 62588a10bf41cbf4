"""The student: a BERT cross-encoder with one logit, cut out of a deeper encoder.

One head in training and in ranking: the plain head of `BertForSequenceClassification` (pooler,
tanh, linear), so that the saved folder scores the same in transformers, in sentence-transformers'
`CrossEncoder` and here. Dropout is off: targets are soft, each group is seen about once, so there
is nothing to memorise, and the function that is trained is the one that ranks.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pipeline import store
from pipeline.distill.forward import PAD_TO
from pipeline.errors import PipelineError, shown
from pipeline.models import loading
from pipeline.models.folder import check, reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.distill.settings import Size

RANKER = "BertForSequenceClassification"
SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
PROBES = (
    "Paris is BIG",
    "caf\u00e9 na\u00efve \u00c5",
    "\u4e2d\u6587 \u6587",
    "re-read it, o'clock?",
)


class Base(NamedTuple):
    """A BERT encoder on the disk: its config, its weights, the head of a ranker, its tokenizer."""

    config: Any
    encoder: Any
    classifier: Any  # None unless it is a ranker with one logit
    tokenizer: Any


def load_base(folder: str | Path) -> Base:
    """Load a BERT encoder in float32 and evaluation mode.

    Raises:
        PipelineError: it cannot be loaded, is no BERT, or has a tokenizer of another kind.
    """
    from transformers import BertConfig

    folder = Path(folder)
    about = check(folder)
    if about.get("model_type") != "bert":
        raise PipelineError(
            f"{folder}: is of type {shown(about.get('model_type'))}, not bert",
            "students are cut out of BERT encoders; others can be teachers by their scores",
        )
    with reading(folder):
        config = BertConfig.from_dict(about)
    ranker = config.architectures == [RANKER] and config.num_labels == 1
    kind = "AutoModelForSequenceClassification" if ranker else "AutoModel"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what a base may lack, its pooler, is the same each time
        model = loading.load_weights(folder, kind, heads=ranker)
    tokenizer = loading.load_tokenizer(folder, model.config.vocab_size)
    _need_wordpiece(folder, tokenizer)
    encoder = model.bert if hasattr(model, "bert") else model
    return Base(deepcopy(model.config), encoder, model.classifier if ranker else None, tokenizer)


def _need_wordpiece(folder: Path, tokenizer: Any) -> None:
    """Refuse, before a training, a tokenizer that a student's folder would not give back.

    Raises:
        PipelineError: it is none of BERT's, or cuts texts otherwise once it was saved.
    """
    from transformers import AutoTokenizer

    pieces = type(tokenizer.backend_tokenizer.model).__name__
    named = [getattr(tokenizer, f"{name}_token", None) for name in ("cls", "sep", "pad", "unk")]
    saved = None
    if pieces == "WordPiece" and named == [*SPECIAL]:
        with TemporaryDirectory(prefix="tokenizer-") as place, loading.quiet():
            write_tokenizer(tokenizer, Path(place), 512)
            saved = AutoTokenizer.from_pretrained(place, local_files_only=True)
    if saved is None or any(saved.encode(text) != tokenizer.encode(text) for text in PROBES):
        raise PipelineError(
            f"{folder}: the tokenizer is not BERT's ({pieces}, {' '.join(map(str, named))})",
            "choose a base with BERT's own; others can be teachers by their scores",
        )


def need_positions(base: str | Path, config: Any, tokens: int, *, pairs: bool = True) -> None:
    """Refuse sequences that a BERT has no positions for, and pairs where it has one segment.

    Raises:
        PipelineError: `tokens`, padded as in training, are more than it has; or no second segment.
    """
    if pairs and config.type_vocab_size < 2:
        raise PipelineError(
            f"{base}: has one segment, and pairs are read in two", "choose another BERT"
        )
    if -(-tokens // PAD_TO) * PAD_TO > config.max_position_embeddings:
        raise PipelineError(
            f"{base}: has positions for {config.max_position_embeddings} tokens, not {tokens}",
            "lower max_tokens",
        )


def load_ranker(folder: str | Path) -> tuple[Any, Any]:
    """Load a BERT cross-encoder with one logit whole, and its tokenizer.

    Raises:
        PipelineError: it is something else.
    """
    config, _, classifier, _ = load_base(folder)
    if classifier is None:
        raise PipelineError(f"{folder}: is no ranker with one logit", "name a student")
    return initial_student(folder, range(config.num_hidden_layers), seed=0)


def initial_student(
    base: str | Path,
    layers: Sequence[int],
    seed: int,
    size: Size | None = None,
    *,
    projected: bool = False,
) -> tuple[Any, Any]:
    """Build a student from chosen layers (counted from 0) of a BERT encoder, and its tokenizer.

    Embeddings, pooler and the chosen layers are copied; only the final linear layer is new, drawn
    from `seed`, unless the base is a student itself: then its own is kept, and training goes on.
    With a `size` all weights are new, and nothing but the tokenizer is the base's, unless its
    embeddings are `projected` onto as many of their principal directions as the student is wide.

    Raises:
        PipelineError: `base` is no BERT encoder, has no such layer, or is too narrow to project.
    """
    from transformers import BertForSequenceClassification

    config, encoder, classifier, tokenizer = load_base(base)
    depth = config.num_hidden_layers
    if size is not None:
        config.num_hidden_layers, config.hidden_size = size.layers, size.hidden
        config.num_attention_heads, config.intermediate_size = size.heads, size.intermediate
    elif not layers or any(not 0 <= layer < depth for layer in layers):
        raise PipelineError(
            f"{base}: has layers 0 to {depth - 1}, not {list(layers)}", "choose layers it has"
        )
    else:
        config.num_hidden_layers = len(layers)
    config.num_labels = 1
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.id2label, config.label2id = {0: "relevance"}, {"relevance": 0}
    torch.manual_seed(seed)
    student = BertForSequenceClassification(config)
    if size is not None:
        if projected:
            if encoder.config.hidden_size < size.hidden:
                raise PipelineError(
                    f"{base}: embeddings of {encoder.config.hidden_size} numbers cannot fill "
                    f"{size.hidden}",
                    "choose a narrower size, or leave projected_embeddings out",
                )
            _project_embeddings(encoder.embeddings, student.bert.embeddings, size.hidden)
        return student.eval(), tokenizer
    kept = {f"encoder.layer.{old}.": f"encoder.layer.{new}." for new, old in enumerate(layers)}
    weights = {}
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("encoder.layer."):
            weights[name] = tensor
        for old, new in kept.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = tensor
    student.bert.load_state_dict(weights, strict=True)
    if classifier is not None:
        student.classifier.load_state_dict(classifier.state_dict())
    return student.eval(), tokenizer


@torch.no_grad()
def _project_embeddings(source: Any, target: Any, width: int) -> None:
    """Fill narrow embeddings with the principal components of wide ones.

    The base scales its sums by the gains of a normalisation, so that is how wide they count. What
    is lost is the variance across words in the directions left out; words alone choose these.
    """
    gains = source.LayerNorm.weight.double()
    words = source.word_embeddings.weight.double() * gains
    centre = words.mean(dim=0)
    _, axes = torch.linalg.eigh((words - centre).T @ (words - centre))  # ascending
    axes = axes[:, -width:].flip(1)
    # An axis has no sign of its own: let its largest number be positive on every machine.
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    target.word_embeddings.weight.copy_((words - centre) @ axes)
    for name in ("position_embeddings", "token_type_embeddings"):
        wide = getattr(source, name).weight.double() * gains
        getattr(target, name).weight.copy_(wide @ axes)


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
    weights = fp16_weights(student)
    config = student.config.to_dict() | {
        "dtype": "float16",
        "architectures": [RANKER],
    }
    # sentence-transformers squashes single logits unless the model says otherwise.
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    config.pop("_name_or_path", None)
    with store.atomic_folder(folder) as new:
        store.write_bytes(new / "model.safetensors", weights)
        store.write_json(new / "config.json", config)
        write_tokenizer(tokenizer, new, config["max_position_embeddings"])
        store.write_json(new / "pipeline.json", {"schema": 1} | settings)
        store.write_bytes(new / "README.md", card.encode())


def write_tokenizer(tokenizer: Any, folder: Path, longest: int) -> None:
    """Write BERT's tokenizer as transformers reads it, into a folder that is being made."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {
        "truncation": None,
        "padding": None,
    }
    # transformers builds the normaliser from these, whatever tokenizer.json says of it.
    how = backend.get("normalizer") or {}
    tokenizer_config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": how.get("lowercase", False),
        "strip_accents": how.get("strip_accents"),
        "tokenize_chinese_chars": how.get("handle_chinese_chars", True),
        "model_max_length": longest,
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    store.write_bytes(
        folder / "tokenizer.json",
        json.dumps(backend, ensure_ascii=False, separators=(",", ":")).encode(),
    )
    store.write_json(folder / "tokenizer_config.json", tokenizer_config)


def fp16_weights(module: torch.nn.Module) -> bytes:
    """Weights as half precision safetensors.

    Raises:
        PipelineError: one is not finite in fp16.
    """
    from safetensors.torch import save

    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in module.state_dict().items()
    }
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise PipelineError(
            f"weights of {broken[0]} are not finite in fp16", "train with a lower learning rate"
        )
    return save(weights, metadata={"format": "pt"})


def save_weights(path: Path, student: Any) -> str:
    """Write all weights as they are, for this program to go on with; the digest of the file."""
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in student.state_dict().items()}
    data = save(tensors)
    store.write_bytes(path, data)
    return store.digest_bytes(data)


def load_weights(path: Path, student: Any) -> None:
    """Read what `save_weights` wrote."""
    from safetensors.torch import load_file

    student.load_state_dict(load_file(path), strict=True)
