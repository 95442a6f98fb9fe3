"""Rotary frequencies are those of transformers, bit for bit, and lengths depend on nothing but the row's opening."""

import attrs
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

from hydra.kernels.model.rotary import lengths, make_rotary
from hydra.protocol.batch import Batch, OpenRow, int32
from hydra.protocol.model.rope_spec import RopeSpec

CPU = torch.device("cpu")
DIM = 128
LLAMA = RopeSpec(kind="default", theta=500_000.0, dim=DIM)
FACTORS = [1.0 + i / 7 for i in range(DIM // 2)]


def spec(kind, **changes):
    return attrs.evolve(LLAMA, kind=kind, **changes)


def published(kind, config=LlamaConfig, **said):
    rope = {"rope_type": kind, "rope_theta": 500_000.0} | said
    extra = {"original_max_position_embeddings": 4096} if config is Phi3Config else {}
    return config(
        hidden_size=4 * DIM, num_attention_heads=4, max_position_embeddings=131_072, rope_parameters=rope, **extra
    )


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (spec("linear", factor=3.0), published("linear", factor=3.0)),
        (
            spec("llama3", original_max_positions=8192, **LLAMA3),
            published("llama3", original_max_position_embeddings=8192, **LLAMA3),
        ),
        (
            spec("yarn", original_max_positions=32_768, **YARN),
            published("yarn", original_max_position_embeddings=32_768, **YARN),
        ),
        (
            spec("yarn", original_max_positions=32_768, truncate=False, **YARN),
            published("yarn", original_max_position_embeddings=32_768, truncate=False, **YARN),
        ),
    ],
    ids=["linear", "llama3", "yarn", "yarn-untruncated"],
)
def test_frequencies_are_those_of_transformers(ours, theirs):
    expected, _ = ROPE_INIT_FUNCTIONS[ours.kind](theirs)
    assert torch.equal(make_rotary(ours, CPU).frequencies, expected)


def test_queries_grow_with_their_position():
    rope = spec("yarn", original_max_positions=16, factor=4.0, beta_fast=32.0, beta_slow=1.0, query_growth=0.1)
    positions = torch.tensor([0, 15, 16, 17, 31, 32, 1000, 262_143])
    table = make_rotary(rope, CPU).tables(positions, None, torch.float32)
    assert torch.equal(table.query_scale.view(1, 1, -1, 1), get_llama_4_attn_scale(positions[None], 0.1, 16))
    assert table.query_scale.view(-1)[:2].tolist() == [1.0, 1.0]
    assert (
        make_rotary(attrs.evolve(rope, query_growth=0.0), CPU).tables(positions, None, torch.float32).query_scale
        is None
    )


@pytest.mark.parametrize("length", [1, 4096, 4097, 131_072])
def test_longrope_has_two_sets(length):
    said = {"short_factor": FACTORS, "long_factor": FACTORS[::-1]}
    expected, _ = ROPE_INIT_FUNCTIONS["longrope"](published("longrope", Phi3Config, **said), seq_len=length)
    ours = spec(
        "longrope",
        original_max_positions=4096,
        short_factors=tuple(FACTORS),
        long_factors=tuple(FACTORS[::-1]),
    )
    assert torch.equal(make_rotary(ours, CPU)._of(torch.tensor([length]))[0], expected)


@pytest.mark.parametrize("length", [1, 131_072, 131_073, 500_000])
def test_a_dynamic_base_grows_with_the_length(length):
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](published("dynamic", factor=2.0), seq_len=torch.tensor(length))
    ours = make_rotary(spec("dynamic", factor=2.0, original_max_positions=131_072), CPU)
    torch.testing.assert_close(ours._of(torch.tensor([length, 7]))[0], expected, rtol=1e-6, atol=0)
    assert torch.equal(ours._of(torch.tensor([length, 7]))[1], ours.frequencies)


def counted(kind, parts):
    """`parts` are (prompt tokens, history tokens, position, length) of each row; 16 is the context of pretraining."""
    rows = [OpenRow(row=i, attempt=0, prompt_tokens=p, history_tokens=h) for i, (p, h, _, _) in enumerate(parts)]
    batch = Batch(position=int32([at for _, _, at, _ in parts]), length=int32([n for *_, n in parts]))
    return lengths(spec(kind, original_max_positions=16), batch, rows)


def test_dynamic_lengths_are_the_prompt_and_then_each_tokens_own():
    whole = counted("dynamic", [(20, 24, 0, 24)])
    assert whole.tolist() == [20] * 20 + [21, 22, 23, 24]
    pieces = [counted("dynamic", [(20, history, at, n)]) for history, at, n in ((20, 0, 7), (20, 7, 13), (24, 20, 4))]
    assert np.array_equal(np.concatenate(pieces), whole)
    beside = counted("dynamic", [(3, 3, 0, 2), (20, 24, 0, 24), (50, 50, 0, 1)])
    assert np.array_equal(beside[2:26], whole)


def test_a_long_row_counts_as_long_from_its_first_chunk_on():
    assert counted("longrope", [(5, 17, 0, 4)]).tolist() == [17] * 4
    assert counted("longrope", [(5, 17, 4, 13), (16, 16, 0, 3)]).tolist() == [17] * 13 + [16] * 3
    assert counted("longrope", [(5, 17, 40, 1)]).tolist() == [41]
    assert counted("longrope", [(5, 5, 15, 1)]).tolist() == [16]


def test_a_row_that_outgrew_its_opening_is_a_fault():
    with pytest.raises(RuntimeError, match="grown past 16"):
        counted("longrope", [(5, 5, 16, 1)])
