"""Whether a directory of this machine holds the very model that was described elsewhere.

Promises: a directory of another model, or with only some of its weights, is never taken for it. Refuses to know who
asks.
"""

from pathlib import Path

from hydra.protocol.model.model_spec import Described, ModelSpec
from hydra.protocol.refusal import RefusalError
from hydra.store.models.model_dir import describe


def why_unlike(directory: str, spec: ModelSpec) -> str | None:
    """Why the model in this directory is not the described one; None when it is."""
    try:
        if not Path(directory).is_dir():
            return f"there is no {directory} on this machine"
    except (OSError, ValueError) as error:  # no permission, a disk that fails, a NUL in the path
        return f"{directory} cannot be looked at on this machine: {error}"
    try:
        model = describe(directory, tied=spec.tied)  # compared once: workers read their own bytes only
    except RefusalError as refusal:
        return str(refusal)
    if model.spec.fingerprint != spec.fingerprint:
        return f"the model in {directory} on this machine is another one than the coordinator's: copy it anew"
    return None


def source_fault(described: Described) -> str:
    """Why the directory of a described model cannot be read now; empty: it can, or the model is of the Hub, where only
    fetching tells.
    """
    if described.hub_commit is not None:
        return ""
    return why_unlike(described.model_path, described.spec) or ""
