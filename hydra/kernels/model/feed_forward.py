"""Feed-forward layers, each bound to its weights once, at load: gated or plain, dense or a mixture of experts.

A feed-forward is a function of [n, hidden] that returns a fresh [n, hidden]. Knows no norm, no residual and no model.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from hydra.kernels.model.layer_context import LayerContext
from hydra.kernels.native.row_functions import native_gate
from hydra.kernels.weights.encoded.cuda.device_product import ROWS_MAX
from hydra.kernels.weights.encoded.expert_linears import ExpertLinears
from hydra.kernels.weights.linear import Linear
from hydra.kernels.weights.part_weights import PartWeights
from hydra.protocol.model.layer_spec import Activation, ClampedGateSpec, DenseSpec, FeedForwardSpec, MoeSpec

ActivationFn: TypeAlias = Callable[[Tensor], Tensor]


class FeedForward(Protocol):
    """The half of a layer in which each token is alone. `steady`: a step of as many tokens is always the same to the
    device, because nothing of it is chosen on the host.
    """

    @property
    def steady(self) -> bool: ...

    def __call__(self, x: Tensor) -> Tensor: ...


def make_feed_forward(spec: FeedForwardSpec, weights: PartWeights, context: LayerContext) -> FeedForward:
    match spec:
        case MoeSpec():
            experts = weights.experts["expert_gate_up"], weights.experts["expert_down"]
            inner = _gate(spec.activation, context) if spec.clamped is None else _clamped_gate(spec.clamped)
            return Mixture(spec, weights.linears["router"], *experts, inner)
        case DenseSpec():
            inner = _gate(spec.activation, context) if spec.gated else _ACTIVATIONS[spec.activation]
            return Dense(weights.linears["gate_up"], weights.linears["down"], inner)


@attrs.frozen(eq=False)
class Dense:
    """Two products with the activation between; `gate_up` is gate and up in one matrix, or up alone."""

    gate_up: Linear
    down: Linear
    inner: ActivationFn

    @property
    def steady(self) -> bool:
        return True

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.inner(self.gate_up(x)))


@attrs.frozen(eq=False)
class Mixture:
    """Each token through its `top_k` experts, weighted by the router (Shazeer et al., arXiv:1701.06538).

    Tokens are sorted by expert, each expert multiplies its own in one product, and the answers are summed per token in
    the order of the router's preference: the sum is the same in every run, on every device. On CUDA the host waits
    for the router, because the sizes of the products depend on its choice; unless the device multiplies by all experts
    at once, which it does for a few tokens.
    """

    spec: MoeSpec
    router: Linear  # hidden to n_experts
    gate_up: Sequence[Linear] | ExpertLinears  # per expert: hidden to 2 * intermediate
    down: Sequence[Linear] | ExpertLinears  # per expert: intermediate to hidden
    inner: ActivationFn

    @property
    def steady(self) -> bool:
        return isinstance(self.gate_up, ExpertLinears) and isinstance(self.down, ExpertLinears)

    def __call__(self, x: Tensor) -> Tensor:
        odds = self.router(x).softmax(-1, dtype=torch.float32)
        share, chosen = odds.topk(self.spec.top_k, -1)
        if self.spec.normalised:
            share = share / share.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        outputs = self._by_expert(x, chosen.flatten(), order)
        answers = torch.empty_like(outputs).index_copy_(0, order, outputs)
        shared = answers.view(*chosen.shape, -1) * share.to(x.dtype).unsqueeze(-1)
        return shared.sum(1)

    def _by_expert(self, x: Tensor, chosen: Tensor, order: Tensor) -> Tensor:
        """What the chosen experts answer, sorted by expert: `order` sorts."""
        origin, gate_up, down = order.div(self.spec.top_k, rounding_mode="floor"), self.gate_up, self.down
        if isinstance(gate_up, ExpertLinears) and isinstance(down, ExpertLinears) and 0 < x.shape[0] <= ROWS_MAX:
            experts = chosen.index_select(0, order)
            return down.by_expert(self.inner(gate_up.by_expert(x, experts, origin)), experts)
        counts = torch.bincount(chosen, minlength=self.spec.n_experts).tolist()
        outputs = [
            down[expert](self.inner(gate_up[expert](part)))
            for expert, part in enumerate(torch.split(x.index_select(0, origin), counts))
            if counts[expert]
        ]
        return torch.cat(outputs)


def _gate(activation: Activation, context: LayerContext) -> ActivationFn:
    """activation(gate) * up, where both lie side by side in one row. May overwrite its argument."""
    compiled = native_gate(activation, context.dtype, context.device)
    if compiled is not None:
        return compiled
    if activation == "silu":
        return _swiglu
    act = _ACTIVATIONS[activation]

    def gated(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return act(gate).mul_(up)

    return gated


def _clamped_gate(spec: ClampedGateSpec) -> ActivationFn:
    """What gpt-oss has: a limit keeps both factors small, and up has 1 added. May overwrite its argument."""

    def gated(gate_up: Tensor) -> Tensor:
        gate, up = (gate_up[..., ::2], gate_up[..., 1::2]) if spec.in_turns else gate_up.chunk(2, -1)
        gate.clamp_(max=spec.limit)
        up.clamp_(-spec.limit, spec.limit).add_(1)
        return (gate * spec.alpha).sigmoid_().mul_(gate).mul_(up)

    return gated


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate, inplace=True).mul_(up)


def _gelu_tanh(x: Tensor) -> Tensor:
    """Hendrycks and Gimpel, arXiv:1606.08415, with the tanh approximation (configs call it gelu_new too)."""
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[Activation, ActivationFn] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
}
