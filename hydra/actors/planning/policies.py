"""How layers are shared out, as values by the name that `[cluster] policy` gives them. Each is pure arithmetic.

A policy takes the model's numbers, the nodes that may have layers, what a plan has to keep to, and the links that must
not be used; it answers with one share per node that it uses, in the order of the layers, or raises RefusalError
does_not_fit with the numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from hydra.actors.planning.candidates import Candidate, Links
from hydra.actors.planning.split import LayerShare, SplitLimits, split_vram
from hydra.protocol.model.model_spec import ModelSpec

SplitPolicy: TypeAlias = Callable[[ModelSpec, Sequence[Candidate], SplitLimits, Links], tuple[LayerShare, ...]]

POLICIES: Mapping[str, SplitPolicy] = {"vram": split_vram}
