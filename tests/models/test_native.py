"""Our own kernels beside the formulas in float64, and what is done where they cannot be used."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import gelu, layer_norm, linear

from pipeline.models import native
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.folder import locate
from pipeline.models.native import LIBRARY, LONGEST, Kernels
from pipeline.models.scorer import Limits, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
BF16 = Wishes(device="cpu", precision="bf16")
ABLE = torch.cpu.get_capabilities()
needs_kernels = pytest.mark.skipif(
    sys.platform != "linux" or not all(ABLE.get(name) for name in native.NEEDED),
    reason="the kernels want x86-64 Linux with AVX-512 BF16",
)


def made_for(*, tiles: bool) -> Kernels:
    library = ctypes.CDLL(str(LIBRARY))
    if tiles and not (ABLE.get("amx_bf16") and library.may_use_tiles()):
        pytest.skip("this processor has no AMX")
    return Kernels(library, tiles=tiles)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let the library be looked for again, and once more afterwards."""
    native.kernels.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native.kernels.cache_clear()


def attention(projected: torch.Tensor, length: int, heads: int, width: int) -> torch.Tensor:
    """Context of one sequence's tokens in float64."""
    parts = projected[:length].double().view(length, 3, heads, width).unbind(1)
    query, key, value = (part.transpose(0, 1) for part in parts)
    return ((query @ key.transpose(1, 2)).softmax(-1) @ value).transpose(0, 1).flatten(1)


@needs_kernels
@pytest.mark.parametrize("tiles", [False, True], ids=["dots", "tiles"])
@pytest.mark.parametrize("width", native.WIDTHS)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 9),
    st.sampled_from([0.0, 1.0, 30.0, -300.0]),
)
def test_attention_is_softmax_over_the_tokens(
    tiles: bool, width: int, lengths: list[int], heads: int, padding: int, scale: float
) -> None:
    """Of any lengths and scores; padding, whatever it holds, is not looked at and gives zero."""
    kernels, positions = made_for(tiles=tiles), max(lengths) + padding
    projected = draw(len(lengths), positions, 3 * heads * width, seed=sum(lengths))
    projected[:, :, : heads * width] *= scale
    if abs(scale) > 1:  # one position wins in every row, so that rounding decides nothing
        key = projected[:, :, heads * width : 2 * heads * width]
        key[:, 1:] = key[:, :1] * 0.25
    for row, length in enumerate(lengths):
        projected[row, length:] = torch.nan

    made = kernels.attend(projected, torch.tensor(lengths, dtype=torch.int32), heads, width)

    for row, length in enumerate(lengths):
        expected = attention(projected[row], length, heads, width)
        torch.testing.assert_close(made[row, :length].double(), expected, atol=0.03, rtol=0.03)
        assert not made[row, length:].any()


