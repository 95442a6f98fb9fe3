"""What a config says of a model's weights: for each module the scheme that it is stored in, or none."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs

from hydra.store.models.quantised.scheme import Scheme

ModuleKind: TypeAlias = Literal["linear", "experts", "head", "embedding"]
"""`experts`: one tensor holds a matrix for each expert."""


@attrs.frozen(eq=False, kw_only=True)
class Quantisation:
    """`scheme_of` takes a module's name and kind; None: it is stored in full precision.

    `where` is the key of the config that it was read from; `spare_biases`: its files may hold biases that the
    architecture has not, as AutoGPTQ wrote them, and transformers passes them over.
    """

    where: str
    scheme_of: Callable[[str, ModuleKind], Scheme | None]
    spare_biases: bool = False
