"""Collections: docid -> text, from JSONL, MS MARCO TSV or TREC text, a file or a folder of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import InputError, Interrupted, PipelineError, shown, storage_error
from pipeline.store import digest_file, digest_json
from pipeline.textfile import UTF8_MARK, elements, from_first_text, open_stream, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

IR_DATASETS = "ir_datasets:"
ID_KEYS = ("id", "_id", "docid", "docno")
MAX_DOCUMENT = 1 << 26  # bytes of one document: a long book is a few million
SUFFIXES = (".jsonl", ".json", ".tsv", ".trec", ".txt", ".xml", ".sgml", ".sgm")

# What Anserini's TrecCollection takes as the text of a document.
TREC_TEXT = re.compile(
    r"<(/?)(TEXT|HEADLINE|TITLE|HL|HEAD|TTL|DD|DATE|LP|LEADPARA)\b[^<>]*>", re.IGNORECASE
)
TREC_START = re.compile(rb"\s*<DOC>", re.IGNORECASE)
TREC_DOCNO = re.compile(r"<DOCNO>([^<]*)</DOCNO>", re.IGNORECASE)


# Names of files that lie beside a collection and are none.
OTHERS = re.compile(r"(^|[._-])(topics?|quer(y|ies)|qrels?)([._-]|$)", re.IGNORECASE)
NO_DOCUMENTS = "if this is no file of documents, name the file that is instead of the folder"


ONE_OBJECT = "write one object a line, as jq -c does (jq -c '.[]' for an array)"


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
        for number, docid, text in _ir_dataset(str(path)):
            yield _document(str(path), number, docid, text)
        return
    doubtful = set(not_documents(path))
    for file in files(path):
        try:
            yield from _documents(file)
        except InputError as error:
            if file in doubtful:
                error.hint = NO_DOCUMENTS
            raise


def _documents(file: Path) -> Iterator[Document]:
    document = None
    for number, docid, text in _parse(file):
        document = _document(str(file), number, docid, text)
        yield document
    if document is None:
        raise InputError(file, None, "there are no documents", "check the file and its format")


def _document(path: str, number: int, docid: str, text: str) -> Document:
    if not docid or " " in docid or not docid.isprintable():  # other white space is not printable
        raise InputError(
            path,
            number,
            f"document id {shown(docid)} is not one printable word",
            "run files separate columns by white space: give it an id without any",
        )
    return Document(docid, text, path, number)


def files(path: Path | str) -> list[Path]:
    """List the files of a collection: the file itself, or those of a folder.

    In a folder the suffix decides; of files with another one, or none, those that begin with
    `<DOC>` are taken, since TREC's disks name their files so (`FT911_1`, `fr940104.0`).

    Raises:
        PipelineError: nothing is there.
    """
    root = Path(path)
    try:
        if root.is_dir():
            found = sorted(p for p in root.rglob("*") if _is_collection_file(p, root))
        elif root.is_file():
            return [root]
        elif root.exists():
            raise PipelineError(
                f"{path}: is no regular file, and a collection is read more than once",
                "write it to a file first",
            )
        else:
            raise PipelineError(f"{path}: no such collection", "name a file or a folder")
    except OSError as error:
        raise storage_error(path, error) from error
    if not found:
        raise PipelineError(
            f"{path}: no collection files in this folder",
            f"files end in {', '.join(SUFFIXES)}, or begin with <DOC>; .gz may follow",
        )
    return found


def _is_collection_file(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    if hidden or not path.is_file():
        return False
    return path.name.removesuffix(".gz").endswith(SUFFIXES) or _begins_as_trec(path)


def _begins_as_trec(path: Path) -> bool:
    try:
        with open_stream(path) as stream:
            return bool(TREC_START.match(stream.read(1024).removeprefix(UTF8_MARK)))
    except InputError:  # gzip in name only: whatever it is, it is no TREC text
        return False


def not_documents(path: Path | str) -> list[Path]:
    """List the files of a folder whose names say that they hold topics or judgements."""
    if str(path).startswith(IR_DATASETS):
        return []
    inside = [file for file in files(path) if file != Path(path)]
    return [file for file in inside if OTHERS.search(file.name) or file.parent.name == "qrels"]


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
    if missing := wanted - texts.keys():
        others = f" and {len(missing) - 1:,} others" if len(missing) > 1 else ""
        raise PipelineError(
            f"{path}: no document {shown(min(missing))}{others}",
            "use the collection that the run was made from",
        )
    return texts


def need_one_source(index: object, collection: object) -> None:
    """Refuse texts from nowhere, or from two places.

    Raises:
        PipelineError: neither index nor collection is named, or both are.
    """
    if (index is None) == (collection is None):
        raise PipelineError(
            "texts come from an index or from a collection, and "
            + ("neither is" if index is None else "both are")
            + " named",
            "name one: --index DIR or --collection PATH",
        )


def duplicate(document: Document, first: tuple[str, int]) -> InputError:
    """Name both places of a repeated document id."""
    return InputError(
        document.path,
        document.line,
        f"document {shown(document.docid)} again (first in {first[0]}:{first[1]})",
        NO_DOCUMENTS
        if OTHERS.search(Path(document.path).name)
        else "give each document an id of its own, or delete one of the two",
    )


def _parse(file: Path) -> Iterator[tuple[int, str, str]]:
    start, source = from_first_text(file, MAX_DOCUMENT)
    if start.startswith(("{", "[")):
        yield from _jsonl(file, source)
    elif start.startswith("<"):
        yield from _trec(file, source)
    else:
        yield from _tsv(file, source)


def _jsonl(file: Path, source: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    for number, line in source:
        if not line.strip():
            raise InputError(file, number, "an empty line", "delete it")
        try:
            record = _record(line)
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


_parse_value = json.JSONDecoder().raw_decode


def _record(line: str) -> Any:
    """Parse a line as json.loads does, in half the time where nothing stands around the value."""
    try:
        record, end = _parse_value(line)
    except ValueError:
        end = -1
    return record if end == len(line) else json.loads(line)


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


def _ir_dataset(path: str) -> Iterator[tuple[int, str, str]]:
    try:
        import ir_datasets
    except ImportError:
        raise PipelineError(
            f"{path}: the package ir_datasets is not installed",
            "pip install 'trec-pipeline[ir-datasets]' (it downloads a data set once)",
        ) from None
    try:
        try:
            dataset = ir_datasets.load(path.removeprefix(IR_DATASETS))
        except KeyError:
            raise PipelineError(
                f"{path}: no such data set", "see the catalogue of ir_datasets"
            ) from None
        if not dataset.has_docs():
            raise PipelineError(
                f"{path}: has no documents of its own",
                "name one below it, as the catalogue lists them",
            )
        for number, record in enumerate(dataset.docs_iter(), 1):
            yield number, record.doc_id, record.default_text()
    except (PipelineError, Interrupted, MemoryError):
        raise
    except Exception as error:  # its downloads raise whatever their transport raises
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise PipelineError(
            f"{path}: could not be obtained ({reason[:160]})",
            "put its files there by hand, as ir_datasets says"
            if isinstance(error, FileNotFoundError)
            else "a data set is downloaded once and needs the network then",
        ) from error
