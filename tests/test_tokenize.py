"""Token ids of passages: made once, resumed, bound to tokenizer and texts, reranked with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from elsewhere import ENVIRONMENT, UNPRIVILEGED
from refusal import check_two_lines, refused
from typer.testing import CliRunner

from pipeline import lucene, tasks, tokenize
from pipeline.cli.main import app
from pipeline.collection import documents
from pipeline.errors import InputError, PipelineError
from pipeline.index import IndexSettings, index
from pipeline.models import flat
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.pairs import Tokenizer
from pipeline.models.scorer import Limits, Wishes
from pipeline.models.tokenizing import Vocabulary
from pipeline.parts import Parts
from pipeline.rerank import RerankSettings, rerank
from pipeline.tokenize import TokenizeSettings
from pipeline.tokens import PassageTokens, part_bytes, write_tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make(tmp_path_factory.mktemp("model"))


@pytest.fixture
def chosen(tiny: Path, model: Path, tmp_path: Path) -> RerankSettings:
    """The tiny collection and its run of BM25, to be reranked by a tiny model."""
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    return RerankSettings(
        run=folder / "bm25.run",
        topics=folder / "topics.tsv",
        model=str(model),
        output=folder / "new.run",
        collection=folder / "corpus.jsonl",
        device="cpu",
        threads=1,
    )


def kept(chosen: RerankSettings, **changes: Any) -> Path:
    """Tokenise what a reranking reads; the folder."""
    values: dict[str, Any] = {
        "model": chosen.model, "output": chosen.output.parent / "tokens",
        "index": chosen.index, "collection": chosen.collection, **changes,
    }  # fmt: skip
    return Path(tokenize.tokenize(TokenizeSettings(**values)).output)


class Asked:
    """What a tokenizer was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        real = Tokenizer._cut

        def cut(tokenizer: Tokenizer, texts: list[str], limit: int) -> list[Any]:
            self.texts += texts
            return real(tokenizer, texts, limit)

        monkeypatch.setattr(Tokenizer, "_cut", cut)


# ---------------------------------------------------------------- what they stand for


