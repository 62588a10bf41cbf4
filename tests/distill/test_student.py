"""The student: whose layers it starts from, how it scores, who can load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import without

from pipeline.distill.forward import (
    Limits,
    batches,
    bert_shape,
    head,
    inside,
    logits,
    pair_batches,
    pair_logits,
)
from pipeline.distill.settings import Size
from pipeline.distill.student import initial_student, load_base, load_student, save_student
from pipeline.errors import PipelineError

PAIRS = [("apple", "apple pear tree"), ("moon", "sun star sky moon rain ."), ("sea", "stone")]


def token_ids(tokenizer, text):
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])


def our_logits(student, tokenizer, pairs, limits=None, budget=64):
    queries = [token_ids(tokenizer, query) for query, _ in pairs]
    passages = [token_ids(tokenizer, passage) for _, passage in pairs]
    shape, cpu = bert_shape(tokenizer), torch.device("cpu")
    made = pair_batches(queries, passages, shape, limits or Limits(8, 32), budget, cpu)
    with torch.inference_mode():
        return pair_logits(lambda batch: logits(student, batch), made)


def test_first_weights_are_the_chosen_layers(tiny_bert: Path):
    """Layers 1 and 3 of the base become 0 and 1; embeddings and pooler are copied."""
    from transformers import BertModel

    base = BertModel.from_pretrained(tiny_bert).state_dict()
    student, _ = initial_student(tiny_bert, [1, 3], seed=5)
    weights = student.bert.state_dict()
    assert student.config.num_hidden_layers == 2
    compared = 0
    for name, tensor in weights.items():
        source = name.replace("encoder.layer.1.", "encoder.layer.3.").replace(
            "encoder.layer.0.", "encoder.layer.1."
        )
        assert torch.equal(tensor, base[source]), name
        compared += 1
    assert compared == 5 + 2 * 16 + 2


def test_the_new_head_depends_on_the_seed_alone(tiny_bert: Path):
    """Same seed, same head, whatever the generator's state; another seed, another head."""
    heads = []
    for seed in (5, 5, 6):
        torch.rand(3)
        heads.append(initial_student(tiny_bert, [0], seed)[0].classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_student_can_be_trained_further(tiny_bert: Path, tmp_path: Path):
    """Started from a student's folder it is that student, head included, up to fp16."""
    student, tokenizer = initial_student(tiny_bert, [0, 2], seed=5)
    save_student(student, tokenizer, tmp_path / "s", {}, "")
    again, _ = initial_student(tmp_path / "s", [0, 1], seed=6)
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name


@pytest.mark.parametrize("layers", [[], [4], [-1]])
def test_layers_that_are_not_there_are_an_error(tiny_bert: Path, layers):
    """The message says which layers there are."""
    with pytest.raises(PipelineError, match="layers 0 to 3"):
        initial_student(tiny_bert, layers, seed=0)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path):
    """One line, no traceback of transformers."""
    with pytest.raises(PipelineError, match=r"no config\.json"):
        initial_student(tmp_path, [0], seed=0)


def test_a_base_that_lacks_a_layer_is_refused(tiny_bert: Path, tmp_path: Path):
    """transformers would fill it with random numbers, and say so in a log that nobody reads."""
    folder = without(tiny_bert, tmp_path / "torn", "encoder.layer.1.")

    with pytest.raises(PipelineError, match=r"no weights for encoder\.layer\.1\."):
        initial_student(folder, [0], seed=0)


def test_a_base_without_a_pooler_gives_the_same_student_each_time(tiny_bert: Path, tmp_path: Path):
    """Encoders of language models have none; what stands in for it is no chance, and costs none."""
    folder = without(tiny_bert, tmp_path / "plain", "pooler.")
    torch.manual_seed(3)
    expected = torch.rand(1)

    first, _ = initial_student(folder, [0, 1], seed=0)
    torch.manual_seed(3)
    again, _ = initial_student(folder, [0, 1], seed=0)

    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name
    torch.manual_seed(3)
    load_base(folder)
    assert torch.equal(torch.rand(1), expected)


def test_a_pickled_base_is_refused(tiny_bert: Path, tmp_path: Path):
    """It could run code."""
    folder = shutil.copytree(tiny_bert, tmp_path / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(PipelineError, match="pickled weights are never loaded"):
        initial_student(folder, [0], seed=0)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
def test_a_student_cuts_texts_as_its_base_does(
    tiny_bert: Path, tmp_path: Path, lower: bool, accents: bool | None
):
    """Cased bases, and such as keep accents, have students that do."""
    from transformers import AutoTokenizer, BertTokenizer

    folder = shutil.copytree(tiny_bert, tmp_path / "base")
    words = ["apple", "Apple", "cafe", "caf\u00e9", "Cafe", "Caf\u00e9", *map(str, range(22))]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: place for place, word in enumerate([*special, *words])}
    BertTokenizer(vocab=vocabulary, do_lower_case=lower, strip_accents=accents).save_pretrained(
        folder
    )
    base = AutoTokenizer.from_pretrained(folder)

    save_student(*initial_student(folder, [0], seed=0), tmp_path / "s", {}, "")

    own = AutoTokenizer.from_pretrained(tmp_path / "s")
    text = "Apple caf\u00e9 Caf\u00e9 cafe"
    assert own.tokenize(text) == base.tokenize(text)


