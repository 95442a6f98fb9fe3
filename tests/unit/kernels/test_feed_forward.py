"""Mixtures of experts: the plain sum over the chosen ones, however tokens are batched."""

import attrs
import pytest
import torch
from torch.nn import functional
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from hydra.kernels.model.feed_forward import make_feed_forward
from hydra.kernels.model.layer_context import LayerContext
from hydra.kernels.weights.part_weights import make_part_weights
from hydra.protocol.model.layer_spec import ClampedGateSpec, MoeSpec

HIDDEN, INNER, EXPERTS = 32, 24, 6
CONTEXT = LayerContext(0, 0, torch.float32, torch.device("cpu"))


def weights(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return {
        "router": torch.randn(EXPERTS, HIDDEN).to(dtype),
        "expert_gate_up": (torch.randn(EXPERTS, 2 * INNER, HIDDEN) / 6).to(dtype),
        "expert_down": (torch.randn(EXPERTS, HIDDEN, INNER) / 5).to(dtype),
    }


def mixture(held, top_k, normalised=True):
    moe = MoeSpec(n_experts=EXPERTS, top_k=top_k, intermediate=INNER, activation="silu", normalised=normalised)
    return make_feed_forward(moe, make_part_weights(held), CONTEXT)


def plainly(held, x, top_k, normalised):
    """Token by token, expert by expert."""
    out = []
    for token in x:
        odds = (held["router"] @ token).softmax(-1)
        chosen = odds.argsort(descending=True)[:top_k]
        total = odds[chosen].sum() if normalised else 1.0
        parts = []
        for expert in chosen:
            gate, up = (held["expert_gate_up"][expert] @ token).chunk(2)
            parts.append(odds[expert] / total * (held["expert_down"][expert] @ (functional.silu(gate) * up)))
        out.append(sum(parts))
    return torch.stack(out)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_a_mixture_is_the_sum_over_the_chosen_experts(top_k, normalised):
    held, x = weights(), torch.randn(17, HIDDEN)
    torch.testing.assert_close(mixture(held, top_k, normalised)(x), plainly(held, x, top_k, normalised))


def test_a_token_alone_equals_the_token_among_others():
    held, x = weights(1), torch.randn(40, HIDDEN)
    whole = mixture(held, 2)(x)
    for i in range(len(x)):
        torch.testing.assert_close(mixture(held, 2)(x[i : i + 1])[0], whole[i])
    assert torch.equal(mixture(held, 2)(x), whole)


def test_experts_that_nobody_chose_are_not_touched():
    held, x = weights(2), torch.randn(1, HIDDEN)
    chosen = (x @ held["router"].T).topk(2).indices[0].tolist()
    expected = mixture(held, 2)(x)
    for expert in set(range(EXPERTS)) - set(chosen):
        held["expert_gate_up"][expert] = held["expert_down"][expert] = torch.nan
    assert torch.equal(mixture(held, 2)(x), expected)
    held["expert_down"][chosen[1]] = torch.nan
    assert mixture(held, 2)(x).isnan().all()


SIZES = {"hidden_size": HIDDEN, "intermediate_size": INNER}
BLOCKS = {
    "mixtral": lambda: MixtralSparseMoeBlock(MixtralConfig(**SIZES, num_local_experts=EXPERTS, num_experts_per_tok=2)),
    "qwen3": lambda: Qwen3MoeSparseMoeBlock(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=INNER, num_experts=EXPERTS, num_experts_per_tok=2)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BLOCKS)
def test_mixtures_equal_transformers(kind, dtype):
    held, block = weights(3, dtype), BLOCKS[kind]().to(dtype)
    with torch.inference_mode():
        block.gate.weight.copy_(held["router"])
        block.experts.gate_up_proj.copy_(held["expert_gate_up"])
        block.experts.down_proj.copy_(held["expert_down"])
        x = torch.randn(64, HIDDEN).to(dtype)
        expected = block(x.unsqueeze(0))[0].float()
        said = mixture(held, 2, normalised=kind == "mixtral")(x).float()
    error = (said - expected).abs().max() / expected.abs().max()
    assert error < (2e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_clamped_gates_with_biases_equal_transformers(dtype, top_k):
    """Limits that bite on both sides, rows of gate and up in turns, and biases in the router and the experts."""
    held = weights(4, dtype)
    held |= {
        "router_bias": torch.randn(EXPERTS).to(dtype),
        "expert_gate_up_bias": torch.randn(EXPERTS, 2 * INNER).to(dtype),
        "expert_down_bias": torch.randn(EXPERTS, HIDDEN).to(dtype),
    }
    config = GptOssConfig(
        **SIZES, num_local_experts=EXPERTS, num_experts_per_tok=top_k, swiglu_limit=0.8, swiglu_alpha=1.5
    )
    block = GptOssMLP(config).to(dtype)
    spec = MoeSpec(
        n_experts=EXPERTS, top_k=top_k, intermediate=INNER, activation="silu", normalised=True, router_bias=True,
        expert_bias=True, clamped=ClampedGateSpec(limit=0.8, alpha=1.5, in_turns=True),
    )  # fmt: skip
    with torch.inference_mode():
        block.router.weight.copy_(held["router"])
        block.router.bias.copy_(held["router_bias"])
        block.experts.gate_up_proj.copy_(held["expert_gate_up"].transpose(1, 2))
        block.experts.gate_up_proj_bias.copy_(held["expert_gate_up_bias"])
        block.experts.down_proj.copy_(held["expert_down"].transpose(1, 2))
        block.experts.down_proj_bias.copy_(held["expert_down_bias"])
        x = torch.randn(40, HIDDEN).to(dtype)
        expected = block(x.unsqueeze(0))[0].squeeze(0).float()
        said = make_feed_forward(spec, make_part_weights(held), CONTEXT)(x).float()
    error = (said - expected).abs().max() / expected.abs().max()
    assert error < (2e-6 if dtype == torch.float32 else 2e-2)


def test_a_clamped_gate_of_rows_side_by_side_is_the_same_as_in_turns():
    spec = MoeSpec(
        n_experts=EXPERTS, top_k=2, intermediate=INNER, activation="silu", normalised=True,
        clamped=ClampedGateSpec(limit=0.8, alpha=1.702),
    )  # fmt: skip
    held, x = weights(5), torch.randn(9, HIDDEN)
    gate, up = held["expert_gate_up"].chunk(2, 1)
    turns = held | {"expert_gate_up": torch.stack((gate, up), 2).flatten(1, 2)}
    beside = make_feed_forward(spec, make_part_weights(held), CONTEXT)(x)
    spec = attrs.evolve(spec, clamped=attrs.evolve(spec.clamped, in_turns=True))
    in_turns = make_feed_forward(spec, make_part_weights(turns), CONTEXT)(x)
    torch.testing.assert_close(in_turns, beside)
