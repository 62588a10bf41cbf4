"""Digests of values, files and folders, and JSON that any name fits into."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from folders import names
from refusal import refused

from pipeline import store
from pipeline.errors import StorageError


def test_digests_are_sha256(tmp_path: Path) -> None:
    """As `sha256sum` prints them, of the bytes on the disk."""
    store.write_bytes(tmp_path / "a.gz", b"text")
    expected = hashlib.sha256((tmp_path / "a.gz").read_bytes()).hexdigest()
    assert store.digest_file(tmp_path / "a.gz") == expected
    with refused("no such file", kind=StorageError):
        store.digest_file(tmp_path / "no")


def test_a_digest_of_json_is_that_of_its_value() -> None:
    """Keys in any order; pinned, for parts and sidecars on disks carry it."""
    one = store.digest_json({"b": [1, 2.5, None], "a": "é"})
    assert one == store.digest_json({"a": "é", "b": [1, 2.5, None]})
    assert one == hashlib.sha256('{"a":"é","b":[1,2.5,null]}'.encode()).hexdigest()


def test_json_holds_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A file name of odd bytes, in a setting or a command line, never stops the last write."""
    value = {"path": os.fsdecode(b"caf\xe9"), "text": "é"}
    store.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value
    assert (tmp_path / "a.json").read_bytes().endswith(b'"text": "\xc3\xa9"\n}\n')
    assert store.digest_json(value) != store.digest_json({**value, "path": "caf"})


def test_a_digest_of_a_folder_sees_names_and_bytes(tmp_path: Path) -> None:
    """Every change of a visible file counts, hidden ones do not."""
    store.write_bytes(tmp_path / "index" / "deep" / "0", b"one")
    seen = {store.digest_folder(tmp_path / "index")}
    (tmp_path / "index" / ".hidden").touch()
    assert store.digest_folder(tmp_path / "index") in seen
    (tmp_path / "index" / "deep" / "0").write_text("two")
    seen.add(store.digest_folder(tmp_path / "index"))
    (tmp_path / "index" / "deep" / "0").rename(tmp_path / "index" / "0")
    seen.add(store.digest_folder(tmp_path / "index"))
    (tmp_path / "index" / "empty").touch()
    seen.add(store.digest_folder(tmp_path / "index"))
    assert len(seen) == 4


def test_what_is_absent_is_removed_already(tmp_path: Path) -> None:
    """A folder with all it holds, a link but not what it points to, nothing at all."""
    store.write_bytes(tmp_path / "index" / "deep" / "0", b"one")
    (tmp_path / "link").symlink_to(tmp_path / "index")
    store.remove(tmp_path / "link")
    assert (tmp_path / "index" / "deep" / "0").read_bytes() == b"one"
    store.remove(tmp_path / "index")
    store.remove(tmp_path / "index")
    assert names(tmp_path) == []
