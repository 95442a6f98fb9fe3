"""The models that can be loaded, as the coordinator asks for them: directories of this machine, and ids of a Hub.

Promises: the `Library` port, by describing afresh at each call; any thread may call. Refuses to know who loads what.
"""

import attrs

from hydra.protocol.model.model_spec import Described
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_files import describe_hub_model
from hydra.store.models.gguf_model import describe_path
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubRef, parse_ref


@attrs.frozen
class HubLibrary(LocalLibrary):
    """Directories and GGUF files, and the models of a Hub by their ids. What exists here is never taken for an id."""

    hub: HubClient

    def describe(self, model_path: str) -> Described:
        """Also raises access_denied and source_unreachable."""
        ref = parse_ref(model_path)
        if isinstance(ref, HubRef):
            return describe_hub_model(self.hub, ref)
        return describe_path(model_path, self.hub.cache_dir)
