"""MODEL as a person typed it here, for a coordinator that may run elsewhere: a path means the one that is meant here.

Refuses to know what is in a model; an id of the Hub goes out as it was written.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from hydra.protocol.refusal import RefusalError
from hydra.store.models.model_ref import HubRef, parse_ref


@attrs.frozen(kw_only=True)
class NamedModel:
    """What is sent to the cluster, and whether something of that name is on this machine."""

    sent: str
    is_here: bool

    @classmethod
    def read(cls, typed: str) -> "NamedModel":
        """What is nothing here and no id of the Hub may be a path that exists where the coordinator runs:
        absolute as well, for its working directory is nobody's business.
        """
        try:
            ref = parse_ref(typed)
        except RefusalError:
            path = Path(os.path.abspath(Path(typed)))  # noqa: PTH100 - links of this machine mean nothing elsewhere
            return cls(sent=str(path) if typed and not typed.startswith("~") else typed, is_here=False)
        if isinstance(ref, HubRef):
            return cls(sent=typed, is_here=False)
        return cls(sent=os.path.abspath(ref), is_here=True)  # noqa: PTH100

    def only_here(self, url: str) -> tuple[str, str, str]:
        """What, cause and fix when the cluster at `url` does not find it."""
        host = urlsplit(url).hostname or url
        return (
            f"there is no model directory at {self.sent!r} where the coordinator runs ({host})",
            "it exists on this machine, but the coordinator reads it on its own",
            "copy it there to the same path, or load it by its id at the Hub",
        )
