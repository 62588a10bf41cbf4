"""Collections: docid -> text, from JSONL, MS MARCO TSV or TREC text, a file or a folder of them."""

from __future__ import annotations

import html
import json
import re
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import InputError, PipelineError, shown
from pipeline.store import digest_file, digest_json
from pipeline.textfile import text_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

IR_DATASETS = "ir_datasets:"
ID_KEYS = ("id", "_id", "docid", "docno")
MAX_DOCUMENT = 1 << 28  # bytes in one line of a collection: a book is a few million
SUFFIXES = (".jsonl", ".json", ".tsv", ".trec", ".txt", ".xml", ".sgml", ".sgm")

# What Anserini's TrecCollection takes as the text of a document.
TREC_TEXT = re.compile(
    r"<(TEXT|HEADLINE|TITLE|HL|HEAD|TTL|DD|DATE|LP|LEADPARA)\b[^>]*>(.*?)</\1>",
    re.DOTALL | re.IGNORECASE,
)


class Document(NamedTuple):
    """One document, and where it was found."""

    docid: str
    text: str
    path: str
    line: int


def documents(path: Path | str) -> Iterator[Document]:
    """Stream the documents of a collection in the order of its files (sorted by name) and lines.

    Formats are told apart by the first line of each file: Anserini JSONL (`id`, `contents`), BEIR
    JSONL (`_id`, `title`, `text`: title and text in one), TREC text (`<DOC>`), else MS MARCO's
    `docid TAB text`. Repeated ids are the caller's to find.

    Raises:
        InputError: a malformed line, an id that is no single word, or a file without documents.
    """
    if str(path).startswith(IR_DATASETS):
        yield from _ir_dataset(str(path).removeprefix(IR_DATASETS))
        return
    for file in files(path):
        empty = True
        for line, docid, text in _parse(file):
            if len(docid.split()) != 1 or not docid.isprintable():
                raise InputError(
                    file,
                    line,
                    f"document id {shown(docid)} is not one printable word",
                    "run files separate columns by white space: give it an id without any",
                )
            empty = False
            yield Document(docid, text, str(file), line)
        if empty:
            raise InputError(file, None, "there are no documents", "check the file and its format")


