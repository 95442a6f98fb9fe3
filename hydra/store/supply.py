"""The bytes of an ordered slice, brought to this machine: the `Supply` port of a worker.

Promises: what it answers with is a local directory in which the ordered ranges are those of the model that was
described: a directory of another model at the same path is passed over, and said so. What this machine has whole, at a
path that the order names or in its own Hugging Face cache, is used before anything is fetched. Refuses to know who
computes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import attrs
import structlog

from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import refuse
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.range_source import RangeSource
from hydra.store.files.file_identity import FileIdentity
from hydra.store.hub.hf_cache import HfCache
from hydra.store.hub.hub_source import HubSource
from hydra.store.models.local_copy import why_unlike
from hydra.store.models.model_ref import HUB_SCHEME, HubAccess, parse_source

log = structlog.get_logger()

Opener = Callable[[str, LoadSlice], RangeSource]  # raises RefusalError when it cannot be a source of this order


@attrs.define(eq=False)
class StoreSupply:
    """Sources by their scheme: `openers["hub:"]` opens what begins with "hub:". Called by one thread at a time."""

    cache: RangeCache
    openers: Mapping[str, Opener]
    hf_cache: HfCache = HfCache(None)
    _seen: dict[Path, FileIdentity] = attrs.field(factory=dict, init=False)  # files of a directory, before it is read

    def ensure(self, order: LoadSlice, progress: Progress, cancelled: Callable[[], bool]) -> LoadSlice:
        """As actors.ports.Supply.ensure."""
        why_not: list[str] = []
        for directory in self._directories(order.sources):
            self._seen = _states(Path(directory), order)
            reason = why_unlike(directory, order.spec)
            if reason is None:
                return attrs.evolve(order, sources=(directory,))
            why_not.append(reason)
        self._seen = {}  # the cache confirms each byte itself
        with ExitStack() as opened:
            sources: list[RangeSource] = []
            for name in order.sources:
                opener = next((opener for scheme, opener in self.openers.items() if name.startswith(scheme)), None)
                if opener is not None:
                    source = opener(name, order)
                    if (close := getattr(source, "close", None)) is not None:
                        opened.callback(close)
                    sources.append(source)
                elif not name.startswith("/"):
                    why_not.append(f"{name[:200]!r} is a kind of source that this worker does not know")
            if not sources:
                raise refuse("model_not_found", f"This worker has no source for the weights: {'; '.join(why_not)}.")
            for why in why_not:
                log.info("a source is passed over", why=why)
            key = order.spec.fingerprint
            folder = self.cache.ensure(key, order.files, order.tensors, sources, progress, cancelled)
        return attrs.evolve(order, sources=(str(folder),))

    def confirm(self, at_hand: LoadSlice) -> None:
        """As actors.ports.Supply.confirm."""
        now = _states(Path(at_hand.sources[0]), at_hand)
        for path, before in self._seen.items():
            if path in now and not before.still(now[path]):  # what was deleted had been opened before
                raise refuse("bad_model", f"{path} was changed while it was read. Load again when it has been written.")

    def _directories(self, sources: Sequence[str]) -> Iterator[str]:
        """The directories that the order names, then what the Hugging Face cache here has of the commits it names."""
        yield from (name for name in sources if name.startswith("/"))
        for ref in filter(None, map(parse_source, sources)):
            directory = self.hf_cache.snapshot(ref)
            if directory is not None and str(directory) not in sources:
                yield str(directory)


def _states(directory: Path, order: LoadSlice) -> dict[Path, FileIdentity]:
    """Of the files that the order reads, as far as they are there."""
    found: dict[Path, FileIdentity] = {}
    for file in {tensor.file for tensor in order.tensors}:
        with suppress(OSError):  # that it is not there, whoever opens it says better
            found[directory / file] = FileIdentity.of((directory / file).stat())
    return found


def hub_opener(access: HubAccess) -> Mapping[str, Opener]:
    """Opens `hub:org/name@commit`."""

    def open_hub(name: str, order: LoadSlice) -> RangeSource:
        ref = parse_source(name)
        if ref is None:
            raise refuse("bad_model", f"{name[:200]!r} names no commit of a Hub model.")
        return HubSource(ref, access, order.files)

    return {HUB_SCHEME: open_hub}
