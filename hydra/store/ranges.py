"""Which tensors belong to which slice of a model.

Promises: slices that tile the layers tile the tensors, save that a tied embedding goes to both ends. Refuses to know
files beyond the ranges it is given.
"""

import re

from hydra.protocol.model_spec import Described, TensorRange

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LAYER_PREFIX = "model.layers."

_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})\.", re.ASCII)


def layer_of(name: str) -> int | None:
    """The layer a tensor belongs to, by its name; None for the ends and for anything else."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def slice_ranges(described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
    """The tensors of layers [first_layer, end_layer): embedding with layer 0, norm and head with the last layer."""
    spec = described.spec
    if not 0 <= first_layer < end_layer <= spec.n_layers:
        raise ValueError(f"no slice [{first_layer}, {end_layer}) in a model of {spec.n_layers} layers")
    ends = set()
    if first_layer == 0:
        ends.add(EMBEDDING)
    if end_layer == spec.n_layers:
        ends |= {NORM, EMBEDDING if spec.tied else HEAD}
    layers = range(first_layer, end_layer)
    return tuple(t for t in described.tensors if t.name in ends or layer_of(t.name) in layers)
