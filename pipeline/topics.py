"""Topics: TSV, JSONL and TREC topic files, told apart by their first line."""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING

from pipeline.errors import InputError, PipelineError, did_you_mean, shown
from pipeline.textfile import MAX_LINE, elements, from_first_text, plain, split_at_tab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIELDS = ("title", "desc", "narr")
ID_KEYS = ("qid", "id", "_id", "query_id")
TEXT_KEYS = ("text", "query", "title")

Topics = dict[str, str]
"""qid -> text, in the order of the file."""


def read_topics(path: Path | str, field: str = "title") -> Topics:
    """Read topics from TSV (`qid TAB text`), JSONL or TREC topic files.

    Args:
        field: of a TREC topic file: `title`, `desc`, `narr`, or several joined by `+`.

    Raises:
        InputError: a malformed line, an empty or repeated id, an empty text, or an empty file.
    """
    fields = field.split("+")
    if unknown := [name for name in fields if name not in FIELDS]:
        raise PipelineError(
            f"no field {shown(unknown[0])} in TREC topics", did_you_mean(unknown[0], list(FIELDS))
        )
    topics: Topics = {}
    places: dict[str, int] = {}
    for number, qid, text in _parse_topics(path, fields):
        text = tidied(path, number, qid, text)
        if qid in topics:
            raise InputError(
                path,
                number,
                f"topic {shown(qid)} again (first on line {places[qid]})",
                "give each topic an id of its own",
            )
        topics[qid], places[qid] = text, number
    if not topics:
        raise InputError(path, None, "there are no topics", "check how the file was written")
    return topics


def _parse_topics(path: Path | str, fields: list[str]) -> Iterator[tuple[int, str, str]]:
    start, source = from_first_text(path)
    if start.startswith("{"):
        for number, line in source:
            yield number, *jsonl_topic(path, number, line)
    elif start.startswith("<"):
        yield from trec_topics(path, source, fields)
    else:
        for number, line in source:
            yield number, *tsv_topic(path, number, line)


def tidied(path: Path | str, number: int, qid: str, text: str) -> str:
    """Return the text with single blanks, if topic and text can be used.

    Raises:
        InputError: an id that is not one printable word, or no text.
    """
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if len(qid.split()) != 1 or not qid.isprintable():
        raise InputError(
            path,
            number,
            f"topic id {shown(qid)} is not one printable word",
            "give each topic an id",
        )
    if not text:
        raise InputError(
            path,
            number,
            f"topic {shown(qid)} has no text",
            "write the query, or delete it; of a TREC file another --field may have text",
        )
    return text


def tsv_topic(path: Path | str, number: int, line: str) -> tuple[str, str]:
    """Read the id and the text of a line `qid TAB text`.

    Raises:
        InputError: there is no tab.
    """
    return split_at_tab(path, number, line, "a topic line is: qid TAB text")


def jsonl_topic(path: Path | str, number: int, line: str) -> tuple[str, str]:
    """Read the id and the text of a line that is a JSON object.

    Raises:
        InputError: it is none, or has no id or no text.
    """
    if not line.strip():
        raise InputError(path, number, "an empty line", "delete it")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InputError(
            path, number, f"not a JSON object: {shown(line)}", 'write {"id": …, "text": …}'
        )
    qid = next((record[key] for key in ID_KEYS if key in record), None)
    text = next((record[key] for key in TEXT_KEYS if key in record), None)
    if not isinstance(qid, str | int) or isinstance(qid, bool) or not isinstance(text, str):
        raise InputError(
            path,
            number,
            "no id or no text in this topic",
            'write {"id": …, "text": …}; "qid" or "_id", and "query" are understood too',
        )
    return str(qid), text