def test_a_tokenizer_of_another_kind_is_refused_before_any_training(
    tiny_bert: Path, tmp_path: Path
):
    """As multilingual BERTs with XLM-R's tokenizer have it: no student's folder could hold it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    for path in folder.glob("*tok*"):
        path.unlink()
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    unigram = Tokenizer(models.Unigram([*pieces, *((f"w{n}", -1.0) for n in range(29))], unk_id=3))
    names = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    special = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=unigram, **special).save_pretrained(folder)

    with pytest.raises(PipelineError, match=r"the tokenizer is not BERT's \(Unigram, <s> </s>"):
        initial_student(folder, [0], seed=0)


def test_the_fast_forward_pass_is_the_models_own(tiny_bert: Path):
    """Pairs of several lengths in several batches score as transformers scores them one by one."""
    student, tokenizer = initial_student(tiny_bert, [0, 2, 3], seed=5)
    ours = our_logits(student, tokenizer, PAIRS)
    for (query, passage), logit in zip(PAIRS, ours, strict=True):
        encoded = tokenizer(query, passage, return_tensors="pt")
        with torch.inference_mode():
            theirs = student(**encoded).logits[0, 0]
        assert float(logit) == pytest.approx(float(theirs), abs=1e-5)


def test_the_inside_is_the_models_own(tiny_bert: Path):
    """Hidden states are those of transformers, whose attention is the softmax of our scores."""
    student, tokenizer = initial_student(tiny_bert, [0, 2, 3], seed=5)
    student.bert.set_attn_implementation("eager")
    queries = [token_ids(tokenizer, query) for query, _ in PAIRS]
    passages = [token_ids(tokenizer, passage) for _, passage in PAIRS]
    shape, cpu = bert_shape(tokenizer), torch.device("cpu")
    ((places, batch),) = pair_batches(queries, passages, shape, Limits(8, 32), 1000, cpu)
    assert not batch.mask.all()  # something is padded
    with torch.inference_mode():
        ours = inside(student.bert, batch, {0, 1, 2, 3})
        theirs = student.bert(
            input_ids=batch.ids, attention_mask=batch.mask, token_type_ids=batch.segments,
            output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        assert len(theirs.attentions) == 3  # not the empty tuple of other implementations
        real = batch.mask.bool()
        for number in range(4):
            assert torch.allclose(
                ours.hidden[number][real], theirs.hidden_states[number][real], atol=1e-5
            )
        bias = torch.where(real, 0.0, float("-inf"))[:, None, None]
        for number in (1, 2, 3):
            query, key, _ = ours.attention[number]
            scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias
            rows = real[:, None, :].expand(scores.shape[:3])
            expected = theirs.attentions[number - 1][rows]
            assert torch.allclose(scores.softmax(-1)[rows], expected, atol=1e-5)
        whole = head(student, ours.last)
        assert torch.allclose(whole, logits(student, batch), atol=1e-5)
    assert sorted(places.tolist()) == [0, 1, 2]


def test_a_student_of_new_weights_has_the_shape_asked_for(tiny_bert: Path):
    """Nothing is copied but the vocabulary; the seed decides every weight."""
    size = Size(layers=2, hidden=24, heads=4, intermediate=20)
    student, tokenizer = initial_student(tiny_bert, [0], seed=5, size=size)
    again, _ = initial_student(tiny_bert, [0], seed=5, size=size)
    other, _ = initial_student(tiny_bert, [0], seed=6, size=size)
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size) == (2, 24)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 20)
    assert config.vocab_size == len(tokenizer)
    weights = student.bert.embeddings.word_embeddings.weight
    assert torch.equal(weights, again.bert.embeddings.word_embeddings.weight)
    assert not torch.equal(weights, other.bert.embeddings.word_embeddings.weight)


def test_projected_embeddings_keep_what_a_narrow_space_can(tiny_bert: Path):
    """Words keep as much of the variance as that many principal directions have, on any seed."""
    from transformers import BertModel

    base = BertModel.from_pretrained(tiny_bert).embeddings
    size = Size(layers=1, hidden=8, heads=2, intermediate=8)
    made = [initial_student(tiny_bert, [0], seed, size, projected=True)[0] for seed in (5, 6)]
    words, again = (one.bert.embeddings.word_embeddings.weight.detach() for one in made)
    assert torch.equal(words, again)
    wide = (base.word_embeddings.weight * base.LayerNorm.weight).detach()
    wide -= wide.mean(dim=0)
    singular = torch.linalg.svdvals(wide.double())
    assert torch.allclose(words.double().square().sum(), singular[:8].square().sum(), rtol=1e-4)
    assert torch.allclose(words.mean(dim=0), torch.zeros(8), atol=1e-5)
    for name in ("position_embeddings", "token_type_embeddings"):
        narrow, full = (getattr(e, name).weight.detach() for e in (made[0].bert.embeddings, base))
        assert narrow.shape == (len(full), 8)
        assert 0 < narrow.norm() <= (full * base.LayerNorm.weight).norm() * 1.0001


def test_narrow_embeddings_cannot_be_widened(tiny_bert: Path):
    """A base narrower than the student has nothing to fill it with."""
    size = Size(layers=1, hidden=512, heads=2, intermediate=8)
    with pytest.raises(PipelineError, match="cannot fill 512"):
        initial_student(tiny_bert, [0], 5, size, projected=True)


def test_only_the_passage_is_cut_and_the_query_is_capped(tiny_bert: Path):
    """As the tokenizer does with only_second on a query cut to the cap."""
    student, tokenizer = initial_student(tiny_bert, [0, 1], seed=5)
    query, passage = "apple pear plum tree leaf", "sea ship wave salt fish moon star sun sky cloud"
    ours = our_logits(student, tokenizer, [(query, passage)], Limits(query=3, pair=12))
    encoded = tokenizer(
        "apple pear plum", passage, truncation="only_second", max_length=12, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = student(**encoded).logits[0, 0]
    assert float(ours[0]) == pytest.approx(float(theirs), abs=1e-5)


def test_batches_cover_all_pairs_within_the_budget():
    """Every pair once; padded tokens within the budget unless one pair alone exceeds it."""
    lengths = np.array([5, 64, 9, 100, 33, 8, 8, 7])
    cut = list(batches(lengths, 128))
    assert sorted(np.concatenate(cut).tolist()) == list(range(8))
    for places in cut:
        padded = len(places) * (-(-int(lengths[places].max()) // 8) * 8)
        assert padded <= 128 or len(places) == 1


def test_a_saved_student_scores_the_same_everywhere(tiny_bert: Path, tmp_path: Path):
    """transformers loads the folder and gives our logits up to fp16; files are few and plain."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    student, tokenizer = initial_student(tiny_bert, [0, 2], seed=5)
    save_student(student, tokenizer, tmp_path / "s", {"interpolate": 0.7}, "# card\n")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "pipeline.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "s/pipeline.json").read_text()) == {
        "schema": 1,
        "interpolate": 0.7,
    }
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "s", dtype=torch.float32)
    assert loaded.config.num_labels == 1
    own = AutoTokenizer.from_pretrained(tmp_path / "s")
    ours = our_logits(student, tokenizer, PAIRS)
    again = our_logits(load_student(tmp_path / "s"), own, PAIRS)
    assert again.tolist() == pytest.approx(ours.tolist(), abs=1e-3)
    for (query, passage), logit in zip(PAIRS, ours, strict=True):
        with torch.inference_mode():
            theirs = loaded(**own(query, passage, return_tensors="pt")).logits[0, 0]
        assert float(theirs) == pytest.approx(float(logit), abs=1e-3)


def test_a_saved_student_is_a_cross_encoder_of_sentence_transformers(
    tiny_bert: Path, tmp_path: Path
):
    """`CrossEncoder(folder).predict` gives raw logits, not squashed ones."""
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is absent")
    student, tokenizer = initial_student(tiny_bert, [0, 2], seed=5)
    with torch.no_grad():
        student.classifier.bias += 3  # beyond what a sigmoid can give
    save_student(student, tokenizer, tmp_path / "s", {}, "# card\n")
    model = library.CrossEncoder(str(tmp_path / "s"), device="cpu")
    theirs = model.predict(PAIRS)
    assert theirs.tolist() == pytest.approx(
        our_logits(student, tokenizer, PAIRS).tolist(), abs=1e-2
    )


def test_weights_that_fp16_cannot_hold_are_refused(tiny_bert: Path, tmp_path: Path):
    """Infinity in the file would poison every score."""
    student, tokenizer = initial_student(tiny_bert, [0], seed=5)
    with torch.no_grad():
        student.classifier.weight[0, 0] = 1e6
    with pytest.raises(PipelineError, match="not finite in fp16"):
        save_student(student, tokenizer, tmp_path / "s", {}, "")
    assert not (tmp_path / "s").exists()