def files(path: Path | str) -> list[Path]:
    """List the files of a collection: the file itself, or those of a folder with a known suffix.

    Raises:
        PipelineError: nothing is there.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise PipelineError(f"{path}: no such collection", "name a file or a folder")
    found = sorted(
        p
        for p in root.rglob("*")
        if p.is_file() and p.name.removesuffix(".gz").endswith(SUFFIXES) and p.name[0] != "."
    )
    if not found:
        raise PipelineError(
            f"{path}: no collection files in this folder",
            f"files end in {', '.join(SUFFIXES)}, or one of these and .gz",
        )
    return found


def digest(path: Path | str) -> str:
    """Digest of a collection's content: its files' bytes in order, not their names."""
    if str(path).startswith(IR_DATASETS):
        return f"{path}"  # a published, versioned data set; its content is not ours to read twice
    return digest_json([digest_file(file) for file in files(path)])


def load_texts(path: Path | str, docids: Iterable[str]) -> dict[str, str]:
    """Read the texts of some documents in one pass; memory is bounded by what is asked for.

    Raises:
        PipelineError: a document is not in the collection, or is there twice.
    """
    wanted = set(docids)
    texts: dict[str, str] = {}
    places: dict[str, tuple[str, int]] = {}
    for document in documents(path):
        if document.docid not in wanted:
            continue
        if document.docid in texts:
            raise duplicate(document, places[document.docid])
        texts[document.docid] = document.text
        places[document.docid] = (document.path, document.line)
    for docid in wanted:
        if docid not in texts:
            raise PipelineError(
                f"{path}: no document {shown(docid)}",
                "use the collection that the run was made from",
            )
    return texts


def duplicate(document: Document, first: tuple[str, int]) -> InputError:
    """Name both places of a repeated document id."""
    return InputError(
        document.path,
        document.line,
        f"document {shown(document.docid)} again (first in {first[0]}:{first[1]})",
        "give each document an id of its own, or delete one of the two",
    )


def _parse(file: Path) -> Iterator[tuple[int, str, str]]:
    source = text_lines(file, MAX_DOCUMENT)
    first = next(((number, line) for number, line in source if line.strip()), None)
    if first is None:
        return
    start, rest = first[1].lstrip(), chain([first], source)
    if start.startswith(("{", "[")):
        yield from _jsonl(file, rest)
    elif start.startswith("<"):
        yield from _trec(file, rest)
    else:
        yield from _tsv(file, rest)


def _jsonl(file: Path, source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    for number, line in source:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise InputError(
                file, number, f"not JSON ({reason}): {shown(line)}", "write one object a line"
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                file, number, f"not a JSON object: {shown(line)}", "write one object a line"
            )
        docid, text = _fields(record)
        if docid is None or text is None:
            raise InputError(
                file,
                number,
                f"no id or no text among the keys {shown(sorted(record))}",
                "write id and contents (Anserini), or _id, title and text (BEIR)",
            )
        yield number, docid, text


def _fields(record: dict[str, Any]) -> tuple[str | None, str | None]:
    docid = next((record[key] for key in ID_KEYS if key in record), None)
    if isinstance(docid, int) and not isinstance(docid, bool):
        docid = str(docid)
    text, title = record.get("contents"), record.get("title")
    if text is None:
        text = record.get("text")
        if isinstance(text, str) and isinstance(title, str) and title:
            text = f"{title}\n{text}"
    return (
        docid if isinstance(docid, str) else None,
        _encodable(text) if isinstance(text, str) else None,
    )


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON can escape and no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _tsv(file: Path, source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    for number, line in source:
        docid, tab, text = line.partition("\t")
        if not tab:
            raise InputError(
                file,
                number,
                f"no tab in {shown(line)}" if line.strip() else "an empty line",
                "a line of a TSV collection is: docid TAB text",
            )
        yield number, docid.strip(), text


def _trec(file: Path, source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    block: list[str] | None = None
    start = size = 0
    for number, line in source:
        upper = line.upper()
        if block is None:
            at = upper.find("<DOC>")
            if at < 0:
                continue
            block, start, size = [], number, 0
            line, upper = line[at + 5 :], upper[at + 5 :]
        end = upper.find("</DOC>")
        block.append(line if end < 0 else line[:end])
        size += len(line)
        if size > MAX_DOCUMENT:
            break
        if end >= 0:
            yield start, *_trec_document(file, start, "\n".join(block))
            block = None
    if block is not None:
        raise InputError(file, start, "a <DOC> that never ends", "close it with </DOC>")


def _trec_document(file: Path, start: int, block: str) -> tuple[str, str]:
    docno = re.search(r"<DOCNO>\s*(.*?)\s*</DOCNO>", block, re.DOTALL | re.IGNORECASE)
    if not docno:
        raise InputError(file, start, "a <DOC> without <DOCNO>", "give each document an id")
    body = block[: docno.start()] + block[docno.end() :]
    sections = [match[2] for match in TREC_TEXT.finditer(body)] or [body]
    text = html.unescape(re.sub(r"<[^>]*>", " ", "\n".join(sections)))
    return docno[1], "\n".join(filter(None, (" ".join(row.split()) for row in text.splitlines())))


def _ir_dataset(name: str) -> Iterator[Document]:
    try:
        import ir_datasets
    except ImportError:
        raise PipelineError(
            f"{IR_DATASETS}{name}: the package ir_datasets is not installed",
            "pip install 'trec-pipeline[ir-datasets]' (it downloads a data set once)",
        ) from None
    try:
        dataset = ir_datasets.load(name)
        for number, record in enumerate(dataset.docs_iter(), 1):
            yield Document(record.doc_id, record.default_text(), f"{IR_DATASETS}{name}", number)
    except KeyError:
        raise PipelineError(
            f"{IR_DATASETS}{name}: no such data set", "see the catalogue of ir_datasets"
        ) from None
    except OSError as error:
        raise PipelineError(
            f"{IR_DATASETS}{name}: could not be obtained ({error})",
            "a data set is downloaded once and needs the network then",
        ) from error
