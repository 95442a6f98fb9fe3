"""The weights of one part, ready to be computed with: its linears, and the tensors that are looked up or multiplied by.

A part is one layer, the embedding, the final norm or the head: the unit that is read, held and freed. Knows canonical
roles, and neither files nor what the device makes of a matrix.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import attrs
from torch import Tensor

from hydra.kernels.weights.encoded.encoded_matrix import EncodedMatrix
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
    experts: Mapping[WeightRole, tuple[Linear, ...]]
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
    experts: dict[WeightRole, tuple[Linear, ...]] = {}
    encoded: dict[WeightRole, EncodedMatrix] = {}
    for role, matrix in read.items():
        match matrix:
            case EncodedExperts(experts=each):
                biases = _biases(tensors, role, len(each))
                experts[role] = tuple(map(make_encoded_linear, each, biases))
            case EncodedRows(pieces=(whole,)) if role == "embedding" and not isinstance(whole, Tensor):
                encoded[role] = whole
            case EncodedRows():
                linears[role] = make_encoded_linear(matrix, tensors.pop(_LINEARS[role], None))
            case Tensor() if role in _LINEARS:
                make = PlainLinear if role == "router" else make_linear
                linears[role] = make(tensors.pop(role), tensors.pop(_LINEARS[role], None))
            case Tensor() if role in _EXPERT_BIASES:
                experts[role] = tuple(map(make_linear, tensors.pop(role), _biases(tensors, role, len(matrix))))
    return PartWeights(tensors, linears, experts, encoded)


def _biases(tensors: dict[WeightRole, Tensor], role: WeightRole, n_experts: int) -> Sequence[Tensor | None]:
    """One for each expert."""
    biases = tensors.pop(_EXPERT_BIASES[role], None)
    return [None] * n_experts if biases is None else list(biases)
