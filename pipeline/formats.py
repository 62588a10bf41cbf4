"""The formats of collections: what is a document in JSONL, MS MARCO TSV and TREC text.

A block of lines is read at once where nothing about it is out of the ordinary; any other is read
again line by line, by what says where the fault is. Both find the same documents. When an index is
built, Java is the first to read a block (`jvm`): it knows less, and never finds other documents.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import InputError, shown
from pipeline.textfile import blocks, cut, decoded, elements, from_first_text, plain, split_at_tab

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

BATCH = 1000  # documents that are handled together,
BATCH_CHARACTERS = 1 << 20  # or as much text as this
MAX_DOCUMENT = 1 << 26  # bytes of one document: a long book is a few million
ID_KEYS = ("id", "_id", "docid", "docno")
ONE_OBJECT = "write one object a line, as jq -c does (jq -c '.[]' for an array)"
TABBED = "a line of a TSV collection is: docid TAB text"
# What Anserini's TrecCollection takes as the text of a document.
TREC_TEXT = re.compile(
    r"<(/?)(TEXT|HEADLINE|TITLE|HL|HEAD|TTL|DD|DATE|LP|LEADPARA)\b[^<>]*>", re.IGNORECASE
)
TREC_DOCNO = re.compile(r"<DOCNO>([^<]*)</DOCNO>", re.IGNORECASE)

type Rows = tuple[Sequence[int], Sequence[tuple[str, str]]]  # line numbers, (docid, text)


class Unread(NamedTuple):
    """Whole lines as they stand in a file; nobody has looked at them."""

    file: Path
    first: int  # number of the first line
    block: bytes
    tabbed: bool  # docid TAB text; else JSON

    def rows(self) -> Iterator[Rows]:
        """Read them; raises InputError over a malformed line."""
        file, first, block, tabbed = self
        at_once, one_by_one = (_plain_rows, _rows) if tabbed else (_plain_records, _records)
        found = at_once(block) if len(block) <= MAX_DOCUMENT else None  # a line may be too long
        if found is not None:
            yield range(first, first + len(found)), found
        else:
            source = decoded(file, cut(file, first, block, MAX_DOCUMENT))
            yield from gathered(one_by_one(file, source))


def parse(file: Path) -> Iterator[Rows | Unread]:
    """Read the documents of a file, whose format its first line tells; nothing if it has no text.

    Lines of JSON and TSV come as they stand, and their `rows` are for the caller to ask for.

    Raises:
        InputError: a malformed line.
    """
    start, source = from_first_text(file, MAX_DOCUMENT)
    if start.startswith("<"):
        yield from gathered(_trec(file, source))
    elif start:
        begin, _ = next(source)
        del source  # and the open file with it: blocks are read instead of lines
        tabbed = not start.startswith(("{", "["))
        for first, block in _from_line(begin, blocks(file, MAX_DOCUMENT)):
            yield Unread(file, first, block, tabbed)


_parse_value = json.JSONDecoder().raw_decode


def gathered(source: Iterable[tuple[int, str, str]]) -> Iterator[Rows]:
    """Put documents together that come one by one; those before a malformed one come as well."""
    lines: list[int] = []
    records: list[tuple[str, str]] = []
    characters = 0
    try:
        for line, docid, text in source:
            lines.append(line)
            records.append((docid, text))
            characters += len(text)
            if len(records) >= BATCH or characters >= BATCH_CHARACTERS:
                yield lines, records
                lines, records, characters = [], [], 0
    except InputError:
        if records:
            yield lines, records
        raise
    if records:
        yield lines, records


def _from_line(begin: int, source: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Leave out the lines before one of them."""
    for first, block in source:
        if first >= begin:
            yield first, block
        elif rest := b"".join(block.split(b"\n", begin - first)[begin - first :]):
            yield begin, rest