@needs_kernels
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.1, 30.0, 1e18]),
)
def test_averages_are_by_softmax(lengths: list[int], heads: int, part: int, scale: float) -> None:
    """Of any number of queries; padding, whatever it holds, is not looked at."""
    positions, width = max(lengths) + 3, 32 * part
    queries = draw(len(lengths), heads, width, seed=heads).float() * scale
    hidden = draw(len(lengths), positions, width, seed=part).float()
    if scale > 1:  # one position wins, so that rounding decides nothing
        hidden[:, 1:] = hidden[:, :1] * 0.25
    for row, length in enumerate(lengths):
        hidden[row, length:] = torch.nan

    made = made_for(tiles=False).average(queries, hidden, torch.tensor(lengths, dtype=torch.int32))

    for row, length in enumerate(lengths):
        kept = hidden[row, :length].double()
        expected = (queries[row].double() @ kept.T).softmax(-1) @ kept
        torch.testing.assert_close(made[row].double(), expected, atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("tiles", [False, True], ids=["dots", "tiles"])
def test_no_bit_of_a_sequence_hangs_on_what_stands_beside_it(tiles: bool) -> None:
    """Alone, among others and in longer padding its context is the same."""
    kernels, lengths = made_for(tiles=tiles), torch.tensor([33, 200, 8], dtype=torch.int32)
    projected = draw(3, 200, 3 * 64)

    together = kernels.attend(projected, lengths, 2, 32)

    for row, length in enumerate(lengths.tolist()):
        alone = kernels.attend(projected[row : row + 1, :length], lengths[row : row + 1], 2, 32)
        assert torch.equal(alone[0], together[row, :length])


@needs_kernels
@pytest.mark.parametrize("tiles", [False, True], ids=["dots", "tiles"])
def test_the_longest_sequence(tiles: bool) -> None:
    """As many positions as a sequence may have."""
    projected = draw(1, LONGEST, 3 * 64)
    lengths = torch.tensor([LONGEST], dtype=torch.int32)

    made = made_for(tiles=tiles).attend(projected, lengths, 1, 64)

    expected = attention(projected[0], LONGEST, 1, 64)
    torch.testing.assert_close(made[0].double(), expected, atol=0.01, rtol=0.02)


@needs_kernels
@pytest.mark.parametrize(
    ("positions", "width", "lengths"),
    [(LONGEST + 1, 32, [3]), (8, 48, [3]), (8, 32, [9]), (8, 32, [-1])],
)
def test_other_shapes_are_refused(positions: int, width: int, lengths: list[int]) -> None:
    """Before a number is read or written."""
    kernels = made_for(tiles=False)
    with pytest.raises(ValueError, match="no kernel"):
        kernels.attend(
            draw(1, positions, 3 * width), torch.tensor(lengths, dtype=torch.int32), 1, width
        )


@needs_kernels
@pytest.mark.parametrize(
    ("positions", "width", "length"), [(LONGEST + 1, 32, 3), (8, 48, 3), (8, 32, 9), (8, 32, 0)]
)
def test_averages_of_other_shapes_are_refused(positions: int, width: int, length: int) -> None:
    """One of nothing among them."""
    kernels, some = made_for(tiles=False), torch.zeros(1, positions, width)
    with pytest.raises(ValueError, match="no kernel for this shape"):
        kernels.average(some[:, :2], some, torch.tensor([length], dtype=torch.int32))


@needs_kernels
def test_what_c_would_trust_is_checked() -> None:
    """Types, sizes and strides that would have it read what is not there."""
    kernels, long = made_for(tiles=False), torch.zeros(2, 4, dtype=torch.int64)
    x, row, lengths = draw(2, 4, 96), torch.ones(32), torch.tensor([4, 4], dtype=torch.int32)
    ones, tables = torch.ones(3, 32), (torch.ones(9, 32), torch.ones(4, 32), torch.ones(2, 32))
    wrong: list[Callable[[], torch.Tensor]] = [
        lambda: kernels.attend(x, lengths.long(), 1, 32),
        lambda: kernels.attend(x[0], torch.full((4,), 96, dtype=torch.int32), 1, 32),
        lambda: kernels.attend(x, lengths[:1], 1, 32),
        lambda: kernels.attend(x, lengths, 2, 32),
        lambda: kernels.attend(x.float(), lengths, 1, 32),
        lambda: kernels.average(x, x, lengths),
        lambda: kernels.average(x.float(), x.float()[..., :64], lengths),
        lambda: kernels.average(x.float(), x.float(), lengths.long()),
        lambda: kernels.norm(draw(3, 32), ones, torch.ones(16), row, 1e-12),
        lambda: kernels.norm(draw(3, 32), ones, torch.ones(64)[::2], row, 1e-12),
        lambda: kernels.norm(draw(3, 32), ones, row, row.bfloat16(), 1e-12),
        lambda: kernels.norm(ones, ones, row, row, 1e-12),
        lambda: kernels.norm(draw(3, 32), ones.bfloat16(), row, row, 1e-12),
        lambda: kernels.norm(draw(3, 32), ones[:2], row, row, 1e-12),
        lambda: kernels.embed(long, long[:1], tables, row, row, 1e-12),
        lambda: kernels.embed(long, long, (tables[0], ones[:, :16], tables[2]), row, row, 1e-12),
        lambda: kernels.embed(long, long, (draw(9, 32), *tables[1:]), row, row, 1e-12),
        lambda: kernels.multiply(draw(3, 64), draw(32, 32), row),
        lambda: kernels.multiply(draw(3, 32).float(), draw(32, 32), row),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="no kernel for such tensors"):
            call()


@needs_kernels
@pytest.mark.parametrize("tiles", [False, True], ids=["dots", "tiles"])
def test_what_is_no_number_stays_none(tiles: bool) -> None:
    """A plausible number would hide it: NaN in a key, and a row whose variance is no float."""
    kernels, lengths = made_for(tiles=tiles), torch.tensor([5], dtype=torch.int32)
    projected = draw(1, 5, 96)
    projected[0, 3, 40] = torch.nan
    assert kernels.attend(projected, lengths, 1, 32).isnan().all()

    huge = draw(2, 32)
    huge[1] *= 1e20
    made, _ = kernels.norm(huge, torch.zeros(2, 32), torch.ones(32), torch.zeros(32), 1e-12)
    assert made[0].isfinite().all()
    assert made[1].isnan().all()


@needs_kernels
@pytest.mark.parametrize("tiles", [False, True], ids=["dots", "tiles"])
def test_scores_far_below_all_floats(tiles: bool) -> None:
    """They make a softmax as any others do; and a sequence without tokens makes nothing."""
    projected = torch.zeros(2, 3, 96).bfloat16()
    projected[..., :32], projected[..., 32:64] = 3.2e18, -3.2e18
    projected[..., 64:] = draw(3, 32)
    lengths = torch.tensor([3, 0], dtype=torch.int32)

    made = made_for(tiles=tiles).attend(projected, lengths, 1, 32)

    torch.testing.assert_close(
        made[0].double(), projected[0, :, 64:].double().mean(0).expand(3, 32), atol=0.01, rtol=0.01
    )
    assert not made[1].any()


@needs_kernels
def test_multiplications_of_onednn_are_left_alone() -> None:
    """It believes that tiles are shaped as it left them."""
    kernels = made_for(tiles=True)
    x, weight, projected = draw(40, 384), draw(70, 384), draw(2, 30, 3 * 64)
    lengths = torch.tensor([30, 7], dtype=torch.int32)
    product, context = x @ weight.T, kernels.attend(projected, lengths, 2, 32)

    for rows in (40, 5, 17):
        assert torch.equal(kernels.attend(projected, lengths, 2, 32), context)
        torch.testing.assert_close(x[:rows] @ weight.T, product[:rows])


@needs_kernels
@given(
    st.integers(1, 100),
    st.sampled_from([(32, 32), (384, 64), (512, 96), (768, 32), (1536, 64)]),
    st.booleans(),
)
def test_linear_layers(rows: int, shape: tuple[int, int], with_gelu: bool) -> None:
    """Of any number of rows, short and long ones, and what may follow."""
    kernels, (depth, width) = made_for(tiles=True), shape
    x, weight = draw(rows, depth, seed=rows), draw(width, depth, seed=depth)
    bias = draw(width).float()

    made = kernels.multiply(x, kernels.lay_out(weight), bias, with_gelu=with_gelu)

    expected = linear(x.double(), weight.double(), bias.double())
    expected = gelu(expected) if with_gelu else expected
    torch.testing.assert_close(made.double(), expected, atol=0.01, rtol=0.01)


@needs_kernels
def test_no_bit_of_a_row_hangs_on_how_many_there_are() -> None:
    """Fewer than a block, a block, and a last block that overlaps the one before."""
    kernels = made_for(tiles=True)
    weight, bias, x = kernels.lay_out(draw(96, 384)), draw(96).float(), draw(1100, 384)

    whole = kernels.multiply(x, weight, bias)

    for rows in (1, 31, 32, 33, 64, 99, 512, 513, 543, 545, 1025):
        assert torch.equal(kernels.multiply(x[:rows], weight, bias), whole[:rows])
        assert torch.equal(kernels.multiply(x[-rows:], weight, bias), whole[-rows:])


@needs_kernels
def test_the_gelu_is_the_exact_one() -> None:
    """Over all bf16 from 0.01 to 30 and from -30 to -0.01, but for rounding and 2e-5."""
    kernels, weight = made_for(tiles=True), torch.eye(32).bfloat16()
    x = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[(x.abs() > 0.01) & (x.abs() < 30)]
    x = x[: len(x) // 32 * 32].view(-1, 32)

    made = kernels.multiply(x, kernels.lay_out(weight), torch.zeros(32), with_gelu=True)

    torch.testing.assert_close(made.double(), gelu(x.double()), atol=3e-5, rtol=2**-8)
    far = torch.tensor([[-3e38, 3e38]]).bfloat16().repeat(1, 16)
    made = kernels.multiply(far, kernels.lay_out(2 * weight), torch.zeros(32), with_gelu=True)
    assert made[0, ::2].isnan().all()  # torch's too: no plausible number for minus infinity
    assert made[0, 1::2].isposinf().all()


@needs_kernels
@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (1024 + 512 + 64, 32), (32, 8192), (1, 32)])
def test_other_linear_layers_are_refused(shape: tuple[int, int]) -> None:
    """They are left to oneDNN."""
    kernels, (depth, width) = made_for(tiles=True), shape
    assert not kernels.can_multiply(depth, width)
    with pytest.raises(ValueError, match="no kernel"):
        kernels.multiply(draw(3, depth), draw(width, depth), torch.zeros(width))


