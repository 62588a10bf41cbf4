"""Collections: docid -> text, from JSONL, MS MARCO TSV or TREC text, a file or a folder of them."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline import formats, machine
from pipeline.errors import InputError, Interrupted, PipelineError, shown, storage_error
from pipeline.store import digest_file, digest_json
from pipeline.textfile import IR_DATASETS, UTF8_MARK, open_stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SUFFIXES = (".jsonl", ".json", ".tsv", ".trec", ".txt", ".xml", ".sgml", ".sgm")
TREC_START = re.compile(rb"\s*<DOC>", re.IGNORECASE)
# Names of files that lie beside a collection and are none.
OTHERS = re.compile(r"(^|[._-])(topics?|quer(y|ies)|qrels?)([._-]|$)", re.IGNORECASE)
NO_DOCUMENTS = "if this is no file of documents, name the file that is instead of the folder"


class Document(NamedTuple):
    """One document, and where it was found."""

    docid: str
    text: str
    path: str
    line: int


class Batch(NamedTuple):
    """Documents that were read together, and where they were found."""

    path: str
    lines: Sequence[int]
    records: Sequence[tuple[str, str]]  # (docid, text)


def documents(path: Path | str) -> Iterator[Document]:
    """Stream the documents of a collection one by one; see `batches`, which is faster."""
    for batch in batches(path):
        for line, (docid, text) in zip(batch.lines, batch.records, strict=True):
            yield Document(docid, text, batch.path, line)


class Lines(NamedTuple):
    """Whole lines of a collection, JSON or TSV; nobody has looked at them."""

    unread: formats.Unread
    doubtful: bool  # whether the file may be none of documents

    def batches(self) -> Iterator[Batch]:
        """Read them as `batches` does; raises what it does."""
        with _doubt(self.doubtful):
            yield from _checked(str(self.unread.file), self.unread.rows())


def batches(path: Path | str) -> Iterator[Batch]:
    """Stream the documents of a collection in the order of its files (sorted by name) and lines.

    Formats are told apart by the first line of each file: Anserini JSONL (`id`, `contents`), BEIR
    JSONL (`_id`, `title`, `text`: title and text in one), TREC text (`<DOC>`), else MS MARCO's
    `docid TAB text`. Repeated ids are the caller's to find. A batch has at most `BATCH` documents
    and little more text than `BATCH_CHARACTERS`, if it has several.

    Raises:
        InputError: a malformed line, an id that is no single word, or a file without documents.
    """
    for piece in pieces(path):
        if isinstance(piece, Lines):
            yield from piece.batches()
        else:
            yield piece


def pieces(path: Path | str) -> Iterator[Batch | Lines]:
    """Stream the documents as `batches` does, but leave lines of JSON and TSV as they are.

    Raises:
        InputError: as `batches` does; what is wrong with such lines shows when they are read.
    """
    if str(path).startswith(IR_DATASETS):
        yield from _checked(str(path), formats.gathered(_ir_dataset(str(path))))
        return
    doubtful = set(not_documents(path))
    for file in files(path):
        with _doubt(file in doubtful):
            nothing = True
            for piece in formats.parse(file):
                nothing = False
                if isinstance(piece, formats.Unread):
                    yield Lines(piece, file in doubtful)
                else:
                    yield from _checked(str(file), [piece])
            if nothing:
                raise InputError(
                    file, None, "there are no documents", "check the file and its format"
                )


@contextmanager
def _doubt(doubtful: bool) -> Iterator[None]:
    """Whatever is wrong with a file that may be none of documents: that may be why."""
    try:
        yield
    except InputError as error:
        if doubtful:
            error.hint = NO_DOCUMENTS
        raise


def _checked(path: str, source: Iterable[formats.Rows]) -> Iterator[Batch]:
    """Look at ids, and cut off what is too much at once."""
    for lines, records in source:
        for start in range(0, len(records), formats.BATCH):
            some = Batch(
                path, lines[start : start + formats.BATCH], records[start : start + formats.BATCH]
            )
            _check_ids(some)
            yield some


def _check_ids(batch: Batch) -> None:
    docids = [docid for docid, _ in batch.records]
    together = "".join(docids)
    # No white space but the blank is printable.
    if all(docids) and together.isprintable() and " " not in together:
        return
    for line, docid in zip(batch.lines, docids, strict=True):
        if not docid or " " in docid or not docid.isprintable():
            raise InputError(
                batch.path,
                line,
                f"document id {shown(docid)} is not one printable word",
                "run files separate columns by white space: give it an id without any",
            )


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
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(machine.cpus()) as pool:
        return digest_json(list(pool.map(digest_file, files(path))))


def load_texts(path: Path | str, docids: Iterable[str], asked: str = "run") -> dict[str, str]:
    """Read the texts of some documents in one pass; memory is bounded by what is asked for.

    Args:
        asked: what names the documents, for the message.

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
            f"use the collection that the {asked} was made from",
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