def test_tokens_stand_for_texts(chosen: RerankSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes and parts, at any depth, and no text is read or tokenised but queries."""
    expected = {}
    for depth in (3, 1000):
        expected[depth] = rerank(replace(chosen, depth=depth, force=True))
        expected[depth].details["bytes"] = chosen.output.read_bytes()
    tokens = kept(chosen)
    asked = Asked(monkeypatch)
    monkeypatch.setattr(tasks.Tasks, "_spool", None)

    for depth in (3, 1000):
        outcome = rerank(replace(chosen, depth=depth, tokens=tokens, force=True))
        assert chosen.output.read_bytes() == expected[depth].details["bytes"]
        assert outcome.counts == expected[depth].counts
        assert outcome.pace["padding"] == expected[depth].pace["padding"]
    queries = {line.split("\t")[1] for line in chosen.topics.read_text().splitlines()}
    assert {text for text in asked.texts if text} <= queries

    # Nothing about tokens is part of what determines the run, nor of its parts.
    assert not rerank(chosen).computed
    monkeypatch.undo()
    chosen.output.unlink()
    assert rerank(chosen).details["pairs_scored"] == 0


def test_tokens_of_an_index(chosen: RerankSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Java is not even started; the index's digest is what binds them."""
    place = chosen.output.parent / "index"
    index(IndexSettings(chosen.collection or Path(), place))
    by_index = replace(chosen, collection=None, index=place)
    rerank(by_index)
    expected = by_index.output.read_bytes()
    tokens = kept(by_index)
    assert PassageTokens(tokens).count == 20

    monkeypatch.setattr(lucene, "Index", None)
    rerank(replace(by_index, tokens=tokens, force=True))

    assert by_index.output.read_bytes() == expected
    with refused(f"{tokens}: was not made of {chosen.collection} as it is now", "name the index"):
        rerank(replace(chosen, tokens=tokens, depth=1))


def test_another_model_with_the_same_tokenizer_uses_them(
    chosen: RerankSettings, tmp_path: Path
) -> None:
    """Tokens belong to a tokenizer, not to a model's weights."""
    tokens = kept(chosen)
    other = replace(chosen, model=str(tiny_models.make(tmp_path / "other", "electra", 2)))
    rerank(other)
    expected = other.output.read_bytes()
    rerank(replace(other, tokens=tokens, force=True))
    assert other.output.read_bytes() == expected


def test_tokens_without_padding(
    chosen: RerankSettings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass of a GPU gets the same from tokens as from texts, cut and empty ones included."""
    corpus = list(documents(chosen.collection or Path()))
    tokens = PassageTokens(kept(chosen))
    monkeypatch.setattr(flat, "kernel", lambda engine: flat.one_by_one)
    ranker = CrossEncoder(model, Wishes("cpu", "fp32", 1), Limits(max_tokens=12))
    found, missing = tokens.find([one.docid for one in corpus], 12)
    expected = ranker.score("tomato", [one.text for one in corpus])

    result = ranker.score("tomato", found)

    assert missing == []
    assert result.scores.tobytes() == expected.scores.tobytes()
    assert result[1:] == expected[1:]
    assert result.passages_cut > 3
    nothing, _ = tokens.find([], 12)
    assert ranker.score("tomato", nothing).scores.shape == (0,)


def test_empty_passages_are_counted(chosen: RerankSettings) -> None:
    """As they are where texts are read."""
    assert chosen.collection is not None
    text = chosen.collection.read_text().replace("Water tomato plants at the root in the", "")
    chosen.collection.write_text(text.replace(" morning.", " "))
    counts = rerank(replace(chosen, tokens=kept(chosen))).counts
    assert counts["empty_passages"] == 1
    assert rerank(replace(chosen, force=True)).counts == counts


# ---------------------------------------------------------------- what lies on the disk


@pytest.mark.parametrize(("vocabulary", "width"), [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_where_they_fit(tmp_path: Path, vocabulary: int, width: int) -> None:
    """Found again in any order, cut where asked, unknown documents by their place."""
    ids = [np.array(row, np.int32) for row in ([7, vocabulary - 1, 9], [], [5])]
    texts = ["a", "", "b"]
    (tmp_path / "0.part").write_bytes(part_bytes(["x", "y"], texts[:2], ids[:2], vocabulary))
    (tmp_path / "1.part").write_bytes(part_bytes(["z"], texts[2:], ids[2:], vocabulary))
    about = {"tokenizer": "t", "source": "s", "limit": 3, "vocabulary": vocabulary}

    assert write_tokens(tmp_path, [tmp_path / "0.part", tmp_path / "1.part"], about) == 3

    assert (tmp_path / "tokens.bin").stat().st_size == 4 * width
    tokens, missing = PassageTokens(tmp_path).find(["z", "nobody", "y", "x"], 2)
    assert missing == [1]
    assert tokens.ids.tolist() == [5, 7, vocabulary - 1]
    assert tokens.lengths.tolist() == [1, 0, 2]
    assert len(tokens.keys) == 3 * 16


def test_tokens_are_the_tokenizers_own(chosen: RerankSettings, model: Path) -> None:
    """One more than the limit of a longer passage, so that it is known to be cut."""
    tokens = PassageTokens(kept(chosen, max_tokens=5))
    corpus = list(documents(chosen.collection or Path()))
    found, _ = tokens.find([one.docid for one in corpus], 1000)
    expected = Vocabulary(model).tokens([one.text for one in corpus], 5)
    assert found.lengths.tolist() == list(map(len, expected))
    assert found.ids.tolist() == np.concatenate(expected).tolist()
    assert found.lengths.max() == 6


def test_tokens_are_fresh_until_tokenizer_or_texts_change(
    chosen: RerankSettings, tmp_path: Path
) -> None:
    """Bound to both by content; a model card or weights may change."""
    settings = TokenizeSettings(
        chosen.model, chosen.output.parent / "tokens", None, chosen.collection
    )
    first = tokenize.tokenize(settings)
    assert first.counts["passages"] == 20
    assert not tokenize.tokenize(settings).computed
    other = str(tiny_models.make(tmp_path / "other", "bert", 2))
    assert not tokenize.tokenize(replace(settings, model=other)).computed
    assert tokenize.tokenize(replace(settings, max_tokens=9)).reasons == (
        "max_tokens changed (512 -> 9)",
    )
    assert chosen.collection is not None
    with chosen.collection.open("a") as file:
        file.write('{"id": "new", "contents": "one more"}\n')
    assert tokenize.tokenize(replace(settings, max_tokens=9)).counts["passages"] == 21


def test_an_interrupted_tokenising_goes_on(
    chosen: RerankSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished parts are not made again, and the bytes are those of one go."""
    whole = kept(chosen)
    names = ("tokens.bin", "starts.bin", "docids.bin", "texts.bin")
    expected = [(whole / name).read_bytes() for name in names]
    shutil.rmtree(whole)
    monkeypatch.setattr(tokenize, "PART", 6)
    real, asked = Parts.save, Asked(monkeypatch)

    def save(parts: Parts, key: str, data: bytes) -> Path:
        if len(asked.texts) > 12:
            raise KeyboardInterrupt
        return real(parts, key, data)

    monkeypatch.setattr(Parts, "save", save)
    with pytest.raises(KeyboardInterrupt):
        kept(chosen)
    assert not whole.exists()
    monkeypatch.setattr(Parts, "save", real)
    asked.texts.clear()

    kept(chosen)

    assert len([text for text in asked.texts if text]) == 8
    assert [(whole / name).read_bytes() for name in names] == expected


# ---------------------------------------------------------------- what is refused


def changed(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def test_tokens_of_other_texts_or_tokenizers_are_refused(
    chosen: RerankSettings, tmp_path: Path
) -> None:
    """By digest, before anything is scored; nothing is written."""
    tokens = kept(chosen)
    other = tiny_models.make(tmp_path / "other")
    tiny_models.change(other / "tokenizer_config.json", do_lower_case=False)
    with refused(f"{tokens}: was not made with the tokenizer of ", "pipeline tokenize"):
        rerank(replace(chosen, model=str(other), tokens=tokens))
    assert chosen.collection is not None
    with chosen.collection.open("a") as file:
        file.write('{"id": "new", "contents": "one more"}\n')
    with refused(f"{tokens}: was not made of {chosen.collection} as it is now"):
        rerank(replace(chosen, tokens=tokens))
    assert not chosen.output.exists()


def test_tokens_that_are_too_short_are_refused(chosen: RerankSettings) -> None:
    """A model that reads more of a passage than was kept would score another text."""
    tokens = kept(chosen, max_tokens=40)
    with refused(f"{tokens}: keeps 40 tokens of a passage", "--max-tokens 512"):
        rerank(replace(chosen, tokens=tokens))
    assert rerank(replace(chosen, tokens=tokens, max_tokens=40)).computed


def test_damaged_and_missing_tokens_are_named(chosen: RerankSettings) -> None:
    """Torn files by their size, ids that no vocabulary has, a folder that is something else."""
    tokens = kept(chosen)
    again = replace(chosen, tokens=tokens)
    docids = sorted({line.split()[2] for line in chosen.run.read_text().splitlines()})
    path = tokens / "tokens.bin"
    data = path.read_bytes()
    changed(path, data[:-2])
    with refused(f"{path}: {len(data) - 2:,} bytes instead of {len(data):,}", "tokenize"):
        rerank(again)
    changed(path, b"\xff" * len(data))
    with refused(f"{path}: damaged", "tokenize", InputError):
        PassageTokens(tokens).find(docids, 9)
    changed(path, data)
    starts = (tokens / "starts.bin").read_bytes()
    changed(tokens / "starts.bin", b"\xff" * 6 + b"\x00" * (len(starts) - 6))
    with refused("starts.bin: damaged", "tokenize", InputError):
        PassageTokens(tokens).find(docids, 9)
    changed(tokens / "starts.bin", starts)
    (tokens / "texts.bin").unlink()
    with refused("texts.bin", kind=PipelineError):
        rerank(again)
    about = json.loads((tokens / "about.json").read_text())
    wrong: object
    for wrong in ({**about, "schema": 1}, {**about, "limit": "x"}, {"schema": 2}, [], "{"):
        text = wrong if isinstance(wrong, str) else json.dumps(wrong)
        (tokens / "about.json").write_text(text)
        with refused("about.json", "tokenize", InputError):
            rerank(again)
    with refused(f"{chosen.collection}/nowhere: no such folder of tokens"):
        rerank(replace(chosen, tokens=Path(f"{chosen.collection}/nowhere")))
    with refused(f"{chosen.output.parent}: no tokens in this folder", "pipeline tokenize"):
        rerank(replace(chosen, tokens=chosen.output.parent, output=chosen.run.parent.parent / "r"))
    assert not chosen.output.exists()


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin", "docids.bin", "texts.bin"])
def test_tokens_that_were_edited_are_refused(chosen: RerankSettings, name: str) -> None:
    """Other numbers of the vocabulary would give other scores, and nobody would see it."""
    tokens = kept(chosen)
    data = bytearray((tokens / name).read_bytes())
    data[-2] ^= 1
    changed(tokens / name, bytes(data))
    with refused(f"{tokens}: damaged or edited", "tokenize", InputError):
        rerank(replace(chosen, tokens=tokens))
    assert not chosen.output.exists()
    again = tokenize.tokenize(TokenizeSettings(chosen.model, tokens, None, chosen.collection))
    assert again.reasons == ("output edited",)
    assert rerank(replace(chosen, tokens=tokens)).computed


def test_unreadable_tokens_are_named(shared_path: Path) -> None:
    """Whoever may not read them learns which file it is."""
    part = part_bytes(["x"], ["a"], [np.array([1], np.int32)], 9)
    (shared_path / "0.part").write_bytes(part)
    about = {"tokenizer": "t", "source": "s", "limit": 3, "vocabulary": 9}
    write_tokens(shared_path, [shared_path / "0.part"], about)
    script = f"""
import mmap, os, sys
from pathlib import Path
from pipeline.errors import PipelineError
from pipeline.tokens import PassageTokens
{UNPRIVILEGED}
try:
    PassageTokens(Path(sys.argv[1]))
except PipelineError as error:
    print(error.message)
"""
    for name in ("tokens.bin", "about.json"):
        (shared_path / name).chmod(0)
        said = subprocess.check_output(
            [sys.executable, "-c", script, shared_path], env=ENVIRONMENT, text=True
        )
        assert said.startswith(f"{shared_path / name}: ")


def test_an_unknown_document_is_named_by_its_line(chosen: RerankSettings) -> None:
    """As where texts are read."""
    tokens = kept(chosen)
    text = chosen.run.read_text()
    chosen.run.write_text(text.replace("2 Q0 cake", "2 Q0 ghost"))
    with refused(f"{chosen.run}:8: topic '2': no document 'ghost' in {tokens}", kind=InputError):
        rerank(replace(chosen, tokens=tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregation": "maxp"}, "--tokens and --windows together"),
        ({"model": "overlap"}, "tokens are for cross-encoders"),
    ],
)
def test_settings_that_cannot_be_together(
    chosen: RerankSettings, change: dict[str, Any], message: str
) -> None:
    """Said before anything is read."""
    with refused(message, "leave --tokens out"):
        rerank(replace(chosen, tokens=chosen.output.parent / "tokens", **change))


def test_what_cannot_be_tokenised(chosen: RerankSettings, tmp_path: Path) -> None:
    """A docid twice, an output in the place of an input, numbers out of range, no model."""
    assert chosen.collection is not None
    with refused("--max-tokens 0 is out of range"):
        kept(chosen, max_tokens=0)
    with refused("is a file"):
        kept(chosen, output=chosen.run)
    with refused("is also an input"):
        kept(chosen, output=chosen.collection)
    with refused("no such model"):
        kept(chosen, model=str(tmp_path / "nowhere"))
    line = chosen.collection.read_text().splitlines()[0]
    with chosen.collection.open("a") as file:
        file.write(f"{line}\n")
    with refused("two documents have one id"):
        kept(chosen)
    assert not (chosen.output.parent / "tokens").exists()


def test_the_commands(chosen: RerankSettings, model: Path) -> None:
    """`pipeline tokenize`, then `pipeline rerank --tokens`."""
    folder = chosen.output.parent

    def run(words: Sequence[object]) -> None:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output

    source = ["--model", model, "--collection", chosen.collection]
    run(["tokenize", *source, "--output", folder / "t", "--quiet"])
    reads = ["--run", chosen.run, "--topics", chosen.topics, "--device", "cpu", "--quiet"]
    run(["rerank", *source, *reads, "--tokens", folder / "t", "--output", folder / "a.run"])
    run(["rerank", *source, *reads, "--output", folder / "b.run"])
    assert (folder / "a.run").read_bytes() == (folder / "b.run").read_bytes()


def test_refusals_are_two_lines(chosen: RerankSettings) -> None:
    """Also where the whole of a path is shown."""
    tokens = PassageTokens(kept(chosen))
    for call in (
        lambda: tokens.need_length(1000),
        lambda: tokens.need_texts("another", "corpus.jsonl"),
        lambda: tokens.need_tokenizer("another", "small"),
    ):
        try:
            call()
        except PipelineError as error:
            check_two_lines(error)
        else:
            pytest.fail("nothing was refused")
