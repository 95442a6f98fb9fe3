"""The models that can be loaded, as the coordinator asks for them: directories of this machine, and ids of a Hub.

Promises: the `Library` port, by describing afresh at each call; any thread may call. Refuses to know who loads what.
"""

import attrs

from hydra.protocol.model_spec import Described, TensorRange
from hydra.store import model_dir, ranges
from hydra.store.hub import Hub
from hydra.store.hub_files import describe_hub_model
from hydra.store.model_ref import HubRef, parse_ref


class LocalLibrary:
    """Model directories of the local file system."""

    def describe(self, model_path: str) -> Described:
        """Raises RefusalError: model_not_found, bad_model, unsupported."""
        return model_dir.describe(model_path)

    def slice_ranges(self, described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
        """The tensors of one slice: embedding with layer 0, norm and head with the last, tied or not."""
        return ranges.slice_ranges(described, first_layer, end_layer)


@attrs.frozen
class HubLibrary(LocalLibrary):
    """The same, and the models of a Hub by their ids. A directory that exists is never taken for an id."""

    hub: Hub

    def describe(self, model_path: str) -> Described:
        """Also raises access_denied and source_unreachable."""
        ref = parse_ref(model_path)
        if isinstance(ref, HubRef):
            return describe_hub_model(self.hub, ref)
        return super().describe(model_path)
