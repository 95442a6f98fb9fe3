"""The weights of one part, ready to be computed with: its linears, and the tensors that are looked up or multiplied by.

A part is one layer, the embedding, the final norm or the head: the unit that is read, held and freed. Knows canonical
roles, and neither files nor what the device makes of a matrix.
"""

from collections.abc import Mapping
from typing import TypeAlias

import attrs
from torch import Tensor

from hydra.kernels.weights.encoded.expert_linears import ExpertLinears
from hydra.kernels.weights.linear import Linear, PlainLinear, make_linear
from hydra.protocol.model.model_spec import WeightRole

PartTensors: TypeAlias = Mapping[WeightRole, Tensor]  # a part as it was read

_LINEARS: dict[WeightRole, WeightRole] = {  # and the role of the bias that belongs to each
    "qkv": "qkv_bias",
    "out": "out_bias",
    "gate_up": "gate_up_bias",
    "down": "down_bias",
    "head": "head_bias",
}


@attrs.frozen(eq=False)
class PartWeights:
    """By role; one that is absent is one that the model does not have. A bias lies in its linear; the matrices of
    experts are linears one by one, by expert.
    """

    tensors: Mapping[WeightRole, Tensor]
    linears: Mapping[WeightRole, Linear]
    experts: Mapping[WeightRole, tuple[Linear, ...] | ExpertLinears]

    @property
    def n_bytes(self) -> int:
        each = (linear.n_bytes for linears in self.experts.values() for linear in linears)
        alone = (linear.n_bytes for linear in self.linears.values())
        return sum(tensor.nbytes for tensor in self.tensors.values()) + sum(alone) + sum(each)


def make_part_weights(read: PartTensors) -> PartWeights:
    """The same weights, their matrices as the device multiplies by them fastest.

    An embedding stays plain: its rows are looked up, also where it is the head as well. So does a router: the choice of
    experts hangs on its last bits.
    """
    tensors = dict(read)
    linears: dict[WeightRole, Linear] = {}
    experts: dict[WeightRole, tuple[Linear, ...]] = {}
    for role, tensor in read.items():
        if role in _LINEARS:
            linears[role] = make_linear(tensors.pop(role), tensors.pop(_LINEARS[role], None))
        elif role == "router":
            linears[role] = PlainLinear(tensors.pop(role))
        elif tensor.dim() == 3:
            experts[role] = tuple(make_linear(matrix) for matrix in tensors.pop(role))
    return PartWeights(tensors, linears, experts)
