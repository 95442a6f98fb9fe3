"""`pull`: a Hub model onto this machine, all of it, so that any of its workers finds its layers there.

It may be interrupted and run again; nothing that has come is fetched twice, and nothing at all where the Hugging Face
cache holds the model whole.
"""

import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import attrs
import trio  # noqa: F401 - the HTTP client needs it, and its import asks ldconfig once: not on behalf of a model

from hydra.complaint import Complaint, exit_code_of
from hydra.protocol.model.model_spec import Described
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError
from hydra.settings import Settings, cache_path
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.hub.hub_login import with_login
from hydra.store.models.model_ref import HubAccess, HubRef, parse_ref

PULL_LINE_EVERY_S = 3.0


def pull_model(model: str, settings: Settings, show: Callable[[str], None]) -> dict[str, Any]:
    """What is there afterwards, as `--json` prints it. `show` hears a line of progress every few seconds."""
    token = {"HF_TOKEN": settings.model.hf_token} if settings.model.hf_token else {}
    access = with_login(HubAccess.of({**os.environ, **token}))
    try:
        ref = parse_ref(model)
        if not isinstance(ref, HubRef):
            fix = "load it by its path; to fetch a model of that name, run this in another directory"
            raise Complaint(f"{model!r} is on this machine", "only Hub models are pulled", fix, 2)
        hub = HubClient(access, cache_path(settings.model))
        described = HubLibrary(hub).describe(model)
        shown = _Told(show, model)
        folder = _bring(described, hub, settings, shown)
    except RefusalError as error:
        fix = "see above; what has come so far is kept"
        raise Complaint(f"cannot pull {model}", str(error), fix, exit_code_of(error.refusal.code)) from error
    return {
        "model": described.model_path,
        "folder": described.folder,
        "weights": folder,
        "bytes_total": shown.total,
        "bytes_fetched": shown.total - (shown.first or 0),
    }


def _bring(described: Described, hub: HubClient, settings: Settings, shown: "_Told") -> str:
    """The directory that holds its weights in the end. Raises RefusalError."""
    assert described.hub_commit is not None, "it was described at the Hub"
    at, first = HubRef.of(described.hub_commit), described.sources[0]
    if isinstance(first, Directory):
        n_bytes = sum(tensor.length for tensor in described.tensors)
        shown.show(f"{shown.model}: whole in the Hugging Face cache, {first}; nothing is fetched")
        shown.first = shown.total = n_bytes
        return first.path
    room = CacheRoom(root=cache_path(settings.model) / "ranges", max_bytes=settings.model.max_cache_bytes)
    with closing(RangeCache(room)) as cache, closing(hub.source_of(at, described.files)) as source:
        key = described.spec.fingerprint
        return str(cache.ensure(key, described.files, described.tensors, (source,), shown, lambda: False))


@attrs.define
class _Told:
    """Progress for people, and the figures for the end."""

    show: Callable[[str], None]
    model: str
    first: int | None = None  # bytes that were here before
    total: int = 0
    _shown_s: float = float("-inf")

    def __call__(self, bytes_done: int, bytes_total: int) -> None:
        if self.first is None:
            self.first, self.total = bytes_done, bytes_total
        now_s = time.monotonic()
        if now_s - self._shown_s >= PULL_LINE_EVERY_S or bytes_done == bytes_total:
            self._shown_s = now_s
            self.show(f"{self.model}: {bytes_done / 1e6:.1f} of {bytes_total / 1e6:.1f} MB")
