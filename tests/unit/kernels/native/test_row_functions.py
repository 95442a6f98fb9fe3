"""The compiled norms, rotations, gates and attention agree with torch; the bits of a row are its own."""

import pytest
import torch
from torch.nn import functional

from hydra.kernels.attention.host_decode import HostDecode
from hydra.kernels.attention.paged_attention import make_decode
from hydra.kernels.attention.paged_rows import PagedRows
from hydra.kernels.model.feed_forward import _gelu_tanh
from hydra.kernels.model.rotary import RotaryTable, rotate, rotate_some
from hydra.kernels.native.row_functions import native_gate, native_rms_norm, native_rotation
from tests.unit.kernels.test_decode_step import SpelledOut

CPU = torch.device("cpu")
ROWS, WIDTHS = 7, (5, 24, 64, 577, 2048)
N_BLOCKS, BLOCK_SIZE = 60, 8
HEADS = [(32, 8, 64), (4, 1, 128), (5, 5, 80), (3, 1, 20), (14, 2, 256)]

pytestmark = pytest.mark.usefixtures("library")


def close(made: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    assert float((made - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("width", WIDTHS)
def test_norms(width, threads) -> None:
    x, weight = torch.randn(ROWS, width) * torch.logspace(-6, 6, ROWS)[:, None], torch.randn(width)
    norm = native_rms_norm(weight, 1e-5)
    made = norm(x)
    for row in range(ROWS):
        close(made[row], functional.rms_norm(x[row], (width,), weight, 1e-5))
        assert torch.equal(norm(x[row]), made[row])
    threads(3)
    assert torch.equal(norm(x.repeat(500, 1)), made.repeat(500, 1))


def test_a_norm_of_heads_that_lie_apart() -> None:
    heads, weight = torch.randn(ROWS, 6, 24), torch.rand(24)
    norm = native_rms_norm(weight, 1e-6)
    close(norm(heads[:, :4]), functional.rms_norm(heads[:, :4], (24,), weight, 1e-6))


@pytest.mark.parametrize(("width", "channels"), [(64, 64), (24, 24), (20, 12), (128, 32)])
def test_rotations(width, channels, threads) -> None:
    angles = torch.randn(ROWS, 1, channels // 2)
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat((-angles.sin(), angles.sin()), -1)
    heads = torch.randn(ROWS, 9, width)
    before, table = heads.clone(), RotaryTable(cos, sin)
    expected = rotate(before[:, :6], table) if width == channels else rotate_some(before[:, :6], table)
    made = native_rotation(torch.float32, CPU)(heads[:, :6], cos, sin)
    close(made, expected)
    assert made.data_ptr() == heads.data_ptr() and torch.equal(heads[:, 6:], before[:, 6:]), "in place, and no further"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("activation", "plain"), [("silu", functional.silu), ("gelu_tanh", _gelu_tanh)])
def test_gates(activation, plain, width, threads) -> None:
    both = torch.randn(ROWS, 2 * width) * torch.logspace(-4, 2, ROWS)[:, None]
    gate = native_gate(activation, torch.float32, CPU)
    made, expected = gate(both), plain(both[:, :width]) * both[:, width:]
    torch.testing.assert_close(made, expected, rtol=2e-6, atol=1e-30 if activation == "silu" else 1e-4)
    assert all(torch.equal(gate(both[row : row + 1]), made[row : row + 1]) for row in range(ROWS))
    threads(3)
    assert torch.equal(gate(both.repeat(300, 1)), made.repeat(300, 1))


def test_what_has_no_compiled_form() -> None:
    assert native_gate("gelu", torch.float32, CPU) is None
    assert native_gate("silu", torch.bfloat16, CPU) is None
    assert native_rms_norm(torch.ones(4, dtype=torch.bfloat16), 1e-5) is None
    assert native_rotation(torch.float16, CPU) is None


def rows_of(n: int) -> tuple[PagedRows, torch.Tensor]:
    """Of several lengths, some behind a window, in blocks of their own that lie anywhere; and what they may see."""
    random = torch.Generator().manual_seed(n)
    reach = torch.randint(1, 12 * BLOCK_SIZE, (n,), generator=random)
    reach[0] = 12 * BLOCK_SIZE
    first = (reach * torch.rand(n, generator=random) * 0.9).long()
    first[0] = 0
    table = torch.randperm(N_BLOCKS, generator=random)[: n * 12].view(n, 12).to(torch.int32)
    seen = torch.zeros(N_BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    for blocks, low, high in zip(table, first.tolist(), reach.tolist(), strict=True):
        at = torch.arange(low, high)
        seen[blocks[at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE] = True
    return PagedRows(table, reach, first, BLOCK_SIZE), seen


@pytest.mark.parametrize(("softcap", "sink"), [(None, None), (20.0, None), (None, 3.0), (20.0, 3.0)])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "width"), HEADS)
def test_attention(n_heads, n_kv_heads, width, softcap, sink, threads) -> None:
    rows, seen = rows_of(5)
    keys, values = torch.randn(2, N_BLOCKS * BLOCK_SIZE, n_kv_heads, width)
    query = torch.randn(5, n_heads + n_kv_heads, width)[:, :n_heads]  # as it lies beside the keys
    sinks = None if sink is None else torch.randn(n_heads) * sink
    decode = make_decode(0.3, softcap, sinks, torch.float32, CPU)
    assert isinstance(decode, HostDecode)
    made = decode(query, keys, values, rows)
    close(made, SpelledOut(0.3, softcap, [], sinks)(query, keys, values, rows), 5e-6)
    hidden = [torch.where(seen[:, None, None], held, float("nan")) for held in (keys, values)]
    assert torch.equal(decode(query, *hidden, rows), made), "nothing is seen that a row has not written"
    for row in range(5):
        alone = PagedRows(*(column[row : row + 1] for column in (rows.table, rows.reach, rows.first)), BLOCK_SIZE)
        assert torch.equal(decode(query[row : row + 1], keys, values, alone), made[row : row + 1])
    threads(3)
    assert torch.equal(decode(query, keys, values, rows), made)


def test_a_number_that_is_none_stays_with_its_row() -> None:
    rows, _ = rows_of(5)
    keys, values = torch.randn(2, N_BLOCKS * BLOCK_SIZE, 1, 16)
    keys[int(rows.table[3, 0]) * BLOCK_SIZE :][:BLOCK_SIZE] = float("nan")
    rows.first[3] = 0
    made = make_decode(0.3, None, None, torch.float32, CPU)(torch.randn(5, 2, 16), keys, values, rows)
    assert made[3].isnan().all() and made[[0, 1, 2, 4]].isfinite().all()
