"""Models that are computed already outlive their files: a coordinator that starts anew may find the directory gone.

Promises: what can be read is described from what is there, always, and kept; only a model of a former life (`lasting`)
whose source is gone or silent is described as it was last. A source that is there and says something else is believed,
its refusals too. Refuses to know whether anybody holds the weights: who has not enough of them refuses the load.
"""

from pathlib import Path

import attrs
import structlog

from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.store.gguf.gguf_content import is_gguf
from hydra.store.models.description_cache import DescriptionCache
from hydra.store.models.library import LocalLibrary

log = structlog.get_logger()


@attrs.frozen
class LastingLibrary:
    """Implements the Library port over another one. Any thread may call."""

    library: LocalLibrary
    cache: DescriptionCache
    lasting: frozenset[str]  # places of models that were wanted when this life began

    def describe(self, model_path: str) -> Described:
        """As the library under it."""
        try:
            described = self.library.describe(model_path)
        except RefusalError as error:
            kept = self.cache.recall(model_path) if model_path in self.lasting else None
            if kept is None or not _is_out_of_reach(kept, error.refusal):
                raise
            log.warning(
                "the model's source cannot be read; going on with what was known of it: workers that hold its weights "
                "need no more",
                model=model_path,
                reason=str(error),
            )
            return kept
        for place in dict.fromkeys((model_path, described.model_path)):
            self.cache.keep(place, described)
        return described

    def slice_ranges(self, described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
        return self.library.slice_ranges(described, first_layer, end_layer)


def _is_out_of_reach(kept: Described, refusal: Refusal) -> bool:
    """Whether the refusal is for want of the source, and not because of what it says now."""
    if kept.hub_commit is not None:
        return refusal.code in ("source_unreachable", "model_not_found", "access_denied")
    return refusal.code in ("model_not_found", "bad_model") and not files_are_there(kept)


def files_are_there(described: Described) -> bool:
    """Whether config and weights lie where the description says; weights that are to be fetched lie nowhere yet."""
    is_directory = described.hub_commit is None  # then `folder` may be a copy
    files = [Path(described.model_path if is_directory else described.folder) / "config.json"]
    if is_directory and is_gguf(described.model_path):
        files = []  # its config is in the weights
    if isinstance(weights := described.sources[0], Directory):
        files += [Path(weights.path) / stored.file for stored in described.files]
    try:
        return all(file.is_file() for file in files)
    except OSError:  # a disk that fails, a network drive that went away
        return False
