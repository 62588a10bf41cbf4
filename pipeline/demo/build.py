"""Lay out the demo: a collection that every machine has, topics, judgements, an experiment file."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from pipeline.demo import docstrings
from pipeline.store import digest_bytes, digest_file, write_bytes
from pipeline.trec import read_qrels

if TYPE_CHECKING:
    from pathlib import Path

EXPERIMENT = """\
# The demo, as an experiment file of your own would look. Paths are relative to this file.
name = "demo"

[collection]
path = "collection.jsonl"        # the docstrings of Python {python}'s standard library

[topics]
path = "topics.tsv"

[index]
path = "index"

[retrieve]
hits = 1000
k1 = 0.9
b = 0.4

[[rerank]]
name = "small"
model = "small"                  # the student that comes with the program
depth = 1000
max_tokens = 96                  # enough for a docstring's first lines; saves half the time

[evaluate]
qrels = "qrels.txt"
"""


@dataclass(frozen=True)
class Demo:
    """What was laid out."""

    experiment: Path
    passages: int
    topics: int
    judgements: int
    dropped: int  # judgements whose text differs in this version of Python


def lay_out(folder: Path) -> Demo:
    """Write the demo's input files into `folder`; a file that is already right is left alone."""
    passages = dict(docstrings.passages())
    rows = (json.dumps({"id": d, "contents": t}, ensure_ascii=False) for d, t in passages.items())
    shipped = resources.files("pipeline.demo")
    topics = (shipped / "topics.tsv").read_bytes()
    with resources.as_file(shipped / "qrels.txt") as path:
        qrels, dropped = docstrings.applicable(read_qrels(path), passages)
    judged = [f"{qid} 0 {docid} {grade}\n" for qid in qrels for docid, grade in qrels[qid].items()]
    _keep(folder / "collection.jsonl", "".join(row + "\n" for row in rows).encode())
    _keep(folder / "topics.tsv", topics)
    _keep(folder / "qrels.txt", "".join(judged).encode())
    _keep(folder / "experiment.toml", EXPERIMENT.format(python=platform.python_version()).encode())
    return Demo(
        folder / "experiment.toml", len(passages), topics.count(b"\n"), len(judged), dropped
    )


def _keep(path: Path, data: bytes) -> None:
    if not path.is_file() or digest_file(path) != digest_bytes(data):
        write_bytes(path, data)
