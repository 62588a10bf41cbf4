"""A BERT encoder small enough to train in a second, and a collection to train it on."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainings import WORDS

TOPICS = 24


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 4-layer random BERT encoder and its word-piece tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: place for place, word in enumerate([*special, *WORDS, ".", "##s"])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    assert len(tokenizer) == len(vocabulary)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Topics of one word, passages of some; the teacher counts the word, so do labels."""
    import random

    rng = random.Random(3)
    folder = tmp_path_factory.mktemp("training-data")
    passages = {f"d{n}": rng.choices(WORDS, k=rng.randint(4, 12)) for n in range(60)}
    topics = {f"q{n}": WORDS[n % len(WORDS)] for n in range(TOPICS)}
    collection = "".join(f"{docid}\t{' '.join(words)}\n" for docid, words in passages.items())
    (folder / "collection.tsv").write_text(collection)
    (folder / "topics.tsv").write_text("".join(f"{q}\t{text}\n" for q, text in topics.items()))
    runs: dict[str, list[str]] = {"teacher": [], "other": []}
    qrels = []
    for qid, word in topics.items():
        drawn = rng.sample(sorted(passages), 12)
        for name, weight in (("teacher", 1.0), ("other", 0.3)):
            score = {d: weight * passages[d].count(word) + rng.random() / 10 for d in drawn}
            ranked = sorted(drawn, key=score.__getitem__, reverse=True)
            runs[name] += [
                f"{qid} Q0 {d} {rank} {score[d]:.6f} {name}\n" for rank, d in enumerate(ranked, 1)
            ]
        qrels += [f"{qid} 0 {d} 1\n" for d in drawn if word in passages[d]]
    for name, lines in runs.items():
        (folder / f"{name}.run").write_text("".join(lines))
    (folder / "qrels.txt").write_text("".join(qrels))
    return folder
