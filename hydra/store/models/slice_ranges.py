"""Which tensors belong to which slice of a model.

Promises: slices that tile the layers tile the tensors, save that a tied embedding goes to both ends. Refuses to know
files beyond the ranges it is given.
"""

from hydra.protocol.model.layout import part_of, slice_parts
from hydra.protocol.model.model_spec import Described, TensorRange


def slice_ranges(described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
    """The tensors of layers [first_layer, end_layer): embedding with layer 0, norm and head with the last layer."""
    spec = described.spec
    if not 0 <= first_layer < end_layer <= spec.n_layers:
        raise ValueError(f"no slice [{first_layer}, {end_layer}) in a model of {spec.n_layers} layers")
    parts = slice_parts(spec, first_layer, end_layer)
    return tuple(tensor for tensor in described.tensors if part_of(tensor) in parts)