def _plain_records(block: bytes) -> list[tuple[str, str]] | None:
    """Read a block of JSON lines at once, in half the time that they take one by one.

    None where anything is out of the ordinary, which is then read, and complained of, line by line.
    """
    found: list[tuple[str, str]] = []
    start = 0
    try:
        text = block.decode()
        size = len(text)
        if not text.endswith("\n"):
            text += "\n"
        while start < size:
            record, start = _parse_value(text, start)
            docid, contents = record.get("id"), record.get("contents")
            if docid.__class__ is not str or contents.__class__ is not str:
                docid, contents = _fields(record)
                if docid is None or contents is None:
                    return None
            if text[start] != "\n":
                return None
            start += 1
            found.append((docid, contents))
    except (ValueError, RecursionError, AttributeError):  # the last where it is no object
        return None
    # As many objects as lines, each at the end of one: each has a line of its own.
    if len(found) != text.count("\n"):
        return None
    if "\\ud" in text or "\\uD" in text:  # surrogates, maybe lone ones
        found = [(docid, _encodable(contents)) for docid, contents in found]
    return found


def _records(file: Path, source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    for number, line in source:
        if not line.strip():
            raise InputError(file, number, "an empty line", "delete it")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            problem = f"not JSON ({reason}): {shown(line)}"
            raise InputError(file, number, problem, ONE_OBJECT) from None
        if not isinstance(record, dict):
            raise InputError(file, number, f"not a JSON object: {shown(line)}", ONE_OBJECT)
        docid, text = _fields(record)
        if text is not None and "\\u" in line:
            text = _encodable(text)
        if docid is None or text is None:
            raise InputError(
                file,
                number,
                f"no id or no text among the keys {shown(sorted(record))}",
                "write id and contents (Anserini), or _id, title and text (BEIR)",
            )
        yield number, docid, text


def _fields(record: dict[str, Any]) -> tuple[str | None, str | None]:
    docid = None
    for key in ID_KEYS:
        if key in record:
            docid = record[key]
            break
    if isinstance(docid, int) and not isinstance(docid, bool):
        docid = str(docid)
    text, title = record.get("contents"), record.get("title")
    if text is None:
        text = record.get("text")
        if isinstance(text, str) and isinstance(title, str) and title:
            text = f"{title}\n{text}"
    return (
        docid if isinstance(docid, str) else None,
        text if isinstance(text, str) else None,
    )


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON can escape and no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _plain_rows(block: bytes) -> list[tuple[str, str]] | None:
    """Read a block of TSV at once, where nothing is wrong with it."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        return None
    rows = [line.partition("\t") for line in text.removesuffix("\n").split("\n")]
    if "\r" in text or not all(tab for _, tab, _ in rows):
        return None
    return [(docid.strip(), text) for docid, _, text in rows]


def _rows(file: Path, source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    for number, line in source:
        yield number, *split_at_tab(file, number, line, TABBED)


def _trec(file: Path, source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    for number, _, block in elements(file, source, "DOC", MAX_DOCUMENT):
        yield number, *_trec_document(file, number, block)


def _trec_document(file: Path, start: int, block: str) -> tuple[str, str]:
    docno = TREC_DOCNO.search(block)
    if not docno:
        raise InputError(file, start, "a <DOC> without <DOCNO>", "give each document an id")
    body = block[: docno.start()] + " " + block[docno.end() :]
    text = plain("\n".join(_trec_sections(body)) or body)
    rows = (" ".join(row.split()) for row in text.splitlines())
    return docno[1].strip(), "\n".join(filter(None, rows))


def _trec_sections(body: str) -> Iterator[str]:
    """Cut out what stands in the elements that hold text; one never closed goes to the end."""
    inside, begin = "", 0
    for tag in TREC_TEXT.finditer(body):
        word = tag[2].upper()
        if not inside and not tag[1]:
            inside, begin = word, tag.end()
        elif tag[1] and word == inside:
            yield body[begin : tag.start()]
            inside = ""
    if inside:
        yield body[begin:]
