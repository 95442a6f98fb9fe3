"""The bytes of an ordered slice, brought to this machine: the `Supply` port of a worker.

Promises: what it answers with is a local directory in which the ordered ranges are those of the model that was
described: a directory of another model at the same path is passed over, and said so. What this machine has whole, at a
path that the order names or in its own Hugging Face cache, is used before anything is fetched. Refuses to know who
computes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import structlog

from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.source import Directory, HubCommit, Source, directory_of
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.range_source import RangeSource
from hydra.store.files.file_identity import FileIdentity
from hydra.store.hub.hf_cache import HfCache
from hydra.store.hub.hub_source import HubSource
from hydra.store.models.local_copy import why_unlike
from hydra.store.models.model_ref import HubAccess, HubRef

log = structlog.get_logger()

Opener: TypeAlias = Callable[[Any, LoadSlice], RangeSource]  # raises RefusalError when it cannot be a source of it


@attrs.define(eq=False)
class StoreSupply:
    """`openers` by the kind of source that each opens; a directory needs none. Called by one thread at a time."""

    cache: RangeCache
    openers: Mapping[type[Source], Opener]
    hf_cache: HfCache = HfCache(None)
    _seen: dict[Path, FileIdentity] = attrs.field(factory=dict, init=False)  # files of a directory, before it is read

    def ensure(self, order: LoadSlice, progress: Progress, cancelled: Callable[[], bool]) -> LoadSlice:
        """As actors.ports.Supply.ensure."""
        why_not: list[str] = []
        for directory in self._directories(order.sources):
            self._seen = _states(Path(directory), order)
            reason = why_unlike(directory, order.spec, order.files)
            if reason is None:
                return attrs.evolve(order, sources=(Directory(directory),))
            why_not.append(reason)
        self._seen = {}  # the cache confirms each byte itself
        with ExitStack() as opened:
            sources: list[RangeSource] = []
            for named in order.sources:
                opener = self.openers.get(type(named))
                if opener is not None:
                    source = opener(named, order)
                    if (close := getattr(source, "close", None)) is not None:
                        opened.callback(close)
                    sources.append(source)
                elif not _is_place(named):
                    why_not.append(f"{str(named)[:200]!r} is a kind of source that this worker does not open")
            if not sources:
                raise refuse("model_not_found", f"This worker has no source for the weights: {'; '.join(why_not)}.")
            for why in why_not:
                log.info("a source is passed over", why=why)
            key = order.spec.fingerprint
            folder = self.cache.ensure(key, order.files, order.tensors, sources, progress, cancelled)
        return attrs.evolve(order, sources=(Directory(str(folder)),))

    def confirm(self, at_hand: LoadSlice) -> None:
        """As actors.ports.Supply.confirm."""
        now = _states(Path(directory_of(at_hand.sources)), at_hand)
        for path, before in self._seen.items():
            if path in now and not before.still(now[path]):  # what was deleted had been opened before
                raise refuse("bad_model", f"{path} was changed while it was read. Load again when it has been written.")

    def _directories(self, sources: Sequence[Source]) -> Iterator[str]:
        """The directories that the order names, then what the Hugging Face cache here has of the commits it names."""
        named = [source.path for source in sources if isinstance(source, Directory) and _is_place(source)]
        yield from named
        for commit in (source for source in sources if isinstance(source, HubCommit)):
            directory = self.hf_cache.snapshot(HubRef.of(commit))
            if directory is not None and str(directory) not in named:
                yield str(directory)


def _is_place(source: Source) -> bool:
    """A relative path is none: it would mean another directory to each worker."""
    return isinstance(source, Directory) and source.path.startswith("/")


def _states(directory: Path, order: LoadSlice) -> dict[Path, FileIdentity]:
    """Of the files that the order reads, as far as they are there."""
    identities: dict[Path, FileIdentity] = {}
    for file in {tensor.file for tensor in order.tensors}:
        with suppress(OSError):  # that it is not there, whoever opens it says better
            identities[directory / file] = FileIdentity.of((directory / file).stat())
    return identities


def hub_opener(access: HubAccess) -> Mapping[type[Source], Opener]:
    """Opens a HubCommit."""

    def open_hub(commit: HubCommit, order: LoadSlice) -> RangeSource:
        return HubSource(HubRef.of(commit), access, order.files)

    return {HubCommit: open_hub}
