"""Steps of one token per row as columns, and everything about paged and captured decoding that needs no GPU.

What a CUDA device has a kernel and graphs for is spelled out here in plain torch.
"""

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from hydra.kernels.attention.kv_pool import KvPool
from hydra.kernels.attention.paged_attention import View, plan_step
from hydra.kernels.attention.paged_rows import PagedRows
from hydra.kernels.model.decode_step import DecodeColumns, decode_columns, is_decode, on_device
from hydra.kernels.model.rotary import make_rotary
from hydra.kernels.model.slice import Slice, decode_rows
from hydra.protocol.batch import Batch, OpenRow, int32
from hydra.protocol.model.layer_spec import MoeSpec
from hydra.protocol.model.rope_spec import RopeSpec
from tests.unit.kernels.bench import Pipeline
from tests.unit.kernels.family_models import SHAPES, publish_family
from tests.unit.kernels.test_families import ragged_greedy, reference_greedy

CPU = torch.device("cpu")
NAMES = (
    "Llama-llama3",
    "Llama-dynamic",
    "Mistral-window",
    "Mixtral-two-of-four",
    "Phi3-longrope",
    "Gemma2-window",
    "GptOss-window",
)


@attrs.frozen
class SpelledOut:
    """Attention of one token per row, one row after the other."""

    scale: float
    softcap: float | None
    called: list[int]
    sinks: Tensor | None = None

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, rows: PagedRows) -> Tensor:
        self.called.append(len(query))
        group, answers = query.shape[1] // keys.shape[1], []
        for number, asked in enumerate(query):
            at = torch.arange(int(rows.first[number]), int(rows.reach[number]))
            slots = rows.table[number][at // rows.block_size].long() * rows.block_size + at % rows.block_size
            key, value = (held[slots].repeat_interleave(group, 1) for held in (keys, values))
            scores = torch.einsum("hd,phd->hp", asked, key) * self.scale
            if self.softcap:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            if self.sinks is not None:
                scores = torch.cat((scores, self.sinks[:, None].to(scores.dtype)), 1)
            shares = scores.softmax(-1)[:, : len(at)]
            answers.append(torch.einsum("hp,phd->hd", shares, value).flatten())
        return torch.stack(answers)


@attrs.frozen(eq=False)
class Replayed:
    """Stands in for DecodeGraphs: steps of two rows at most, each made up to two."""

    part: Slice
    pool: KvPool
    called: list[int]

    def takes(self, columns: DecodeColumns) -> bool:
        return columns.n_rows <= 2

    def replay(self, columns: DecodeColumns, hidden: Tensor | None) -> Tensor:
        n_rows, block_size = columns.n_rows, self.pool.block_size
        self.called.append(n_rows)
        padded = columns.padded(2, self.pool.n_blocks - 1)
        if hidden is not None:
            hidden = torch.cat((hidden, torch.zeros(2 - n_rows, hidden.shape[1])))
        return decode_rows(self.part, self.pool, on_device(padded, block_size, CPU), hidden)[:n_rows]


@attrs.frozen
class Called:
    """The rows of every call of the kernel, and of every captured step."""

    paged: list[int] = attrs.field(factory=list)
    captured: list[int] = attrs.field(factory=list)


@pytest.fixture
def called(monkeypatch) -> Called:
    made = Called()
    monkeypatch.setattr("hydra.kernels.model.slice.runs_triton", lambda device: True)
    monkeypatch.setattr("hydra.kernels.model.slice.attends_to_all", lambda dtype, device: True)
    monkeypatch.setattr(
        "hydra.kernels.model.softmax_attention.make_decode",
        lambda scale, softcap, sinks, dtype, device: SpelledOut(scale, softcap, made.paged, sinks),
    )
    monkeypatch.setattr(
        "hydra.kernels.step.runner.DecodeGraphs", lambda part, pool: Replayed(part, pool, made.captured)
    )
    return made


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_through_paged_and_captured_steps(name: str, called: Called, tmp_path) -> None:
    model = publish_family(tmp_path, next(shape for shape in SHAPES if shape.name == name))
    assert ragged_greedy(Pipeline(model, (1, 3), kv_blocks=180), model) == reference_greedy(model)
    assert {2, 3} <= set(called.paged), "steps of several rows"
    expected = (
        set() if any(isinstance(kind.feed_forward, MoeSpec) for kind in model.spec.decoder.kinds) else {1, 2}
    )  # experts are chosen on the host
    assert set(called.captured) == expected


def row_of(blocks: list[int], tokens: int) -> OpenRow:
    return OpenRow(row=0, attempt=0, prompt_tokens=tokens, history_tokens=tokens, blocks=blocks)


def batch_of(positions: list[int]) -> Batch:
    ones = [1] * len(positions)
    return Batch(
        row=int32(range(len(positions))),
        attempt=int32(ones),
        position=int32(positions),
        length=int32(ones),
        sample=int32(ones),
        new_blocks=int32([0] * len(positions)),
        tokens=int32([7 + p for p in positions]),
    )


def test_columns_say_what_a_plan_says() -> None:
    rows = (row_of([4, 5, 6, 7], 10), row_of([9, 2, 0], 3), row_of([1], 1))
    batch, views = batch_of([13, 10, 0]), (View(), View(window=6))
    rotaries = [make_rotary(RopeSpec(kind="dynamic", theta=1e4, dim=8, factor=2.0, original_max_positions=4), CPU)]
    columns = decode_columns(batch, rows, 4, views, rotaries)
    plan = plan_step(batch, rows, 4, views, torch.float32, CPU)
    tokens, positions, slots, reach, plain, windowed, grown = columns.fields
    assert is_decode(batch) and tokens.tolist() == [20, 17, 7]
    assert positions.tolist() == plan.positions.tolist() == [13, 10, 0]
    assert slots.tolist() == plan.slots.tolist() == [29, 2, 4]
    assert (reach - plain).tolist() == [span.reach for span in plan.spans[0]]
    assert (reach - windowed).tolist() == [span.reach for span in plan.spans[1]]
    assert columns.table.tolist() == [[4, 5, 6, 7], [9, 2, 0, 0], [1, 0, 0, 0]]
    assert grown.tolist() == [14, 11, 1]


def test_a_block_table_that_is_too_short_is_a_fault() -> None:
    with pytest.raises(IndexError, match="needs 3"):
        decode_columns(batch_of([8]), (row_of([4, 5], 8),), 4, (View(),), [])


def test_rows_that_make_up_a_number_write_where_nobody_reads() -> None:
    columns = decode_columns(batch_of([5]), (row_of([3, 4], 5),), 4, (View(), View(window=3)), [])
    padded = columns.padded(4, spare_block=11)
    assert padded.n_rows == 4 and np.array_equal(padded.fields[:, :1], columns.fields)
    assert padded.fields[2, 1:].tolist() == [44] * 3, "slots of the spare block"
    assert padded.fields[3, 1:].tolist() == [1] * 3 and not padded.fields[4:, 1:].any(), "one position, not hidden"
    assert (padded.table[1:] == 11).all() and columns.padded(1, 11) is columns


def test_a_step_with_a_chunk_is_no_decode_step() -> None:
    batch = attrs.evolve(batch_of([5]), length=int32([2]), tokens=int32([1, 2]))
    assert not is_decode(batch)
