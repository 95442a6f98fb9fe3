"""The models on this machine's disk, as the coordinator asks for them.

Promises: the `Library` port, by describing afresh at each call; any thread may call. Refuses to know who loads what.
"""

from pathlib import Path

import attrs

from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.protocol.settings.model import ModelSettings
from hydra.store.models.gguf_model import describe_path
from hydra.store.models.slice_ranges import slice_ranges


def _usual_cache() -> Path:
    return Path(ModelSettings().cache_dir).expanduser()


@attrs.frozen
class LocalLibrary:
    """Model directories and GGUF files of the local file system; what is made of a GGUF file lies in `cache_dir`."""

    cache_dir: Path = attrs.field(factory=_usual_cache, kw_only=True)

    def describe(self, model_path: str) -> Described:
        """Raises RefusalError: model_not_found, bad_model, unsupported."""
        return describe_path(model_path, self.cache_dir)

    def slice_ranges(self, described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
        """The tensors of one slice: embedding with layer 0, norm and head with the last, tied or not."""
        return slice_ranges(described, first_layer, end_layer)