# Words of inner tags; any other `<word>` in the middle of a line belongs to the text.
_TAGS = {"num", "title", "desc", "narr", "head", "dom", "smry", "con", "fac", "def", "nat"}
_TAG = re.compile(r"<(/?)([a-zA-Z]+)[^<>]*>")
_OPENING = re.compile(r"</?(top|topic)(?:\s[^<>]*)?>", re.IGNORECASE)
_XML_NUMBER = re.compile(r"""\b(?:number|num|id|qid)\s*=\s*["']([^"']*)["']""", re.IGNORECASE)
_XML_NAMES = {
    "num": ("num", "number", "identifier"),
    "title": ("title", "query"),
    "desc": ("desc", "description", "question"),
    "narr": ("narr", "narrative"),
}
_LABELS = {
    "num": re.compile(r"\A\s*(Number|Topic)\s*:", re.IGNORECASE),
    "title": re.compile(r"\A\s*Topic\s*:", re.IGNORECASE),
    "desc": re.compile(r"\A\s*Description\s*:", re.IGNORECASE),
    "narr": re.compile(r"\A\s*Narrative\s*:", re.IGNORECASE),
}


def trec_topics(
    path: Path | str, source: Iterator[tuple[int, str]], fields: list[str]
) -> Iterator[tuple[int, str, str]]:
    """Read `<top>` blocks, or the `<topic>` elements of later years, whichever come first."""
    for number, line in source:
        if opening := _OPENING.search(line):
            blocks = _xml_topics if opening[1].lower() == "topic" else _top_topics
            yield from blocks(path, chain([(number, line)], source), fields)


def _top_topics(
    path: Path | str, source: Iterator[tuple[int, str]], fields: list[str]
) -> Iterator[tuple[int, str, str]]:
    """Read `<top>` blocks, whose inner tags are often never closed and carry a label."""
    for number, _, text in elements(path, source, "top", MAX_LINE):
        block: dict[str, list[str]] = {}
        name = ""
        for closing, word, content in chain.from_iterable(map(_tagged, text.split("\n"))):
            name = "" if closing else word or name
            if name:
                block.setdefault(name, []).append(content)
        num, *contents = (
            _LABELS[name].sub("", " ".join(block.get(name, [])), count=1).strip()
            for name in ("num", *fields)
        )
        if not num:
            raise InputError(path, number, "a <top> without <num>", "give each topic an id")
        yield number, num, " ".join(contents)


def _xml_topics(
    path: Path | str, source: Iterator[tuple[int, str]], fields: list[str]
) -> Iterator[tuple[int, str, str]]:
    """Read `<topic number="1">` elements; one without any field that we know is its own title."""
    for number, attributes, text in elements(path, source, "topic", MAX_LINE):
        block: dict[str, str] = {}
        inside, begin = "", 0
        for tag in _TAG.finditer(text):
            word = tag[2].lower()
            if not inside and not tag[1]:
                inside, begin = word, tag.end()
            elif tag[1] and word == inside:
                block.setdefault(word, text[begin : tag.start()])
                inside = ""
        known = {
            name: next((block[word] for word in words if word in block), "")
            for name, words in _XML_NAMES.items()
        }
        if not any(known[name] for name in FIELDS):
            known["title"] = text
        named = _XML_NUMBER.search(attributes)
        qid = plain(named[1] if named else known["num"])
        if not qid:
            raise InputError(path, number, "a <topic> without number", "give each topic an id")
        yield number, qid, " ".join(plain(known[name]) for name in fields)


def _tagged(line: str) -> Iterator[tuple[bool, str, str]]:
    """Cut a line before each of its tags: (closing, word or nothing, the text that follows)."""
    indent = len(line) - len(line.lstrip())
    cuts = [
        match
        for match in _TAG.finditer(line)
        if match[2].lower() in _TAGS or match.start() == indent
    ]
    ends = [*(match.start() for match in cuts), len(line)]
    if line[: ends[0]].strip():
        yield False, "", line[: ends[0]]
    for match, end in zip(cuts, ends[1:], strict=True):
        yield match[1] == "/", match[2].lower(), line[match.end() : end]
