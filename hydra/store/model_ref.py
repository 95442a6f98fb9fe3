"""What MODEL means: a directory of this machine, or `org/name[@revision]` at a Hub; and how that Hub is reached.

Promises: an existing directory always wins, and access to the Hub is a value that is handed on, never a global.
Refuses to know what is in a model. The token is shown nowhere: not in a representation, so not in a log.
"""

from collections.abc import Mapping
from pathlib import Path

import attrs

from hydra.protocol.model_name import hub_parts
from hydra.protocol.refusal import refuse

ENDPOINT = "https://huggingface.co"
HUB_SCHEME = "hub:"
REVISION = "main"
_YES = {"1", "on", "yes", "true"}  # as huggingface_hub reads its own switches


@attrs.frozen
class HubRef:
    """One repository at one revision: a branch, a tag or a commit."""

    repo: str  # org/name
    revision: str = REVISION

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


@attrs.frozen(kw_only=True)
class HubAccess:
    """Where the Hub is, who asks, and whether it may be asked at all."""

    endpoint: str = ENDPOINT
    token: str = attrs.field(default="", repr=False)  # empty: none
    offline: bool = False

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "HubAccess":
        """From HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE, as every tool for the Hub understands them."""
        return cls(
            endpoint=environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT,
            token=environ.get("HF_TOKEN", "").strip(),
            offline=environ.get("HF_HUB_OFFLINE", "").strip().lower() in _YES,
        )


def parse_ref(model: str) -> Path | HubRef:
    """Raises RefusalError model_not_found when `model` is neither a directory nor has the form of a Hub id."""
    try:
        path = Path(model).expanduser()
        if model and path.is_dir():
            return path
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL in the path, ~somebody unknown
        pass
    parts = hub_parts(model)
    if parts is not None:
        return HubRef(parts[0], parts[1] or REVISION)
    raise refuse(
        "model_not_found",
        f"There is no model directory at {model!r}, and it is no Hub id of the form org/name[@revision]. "
        "Check the path.",
    )


def source_of(ref: HubRef) -> str:
    """The Hub as a source in LoadSlice."""
    return f"{HUB_SCHEME}{ref}"


def parse_source(source: str) -> HubRef | None:
    """The Hub source that `source` names; None when it names another kind."""
    if not source.startswith(HUB_SCHEME):
        return None
    parts = hub_parts(source.removeprefix(HUB_SCHEME))
    return None if parts is None or not parts[1] else HubRef(*parts)
