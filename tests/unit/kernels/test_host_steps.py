"""Decode steps as one call of C give the bits that the layers' own objects give, and transformers' tokens."""

import attrs
import pytest
import torch

from hydra.kernels.attention.kv_pool import KvPool
from hydra.kernels.attention.paged_attention import Attend, View, make_decode, plan_step
from hydra.kernels.attention.sdpa import make_sdpa
from hydra.kernels.model.decode_step import DecodeColumns, decode_columns, on_device
from hydra.kernels.model.slice import Slice, decode_rows
from hydra.kernels.native.products import INPUT_ROWS_MAX
from hydra.kernels.step.host_steps import HostSteps, make_host_steps
from hydra.kernels.weights import linear
from hydra.protocol.batch import Batch, OpenRow, int32
from hydra.protocol.model.cache_spec import CacheSpec
from hydra.protocol.model.layer_spec import MoeSpec
from hydra.protocol.model.quantised import quantised
from tests.unit.kernels.bench import ROUTE, Pipeline, Published, publish
from tests.unit.kernels.family_models import SHAPES, publish_family
from tests.unit.kernels.test_families import ragged_greedy, reference_greedy

CPU = torch.device("cpu")
N_BLOCKS, BLOCK_SIZE = 200, 4
OF_TODAY = [shape for shape in SHAPES if not shape.long]


@pytest.fixture(autouse=True)
def compiled(library, monkeypatch):
    """Small matrices too are given to our own products."""
    monkeypatch.setattr(linear, "MEASURED_BYTES", 0)
    monkeypatch.setattr(linear._choices, "prefers_native", lambda matrix, own: True)


def has_program(model: Published, first: int, end: int) -> bool:
    """Neither layer norms nor mixtures of experts have a compiled form."""
    layers = model.spec.decoder.layers[first:end]
    return not any(layer.norm.kind == "layer" or isinstance(layer.feed_forward, MoeSpec) for layer in layers)


@pytest.mark.parametrize("shape", OF_TODAY, ids=lambda shape: shape.name)
def test_greedy_tokens_equal_transformers(shape, tmp_path) -> None:
    model = publish_family(tmp_path, shape)
    line = Pipeline(model, (1, 3), kv_blocks=180)
    programs = [isinstance(runner._routes[ROUTE].captured, HostSteps) for runner in line.runners]
    assert programs == [has_program(model, *cut) for cut in ((0, 1), (1, 3), (3, 4))]
    assert ragged_greedy(line, model) == reference_greedy(model)


@pytest.fixture(
    scope="module", params=["Llama-llama3", "Qwen3-window", "Gemma2-one-head", "Ministral3-growing", "int4"]
)
def model(request, tmp_path_factory) -> Published:
    directory = tmp_path_factory.mktemp("steps")
    if request.param != "int4":
        return publish_family(directory, next(shape for shape in SHAPES if shape.name == request.param))
    plain = publish(directory, intermediate_size=96, attention_bias=True)
    return attrs.evolve(plain, described=quantised(plain.described, "int4"))


@pytest.mark.parametrize("n_rows", [1, 3, INPUT_ROWS_MAX])
@pytest.mark.parametrize("stage", [0, 1])
@torch.inference_mode()
def test_the_bits_are_those_of_the_layers(model: Published, stage: int, n_rows: int) -> None:
    part = Pipeline(model, (2,)).runners[stage]._routes[ROUTE].slice
    pool = part.pool(N_BLOCKS, BLOCK_SIZE)
    for cache in pool.layers:
        cache.keys.normal_()
        cache.values.normal_()
    columns = columns_of(part, n_rows)
    hidden = None if part.is_first else torch.randn(n_rows, part.spec.hidden)
    steps = make_host_steps(part, pool)
    assert steps is not None and steps.takes(columns)
    expected = decode_rows(part, pool, on_device(columns, BLOCK_SIZE, CPU), hidden)
    kept = [(cache.keys.clone(), cache.values.clone()) for cache in pool.layers]
    for cache in pool.layers:  # what is new is written by the program too
        cache.key_slots[columns.fields[2]] = 0
        cache.value_slots[columns.fields[2]] = 0
    made = steps.replay(columns, hidden)
    assert torch.equal(made, expected)
    assert all(
        torch.equal(cache.keys, k) and torch.equal(cache.values, v)
        for cache, (k, v) in zip(pool.layers, kept, strict=True)
    )
    again = made.clone()
    steps.replay(columns, hidden)
    assert torch.equal(made, again), "a later step does not overwrite an answer"


def columns_of(part: Slice, n_rows: int) -> DecodeColumns:
    """Rows of different lengths, in blocks that lie anywhere."""
    random = torch.Generator().manual_seed(n_rows)
    positions = torch.randint(0, 40, (n_rows,), generator=random).tolist()
    order = torch.randperm(N_BLOCKS, generator=random).tolist()
    rows = []
    for position in positions:
        blocks = [order.pop() for _ in range(position // BLOCK_SIZE + 1)]
        rows.append(
            OpenRow(row=0, attempt=0, prompt_tokens=position, history_tokens=position, blocks=blocks, params=None)
        )
    tokens = torch.randint(0, part.spec.vocab, (n_rows,), generator=random).tolist()
    batch = attrs.evolve(plain_batch(positions), tokens=int32(tokens))
    return decode_columns(batch, rows, BLOCK_SIZE, part.views, part.rotaries)


def plain_batch(positions: list[int]) -> Batch:
    """One token of each row."""
    ones = int32([1] * len(positions))
    return Batch(
        row=int32(range(len(positions))),
        attempt=ones,
        position=int32(positions),
        length=ones,
        sample=ones,
        new_blocks=0 * ones,
        tokens=ones,
    )


def test_more_rows_than_a_product_takes_go_by_the_layers(model: Published) -> None:
    part = Pipeline(model).runners[0]._routes[ROUTE].slice
    steps = make_host_steps(part, part.pool(N_BLOCKS, BLOCK_SIZE))
    assert steps is not None and not steps.takes(columns_of(part, INPUT_ROWS_MAX + 1))


@torch.inference_mode()
def test_a_row_of_one_token_attends_the_same_beside_a_chunk() -> None:
    """The bits beside another row's prompt are those of a step of its own."""
    rows = [OpenRow(row=0, attempt=0, prompt_tokens=9, history_tokens=9, blocks=[3, 9, 4])]
    rows.append(attrs.evolve(rows[0], blocks=[7, 8, 11]))
    view = View(window=6)
    attend = Attend(
        0, make_sdpa(None, None, None, torch.float32, CPU), make_decode(0.25, None, None, torch.float32, CPU)
    )

    def attended(lengths: list[int]) -> torch.Tensor:
        n, pool = sum(lengths), KvPool([CacheSpec(n_heads=2, head_dim=16)], 12, BLOCK_SIZE, torch.float32, CPU)
        torch.manual_seed(1)
        pool.layers[0].keys.normal_()
        pool.layers[0].values.normal_()
        query, key, value = (torch.randn(12, heads, 16)[:n] for heads in (4, 2, 2))
        batch = attrs.evolve(plain_batch([8, 0][: len(lengths)]), length=int32(lengths), tokens=int32(range(n)))
        plan = plan_step(batch, rows[: len(lengths)], BLOCK_SIZE, [view], torch.float32, CPU, alone=True)
        return attend(query, key, value, pool.layers[0], plan)[0]

    assert torch.equal(attended([1]), attended([1, 7]))
