"""A model of full precision as it is once it has been quantised while loading (`--quantize`).

Only what is described changes: matrices get another encoding, and the parts their sizes in memory; the files, and what
is read of them, stay the same. Knows no tensor, and not how codes are made.
"""

import attrs

from hydra.protocol.model.encoding import PlainEncoding, QuantisedEncoding
from hydra.protocol.model.layout import place_of
from hydra.protocol.model.model_spec import Described, Quantize, TensorRange, WeightRole
from hydra.protocol.model.part_sizes import part_sizes
from hydra.protocol.refusal import refuse

# What a layer multiplies by. A router stays as it is: the choice of experts hangs on its last bits. The ends have 8
# bits in int4 as well: every token passes through them, and they bear 4 badly.
_LAYER_ROLES: tuple[WeightRole, ...] = ("qkv", "out", "gate_up", "down", "expert_gate_up", "expert_down")
_END_ROLES: tuple[WeightRole, ...] = ("embedding", "head")


def quantised(described: Described, quantize: Quantize) -> Described:
    """With matrices of 8 or 4 bits. "none": as it was. Refuses unsupported: a model that is quantised already."""
    if quantize == "none":
        return described
    tensors = tuple(_quantised(tensor, quantize) for tensor in described.tensors)
    sizes, spec = part_sizes(tensors), described.spec
    changed = attrs.evolve(
        spec,
        quantize=quantize,
        layer_sizes=tuple(sizes.get(layer, before) for layer, before in enumerate(spec.layer_sizes)),
        embedding_size=sizes.get("embedding", spec.embedding_size),
        head_size=sizes.get("head", spec.head_size),
    )
    return attrs.evolve(described, spec=changed, tensors=tensors)


def _quantised(tensor: TensorRange, quantize: Quantize) -> TensorRange:
    role = place_of(tensor).role
    if role not in _LAYER_ROLES and role not in _END_ROLES:
        return tensor
    if not isinstance(tensor.encoding, PlainEncoding):
        message = f"the model is quantised already: {tensor.name} is {tensor.encoding.name}; leave quantize out"
        raise refuse("unsupported", message, param="quantize")
    bits = 4 if quantize == "int4" and role in _LAYER_ROLES else 8
    if tensor.shape[-1] * bits % 8:
        bits = 8  # an odd number of columns is no whole bytes of 4 bits
    return attrs.evolve(tensor, encoding=QuantisedEncoding(tensor.encoding, bits))
