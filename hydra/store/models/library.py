"""The models on this machine's disk, as the coordinator asks for them.

Promises: the `Library` port, by describing afresh at each call; any thread may call. Refuses to know who loads what.
"""

from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.store.models.model_dir import describe
from hydra.store.models.slice_ranges import slice_ranges


class LocalLibrary:
    """Model directories of the local file system."""

    def describe(self, model_path: str) -> Described:
        """Raises RefusalError: model_not_found, bad_model, unsupported."""
        return describe(model_path)

    def slice_ranges(self, described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
        """The tensors of one slice: embedding with layer 0, norm and head with the last, tied or not."""
        return slice_ranges(described, first_layer, end_layer)
