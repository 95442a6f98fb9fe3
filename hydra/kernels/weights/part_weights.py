"""The weights of one part, ready to be computed with: its linears, and the tensors that are looked up or multiplied by.

A part is one layer, the embedding, the final norm or the head: the unit that is read, held and freed. Knows canonical
roles, and neither files nor what the device makes of a matrix.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import attrs
from torch import Tensor

from hydra.kernels.devices import decodes_in_triton
from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
from hydra.kernels.weights.encoded.expert_linears import ExpertLinears, expert_linears
from hydra.kernels.weights.encoded.stacked_rows import stack_rows
from hydra.kernels.weights.encoded_rows import EncodedExperts, EncodedRows
from hydra.kernels.weights.linear import Linear, PlainLinear, make_encoded_linear, make_linear
from hydra.protocol.model.model_spec import WeightRole

PartTensors: TypeAlias = Mapping[WeightRole, Tensor | EncodedRows | EncodedExperts]  # a part as it was read

_LINEARS: dict[WeightRole, WeightRole] = {  # and the role of the bias that belongs to each
    "qkv": "qkv_bias",
    "out": "out_bias",
    "gate_up": "gate_up_bias",
    "down": "down_bias",
    "head": "head_bias",
    "router": "router_bias",
}
_EXPERT_BIASES: dict[WeightRole, WeightRole] = {
    "expert_gate_up": "expert_gate_up_bias",
    "expert_down": "expert_down_bias",
}


@attrs.frozen(eq=False)
class PartWeights:
    """By role; one that is absent is one that the model does not have. A bias lies in its linear; the matrices of
    experts are linears one by one, by expert. `encoded` is an embedding that is looked up in as it is stored.
    """

    tensors: Mapping[WeightRole, Tensor]
    linears: Mapping[WeightRole, Linear]
    experts: Mapping[WeightRole, tuple[Linear, ...] | ExpertLinears]
    encoded: Mapping[WeightRole, EncodedMatrix]

    @property
    def n_bytes(self) -> int:
        linears = [*self.linears.values(), *(linear for linears in self.experts.values() for linear in linears)]
        plain = sum(tensor.nbytes for tensor in self.tensors.values())
        encoded = sum(matrix.n_bytes for matrix in self.encoded.values())
        return plain + encoded + sum(linear.n_bytes for linear in linears)


def make_part_weights(read: PartTensors) -> PartWeights:
    """The same weights, their matrices as the device multiplies by them fastest.

    An embedding stays plain: its rows are looked up, also where it is the head as well. So does a router: the choice of
    experts hangs on its last bits. What was encoded stays so.
    """
    tensors = {role: one for role, one in read.items() if isinstance(one, Tensor)}
    linears: dict[WeightRole, Linear] = {}
    experts: dict[WeightRole, tuple[Linear, ...] | ExpertLinears] = {}
    encoded: dict[WeightRole, EncodedMatrix] = {}
    for role, matrix in read.items():
        match matrix:
            case EncodedExperts(experts=each):
                experts[role] = _make_experts(each, tensors.pop(_EXPERT_BIASES[role], None))
            case EncodedRows(pieces=(whole,)) if role == "embedding" and not isinstance(whole, Tensor):
                encoded[role] = whole
            case EncodedRows():
                linears[role] = make_encoded_linear(matrix, tensors.pop(_LINEARS[role], None))
            case Tensor() if role in _LINEARS:
                make = PlainLinear if role == "router" else make_linear
                linears[role] = make(tensors.pop(role), tensors.pop(_LINEARS[role], None))
            case Tensor() if role in _EXPERT_BIASES:
                biases = _by_expert(tensors.pop(_EXPERT_BIASES[role], None), len(matrix))
                experts[role] = tuple(map(make_linear, tensors.pop(role), biases))
    return PartWeights(tensors, linears, experts, encoded)


def _make_experts(each: Sequence[EncodedRows], biases: Tensor | None) -> tuple[Linear, ...] | ExpertLinears:
    """All in one matrix where the device multiplies by all of them at once, else each by itself."""
    whole = [rows.pieces[0] for rows in each if len(rows.pieces) == 1]
    encoded = [matrix for matrix in whole if not isinstance(matrix, Tensor)]
    if len(encoded) == len(each) and decodes_in_triton(encoded[0].device):
        stacked = stack_rows(encoded)
        together = expert_linears(stacked[0], len(each), biases) if len(stacked) == 1 else None
        if together is not None:
            return together
    return tuple(map(make_encoded_linear, each, _by_expert(biases, len(each))))


def _by_expert(biases: Tensor | None, n_experts: int) -> Sequence[Tensor | None]:
    return [None] * n_experts if biases is None else list(biases)