@needs_kernels
@given(st.integers(1, 5), st.integers(1, 32), st.floats(0.01, 100), st.floats(-100, 100))
def test_norms_are_layer_norms(rows: int, wide: int, scale: float, shift: float) -> None:
    """Of rows of any multiple of 32 numbers, far from zero as well."""
    hidden = 32 * wide
    x = (draw(rows, hidden).float() * scale + shift).bfloat16()
    weight, bias = draw(hidden, seed=1).float(), draw(hidden, seed=2).float()

    other = draw(rows, hidden, seed=3).float() * scale

    rounded, exact = made_for(tiles=False).norm(x, other, weight, bias, 1e-12)

    total = x.double() + other.double()
    expected = layer_norm(total, (hidden,), weight.double(), bias.double(), 1e-12)
    if float(total.std(dim=-1).min()) > 1e-2 * abs(shift):
        torch.testing.assert_close(exact.double(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(rounded, exact.bfloat16())


@needs_kernels
def test_an_embedding_that_no_table_has_is_an_error() -> None:
    """And nothing is read outside of a table."""
    kernels = made_for(tiles=False)
    tables = draw(9, 32).float(), draw(4, 32).float(), draw(2, 32).float()
    exact = torch.ones(32), torch.zeros(32)
    fine, zero = torch.tensor([[8, 0, 3]]), torch.zeros(1, 3, dtype=torch.int64)

    kernels.embed(fine, zero, tables, *exact, 1e-12)
    for ids, kinds in ((fine + 1, zero), (fine - 1, zero), (fine, zero + 2), (fine, zero - 1)):
        with pytest.raises(IndexError):
            kernels.embed(ids, kinds, tables, *exact, 1e-12)
    with pytest.raises(IndexError):
        kernels.embed(torch.zeros(1, 5).long(), torch.zeros(1, 5).long(), tables, *exact, 1e-12)


@needs_kernels
def test_they_are_used_where_they_can_be() -> None:
    """By tiles where there are some."""
    kernels = native.kernels()
    assert kernels is not None
    assert kernels.kind == ("amx_bf16" if ABLE.get("amx_bf16") else "avx512_bf16")


# ---------------------------------------------------------------- in a model


@needs_kernels
@pytest.mark.model
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_scores_are_those_without_them(anew: pytest.MonkeyPatch, precision: str) -> None:
    """But for what bf16 rounds; and the signature tells which were used."""
    wishes = Wishes(device="cpu", precision=precision)
    passages = ["Sorts a list in place.", "Opens a file " * 40, "sorting", "a b c " * 90]
    ours = CrossEncoder(locate("small"), wishes, Limits())
    made, signature = ours.score("how to sort a list", passages).scores, ours.signature

    anew.setattr(native, "LIBRARY", Path("/nonexistent"))
    native.kernels.cache_clear()
    theirs = CrossEncoder(locate("small"), wishes, Limits())

    expected = theirs.score("how to sort a list", passages).scores
    assert made == pytest.approx(expected, abs=0.3)
    assert signature["kernels"] in {"amx_bf16", "avx512_bf16"}
    assert "kernels" not in theirs.signature


# ---------------------------------------------------------------- where they cannot be used


def test_without_the_library_torch_computes(anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It may be missing, junk, or of another version."""
    for data in (None, b"junk", b"\x7fELF" + bytes(60)):
        path = tmp_path / "kernels.so"
        if data is not None:
            path.write_bytes(data)
        anew.setattr(native, "LIBRARY", path)
        native.kernels.cache_clear()
        assert native.kernels() is None


@needs_kernels
def test_another_version_or_wrong_results_are_not_used(anew: pytest.MonkeyPatch) -> None:
    """What it computes is compared with torch before anything else is."""
    anew.setattr(native, "VERSION", native.VERSION + 1)
    assert native.kernels() is None
    anew.undo()

    anew.setattr(Kernels, "norm", lambda *given: given[1:3])
    native.kernels.cache_clear()
    assert native.kernels() is None


def test_the_library_is_what_its_source_makes() -> None:
    """Byte for byte, where the compiler that made it is at hand."""
    command = [sys.executable, ROOT / "scripts" / "build_native.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stderr) == (0, "")
