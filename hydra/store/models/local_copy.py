"""Whether a directory of this machine holds the very model that was described elsewhere.

Promises: a directory of another model, or with only some of its weights, is never taken for it. Refuses to know who
asks.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra.protocol.model.model_spec import Described, ModelSpec, StoredFile
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError
from hydra.store.gguf.gguf_content import is_gguf
from hydra.store.models.gguf_model import LocalGguf, gguf_fingerprint
from hydra.store.models.model_dir import describe


def why_unlike(directory: str, spec: ModelSpec, files: Sequence[StoredFile]) -> str | None:
    """Why the model in this directory is not the described one, whose files are called so; None when it is."""
    try:
        if not Path(directory).is_dir():
            return f"there is no {directory} on this machine"
    except (OSError, ValueError) as error:  # no permission, a disk that fails, a NUL in the path
        return f"{directory} cannot be looked at on this machine: {error}"
    try:
        if files and is_gguf(files[0].file):
            here = LocalGguf(Path(directory))
            if all(stored.identity and here.identity(stored.file) == stored.identity for stored in files):
                return None  # the very files that were described: a header with a vocabulary is not read again
            fingerprint = gguf_fingerprint(Path(directory), files[0].file)
        else:  # whether a head is tied was compared once: workers read their own bytes only
            fingerprint = describe(directory, tied=spec.tied).spec.fingerprint
    except RefusalError as refusal:
        return str(refusal)
    if fingerprint != spec.fingerprint:
        return f"the model in {directory} on this machine is another one than the coordinator's: copy it anew"
    return None


def source_fault(described: Described) -> str:
    """Why the directory of a described model cannot be read now; empty: it can, or the model is of the Hub, where only
    fetching tells.
    """
    weights = described.sources[0]
    if described.hub_commit is not None or not isinstance(weights, Directory):
        return ""
    return why_unlike(weights.path, described.spec, described.files) or ""
