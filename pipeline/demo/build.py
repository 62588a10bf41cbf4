"""Lay out the demo: a collection that every machine has, topics, judgements, an experiment file."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from pipeline.demo import docstrings
from pipeline.errors import PipelineError, storage_error
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
max_tokens = 72                  # a docstring's first lines are enough, and save half the time

[evaluate]
qrels = "qrels.txt"
"""


MARK = EXPERIMENT.partition(".")[0].encode()  # how an experiment file of the demo begins


@dataclass(frozen=True)
class Demo:
    """What was laid out."""

    experiment: Path
    passages: int
    topics: int
    judgements: int
    dropped: int  # judgements whose text differs in this version of Python


def lay_out(folder: Path) -> Demo:
    """Write the demo's input files into `folder`; a file that is already right is left alone.

    Raises:
        PipelineError: a file of one of these names lies there, and this is no folder of the demo.
    """
    _check(folder)
    passages = dict(docstrings.passages())
    rows = (json.dumps({"id": d, "contents": t}, ensure_ascii=False) for d, t in passages.items())
    shipped = resources.files("pipeline.demo")
    topics = (shipped / "topics.tsv").read_bytes()
    with resources.as_file(shipped / "qrels.txt") as path:
        qrels, dropped = docstrings.applicable(read_qrels(path), passages)
    judged = [f"{qid} 0 {docid} {grade}\n" for qid in qrels for docid, grade in qrels[qid].items()]
    # First, because it tells a folder of the demo from any other.
    _keep(folder / "experiment.toml", EXPERIMENT.format(python=platform.python_version()).encode())
    _keep(folder / "collection.jsonl", "".join(row + "\n" for row in rows).encode())
    _keep(folder / "topics.tsv", topics)
    _keep(folder / "qrels.txt", "".join(judged).encode())
    return Demo(
        folder / "experiment.toml", len(passages), topics.count(b"\n"), len(judged), dropped
    )


def _check(folder: Path) -> None:
    """Refuse to write over somebody's own topics in the folder where they typed `demo .`."""
    names = ("experiment.toml", "collection.jsonl", "topics.tsv", "qrels.txt")
    try:
        there = [folder / name for name in names if (folder / name).exists()]
        ours = folder / names[0] in there and (folder / names[0]).read_bytes().startswith(MARK)
    except OSError as error:
        raise storage_error(folder, error) from error
    if there and not ours:
        raise PipelineError(
            f"{there[0]}: exists already and is not the demo's",
            "choose another folder: pipeline demo DIR",
        )


def _keep(path: Path, data: bytes) -> None:
    if not path.is_file() or digest_file(path) != digest_bytes(data):
        write_bytes(path, data)
