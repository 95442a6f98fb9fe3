"""What a layer must know of the slice that it is built into."""

import attrs
import torch


@attrs.frozen
class LayerContext:
    """The layer's places among the views of a step's plan and among the tables of rotations; and in what, and where, it
    computes.
    """

    view: int
    table: int
    dtype: torch.dtype
    device: torch.device
