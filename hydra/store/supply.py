"""The bytes of an ordered slice, brought to this machine: the `Supply` port of a worker.

Promises: what it answers with is a local directory in which the ordered ranges are those of the model that was
described: a directory of another model at the same path is passed over, and said so. Refuses to know who computes.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import attrs
import structlog

from hydra.protocol.messages import LoadSlice
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.hub_source import HubSource
from hydra.store.model_dir import describe
from hydra.store.model_ref import HUB_SCHEME, HubAccess, parse_source
from hydra.store.range_cache import Progress, RangeCache
from hydra.store.range_source import RangeSource

log = structlog.get_logger()

Opener = Callable[[str, LoadSlice], RangeSource]  # raises RefusalError when it cannot be a source of this order


@attrs.frozen
class StoreSupply:
    """Sources by their scheme: `openers["hub:"]` opens what begins with "hub:". Called by one thread at a time."""

    cache: RangeCache
    openers: Mapping[str, Opener]

    def ensure(self, order: LoadSlice, progress: Progress, cancelled: Callable[[], bool]) -> LoadSlice:
        """As actors.ports.Supply.ensure."""
        why_not: list[str] = []
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
                elif (refusal := _unlike(name, order)) is None:
                    return attrs.evolve(order, sources=(name,))
                else:
                    why_not.append(refusal)
            if not sources:
                raise refuse("model_not_found", f"This worker has no source for the weights: {'; '.join(why_not)}.")
            for why in why_not:
                log.info("a source is passed over", why=why)
            key = order.spec.fingerprint
            folder = self.cache.ensure(key, order.files, order.tensors, sources, progress, cancelled)
        return attrs.evolve(order, sources=(str(folder),))


def _unlike(directory: str, order: LoadSlice) -> str | None:
    """Why the model in this directory is not the ordered one; None when it is."""
    if not Path(directory).is_dir():
        return f"there is no {directory} on this machine"
    try:
        found = describe(directory, tied=order.spec.tied)  # compared once: workers read their own bytes only
    except RefusalError as why:
        return str(why)
    if found.spec.fingerprint != order.spec.fingerprint:
        return f"the model in {directory} on this machine is another one than the coordinator's: copy it anew"
    return None


def hub_opener(access: HubAccess) -> Mapping[str, Opener]:
    """Opens `hub:org/name@commit`."""

    def open_hub(name: str, order: LoadSlice) -> RangeSource:
        ref = parse_source(name)
        if ref is None:
            raise refuse("bad_model", f"{name[:200]!r} names no commit of a Hub model.")
        return HubSource(ref, access, order.files)

    return {HUB_SCHEME: open_hub}
