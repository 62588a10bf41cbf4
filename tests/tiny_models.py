"""Model folders small enough to make in a test: random weights, every letter a token."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

WORDS = ("the", "read", "csv", "file", "header", "row", "bread", "sun", "##s", "##ing")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = (*string.ascii_lowercase, *string.digits, *"[].,!?")
VOCABULARY = (*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS)
COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 64, "pad_token_id": 0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
}  # fmt: skip
KINDS = ("bert", "electra", "modernbert", "distilbert")


def make(
    folder: Path, kind: str = "bert", labels: int = 1, positions: int = 512, **others: int
) -> Path:
    """Save a classifier of random weights with its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(sum(map(ord, kind)) + labels)
    settings = {**COMMON, "num_labels": labels, "max_position_embeddings": positions, **others}
    if kind == "electra":
        settings |= {"embedding_size": 16}
    if kind == "modernbert":
        settings |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        settings |= {"classifier_pooling": "mean", "global_attn_every_n_layers": 2}
    if kind == "distilbert":
        settings = {
            "vocab_size": len(VOCABULARY), "dim": 32, "n_layers": 2, "n_heads": 4,
            "hidden_dim": 64, "num_labels": labels, "initializer_range": 0.3,
            "max_position_embeddings": positions,
        }  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "bias" in name:  # fresh biases are zero, and would hide a forgotten one
                weights.normal_(0, 0.1)
            elif "classifier" in name or "out_proj" in name:
                weights.normal_(0, 0.5)
    model.save_pretrained(folder)
    save_tokenizer(folder, positions, segments=kind != "modernbert")
    return folder


def make_twin(folder: Path, pooling: str = "mean", normalize: bool = True) -> Path:
    """Save a bi-encoder as sentence-transformers lays it out."""
    import torch
    import transformers

    torch.manual_seed(5)
    config = transformers.BertConfig(**COMMON, max_position_embeddings=128)
    transformers.BertModel(config).eval().save_pretrained(folder)
    save_tokenizer(folder, 128)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (folder / "1_Pooling").mkdir()
    write(folder / "modules.json", modules)
    write(
        folder / "1_Pooling/config.json",
        {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"},
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    return folder


def save_tokenizer(folder: Path, longest: int, segments: bool = True) -> None:
    """Save BERT's tokenizer over the tiny vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token=SPECIAL[1])
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    second = 1 if segments else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair=f"[CLS]:0 $A:0 [SEP]:0 $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer" if segments else "PreTrainedTokenizerFast",
            "model_max_length": longest,
            "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]",
            "unk_token": "[UNK]", "mask_token": "[MASK]",
        },
    )  # fmt: skip


def write(path: Path, value: object) -> None:
    """Write JSON."""
    path.write_text(json.dumps(value))


def change(path: Path, **values: object) -> None:
    """Change keys of a JSON object; None deletes one."""
    table = json.loads(path.read_text()) | values
    write(path, {key: value for key, value in table.items() if value is not None})


def without(folder: Path, copy: Path, lost: str) -> Path:
    """A copy of a model that lacks the weights whose names begin so."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    kept = {name: t for name, t in weights.items() if not name.startswith(lost)}
    assert len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    return copy
